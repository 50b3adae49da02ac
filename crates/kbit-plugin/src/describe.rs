//! From a scheme's declarations to the ABI's descriptors. They are made once and never freed (rule R2).
#![expect(unsafe_code, reason = "fills the C tables")]

use crate::export;
use crate::params::{DefaultValue, Param, ParamKind};
use crate::scheme::{Runtime, Scheme, SchemeInfo};
use kbit_abi as abi;
use std::mem::size_of;

/// What [`export_plugin!`](crate::export_plugin) was given.
pub struct PluginInfo {
    /// Reverse domain.
    pub id: &'static str,
    /// Version.
    pub version: &'static str,
    /// Who made it.
    pub vendor: &'static str,
    /// Where to find it.
    pub url: &'static str,
    /// SPDX expression.
    pub license: &'static str,
    /// Schemes.
    pub schemes: &'static [SchemeEntry],
    /// Run at load.
    pub self_test: Option<unsafe extern "C" fn(*mut abi::Err) -> abi::Status>,
}

/// A scheme with its C functions.
pub struct SchemeEntry {
    info: SchemeInfo,
    functions: abi::Scheme,
}

// SAFETY: the functions are immutable and take any thread; the null pointers inside are filled in by `scheme`.
unsafe impl Sync for SchemeEntry {}

impl SchemeEntry {
    /// The entry of the scheme `S`.
    #[must_use]
    pub const fn of<S: Scheme>() -> Self {
        Self {
            info: S::INFO,
            functions: abi::Scheme {
                size: size_of::<abi::Scheme>(),
                id: abi::Str::EMPTY,
                title: abi::Str::EMPTY,
                doc: abi::Str::EMPTY,
                citation: abi::Str::EMPTY,
                ggml_type: -1,
                params: std::ptr::null(),
                n_params: 0,
                open: Some(export::open::<S>),
                close: Some(export::close::<S>),
                plan: Some(export::plan::<S>),
                begin: Some(export::begin::<S>),
                observe: Some(export::observe::<S>),
                prepare: Some(export::prepare::<S>),
                encode: Some(export::encode::<S>),
                end: Some(export::end::<S>),
                open_tensor: Some(export::open_tensor::<S>),
                close_tensor: Some(export::close_tensor::<S>),
                decode: Some(export::decode::<S>),
                extension: Some(export::no_extension),
            },
        }
    }

    /// The entry of the scheme `S`, with its fused kernels.
    #[must_use]
    pub const fn with_runtime<S: Runtime>() -> Self {
        let mut entry = Self::of::<S>();
        entry.functions.extension = Some(export::extension::<S>);
        entry
    }
}

/// Makes the descriptor of a plugin; lives until the process exits.
#[must_use]
pub fn plugin(info: &'static PluginInfo) -> &'static abi::Plugin {
    let schemes: Vec<*const abi::Scheme> = info.schemes.iter().map(scheme).collect();
    let schemes: &'static [*const abi::Scheme] = Vec::leak(schemes);
    Box::leak(Box::new(abi::Plugin {
        size: size_of::<abi::Plugin>(),
        abi_minor: abi::ABI_MINOR,
        id: abi::Str::new(info.id),
        version: abi::Str::new(info.version),
        vendor: abi::Str::new(info.vendor),
        url: abi::Str::new(info.url),
        license: abi::Str::new(info.license),
        schemes: schemes.as_ptr(),
        n_schemes: schemes.len(),
        self_test: info.self_test,
    }))
}

fn scheme(entry: &'static SchemeEntry) -> *const abi::Scheme {
    let params: Vec<*const abi::Param> = entry.info.params.iter().map(param).collect();
    let params: &'static [*const abi::Param] = Vec::leak(params);
    Box::leak(Box::new(abi::Scheme {
        id: abi::Str::new(entry.info.id),
        title: abi::Str::new(entry.info.title),
        doc: abi::Str::new(entry.info.doc),
        citation: abi::Str::new(entry.info.citation),
        ggml_type: entry.info.ggml_type,
        params: params.as_ptr(),
        n_params: params.len(),
        ..entry.functions
    }))
}

#[expect(clippy::cast_precision_loss, reason = "the ABI states the bounds of whole numbers as f64")]
fn param(param: &'static Param) -> *const abi::Param {
    let (kind, min, max, choices): (u32, f64, f64, &[&'static str]) = match param.kind {
        ParamKind::Bool => (abi::PARAM_BOOL, 0.0, 1.0, &[]),
        ParamKind::Int { min, max } => (abi::PARAM_INT, min as f64, max as f64, &[]),
        ParamKind::Float { min, max } => (abi::PARAM_FLOAT, min, max, &[]),
        ParamKind::Str => (abi::PARAM_STRING, 0.0, 0.0, &[]),
        ParamKind::Choice(words) => (abi::PARAM_CHOICE, 0.0, 0.0, words),
        ParamKind::Numbers => (abi::PARAM_NUMBERS, f64::NEG_INFINITY, f64::INFINITY, &[]),
    };
    let choices: &'static [abi::Str] = Vec::leak(choices.iter().map(|word| abi::Str::new(word)).collect());
    let mut value = abi::Value {
        size: size_of::<abi::Value>(),
        key: abi::Str::new(param.key),
        r#type: kind,
        i: 0,
        f: 0.0,
        s: abi::Str::EMPTY,
        numbers: std::ptr::null(),
        n_numbers: 0,
    };
    match param.default {
        DefaultValue::Required => {}
        DefaultValue::Bool(given) => value.i = i64::from(given),
        DefaultValue::Int(given) => value.i = given,
        DefaultValue::Float(given) => value.f = given,
        DefaultValue::Str(given) => value.s = abi::Str::new(given),
        DefaultValue::Numbers(given) => {
            value.numbers = given.as_ptr();
            value.n_numbers = given.len();
        }
    }
    let required = matches!(param.default, DefaultValue::Required);
    let fallback: *const abi::Value = if required { std::ptr::null() } else { Box::leak(Box::new(value)) };
    Box::leak(Box::new(abi::Param {
        size: size_of::<abi::Param>(),
        key: abi::Str::new(param.key),
        doc: abi::Str::new(param.doc),
        unit: abi::Str::new(param.unit),
        r#type: kind,
        required: u32::from(required),
        fallback,
        min,
        max,
        choices: choices.as_ptr(),
        n_choices: choices.len(),
    }))
}
