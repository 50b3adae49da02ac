//! Bytes do not depend on the number of threads that search, nor on the instruction set.

#[path = "../../../crates/kbit-scheme-kit/tests/common/mod.rs"]
mod common;

use kbit_host::StaticPlugin;

#[test]
fn bytes_do_not_depend_on_threads_or_instruction_sets() {
    let plugin = StaticPlugin { name: "awq", entry: kbit_scheme_awq::kbit_plugin_entry_v1 };
    common::bytes_are_those_of_one_thread(
        &plugin,
        &["bits=3", "bits=4,symmetric=false,grid=4", "bits=2,clip=false"],
    );
}
