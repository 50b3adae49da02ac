//! The C functions of a scheme: each checks what it is given, calls the safe trait, and turns errors and panics into a
//! status and a text.
//!
//! Invariants: a `kbit_state` is a boxed [`State`], a `kbit_job` a boxed [`Job`], a `kbit_tensor` a boxed [`Tensor`],
//! all of the scheme whose table the function stands in; the host passes back what it was given (rules R2 and R4).
#![expect(unsafe_code, reason = "the C boundary")]

use crate::describe::{self, PluginInfo};
use crate::params::{Given, Params};
use crate::scheme::{Aux, Error, Host, Plan, Runtime, Scheme, Shape, Slab, SlabMut};
use kbit_abi as abi;
use std::any::Any;
use std::mem::{offset_of, size_of};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

/// An opened scheme.
pub(crate) struct State<S> {
    scheme: S,
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
            // SAFETY: `err` is the host's, valid or null.
            unsafe { write_text(err, &error.message) };
            error.status as abi::Status
        }
        Err(panic) => {
            // SAFETY: as above.
            unsafe { write_text(err, panic_text(&*panic)) };
            abi::EPANIC
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic without a message")
}

/// Frees without letting a panic out.
fn guard_drop(body: impl FnOnce()) {
    // A destructor that panics leaks what it held: there is nobody to tell.
    let _ = catch_unwind(AssertUnwindSafe(body));
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
    if text.ptr.is_null() || text.len == 0 {
        return Ok("");
    }
    // SAFETY: the caller's contract.
    let bytes = unsafe { std::slice::from_raw_parts(text.ptr.cast::<u8>(), text.len) };
    std::str::from_utf8(bytes).map_err(|_| Error::param("a text from the host is not UTF-8"))
}

/// # Safety
/// `ptr` is null with `len` 0, or points at `len` values that live for `'a`.
unsafe fn slice_of<'a, T>(ptr: *const T, len: u64) -> Result<&'a [T], Error> {
    let len = usize::try_from(len).map_err(|_| Error::internal("a length from the host exceeds memory"))?;
    if len == 0 {
        return Ok(&[]);
    }
    if ptr.is_null() {
        return Err(Error::internal("a null pointer from the host"));
    }
    // SAFETY: the caller's contract.
    Ok(unsafe { std::slice::from_raw_parts(ptr, len) })
}

/// # Safety
/// As [`slice_of`], and nothing else refers to the memory.
unsafe fn buf_of<'a>(buf: abi::Buf) -> Result<&'a mut [u8], Error> {
    let len =
        usize::try_from(buf.bytes).map_err(|_| Error::internal("a length from the host exceeds memory"))?;
    if len == 0 {
        return Ok(&mut []);
    }
    if buf.ptr.is_null() {
        return Err(Error::internal("a null buffer from the host"));
    }
    // SAFETY: the caller's contract.
    Ok(unsafe { std::slice::from_raw_parts_mut(buf.ptr.cast::<u8>(), len) })
}

/// # Safety
/// `ptr` is null or points to a `T` that lives for `'a`.
unsafe fn get<'a, T>(ptr: *const T) -> Result<&'a T, Error> {
    // SAFETY: the caller's contract.
    unsafe { ptr.as_ref() }.ok_or_else(|| Error::internal("a null pointer from the host"))
}

/// # Safety
/// `matrix` is null or valid for the call.
unsafe fn shape_of(matrix: *const abi::Matrix) -> Result<OwnedShape, Error> {
    // SAFETY: the caller's contract.
    let matrix = unsafe { get(matrix)? };
    if matrix.size < offset_of!(abi::Matrix, row_stride) + size_of::<u64>() {
        return Err(Error::internal("the host's kbit_matrix is shorter than ABI 1"));
    }
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

/// The values of `matrix`, `rows` of them from row `first`; `None` where it is a shape only.
///
/// # Safety
/// `matrix` is valid and its data live for `'a`.
unsafe fn slab_of<'a>(matrix: *const abi::Matrix, first: u64, rows: u64) -> Result<Option<Slab<'a>>, Error> {
    // SAFETY: the caller's contract.
    let matrix = unsafe { get(matrix)? };
    if matrix.data.is_null() {
        return Ok(None);
    }
    let too_large = || Error::internal("a slab from the host exceeds memory");
    let span =
        rows.saturating_sub(1).checked_mul(matrix.row_stride).and_then(|span| span.checked_add(matrix.cols));
    let span = span.ok_or_else(too_large)?;
    if matrix.row_stride < matrix.cols && rows > 1 {
        return Err(Error::internal("a slab from the host has a stride shorter than its rows"));
    }
    // SAFETY: the caller's contract: rows lie `row_stride` floats apart.
    let data = unsafe { slice_of(matrix.data, span)? };
    let size = |value: u64| usize::try_from(value).map_err(|_| too_large());
    Ok(Some(Slab::new(data, first, size(rows)?, size(matrix.cols)?, size(matrix.row_stride)?)))
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
        // SAFETY: the caller's contract; `size` and `abi_minor` come first and never move.
        let host = unsafe { get(host)? };
        if host.size < offset_of!(abi::Host, isa_limit) + size_of::<u32>() {
            return Err(Error::internal("the host's table is shorter than ABI 1"));
        }
        found = *descriptor.get_or_init(|| {
            SELF_TESTS.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend(info.self_test);
            describe::plugin(
                info,
                info.self_test.map(|_| self_test as unsafe extern "C" fn(*mut abi::Err) -> abi::Status),
            )
        });
        Ok(())
    });
    found
}

/// The self-tests of the plugins in this library: one, but for binaries that link several plugins.
static SELF_TESTS: std::sync::Mutex<Vec<SelfTest>> = std::sync::Mutex::new(Vec::new());

type SelfTest = fn() -> Result<(), Error>;

unsafe extern "C" fn self_test(err: *mut abi::Err) -> abi::Status {
    guard(err, || {
        let tests = SELF_TESTS.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        tests.iter().try_for_each(|test| test())
    })
}

/// The fields of the host's table that it knows; later ones are zero.
///
/// # Safety
/// `host` is null or valid for the call.
unsafe fn host_of(host: *const abi::Host) -> Option<abi::Host> {
    // SAFETY: the caller's contract; `size` comes first.
    let size = unsafe { host.as_ref() }?.size.min(size_of::<abi::Host>());
    let mut copy = std::mem::MaybeUninit::<abi::Host>::zeroed();
    // SAFETY: `size` bytes are there; an all-zero table is valid (null functions are `None`).
    unsafe {
        std::ptr::copy_nonoverlapping(host.cast::<u8>(), copy.as_mut_ptr().cast::<u8>(), size);
        Some(copy.assume_init())
    }
}

pub(crate) unsafe extern "C" fn open<S: Scheme>(
    host: *const abi::Host,
    values: *const *const abi::Value,
    n: usize,
    out: *mut *mut abi::State,
    err: *mut abi::Err,
) -> abi::Status {
    guard(err, || {
        let mut given = Vec::new();
        // SAFETY: the host passes `n` pointers to values that live for the call.
        for value in unsafe { slice_of(values, n as u64)? } {
            // SAFETY: as above.
            let value = unsafe { get(*value)? };
            if value.size < offset_of!(abi::Value, n_numbers) + size_of::<usize>() {
                return Err(Error::internal("the host's kbit_value is shorter than ABI 1"));
            }
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
        // SAFETY: the host's table is valid.
        let host = Host::from_raw(unsafe { host_of(host) });
        let state = Box::new(State { scheme: S::open(&host, &params)? });
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
        // SAFETY: the state is ours; the shape lives for the call.
        let (state, shape) = unsafe { (get(state.cast::<State<S>>())?, shape_of(shape)?) };
        let plan = checked_plan(&state.scheme, &shape)?;
        // SAFETY: `size` comes first and was set by the host.
        let size = unsafe { get(out)? }.size;
        if size < offset_of!(abi::Plan, job_bytes_hint) + size_of::<u64>() {
            return Err(Error::internal("the host's kbit_plan is shorter than ABI 1"));
        }
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
        // SAFETY: the host's struct is at least as long as ours (checked above).
        unsafe { *out = filled };
        Ok(())
    })
}

/// # Safety
/// `aux` is null or valid, with its arrays, for the call.
unsafe fn aux_of<'a>(aux: *const abi::Aux, cols: u64) -> Result<Aux<'a>, Error> {
    // SAFETY: the caller's contract.
    let Some(aux) = (unsafe { aux.as_ref() }) else { return Ok(Aux::default()) };
    if aux.size < offset_of!(abi::Aux, seed) + size_of::<u64>() {
        return Err(Error::internal("the host's kbit_aux is shorter than ABI 1"));
    }
    // SAFETY: the caller's contract: arrays of `cols` floats, the Hessian of `cols` rows.
    unsafe {
        let array =
            |ptr: *const f32, len: u64| if ptr.is_null() { Ok(None) } else { slice_of(ptr, len).map(Some) };
        let hessian_len = cols
            .checked_mul(aux.hessian_ld)
            .ok_or_else(|| Error::internal("a Hessian that exceeds memory"))?;
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
        let (state, shape) = unsafe { (get(state_ptr)?, shape_of(matrix)?) };
        let plan = checked_plan(&state.scheme, &shape)?;
        // SAFETY: as above.
        let (data, aux) = unsafe { (slab_of(matrix, 0, shape.rows)?, aux_of(aux, shape.cols)?) };
        if plan.whole_matrix && data.is_none() {
            return Err(Error::missing("the scheme needs the whole matrix"));
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
            let slab = slab_of(slab, rows.first, rows.count)?
                .ok_or_else(|| Error::internal("a slab without data"))?;
            scheme.observe(&job.job, range, &slab, buf_of(stats)?, buf_of(scratch)?)
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
            let stats = slice_of(all_stats.ptr.cast::<u8>(), all_stats.bytes)?;
            let mut buffers = Vec::with_capacity(job.plan.parts.len());
            for (index, part) in job.plan.parts.iter().enumerate() {
                let buffer = if part.head_bytes == 0 {
                    &mut [][..]
                } else {
                    buf_of(*get(heads.wrapping_add(index))?)?
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
            let slab = slab_of(slab, rows.first, rows.count)?
                .ok_or_else(|| Error::internal("a slab without data"))?;
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
            scheme.encode(&job.job, range, &slab, &mut buffers, buf_of(scratch)?)
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
            let (state, shape) = (get(state_ptr)?, shape_of(shape)?);
            let plan = checked_plan(&state.scheme, &shape)?;
            let groups = shape.rows.div_ceil(u64::from(plan.row_group));
            let parts = slice_of(parts, plan.parts.len() as u64)?.to_vec();
            let mut head_bytes: Vec<&[u8]> = Vec::with_capacity(plan.parts.len());
            for (index, part) in plan.parts.iter().enumerate() {
                if groups.checked_mul(part.group_bytes) != Some(parts[index].bytes) {
                    return Err(Error::internal(format!(
                        "part {} has the wrong size; the file is damaged",
                        part.name
                    )));
                }
                let head = if part.head_bytes == 0 {
                    &[][..]
                } else {
                    let head = get(heads.wrapping_add(index))?;
                    slice_of(head.ptr.cast::<u8>(), head.bytes)?
                };
                if head.len() as u64 != part.head_bytes {
                    return Err(Error::internal(format!(
                        "part {} has a head of the wrong size; the file is damaged",
                        part.name
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

impl<S: Scheme> Tensor<S> {
    /// # Safety
    /// The parts' bytes still live.
    unsafe fn bodies(&self) -> Result<Vec<&[u8]>, Error> {
        // SAFETY: the caller's contract.
        self.parts.iter().map(|part| unsafe { slice_of(part.ptr.cast::<u8>(), part.bytes) }).collect()
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
            let tensor = get(tensor.cast::<Tensor<S>>())?;
            let scheme = &get(tensor.state)?.scheme;
            let range = range(rows, &tensor.shape, &tensor.plan)?;
            let too_large = |_| Error::internal("a range from the host exceeds memory");
            let (count, stride) = (
                usize::try_from(rows.count).map_err(too_large)?,
                usize::try_from(out_stride).map_err(too_large)?,
            );
            let cols = usize::try_from(tensor.shape.cols).map_err(too_large)?;
            if stride < cols || out.is_null() {
                return Err(Error::internal("an output from the host that is too narrow"));
            }
            let data = std::slice::from_raw_parts_mut(out, (count - 1) * stride + cols);
            let mut slab = SlabMut::new(data, count, cols, stride);
            scheme.decode(
                &tensor.tensor,
                &tensor.shape.get(),
                &tensor.bodies()?,
                range,
                &mut slab,
                buf_of(scratch)?,
            )
        }
    })
}

pub(crate) unsafe extern "C" fn extension<S: Scheme>(
    state: *const abi::State,
    id: abi::Str,
) -> *const std::ffi::c_void {
    let _ = state;
    // SAFETY: the text lives for the call.
    match (S::RUNTIME, unsafe { str_of(id) }) {
        (Some(table), Ok(abi::EXT_RUNTIME)) => std::ptr::from_ref(table).cast(),
        _ => std::ptr::null(),
    }
}

/// The table of the runtime extension of `S`; `activation` is one of the ABI's `ACT_` constants.
#[must_use]
pub const fn runtime_table<S: Runtime>(activation: u32, kernel: &'static str) -> abi::ExtRuntime {
    abi::ExtRuntime {
        size: size_of::<abi::ExtRuntime>(),
        isa: abi::Str::new(kernel),
        act_kind: activation,
        act_key: Some(act_key::<S>),
        act_bytes: Some(act_bytes::<S>),
        act_pack: Some(act_pack::<S>),
        dot: Some(dot::<S>),
        decode_i8: None,
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
    act: *mut std::ffi::c_void,
    scratch: abi::Buf,
    err: *mut abi::Err,
) -> abi::Status {
    guard(err, || {
        // SAFETY: the tensor is ours; `x` has `cols` floats and `act` the bytes that `act_bytes` told.
        unsafe {
            let (scheme, tensor) = tensor_of::<S>(tensor)?;
            let info = scheme.runtime(&tensor.tensor, &tensor.shape.get());
            let x = slice_of(x, tensor.shape.cols)?;
            let packed = buf_of(abi::Buf { ptr: act, bytes: info.activation_bytes })?;
            scheme.pack(&tensor.tensor, x, packed, buf_of(scratch)?)
        }
    })
}

unsafe extern "C" fn dot<S: Runtime>(
    tensor: *const abi::Tensor,
    rows: abi::Rows,
    act: *const std::ffi::c_void,
    n_act: u64,
    act_stride: u64,
    y: *mut f32,
    y_stride: u64,
    scratch: abi::Buf,
    err: *mut abi::Err,
) -> abi::Status {
    guard(err, || {
        // SAFETY: the tensor is ours; activations lie `act_stride` bytes and outputs `y_stride` floats apart.
        unsafe {
            let (scheme, tensor) = tensor_of::<S>(tensor)?;
            let range = range(rows, &tensor.shape, &tensor.plan)?;
            let shape = tensor.shape.get();
            let bytes = scheme.runtime(&tensor.tensor, &shape).activation_bytes;
            let bodies = tensor.bodies()?;
            let scratch = buf_of(scratch)?;
            let too_large = || Error::internal("an activation from the host exceeds memory");
            for index in 0..n_act {
                let offset = index
                    .checked_mul(act_stride)
                    .and_then(|offset| usize::try_from(offset).ok())
                    .ok_or_else(too_large)?;
                let out = index
                    .checked_mul(y_stride)
                    .and_then(|out| usize::try_from(out).ok())
                    .ok_or_else(too_large)?;
                let packed = slice_of(act.cast::<u8>().add(offset), bytes)?;
                let count = usize::try_from(rows.count).map_err(|_| too_large())?;
                let y = std::slice::from_raw_parts_mut(y.add(out), count);
                scheme.dot(&tensor.tensor, &shape, &bodies, range.clone(), packed, y, scratch)?;
            }
            Ok(())
        }
    })
}
