//! Quantile codebooks: normal-float (NF-k), and quantiles of the matrix itself with the codebook in the part's head.

use kbit_plugin::export_plugin;
use kbit_scheme_kit::{BlockScheme, levels::Quantile};

export_plugin! {
    id: "org.kbit.quantile",
    vendor: "kbit",
    url: "https://github.com/kbit-dev/kbit",
    license: "MIT OR Apache-2.0",
    schemes: [BlockScheme<Quantile>],
}
