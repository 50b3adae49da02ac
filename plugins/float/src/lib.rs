//! Small floating-point data types at 3 to 8 bits: sign, exponent, mantissa, and a scale a block.

use kbit_plugin::export_plugin;
use kbit_scheme_kit::{BlockScheme, levels::Float};

export_plugin! {
    id: "org.kbit.float",
    vendor: "kbit",
    url: "https://github.com/kbit-dev/kbit",
    license: "MIT OR Apache-2.0",
    schemes: [BlockScheme<Float>],
}
