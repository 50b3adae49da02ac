//! What cases are made of: guarded buffers, test data, and the whole way of a matrix through a scheme.

use crate::call::{
    AuxData, CallFailure, Functions, Matrix, RawJob, RawTensor, State, Values, buffer, const_buffer,
};
use crate::callbacks::{HostContext, HostTable, Isa, LogSink};
use crate::load::SchemeText;
use crate::plan::TensorPlan;
use crate::scheme::local_plan;
use crate::scratch::ALIGNMENT;
use crate::spec::{ParamInfo, ParamKind, ParamValue, ParamValues};
use kbit_abi as abi;
use kbit_types::GgmlType;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

/// Canary bytes on each side of a guarded buffer.
const GUARD: usize = 256;
const GUARD_BYTE: u8 = 0xc5;
/// Buffers of a case are no larger.
const MAX_BYTES: u64 = 1 << 30;

/// Why a case does not pass.
#[derive(Debug)]
pub(super) enum Verdict {
    Fail(String),
    Skip(String),
}

impl From<CallFailure> for Verdict {
    fn from(failure: CallFailure) -> Self {
        Self::Fail(failure_text(&failure))
    }
}

pub(super) type Checked<T> = Result<T, Verdict>;

pub(super) fn fail<T>(message: impl Into<String>) -> Checked<T> {
    Err(Verdict::Fail(message.into()))
}

pub(super) fn failure_text(failure: &CallFailure) -> String {
    match failure {
        CallFailure::Status { status: abi::EPANIC, text } => format!("the plugin panicked: {text}"),
        CallFailure::Status { status, text } => format!("{}: {text}", status_name(*status)),
        CallFailure::FloatEnvironment(change) => {
            format!("the plugin changed the floating-point environment ({change}) and did not put it back")
        }
        CallFailure::Plan(reason) => format!("the plan breaks a rule: {reason}"),
        CallFailure::Overrun(what) => format!("the plugin wrote past its buffer ({what})"),
        CallFailure::Misuse(reason) => format!("the kit made a wrong call: {reason}"),
    }
}

fn status_name(status: abi::Status) -> String {
    let name = match status {
        abi::EPARAM => "KBIT_EPARAM",
        abi::EUNSUPPORTED => "KBIT_EUNSUPPORTED",
        abi::ENUMERIC => "KBIT_ENUMERIC",
        abi::EMISSING => "KBIT_EMISSING",
        abi::ECANCELLED => "KBIT_ECANCELLED",
        abi::EINTERNAL => "KBIT_EINTERNAL",
        abi::EPANIC => "KBIT_EPANIC",
        other => return format!("status {other}, which ABI 1 does not have"),
    };
    name.to_owned()
}

/// A buffer with canaries on both sides, filled with one byte.
pub(super) struct Guarded {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Guarded {
    pub(super) fn new(len: u64, fill: u8) -> Checked<Self> {
        if len > MAX_BYTES {
            return fail(format!("a buffer of {len} bytes for a small matrix is far too large"));
        }
        let len = usize::try_from(len).unwrap_or(0);
        let mut memory = vec![GUARD_BYTE; len + 2 * GUARD + ALIGNMENT];
        let start = GUARD + memory[GUARD..].as_ptr().addr().wrapping_neg() % ALIGNMENT;
        memory[start..start + len].fill(fill);
        Ok(Self { memory, start, len })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }

    pub(super) fn floats_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(self.bytes_mut())
    }

    pub(super) fn check(&self, what: &str) -> Checked<()> {
        let (before, rest) = self.memory.split_at(self.start);
        if before.iter().any(|byte| *byte != GUARD_BYTE) {
            return fail(format!("the plugin wrote before its buffer ({what})"));
        }
        match rest[self.len..].iter().rposition(|byte| *byte != GUARD_BYTE) {
            Some(last) => {
                fail(format!("the plugin wrote past its buffer ({what}: {} bytes too far)", last + 1))
            }
            None => Ok(()),
        }
    }
}

/// A generator of test data; the same numbers everywhere.
pub(super) struct Noise(u64);

impl Noise {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xd1b5_4a32_d192_ed03)
    }

    pub(super) fn bits(&mut self) -> u64 {
        // xorshift64*, Vigna 2016.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// In 0..1.
    #[expect(clippy::cast_precision_loss, reason = "24 bits fit f32")]
    fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 24) as f32
    }

    /// About normal, with deviation 0.02: a sum of twelve uniforms.
    pub(super) fn weight(&mut self) -> f32 {
        let sum: f32 = (0..12).map(|_| self.unit()).sum();
        (sum - 6.0) * 0.02
    }

    pub(super) fn weights(seed: u64, count: usize) -> Vec<f32> {
        let mut noise = Self::new(seed);
        (0..count).map(|_| noise.weight()).collect()
    }
}

/// How a matrix is cut into calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Split {
    Whole,
    Groups,
    Uneven,
    Backwards,
    Threads,
}

/// How encoding is done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub(super) split: Split,
    pub(super) fill: u8,
    pub(super) scratch_fill: u8,
}

pub(super) const PLAIN: Way = Way { split: Split::Whole, fill: 0, scratch_fill: 0 };

/// Heads and parts of a matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) heads: Vec<Vec<u8>>,
    pub(super) parts: Vec<Vec<u8>>,
}

impl Stored {
    /// Where two results differ first.
    pub(super) fn difference(&self, other: &Self, plan: &TensorPlan) -> Option<String> {
        for (kind, ours, theirs) in [("head", &self.heads, &other.heads), ("body", &self.parts, &other.parts)]
        {
            for ((index, one), two) in ours.iter().enumerate().zip(theirs) {
                if let Some(at) = one.iter().zip(two).position(|(a, b)| a != b) {
                    let name = &plan.parts[index].name;
                    return Some(format!(
                        "byte {at} of the {kind} of part {name} is {} once and {} once",
                        one[at], two[at]
                    ));
                }
            }
        }
        (self != other).then(|| "lengths differ".to_owned())
    }
}

/// One scheme under test.
pub(super) struct Scheme {
    pub(super) text: SchemeText,
    pub(super) functions: Functions,
    pub(super) host: &'static HostTable,
    /// Parameter settings, the base first; see [`settings`].
    pub(super) settings: Vec<(String, ParamValues)>,
}

/// A host for one child.
pub(super) fn test_host(isa: Isa, threads: usize, cancelled: bool) -> &'static HostTable {
    let context = HostContext {
        cancelled: Arc::new(AtomicBool::new(cancelled)),
        log: LogSink::Collect(Mutex::default()),
        threads: Some(threads),
    };
    HostTable::leak(context, isa)
}

/// Settings with one changed parameter, at most.
const MAX_SINGLE: usize = 48;
/// Settings with several changed parameters, at most.
const COMBINATIONS: usize = 24;

/// The base setting, then one parameter changed at a time, then random combinations.
pub(super) fn settings(params: &[ParamInfo], given: &ParamValues) -> Vec<(String, ParamValues)> {
    let mut base = ParamValues::new();
    for param in params {
        let value =
            given.get(&param.key).and_then(|value| param.accept(value)).or_else(|| param.default.clone());
        let value = value.unwrap_or_else(|| match &param.kind {
            ParamKind::Bool => ParamValue::Bool(false),
            ParamKind::Int { min, max } => ParamValue::Int(4.clamp(*min, *max)),
            ParamKind::Float { min, max } => ParamValue::Float(1f64.clamp(*min, *max)),
            ParamKind::Str => ParamValue::Str(String::new()),
            ParamKind::Choice { choices } => ParamValue::Str(choices.first().cloned().unwrap_or_default()),
            ParamKind::Numbers => ParamValue::Numbers(Vec::new()),
        });
        base.insert(param.key.clone(), value);
    }
    let extremes = |param: &ParamInfo| -> Vec<ParamValue> {
        match &param.kind {
            ParamKind::Bool => vec![ParamValue::Bool(false), ParamValue::Bool(true)],
            ParamKind::Int { min, max } => vec![ParamValue::Int(*min), ParamValue::Int(*max)],
            ParamKind::Float { min, max } => vec![ParamValue::Float(*min), ParamValue::Float(*max)],
            ParamKind::Choice { choices } => choices.iter().cloned().map(ParamValue::Str).collect(),
            ParamKind::Str | ParamKind::Numbers => Vec::new(),
        }
    };
    let mut all = vec![("defaults".to_owned(), base.clone())];
    for param in params {
        for value in extremes(param) {
            if base.get(&param.key) != Some(&value) {
                let mut changed = base.clone();
                let label = format!("{}={value}", param.key);
                changed.insert(param.key.clone(), value);
                all.push((label, changed));
            }
        }
    }
    all.truncate(MAX_SINGLE);
    // Values that work one at a time may not work together: some random combinations, the same ones every time.
    let mut noise = Noise::new(params.len() as u64);
    for _ in 0..if params.len() > 1 { COMBINATIONS } else { 0 } {
        let mut values = base.clone();
        for param in params {
            let choices = extremes(param);
            let drawn = noise.bits() % (choices.len() as u64 + 1);
            if let Some(value) = choices.into_iter().nth(index(drawn)) {
                values.insert(param.key.clone(), value);
            }
        }
        if all.iter().all(|(_, known)| *known != values) {
            let label =
                values.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
            all.push((label, values));
        }
    }
    all
}

/// Shapes that cases try: rows and columns. A scheme may refuse some, but not all.
pub(super) const SHAPES: [(u64, u64); 9] =
    [(48, 512), (5, 4096), (1, 512), (7, 64), (37, 256), (3, 96), (2, 33), (1, 1), (33, 1)];

pub(super) fn matrix(rows: u64, cols: u64) -> Matrix<'static> {
    Matrix { tensor: "blk.0.ffn_down.weight", rows, cols, slice: 0, slices: 1 }
}

/// An opened setting with a shape that it takes.
pub(super) struct Subject {
    pub(super) label: String,
    pub(super) params: ParamValues,
    pub(super) state: Arc<State>,
    pub(super) matrix: Matrix<'static>,
    pub(super) plan: TensorPlan,
    pub(super) calibration: Arc<Calibration>,
}

/// Made-up auxiliary data, where a plan uses it.
#[derive(Default)]
pub(super) struct Calibration {
    diag: Option<Vec<f32>>,
    hessian: Option<Vec<f32>>,
    producer_std: Option<Vec<f32>>,
}

impl Calibration {
    /// Of correlated inputs: neighbours go together, and some columns are larger than others.
    fn new(plan: &TensorPlan, cols: u64) -> Self {
        let mut noise = Noise::new(cols);
        let sizes: Vec<f32> = (0..cols).map(|_| 0.1 + noise.unit()).collect();
        let n = sizes.len();
        let wanted = |bit: u32| plan.aux_used & bit != 0;
        Self {
            diag: wanted(abi::AUX_DIAG).then(|| sizes.iter().map(|size| size * size).collect()),
            hessian: wanted(abi::AUX_HESSIAN).then(|| {
                let mut hessian = vec![0.0; n * n];
                for (i, row) in hessian.chunks_mut(n).enumerate() {
                    for (j, value) in row.iter_mut().enumerate() {
                        // 2^-|i-j| is positive definite.
                        let distance = i32::try_from(i.abs_diff(j).min(100)).unwrap_or(100);
                        *value = sizes[i] * sizes[j] * 0.5f32.powi(distance);
                    }
                }
                hessian
            }),
            producer_std: wanted(abi::AUX_PRODUCER).then(|| sizes.clone()),
        }
    }
}

impl Scheme {
    pub(super) fn ggml_type(&self) -> Option<GgmlType> {
        self.text.ggml_type.and_then(GgmlType::from_id)
    }

    pub(super) fn open_with(
        &self,
        params: &ParamValues,
        host: &'static HostTable,
    ) -> Result<Arc<State>, CallFailure> {
        let values = Values::new(params, &self.text.params);
        State::with_host(self.functions, host, &values.pointers())
    }

    pub(super) fn open(&self, params: &ParamValues) -> Result<Arc<State>, CallFailure> {
        self.open_with(params, self.host)
    }

    /// The plan, or `None` where the scheme refuses the shape. A refusal must have words.
    pub(super) fn plan(&self, state: &State, matrix: &Matrix<'_>) -> Checked<Option<TensorPlan>> {
        match local_plan(state, matrix, self.ggml_type(), self.functions.optional()) {
            Ok(plan) => Ok(Some(plan)),
            Err(CallFailure::Status { status: abi::EUNSUPPORTED | abi::EPARAM, text }) => {
                if text.ends_with("without a message") {
                    return fail("plan() refuses a shape without saying why");
                }
                Ok(None)
            }
            Err(failure) => Err(failure.into()),
        }
    }

    /// The settings that the plugin opens; those of which it says that they do not go together are left out.
    pub(super) fn opened(&self) -> Checked<Vec<(String, ParamValues, Arc<State>)>> {
        let mut opened = Vec::new();
        for (index, (label, params)) in self.settings.iter().enumerate() {
            match self.open(params) {
                Ok(state) => opened.push((label.clone(), params.clone(), state)),
                Err(CallFailure::Status { status: abi::EPARAM | abi::EUNSUPPORTED, text })
                    if index > 0 && !text.ends_with("without a message") => {}
                Err(failure) => return fail(format!("open() with {label}: {}", failure_text(&failure))),
            }
        }
        Ok(opened)
    }

    /// Every setting with every shape that it takes (or with the first one only).
    pub(super) fn subjects(&self, all_shapes: bool) -> Checked<Vec<Subject>> {
        let mut subjects = Vec::new();
        for (label, params, state) in self.opened()? {
            let before = subjects.len();
            for (rows, cols) in SHAPES {
                let matrix = matrix(rows, cols);
                let Some(plan) = self.plan(&state, &matrix)? else { continue };
                // A Hessian of more columns takes longer to make up than it tells.
                if plan.aux_used & abi::AUX_HESSIAN != 0 && cols > 512 {
                    continue;
                }
                let label = format!("{label}, {rows} x {cols}");
                let calibration = Arc::new(Calibration::new(&plan, cols));
                subjects.push(Subject {
                    label,
                    params: params.clone(),
                    state: Arc::clone(&state),
                    matrix,
                    plan,
                    calibration,
                });
                if !all_shapes {
                    break;
                }
            }
            if subjects.len() == before && before == 0 {
                return fail(format!("with {label} the scheme takes none of the shapes {SHAPES:?}"));
            }
        }
        Ok(subjects)
    }

    /// The base setting with the first shape that it takes.
    pub(super) fn subject(&self) -> Checked<Subject> {
        let mut subjects = self.subjects(false)?;
        if subjects.is_empty() {
            return fail("the scheme opens with no setting");
        }
        Ok(subjects.swap_remove(0))
    }
}

/// Splits `rows` into ranges of whole groups.
fn ranges(plan: &TensorPlan, rows: u64, split: Split) -> Vec<Range<u64>> {
    let group = plan.row_group;
    let groups = plan.groups(rows);
    let range = |first: u64, last: u64| first * group..rows.min(last * group);
    match split {
        Split::Whole => vec![range(0, groups)],
        Split::Groups | Split::Threads => (0..groups).map(|first| range(first, first + 1)).collect(),
        Split::Backwards => (0..groups).rev().map(|first| range(first, first + 1)).collect(),
        Split::Uneven => {
            let (mut ranges, mut first, mut size) = (Vec::new(), 0, 1);
            while first < groups {
                let last = groups.min(first + size);
                ranges.push(range(first, last));
                (first, size) = (last, size % 5 + 2);
            }
            ranges
        }
    }
}

fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

impl Subject {
    /// The same matrix with another opened state.
    pub(super) fn with_state(&self, state: Arc<State>) -> Self {
        let (label, params) = (self.label.clone(), self.params.clone());
        let calibration = Arc::clone(&self.calibration);
        Self { label, params, state, matrix: self.matrix, plan: self.plan.clone(), calibration }
    }

    /// The auxiliary data that the plan uses.
    pub(super) fn aux(&self) -> AuxData<'_> {
        let Calibration { diag, hessian, producer_std } = &*self.calibration;
        AuxData {
            diag: diag.as_deref(),
            hessian: hessian.as_deref().map(|values| (values, self.matrix.cols)),
            producer_std: producer_std.as_deref(),
            n_samples: 1000,
            seed: 7,
        }
    }

    pub(super) fn weights(&self, seed: u64) -> Vec<f32> {
        Noise::weights(seed, index(self.matrix.rows * self.matrix.cols))
    }

    fn slab<'v>(&self, values: &'v [f32], rows: &Range<u64>) -> &'v [f32] {
        &values[index(rows.start * self.matrix.cols)..index(rows.end * self.matrix.cols)]
    }

    pub(super) fn begin(&self, values: &[f32]) -> Result<RawJob, CallFailure> {
        let whole = Some(values).filter(|_| self.plan.whole_matrix);
        self.state.begin(&self.matrix, whole, &self.aux())
    }

    fn scratch(&self, way: Way) -> Checked<Guarded> {
        Guarded::new(self.plan.scratch_bytes, way.scratch_fill)
    }

    /// Encodes, with canaries around every buffer. The outer error is a broken rule, the inner one the scheme's refusal.
    pub(super) fn try_encode(&self, values: &[f32], way: Way) -> Checked<Result<Stored, CallFailure>> {
        let inner = self.encode_inner(values, way);
        match inner {
            Ok(stored) => Ok(Ok(stored)),
            Err(Refusal::Call(failure @ CallFailure::Status { status, .. })) if status != abi::EPANIC => {
                Ok(Err(failure))
            }
            Err(Refusal::Call(failure)) => Err(failure.into()),
            Err(Refusal::Verdict(verdict)) => Err(verdict),
        }
    }

    pub(super) fn encode(&self, values: &[f32], way: Way) -> Checked<Stored> {
        self.try_encode(values, way)?
            .map_err(|failure| Verdict::Fail(format!("{} ({})", failure_text(&failure), self.label)))
    }

    fn encode_inner(&self, values: &[f32], way: Way) -> Result<Stored, Refusal> {
        let rows = self.matrix.rows;
        let mut job = self.begin(values)?;
        let mut heads: Vec<Guarded> = Vec::new();
        for part in &self.plan.parts {
            heads.push(Guarded::new(part.head_bytes, way.fill)?);
        }
        if self.plan.needs_prepare() {
            let mut stats = Guarded::new(self.plan.groups(rows) * self.plan.stat_bytes, way.fill)?;
            if self.plan.stat_bytes > 0 {
                self.observe(&job, values, way, &mut stats)?;
            }
            let mut slices: Vec<&mut [u8]> = heads.iter_mut().map(Guarded::bytes_mut).collect();
            job.prepare(stats.bytes(), &mut slices)?;
            for (head, part) in heads.iter().zip(&self.plan.parts) {
                head.check(&format!("head of part {}", part.name))?;
            }
        }
        let mut parts: Vec<Vec<u8>> = Vec::new();
        for index_of in 0..self.plan.parts.len() {
            parts.push(vec![way.fill; index(self.plan.part_bytes(index_of, rows).unwrap_or(0))]);
        }
        let pieces = ranges(&self.plan, rows, way.split);
        let encode = |range: &Range<u64>| -> Result<Vec<Guarded>, Refusal> {
            let mut buffers = Vec::new();
            for part in 0..self.plan.parts.len() {
                let bytes = self.plan.part_bytes(part, range.end - range.start).unwrap_or(u64::MAX);
                buffers.push(Guarded::new(bytes, way.fill)?);
            }
            let mut scratch = self.scratch(way)?;
            let mut slices: Vec<&mut [u8]> = buffers.iter_mut().map(Guarded::bytes_mut).collect();
            let raw = buffer(scratch.bytes_mut());
            job.encode(&self.matrix, range, self.slab(values, range), &mut slices, raw)?;
            scratch.check("scratch of encode()")?;
            for (bytes, part) in buffers.iter().zip(&self.plan.parts) {
                bytes.check(&format!("part {} in encode(), rows {range:?}", part.name))?;
            }
            Ok(buffers)
        };
        let encoded: Vec<Result<Vec<Guarded>, Refusal>> = if way.split == Split::Threads {
            on_threads(&pieces, &encode)
        } else {
            pieces.iter().map(encode).collect()
        };
        for (range, buffers) in pieces.iter().zip(encoded) {
            for ((bytes, part), whole) in buffers?.iter().zip(&self.plan.parts).zip(&mut parts) {
                let start = index(range.start / self.plan.row_group * part.group_bytes);
                whole[start..start + bytes.bytes().len()].copy_from_slice(bytes.bytes());
            }
        }
        Ok(Stored { heads: heads.iter().map(|head| head.bytes().to_vec()).collect(), parts })
    }

    fn observe(&self, job: &RawJob, values: &[f32], way: Way, stats: &mut Guarded) -> Result<(), Refusal> {
        let pieces = ranges(&self.plan, self.matrix.rows, way.split);
        let observe = |range: &Range<u64>| -> Result<Guarded, Refusal> {
            let groups = self.plan.groups(range.end - range.start);
            let mut records = Guarded::new(groups * self.plan.stat_bytes, way.fill)?;
            let mut scratch = self.scratch(way)?;
            let raw = buffer(scratch.bytes_mut());
            job.observe(&self.matrix, range, self.slab(values, range), records.bytes_mut(), raw)?;
            scratch.check("scratch of observe()")?;
            records.check("statistics of observe()")?;
            Ok(records)
        };
        let observed: Vec<Result<Guarded, Refusal>> = if way.split == Split::Threads {
            on_threads(&pieces, &observe)
        } else {
            pieces.iter().map(observe).collect()
        };
        for (range, records) in pieces.iter().zip(observed) {
            let records = records?;
            let start = index(range.start / self.plan.row_group * self.plan.stat_bytes);
            stats.bytes_mut()[start..start + records.bytes().len()].copy_from_slice(records.bytes());
        }
        Ok(())
    }

    /// Opens stored bytes and runs `read` on the tensor.
    #[expect(unsafe_code, reason = "the plugin keeps the addresses of the bytes")]
    pub(super) fn with_tensor<R>(
        &self,
        stored: &Stored,
        read: impl FnOnce(&RawTensor) -> Result<R, CallFailure>,
    ) -> Result<R, CallFailure> {
        let heads: Vec<abi::CBuf> = stored.heads.iter().map(|bytes| const_buffer(bytes)).collect();
        let parts: Vec<abi::CBuf> = stored.parts.iter().map(|bytes| const_buffer(bytes)).collect();
        // SAFETY: `stored` is borrowed, unchanged, until after the tensor is dropped at the end of this function.
        let tensor = unsafe { self.state.open_tensor(&self.matrix, &heads, &parts) }?;
        read(&tensor)
    }

    /// Decodes all rows in ranges, rows `gap` floats further apart than they are wide, canaries around and between them.
    pub(super) fn try_decode(
        &self,
        stored: &Stored,
        split: Split,
        gap: usize,
        scratch_fill: u8,
    ) -> Checked<Result<Vec<f32>, CallFailure>> {
        const BETWEEN: f32 = -1234.5;
        let cols = index(self.matrix.cols);
        let mut broken = None;
        let decoded = self.with_tensor(stored, |tensor| {
            let mut all = vec![f32::NAN; index(self.matrix.rows) * cols];
            for range in ranges(&self.plan, self.matrix.rows, split) {
                let count = index(range.end - range.start);
                let floats = ((count - 1) * (cols + gap) + cols) as u64;
                let (mut out, mut scratch) = match (
                    Guarded::new(floats * 4, 0),
                    Guarded::new(self.plan.decode_scratch_bytes, scratch_fill),
                ) {
                    (Ok(out), Ok(scratch)) => (out, scratch),
                    (Err(verdict), _) | (_, Err(verdict)) => {
                        broken = Some(verdict);
                        return Ok(all);
                    }
                };
                out.floats_mut().fill(BETWEEN);
                let raw = buffer(scratch.bytes_mut());
                tensor.decode(&range, self.matrix.cols, out.floats_mut(), cols + gap, raw)?;
                if let Err(verdict) = out.check("rows of decode()").and(scratch.check("scratch of decode()"))
                {
                    broken = Some(verdict);
                    return Ok(all);
                }
                for (row, values) in out.floats_mut().chunks(cols + gap).enumerate() {
                    if values[cols..].iter().any(|value| value.to_bits() != BETWEEN.to_bits()) {
                        broken = Some(Verdict::Fail("decode() writes between rows".to_owned()));
                    }
                    let start = (index(range.start) + row) * cols;
                    all[start..start + cols].copy_from_slice(&values[..cols]);
                }
            }
            Ok(all)
        });
        match (broken, decoded) {
            (Some(verdict), _) => Err(verdict),
            (
                None,
                Err(
                    failure @ (CallFailure::Status { status: abi::EPANIC, .. }
                    | CallFailure::FloatEnvironment(_)),
                ),
            ) => Err(failure.into()),
            (None, decoded) => Ok(decoded),
        }
    }

    pub(super) fn decode(&self, stored: &Stored) -> Checked<Vec<f32>> {
        self.try_decode(stored, Split::Whole, 0, 0)?
            .map_err(|failure| Verdict::Fail(format!("decode: {} ({})", failure_text(&failure), self.label)))
    }

    /// Decoded in ranges.
    pub(super) fn decode_as(
        &self,
        stored: &Stored,
        split: Split,
        gap: usize,
        scratch_fill: u8,
    ) -> Checked<Vec<f32>> {
        self.try_decode(stored, split, gap, scratch_fill)?
            .map_err(|failure| Verdict::Fail(format!("decode: {} ({})", failure_text(&failure), self.label)))
    }
}

/// Runs `work` on four threads; results in order.
fn on_threads<R: Send>(pieces: &[Range<u64>], work: &(impl Fn(&Range<u64>) -> R + Sync)) -> Vec<R> {
    let mut results: Vec<Option<R>> = Vec::new();
    results.resize_with(pieces.len(), || None);
    std::thread::scope(|scope| {
        let mut rest = results.as_mut_slice();
        let share = pieces.len().div_ceil(4).max(1);
        for pieces in pieces.chunks(share) {
            let (mine, others) = std::mem::take(&mut rest).split_at_mut(pieces.len());
            rest = others;
            scope.spawn(move || {
                for (slot, piece) in mine.iter_mut().zip(pieces) {
                    *slot = Some(work(piece));
                }
            });
        }
    });
    results.into_iter().flatten().collect()
}

/// Why encoding ended.
enum Refusal {
    Call(CallFailure),
    Verdict(Verdict),
}

impl From<CallFailure> for Refusal {
    fn from(failure: CallFailure) -> Self {
        Self::Call(failure)
    }
}

impl From<Verdict> for Refusal {
    fn from(verdict: Verdict) -> Self {
        Self::Verdict(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_see_writes_on_both_sides() {
        let mut buffer = Guarded::new(10, 1).ok().unwrap();
        assert_eq!(buffer.bytes().as_ptr().addr() % ALIGNMENT, 0);
        assert!(buffer.check("x").is_ok());
        let (start, len) = (buffer.start, buffer.len);
        buffer.memory[start + len + 2] = 0;
        assert!(matches!(buffer.check("x"), Err(Verdict::Fail(text)) if text.contains("3 bytes too far")));
        buffer.memory[start + len + 2] = GUARD_BYTE;
        buffer.memory[start - 1] = 0;
        assert!(matches!(buffer.check("x"), Err(Verdict::Fail(text)) if text.contains("before")));
    }

    #[test]
    fn every_split_covers_all_rows_once() {
        let plan = TensorPlan {
            parts: Vec::new(),
            row_group: 4,
            whole_matrix: false,
            stat_bytes: 0,
            rows_hint: 0,
            scratch_bytes: 0,
            decode_scratch_bytes: 0,
            job_bytes_hint: 0,
            aux_required: 0,
            aux_used: 0,
        };
        for split in [Split::Whole, Split::Groups, Split::Uneven, Split::Backwards, Split::Threads] {
            let mut rows: Vec<u64> = ranges(&plan, 37, split).into_iter().flatten().collect();
            rows.sort_unstable();
            assert_eq!(rows, (0..37).collect::<Vec<_>>(), "{split:?}");
        }
    }

    #[test]
    fn weights_look_normal() {
        let weights = Noise::weights(1, 100_000);
        let mean: f32 = weights.iter().sum::<f32>() / 1e5;
        let variance: f32 = weights.iter().map(|w| w * w).sum::<f32>() / 1e5;
        assert!(mean.abs() < 3e-4 && (variance.sqrt() - 0.02).abs() < 5e-4);
    }
}
