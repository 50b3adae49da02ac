//! The plugin guide, executed: its code blocks go into a project from `kbit plugin new`, its commands run in order, and the
//! scheme stands in the report.

use kbit_tests::{blocks, kbit_path, root};
use std::path::Path;
use std::process::Command;

/// Puts a block of the guide where its first line says: `/* FILE: replaces FUNCTION */`, `/* FILE: before FUNCTION */` or
/// `/* FILE: replaces the line START */`.
fn paste(project: &Path, block: &str) {
    let (place, code) = block.split_once('\n').expect("a first line");
    let place = place.strip_prefix("/* ").and_then(|place| place.strip_suffix(" */")).expect("a place");
    let (file, what) = place.split_once(": ").expect("a file");
    let file = project.join(file);
    let source = std::fs::read_to_string(&file).expect("the project's source");
    let lines: Vec<&str> = source.lines().collect();
    let find = |wanted: &dyn Fn(&str) -> bool| {
        lines.iter().position(|line| wanted(line)).unwrap_or_else(|| panic!("{place}: no such place"))
    };
    let range = if let Some(start) = what.strip_prefix("replaces the line ") {
        let line = find(&|line| line.trim_start().starts_with(start));
        line..line + 1
    } else {
        let (how, function) = what.split_once(' ').expect("how and where");
        let first = find(&|line| line.starts_with("static") && line.contains(&format!(" {function}(")));
        match how {
            "before" => first..first,
            "replaces" => {
                let last = lines[first..].iter().position(|line| *line == "}").expect("its end");
                first..first + last + 1
            }
            _ => panic!("{place}: what is `{how}`?"),
        }
    };
    let mut edited = lines[..range.start].to_vec();
    edited.extend(code.lines());
    edited.extend(&lines[range.end..]);
    std::fs::write(&file, edited.join("\n") + "\n").expect("written");
}

#[test]
fn the_plugin_guide_leads_to_a_report() {
    let guide = std::fs::read_to_string(root().join("docs/guide/plugins.md")).expect("the guide");
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    std::os::unix::fs::symlink(root().join("assets"), folder.join("assets")).expect("a link");
    let run = |script: &str| {
        let kbit = kbit_path();
        let script = format!("set -e\nkbit() {{ '{}' \"$@\"; }}\n{script}", kbit.display());
        let output = Command::new("bash")
            .args(["-c", &script])
            .current_dir(folder)
            .env("KBIT", &kbit)
            .env("XDG_CONFIG_HOME", folder.join("settings"))
            .output()
            .expect("bash starts");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "failed:\n{script}\n{out}{err}");
        out.into_owned()
    };

    let commands = blocks(&guide, "sh");
    let [create, check, add, measure] = commands.as_slice() else { panic!("the guide has other steps") };
    let error = |output: &str| -> f64 {
        let line = output.lines().find(|line| line.contains("round-trip")).expect("the case round-trip");
        let (_, rest) = line.split_once("relative error ").expect("an error");
        rest.split(';').next().and_then(|number| number.trim().parse().ok()).expect("a number")
    };
    let before = run(create);
    for block in blocks(&guide, "c") {
        paste(&folder.join("clipped"), &block);
    }
    let after = run(check);
    assert!(error(&after) < error(&before), "the guide promises a smaller error:\n{before}\n{after}");
    let _ = run(add);
    std::fs::write(folder.join("clipped.yaml"), blocks(&guide, "yaml").concat()).expect("written");
    let _ = run(measure);

    let report = std::fs::read_to_string(folder.join("kbit-runs/clipped/report.md")).expect("a report");
    let page = std::fs::read_to_string(folder.join("kbit-runs/clipped/report.html")).expect("a report");
    for label in ["clipped:block=32", "clipped:block=64", "clipped:block=128"] {
        assert!(report.contains(label) && page.contains(label), "{label} is not in the report");
    }
}
