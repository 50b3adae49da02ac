//! The safe side: what a scheme implements, and what it is given.

use crate::params::{Param, Params};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

/// What a failed call reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Status {
    /// A parameter has a wrong value.
    Param = kbit_abi::EPARAM,
    /// The scheme cannot do this: a shape, for instance. The host then stores the tensor otherwise.
    Unsupported = kbit_abi::EUNSUPPORTED,
    /// NaN, infinity or overflow in the values.
    Numeric = kbit_abi::ENUMERIC,
    /// Auxiliary data is missing.
    Missing = kbit_abi::EMISSING,
    /// The host asked to stop.
    Cancelled = kbit_abi::ECANCELLED,
    /// A defect of the plugin, or damaged bytes.
    Internal = kbit_abi::EINTERNAL,
}

/// A failed call: what kind, and a message that names the place and the cure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Kind.
    pub status: Status,
    /// Message.
    pub message: String,
}

macro_rules! errors {
    ($($name:ident => $status:ident, $doc:literal;)*) => {
        impl Error {
            $(#[doc = $doc]
            pub fn $name(message: impl Into<String>) -> Self {
                Self { status: Status::$status, message: message.into() }
            })*
        }
    };
}

errors! {
    param => Param, "A parameter has a wrong value.";
    unsupported => Unsupported, "The scheme cannot do this.";
    numeric => Numeric, "NaN, infinity or overflow in the values.";
    missing => Missing, "Auxiliary data is missing.";
    cancelled => Cancelled, "The host asked to stop.";
    internal => Internal, "A defect of the plugin, or damaged bytes.";
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// The shape of one matrix `[rows][cols]`; `cols` is the reduction axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape<'a> {
    /// GGUF tensor name.
    pub tensor: &'a str,
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub cols: u64,
    /// Which slice of an expert tensor; 0 where dense.
    pub slice: u64,
    /// Number of slices; 1 where dense.
    pub n_slices: u64,
}

/// Rows of a matrix, to read.
#[derive(Clone, Copy, Debug)]
pub struct Slab<'a> {
    data: &'a [f32],
    first: u64,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a> Slab<'a> {
    /// `rows` rows of `cols` floats that lie `stride` floats apart in `data`; `first` is the first one's row.
    ///
    /// # Panics
    /// If `data` is too short.
    #[must_use]
    pub fn new(data: &'a [f32], first: u64, rows: usize, cols: usize, stride: usize) -> Self {
        let span = rows.saturating_sub(1).checked_mul(stride).and_then(|span| span.checked_add(cols));
        assert!(rows == 0 || span.is_some_and(|span| span <= data.len()), "a slab longer than its data");
        Self { data, first, rows, cols, stride }
    }

    /// Row `i`, counted from the first of the slab.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.stride..i * self.stride + self.cols]
    }

    /// Row of the matrix that the slab starts at.
    #[must_use]
    pub const fn first(&self) -> u64 {
        self.first
    }

    /// Number of rows.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.rows
    }

    /// True without rows.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Floats in a row.
    #[must_use]
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// All values in one piece, where rows follow one another without gaps.
    #[must_use]
    pub fn contiguous(&self) -> Option<&'a [f32]> {
        (self.stride == self.cols || self.rows <= 1).then(|| &self.data[..self.rows * self.cols])
    }
}

/// Rows of a matrix, to write. What lies between two rows is not touched: another thread may be writing it.
///
/// Invariant: `rows` rows of `cols` floats, `stride >= cols` floats apart from `data` on, are writable for `'a`, nothing
/// else refers to them, and their extent in bytes fits `isize`.
#[derive(Debug)]
pub struct SlabMut<'a> {
    data: *mut f32,
    rows: usize,
    cols: usize,
    stride: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

#[expect(unsafe_code, reason = "rows of one slab lie between rows of another")]
// SAFETY: like the `&mut [f32]`s that it stands for.
unsafe impl Send for SlabMut<'_> {}

#[expect(unsafe_code, reason = "rows of one slab lie between rows of another")]
impl<'a> SlabMut<'a> {
    /// `rows` rows of `cols` floats that lie `stride` floats apart in `data`.
    ///
    /// # Panics
    /// If `data` is too short, or rows overlap.
    #[must_use]
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize, stride: usize) -> Self {
        let span = rows.saturating_sub(1).checked_mul(stride).and_then(|span| span.checked_add(cols));
        assert!(rows == 0 || span.is_some_and(|span| span <= data.len()), "a slab longer than its data");
        assert!(rows <= 1 || stride >= cols, "a slab whose rows overlap");
        Self { data: data.as_mut_ptr(), rows, cols, stride, lifetime: PhantomData }
    }

    /// As [`SlabMut::new`], from a pointer.
    ///
    /// # Safety
    /// The invariant of the type.
    pub(crate) const unsafe fn from_raw(data: *mut f32, rows: usize, cols: usize, stride: usize) -> Self {
        Self { data, rows, cols, stride, lifetime: PhantomData }
    }

    /// Row `i`, counted from the first of the slab.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows, "row {i} of a slab of {} rows", self.rows);
        // SAFETY: the row exists, so by the invariant these floats are ours alone.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(i * self.stride), self.cols) }
    }

    /// Number of rows.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.rows
    }

    /// True without rows.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Floats in a row.
    #[must_use]
    pub const fn cols(&self) -> usize {
        self.cols
    }
}

/// Element type of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[expect(missing_docs, reason = "the names are the documentation")]
pub enum PartType {
    U8 = kbit_abi::DTYPE_U8,
    I8 = kbit_abi::DTYPE_I8,
    I16 = kbit_abi::DTYPE_I16,
    I32 = kbit_abi::DTYPE_I32,
    F16 = kbit_abi::DTYPE_F16,
    Bf16 = kbit_abi::DTYPE_BF16,
    F32 = kbit_abi::DTYPE_F32,
}

/// One stored array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// `[a-z0-9_]{1,12}`.
    pub name: &'static str,
    /// Element type; sizes are multiples of it.
    pub dtype: PartType,
    /// Bytes before the groups of each slice.
    pub head_bytes: u64,
    /// Bytes of a row group.
    pub group_bytes: u64,
}

impl Part {
    /// A part without head.
    #[must_use]
    pub const fn new(name: &'static str, dtype: PartType, group_bytes: u64) -> Self {
        Self { name, dtype, head_bytes: 0, group_bytes }
    }
}

/// How a matrix is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Stored arrays, at most 8.
    pub parts: Vec<Part>,
    /// Rows of a group.
    pub row_group: u32,
    /// `begin` wants the whole matrix.
    pub whole_matrix: bool,
    /// Auxiliary data that must be there, of the `AUX_` masks.
    pub aux_required: u32,
    /// Auxiliary data that is used where it is there.
    pub aux_used: u32,
    /// Bytes of statistics a row group; more than 0 asks for `observe` over all groups and then `prepare`.
    pub stat_bytes: u64,
    /// Rows of a slab that the encoder likes; 0: any.
    pub rows_hint: u64,
    /// Scratch for `observe` and `encode`.
    pub scratch_bytes: u64,
    /// Scratch for `decode`.
    pub decode_scratch_bytes: u64,
    /// Memory that a job takes, about.
    pub job_bytes_hint: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            parts: Vec::new(),
            row_group: 1,
            whole_matrix: false,
            aux_required: 0,
            aux_used: 0,
            stat_bytes: 0,
            rows_hint: 0,
            scratch_bytes: 0,
            decode_scratch_bytes: 0,
            job_bytes_hint: 0,
        }
    }
}

/// Auxiliary data of a matrix, where there is some.
#[derive(Clone, Copy, Debug, Default)]
pub struct Aux<'a> {
    /// `[cols]` mean squared input.
    pub diag: Option<&'a [f32]>,
    /// `[cols][ld]` mean of `x x^T`, with `ld`.
    pub hessian: Option<(&'a [f32], u64)>,
    /// `[cols]` standard deviation of the producing unit's weights.
    pub producer_std: Option<&'a [f32]>,
    /// Samples behind the figures.
    pub n_samples: u64,
    /// Hash of the configuration's seed, tensor and slice.
    pub seed: u64,
}

/// Upper limit of instruction sets, for tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// The target's baseline.
    Portable,
    /// Up to AVX2.
    Avx2,
    /// Up to AVX-512.
    Avx512,
    /// Whatever the CPU has.
    Best,
}

/// What the host offers. A scheme that needs it later keeps [`Host::to_static`].
#[derive(Clone, Copy, Debug)]
pub struct Host<'a> {
    pub(crate) raw: Option<kbit_abi::Host>,
    lifetime: PhantomData<&'a ()>,
}

#[expect(unsafe_code, reason = "calls the host's functions")]
impl Host<'_> {
    /// No host: for tests of a scheme by itself.
    #[must_use]
    pub const fn none() -> Host<'static> {
        Host { raw: None, lifetime: PhantomData }
    }

    pub(crate) const fn from_raw(raw: Option<kbit_abi::Host>) -> Self {
        Self { raw, lifetime: PhantomData }
    }

    /// The same host, to keep in the scheme: hosts live until the process exits (rule R2 of the ABI).
    #[must_use]
    pub const fn to_static(&self) -> Host<'static> {
        Host { raw: self.raw, lifetime: PhantomData }
    }

    /// Upper limit of instruction sets.
    #[must_use]
    pub fn isa_limit(&self) -> Isa {
        match self.raw.map_or(kbit_abi::ISA_BEST, |raw| raw.isa_limit) {
            kbit_abi::ISA_PORTABLE => Isa::Portable,
            kbit_abi::ISA_AVX2 => Isa::Avx2,
            kbit_abi::ISA_AVX512 => Isa::Avx512,
            _ => Isa::Best,
        }
    }

    /// Logs a message; levels: 0 error, 1 warning, 2 information, 3 debug, 4 trace.
    pub fn log(&self, level: u32, text: &str) {
        if let Some(raw) = self.raw
            && let Some(log) = raw.log
        {
            // SAFETY: the host's function takes any thread; the text lives for the call.
            unsafe { log(raw.ctx, level, kbit_abi::Str::borrow(text)) }
        }
    }

    /// True once the work should stop.
    #[must_use]
    pub fn cancelled(&self) -> bool {
        self.raw.is_some_and(|raw| {
            // SAFETY: the host's function takes any thread.
            raw.cancelled.is_some_and(|cancelled| unsafe { cancelled(raw.ctx) } != 0)
        })
    }
}

/// What a scheme says of itself.
#[derive(Clone, Copy, Debug)]
pub struct SchemeInfo {
    /// `org.example.name/1`: reverse domain and on-disk revision, never reused.
    pub id: &'static str,
    /// Short title.
    pub title: &'static str,
    /// What it does.
    pub doc: &'static str,
    /// Paper or source.
    pub citation: &'static str,
    /// ggml type that it writes, byte for byte; -1: a layout of its own.
    pub ggml_type: i32,
    /// Parameters.
    pub params: &'static [Param],
}

/// A quantization scheme, opened with parameter values.
///
/// Rows come in ranges that start at multiples of the plan's `row_group`; the last group may be short in rows but is
/// full, zero-padded, in bytes. Calls may come from any thread at once.
pub trait Scheme: Sized + Send + Sync + 'static {
    /// What the scheme says of itself.
    const INFO: SchemeInfo;
    /// What [`Scheme::begin`] makes for one matrix.
    type Job: Send + Sync;
    /// What [`Scheme::open_tensor`] reads from the heads.
    type Tensor: Send + Sync;

    /// Opens the scheme; `params` holds every parameter, defaults filled in, types and ranges checked.
    ///
    /// # Errors
    /// Values that do not go together.
    fn open(host: &Host<'_>, params: &Params) -> Result<Self, Error>;

    /// How a matrix of this shape is stored.
    ///
    /// # Errors
    /// [`Status::Unsupported`] where the scheme cannot take the shape.
    fn plan(&self, shape: &Shape<'_>) -> Result<Plan, Error>;

    /// Begins to encode a matrix; `data` is the whole of it where the plan asked for that.
    ///
    /// # Errors
    /// Missing auxiliary data, values that cannot be encoded.
    fn begin(&self, shape: &Shape<'_>, data: Option<Slab<'_>>, aux: &Aux<'_>) -> Result<Self::Job, Error>;

    /// Gathers statistics: one record of `stat_bytes` a row group.
    ///
    /// # Errors
    /// Values that cannot be encoded.
    fn observe(
        &self,
        job: &Self::Job,
        rows: Range<u64>,
        slab: &Slab<'_>,
        stats: &mut [u8],
        scratch: &mut [u8],
    ) -> Result<(), Error> {
        let _ = (job, rows, slab, stats, scratch);
        Err(Error::internal("the plan asks for statistics, but the scheme gathers none"))
    }

    /// Makes the heads (zeroed before) from the statistics of all groups.
    ///
    /// # Errors
    /// Values that cannot be encoded.
    fn prepare(&self, job: &mut Self::Job, stats: &[u8], heads: &mut [&mut [u8]]) -> Result<(), Error> {
        let _ = (job, stats, heads);
        Ok(())
    }

    /// Encodes `rows` into exactly their groups of each part. The buffers hold arbitrary bytes before.
    ///
    /// # Errors
    /// Values that cannot be encoded.
    fn encode(
        &self,
        job: &Self::Job,
        rows: Range<u64>,
        slab: &Slab<'_>,
        parts: &mut [&mut [u8]],
        scratch: &mut [u8],
    ) -> Result<(), Error>;

    /// Opens an encoded matrix; `heads` has one entry a part.
    ///
    /// # Errors
    /// Damaged heads.
    fn open_tensor(&self, shape: &Shape<'_>, heads: &[&[u8]]) -> Result<Self::Tensor, Error>;

    /// Decodes `rows`; `parts` are the whole bodies, all groups.
    ///
    /// # Errors
    /// Damaged bytes.
    fn decode(
        &self,
        tensor: &Self::Tensor,
        shape: &Shape<'_>,
        parts: &[&[u8]],
        rows: Range<u64>,
        out: &mut SlabMut<'_>,
        scratch: &mut [u8],
    ) -> Result<(), Error>;
}

/// Arithmetic of a fused product: the host uses it where that is what the user asked for, and where the user asked for what deployment
/// gives (the mode `int8`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Activation {
    /// f32 activations.
    F32 = kbit_abi::ACT_F32,
    /// bf16 activations, f32 sums.
    Bf16 = kbit_abi::ACT_BF16,
    /// 8-bit activations.
    Int8 = kbit_abi::ACT_INT8,
}

/// What a scheme's fused kernels say of themselves, for one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuntimeInfo {
    /// Bytes of one packed activation.
    pub activation_bytes: u64,
    /// Tensors with equal keys share packed activations.
    pub activation_key: u64,
}

/// Packed activations, to read.
#[derive(Clone, Copy, Debug)]
pub struct Activations<'a> {
    data: &'a [u8],
    count: usize,
    bytes: usize,
    stride: usize,
}

impl<'a> Activations<'a> {
    /// `count` activations of `bytes` bytes that lie `stride` bytes apart in `data`.
    ///
    /// # Panics
    /// If `data` is too short.
    #[must_use]
    pub fn new(data: &'a [u8], count: usize, bytes: usize, stride: usize) -> Self {
        let span = count.saturating_sub(1).checked_mul(stride).and_then(|span| span.checked_add(bytes));
        assert!(
            count == 0 || span.is_some_and(|span| span <= data.len()),
            "activations longer than their data"
        );
        Self { data, count, bytes, stride }
    }

    /// Number of activations.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count
    }

    /// True without activations.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Activation `a`.
    ///
    /// # Panics
    /// If there is no such activation.
    #[must_use]
    pub fn get(&self, a: usize) -> &'a [u8] {
        assert!(a < self.count, "activation {a} of {}", self.count);
        &self.data[a * self.stride..a * self.stride + self.bytes]
    }
}

/// Fused kernels of a scheme (extension `kbit.runtime/1`): products of encoded rows with activations.
///
/// Exported by `schemes: [MyScheme: Runtime]`. Scratch is the plan's `decode_scratch_bytes`.
pub trait Runtime: Scheme {
    /// Arithmetic of [`Runtime::dot`].
    const ACTIVATION: Activation;
    /// True where [`Runtime::decode_i8`] is written.
    const DECODES_I8: bool = false;

    /// Name of the kernel chosen on this machine, for logs.
    fn kernel(&self) -> &'static str {
        "portable"
    }

    /// Size and key of packed activations for a tensor.
    fn runtime(&self, tensor: &Self::Tensor, shape: &Shape<'_>) -> RuntimeInfo;

    /// Packs one activation of `cols` floats. The buffer holds arbitrary bytes before.
    ///
    /// # Errors
    /// Values that cannot be packed.
    fn pack(
        &self,
        tensor: &Self::Tensor,
        shape: &Shape<'_>,
        x: &[f32],
        packed: &mut [u8],
        scratch: &mut [u8],
    ) -> Result<(), Error>;

    /// `y.row_mut(a)[r]` = row `rows.start + r` times activation `a`. It depends on that row and activation alone, not on
    /// how many others the call has. `parts` are the whole bodies.
    ///
    /// # Errors
    /// Damaged bytes.
    #[expect(clippy::too_many_arguments, reason = "mirrors the ABI")]
    fn dot(
        &self,
        tensor: &Self::Tensor,
        shape: &Shape<'_>,
        parts: &[&[u8]],
        rows: Range<u64>,
        activations: &Activations<'_>,
        y: &mut SlabMut<'_>,
        scratch: &mut [u8],
    ) -> Result<(), Error>;

    /// Weights as signed bytes, a scale and a minimum for each `block` columns:
    /// weight = `q[r * cols + c] * scale[r * blocks + c / block] + min[r * blocks + c / block]`.
    ///
    /// # Errors
    /// [`Status::Unsupported`] where this block cannot be served; damaged bytes.
    #[expect(clippy::too_many_arguments, reason = "mirrors the ABI")]
    fn decode_i8(
        &self,
        tensor: &Self::Tensor,
        shape: &Shape<'_>,
        parts: &[&[u8]],
        rows: Range<u64>,
        block: u32,
        out: EightBit<'_>,
        scratch: &mut [u8],
    ) -> Result<(), Error> {
        let _ = (tensor, shape, parts, rows, block, out, scratch);
        Err(Error::unsupported("the scheme has no 8-bit form"))
    }
}

/// Where [`Runtime::decode_i8`] writes: `rows * cols` bytes, and `rows * cols.div_ceil(block)` scales and minima.
#[derive(Debug)]
pub struct EightBit<'a> {
    /// Weights, `[rows][cols]`.
    pub q: &'a mut [i8],
    /// Scales, `[rows][blocks]`.
    pub scale: &'a mut [f32],
    /// Minima, `[rows][blocks]`.
    pub min: &'a mut [f32],
}
