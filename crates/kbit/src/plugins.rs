//! Plugins that are part of the program: none, or with the feature `static-plugins` all that come with kbit in Rust.

use kbit_host::StaticPlugin;

/// The plugins of this program.
#[cfg(not(feature = "static-plugins"))]
pub const STATICS: &[StaticPlugin] = &[];

/// The plugins of this program.
#[cfg(feature = "static-plugins")]
pub const STATICS: &[StaticPlugin] = &[
    StaticPlugin { name: "awq", entry: kbit_scheme_awq::kbit_plugin_entry_v1 },
    StaticPlugin { name: "dynamic", entry: kbit_scheme_dynamic::kbit_plugin_entry_v1 },
    StaticPlugin { name: "float", entry: kbit_scheme_float::kbit_plugin_entry_v1 },
    StaticPlugin { name: "ggml", entry: kbit_scheme_ggml::kbit_plugin_entry_v1 },
    StaticPlugin { name: "gptq", entry: kbit_scheme_gptq::kbit_plugin_entry_v1 },
    StaticPlugin { name: "hqq", entry: kbit_scheme_hqq::kbit_plugin_entry_v1 },
    StaticPlugin { name: "int", entry: kbit_scheme_int::kbit_plugin_entry_v1 },
    StaticPlugin { name: "mixed", entry: kbit_scheme_mixed::kbit_plugin_entry_v1 },
    StaticPlugin { name: "quantile", entry: kbit_scheme_quantile::kbit_plugin_entry_v1 },
    StaticPlugin { name: "ternary", entry: kbit_scheme_ternary::kbit_plugin_entry_v1 },
    StaticPlugin { name: "trellis", entry: kbit_scheme_trellis::kbit_plugin_entry_v1 },
    StaticPlugin { name: "vq", entry: kbit_scheme_vq::kbit_plugin_entry_v1 },
];
