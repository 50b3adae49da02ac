//! Bytes do not depend on the number of threads that train the codebooks, nor on the instruction set.

#[path = "../../../crates/kbit-scheme-kit/tests/common/mod.rs"]
mod common;

use kbit_host::StaticPlugin;

#[test]
fn bytes_do_not_depend_on_threads_or_instruction_sets() {
    let plugin = StaticPlugin { name: "vq", entry: kbit_scheme_vq::kbit_plugin_entry_v1 };
    common::bytes_are_those_of_one_thread(
        &plugin,
        &["bits=6,iterations=4", "dim=2,bits=10,iterations=2", "dim=8,bits=4,stages=3,iterations=4"],
    );
}
