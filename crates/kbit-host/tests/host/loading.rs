//! Trust, pins, lookup, and encoding in this process.

use crate::{compile_c, folder, good_plugin, matrix, open, trusting, weights};
use kbit_host::scaffold::{Lang, new_project};
use kbit_host::{AuxData, Bytes, HostError, HostOptions, Isolation, Registry, TensorBytes, lock};
use kbit_types::{Codec, MatrixShape};
use std::path::PathBuf;

#[test]
fn a_trusted_folder_needs_no_lock_and_the_scheme_encodes() {
    let good = good_plugin();
    let registry = Registry::load(&trusting(good.parent().unwrap())).unwrap();
    assert!(registry.failures().is_empty(), "{:?}", registry.failures());
    let plugin = &registry.plugins()[0];
    assert_eq!((plugin.id(), plugin.version(), plugin.path()), ("org.example.good", "0.1.0", good));
    assert_eq!(plugin.sha256().len(), 64);
    for name in ["good", "org.example.good/1", "org.example.good", "example.good"] {
        assert_eq!(registry.scheme(name).unwrap().id(), "org.example.good/1", "{name}");
    }
    let unknown = registry.scheme("god").unwrap_err();
    assert!(unknown.is_usage() && unknown.to_string().contains("did you mean good"), "{unknown}");
    let scheme = registry.scheme("good").unwrap();
    assert_eq!(
        (scheme.params()[0].values(), scheme.params()[0].default_text()),
        ("8..=4096 weights".into(), "32".into())
    );
    assert_eq!(scheme.to_json()["params"][0]["default"], 32);

    let open = open(good.parent().unwrap(), "good:block=16", Isolation::InProcess).unwrap();
    let info = matrix("blk.0.w", 10, 100);
    let values = weights(1000);
    let plan = open.plan(&info).unwrap();
    assert_eq!(
        (plan.parts[0].name.as_str(), plan.parts[0].group_bytes, plan.parts[1].group_bytes),
        ("codes", 50, 28)
    );
    assert_eq!((plan.total_bytes(10), plan.part_bytes(1, 4)), (Some(780), Some(112)));
    let encoded = open.encode_matrix(&info, &values, &AuxData::default()).unwrap();
    let bytes = TensorBytes {
        heads: encoded.heads.into_iter().map(Bytes::from).collect(),
        parts: encoded.parts.into_iter().map(Bytes::from).collect(),
    };
    let codec = open.open_tensor(&info, bytes).unwrap();
    assert_eq!((codec.shape(), codec.row_group()), (MatrixShape::dense(10, 100), 1));
    assert!(codec.fused().is_none());
    let mut rows = vec![9.0; 3 * 104];
    codec.decode(4..7, &mut rows, 104).unwrap();
    for r in 0..3 {
        for c in 0..100 {
            assert!((rows[r * 104 + c] - values[(r + 4) * 100 + c]).abs() <= 0.5 / 14.0 + 1e-6);
        }
        assert!(r == 2 || rows[r * 104 + 100..(r + 1) * 104] == [9.0; 4]);
    }
}

#[test]
fn a_file_outside_trusted_folders_needs_a_pin_with_its_hash() {
    let own = folder().join("elsewhere");
    std::fs::create_dir_all(&own).unwrap();
    let file = own.join("any-name.so");
    std::fs::copy(good_plugin(), &file).unwrap();
    let options =
        HostOptions { trusted: Vec::new(), lock: Some(own.join("conf/plugins.lock")), ..trusting(&own) };
    let explicit = HostOptions { explicit: vec![file.clone()], ..options.clone() };
    let refused = Registry::load(&explicit).unwrap_err();
    assert!(matches!(refused, HostError::NotTrusted { .. }), "{refused}");
    assert!(refused.to_string().contains("kbit plugin add"), "{refused}");

    let added = lock::add(&file, &options).unwrap();
    assert_eq!(
        (added.id.as_str(), added.schemes.as_slice()),
        ("org.example.good", ["org.example.good/1".to_owned()].as_slice())
    );
    // From now on it is loaded without being named, and under its name.
    for options in [&options, &explicit] {
        let registry = Registry::load(options).unwrap();
        assert!(registry.failures().is_empty(), "{:?}", registry.failures());
        assert_eq!(registry.schemes().count(), 1);
    }

    // One changed byte is another file.
    let mut bytes = std::fs::read(&file).unwrap();
    bytes.push(0);
    std::fs::write(&file, &bytes).unwrap();
    let registry = Registry::load(&options).unwrap();
    assert_eq!(registry.schemes().count(), 0);
    assert!(matches!(registry.failures(), [HostError::PinChanged { .. }]), "{:?}", registry.failures());
    // Also in a trusted folder: who pinned it wants that file.
    let trusted = HostOptions { trusted: vec![own.clone()], explicit: vec![file], ..options };
    assert!(matches!(Registry::load(&trusted), Err(HostError::PinChanged { .. })));
}

#[test]
fn a_damaged_lock_trusts_nobody_and_is_told() {
    let own = tempfile::tempdir().unwrap();
    let lock = own.path().join("plugins.lock");
    std::fs::write(&lock, "not json").unwrap();
    let options = HostOptions { trusted: Vec::new(), lock: Some(lock), ..trusting(own.path()) };
    let registry = Registry::load(&options).unwrap();
    assert!(matches!(registry.failures(), [HostError::Lock { .. }]));
    assert!(matches!(lock::add(good_plugin(), &options), Err(HostError::Lock { .. })));
}

#[test]
fn a_file_that_anyone_may_write_is_not_trusted_for_its_folder() {
    use std::os::unix::fs::PermissionsExt;
    let own = tempfile::tempdir().unwrap();
    let file = own.path().join("libkbit_scheme_open.so");
    std::fs::copy(good_plugin(), &file).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o777)).unwrap();
    let registry = Registry::load(&trusting(own.path())).unwrap();
    assert!(matches!(registry.failures(), [HostError::NotTrusted { .. }]), "{:?}", registry.failures());
}

#[test]
fn bad_files_in_a_trusted_folder_are_told_and_do_not_keep_others_from_loading() {
    let own = tempfile::tempdir().unwrap();
    std::fs::copy(good_plugin(), own.path().join("libkbit_scheme_good.so")).unwrap();
    std::fs::write(own.path().join("libkbit_scheme_text.so"), "text").unwrap();
    std::fs::write(own.path().join("libkbit_scheme_empty.so"), "").unwrap();
    std::fs::write(own.path().join("unrelated.so"), "text").unwrap();
    let whole = std::fs::read(good_plugin()).unwrap();
    std::fs::write(own.path().join("libkbit_scheme_half.so"), &whole[..whole.len() / 2]).unwrap();
    let registry = Registry::load(&trusting(own.path())).unwrap();
    assert_eq!(registry.plugins().len(), 1);
    let failures: Vec<String> = registry.failures().iter().map(ToString::to_string).collect();
    assert_eq!(failures.len(), 3, "{failures:?}");
    assert!(
        failures.iter().all(|failure| failure.contains("not a plugin that kbit can load")),
        "{failures:?}"
    );
}

#[test]
fn a_second_plugin_with_the_same_scheme_is_told_and_not_used() {
    let own = tempfile::tempdir().unwrap();
    std::fs::copy(good_plugin(), own.path().join("libkbit_scheme_a.so")).unwrap();
    let source = new_project(&own.path().join("src"), "good", Lang::C).unwrap().folder.join("src/scheme.c");
    compile_c(&source, own.path(), "b", &["-DOTHER_BYTES", "-O0"]);
    let registry = Registry::load(&trusting(own.path())).unwrap();
    assert!(matches!(registry.failures(), [HostError::Shadowed { .. }]), "{:?}", registry.failures());
    assert_eq!(registry.scheme("good").unwrap().plugin().file_name(), "libkbit_scheme_a.so");
}

#[test]
fn a_library_that_needs_a_missing_symbol_is_refused_at_load() {
    let own = tempfile::tempdir().unwrap();
    let source = own.path().join("missing.c");
    std::fs::write(
        &source,
        "#include \"kbit_plugin.h\"\nextern int not_there(void);\n\
         KBIT_EXPORT const kbit_plugin *kbit_plugin_entry_v1(const kbit_host *h, kbit_err *e) { (void)h; (void)e; not_there(); return 0; }\n",
    )
    .unwrap();
    compile_c(&source, own.path(), "missing", &[]);
    let registry = Registry::load(&trusting(own.path())).unwrap();
    let message = registry.failures()[0].to_string();
    assert!(message.contains("not_there") && message.contains("libkbit_scheme_missing.so"), "{message}");
}

#[test]
fn executable_stacks_and_other_abi_versions_are_refused_without_running() {
    let own = tempfile::tempdir().unwrap();
    let source = own.path().join("loud.c");
    // Its initialiser would end the process.
    let text = "#include \"kbit_plugin.h\"\n#include <stdlib.h>\n__attribute__((constructor)) static void loud(void) { _Exit(66); }\n\
                KBIT_EXPORT const kbit_plugin *ENTRY(const kbit_host *h, kbit_err *e) { (void)h; (void)e; return 0; }\n";
    std::fs::write(&source, text.replace("ENTRY", "kbit_plugin_entry_v1")).unwrap();
    compile_c(&source, own.path(), "stack", &["-Wl,-z,execstack"]);
    std::fs::write(&source, text.replace("ENTRY", "kbit_plugin_entry_v2")).unwrap();
    compile_c(&source, own.path(), "v2", &[]);
    std::fs::write(&source, text.replace("ENTRY", "something_else")).unwrap();
    compile_c(&source, own.path(), "w_none", &[]);
    let registry = Registry::load(&trusting(own.path())).unwrap();
    let failures: Vec<String> = registry.failures().iter().map(ToString::to_string).collect();
    for (failure, expected) in
        failures.iter().zip(["executable stack", "another major version", "does not export"])
    {
        assert!(failure.contains(expected), "{failure}");
    }
    assert_eq!(failures.len(), 3);
}

#[test]
fn damaged_libraries_are_inspected_without_a_panic() {
    use kbit_host::inspect::inspect;
    let whole = std::fs::read(good_plugin()).unwrap();
    inspect(&whole).unwrap();
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap()
    };
    let mut refused = 0;
    for round in 0..4000 {
        let mut bytes = whole.clone();
        // Headers first, where damage tells; then anywhere.
        let reach = if round % 2 == 0 { 1024 } else { bytes.len() };
        for _ in 0..=random() % 8 {
            let at = random() % reach;
            bytes[at] = [0, 0xff, 0x7f, 0x80, (random() & 0xff) as u8][random() % 5];
        }
        refused += usize::from(inspect(&bytes).is_err());
    }
    assert!(refused > 400, "{refused} of 4000 refused");
}

#[test]
#[expect(clippy::print_stdout, reason = "a skipped test says so")]
fn loads_where_memory_files_must_not_be_executable() {
    // vm.memfd_noexec belongs to a PID namespace, so the rest of the system is left alone.
    let this = std::env::current_exe().unwrap();
    let mut command = std::process::Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "sh", "-c"])
        .arg("echo 2 > /proc/sys/vm/memfd_noexec || exit 77; exec \"$0\" --exact loading::the_plugins_words_come_with_tensor_and_scheme")
        .arg(this);
    let output = command.output();
    match output {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains("1 passed"), "{text}");
        }
        Ok(output) if output.status.code() == Some(101) => {
            panic!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        }
        other => println!("skipped: no namespace in which vm.memfd_noexec can be set ({other:?})"),
    }
}

#[test]
fn wrong_calls_of_the_host_are_errors() {
    let good = good_plugin();
    let open = open(good.parent().unwrap(), "good", Isolation::InProcess).unwrap();
    let values = weights(320);
    let info = matrix("w", 10, 32);
    let job = open.begin(&info, None, &AuxData::default()).unwrap();
    let (mut codes, mut scales) = (vec![0; 160], vec![0; 40]);
    let mut encode = |rows: std::ops::Range<u64>, values: &[f32], codes_len: usize| {
        job.encode(rows, values, &mut [&mut codes[..codes_len], &mut scales[..]])
    };
    assert!(encode(0..10, &values, 160).is_ok());
    assert!(matches!(encode(0..10, &values[1..], 160), Err(HostError::Misuse { .. })));
    assert!(matches!(encode(0..11, &values, 160), Err(HostError::Misuse { .. })));
    assert!(matches!(encode(0..10, &values, 159), Err(HostError::Misuse { .. })));
    let short = TensorBytes {
        heads: vec![Vec::new().into(); 2],
        parts: vec![vec![0; 160].into(), vec![0; 39].into()],
    };
    let refused = open.open_tensor(&info, short).unwrap_err().to_string();
    assert!(refused.contains("39 bytes"), "{refused}");
    assert!(open.plan(&matrix("w", 0, 32)).is_err() && open.plan(&matrix("w", 1 << 40, 1 << 40)).is_err());
}

#[test]
fn the_plugins_words_come_with_tensor_and_scheme() {
    let open = open(good_plugin().parent().unwrap(), "good", Isolation::InProcess).unwrap();
    let mut values = weights(320);
    values[37] = f32::NAN;
    let error =
        open.encode_matrix(&matrix("blk.7.ffn_up.weight", 10, 32), &values, &AuxData::default()).unwrap_err();
    assert!(matches!(error, HostError::Numeric { .. }));
    let text = error.to_string();
    for part in [
        "blk.7.ffn_up.weight",
        "org.example.good/1",
        "libkbit_scheme_good.so",
        "row 1, column 5",
        "kbit verify",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn default_trust_is_the_executables_folder_never_the_current_one() {
    let options = HostOptions::default();
    let folder =
        std::env::current_exe().unwrap().canonicalize().unwrap().parent().map(PathBuf::from).unwrap();
    assert_eq!(options.trusted[0], folder);
    assert!(!options.trusted.contains(&std::env::current_dir().unwrap()));
}
