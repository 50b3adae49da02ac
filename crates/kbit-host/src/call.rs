//! Calls through a scheme's function table.
//!
//! Invariants:
//! - A [`Functions`] was read from a loaded library's checked descriptor; libraries are never unloaded, so its
//!   pointers stay good.
//! - Every call runs in the default floating-point environment and is checked afterwards ([`fpenv`]).
//! - Objects are released in the order in which they depend on each other: a job or tensor holds its state.
//! - Lengths of buffers are checked by the callers in this crate (`scheme.rs`, `worker/serve.rs`, `check/`) against the
//!   plan before they get here; slices carry them through.
#![expect(unsafe_code, reason = "calls through C function pointers")]

use crate::callbacks::{HostTable, abi_str, printable, take_float_change};
use crate::spec::{ParamInfo, ParamKind, ParamValue, ParamValues};
use crate::{fpenv, scratch};
use kbit_abi as abi;
use kbit_abi::OK;
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

/// How a call failed, as it travels from a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum CallFailure {
    /// A status other than OK.
    Status {
        /// The status.
        status: abi::Status,
        /// The plugin's words.
        text: String,
    },
    /// The floating-point environment was changed.
    FloatEnvironment(String),
    /// A plan that breaks a rule.
    Plan(String),
    /// Bytes past a buffer changed.
    Overrun(String),
    /// The host called wrongly.
    Misuse(String),
}

/// A scheme's functions, all of them present but the optional ones.
#[derive(Clone, Copy)]
pub(crate) struct Functions {
    open: abi::OpenFn,
    close: abi::CloseFn,
    plan: abi::PlanFn,
    begin: abi::BeginFn,
    observe: Option<abi::ObserveFn>,
    prepare: Option<abi::PrepareFn>,
    encode: abi::EncodeFn,
    end: abi::EndFn,
    open_tensor: abi::OpenTensorFn,
    close_tensor: abi::CloseTensorFn,
    decode: abi::DecodeFn,
    extension: Option<abi::ExtensionFn>,
}

impl Functions {
    /// The functions of a descriptor, or the name of a missing one.
    pub(crate) fn of(scheme: &abi::Scheme) -> Result<Self, &'static str> {
        Ok(Self {
            open: scheme.open.ok_or("open")?,
            close: scheme.close.ok_or("close")?,
            plan: scheme.plan.ok_or("plan")?,
            begin: scheme.begin.ok_or("begin")?,
            observe: scheme.observe,
            prepare: scheme.prepare,
            encode: scheme.encode.ok_or("encode")?,
            end: scheme.end.ok_or("end")?,
            open_tensor: scheme.open_tensor.ok_or("open_tensor")?,
            close_tensor: scheme.close_tensor.ok_or("close_tensor")?,
            decode: scheme.decode.ok_or("decode")?,
            extension: scheme.extension,
        })
    }

    /// Which of the optional functions are there.
    pub(crate) fn optional(&self) -> Optional {
        Optional { observe: self.observe.is_some(), prepare: self.prepare.is_some() }
    }
}

/// Which functions a scheme has for statistics and heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Optional {
    pub(crate) observe: bool,
    pub(crate) prepare: bool,
}

/// A matrix as calls describe it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    pub(crate) tensor: &'a str,
    pub(crate) rows: u64,
    pub(crate) cols: u64,
    pub(crate) slice: u64,
    pub(crate) slices: u64,
}

impl Matrix<'_> {
    /// With `data` holding `rows` rows, or none for a shape.
    pub(crate) fn raw(&self, rows: u64, data: Option<&[f32]>) -> abi::Matrix {
        abi::Matrix {
            size: size_of::<abi::Matrix>(),
            tensor: abi_str(self.tensor),
            rows,
            cols: self.cols,
            slice: self.slice,
            n_slices: self.slices,
            data: data.map_or(std::ptr::null(), <[f32]>::as_ptr),
            row_stride: self.cols,
        }
    }
}

/// Auxiliary data of one matrix; see `abi::Aux`.
#[derive(Clone, Copy, Debug, Default)]
pub struct AuxData<'a> {
    /// `[cols]`: mean squared input.
    pub diag: Option<&'a [f32]>,
    /// `[cols][stride]`: mean of `x x^T`, and the stride in floats.
    pub hessian: Option<(&'a [f32], u64)>,
    /// `[cols]`: standard deviation of the weights of the producing unit.
    pub producer_std: Option<&'a [f32]>,
    /// Inputs that the means were taken over.
    pub n_samples: u64,
    /// Hash of the configured seed, the tensor and the slice.
    pub seed: u64,
}

impl AuxData<'_> {
    pub(crate) fn raw(&self) -> abi::Aux {
        let pointer = |values: Option<&[f32]>| values.map_or(std::ptr::null(), <[f32]>::as_ptr);
        abi::Aux {
            size: size_of::<abi::Aux>(),
            diag: pointer(self.diag),
            hessian: pointer(self.hessian.map(|(values, _)| values)),
            hessian_ld: self.hessian.map_or(0, |(_, stride)| stride),
            producer_std: pointer(self.producer_std),
            n_samples: self.n_samples,
            seed: self.seed,
        }
    }

    /// The kinds that are there, as a mask of `KBIT_AUX_*`.
    pub(crate) fn mask(&self) -> u32 {
        let bit = |there: bool, bit: u32| if there { bit } else { 0 };
        bit(self.diag.is_some(), abi::AUX_DIAG)
            | bit(self.hessian.is_some(), abi::AUX_HESSIAN)
            | bit(self.producer_std.is_some(), abi::AUX_PRODUCER)
    }
}

/// Bytes that a plugin may say about an error.
const ERROR_BYTES: usize = 1024;

thread_local! {
    /// Capacity of error buffers, which the conformance kit makes small.
    static ERROR_CAPACITY: Cell<usize> = const { Cell::new(ERROR_BYTES) };
}

/// Runs `calls` with error buffers of `capacity` bytes, at most [`ERROR_BYTES`].
pub(crate) fn with_error_capacity<R>(capacity: usize, calls: impl FnOnce() -> R) -> R {
    ERROR_CAPACITY.set(capacity.min(ERROR_BYTES));
    let result = calls();
    ERROR_CAPACITY.set(ERROR_BYTES);
    result
}

/// Makes one call with an error buffer, in the default floating-point environment.
pub(crate) fn invoke(call: impl FnOnce(*mut abi::Err) -> abi::Status) -> Result<(), CallFailure> {
    let mut text = [0u8; ERROR_BYTES];
    let cap = ERROR_CAPACITY.get();
    let mut err = abi::Err { text: text.as_mut_ptr().cast(), cap, len: 0 };
    drop(take_float_change());
    let (status, change) = fpenv::guarded(|| call(&raw mut err));
    if let Some(change) = change.or_else(take_float_change) {
        return Err(CallFailure::FloatEnvironment(change));
    }
    if text[cap..].iter().any(|byte| *byte != 0) {
        return Err(CallFailure::Overrun(format!("error buffer of {cap} bytes")));
    }
    if status == OK {
        return Ok(());
    }
    let mut text = printable(&text[..err.len.min(cap)]);
    if text.is_empty() {
        text = format!("status {status} without a message");
    }
    Err(CallFailure::Status { status, text })
}

/// Makes one call that has no error buffer. What it changes in the floating-point environment is undone.
fn release(call: impl FnOnce()) {
    let ((), change) = fpenv::guarded(call);
    if let Some(change) = change {
        tracing::warn!(
            "a plugin changed the floating-point environment while it released an object ({change})"
        );
    }
}

/// Runs `call` with scratch of this thread.
pub(crate) fn with_scratch<R>(
    bytes: u64,
    call: impl FnOnce(abi::Buf) -> Result<R, CallFailure>,
) -> Result<R, CallFailure> {
    let result = scratch::with(bytes, |scratch| call(abi::Buf { ptr: scratch.as_mut_ptr().cast(), bytes }));
    result.unwrap_or_else(|none| {
        Err(CallFailure::Plan(format!("it asks for {} bytes of scratch memory, which cannot be had", none.0)))
    })
}

/// A place that is aligned and not NULL, for empty buffers.
fn somewhere() -> *mut c_void {
    std::ptr::without_provenance_mut(scratch::ALIGNMENT)
}

pub(crate) fn buffer(bytes: &mut [u8]) -> abi::Buf {
    let ptr = if bytes.is_empty() { somewhere() } else { bytes.as_mut_ptr().cast() };
    abi::Buf { ptr, bytes: bytes.len() as u64 }
}

pub(crate) fn const_buffer(bytes: &[u8]) -> abi::CBuf {
    let ptr = if bytes.is_empty() { somewhere().cast_const() } else { bytes.as_ptr().cast() };
    abi::CBuf { ptr, bytes: bytes.len() as u64 }
}

fn rows_of(rows: &Range<u64>) -> abi::Rows {
    abi::Rows { first: rows.start, count: rows.end - rows.start }
}

/// Parameter values as the ABI passes them.
pub(crate) struct Values<'a> {
    values: Vec<abi::Value>,
    borrowed: std::marker::PhantomData<&'a ParamValues>,
}

impl<'a> Values<'a> {
    /// `declared` tells words of a choice from text.
    pub(crate) fn new(params: &'a ParamValues, declared: &[ParamInfo]) -> Self {
        let values = params
            .iter()
            .map(|(key, value)| {
                let mut raw = abi::Value {
                    size: size_of::<abi::Value>(),
                    key: abi_str(key),
                    r#type: 0,
                    i: 0,
                    f: 0.0,
                    s: abi::Str::EMPTY,
                    numbers: std::ptr::null(),
                    n_numbers: 0,
                };
                match value {
                    ParamValue::Bool(value) => {
                        raw.r#type = abi::PARAM_BOOL;
                        raw.i = i64::from(*value);
                    }
                    ParamValue::Int(value) => {
                        raw.r#type = abi::PARAM_INT;
                        raw.i = *value;
                    }
                    ParamValue::Float(value) => {
                        raw.r#type = abi::PARAM_FLOAT;
                        raw.f = *value;
                    }
                    ParamValue::Str(value) => {
                        let is_choice = declared
                            .iter()
                            .any(|param| &param.key == key && matches!(param.kind, ParamKind::Choice { .. }));
                        raw.r#type = if is_choice { abi::PARAM_CHOICE } else { abi::PARAM_STRING };
                        raw.s = abi_str(value);
                    }
                    ParamValue::Numbers(values) => {
                        raw.r#type = abi::PARAM_NUMBERS;
                        raw.numbers = values.as_ptr();
                        raw.n_numbers = values.len();
                    }
                }
                raw
            })
            .collect();
        Self { values, borrowed: std::marker::PhantomData }
    }

    pub(crate) fn pointers(&self) -> Vec<*const abi::Value> {
        self.values.iter().map(std::ptr::from_ref).collect()
    }
}

/// One opened scheme.
pub(crate) struct State {
    functions: Functions,
    raw: *mut abi::State,
}

// SAFETY: rule R4 lets any thread call the functions marked [any] concurrently; `close` runs once, in Drop.
unsafe impl Send for State {}
// SAFETY: as above.
unsafe impl Sync for State {}

impl Drop for State {
    fn drop(&mut self) {
        // SAFETY: made by this scheme's `open`; jobs and tensors hold an Arc of it, so all have ended.
        release(|| unsafe { (self.functions.close)(self.raw) });
    }
}

impl State {
    pub(crate) fn open(
        functions: Functions,
        host: *const abi::Host,
        values: &[*const abi::Value],
    ) -> Result<Arc<Self>, CallFailure> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: `host` is a leaked table; the values are borrowed for the call.
        invoke(|err| unsafe { (functions.open)(host, values.as_ptr(), values.len(), &raw mut raw, err) })?;
        Ok(Arc::new(Self { functions, raw }))
    }

    pub(crate) fn with_host(
        functions: Functions,
        host: &'static HostTable,
        values: &[*const abi::Value],
    ) -> Result<Arc<Self>, CallFailure> {
        Self::open(functions, &raw const host.raw, values)
    }

    /// Asks for the plan of a matrix. The answer is not checked yet.
    pub(crate) fn plan(&self, matrix: &Matrix<'_>) -> Result<abi::Plan, CallFailure> {
        let mut plan = empty_plan();
        let shape = matrix.raw(matrix.rows, None);
        self.plan_into(&raw const shape, &raw mut plan)?;
        Ok(plan)
    }

    pub(crate) fn plan_into(
        &self,
        shape: *const abi::Matrix,
        plan: *mut abi::Plan,
    ) -> Result<(), CallFailure> {
        // SAFETY: the caller's own structures, borrowed for the call.
        invoke(|err| unsafe { (self.functions.plan)(self.raw, shape, plan, err) })
    }

    pub(crate) fn begin(
        self: &Arc<Self>,
        matrix: &Matrix<'_>,
        whole: Option<&[f32]>,
        aux: &AuxData<'_>,
    ) -> Result<RawJob, CallFailure> {
        let (matrix, aux) = (matrix.raw(matrix.rows, whole), aux.raw());
        self.begin_raw(&raw const matrix, &raw const aux)
    }

    /// As [`State::begin`], with structures that a test gives (longer or shorter ones than this host's).
    pub(crate) fn begin_raw(
        self: &Arc<Self>,
        matrix: *const abi::Matrix,
        aux: *const abi::Aux,
    ) -> Result<RawJob, CallFailure> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: the structures and what they point to are borrowed for the call.
        invoke(|err| unsafe { (self.functions.begin)(self.raw, matrix, aux, &raw mut raw, err) })?;
        Ok(RawJob { state: Arc::clone(self), raw })
    }

    /// Opens an encoded matrix. `heads` and `parts` must stay where they are until the tensor is dropped.
    ///
    /// # Safety
    /// The memory of `heads` and `parts` outlives the result, unchanged.
    pub(crate) unsafe fn open_tensor(
        self: &Arc<Self>,
        matrix: &Matrix<'_>,
        heads: &[abi::CBuf],
        parts: &[abi::CBuf],
    ) -> Result<RawTensor, CallFailure> {
        let shape = matrix.raw(matrix.rows, None);
        let mut raw = std::ptr::null_mut();
        // SAFETY: the arrays have one entry a part of the plan (checked by the callers); the plugin may keep the
        // buffers' addresses, which the caller keeps good.
        invoke(|err| unsafe {
            (self.functions.open_tensor)(
                self.raw,
                &raw const shape,
                heads.as_ptr(),
                parts.as_ptr(),
                &raw mut raw,
                err,
            )
        })?;
        Ok(RawTensor { state: Arc::clone(self), raw })
    }

    /// The scheme's fused kernels, if it brings them.
    pub(crate) fn runtime(&self) -> Result<Option<Runtime>, CallFailure> {
        let Some(extension) = self.functions.extension else { return Ok(None) };
        let mut found: *const c_void = std::ptr::null();
        invoke(|_| {
            // SAFETY: a live state and a borrowed string.
            found = unsafe { extension(self.raw, abi_str(abi::EXT_RUNTIME)) };
            OK
        })?;
        if found.is_null() {
            return Ok(None);
        }
        // SAFETY: the ABI makes it a `abi::ExtRuntime` that lives as long as the state or longer.
        let raw = unsafe { crate::load::read_grown::<abi::ExtRuntime>(found.cast(), RUNTIME_MIN) }
            .map_err(|reason| CallFailure::Plan(format!("extension kbit.runtime/1: {reason}")))?;
        let missing = |name: &str| CallFailure::Plan(format!("extension kbit.runtime/1 lacks {name}"));
        Ok(Some(Runtime {
            // SAFETY: a string of the plugin's static descriptor.
            isa: unsafe { crate::callbacks::text_of(raw.isa) },
            act_kind: raw.act_kind,
            act_key: raw.act_key.ok_or_else(|| missing("act_key"))?,
            act_bytes: raw.act_bytes.ok_or_else(|| missing("act_bytes"))?,
            act_pack: raw.act_pack.ok_or_else(|| missing("act_pack"))?,
            dot: raw.dot.ok_or_else(|| missing("dot"))?,
            decode_i8: raw.decode_i8,
        }))
    }
}

/// Bytes up to the end of the last field that is mandatory.
const RUNTIME_MIN: usize = std::mem::offset_of!(abi::ExtRuntime, dot) + size_of::<usize>();

/// A plan without parts, of this host's size.
pub(crate) fn empty_plan() -> abi::Plan {
    abi::Plan {
        size: size_of::<abi::Plan>(),
        parts: [abi::Part::EMPTY; 8],
        n_parts: 0,
        row_group: 0,
        flags: 0,
        aux_required: 0,
        aux_used: 0,
        stat_bytes: 0,
        rows_hint: 0,
        scratch_bytes: 0,
        decode_scratch_bytes: 0,
        job_bytes_hint: 0,
    }
}

/// One matrix being encoded.
pub(crate) struct RawJob {
    state: Arc<State>,
    raw: *mut abi::Job,
}

// SAFETY: as for State; `prepare` takes `&mut self` and `end` runs in Drop, so the host serialises them.
unsafe impl Send for RawJob {}
// SAFETY: as above.
unsafe impl Sync for RawJob {}

impl Drop for RawJob {
    fn drop(&mut self) {
        // SAFETY: made by this scheme's `begin`, and nobody else refers to it any more.
        release(|| unsafe { (self.state.functions.end)(self.raw) });
    }
}

impl RawJob {
    pub(crate) fn observe(
        &self,
        matrix: &Matrix<'_>,
        rows: &Range<u64>,
        slab: &[f32],
        stats: &mut [u8],
        scratch: abi::Buf,
    ) -> Result<(), CallFailure> {
        let Some(observe) = self.state.functions.observe else {
            return Err(CallFailure::Plan(
                "it asks for statistics, but the scheme has no observe()".to_owned(),
            ));
        };
        let slab = matrix.raw(rows.end - rows.start, Some(slab));
        // SAFETY: the slab has the rows of the range, `stats` a record for each of its groups (checked by the callers),
        // and the scratch is this thread's own.
        invoke(|err| unsafe {
            observe(self.raw, rows_of(rows), &raw const slab, buffer(stats), scratch, err)
        })
    }

    pub(crate) fn prepare(&mut self, stats: &[u8], heads: &mut [&mut [u8]]) -> Result<(), CallFailure> {
        let Some(prepare) = self.state.functions.prepare else {
            return Err(CallFailure::Plan(
                "it has heads or statistics, but the scheme has no prepare()".to_owned(),
            ));
        };
        let heads: Vec<abi::Buf> = heads.iter_mut().map(|head| buffer(head)).collect();
        // SAFETY: all statistics and one buffer a part, borrowed for the call; `&mut self` serialises it.
        invoke(|err| unsafe { prepare(self.raw, const_buffer(stats), heads.as_ptr(), err) })
    }

    pub(crate) fn encode(
        &self,
        matrix: &Matrix<'_>,
        rows: &Range<u64>,
        slab: &[f32],
        parts: &mut [&mut [u8]],
        scratch: abi::Buf,
    ) -> Result<(), CallFailure> {
        let slab = matrix.raw(rows.end - rows.start, Some(slab));
        self.encode_raw(rows, &raw const slab, parts, scratch)
    }

    /// As [`RawJob::encode`], with a slab's description that a test gives.
    pub(crate) fn encode_raw(
        &self,
        rows: &Range<u64>,
        slab: *const abi::Matrix,
        parts: &mut [&mut [u8]],
        scratch: abi::Buf,
    ) -> Result<(), CallFailure> {
        // Eight parts at most, so no allocation for each call.
        let mut buffers = [abi::Buf { ptr: std::ptr::null_mut(), bytes: 0 }; 8];
        for (raw, part) in buffers.iter_mut().zip(parts.iter_mut()) {
            *raw = buffer(part);
        }
        // SAFETY: the slab has the rows of the range and each buffer the bytes of its groups (checked by the callers),
        // and the scratch is this thread's own.
        invoke(|err| unsafe {
            (self.state.functions.encode)(self.raw, rows_of(rows), slab, buffers.as_ptr(), scratch, err)
        })
    }
}

/// One encoded matrix, opened for reading.
pub(crate) struct RawTensor {
    state: Arc<State>,
    raw: *mut abi::Tensor,
}

// SAFETY: as for State.
unsafe impl Send for RawTensor {}
// SAFETY: as for State.
unsafe impl Sync for RawTensor {}

impl Drop for RawTensor {
    fn drop(&mut self) {
        // SAFETY: made by this scheme's `open_tensor`, and nobody else refers to it any more.
        release(|| unsafe { (self.state.functions.close_tensor)(self.raw) });
    }
}

impl RawTensor {
    /// Decodes into `out`, `stride` floats from row to row.
    ///
    /// # Panics
    /// If `out` is too short for the rows.
    pub(crate) fn decode(
        &self,
        rows: &Range<u64>,
        cols: u64,
        out: &mut [f32],
        stride: usize,
        scratch: abi::Buf,
    ) -> Result<(), CallFailure> {
        if rows.start >= rows.end {
            return Ok(());
        }
        check_strided(rows, cols, out.len(), stride);
        // SAFETY: just checked that `out` holds the rows; the scratch is this thread's own.
        invoke(|err| unsafe {
            (self.state.functions.decode)(
                self.raw,
                rows_of(rows),
                out.as_mut_ptr(),
                stride as u64,
                scratch,
                err,
            )
        })
    }
}

/// Panics unless `len` floats hold the rows at that stride.
pub(crate) fn check_strided(rows: &Range<u64>, cols: u64, len: usize, stride: usize) {
    let needed =
        (rows.end - rows.start - 1).checked_mul(stride as u64).and_then(|rest| rest.checked_add(cols));
    assert!(
        stride as u64 >= cols && needed.is_some_and(|needed| needed <= len as u64),
        "{} rows of {cols} floats, {stride} apart, do not fit {len} floats",
        rows.end - rows.start
    );
}

/// Functions of the extension `kbit.runtime/1`.
#[derive(Clone)]
pub(crate) struct Runtime {
    pub(crate) isa: String,
    pub(crate) act_kind: u32,
    act_key: unsafe extern "C" fn(*const abi::Tensor) -> u64,
    act_bytes: unsafe extern "C" fn(*const abi::Tensor) -> u64,
    act_pack: unsafe extern "C" fn(
        *const abi::Tensor,
        *const f32,
        *mut c_void,
        abi::Buf,
        *mut abi::Err,
    ) -> abi::Status,
    dot: unsafe extern "C" fn(
        *const abi::Tensor,
        abi::Rows,
        *const c_void,
        u64,
        u64,
        *mut f32,
        u64,
        abi::Buf,
        *mut abi::Err,
    ) -> abi::Status,
    decode_i8: Option<
        unsafe extern "C" fn(
            *const abi::Tensor,
            abi::Rows,
            *mut i8,
            *mut f32,
            *mut f32,
            u32,
            abi::Buf,
            *mut abi::Err,
        ) -> abi::Status,
    >,
}

impl Runtime {
    pub(crate) fn act_key(&self, tensor: &RawTensor) -> u64 {
        // SAFETY: a live tensor of the same scheme.
        fpenv::guarded(|| unsafe { (self.act_key)(tensor.raw) }).0
    }

    pub(crate) fn act_bytes(&self, tensor: &RawTensor) -> u64 {
        // SAFETY: a live tensor of the same scheme.
        fpenv::guarded(|| unsafe { (self.act_bytes)(tensor.raw) }).0
    }

    /// `x`: `[cols]`, `packed`: `[act_bytes]`; the callers check both.
    pub(crate) fn act_pack(
        &self,
        tensor: &RawTensor,
        x: &[f32],
        packed: &mut [u8],
        scratch: abi::Buf,
    ) -> Result<(), CallFailure> {
        // SAFETY: lengths were checked by the callers; the scratch is this thread's own.
        invoke(|err| unsafe {
            (self.act_pack)(tensor.raw, x.as_ptr(), packed.as_mut_ptr().cast(), scratch, err)
        })
    }

    /// `packed`: `count` activations, `act_stride` bytes apart; `y`: `count` rows of results, `y_stride` floats apart.
    #[expect(clippy::too_many_arguments, reason = "the header's own signature")]
    pub(crate) fn dot(
        &self,
        tensor: &RawTensor,
        rows: &Range<u64>,
        packed: &[u8],
        count: usize,
        act_stride: usize,
        y: &mut [f32],
        y_stride: usize,
        scratch: abi::Buf,
    ) -> Result<(), CallFailure> {
        let n = rows.end.saturating_sub(rows.start);
        if count == 0 || n == 0 {
            return Ok(());
        }
        check_strided(&(0..count as u64), n, y.len(), y_stride);
        assert!(
            count.checked_mul(act_stride).is_some_and(|bytes| bytes <= packed.len()),
            "{count} packed activations of {act_stride} bytes do not fit {} bytes",
            packed.len()
        );
        // SAFETY: just checked both buffers; the scratch is this thread's own.
        invoke(|err| unsafe {
            (self.dot)(
                tensor.raw,
                rows_of(rows),
                packed.as_ptr().cast(),
                count as u64,
                act_stride as u64,
                y.as_mut_ptr(),
                y_stride as u64,
                scratch,
                err,
            )
        })
    }

    /// `q`: `[rows, cols]`, `scale` and `min`: `[rows, ceil(cols / block)]`. `None` if the plugin has no such kernel.
    #[expect(clippy::too_many_arguments, reason = "the header's own signature")]
    pub(crate) fn decode_i8(
        &self,
        tensor: &RawTensor,
        rows: &Range<u64>,
        cols: u64,
        q: &mut [i8],
        scale: &mut [f32],
        min: &mut [f32],
        block: u32,
        scratch: abi::Buf,
    ) -> Option<Result<(), CallFailure>> {
        let decode = self.decode_i8?;
        let n = rows.end.saturating_sub(rows.start);
        let blocks = cols.div_ceil(u64::from(block.max(1)));
        assert!(
            q.len() as u64 >= n * cols && scale.len() as u64 >= n * blocks && min.len() as u64 >= n * blocks,
            "buffers of decode_i8 are too short"
        );
        // SAFETY: just checked the buffers; the scratch is this thread's own.
        Some(invoke(|err| unsafe {
            decode(
                tensor.raw,
                rows_of(rows),
                q.as_mut_ptr(),
                scale.as_mut_ptr(),
                min.as_mut_ptr(),
                block,
                scratch,
                err,
            )
        }))
    }
}
