//! SDK for authors of kbit quantization schemes in Rust: implement [`Scheme`], call [`export_plugin!`], build a `cdylib`.
//!
//! The trait is safe; everything that crosses the C boundary (`kbit_plugin.h`) is checked here, and a panic inside a
//! scheme becomes an error with the panic's message. What a scheme must keep: bytes are a function of values, shape
//! and auxiliary data alone (no libm, no threads, no fused multiply-add, no dependence on how rows are split).
//!
//! ```
//! use kbit_plugin::*;
//! use std::ops::Range;
//!
//! /// Keeps the sign of each weight and the mean magnitude of its row.
//! struct Sign;
//!
//! impl Scheme for Sign {
//!     const INFO: SchemeInfo = SchemeInfo {
//!         id: "org.example.sign/1",
//!         title: "Sign",
//!         doc: "One bit a weight.",
//!         citation: "",
//!         ggml_type: -1,
//!         params: &[],
//!     };
//!     type Job = ();
//!     type Tensor = ();
//!
//!     fn open(_: &Host<'_>, _: &Params) -> Result<Self, Error> {
//!         Ok(Self)
//!     }
//!
//!     fn plan(&self, shape: &Shape<'_>) -> Result<Plan, Error> {
//!         let codes = Part::new("codes", PartType::U8, shape.cols.div_ceil(8));
//!         let scale = Part::new("scale", PartType::F32, 4);
//!         Ok(Plan { parts: vec![codes, scale], ..Plan::default() })
//!     }
//!
//!     fn begin(&self, _: &Shape<'_>, _: Option<Slab<'_>>, _: &Aux<'_>) -> Result<(), Error> {
//!         Ok(())
//!     }
//!
//!     fn encode(&self, _: &(), _: Range<u64>, slab: &Slab<'_>, parts: &mut [&mut [u8]], _: &mut [u8]) -> Result<(), Error> {
//!         let [codes, scales] = parts else { return Err(Error::internal("two parts")) };
//!         codes.fill(0);
//!         for (i, scale) in scales.as_chunks_mut::<4>().0.iter_mut().enumerate() {
//!             let row = slab.row(i);
//!             let sum: f32 = row.iter().map(|w| w.abs()).sum();
//!             *scale = (sum / row.len() as f32).to_le_bytes();
//!             let bytes = row.len().div_ceil(8);
//!             for (j, w) in row.iter().enumerate() {
//!                 codes[i * bytes + j / 8] |= u8::from(*w > 0.0) << (j % 8);
//!             }
//!         }
//!         Ok(())
//!     }
//!
//!     fn open_tensor(&self, _: &Shape<'_>, _: &[&[u8]]) -> Result<(), Error> {
//!         Ok(())
//!     }
//!
//!     fn decode(&self, _: &(), shape: &Shape<'_>, parts: &[&[u8]], rows: Range<u64>, out: &mut SlabMut<'_>, _: &mut [u8]) -> Result<(), Error> {
//!         let bytes = shape.cols.div_ceil(8) as usize;
//!         for (i, r) in rows.enumerate() {
//!             let r = r as usize;
//!             let scale = f32::from_le_bytes(parts[1].as_chunks::<4>().0[r]);
//!             for (j, w) in out.row_mut(i).iter_mut().enumerate() {
//!                 let bit = parts[0][r * bytes + j / 8] >> (j % 8) & 1;
//!                 *w = if bit == 1 { scale } else { -scale };
//!             }
//!         }
//!         Ok(())
//!     }
//! }
//!
//! export_plugin! {
//!     id: "org.example.sign", vendor: "An example", url: "https://example.org", license: "MIT",
//!     schemes: [Sign],
//! }
//! # fn main() {}
//! ```

pub mod convert;
mod describe;
mod export;
pub mod pack;
mod params;
mod scheme;

pub use kbit_abi as abi;
pub use params::{DefaultValue, Param, ParamKind, Params};
pub use scheme::{
    Activation, Activations, Aux, EightBit, Error, Host, Isa, Part, PartType, Plan, Runtime, RuntimeInfo,
    Scheme, SchemeInfo, Shape, Slab, SlabMut, Status,
};

#[doc(hidden)]
pub mod macros {
    //! What [`export_plugin!`](crate::export_plugin) expands to; not for direct use.
    pub use crate::describe::{PluginInfo, SchemeEntry};
    pub use crate::export::{entry, self_test};
}

/// Exports the schemes of this crate as a kbit plugin. The version is the crate's.
///
/// It defines the public function `kbit_plugin_entry_v1`, which is also the library's only exported symbol. With the
/// feature `static-plugins` of this crate the symbol is left out, so that several plugins can be linked into one
/// program, which then calls the functions by their Rust paths.
///
/// ```text
/// export_plugin! {
///     id: "org.example.mine", vendor: "Ada", url: "https://example.org", license: "MIT OR Apache-2.0",
///     schemes: [Mine, Fast: Runtime],   // `: Runtime` exports the scheme's fused kernels with it
///     self_test: check_tables,          // optional: fn() -> Result<(), Error>, under 50 ms, run when the plugin is loaded
/// }
/// ```
#[macro_export]
macro_rules! export_plugin {
    (
        id: $id:expr, vendor: $vendor:expr, url: $url:expr, license: $license:expr,
        schemes: [$($scheme:ty $(: $runtime:ident)?),+ $(,)?]
        $(, self_test: $self_test:expr)? $(,)?
    ) => {
        $crate::__kbit_entry_symbol! {
            /// The plugin's entry: the only symbol that it exports.
            ///
            /// # Safety
            /// As the ABI says: `host` and `err` are null or valid for the call, and the host lives until the process exits.
            #[expect(unsafe_code, reason = "the C entry of the plugin")]
            pub unsafe extern "C" fn kbit_plugin_entry_v1(
                host: *const $crate::abi::Host,
                err: *mut $crate::abi::Err,
            ) -> *const $crate::abi::Plugin {
                static INFO: $crate::macros::PluginInfo = $crate::macros::PluginInfo {
                    id: $id,
                    version: ::core::env!("CARGO_PKG_VERSION"),
                    vendor: $vendor,
                    url: $url,
                    license: $license,
                    schemes: &[$($crate::__kbit_scheme_entry!($scheme $(, $runtime)?)),+],
                    self_test: $crate::__kbit_self_test!($($self_test)?),
                };
                static DESCRIPTOR: ::std::sync::OnceLock<&'static $crate::abi::Plugin> = ::std::sync::OnceLock::new();
                // SAFETY: the caller's contract is passed on.
                unsafe { $crate::macros::entry(&INFO, &DESCRIPTOR, host, err) }
            }
        }
    };
}

/// The entry under its C name.
#[cfg(not(feature = "static-plugins"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __kbit_entry_symbol {
    ($($function:tt)*) => {
        #[unsafe(no_mangle)]
        $($function)*
    };
}

/// The entry as a Rust function alone.
#[cfg(feature = "static-plugins")]
#[doc(hidden)]
#[macro_export]
macro_rules! __kbit_entry_symbol {
    ($($function:tt)*) => {
        $($function)*
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __kbit_scheme_entry {
    ($scheme:ty) => {
        $crate::macros::SchemeEntry::of::<$scheme>()
    };
    ($scheme:ty, Runtime) => {
        $crate::macros::SchemeEntry::with_runtime::<$scheme>()
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __kbit_self_test {
    () => {
        None
    };
    ($self_test:expr) => {{
        unsafe extern "C" fn self_test(err: *mut $crate::abi::Err) -> $crate::abi::Status {
            // SAFETY: the host gives null or an error buffer that is valid for the call.
            unsafe { $crate::macros::self_test(err, $self_test) }
        }
        Some(self_test)
    }};
}
