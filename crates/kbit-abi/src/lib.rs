//! The kbit plugin ABI, mirrored from `include/kbit_plugin.h`, which is the truth.
//!
//! Every struct has the layout that a C compiler gives the header's; a test compiles the header and compares sizes,
//! offsets and constants. Names are the header's in Rust case (`kbit_scheme` is [`Scheme`]). The meaning of fields and
//! the rules R1 to R9 are documented in the header.
#![no_std]
#![expect(unsafe_code, reason = "Sync for immutable descriptors")]

use core::ffi::{c_char, c_void};

/// The header itself, for projects that are generated.
pub const HEADER: &str = include_str!("../include/kbit_plugin.h");
/// Minor version of the ABI; the major one is part of [`ENTRY_SYMBOL`].
pub const ABI_MINOR: u32 = 0;
/// Name of the only export of a plugin.
pub const ENTRY_SYMBOL: &str = "kbit_plugin_entry_v1";
/// Id of the extension that [`ExtRuntime`] describes.
pub const EXT_RUNTIME: &str = "kbit.runtime/1";

/// `kbit_status`: what a call gave.
pub type Status = i32;
/// Done.
pub const OK: Status = 0;
/// A parameter has a wrong value.
pub const EPARAM: Status = 1;
/// The scheme cannot do this (a shape, for instance).
pub const EUNSUPPORTED: Status = 2;
/// NaN, infinity or overflow in the values.
pub const ENUMERIC: Status = 3;
/// Auxiliary data is missing.
pub const EMISSING: Status = 4;
/// The host asked to stop.
pub const ECANCELLED: Status = 5;
/// A defect of the plugin.
pub const EINTERNAL: Status = 6;
/// A panic or exception was caught at the boundary.
pub const EPANIC: Status = 7;

/// Element type of a part: `KBIT_U8`.
pub const DTYPE_U8: u32 = 0;
/// `KBIT_I8`.
pub const DTYPE_I8: u32 = 1;
/// `KBIT_I16`.
pub const DTYPE_I16: u32 = 2;
/// `KBIT_I32`.
pub const DTYPE_I32: u32 = 3;
/// `KBIT_F16`.
pub const DTYPE_F16: u32 = 4;
/// `KBIT_BF16`.
pub const DTYPE_BF16: u32 = 5;
/// `KBIT_F32`.
pub const DTYPE_F32: u32 = 6;

/// Auxiliary data, a mask: mean squared input a column.
pub const AUX_DIAG: u32 = 1;
/// Mean of `x x^T`.
pub const AUX_HESSIAN: u32 = 2;
/// Standard deviation of the producing unit's weights.
pub const AUX_PRODUCER: u32 = 4;

/// Plan flag: `begin` wants the whole matrix.
pub const WHOLE_MATRIX: u32 = 1;

/// Parameter type: `KBIT_BOOL`.
pub const PARAM_BOOL: u32 = 1;
/// `KBIT_INT`.
pub const PARAM_INT: u32 = 2;
/// `KBIT_FLOAT`.
pub const PARAM_FLOAT: u32 = 3;
/// `KBIT_STRING`.
pub const PARAM_STRING: u32 = 4;
/// `KBIT_CHOICE`.
pub const PARAM_CHOICE: u32 = 5;
/// `KBIT_NUMBERS`.
pub const PARAM_NUMBERS: u32 = 6;

/// Upper limit of instruction sets: whatever the CPU has.
pub const ISA_BEST: u32 = 0;
/// No instruction set beyond the target's baseline.
pub const ISA_PORTABLE: u32 = 1;
/// Up to AVX2.
pub const ISA_AVX2: u32 = 2;
/// Up to AVX-512.
pub const ISA_AVX512: u32 = 3;

/// Arithmetic of a fused dot: f32 activations.
pub const ACT_F32: u32 = 0;
/// bf16 activations, f32 sums.
pub const ACT_BF16: u32 = 1;
/// 8-bit activations.
pub const ACT_INT8: u32 = 2;

/// `kbit_str`: UTF-8, not NUL-terminated.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Str {
    /// First byte; may be null where `len` is 0.
    pub ptr: *const c_char,
    /// Bytes.
    pub len: usize,
}

// SAFETY: strings are immutable and live until the process exits (R2), or are borrowed for a call.
unsafe impl Sync for Str {}
// SAFETY: as for Sync.
unsafe impl Send for Str {}

impl Str {
    /// The empty string.
    pub const EMPTY: Self = Self { ptr: core::ptr::null(), len: 0 };

    /// Points at `text`.
    #[must_use]
    pub const fn new(text: &'static str) -> Self {
        Self { ptr: text.as_ptr().cast(), len: text.len() }
    }

    /// Points at `text` for as long as the caller keeps it alive.
    #[must_use]
    pub const fn borrow(text: &str) -> Self {
        Self { ptr: text.as_ptr().cast(), len: text.len() }
    }
}

/// `kbit_buf`: bytes to write.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Buf {
    /// First byte.
    pub ptr: *mut c_void,
    /// Number of bytes.
    pub bytes: u64,
}

/// `kbit_cbuf`: bytes to read.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CBuf {
    /// First byte.
    pub ptr: *const c_void,
    /// Number of bytes.
    pub bytes: u64,
}

/// `kbit_rows`: a range of rows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// First row.
    pub first: u64,
    /// Number of rows.
    pub count: u64,
}

/// `kbit_err`: the caller's buffer for a message.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Err {
    /// First byte.
    pub text: *mut c_char,
    /// Bytes of the buffer.
    pub cap: usize,
    /// Bytes of the message.
    pub len: usize,
}

/// `kbit_part`: one stored array.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// `[a-z0-9_]{1,12}`.
    pub name: Str,
    /// Element type.
    pub dtype: u32,
    /// 0.
    pub flags: u32,
    /// Bytes of the head of a slice.
    pub head_bytes: u64,
    /// Bytes of a row group.
    pub group_bytes: u64,
    /// 0.
    pub reserved: [u64; 2],
}

impl Part {
    /// An unused entry.
    pub const EMPTY: Self =
        Self { name: Str::EMPTY, dtype: DTYPE_U8, flags: 0, head_bytes: 0, group_bytes: 0, reserved: [0; 2] };
}

/// `kbit_value`: a parameter's value.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Value {
    /// Bytes of this struct, as the writer knows it.
    pub size: usize,
    /// Parameter.
    pub key: Str,
    /// Which of the fields below holds the value.
    pub r#type: u32,
    /// Of `KBIT_BOOL` and `KBIT_INT`.
    pub i: i64,
    /// Of `KBIT_FLOAT`.
    pub f: f64,
    /// Of `KBIT_STRING` and `KBIT_CHOICE`.
    pub s: Str,
    /// Of `KBIT_NUMBERS`.
    pub numbers: *const f64,
    /// Length of `numbers`.
    pub n_numbers: usize,
}

// SAFETY: values in descriptors are immutable statics (R2).
unsafe impl Sync for Value {}

/// `kbit_param`: a parameter's declaration.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Param {
    /// Bytes of this struct, as the writer knows it.
    pub size: usize,
    /// Name.
    pub key: Str,
    /// Meaning.
    pub doc: Str,
    /// Unit, or empty.
    pub unit: Str,
    /// Type.
    pub r#type: u32,
    /// 1 where there is no default.
    pub required: u32,
    /// Default; null where required.
    pub fallback: *const Value,
    /// Least number.
    pub min: f64,
    /// Greatest number.
    pub max: f64,
    /// Words of a choice.
    pub choices: *const Str,
    /// Length of `choices`.
    pub n_choices: usize,
}

// SAFETY: declarations are immutable statics (R2).
unsafe impl Sync for Param {}

/// `kbit_matrix`: a matrix, or only its shape.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// Bytes of this struct, as the writer knows it.
    pub size: usize,
    /// GGUF tensor name.
    pub tensor: Str,
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub cols: u64,
    /// Which slice.
    pub slice: u64,
    /// Of how many.
    pub n_slices: u64,
    /// Values; null for a shape.
    pub data: *const f32,
    /// Floats from one row to the next.
    pub row_stride: u64,
}

/// `kbit_aux`: auxiliary data.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Aux {
    /// Bytes of this struct, as the writer knows it.
    pub size: usize,
    /// `[cols]` mean squared input, or null.
    pub diag: *const f32,
    /// `[cols][hessian_ld]` mean of `x x^T`, or null.
    pub hessian: *const f32,
    /// Floats from one row of the Hessian to the next.
    pub hessian_ld: u64,
    /// `[cols]`, or null.
    pub producer_std: *const f32,
    /// Samples behind the figures.
    pub n_samples: u64,
    /// Hash of the configuration's seed, tensor and slice.
    pub seed: u64,
}

/// `kbit_plan`: how a matrix is stored.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Bytes of this struct, as the host knows it.
    pub size: usize,
    /// Stored arrays.
    pub parts: [Part; 8],
    /// Number of them.
    pub n_parts: u32,
    /// Rows of a group.
    pub row_group: u32,
    /// Mask of plan flags.
    pub flags: u32,
    /// Mask of auxiliary data that must be there.
    pub aux_required: u32,
    /// Mask of auxiliary data that is used where it is there.
    pub aux_used: u32,
    /// Bytes of statistics a group.
    pub stat_bytes: u64,
    /// Rows of a slab that the encoder likes.
    pub rows_hint: u64,
    /// Scratch of `observe` and `encode`.
    pub scratch_bytes: u64,
    /// Scratch of `decode` and the runtime extension.
    pub decode_scratch_bytes: u64,
    /// Memory that a job takes, about.
    pub job_bytes_hint: u64,
}

/// Body of [`Host::parallel_for`].
pub type ParallelBody =
    unsafe extern "C" fn(user: *mut c_void, i: u64, scratch: Buf, err: *mut Err) -> Status;

/// `kbit_host`: what the host offers.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Bytes of this struct, as the host knows it.
    pub size: usize,
    /// Minor version of the ABI that the host knows.
    pub abi_minor: u32,
    /// Upper limit of instruction sets.
    pub isa_limit: u32,
    /// Name.
    pub name: Str,
    /// Version.
    pub version: Str,
    /// First argument of the functions.
    pub ctx: *mut c_void,
    /// Level 0 error to 4 trace. Any thread.
    pub log: Option<unsafe extern "C" fn(ctx: *mut c_void, level: u32, text: Str)>,
    /// Nonzero once the work should stop. Any thread.
    pub cancelled: Option<unsafe extern "C" fn(ctx: *mut c_void) -> u32>,
    /// Runs `body` for 0..n on the host's threads.
    pub parallel_for: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            n: u64,
            scratch_bytes: u64,
            user: *mut c_void,
            body: ParallelBody,
            err: *mut Err,
        ) -> Status,
    >,
    /// An extension of the host, or null. Any thread.
    pub extension: Option<unsafe extern "C" fn(ctx: *mut c_void, id: Str) -> *const c_void>,
}

// SAFETY: the host's table is immutable and lives until the process exits (R2); its functions take any thread.
unsafe impl Sync for Host {}
// SAFETY: as for Sync.
unsafe impl Send for Host {}

/// `kbit_state`: one opened scheme.
#[repr(C)]
pub struct State {
    _opaque: [u8; 0],
}

/// `kbit_job`: one matrix being encoded.
#[repr(C)]
pub struct Job {
    _opaque: [u8; 0],
}

/// `kbit_tensor`: one encoded matrix, opened for reading.
#[repr(C)]
pub struct Tensor {
    _opaque: [u8; 0],
}

/// `kbit_scheme.open`.
pub type OpenFn =
    unsafe extern "C" fn(*const Host, *const *const Value, usize, *mut *mut State, *mut Err) -> Status;
/// `kbit_scheme.close`.
pub type CloseFn = unsafe extern "C" fn(*mut State);
/// `kbit_scheme.plan`.
pub type PlanFn = unsafe extern "C" fn(*const State, *const Matrix, *mut Plan, *mut Err) -> Status;
/// `kbit_scheme.begin`.
pub type BeginFn =
    unsafe extern "C" fn(*const State, *const Matrix, *const Aux, *mut *mut Job, *mut Err) -> Status;
/// `kbit_scheme.observe`.
pub type ObserveFn = unsafe extern "C" fn(*const Job, Rows, *const Matrix, Buf, Buf, *mut Err) -> Status;
/// `kbit_scheme.prepare`.
pub type PrepareFn = unsafe extern "C" fn(*mut Job, CBuf, *const Buf, *mut Err) -> Status;
/// `kbit_scheme.encode`.
pub type EncodeFn =
    unsafe extern "C" fn(*const Job, Rows, *const Matrix, *const Buf, Buf, *mut Err) -> Status;
/// `kbit_scheme.end`.
pub type EndFn = unsafe extern "C" fn(*mut Job);
/// `kbit_scheme.open_tensor`.
pub type OpenTensorFn = unsafe extern "C" fn(
    *const State,
    *const Matrix,
    *const CBuf,
    *const CBuf,
    *mut *mut Tensor,
    *mut Err,
) -> Status;
/// `kbit_scheme.close_tensor`.
pub type CloseTensorFn = unsafe extern "C" fn(*mut Tensor);
/// `kbit_scheme.decode`.
pub type DecodeFn = unsafe extern "C" fn(*const Tensor, Rows, *mut f32, u64, Buf, *mut Err) -> Status;
/// `kbit_scheme.extension`.
pub type ExtensionFn = unsafe extern "C" fn(*const State, Str) -> *const c_void;

/// `kbit_scheme`: a scheme's descriptor.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Scheme {
    /// Bytes of this struct, as the plugin knows it.
    pub size: usize,
    /// `org.example.name/1`.
    pub id: Str,
    /// Short title.
    pub title: Str,
    /// What it does.
    pub doc: Str,
    /// Where it comes from.
    pub citation: Str,
    /// ggml type that it writes, or -1.
    pub ggml_type: i32,
    /// Parameters.
    pub params: *const *const Param,
    /// Number of them.
    pub n_params: usize,
    /// Opens the scheme with parameter values.
    pub open: Option<OpenFn>,
    /// Frees what `open` made.
    pub close: Option<CloseFn>,
    /// Says how a matrix of this shape is stored.
    pub plan: Option<PlanFn>,
    /// Begins to encode a matrix.
    pub begin: Option<BeginFn>,
    /// Gathers statistics over rows.
    pub observe: Option<ObserveFn>,
    /// Makes the heads from all statistics.
    pub prepare: Option<PrepareFn>,
    /// Encodes rows.
    pub encode: Option<EncodeFn>,
    /// Frees what `begin` made.
    pub end: Option<EndFn>,
    /// Opens an encoded matrix.
    pub open_tensor: Option<OpenTensorFn>,
    /// Frees what `open_tensor` made.
    pub close_tensor: Option<CloseTensorFn>,
    /// Decodes rows.
    pub decode: Option<DecodeFn>,
    /// An extension of the scheme, or null.
    pub extension: Option<ExtensionFn>,
}

// SAFETY: descriptors are immutable and live until the process exits (R2).
unsafe impl Sync for Scheme {}

/// `kbit_ext_runtime`: fused kernels.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ExtRuntime {
    /// Bytes of this struct, as the plugin knows it.
    pub size: usize,
    /// Kernel chosen, for logs.
    pub isa: Str,
    /// Arithmetic of `dot`.
    pub act_kind: u32,
    /// Tensors with equal keys share packed activations.
    pub act_key: Option<unsafe extern "C" fn(*const Tensor) -> u64>,
    /// Bytes of a packed activation.
    pub act_bytes: Option<unsafe extern "C" fn(*const Tensor) -> u64>,
    /// Packs an activation.
    pub act_pack:
        Option<unsafe extern "C" fn(*const Tensor, *const f32, *mut c_void, Buf, *mut Err) -> Status>,
    /// Multiplies rows with activations.
    pub dot: Option<
        unsafe extern "C" fn(
            *const Tensor,
            Rows,
            *const c_void,
            u64,
            u64,
            *mut f32,
            u64,
            Buf,
            *mut Err,
        ) -> Status,
    >,
    /// Signed 8-bit weights with a scale and a minimum a block; optional.
    pub decode_i8: Option<
        unsafe extern "C" fn(*const Tensor, Rows, *mut i8, *mut f32, *mut f32, u32, Buf, *mut Err) -> Status,
    >,
}

// SAFETY: the table is immutable and lives until the process exits (R2).
unsafe impl Sync for ExtRuntime {}

/// `kbit_plugin`: a plugin's descriptor.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Plugin {
    /// Bytes of this struct, as the plugin knows it.
    pub size: usize,
    /// Minor version of the ABI that the plugin was written for.
    pub abi_minor: u32,
    /// Reverse domain.
    pub id: Str,
    /// Version.
    pub version: Str,
    /// Who made it.
    pub vendor: Str,
    /// Where to find it.
    pub url: Str,
    /// SPDX expression.
    pub license: Str,
    /// Schemes.
    pub schemes: *const *const Scheme,
    /// Number of them.
    pub n_schemes: usize,
    /// Run at load; optional, under 50 ms.
    pub self_test: Option<unsafe extern "C" fn(*mut Err) -> Status>,
}

// SAFETY: descriptors are immutable and live until the process exits (R2).
unsafe impl Sync for Plugin {}

/// `kbit_plugin_entry_v1`: the only export. Null with a text on refusal.
pub type EntryFn = unsafe extern "C" fn(*const Host, *mut Err) -> *const Plugin;

/// Bytes of every struct where pointers have 64 bits; the layout test compares them, and all offsets, with a C compiler.
#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(size_of::<Str>() == 16 && size_of::<Buf>() == 16 && size_of::<CBuf>() == 16);
    assert!(size_of::<Rows>() == 16 && size_of::<Err>() == 24 && size_of::<Part>() == 56);
    assert!(size_of::<Value>() == 80 && size_of::<Param>() == 104 && size_of::<Matrix>() == 72);
    assert!(size_of::<Aux>() == 56 && size_of::<Plan>() == 520 && size_of::<Host>() == 88);
    assert!(size_of::<Scheme>() == 192 && size_of::<ExtRuntime>() == 72 && size_of::<Plugin>() == 120);
};
