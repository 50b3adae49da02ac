//! Encoding and decoding with an opened scheme, in this process or in a worker.
//!
//! The checks of the ABI's rules that concern buffers stand here once, for both ways: ranges start at multiples of the
//! row group, slabs have the rows of their range, each part has the bytes of its groups.

use crate::call::{
    AuxData, CallFailure, Matrix, Optional, RawJob, RawTensor, Runtime, State, Values, check_strided,
    const_buffer, with_scratch,
};
use crate::error::{HostError, Place};
use crate::plan::TensorPlan;
use crate::registry::Scheme;
use crate::spec::ParamValues;
use crate::worker::{RemoteJob, RemoteScheme, RemoteTensor, Trouble};
use kbit_abi as abi;
use kbit_types::{ActivationKind, Codec, CodecError, FusedDot, MatrixShape};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;

/// Where a plugin runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// In this process: fastest.
    #[default]
    InProcess,
    /// In a worker process: a crash or a hang is one failed call.
    Process,
}

/// One slice of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatrixInfo {
    /// GGUF name.
    pub tensor: String,
    /// Shape of the whole tensor.
    pub shape: MatrixShape,
    /// Which slice.
    pub slice: u64,
}

impl MatrixInfo {
    pub(crate) fn matrix(&self) -> Matrix<'_> {
        Matrix {
            tensor: &self.tensor,
            rows: self.shape.rows,
            cols: self.shape.cols,
            slice: self.slice,
            slices: self.shape.slices,
        }
    }
}

/// Bytes that live as long as their owner, as a piece of a mapped file.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({:?})", self.range)
    }
}

impl Bytes {
    /// `range` of the owner's bytes.
    ///
    /// # Panics
    /// If the range does not lie within the owner's bytes.
    #[must_use]
    pub fn new<T: AsRef<[u8]> + Send + Sync + 'static>(owner: Arc<T>, range: Range<usize>) -> Self {
        let len = (*owner).as_ref().len();
        assert!(range.start <= range.end && range.end <= len, "range {range:?} is not within {len} bytes");
        Self { owner, range }
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        (*self.owner).as_ref().get(self.range.clone()).unwrap_or_default()
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { owner: Arc::new(bytes), range }
    }
}

/// Stored bytes of one slice, in the order of the plan's parts.
#[derive(Clone, Debug)]
pub struct TensorBytes {
    /// Heads; empty where a part has none.
    pub heads: Vec<Bytes>,
    /// Row groups.
    pub parts: Vec<Bytes>,
}

/// One slice, encoded in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Heads, in the order of the plan's parts.
    pub heads: Vec<Vec<u8>>,
    /// Row groups, in the order of the plan's parts.
    pub parts: Vec<Vec<u8>>,
}

enum Backend {
    Local(Arc<State>),
    Remote(Arc<RemoteScheme>),
}

struct OpenInner {
    scheme: Arc<Scheme>,
    params: ParamValues,
    isolation: Isolation,
    backend: Backend,
}

/// A scheme with its parameters, ready to encode and decode. Cheap to clone.
#[derive(Clone)]
pub struct OpenScheme(Arc<OpenInner>);

impl std::fmt::Debug for OpenScheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenScheme")
            .field("scheme", &self.0.scheme.id())
            .field("params", &self.0.params)
            .field("isolation", &self.0.isolation)
            .finish()
    }
}

impl OpenScheme {
    pub(crate) fn open(
        scheme: &Arc<Scheme>,
        params: ParamValues,
        isolation: Isolation,
    ) -> Result<Self, HostError> {
        let backend = match isolation {
            Isolation::InProcess => {
                let values = Values::new(&params, scheme.params());
                State::with_host(scheme.functions, scheme.host, &values.pointers())
                    .map(Backend::Local)
                    .map_err(Trouble::Call)
            }
            Isolation::Process => RemoteScheme::open(scheme, &params).map(Backend::Remote),
        };
        let backend = backend.map_err(|trouble| trouble.at(place(scheme, "", "open")))?;
        Ok(Self(Arc::new(OpenInner { scheme: Arc::clone(scheme), params, isolation, backend })))
    }

    /// The scheme.
    #[must_use]
    pub fn scheme(&self) -> &Arc<Scheme> {
        &self.0.scheme
    }

    /// All parameters, defaults filled in.
    #[must_use]
    pub fn params(&self) -> &ParamValues {
        &self.0.params
    }

    /// Where it runs.
    #[must_use]
    pub fn isolation(&self) -> Isolation {
        self.0.isolation
    }

    fn at(&self, info: &MatrixInfo, call: &'static str) -> impl FnOnce(Trouble) -> HostError {
        let place = place(&self.0.scheme, &info.tensor, call);
        move |trouble| trouble.at(place)
    }

    fn misuse(&self, info: &MatrixInfo, call: &'static str, reason: String) -> HostError {
        HostError::Misuse { place: Box::new(place(&self.0.scheme, &info.tensor, call)), reason }
    }

    /// How a matrix of this shape is stored.
    ///
    /// # Errors
    /// [`HostError::Unsupported`] where the scheme cannot take the shape; a plan that breaks a rule.
    pub fn plan(&self, info: &MatrixInfo) -> Result<TensorPlan, HostError> {
        let shape = info.shape;
        if shape.rows == 0 || shape.cols == 0 || info.slice >= shape.slices || shape.elements().is_none() {
            let reason = format!("slice {} of {shape:?} is not a matrix", info.slice);
            return Err(self.misuse(info, "plan", reason));
        }
        let scheme = &self.0.scheme;
        let matrix = info.matrix();
        let plan = match &self.0.backend {
            Backend::Local(state) => {
                local_plan(state, &matrix, scheme.ggml_type(), scheme.functions.optional())
                    .map_err(Trouble::Call)
            }
            Backend::Remote(remote) => remote.plan(&matrix),
        };
        plan.map_err(self.at(info, "plan"))
    }

    /// Begins to encode one slice. `whole`: `[rows, cols]`, where the plan wants the whole matrix (else it is not
    /// needed).
    ///
    /// # Errors
    /// As [`OpenScheme::plan`]; missing auxiliary data; values that the scheme refuses.
    pub fn begin(
        &self,
        info: &MatrixInfo,
        whole: Option<&[f32]>,
        aux: &AuxData<'_>,
    ) -> Result<Job, HostError> {
        let plan = self.plan(info)?;
        let elements = info.shape.rows.checked_mul(info.shape.cols);
        let whole = whole.filter(|_| plan.whole_matrix);
        if plan.whole_matrix && whole.is_none_or(|whole| Some(whole.len() as u64) != elements) {
            let reason = format!("the plan wants the whole matrix of {elements:?} weights");
            return Err(self.misuse(info, "begin", reason));
        }
        let cols = info.shape.cols;
        let hessian_fits = aux.hessian.is_none_or(|(values, stride)| {
            stride >= cols
                && (cols - 1).checked_mul(stride).and_then(|n| n.checked_add(cols))
                    <= Some(values.len() as u64)
        });
        let vectors_fit =
            [aux.diag, aux.producer_std].into_iter().flatten().all(|values| values.len() as u64 == cols);
        if !hessian_fits || !vectors_fit {
            return Err(self.misuse(info, "begin", format!("auxiliary data does not have {cols} columns")));
        }
        let missing = plan.aux_required & !aux.mask();
        if missing != 0 {
            let names: Vec<&str> = [
                (abi::AUX_DIAG, "mean squared inputs (an importance matrix)"),
                (abi::AUX_HESSIAN, "a Hessian"),
                (abi::AUX_PRODUCER, "the producing unit's deviations"),
            ]
            .into_iter()
            .filter_map(|(bit, name)| (missing & bit != 0).then_some(name))
            .collect();
            let message = format!("it needs {}", names.join(" and "));
            return Err(HostError::Missing {
                place: Box::new(place(&self.0.scheme, &info.tensor, "begin")),
                message,
            });
        }
        let matrix = info.matrix();
        let backend = match &self.0.backend {
            Backend::Local(state) => {
                state.begin(&matrix, whole, aux).map(JobBackend::Local).map_err(Trouble::Call)
            }
            Backend::Remote(remote) => remote.begin(&matrix, whole, aux).map(JobBackend::Remote),
        };
        let backend = backend.map_err(self.at(info, "begin"))?;
        let prepared = !plan.needs_prepare();
        Ok(Job { open: self.clone(), info: info.clone(), plan, backend, prepared })
    }

    /// Opens one encoded slice for reading.
    ///
    /// # Errors
    /// Bytes that do not fit the plan, or that the scheme refuses.
    pub fn open_tensor(&self, info: &MatrixInfo, bytes: TensorBytes) -> Result<PluginCodec, HostError> {
        let plan = self.plan(info)?;
        if bytes.heads.len() != plan.parts.len() || bytes.parts.len() != plan.parts.len() {
            let reason = format!(
                "{} parts and {} heads for {}",
                bytes.parts.len(),
                bytes.heads.len(),
                plan.parts.len()
            );
            return Err(self.misuse(info, "open_tensor", reason));
        }
        for (index, part) in plan.parts.iter().enumerate() {
            let (head, body) =
                (bytes.heads[index].as_slice().len() as u64, bytes.parts[index].as_slice().len() as u64);
            if head != part.head_bytes || Some(body) != plan.part_bytes(index, info.shape.rows) {
                let reason = format!(
                    "part {} has {head} bytes of head and {body} bytes of row groups, and the plan has {} and {:?}; \
                     was the file made with another revision of the scheme?",
                    part.name,
                    part.head_bytes,
                    plan.part_bytes(index, info.shape.rows)
                );
                return Err(self.misuse(info, "open_tensor", reason));
            }
        }
        let backend = match &self.0.backend {
            Backend::Local(state) => {
                LocalTensor::open(state, info, bytes).map(CodecBackend::Local).map_err(Trouble::Call)
            }
            Backend::Remote(remote) => remote.open_tensor(info, &plan, bytes).map(CodecBackend::Remote),
        };
        let backend = backend.map_err(self.at(info, "open_tensor"))?;
        Ok(PluginCodec { open: self.clone(), info: info.clone(), plan, backend })
    }

    /// Encodes one slice that is in memory: observes, prepares and encodes as the plan asks, on the current thread.
    ///
    /// # Errors
    /// As the single calls.
    pub fn encode_matrix(
        &self,
        info: &MatrixInfo,
        values: &[f32],
        aux: &AuxData<'_>,
    ) -> Result<Encoded, HostError> {
        let mut job = self.begin(info, Some(values), aux)?;
        let plan = job.plan().clone();
        let rows = info.shape.rows;
        let too_large = |what: &str| self.misuse(info, "encode", format!("{what} do not fit memory"));
        let mut heads = vec![Vec::new(); plan.parts.len()];
        if plan.needs_prepare() {
            let bytes = plan.groups(rows).checked_mul(plan.stat_bytes);
            let mut stats = zeroed(bytes).ok_or_else(|| too_large("statistics"))?;
            if plan.stat_bytes > 0 {
                job.observe(0..rows, values, &mut stats)?;
            }
            heads = job.prepare(&stats)?;
        }
        let mut parts = (0..plan.parts.len())
            .map(|part| zeroed(plan.part_bytes(part, rows)).ok_or_else(|| too_large("parts")))
            .collect::<Result<Vec<_>, _>>()?;
        let mut slices: Vec<&mut [u8]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
        job.encode(0..rows, values, &mut slices)?;
        Ok(Encoded { heads, parts })
    }
}

/// Zeroed bytes, or `None` where they cannot be had.
pub(crate) fn zeroed(bytes: Option<u64>) -> Option<Vec<u8>> {
    let len = usize::try_from(bytes?).ok()?;
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(len).ok()?;
    buffer.resize(len, 0);
    Some(buffer)
}

pub(crate) fn place(scheme: &Scheme, tensor: &str, call: &'static str) -> Place {
    Place {
        plugin: scheme.plugin.file_name(),
        scheme: scheme.id().to_owned(),
        tensor: tensor.to_owned(),
        call,
    }
}

/// Asks for a plan and checks it.
#[expect(unsafe_code, reason = "reads the plan's strings")]
pub(crate) fn local_plan(
    state: &State,
    matrix: &Matrix<'_>,
    ggml_type: Option<kbit_types::GgmlType>,
    optional: Optional,
) -> Result<TensorPlan, CallFailure> {
    let raw = state.plan(matrix)?;
    // SAFETY: rule R2: a plugin's strings live until the process ends.
    unsafe { TensorPlan::checked(&raw, matrix, ggml_type, optional) }.map_err(CallFailure::Plan)
}

enum JobBackend {
    Local(RawJob),
    Remote(RemoteJob),
}

/// One slice being encoded. `observe` and `encode` may be called from many threads at once.
pub struct Job {
    open: OpenScheme,
    info: MatrixInfo,
    plan: TensorPlan,
    backend: JobBackend,
    prepared: bool,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("open", &self.open).field("matrix", &self.info).finish_non_exhaustive()
    }
}

impl Job {
    /// How the matrix is stored.
    #[must_use]
    pub fn plan(&self) -> &TensorPlan {
        &self.plan
    }

    fn check_rows(&self, call: &'static str, rows: &Range<u64>, slab: &[f32]) -> Result<(), HostError> {
        let group = self.plan.row_group;
        let whole_groups = rows.end == self.info.shape.rows || rows.end.is_multiple_of(group);
        if rows.start >= rows.end
            || rows.end > self.info.shape.rows
            || !rows.start.is_multiple_of(group)
            || !whole_groups
        {
            let reason = format!("rows {rows:?} of {} are not whole groups of {group}", self.info.shape.rows);
            return Err(self.open.misuse(&self.info, call, reason));
        }
        if (rows.end - rows.start).checked_mul(self.info.shape.cols) != Some(slab.len() as u64) {
            let reason =
                format!("{} weights for rows {rows:?} of {} columns", slab.len(), self.info.shape.cols);
            return Err(self.open.misuse(&self.info, call, reason));
        }
        Ok(())
    }

    /// Gathers statistics of rows `rows` (whole row groups). `slab`: `[rows, cols]`; `stats`: `stat_bytes` a group.
    ///
    /// # Errors
    /// Buffers of the wrong size, or values that the scheme refuses.
    pub fn observe(&self, rows: Range<u64>, slab: &[f32], stats: &mut [u8]) -> Result<(), HostError> {
        self.check_rows("observe", &rows, slab)?;
        if self.plan.groups(rows.end - rows.start).checked_mul(self.plan.stat_bytes)
            != Some(stats.len() as u64)
        {
            let reason = format!("{} bytes of statistics for rows {rows:?}", stats.len());
            return Err(self.open.misuse(&self.info, "observe", reason));
        }
        if self.plan.stat_bytes == 0 {
            return Ok(());
        }
        let matrix = self.info.matrix();
        match &self.backend {
            JobBackend::Local(job) => with_scratch(self.plan.scratch_bytes, |scratch| {
                job.observe(&matrix, &rows, slab, stats, scratch)
            })
            .map_err(Trouble::Call),
            JobBackend::Remote(job) => job.observe(&rows, slab, stats),
        }
        .map_err(self.open.at(&self.info, "observe"))
    }

    /// Ends the statistics and gives the heads, in the order of the plan's parts. `stats`: `stat_bytes` for every group
    /// of the slice.
    ///
    /// # Errors
    /// Statistics of the wrong size, or that the scheme refuses.
    pub fn prepare(&mut self, stats: &[u8]) -> Result<Vec<Vec<u8>>, HostError> {
        let expected = self.plan.groups(self.info.shape.rows).checked_mul(self.plan.stat_bytes);
        if expected != Some(stats.len() as u64) {
            let reason = format!("{} bytes of statistics, and the slice has {expected:?}", stats.len());
            return Err(self.open.misuse(&self.info, "prepare", reason));
        }
        let mut heads = Vec::with_capacity(self.plan.parts.len());
        for part in &self.plan.parts {
            let Some(head) = zeroed(Some(part.head_bytes)) else {
                let reason = format!("a head of {} bytes does not fit memory", part.head_bytes);
                return Err(self.open.misuse(&self.info, "prepare", reason));
            };
            heads.push(head);
        }
        if self.plan.needs_prepare() {
            let mut slices: Vec<&mut [u8]> = heads.iter_mut().map(Vec::as_mut_slice).collect();
            match &mut self.backend {
                JobBackend::Local(job) => job.prepare(stats, &mut slices).map_err(Trouble::Call),
                JobBackend::Remote(job) => job.prepare(stats, &mut slices),
            }
            .map_err(self.open.at(&self.info, "prepare"))?;
        }
        self.prepared = true;
        Ok(heads)
    }

    /// Encodes rows `rows` (whole row groups). `slab`: `[rows, cols]`; `parts[i]`: exactly the bytes of those groups of
    /// part `i`.
    ///
    /// # Errors
    /// Buffers of the wrong size, or values that the scheme refuses.
    pub fn encode(&self, rows: Range<u64>, slab: &[f32], parts: &mut [&mut [u8]]) -> Result<(), HostError> {
        self.check_rows("encode", &rows, slab)?;
        if !self.prepared {
            let reason = "prepare() comes first for this plan".to_owned();
            return Err(self.open.misuse(&self.info, "encode", reason));
        }
        let fits = parts.len() == self.plan.parts.len()
            && parts.iter().enumerate().all(|(index, bytes)| {
                self.plan.part_bytes(index, rows.end - rows.start) == Some(bytes.len() as u64)
            });
        if !fits {
            let reason = format!("the parts do not have the bytes of rows {rows:?}");
            return Err(self.open.misuse(&self.info, "encode", reason));
        }
        let matrix = self.info.matrix();
        match &self.backend {
            JobBackend::Local(job) => with_scratch(self.plan.scratch_bytes, |scratch| {
                job.encode(&matrix, &rows, slab, parts, scratch)
            })
            .map_err(Trouble::Call),
            JobBackend::Remote(job) => job.encode(&rows, slab, parts),
        }
        .map_err(self.open.at(&self.info, "encode"))
    }
}

/// A tensor of this process with the bytes that it reads.
struct LocalTensor {
    // Released before the bytes.
    tensor: RawTensor,
    runtime: Option<Fused>,
    _bytes: TensorBytes,
}

/// Fused kernels, with what is asked for once.
struct Fused {
    runtime: Runtime,
    kind: ActivationKind,
    key: u64,
    bytes: usize,
}

impl LocalTensor {
    #[expect(unsafe_code, reason = "the plugin keeps the addresses of the bytes")]
    fn open(state: &Arc<State>, info: &MatrixInfo, bytes: TensorBytes) -> Result<Self, CallFailure> {
        let buffers =
            |list: &[Bytes]| list.iter().map(|bytes| const_buffer(bytes.as_slice())).collect::<Vec<_>>();
        let (heads, parts) = (buffers(&bytes.heads), buffers(&bytes.parts));
        // SAFETY: the owners of the bytes are held below for longer than the tensor; what a shared owner lends through
        // `&self` stays as long as the owner itself.
        let tensor = unsafe { state.open_tensor(&info.matrix(), &heads, &parts) }?;
        let runtime = match state.runtime()? {
            None => None,
            Some(runtime) => {
                let kind = match runtime.act_kind {
                    abi::ACT_F32 => ActivationKind::F32,
                    abi::ACT_BF16 => ActivationKind::Bf16,
                    abi::ACT_INT8 => ActivationKind::Int8,
                    other => {
                        return Err(CallFailure::Plan(format!("kbit.runtime/1 has the arithmetic {other}")));
                    }
                };
                tracing::debug!(tensor = info.tensor, isa = runtime.isa, "fused kernel");
                let bytes = usize::try_from(runtime.act_bytes(&tensor))
                    .map_err(|_| CallFailure::Plan("act_bytes() does not fit memory".to_owned()))?;
                Some(Fused { kind, key: runtime.act_key(&tensor), bytes, runtime })
            }
        };
        Ok(Self { tensor, runtime, _bytes: bytes })
    }
}

enum CodecBackend {
    Local(LocalTensor),
    Remote(RemoteTensor),
}

/// An encoded slice behind the engine's trait.
pub struct PluginCodec {
    open: OpenScheme,
    info: MatrixInfo,
    plan: TensorPlan,
    backend: CodecBackend,
}

impl std::fmt::Debug for PluginCodec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PluginCodec")
            .field("open", &self.open)
            .field("matrix", &self.info)
            .finish_non_exhaustive()
    }
}

impl PluginCodec {
    /// How the matrix is stored.
    #[must_use]
    pub fn plan(&self) -> &TensorPlan {
        &self.plan
    }

    /// The error names tensor and scheme itself, so the place needs only plugin and call.
    fn error(&self, call: &'static str) -> impl FnOnce(Trouble) -> CodecError {
        let scheme = &self.open.0.scheme;
        let place =
            Place { plugin: scheme.plugin.file_name(), scheme: String::new(), tensor: String::new(), call };
        let (tensor, scheme) = (self.info.tensor.clone(), scheme.id().to_owned());
        move |trouble| CodecError::Scheme { tensor, scheme, message: trouble.at(place).to_string() }
    }

    /// Signed 8-bit weights `q`: `[rows, cols]` with `scale` and `min`: `[rows, ceil(cols / block)]`, so that a weight is
    /// about `q * scale + min`. False if the scheme has no such kernel.
    ///
    /// # Errors
    /// When the scheme refuses.
    ///
    /// # Panics
    /// If a buffer is too short.
    pub fn decode_i8(
        &self,
        rows: Range<u64>,
        q: &mut [i8],
        scale: &mut [f32],
        min: &mut [f32],
        block: u32,
    ) -> Result<bool, CodecError> {
        let CodecBackend::Local(LocalTensor { tensor, runtime: Some(fused), .. }) = &self.backend else {
            return Ok(false);
        };
        let cols = self.info.shape.cols;
        let mut there = true;
        with_scratch(self.plan.decode_scratch_bytes, |scratch| {
            let done = fused.runtime.decode_i8(tensor, &rows, cols, q, scale, min, block, scratch);
            there = done.is_some();
            done.unwrap_or(Ok(()))
        })
        .map_err(Trouble::Call)
        .map_err(self.error("decode_i8"))?;
        Ok(there)
    }

    /// The largest end of whole groups up to `end`; the last row ends its group.
    fn whole_groups(&self, end: u64) -> u64 {
        if end == self.info.shape.rows { end } else { end - end % self.plan.row_group }
    }

    /// Decodes a range of whole groups.
    fn decode_groups(&self, rows: &Range<u64>, out: &mut [f32], out_stride: usize) -> Result<(), CodecError> {
        let cols = self.info.shape.cols;
        match &self.backend {
            CodecBackend::Local(local) => with_scratch(self.plan.decode_scratch_bytes, |scratch| {
                local.tensor.decode(rows, cols, out, out_stride, scratch)
            })
            .map_err(Trouble::Call),
            CodecBackend::Remote(remote) => remote.decode(rows, cols, out, out_stride),
        }
        .map_err(self.error("decode"))
    }

    fn assert_rows(&self, rows: &Range<u64>) {
        assert!(
            rows.start <= rows.end
                && rows.end <= self.info.shape.rows
                && (rows.start == rows.end || rows.start.is_multiple_of(self.plan.row_group)),
            "rows {rows:?} of {} do not start at a group of {}",
            self.info.shape.rows,
            self.plan.row_group
        );
    }
}

impl Codec for PluginCodec {
    fn shape(&self) -> MatrixShape {
        MatrixShape { slices: 1, ..self.info.shape }
    }

    fn row_group(&self) -> u64 {
        self.plan.row_group
    }

    fn decode(&self, rows: Range<u64>, out: &mut [f32], out_stride: usize) -> Result<(), CodecError> {
        self.assert_rows(&rows);
        if rows.start == rows.end {
            return Ok(());
        }
        check_strided(&rows, self.info.shape.cols, out.len(), out_stride);
        // Rule R9 speaks of whole groups, so a range that ends within one has its last group decoded aside.
        let whole = rows.start..self.whole_groups(rows.end);
        if whole.start < whole.end {
            self.decode_groups(&whole, out, out_stride)?;
        }
        if whole.end < rows.end {
            let group = whole.end..self.info.shape.rows.min(whole.end + self.plan.row_group);
            let cols = index(self.info.shape.cols);
            let mut aside = vec![0.0; index(group.end - group.start) * cols];
            self.decode_groups(&group, &mut aside, cols)?;
            let first = index(whole.end - rows.start);
            for (i, row) in aside.chunks_exact(cols).take(index(rows.end - whole.end)).enumerate() {
                out[(first + i) * out_stride..][..cols].copy_from_slice(row);
            }
        }
        Ok(())
    }

    fn fused(&self) -> Option<&dyn FusedDot> {
        match &self.backend {
            CodecBackend::Local(LocalTensor { runtime: Some(_), .. }) => Some(self),
            _ => None,
        }
    }
}

/// Used only through [`Codec::fused`], which gives it out where there is a runtime.
impl FusedDot for PluginCodec {
    fn activation(&self) -> ActivationKind {
        self.fused_parts().map_or(ActivationKind::F32, |(_, fused)| fused.kind)
    }

    fn activation_key(&self) -> u64 {
        self.fused_parts().map_or(0, |(_, fused)| fused.key)
    }

    fn activation_bytes(&self) -> usize {
        self.fused_parts().map_or(0, |(_, fused)| fused.bytes)
    }

    fn pack(&self, x: &[f32], packed: &mut [u8]) -> Result<(), CodecError> {
        let Some((tensor, fused)) = self.fused_parts() else { return Err(self.no_runtime()) };
        assert!(
            x.len() as u64 == self.info.shape.cols && packed.len() >= fused.bytes,
            "an activation of {} floats into {} bytes",
            x.len(),
            packed.len()
        );
        with_scratch(self.plan.decode_scratch_bytes, |scratch| {
            fused.runtime.act_pack(tensor, x, packed, scratch)
        })
        .map_err(Trouble::Call)
        .map_err(self.error("act_pack"))
    }

    fn dot(
        &self,
        rows: Range<u64>,
        packed: &[u8],
        count: usize,
        y: &mut [f32],
        y_stride: usize,
    ) -> Result<(), CodecError> {
        let Some((tensor, fused)) = self.fused_parts() else { return Err(self.no_runtime()) };
        self.assert_rows(&rows);
        let run = |rows: &Range<u64>, y: &mut [f32], y_stride: usize| {
            with_scratch(self.plan.decode_scratch_bytes, |scratch| {
                fused.runtime.dot(tensor, rows, packed, count, fused.bytes, y, y_stride, scratch)
            })
            .map_err(Trouble::Call)
            .map_err(self.error("dot"))
        };
        if self.whole_groups(rows.end) == rows.end {
            return run(&rows, y, y_stride);
        }
        // As in `decode`: the last group is multiplied whole.
        let wider = rows.start..self.info.shape.rows.min(rows.end.next_multiple_of(self.plan.row_group));
        let (width, wanted) = (index(wider.end - wider.start), index(rows.end - rows.start));
        let mut aside = vec![0.0; width * count];
        run(&wider, &mut aside, width)?;
        for (from, to) in aside.chunks_exact(width.max(1)).zip(y.chunks_mut(y_stride.max(1))) {
            to[..wanted].copy_from_slice(&from[..wanted]);
        }
        Ok(())
    }
}

fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

impl PluginCodec {
    fn fused_parts(&self) -> Option<(&RawTensor, &Fused)> {
        match &self.backend {
            CodecBackend::Local(local) => Some((&local.tensor, local.runtime.as_ref()?)),
            CodecBackend::Remote(_) => None,
        }
    }

    fn no_runtime(&self) -> CodecError {
        CodecError::Scheme {
            tensor: self.info.tensor.clone(),
            scheme: self.open.0.scheme.id().to_owned(),
            message: "the scheme has no fused kernel".to_owned(),
        }
    }
}
