//! How a scheme stores a matrix: the checked form of `kbit_plan`.

use crate::call::{Matrix, Optional};
use crate::callbacks::text_of;
use kbit_abi as abi;
use kbit_types::{GgmlType, MatrixShape};
use serde::{Deserialize, Serialize};

/// Parts that a plan has at most.
pub const MAX_PARTS: usize = 8;
/// Scratch memory and records of statistics beyond this are refused.
const MAX_SCRATCH_BYTES: u64 = 1 << 38;

/// Element type of a stored part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the documentation")]
pub enum PartType {
    U8,
    I8,
    I16,
    I32,
    F16,
    Bf16,
    F32,
}

impl PartType {
    /// Bytes of one element.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::I16 | Self::F16 | Self::Bf16 => 2,
            Self::I32 | Self::F32 => 4,
        }
    }

    fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            abi::DTYPE_U8 => Self::U8,
            abi::DTYPE_I8 => Self::I8,
            abi::DTYPE_I16 => Self::I16,
            abi::DTYPE_I32 => Self::I32,
            abi::DTYPE_F16 => Self::F16,
            abi::DTYPE_BF16 => Self::Bf16,
            abi::DTYPE_F32 => Self::F32,
            _ => return None,
        })
    }
}

/// One stored array of a matrix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartPlan {
    /// `[a-z0-9_]{1,12}`.
    pub name: String,
    /// Element type of the groups.
    pub dtype: PartType,
    /// Bytes of the head of a slice; 0 where there is none.
    pub head_bytes: u64,
    /// Bytes of a row group.
    pub group_bytes: u64,
}

/// How a scheme stores a matrix. Bytes of a slice of part `i`: `head_bytes + groups(rows) * group_bytes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorPlan {
    /// One to eight parts.
    pub parts: Vec<PartPlan>,
    /// Rows of a group; ranges of rows start at multiples of it.
    pub row_group: u64,
    /// `begin` wants the whole slice.
    pub whole_matrix: bool,
    /// Bytes of statistics a row group; 0 where the scheme observes nothing.
    pub stat_bytes: u64,
    /// Rows of a slab that the encoder likes; 0 where it does not care.
    pub rows_hint: u64,
    /// Scratch of `observe` and `encode`.
    pub scratch_bytes: u64,
    /// Scratch of `decode` and of fused kernels.
    pub decode_scratch_bytes: u64,
    /// Memory that a job takes, about.
    pub job_bytes_hint: u64,
    /// Auxiliary data that must be there, a mask of `KBIT_AUX_*`.
    pub aux_required: u32,
    /// Auxiliary data that is used where it is there, a mask of `KBIT_AUX_*`.
    pub aux_used: u32,
}

fn is_part_name(name: &str) -> bool {
    (1..=12).contains(&name.len()) && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

impl TensorPlan {
    /// Row groups of `rows` rows.
    #[must_use]
    pub const fn groups(&self, rows: u64) -> u64 {
        rows.div_ceil(self.row_group)
    }

    /// Bytes of `rows` rows of part `part`, without its head. `None` where that does not fit 64 bits, or there is no
    /// such part.
    #[must_use]
    pub fn part_bytes(&self, part: usize, rows: u64) -> Option<u64> {
        self.groups(rows).checked_mul(self.parts.get(part)?.group_bytes)
    }

    /// Bytes of one slice of `rows` rows, heads included. `None` where that does not fit 64 bits.
    #[must_use]
    pub fn total_bytes(&self, rows: u64) -> Option<u64> {
        (0..self.parts.len()).try_fold(0u64, |sum, part| {
            sum.checked_add(self.part_bytes(part, rows)?)?.checked_add(self.parts[part].head_bytes)
        })
    }

    /// True where mean squared inputs (an importance matrix) change what is encoded.
    #[must_use]
    pub const fn uses_importance(&self) -> bool {
        (self.aux_used | self.aux_required) & abi::AUX_DIAG != 0
    }

    /// True where nothing can be encoded without mean squared inputs.
    #[must_use]
    pub const fn requires_importance(&self) -> bool {
        self.aux_required & abi::AUX_DIAG != 0
    }

    /// True if the encoder looks at the deviation of the producing weights.
    #[must_use]
    pub const fn uses_producer(&self) -> bool {
        (self.aux_used | self.aux_required) & abi::AUX_PRODUCER != 0
    }

    /// True where nothing can be encoded without the deviation of the producing weights.
    #[must_use]
    pub const fn requires_producer(&self) -> bool {
        self.aux_required & abi::AUX_PRODUCER != 0
    }

    /// True where second moments of the inputs change what is encoded.
    #[must_use]
    pub const fn uses_hessian(&self) -> bool {
        (self.aux_used | self.aux_required) & abi::AUX_HESSIAN != 0
    }

    /// True where second moments of the inputs are required.
    #[must_use]
    pub const fn requires_hessian(&self) -> bool {
        self.aux_required & abi::AUX_HESSIAN != 0
    }

    /// True if `observe` and `prepare` come before `encode`.
    #[must_use]
    pub fn needs_prepare(&self) -> bool {
        self.stat_bytes > 0 || self.parts.iter().any(|part| part.head_bytes > 0)
    }

    /// True if a plan that came from another process keeps the rules that this one relies on.
    pub(crate) fn is_sound(&self, rows: u64) -> bool {
        let stats = self.row_group > 0 && self.groups(rows).checked_mul(self.stat_bytes).is_some();
        stats
            && (1..=MAX_PARTS).contains(&self.parts.len())
            && self.parts.iter().all(|part| part.group_bytes > 0 && is_part_name(&part.name))
            && self.total_bytes(rows).is_some_and(|bytes| i64::try_from(bytes).is_ok())
    }

    /// Checks a plan against the rules of the ABI. The reason in words where it breaks one.
    ///
    /// # Safety
    /// Names in `raw` are strings of the plugin that live at least as long as the call.
    #[expect(unsafe_code, reason = "reads the plugin's strings")]
    pub(crate) unsafe fn checked(
        raw: &abi::Plan,
        matrix: &Matrix<'_>,
        ggml_type: Option<GgmlType>,
        optional: Optional,
    ) -> Result<Self, String> {
        let count = usize::try_from(raw.n_parts).unwrap_or(usize::MAX);
        if !(1..=MAX_PARTS).contains(&count) {
            return Err(format!("{} parts, and 1 to {MAX_PARTS} are allowed", raw.n_parts));
        }
        let mut parts: Vec<PartPlan> = Vec::with_capacity(count);
        for (index, part) in raw.parts[..count].iter().enumerate() {
            // SAFETY: by the caller's promise.
            let name = unsafe { text_of(part.name) };
            if !is_part_name(&name) {
                return Err(format!("part {index} is named {name:?}; 1 to 12 of a-z, 0-9 and _ are allowed"));
            }
            if parts.iter().any(|other| other.name == name) {
                return Err(format!("two parts are named {name}"));
            }
            let Some(dtype) = PartType::from_code(part.dtype) else {
                return Err(format!(
                    "part {name} has the element type {}, which ABI 1 does not have",
                    part.dtype
                ));
            };
            if part.flags != 0 || part.reserved != [0; 2] {
                return Err(format!("part {name} has flags or reserved fields that are not 0"));
            }
            if part.group_bytes == 0 {
                return Err(format!(
                    "part {name} has no bytes a row group; what a slice has once belongs in a head"
                ));
            }
            for (what, bytes) in [("head", part.head_bytes), ("row group", part.group_bytes)] {
                if !bytes.is_multiple_of(dtype.bytes()) {
                    return Err(format!(
                        "part {name}: {bytes} bytes a {what} are no multiple of its element type"
                    ));
                }
            }
            parts.push(PartPlan { name, dtype, head_bytes: part.head_bytes, group_bytes: part.group_bytes });
        }
        if raw.row_group == 0 {
            return Err("row_group is 0".to_owned());
        }
        if raw.flags & !abi::WHOLE_MATRIX != 0 {
            return Err(format!("flags {:#x} has bits that ABI 1 does not have", raw.flags));
        }
        let known = abi::AUX_DIAG | abi::AUX_HESSIAN | abi::AUX_PRODUCER;
        if (raw.aux_required | raw.aux_used) & !known != 0 {
            return Err("it asks for auxiliary data that ABI 1 does not have".to_owned());
        }
        for (what, bytes) in [
            ("scratch_bytes", raw.scratch_bytes),
            ("decode_scratch_bytes", raw.decode_scratch_bytes),
            ("stat_bytes", raw.stat_bytes),
        ] {
            if bytes > MAX_SCRATCH_BYTES {
                return Err(format!("{what} is {bytes}, more than any machine has"));
            }
        }
        let plan = Self {
            parts,
            row_group: u64::from(raw.row_group),
            whole_matrix: raw.flags & abi::WHOLE_MATRIX != 0,
            stat_bytes: raw.stat_bytes,
            rows_hint: raw.rows_hint,
            scratch_bytes: raw.scratch_bytes,
            decode_scratch_bytes: raw.decode_scratch_bytes,
            job_bytes_hint: raw.job_bytes_hint,
            aux_required: raw.aux_required,
            aux_used: raw.aux_used | raw.aux_required,
        };
        if plan.stat_bytes > 0 && !optional.observe {
            return Err("it asks for statistics, but the scheme has no observe()".to_owned());
        }
        if plan.needs_prepare() && !optional.prepare {
            return Err("it has statistics or heads, but the scheme has no prepare()".to_owned());
        }
        let total = plan.total_bytes(matrix.rows).filter(|bytes| i64::try_from(*bytes).is_ok());
        let stats = plan
            .groups(matrix.rows)
            .checked_mul(plan.stat_bytes)
            .filter(|bytes| i64::try_from(*bytes).is_ok());
        let (Some(total), Some(_)) = (total, stats) else {
            return Err("its bytes do not fit 64 bits".to_owned());
        };
        if let Some(ty) = ggml_type {
            let expected =
                MatrixShape::dense(matrix.rows, matrix.cols).elements().and_then(|n| ty.bytes_for(n));
            let whole_rows = matrix.cols.is_multiple_of(ty.block_elements());
            if plan.parts.len() != 1 || plan.parts[0].head_bytes != 0 {
                return Err(format!("a scheme of the ggml type {ty} has one part without head"));
            }
            if expected != Some(total) || !whole_rows {
                return Err(format!(
                    "{total} bytes for {} rows of {} weights, and the ggml type {ty} {}",
                    matrix.rows,
                    matrix.cols,
                    match expected.filter(|_| whole_rows) {
                        Some(bytes) => format!("takes {bytes}"),
                        None => format!("needs rows of whole blocks of {}", ty.block_elements()),
                    }
                ));
            }
        }
        Ok(plan)
    }
}

#[cfg(test)]
#[expect(unsafe_code, reason = "builds raw plans")]
mod tests {
    use super::*;
    use crate::call::empty_plan;

    const MATRIX: Matrix<'_> = Matrix { tensor: "blk.0.w", rows: 10, cols: 64, slice: 0, slices: 1 };

    fn good() -> abi::Plan {
        let mut plan = empty_plan();
        plan.n_parts = 2;
        plan.row_group = 4;
        plan.parts[0] = abi::Part { name: abi::Str::new("q"), group_bytes: 128, ..abi::Part::EMPTY };
        plan.parts[1] = abi::Part {
            name: abi::Str::new("scale"),
            dtype: abi::DTYPE_F16,
            head_bytes: 4,
            group_bytes: 8,
            ..abi::Part::EMPTY
        };
        plan
    }

    fn check(change: impl FnOnce(&mut abi::Plan), ty: Option<GgmlType>) -> Result<TensorPlan, String> {
        let mut plan = good();
        change(&mut plan);
        // SAFETY: names are static strings.
        unsafe { TensorPlan::checked(&plan, &MATRIX, ty, Optional { observe: true, prepare: true }) }
    }

    #[test]
    fn statistics_and_heads_need_their_functions() {
        let check = |stat_bytes: u64, head_bytes: u64, observe: bool, prepare: bool| {
            let mut plan = good();
            plan.stat_bytes = stat_bytes;
            plan.parts[1].head_bytes = head_bytes;
            // SAFETY: names are static strings.
            unsafe { TensorPlan::checked(&plan, &MATRIX, None, Optional { observe, prepare }) }
        };
        assert!(
            check(0, 0, false, false).is_ok()
                && check(0, 4, false, true).is_ok()
                && check(4, 0, true, true).is_ok()
        );
        assert!(check(4, 0, false, true).unwrap_err().contains("no observe()"));
        assert!(check(0, 4, true, false).unwrap_err().contains("no prepare()"));
    }

    #[test]
    fn counts_groups_and_bytes() {
        let plan = check(|_| (), None).unwrap();
        assert_eq!((plan.groups(10), plan.groups(8), plan.groups(0)), (3, 2, 0));
        assert_eq!(
            (plan.part_bytes(0, 10), plan.part_bytes(1, 10), plan.part_bytes(2, 10)),
            (Some(384), Some(24), None)
        );
        assert_eq!(plan.total_bytes(10), Some(384 + 24 + 4));
        assert_eq!(plan.total_bytes(u64::MAX), None);
        assert!(plan.needs_prepare());
    }

    #[test]
    fn each_broken_rule_has_its_message() {
        type Change = fn(&mut abi::Plan);
        let cases: &[(Change, &str)] = &[
            (|p| p.n_parts = 0, "0 parts"),
            (|p| p.n_parts = 9, "9 parts"),
            (|p| p.parts[0].name = abi::Str::new("Q"), "named \"Q\""),
            (|p| p.parts[0].name = abi::Str::new(""), "named \"\""),
            (|p| p.parts[0].name = abi::Str::new("thirteen_long"), "1 to 12"),
            (|p| p.parts[1].name = abi::Str::new("q"), "two parts are named q"),
            (|p| p.parts[0].dtype = 7, "element type 7"),
            (|p| p.parts[0].flags = 1, "flags or reserved"),
            (|p| p.parts[0].reserved[1] = 1, "flags or reserved"),
            (|p| p.parts[0].group_bytes = 0, "no bytes a row group"),
            (|p| p.parts[1].group_bytes = 7, "no multiple"),
            (|p| p.parts[1].head_bytes = 1, "no multiple"),
            (|p| p.row_group = 0, "row_group is 0"),
            (|p| p.flags = 2, "flags 0x2"),
            (|p| p.aux_required = 8, "auxiliary data"),
            (|p| p.scratch_bytes = u64::MAX, "scratch_bytes"),
            (|p| p.stat_bytes = u64::MAX, "stat_bytes"),
            (|p| p.parts[0].group_bytes = u64::MAX, "64 bits"),
        ];
        for (change, expected) in cases {
            let reason = check(change, None).unwrap_err();
            assert!(reason.contains(expected), "{reason}");
        }
    }

    #[test]
    fn a_ggml_type_fixes_the_bytes() {
        let one = |bytes: u64| {
            move |plan: &mut abi::Plan| {
                plan.n_parts = 1;
                plan.row_group = 1;
                plan.parts[0].group_bytes = bytes;
            }
        };
        assert!(check(one(36), Some(GgmlType::Q4_0)).is_ok());
        assert!(check(one(37), Some(GgmlType::Q4_0)).unwrap_err().contains("takes 360"));
        assert!(check(one(36), Some(GgmlType::Q4_K)).unwrap_err().contains("blocks of 256"));
        assert!(check(|_| (), Some(GgmlType::Q4_0)).unwrap_err().contains("one part"));
    }
}
