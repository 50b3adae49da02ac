//! The dynamic-exponent (tree) data type at 3 to 8 bits.

use kbit_plugin::export_plugin;
use kbit_scheme_kit::{BlockScheme, levels::Dynamic};

export_plugin! {
    id: "org.kbit.dynamic",
    vendor: "kbit",
    url: "https://github.com/kbit-dev/kbit",
    license: "MIT OR Apache-2.0",
    schemes: [BlockScheme<Dynamic>],
}
