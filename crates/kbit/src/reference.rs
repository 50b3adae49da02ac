//! Pages of the reference in Markdown, from the declarations themselves.

use clap::{Command, CommandFactory};
use kbit_host::Registry;
use std::fmt::Write as _;

/// The command line.
pub fn command_line() -> String {
    let mut page = String::from(
        "# Command line reference\n\n\
         Generated from `crates/kbit/src/cli.rs` by `cargo xtask generate`; do not edit. Results go to stdout, messages and\n\
         progress to stderr. `--json` makes stdout one JSON document.\n\n\
         Exit status: 0 done, 1 failed, 2 wrong usage or configuration, 3 done with some items failed (each named).\n",
    );
    let mut root = crate::cli::Cli::command();
    root.build();
    describe(&root, &mut page, true);
    page
}

fn describe(command: &Command, page: &mut String, is_root: bool) {
    if command.is_hide_set() || command.get_name() == "help" {
        return;
    }
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    let mut usage = command.clone();
    let _ = write!(page, "\n## `{name}`\n\n");
    if let Some(about) = command.get_about() {
        let _ = writeln!(page, "{about}.\n");
    }
    let _ =
        writeln!(page, "```text\n{}\n```", usage.render_usage().to_string().trim_start_matches("Usage: "));
    let arguments: Vec<_> = command
        .get_arguments()
        .filter(|argument| {
            !argument.is_hide_set() && !matches!(argument.get_id().as_str(), "help" | "version")
        })
        .filter(|argument| is_root || !argument.is_global_set())
        .collect();
    if !arguments.is_empty() {
        page.push_str("\n| argument | meaning |\n|---|---|\n");
    }
    for argument in arguments {
        let mut help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        let values: Vec<_> =
            argument.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
        if !values.is_empty() && argument.get_action().takes_values() {
            let _ = write!(help, " (one of: {})", values.join(", "));
        }
        let defaults: Vec<_> =
            argument.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
        if !defaults.is_empty() && argument.get_action().takes_values() {
            let _ = write!(help, " [default: {}]", defaults.join(","));
        }
        let _ = writeln!(
            page,
            "| `{}` | {} |",
            argument.to_string().replace('|', "\\|"),
            help.replace('|', "\\|")
        );
    }
    if let Some(after) = command.get_after_help().map(ToString::to_string)
        && let Some(examples) = after.strip_prefix("Example")
    {
        let lines = examples.trim_start_matches('s').trim_start_matches(':');
        let _ = writeln!(
            page,
            "\n```sh\n{}\n```",
            lines.lines().map(str::trim).collect::<Vec<_>>().join("\n").trim()
        );
    }
    for sub in command.get_subcommands() {
        describe(sub, page, false);
    }
}

/// The bundled schemes.
pub fn schemes(registry: &Registry) -> String {
    let mut page = String::from(
        "# Bundled schemes\n\nGenerated from the plugins' own declarations by `cargo xtask generate`; do not edit. \
         `kbit plugin show NAME` prints the same.\n",
    );
    for scheme in registry.schemes() {
        let _ = write!(page, "\n## `{}`\n\n{}. {}\n", scheme.id(), scheme.title(), scheme.doc());
        if !scheme.citation().is_empty() {
            let _ = writeln!(page, "\nSource: {}.", scheme.citation());
        }
        if !scheme.params().is_empty() {
            page.push_str("\n| parameter | values | default | meaning |\n|---|---|---|---|\n");
        }
        for param in scheme.params() {
            let _ = writeln!(
                page,
                "| `{}` | {} | {} | {} |",
                param.key,
                param.values(),
                param.default_text(),
                param.doc
            );
        }
    }
    page
}
