//! Integer quantization at 2 to 8 bits: round to nearest, with a scale (and, asymmetric, a minimum) a block.

use kbit_plugin::export_plugin;
use kbit_scheme_kit::{BlockScheme, levels::Int};

export_plugin! {
    id: "org.kbit.int",
    vendor: "kbit",
    url: "https://github.com/kbit-dev/kbit",
    license: "MIT OR Apache-2.0",
    schemes: [BlockScheme<Int>],
}

#[cfg(test)]
mod tests;
