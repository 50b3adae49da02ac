//! The C functions of a scheme: each checks what it is given, calls the safe trait, and turns errors and panics into a
//! status and a text.
//!
//! Invariants:
//! - A `kbit_state` is a boxed [`State`], a `kbit_job` a boxed [`Job`], a `kbit_tensor` a boxed [`Tensor`], all of the
//!   scheme whose table the function stands in; the host passes back what it was given (rules R2 and R4).
//! - Structures that grow are copied ([`grown`]) as far as their `size` goes, never referred to as a whole.
//! - Nothing unwinds out of a function here.
#![expect(unsafe_code, reason = "the C boundary")]

use crate::describe::{self, PluginInfo};
use crate::params::{Given, Params};
use crate::scheme::{
    Activations, Aux, EightBit, Error, Host, Plan, Runtime, Scheme, Shape, Slab, SlabMut, Status,
};
use kbit_abi as abi;
use std::any::Any;
use std::ffi::c_void;
use std::mem::{MaybeUninit, offset_of, size_of};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

/// An opened scheme.
pub(crate) struct State<S> {
    scheme: S,
    /// Made when the host asks for the extension.
    runtime: OnceLock<abi::ExtRuntime>,
}

/// A matrix being encoded. The state outlives it: the host closes in reverse order.
pub(crate) struct Job<S: Scheme> {
    state: *const State<S>,
    job: S::Job,
    shape: OwnedShape,
    plan: Plan,
}

/// An encoded matrix. The state and the bytes outlive it.
pub(crate) struct Tensor<S: Scheme> {
    state: *const State<S>,
    tensor: S::Tensor,
    shape: OwnedShape,
    plan: Plan,
    parts: Vec<abi::CBuf>,
}

struct OwnedShape {
    tensor: String,
    rows: u64,
    cols: u64,
    slice: u64,
    n_slices: u64,
}

impl OwnedShape {
    fn get(&self) -> Shape<'_> {
        Shape {
            tensor: &self.tensor,
            rows: self.rows,
            cols: self.cols,
            slice: self.slice,
            n_slices: self.n_slices,
        }
    }
}

/// Runs `body`; a failure or a panic becomes a status and a text in `err`.
fn guard(err: *mut abi::Err, body: impl FnOnce() -> Result<(), Error>) -> abi::Status {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => abi::OK,
        Ok(Err(error)) => {
            let text = if error.message.is_empty() { "the scheme does not say why" } else { &error.message };
            // SAFETY: `err` is the host's, valid or null.
            unsafe { write_text(err, text) };
            error.status as abi::Status
        }
        Err(panic) => {
            // SAFETY: as above.
            unsafe { write_text(err, panic_text(&*panic)) };
            discard(panic);
            abi::EPANIC
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .filter(|text| !text.is_empty())
        .unwrap_or("panic without a message")
}

/// Drops what a panic carried, whose destructor may panic as well.
fn discard(panic: Box<dyn Any + Send>) {
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        std::mem::forget(second);
    }
}

/// Frees without letting a panic out. There is nobody to tell of it.
fn guard_drop(body: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
        discard(panic);
    }
}

/// # Safety
/// `err` is null or points to a valid buffer description.
unsafe fn write_text(err: *mut abi::Err, text: &str) {
    // SAFETY: the caller's contract.
    let Some(err) = (unsafe { err.as_mut() }) else { return };
    if err.text.is_null() {
        return;
    }
    let mut len = text.len().min(err.cap);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    // SAFETY: `len <= cap` bytes of the caller's buffer; the text is ours, so they do not overlap.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), err.text.cast::<u8>(), len) };
    err.len = len;
}

/// # Safety
/// `text` is empty or points at `len` bytes that live for `'a`.
unsafe fn str_of<'a>(text: abi::Str) -> Result<&'a str, Error> {
    // SAFETY: the caller's contract.
    let bytes = unsafe { slice_of(text.ptr.cast::<u8>(), text.len as u64)? };
    std::str::from_utf8(bytes).map_err(|_| Error::param("a text from the host is not UTF-8"))
}

/// A length from the host as one that memory can have.
fn length<T>(len: u64) -> Result<usize, Error> {
    usize::try_from(len)
        .ok()
        .filter(|len| len.checked_mul(size_of::<T>()).is_some_and(|bytes| isize::try_from(bytes).is_ok()))
        .ok_or_else(|| Error::internal(format!("a length from the host exceeds memory: {len}")))
}

/// # Safety
/// `ptr` points at `len` values that live for `'a`; it may be anything where `len` is 0.
unsafe fn slice_of<'a, T>(ptr: *const T, len: u64) -> Result<&'a [T], Error> {
    let len = length::<T>(len)?;
    if len == 0 {
        return Ok(&[]);
    }
    if ptr.is_null() || !ptr.is_aligned() {
        return Err(Error::internal("a pointer from the host is null or not aligned"));
    }
    // SAFETY: the caller's contract.
    Ok(unsafe { std::slice::from_raw_parts(ptr, len) })
}

/// # Safety
/// As [`slice_of`], and nothing else refers to the memory.
unsafe fn slice_of_mut<'a, T>(ptr: *mut T, len: u64) -> Result<&'a mut [T], Error> {
    let len = length::<T>(len)?;
    if len == 0 {
        return Ok(&mut []);
    }
    if ptr.is_null() || !ptr.is_aligned() {
        return Err(Error::internal("a pointer from the host is null or not aligned"));
    }
    // SAFETY: the caller's contract.
    Ok(unsafe { std::slice::from_raw_parts_mut(ptr, len) })
}

/// # Safety
/// As [`slice_of_mut`].
unsafe fn buf_of<'a>(buf: abi::Buf) -> Result<&'a mut [u8], Error> {
    // SAFETY: the caller's contract.
    unsafe { slice_of_mut(buf.ptr.cast::<u8>(), buf.bytes) }
}

/// The scratch that a plan asks for, out of what the host gives.
///
/// # Safety
/// As [`buf_of`].
unsafe fn scratch_of<'a>(buf: abi::Buf, planned: u64) -> Result<&'a mut [u8], Error> {
    if buf.bytes < planned {
        return Err(Error::internal("less scratch from the host than the plan asks for"));
    }
    if planned > 0 && !buf.ptr.addr().is_multiple_of(64) {
        return Err(Error::internal("scratch from the host that is not 64-byte aligned"));
    }
    // SAFETY: the caller's contract.
    unsafe { buf_of(abi::Buf { bytes: planned, ..buf }) }
}

/// # Safety
/// `ptr` is null or points to a `T` that lives for `'a`.
unsafe fn get<'a, T>(ptr: *const T) -> Result<&'a T, Error> {
    // SAFETY: the caller's contract.
    unsafe { ptr.as_ref() }.ok_or_else(|| Error::internal("a null pointer from the host"))
}

/// Where the host wants a result.
///
/// # Safety
/// `out` is null or valid for a pointer.
unsafe fn place<T>(out: *mut *mut T) -> Result<*mut *mut T, Error> {
    if out.is_null() { Err(Error::internal("a null place for the result from the host")) } else { Ok(out) }
}

/// The `size` of a structure that grows.
///
/// # Safety
/// `ptr` is null or points to a structure that begins with `size`.
unsafe fn size_field<T>(ptr: *const T) -> Result<usize, Error> {
    if ptr.is_null() || !ptr.is_aligned() {
        return Err(Error::internal("a pointer from the host is null or not aligned"));
    }
    // SAFETY: the caller's contract.
    Ok(unsafe { ptr.cast::<usize>().read() })
}

/// Copies a structure of the ABI, at least `min` bytes of it; fields past its `size` are zero.
///
/// # Safety
/// `ptr` is null or points to a structure with `size` readable bytes. `T` is such a structure: all-zero bytes are a valid
/// value of it.
unsafe fn grown<T: Copy>(ptr: *const T, min: usize, name: &str) -> Result<T, Error> {
    // SAFETY: the caller's contract.
    let size = unsafe { size_field(ptr)? };
    if size < min {
        return Err(Error::internal(format!(
            "the host's {name} has {size} bytes, and ABI 1.0 has {min}; update kbit"
        )));
    }
    let mut copy = MaybeUninit::<T>::zeroed();
    // SAFETY: no more bytes than are there and than `T` has; all-zero bytes are valid in the rest.
    unsafe {
        std::ptr::copy_nonoverlapping(
            ptr.cast::<u8>(),
            copy.as_mut_ptr().cast::<u8>(),
            size.min(size_of::<T>()),
        );
        Ok(copy.assume_init())
    }
}

const MATRIX_MIN: usize = offset_of!(abi::Matrix, row_stride) + size_of::<u64>();
const AUX_MIN: usize = offset_of!(abi::Aux, seed) + size_of::<u64>();
const VALUE_MIN: usize = offset_of!(abi::Value, n_numbers) + size_of::<usize>();
const PLAN_MIN: usize = offset_of!(abi::Plan, job_bytes_hint) + size_of::<u64>();
const HOST_MIN: usize = offset_of!(abi::Host, isa_limit) + size_of::<u32>();

/// # Safety
/// `matrix` is null or valid for the call.
unsafe fn shape_of(matrix: *const abi::Matrix) -> Result<OwnedShape, Error> {
    // SAFETY: the caller's contract.
    let matrix = unsafe { grown(matrix, MATRIX_MIN, "kbit_matrix")? };
    if matrix.rows == 0 || matrix.cols == 0 {
        return Err(Error::unsupported("an empty matrix cannot be encoded"));
    }
    Ok(OwnedShape {
        // SAFETY: the caller's contract.
        tensor: unsafe { str_of(matrix.tensor)? }.to_owned(),
        rows: matrix.rows,
        cols: matrix.cols,
        slice: matrix.slice,
        n_slices: matrix.n_slices,
    })
}

/// The values of `matrix`: `rows` rows of `cols` floats, the first of which is row `first`; `None` where it is a shape only.
///
/// # Safety
/// `matrix` is null or valid and its data live for `'a`.
unsafe fn slab_of<'a>(
    matrix: *const abi::Matrix,
    first: u64,
    rows: u64,
    cols: u64,
) -> Result<Option<Slab<'a>>, Error> {
    // SAFETY: the caller's contract.
    let matrix = unsafe { grown(matrix, MATRIX_MIN, "kbit_matrix")? };
    if matrix.data.is_null() {
        return Ok(None);
    }
    if matrix.cols != cols || matrix.rows < rows {
        return Err(Error::internal(format!(
            "a slab of {} x {} from the host where {rows} x {cols} is due",
            matrix.rows, matrix.cols
        )));
    }
    if matrix.row_stride < cols && rows > 1 {
        return Err(Error::internal("a slab from the host has a stride shorter than its rows"));
    }
    let span = rows.saturating_sub(1).checked_mul(matrix.row_stride).and_then(|span| span.checked_add(cols));
    let span = span.ok_or_else(|| Error::internal("a slab from the host exceeds memory"))?;
    // SAFETY: the caller's contract: rows lie `row_stride` floats apart.
    let data = unsafe { slice_of(matrix.data, span)? };
    Ok(Some(Slab::new(
        data,
        first,
        length::<f32>(rows)?,
        length::<f32>(cols)?,
        length::<u8>(matrix.row_stride)?,
    )))
}

/// As [`slab_of`], of a range of rows, which always has data.
///
/// # Safety
/// As [`slab_of`].
unsafe fn slab_of_range<'a>(
    slab: *const abi::Matrix,
    rows: abi::Rows,
    shape: &OwnedShape,
) -> Result<Slab<'a>, Error> {
    // SAFETY: the caller's contract.
    unsafe { slab_of(slab, rows.first, rows.count, shape.cols)? }
        .ok_or_else(|| Error::internal("a slab without data"))
}

/// Room for `rows` rows of `cols` floats from `out` on, `stride` floats apart.
///
/// # Safety
/// That room is there and nobody else's, or `out` is null.
unsafe fn room_of<'a>(out: *mut f32, rows: u64, cols: u64, stride: u64) -> Result<SlabMut<'a>, Error> {
    if out.is_null() || !out.is_aligned() || (stride < cols && rows > 1) {
        return Err(Error::internal("an output from the host that is null, not aligned, or too narrow"));
    }
    let span = rows.saturating_sub(1).checked_mul(stride).and_then(|span| span.checked_add(cols));
    length::<f32>(span.ok_or_else(|| Error::internal("an output from the host exceeds memory"))?)?;
    // A stride that is never used may be any number.
    let stride = if rows > 1 { length::<f32>(stride)? } else { 0 };
    // SAFETY: the caller's contract; the span fits memory.
    Ok(unsafe { SlabMut::from_raw(out, length::<f32>(rows)?, length::<f32>(cols)?, stride) })
}

fn range(rows: abi::Rows, shape: &OwnedShape, plan: &Plan) -> Result<Range<u64>, Error> {
    let end = rows.first.checked_add(rows.count).filter(|end| *end <= shape.rows && rows.count > 0);
    let end = end.ok_or_else(|| Error::internal("a range of rows past the end of the matrix"))?;
    if !rows.first.is_multiple_of(u64::from(plan.row_group.max(1))) {
        return Err(Error::internal("a range of rows that does not start at a row group"));
    }
    Ok(rows.first..end)
}

/// The plugin's entry.
///
/// # Safety
/// `host` and `err` are null or valid for the call.
pub unsafe fn entry(
    info: &'static PluginInfo,
    descriptor: &'static OnceLock<&'static abi::Plugin>,
    host: *const abi::Host,
    err: *mut abi::Err,
) -> *const abi::Plugin {
    let mut found: *const abi::Plugin = std::ptr::null();
    guard(err, || {
        // SAFETY: the caller's contract.
        unsafe { grown(host, HOST_MIN, "kbit_host")? };
        found = *descriptor.get_or_init(|| describe::plugin(info));
        Ok(())
    });
    found
}

/// Runs a plugin's self-test.
///
/// # Safety
/// `err` is null or valid for the call.
pub unsafe fn self_test(err: *mut abi::Err, test: fn() -> Result<(), Error>) -> abi::Status {
    guard(err, test)
}

pub(crate) unsafe extern "C" fn open<S: Scheme>(
    host: *const abi::Host,
    values: *const *const abi::Value,
    n: usize,
    out: *mut *mut abi::State,
    err: *mut abi::Err,
) -> abi::Status {
    guard(err, || {
        // SAFETY: the caller's.
        let out = unsafe { place(out)? };
        let mut given = Vec::new();
        // SAFETY: the host passes `n` pointers to values that live for the call.
        for value in unsafe { slice_of(values, n as u64)? } {
            // SAFETY: as above.
            let value = unsafe { grown(*value, VALUE_MIN, "kbit_value")? };
            // SAFETY: texts and numbers live for the call.
            let (key, parsed) = unsafe {
                let parsed = match value.r#type {
                    abi::PARAM_BOOL => Given::Bool(value.i != 0),
                    abi::PARAM_INT => Given::Int(value.i),
                    abi::PARAM_FLOAT => Given::Float(value.f),
                    abi::PARAM_STRING | abi::PARAM_CHOICE => Given::Str(str_of(value.s)?.to_owned()),
                    abi::PARAM_NUMBERS => {
                        Given::Numbers(slice_of(value.numbers, value.n_numbers as u64)?.to_vec())
                    }
                    other => return Err(Error::param(format!("a value of the unknown type {other}"))),
                };
                (str_of(value.key)?.to_owned(), parsed)
            };
            given.push((key, parsed));
        }
        let params = Params::new(S::INFO.params, given)?;
        // SAFETY: the host's table is valid; a null one is no host.
        let host = if host.is_null() { None } else { Some(unsafe { grown(host, HOST_MIN, "kbit_host")? }) };
        let scheme = S::open(&Host::from_raw(host), &params)?;
        let state = Box::new(State { scheme, runtime: OnceLock::new() });
        // SAFETY: `out` is the host's, valid for one pointer.
        unsafe { *out = Box::into_raw(state).cast() };
        Ok(())
    })
}

pub(crate) unsafe extern "C" fn close<S: Scheme>(state: *mut abi::State) {
    if !state.is_null() {
        // SAFETY: made by `open`, given back once.
        guard_drop(|| drop(unsafe { Box::from_raw(state.cast::<State<S>>()) }));
    }
}

fn checked_plan<S: Scheme>(scheme: &S, shape: &OwnedShape) -> Result<Plan, Error> {
    let plan = scheme.plan(&shape.get())?;
    if plan.parts.is_empty() || plan.parts.len() > 8 || plan.row_group == 0 {
        return Err(Error::internal("a plan has 1 to 8 parts and groups of at least one row"));
    }
    Ok(plan)
}

pub(crate) unsafe extern "C" fn plan<S: Scheme>(
    state: *const abi::State,
    shape: *const abi::Matrix,
    out: *mut abi::Plan,
    err: *mut abi::Err,
) -> abi::Status {
    guard(err, || {
        // SAFETY: the state is ours; the shape lives for the call; `size` comes first and was set by the host.
        let (state, shape, size) =
            unsafe { (get(state.cast::<State<S>>())?, shape_of(shape)?, size_field(out.cast_const())?) };
        if size < PLAN_MIN {
            return Err(Error::internal(format!(
                "the host's kbit_plan has {size} bytes, and ABI 1.0 has {PLAN_MIN}; update kbit"
            )));
        }
        let plan = checked_plan(&state.scheme, &shape)?;
        let mut parts = [abi::Part::EMPTY; 8];
        for (part, planned) in parts.iter_mut().zip(&plan.parts) {
            part.name = abi::Str::new(planned.name);
            part.dtype = planned.dtype as u32;
            part.head_bytes = planned.head_bytes;
            part.group_bytes = planned.group_bytes;
        }
        let filled = abi::Plan {
            size,
            parts,
            n_parts: u32::try_from(plan.parts.len()).unwrap_or(8),
            row_group: plan.row_group,
            flags: if plan.whole_matrix { abi::WHOLE_MATRIX } else { 0 },
            aux_required: plan.aux_required,
            aux_used: plan.aux_used,
            stat_bytes: plan.stat_bytes,
            rows_hint: plan.rows_hint,
            scratch_bytes: plan.scratch_bytes,
            decode_scratch_bytes: plan.decode_scratch_bytes,
            job_bytes_hint: plan.job_bytes_hint,
        };
        // SAFETY: the host's struct is at least as long as ours (checked above), and this is its call.
        unsafe { *out = filled };
        Ok(())
    })
}

/// # Safety
/// `aux` is null or valid, with its arrays, for the call.
unsafe fn aux_of<'a>(aux: *const abi::Aux, cols: u64) -> Result<Aux<'a>, Error> {
    if aux.is_null() {
        return Ok(Aux::default());
    }
    // SAFETY: the caller's contract.
    let aux = unsafe { grown(aux, AUX_MIN, "kbit_aux")? };
    if !aux.hessian.is_null() && aux.hessian_ld < cols {
        return Err(Error::internal("a Hessian from the host has a stride shorter than its rows"));
    }
    // SAFETY: the caller's contract: arrays of `cols` floats, the Hessian of `cols` rows.
    unsafe {
        let array =
            |ptr: *const f32, len: u64| if ptr.is_null() { Ok(None) } else { slice_of(ptr, len).map(Some) };
        let hessian_len = cols
            .checked_mul(aux.hessian_ld)
            .ok_or_else(|| Error::internal("a Hessian from the host exceeds memory"))?;
        Ok(Aux {
            diag: array(aux.diag, cols)?,
            hessian: array(aux.hessian, hessian_len)?.map(|data| (data, aux.hessian_ld)),
            producer_std: array(aux.producer_std, cols)?,
            n_samples: aux.n_samples,
            seed: aux.seed,
        })
    }
}

pub(crate) unsafe extern "C" fn begin<S: Scheme>(
    state: *const abi::State,
    matrix: *const abi::Matrix,
    aux: *const abi::Aux,
    out: *mut *mut abi::Job,
    err: *mut abi::Err,
) -> abi::Status {
    guard(err, || {
        let state_ptr = state.cast::<State<S>>();
        // SAFETY: the state is ours; matrix and auxiliary data live for the call.
        let (state, shape, out) = unsafe { (get(state_ptr)?, shape_of(matrix)?, place(out)?) };
        let plan = checked_plan(&state.scheme, &shape)?;
        // SAFETY: as above.
        let (data, aux) = unsafe { (slab_of(matrix, 0, shape.rows, shape.cols)?, aux_of(aux, shape.cols)?) };
        if plan.whole_matrix && data.is_none() {
            return Err(Error::internal(format!(
                "tensor {}: the scheme needs the whole matrix",
                shape.tensor
            )));
        }
        for (mask, there, what) in [
            (
                abi::AUX_DIAG,
                aux.diag.is_some(),
                "importance of the columns; gather it by `kbit calibrate` and give it by `--imatrix FILE` (`importance: FILE`)",
            ),
            (
                abi::AUX_HESSIAN,
                aux.hessian.is_some(),
                "second moments of its inputs; gather them by `kbit calibrate --second-moments` and give the file by `--imatrix FILE` \
                 (`importance: FILE`)",
            ),
            (
                abi::AUX_PRODUCER,
                aux.producer_std.is_some(),
                "the deviation of the producing weights; choose another scheme",
            ),
        ] {
            if plan.aux_required & mask != 0 && !there {
                return Err(Error::missing(format!("tensor {}: the scheme needs {what}", shape.tensor)));
            }
        }
        let job = state.scheme.begin(&shape.get(), data, &aux)?;
        let job = Box::new(Job { state: state_ptr, job, shape, plan });
        // SAFETY: `out` is the host's, valid for one pointer.
        unsafe { *out = Box::into_raw(job).cast() };
        Ok(())
    })
}

/// # Safety
/// `job` was made by `begin` of `S` and lives; so does its state.
unsafe fn job_of<'a, S: Scheme>(job: *const abi::Job) -> Result<(&'a S, &'a Job<S>), Error> {
    // SAFETY: the caller's contract.
    unsafe {
        let job = get(job.cast::<Job<S>>())?;
        Ok((&get(job.state)?.scheme, job))
    }
}

pub(crate) unsafe extern "C" fn observe<S: Scheme>(
    job: *const abi::Job,
    rows: abi::Rows,
    slab: *const abi::Matrix,
    stats: abi::Buf,
    scratch: abi::Buf,
    err: *mut abi::Err,
) -> abi::Status {
    guard(err, || {
        // SAFETY: the job is ours; slab and buffers live for the call and overlap nothing.
        unsafe {
            let (scheme, job) = job_of::<S>(job)?;
            let range = range(rows, &job.shape, &job.plan)?;
            let slab = slab_of_range(slab, rows, &job.shape)?;
            let groups = rows.count.div_ceil(u64::from(job.plan.row_group));
            if groups.checked_mul(job.plan.stat_bytes) != Some(stats.bytes) {
                return Err(Error::internal("a buffer of the wrong size for statistics from the host"));
            }
            let scratch = scratch_of(scratch, job.plan.scratch_bytes)?;
            scheme.observe(&job.job, range, &slab, buf_of(stats)?, scratch)
        }
    })
}

pub(crate) unsafe extern "C" fn prepare<S: Scheme>(
    job: *mut abi::Job,
    all_stats: abi::CBuf,
    heads: *const abi::Buf,
    err: *mut abi::Err,
) -> abi::Status {
    guard(err, || {
        // SAFETY: the job is ours and not used elsewhere during this call (R4); buffers live for it.
        unsafe {
            let job = job
                .cast::<Job<S>>()
                .as_mut()
                .ok_or_else(|| Error::internal("a null pointer from the host"))?;
            let scheme = &get(job.state)?.scheme;
            let groups = job.shape.rows.div_ceil(u64::from(job.plan.row_group));
            if groups.checked_mul(job.plan.stat_bytes) != Some(all_stats.bytes) {
                return Err(Error::internal("statistics of the wrong size from the host"));
            }
            let stats = slice_of(all_stats.ptr.cast::<u8>(), all_stats.bytes)?;
            let mut buffers = Vec::with_capacity(job.plan.parts.len());
            for (index, part) in job.plan.parts.iter().enumerate() {
                let buffer = if part.head_bytes == 0 {
                    &mut [][..]
                } else if heads.is_null() {
                    return Err(Error::internal("a null list of heads from the host"));
                } else {
                    buf_of(*heads.add(index))?
                };
                if buffer.len() as u64 != part.head_bytes {
                    return Err(Error::internal("a head of the wrong size from the host"));
                }
                buffer.fill(0);
                buffers.push(buffer);
            }
            scheme.prepare(&mut job.job, stats, &mut buffers)
        }
    })
}

pub(crate) unsafe extern "C" fn encode<S: Scheme>(
    job: *const abi::Job,
    rows: abi::Rows,
    slab: *const abi::Matrix,
    parts: *const abi::Buf,
    scratch: abi::Buf,
    err: *mut abi::Err,
) -> abi::Status {
    guard(err, || {
        // SAFETY: the job is ours; slab and buffers live for the call and overlap nothing.
        unsafe {
            let (scheme, job) = job_of::<S>(job)?;
            let range = range(rows, &job.shape, &job.plan)?;
            let slab = slab_of_range(slab, rows, &job.shape)?;
            let groups = rows.count.div_ceil(u64::from(job.plan.row_group));
            let mut buffers = Vec::with_capacity(job.plan.parts.len());
            for (buf, part) in slice_of(parts, job.plan.parts.len() as u64)?.iter().zip(&job.plan.parts) {
                if groups.checked_mul(part.group_bytes) != Some(buf.bytes) {
                    return Err(Error::internal(format!(
                        "part {}: a buffer of the wrong size from the host",
                        part.name
                    )));
                }
                buffers.push(buf_of(*buf)?);
            }
            let scratch = scratch_of(scratch, job.plan.scratch_bytes)?;
            scheme.encode(&job.job, range, &slab, &mut buffers, scratch)
        }
    })
}

pub(crate) unsafe extern "C" fn end<S: Scheme>(job: *mut abi::Job) {
    if !job.is_null() {
        // SAFETY: made by `begin`, given back once.
        guard_drop(|| drop(unsafe { Box::from_raw(job.cast::<Job<S>>()) }));
    }
}

pub(crate) unsafe extern "C" fn open_tensor<S: Scheme>(
    state: *const abi::State,
    shape: *const abi::Matrix,
    heads: *const abi::CBuf,
    parts: *const abi::CBuf,
    out: *mut *mut abi::Tensor,
    err: *mut abi::Err,
) -> abi::Status {
    guard(err, || {
        let state_ptr = state.cast::<State<S>>();
        // SAFETY: the state is ours; shape and lists live for the call, the parts' bytes as long as the tensor.
        unsafe {
            let (state, shape, out) = (get(state_ptr)?, shape_of(shape)?, place(out)?);
            let plan = checked_plan(&state.scheme, &shape)?;
            let groups = shape.rows.div_ceil(u64::from(plan.row_group));
            let parts = slice_of(parts, plan.parts.len() as u64)?.to_vec();
            let mut head_bytes: Vec<&[u8]> = Vec::with_capacity(plan.parts.len());
            for (index, part) in plan.parts.iter().enumerate() {
                if groups.checked_mul(part.group_bytes) != Some(parts[index].bytes) {
                    return Err(Error::internal(format!(
                        "tensor {}: part {} has the wrong size; the file is damaged: convert again",
                        shape.tensor, part.name
                    )));
                }
                let head = if part.head_bytes == 0 {
                    &[][..]
                } else if heads.is_null() {
                    return Err(Error::internal("a null list of heads from the host"));
                } else {
                    let head = *heads.add(index);
                    slice_of(head.ptr.cast::<u8>(), head.bytes)?
                };
                if head.len() as u64 != part.head_bytes {
                    return Err(Error::internal(format!(
                        "tensor {}: part {} has a head of the wrong size; the file is damaged: convert again",
                        shape.tensor, part.name
                    )));
                }
                head_bytes.push(head);
            }
            let tensor = state.scheme.open_tensor(&shape.get(), &head_bytes)?;
            let tensor = Box::new(Tensor { state: state_ptr, tensor, shape, plan, parts });
            *out = Box::into_raw(tensor).cast();
            Ok(())
        }
    })
}

pub(crate) unsafe extern "C" fn close_tensor<S: Scheme>(tensor: *mut abi::Tensor) {
    if !tensor.is_null() {
        // SAFETY: made by `open_tensor`, given back once.
        guard_drop(|| drop(unsafe { Box::from_raw(tensor.cast::<Tensor<S>>()) }));
    }
}

/// The bodies of at most eight parts, without an allocation for each call.
struct Bodies<'a> {
    bodies: [&'a [u8]; 8],
    count: usize,
}

impl<'a> Bodies<'a> {
    fn get(&self) -> &[&'a [u8]] {
        &self.bodies[..self.count]
    }
}

impl<S: Scheme> Tensor<S> {
    /// # Safety
    /// The parts' bytes still live.
    unsafe fn bodies(&self) -> Result<Bodies<'_>, Error> {
        let mut bodies: [&[u8]; 8] = [&[]; 8];
        for (body, part) in bodies.iter_mut().zip(&self.parts) {
            // SAFETY: the caller's contract.
            *body = unsafe { slice_of(part.ptr.cast::<u8>(), part.bytes)? };
        }
        Ok(Bodies { bodies, count: self.parts.len() })
    }
}

/// # Safety
/// `tensor` was made by `open_tensor` of `S` and lives; so do its state and bytes.
unsafe fn tensor_of<'a, S: Scheme>(tensor: *const abi::Tensor) -> Result<(&'a S, &'a Tensor<S>), Error> {
    // SAFETY: the caller's contract.
    unsafe {
        let tensor = get(tensor.cast::<Tensor<S>>())?;
        Ok((&get(tensor.state)?.scheme, tensor))
    }
}

pub(crate) unsafe extern "C" fn decode<S: Scheme>(
    tensor: *const abi::Tensor,
    rows: abi::Rows,
    out: *mut f32,
    out_stride: u64,
    scratch: abi::Buf,
    err: *mut abi::Err,
) -> abi::Status {
    guard(err, || {
        // SAFETY: the tensor is ours, its state and bytes live; `out` has room for `rows` at `out_stride`.
        unsafe {
            let (scheme, tensor) = tensor_of::<S>(tensor)?;
            let range = range(rows, &tensor.shape, &tensor.plan)?;
            let mut room = room_of(out, rows.count, tensor.shape.cols, out_stride)?;
            let scratch = scratch_of(scratch, tensor.plan.decode_scratch_bytes)?;
            let bodies = tensor.bodies()?;
            scheme.decode(&tensor.tensor, &tensor.shape.get(), bodies.get(), range, &mut room, scratch)
        }
    })
}

/// Of a scheme without extensions.
pub(crate) unsafe extern "C" fn no_extension(_: *const abi::State, _: abi::Str) -> *const c_void {
    std::ptr::null()
}

pub(crate) unsafe extern "C" fn extension<S: Runtime>(
    state: *const abi::State,
    id: abi::Str,
) -> *const c_void {
    let mut found: *const c_void = std::ptr::null();
    guard(std::ptr::null_mut(), || {
        // SAFETY: the state is ours and outlives its use of the table; the text lives for the call.
        let (state, id) = unsafe { (get(state.cast::<State<S>>())?, str_of(id)?) };
        if id == abi::EXT_RUNTIME {
            let table = state.runtime.get_or_init(|| runtime_table::<S>(state.scheme.kernel()));
            found = std::ptr::from_ref(table).cast();
        }
        Ok(())
    });
    found
}

/// The table of the runtime extension of `S`.
const fn runtime_table<S: Runtime>(kernel: &'static str) -> abi::ExtRuntime {
    abi::ExtRuntime {
        size: size_of::<abi::ExtRuntime>(),
        isa: abi::Str::new(kernel),
        act_kind: S::ACTIVATION as u32,
        act_key: Some(act_key::<S>),
        act_bytes: Some(act_bytes::<S>),
        act_pack: Some(act_pack::<S>),
        dot: Some(dot::<S>),
        decode_i8: if S::DECODES_I8 { Some(decode_i8::<S>) } else { None },
    }
}

unsafe extern "C" fn act_key<S: Runtime>(tensor: *const abi::Tensor) -> u64 {
    let mut key = 0;
    guard(std::ptr::null_mut(), || {
        // SAFETY: the tensor is ours.
        let (scheme, tensor) = unsafe { tensor_of::<S>(tensor)? };
        key = scheme.runtime(&tensor.tensor, &tensor.shape.get()).activation_key;
        Ok(())
    });
    key
}

unsafe extern "C" fn act_bytes<S: Runtime>(tensor: *const abi::Tensor) -> u64 {
    let mut bytes = 0;
    guard(std::ptr::null_mut(), || {
        // SAFETY: the tensor is ours.
        let (scheme, tensor) = unsafe { tensor_of::<S>(tensor)? };
        bytes = scheme.runtime(&tensor.tensor, &tensor.shape.get()).activation_bytes;
        Ok(())
    });
    bytes
}

unsafe extern "C" fn act_pack<S: Runtime>(
    tensor: *const abi::Tensor,
    x: *const f32,
    act: *mut c_void,
    scratch: abi::Buf,
    err: *mut abi::Err,
) -> abi::Status {
    guard(err, || {
        // SAFETY: the tensor is ours; `x` has `cols` floats and `act` the bytes that `act_bytes` told.
        unsafe {
            let (scheme, tensor) = tensor_of::<S>(tensor)?;
            let shape = tensor.shape.get();
            let info = scheme.runtime(&tensor.tensor, &shape);
            let x = slice_of(x, tensor.shape.cols)?;
            let packed = buf_of(abi::Buf { ptr: act, bytes: info.activation_bytes })?;
            let scratch = scratch_of(scratch, tensor.plan.decode_scratch_bytes)?;
            scheme.pack(&tensor.tensor, &shape, x, packed, scratch)
        }
    })
}

unsafe extern "C" fn dot<S: Runtime>(
    tensor: *const abi::Tensor,
    rows: abi::Rows,
    act: *const c_void,
    n_act: u64,
    act_stride: u64,
    y: *mut f32,
    y_stride: u64,
    scratch: abi::Buf,
    err: *mut abi::Err,
) -> abi::Status {
    guard(err, || {
        if n_act == 0 {
            return Ok(());
        }
        // SAFETY: the tensor is ours; activations lie `act_stride` bytes and outputs `y_stride` floats apart.
        unsafe {
            let (scheme, tensor) = tensor_of::<S>(tensor)?;
            let range = range(rows, &tensor.shape, &tensor.plan)?;
            let shape = tensor.shape.get();
            let bytes = scheme.runtime(&tensor.tensor, &shape).activation_bytes;
            if act_stride < bytes && n_act > 1 {
                return Err(Error::internal("activations from the host that overlap"));
            }
            let span = (n_act - 1).checked_mul(act_stride).and_then(|span| span.checked_add(bytes));
            let span = span.ok_or_else(|| Error::internal("activations from the host exceed memory"))?;
            let data = slice_of(act.cast::<u8>(), span)?;
            // A stride that is never used may be any number.
            let stride = if n_act > 1 { length::<u8>(act_stride)? } else { 0 };
            let activations = Activations::new(data, length::<u8>(n_act)?, length::<u8>(bytes)?, stride);
            let mut y = room_of(y, n_act, rows.count, y_stride)?;
            let scratch = scratch_of(scratch, tensor.plan.decode_scratch_bytes)?;
            let bodies = tensor.bodies()?;
            scheme.dot(&tensor.tensor, &shape, bodies.get(), range, &activations, &mut y, scratch)
        }
    })
}

unsafe extern "C" fn decode_i8<S: Runtime>(
    tensor: *const abi::Tensor,
    rows: abi::Rows,
    q: *mut i8,
    scale: *mut f32,
    min: *mut f32,
    block: u32,
    scratch: abi::Buf,
    err: *mut abi::Err,
) -> abi::Status {
    guard(err, || {
        // SAFETY: the tensor is ours; `q` has `rows * cols` bytes, `scale` and `min` a float for each block of each row.
        unsafe {
            let (scheme, tensor) = tensor_of::<S>(tensor)?;
            let range = range(rows, &tensor.shape, &tensor.plan)?;
            if block == 0 {
                return Err(Error::internal("blocks of no columns from the host"));
            }
            let times = |per_row: u64| {
                let total = rows.count.checked_mul(per_row);
                total.ok_or_else(|| Error::internal("an output from the host exceeds memory"))
            };
            let blocks = times(tensor.shape.cols.div_ceil(u64::from(block)))?;
            let out = EightBit {
                q: slice_of_mut(q, times(tensor.shape.cols)?)?,
                scale: slice_of_mut(scale, blocks)?,
                min: slice_of_mut(min, blocks)?,
            };
            let scratch = scratch_of(scratch, tensor.plan.decode_scratch_bytes)?;
            let bodies = tensor.bodies()?;
            scheme.decode_i8(&tensor.tensor, &tensor.shape.get(), bodies.get(), range, block, out, scratch)
        }
    })
}

impl Host<'_> {
    /// Calls `body(i, scratch)` for every `i` below `count` on the host's threads, each with `scratch_bytes` bytes of its own
    /// (64-byte aligned, arbitrary contents), and returns when all have returned. Without a host: one after the other.
    ///
    /// In `begin` and `prepare` alone (rule R5). Results must not depend on the order: write to places of your own, and
    /// add up afterwards in a fixed order.
    ///
    /// # Errors
    /// The failure of the lowest `i`; after one, no further bodies start.
    ///
    /// # Panics
    /// If a body panics, with its message.
    pub fn parallel_for<F>(&self, count: u64, scratch_bytes: u64, body: F) -> Result<(), Error>
    where
        F: Fn(u64, &mut [u8]) -> Result<(), Error> + Sync,
    {
        let Some((host, run)) = self.raw.and_then(|host| Some((host, host.parallel_for?))) else {
            let bytes = length::<u8>(scratch_bytes)?;
            let mut buffer = vec![0u8; bytes.saturating_add(63)];
            let start = buffer.as_ptr().align_offset(64);
            let scratch = &mut buffer[start..start + bytes];
            return (0..count).try_for_each(|i| body(i, scratch));
        };
        let mut text = [0u8; 1024];
        let mut err = abi::Err { text: text.as_mut_ptr().cast(), cap: text.len(), len: 0 };
        let user = (&raw const body).cast_mut().cast();
        // SAFETY: the host's own context; `body` outlives the call, which returns when no thread runs it any more, and is
        // Sync; `one_body` casts the pointer back to what it was.
        let status = unsafe { run(host.ctx, count, scratch_bytes, user, one_body::<F>, &raw mut err) };
        let text = String::from_utf8_lossy(&text[..err.len.min(text.len())]).into_owned();
        let status = match status {
            abi::OK => return Ok(()),
            // Nothing is printed again: the panic was reported where it happened.
            abi::EPANIC => std::panic::resume_unwind(Box::new(text)),
            abi::EPARAM => Status::Param,
            abi::EUNSUPPORTED => Status::Unsupported,
            abi::ENUMERIC => Status::Numeric,
            abi::EMISSING => Status::Missing,
            abi::ECANCELLED => Status::Cancelled,
            _ => Status::Internal,
        };
        Err(Error { status, message: text })
    }
}

unsafe extern "C" fn one_body<F>(
    user: *mut c_void,
    i: u64,
    scratch: abi::Buf,
    err: *mut abi::Err,
) -> abi::Status
where
    F: Fn(u64, &mut [u8]) -> Result<(), Error> + Sync,
{
    guard(err, || {
        // SAFETY: `user` is the body that `parallel_for` was given; the scratch is this thread's.
        let (body, scratch) = unsafe { (get(user.cast::<F>().cast_const())?, buf_of(scratch)?) };
        body(i, scratch)
    })
}
