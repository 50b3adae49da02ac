//! ggml's own encoders and decoders, from `libggml-base.so`.
//!
//! Invariants of the unsafe code: the library is the one that [`crate::peers`] built (its table of block sizes is compared
//! with kbit's on opening) with unwind tables, which errors inside of it need; it stays loaded as long as the function pointers are used; every call passes buffers whose sizes
//! were computed from that table.
#![expect(unsafe_code, reason = "calls into a C library")]

use crate::{Result, in_context};
use kbit_types::GgmlType;
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

/// `struct ggml_type_traits` of `ggml.h`.
#[repr(C)]
struct TypeTraits {
    type_name: *const c_char,
    block_elements: i64,
    block_elements_interleaved: i64,
    block_bytes: usize,
    is_quantized: bool,
    to_float: Option<unsafe extern "C" fn(*const c_void, *mut f32, i64)>,
    from_float_ref: Option<unsafe extern "C" fn(*const f32, *mut c_void, i64)>,
}

type QuantizeChunk =
    unsafe extern "C-unwind" fn(c_int, *const f32, *mut c_void, i64, i64, i64, *const f32) -> usize;
type Traits = unsafe extern "C-unwind" fn(c_int) -> *const TypeTraits;
type AbortCallback = extern "C-unwind" fn(*const c_char);

/// The library.
pub struct Ggml {
    quantize_chunk: QuantizeChunk,
    requires_imatrix: unsafe extern "C" fn(c_int) -> bool,
    validate: unsafe extern "C" fn(c_int, *const c_void, usize) -> bool,
    traits: Traits,
    /// Keeps the pointers valid.
    _library: Library,
}

/// What ggml said before it would have ended the process: a failed assertion, or weights that its search cannot handle.
#[derive(Debug)]
pub struct Aborted(pub String);

/// ggml calls this instead of ending the process. Its encoders hold nothing that unwinding would leave behind.
extern "C-unwind" fn unwind(message: *const c_char) {
    // SAFETY: ggml passes a text that ends in 0.
    let message = unsafe { CStr::from_ptr(message) }.to_string_lossy();
    resume_unwind(Box::new(Aborted(message.trim_end().to_owned())));
}

impl Ggml {
    /// Loads `libggml-base.so` and compares its block sizes with kbit's.
    ///
    /// # Errors
    /// A file that is not this library, or a table of types that differs.
    pub fn open(path: &Path) -> Result<Self> {
        let context = in_context(path.display());
        // SAFETY: the peer's own library; its initializers compute tables.
        let library = unsafe { Library::new(path) }.map_err(&context)?;
        // SAFETY: the types are those of `ggml.h` in the pinned version.
        let ggml = unsafe {
            let set_callback: unsafe extern "C" fn(AbortCallback) -> *const c_void =
                *library.get(b"ggml_set_abort_callback\0").map_err(&context)?;
            set_callback(unwind);
            Self {
                quantize_chunk: *library.get(b"ggml_quantize_chunk\0").map_err(&context)?,
                requires_imatrix: *library.get(b"ggml_quantize_requires_imatrix\0").map_err(&context)?,
                validate: *library.get(b"ggml_validate_row_data\0").map_err(&context)?,
                traits: *library.get(b"ggml_get_type_traits\0").map_err(&context)?,
                _library: library,
            }
        };
        for ty in GgmlType::ALL {
            let traits = ggml.traits(*ty);
            let theirs = (traits.block_elements as u64, traits.block_bytes as u64);
            if theirs != (ty.block_elements(), ty.block_bytes()) {
                let ours = (ty.block_elements(), ty.block_bytes());
                return Err(format!(
                    "{}: blocks of {ty} are {theirs:?} (elements, bytes) there and {ours:?} in kbit; this is another version of ggml: run `cargo xtask peers`",
                    path.display()
                ));
            }
        }
        Ok(ggml)
    }

    fn traits(&self, ty: GgmlType) -> &TypeTraits {
        // SAFETY: the ids of `GgmlType` are in the library's table, which is static.
        unsafe { &*(self.traits)(ty.id() as c_int) }
    }

    /// True where ggml refuses to encode without importance.
    pub fn requires_importance(&self, ty: GgmlType) -> bool {
        // SAFETY: a pure function of the id.
        unsafe { (self.requires_imatrix)(ty.id() as c_int) }
    }

    /// The bytes of `weights`, rows of `cols`; `importance` has one value a column.
    ///
    /// # Errors
    /// What ggml says where it gives up.
    ///
    /// # Panics
    /// When rows are not whole, or importance is missing where it is required.
    pub fn encode(
        &self,
        ty: GgmlType,
        weights: &[f32],
        cols: usize,
        importance: Option<&[f32]>,
    ) -> Result<Vec<u8>, Aborted> {
        assert!(cols > 0 && weights.len().is_multiple_of(cols));
        assert!(importance.map_or(!self.requires_importance(ty), |importance| importance.len() == cols));
        let row_bytes = ty.bytes_for(cols as u64).map(|bytes| bytes as usize);
        let rows = weights.len() / cols;
        let mut bytes = vec![0u8; rows * row_bytes.expect("rows are whole blocks")];
        let importance = importance.map_or(std::ptr::null(), <[f32]>::as_ptr);
        // SAFETY: `rows` rows are read and written; importance is null or a row long. ggml was compiled with unwind tables.
        let written = catch_unwind(AssertUnwindSafe(|| unsafe {
            (self.quantize_chunk)(
                ty.id() as c_int,
                weights.as_ptr(),
                bytes.as_mut_ptr().cast(),
                0,
                rows as i64,
                cols as i64,
                importance,
            )
        }));
        match written {
            Ok(written) => assert_eq!(written, bytes.len()),
            Err(payload) => match payload.downcast::<Aborted>() {
                Ok(aborted) => return Err(*aborted),
                Err(other) => resume_unwind(other),
            },
        }
        Ok(bytes)
    }

    /// The weights of whole blocks; `None` where ggml has no decoder.
    ///
    /// # Panics
    /// When the bytes are not whole blocks.
    pub fn decode(&self, ty: GgmlType, bytes: &[u8]) -> Option<Vec<f32>> {
        let (block, block_bytes) = (ty.block_elements() as usize, ty.block_bytes() as usize);
        assert!(bytes.len().is_multiple_of(block_bytes));
        let mut weights = vec![0f32; bytes.len() / block_bytes * block];
        if ty == GgmlType::F32 {
            // ggml has no function for what is f32 already.
            for (weight, bytes) in weights.iter_mut().zip(bytes.as_chunks().0) {
                *weight = f32::from_le_bytes(*bytes);
            }
            return Some(weights);
        }
        let to_float = self.traits(ty).to_float?;
        // SAFETY: so many blocks are read, so many weights written.
        unsafe { to_float(bytes.as_ptr().cast(), weights.as_mut_ptr(), weights.len() as i64) };
        Some(weights)
    }

    /// True where llama.cpp would load these blocks: their scales are finite. ggml says on stderr what is not, a line each, so it
    /// is not asked about what shows without it: weights that are not finite, and MXFP4's exponent that stands for NaN.
    pub fn accepts(&self, ty: GgmlType, bytes: &[u8]) -> bool {
        let is_finite = |weights: Vec<f32>| weights.iter().all(|weight| weight.is_finite());
        let has_nan_exponent =
            ty == GgmlType::MXFP4 && bytes.chunks(ty.block_bytes() as usize).any(|block| block[0] == 0xFF);
        if has_nan_exponent || !self.decode(ty, bytes).is_none_or(is_finite) {
            return false;
        }
        // SAFETY: reads `bytes.len()` bytes.
        unsafe { (self.validate)(ty.id() as c_int, bytes.as_ptr().cast(), bytes.len()) }
    }
}
