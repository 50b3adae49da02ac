//! The tensors of a Hugging Face folder as they would be without quantization, in the order of llama.cpp's converter.
//!
//! A weight that is stored as codes and scales is one source here, whose expression decodes it; its parts are no
//! sources of their own.

use super::config::{Config, read_object};
use crate::expr::matrix_shape;
use crate::fp4::{Fp4, Fp4Format, WholeScale};
use crate::packed::{Groups, Layout, Packed, Ternary, Zero};
use crate::{ModelError, SourceExpr};
use kbit_formats::{Checkpoint, Element, SourceTensor};
use kbit_types::{Dtype, MatrixShape};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// A tensor of the unquantized model.
#[derive(Debug)]
pub(super) struct Source {
    /// Its name.
    pub(super) name: String,
    /// Its shape, row-major.
    pub(super) shape: Vec<u64>,
    /// Its values.
    pub(super) expr: SourceExpr,
}

/// All tensors of `checkpoint`, by file, then by name; decoded ones that the converter makes anew at the end.
pub(super) fn sources(
    checkpoint: &Checkpoint,
    folder: &Path,
    config: &Config,
) -> Result<Vec<Source>, ModelError> {
    let settings = settings(folder, config)?;
    let quantization = Quantization::read(config, &settings)?;
    let scales = match quantization {
        Quantization::None => Scales::default(),
        Quantization::Scaled { block } => Scales::find(checkpoint, block),
        _ => Scales::find(checkpoint, None),
    };
    let shards = shards(folder)?;
    let mut tensors: Vec<&SourceTensor> = checkpoint.tensors().iter().collect();
    tensors.sort_by(|a, b| (shards.get(&a.name), &a.name).cmp(&(shards.get(&b.name), &b.name)));
    let (mut first, mut plain, mut last) = (Vec::new(), Vec::new(), Vec::new());
    let mut parts = HashSet::new();
    for tensor in &tensors {
        match quantization.decoded(checkpoint, tensor)? {
            Some(decoded) => {
                let others = decoded.expr.sources().into_iter().filter(|name| *name != tensor.name);
                parts.extend(others.map(str::to_owned));
                parts.extend(decoded.unread);
                let source = Source { name: decoded.name, shape: decoded.shape, expr: decoded.expr };
                match decoded.place {
                    Place::First => first.push(source),
                    Place::Own => plain.push((tensor, Some(source))),
                    Place::Last => last.push(source),
                }
            }
            None if scales.is_companion(&tensor.name) => {}
            None => plain.push((tensor, None)),
        }
    }
    for (tensor, decoded) in plain {
        if !parts.contains(&tensor.name) {
            let own = || -> Result<Source, ModelError> {
                let expr = scales.apply(checkpoint, tensor)?;
                Ok(Source { name: tensor.name.clone(), shape: tensor.shape.clone(), expr })
            };
            first.push(decoded.map_or_else(own, Ok)?);
        }
    }
    first.extend(last);
    Ok(first)
}

/// How the weights are stored.
enum Quantization {
    /// As numbers.
    None,
    /// As numbers of 8 bits with scales, of so many rows and columns where config.json says.
    Scaled { block: Option<[u64; 2]> },
    /// In GPTQ's tensors; zero points are stored less one in its first version.
    Gptq { bits: u32, group: Option<u64>, plus: i32 },
    /// In AWQ's tensors, for matrix products.
    Awq { group: Option<u64> },
    /// In the packed tensors of compressed-tensors.
    Packed { bits: u32, group: Option<u64> },
    /// Experts in MXFP4, in gpt-oss's tensors.
    Mxfp4,
    /// 4-bit floats in the tensors of compressed-tensors.
    Floats4 { microscaling: bool },
    /// 4-bit or 8-bit floats in the tensors of NVIDIA's Model Optimizer.
    ModelOpt,
    /// Ternary codes.
    BitNet,
}

/// A weight that several tensors make up.
struct Decoded {
    name: String,
    shape: Vec<u64>,
    expr: SourceExpr,
    /// Tensors that belong to it and say nothing more.
    unread: Vec<String>,
    place: Place,
}

/// Where the converter writes a decoded weight.
enum Place {
    /// Before all others.
    First,
    /// Where its codes are.
    Own,
    /// Behind all others.
    Last,
}

impl Quantization {
    fn read(config: &Config, settings: &serde_json::Value) -> Result<Self, ModelError> {
        if settings.is_null() {
            return Ok(Self::None);
        }
        let method = settings["quant_method"].as_str().unwrap_or("");
        let format = settings["format"].as_str().unwrap_or("");
        let groups = settings["config_groups"].as_object();
        let weights = groups.and_then(|groups| groups.values().next()).map(|group| &group["weights"]);
        if groups.is_some_and(|groups| groups.len() > 1) {
            return Err(config.bad(
                "the weights are quantized in several \"config_groups\", of which kbit reads one; get the unquantized checkpoint",
            ));
        }
        let weights = weights.unwrap_or(&serde_json::Value::Null);
        // 0 and -1 stand for all columns.
        let size = |value: &serde_json::Value| value.as_u64().filter(|size| *size > 0);
        let group = size(&settings["group_size"]);
        let bits = |value: &serde_json::Value| {
            value
                .as_u64()
                .and_then(|bits| u32::try_from(bits).ok())
                .filter(|bits| (1..=8).contains(bits))
                .ok_or_else(|| {
                    config.bad(format!(
                        "the weights have {value} bits, not 1 to 8; get the unquantized checkpoint"
                    ))
                })
        };
        match (method, format) {
            ("fp8", _) => Ok(Self::Scaled { block: block(config, &settings["weight_block_size"])? }),
            ("compressed-tensors", "float-quantized" | "naive-quantized" | "int-quantized") => {
                let groups = size(&weights["group_size"]).map(|size| [1, size]);
                Ok(Self::Scaled { block: block(config, &weights["block_structure"])?.or(groups) })
            }
            ("compressed-tensors", "pack-quantized") => {
                Ok(Self::Packed { bits: bits(&weights["num_bits"])?, group: size(&weights["group_size"]) })
            }
            ("compressed-tensors", "nvfp4-pack-quantized") => Ok(Self::Floats4 { microscaling: false }),
            ("compressed-tensors", "mxfp4-pack-quantized") => Ok(Self::Floats4 { microscaling: true }),
            ("modelopt", _) => match settings["quant_algo"].as_str() {
                Some("FP8" | "NVFP4" | "W4A16_NVFP4" | "MIXED_PRECISION") => Ok(Self::ModelOpt),
                other => Err(config.bad(format!(
                    "the weights are quantized by modelopt with \"quant_algo\" {other:?}, where kbit reads FP8, NVFP4, W4A16_NVFP4 and MIXED_PRECISION of these; get the unquantized checkpoint"
                ))),
            },
            ("bitnet", _) => Ok(Self::BitNet),
            ("gptq", _) => {
                let plus = match settings["checkpoint_format"].as_str() {
                    None | Some("gptq") => 1,
                    Some("gptq_v2") => 0,
                    Some(other) => {
                        return Err(config.bad(format!(
                            "GPTQ's \"checkpoint_format\" is {other:?}, where gptq and gptq_v2 are known; get the unquantized checkpoint"
                        )));
                    }
                };
                Ok(Self::Gptq { bits: bits(&settings["bits"])?, group, plus })
            }
            ("awq", _) => {
                let version = settings["version"].as_str().unwrap_or("gemm").to_lowercase();
                let bits = settings["bits"].as_u64().or_else(|| settings["w_bit"].as_u64());
                if version != "gemm" || bits != Some(4) || settings["zero_point"].as_bool() == Some(false) {
                    return Err(config.bad(
                        "the weights are quantized by AWQ, but not in 4 bits with zero points in the order \"gemm\"; get the unquantized checkpoint",
                    ));
                }
                Ok(Self::Awq { group: group.or_else(|| settings["q_group_size"].as_u64()) })
            }
            ("mxfp4", _) => Ok(Self::Mxfp4),
            _ => Err(config.bad(format!(
                "the weights are quantized by {method:?} {format:?}, which kbit does not read; it reads fp8, gptq, awq, mxfp4, modelopt, bitnet and compressed-tensors (float-quantized, naive-quantized, int-quantized, pack-quantized, nvfp4-pack-quantized, mxfp4-pack-quantized): get the unquantized checkpoint"
            ))),
        }
    }

    /// The weight whose codes are in `tensor`; `None` where it is a tensor of its own, or another part of a weight.
    fn decoded(&self, checkpoint: &Checkpoint, tensor: &SourceTensor) -> Result<Option<Decoded>, ModelError> {
        let part = |name: String| {
            checkpoint.tensor(&name).ok_or_else(|| ModelError::MissingTensors { names: vec![name.clone()] })
        };
        let bad_shape = || ModelError::Unreadable {
            tensor: tensor.name.clone(),
            reason: format!(
                "its shape is {:?}, not that of packed codes; get the checkpoint anew",
                tensor.shape
            ),
        };
        let (name, packed, unread) = match *self {
            Self::Gptq { bits, group, plus } => {
                let Some(base) = tensor.name.strip_suffix(".qweight") else { return Ok(None) };
                let scales = part(format!("{base}.scales"))?;
                let zeros = part(format!("{base}.qzeros"))?;
                let named = checkpoint.tensor(&format!("{base}.g_idx"));
                let (&[words, rows], &[group_count, _]) = (tensor.shape.as_slice(), scales.shape.as_slice())
                else {
                    return Err(bad_shape());
                };
                let cols = words.checked_mul(32).ok_or_else(bad_shape)? / u64::from(bits);
                let groups = match named {
                    Some(named) => Groups::Named(named.name.clone()),
                    None => Groups::Of(group.unwrap_or(cols).max(1)),
                };
                let packed = Packed {
                    shape: MatrixShape::dense(rows, cols),
                    layout: Layout::Gptq,
                    bits,
                    codes: tensor.name.clone(),
                    scales: scales.name.clone(),
                    zero: Zero::Packed { name: zeros.name.clone(), plus },
                    groups,
                    group_count,
                };
                (format!("{base}.weight"), packed, Vec::new())
            }
            Self::Awq { group } => {
                let Some(base) = tensor.name.strip_suffix(".qweight") else { return Ok(None) };
                let scales = part(format!("{base}.scales"))?;
                let zeros = part(format!("{base}.qzeros"))?;
                let (&[cols, _], &[group_count, rows]) = (tensor.shape.as_slice(), scales.shape.as_slice())
                else {
                    return Err(bad_shape());
                };
                let packed = Packed {
                    shape: MatrixShape::dense(rows, cols),
                    layout: Layout::Awq,
                    bits: 4,
                    codes: tensor.name.clone(),
                    scales: scales.name.clone(),
                    zero: Zero::Packed { name: zeros.name.clone(), plus: 0 },
                    groups: Groups::Of(group.unwrap_or(cols).max(1)),
                    group_count,
                };
                (format!("{base}.weight"), packed, Vec::new())
            }
            Self::Packed { bits, group } => {
                let Some(weight) = tensor.name.strip_suffix("_packed") else { return Ok(None) };
                let scales = part(format!("{weight}_scale"))?;
                let sizes = part(format!("{weight}_shape"))?;
                let zeros = checkpoint.tensor(&format!("{weight}_zero_point"));
                let named = checkpoint.tensor(&format!("{weight}_g_idx"));
                let [rows, cols] = two_lengths(checkpoint, sizes)?;
                let &[_, group_count] = scales.shape.as_slice() else { return Err(bad_shape()) };
                let groups = match named {
                    Some(named) => Groups::Named(named.name.clone()),
                    None => Groups::Of(group.unwrap_or(cols).max(1)),
                };
                let zero = match zeros {
                    Some(zeros) => Zero::Packed { name: zeros.name.clone(), plus: 0 },
                    None => Zero::Constant(1 << (bits - 1)),
                };
                // Where a word held whole codes, there are more words.
                let streamed = cols.checked_mul(u64::from(bits)).ok_or_else(bad_shape)?.div_ceil(32);
                let across = tensor.shape.get(1) == Some(&streamed);
                let packed = Packed {
                    shape: MatrixShape::dense(rows, cols),
                    layout: Layout::CompressedTensors { across },
                    bits,
                    codes: tensor.name.clone(),
                    scales: scales.name.clone(),
                    zero,
                    groups,
                    group_count,
                };
                (weight.to_owned(), packed, vec![sizes.name.clone()])
            }
            Self::Mxfp4 => {
                let Some(base) = tensor.name.strip_suffix("_blocks") else { return Ok(None) };
                let scales = part(format!("{base}_scales"))?;
                let &[slices, rows, blocks, 16] = tensor.shape.as_slice() else { return Err(bad_shape()) };
                let cols = blocks.checked_mul(32).ok_or_else(bad_shape)?;
                let shape = MatrixShape { slices, rows, cols };
                let floats = Fp4 {
                    shape,
                    codes: tensor.name.clone(),
                    scales: scales.name.clone(),
                    format: Fp4Format::Mx,
                };
                return floats4(checkpoint, tensor.name.clone(), vec![slices, rows, cols], floats);
            }
            Self::Floats4 { microscaling } => {
                let Some(weight) = tensor.name.strip_suffix("_packed") else { return Ok(None) };
                let scales = part(format!("{weight}_scale"))?;
                let format = if microscaling {
                    Fp4Format::Mx
                } else {
                    let whole = part(format!("{weight}_global_scale"))?;
                    Fp4Format::Nv(Some(WholeScale { name: whole.name.clone(), divides: true }))
                };
                let &[rows, bytes] = tensor.shape.as_slice() else { return Err(bad_shape()) };
                let cols = bytes.checked_mul(2).ok_or_else(bad_shape)?;
                let floats = Fp4 {
                    shape: MatrixShape::dense(rows, cols),
                    codes: tensor.name.clone(),
                    scales: scales.name.clone(),
                    format,
                };
                return floats4(checkpoint, weight.to_owned(), vec![rows, cols], floats);
            }
            Self::ModelOpt => {
                // Weights of 8 bits are scaled like others.
                if !tensor.name.ends_with(".weight") || tensor.element != Element::Plain(Dtype::U8) {
                    return Ok(None);
                }
                let weight = &tensor.name;
                let scales = part(format!("{weight}_scale"))?;
                let whole = checkpoint.tensor(&format!("{weight}_scale_2"));
                let &[rows, bytes] = tensor.shape.as_slice() else { return Err(bad_shape()) };
                let cols = bytes.checked_mul(2).ok_or_else(bad_shape)?;
                let floats = Fp4 {
                    shape: MatrixShape::dense(rows, cols),
                    codes: weight.clone(),
                    scales: scales.name.clone(),
                    format: Fp4Format::Nv(
                        whole.map(|whole| WholeScale { name: whole.name.clone(), divides: false }),
                    ),
                };
                return floats4(checkpoint, weight.clone(), vec![rows, cols], floats);
            }
            Self::BitNet => {
                let scale = checkpoint.tensor(&format!("{}_scale", tensor.name));
                let Some(scale) = scale.filter(|_| tensor.name.ends_with(".weight")) else { return Ok(None) };
                let &[bytes, cols] = tensor.shape.as_slice() else { return Err(bad_shape()) };
                let rows = bytes.checked_mul(4).ok_or_else(bad_shape)?;
                let ternary = Ternary {
                    shape: MatrixShape::dense(rows, cols),
                    codes: tensor.name.clone(),
                    scale: scale.name.clone(),
                };
                let expr = SourceExpr::Ternary(Box::new(ternary));
                expr.check(checkpoint)?;
                return Ok(Some(Decoded {
                    name: tensor.name.clone(),
                    shape: vec![rows, cols],
                    expr,
                    unread: Vec::new(),
                    place: Place::Own,
                }));
            }
            Self::None | Self::Scaled { .. } => return Ok(None),
        };
        let shape = vec![packed.shape.rows, packed.shape.cols];
        let expr = SourceExpr::Packed(Box::new(packed));
        expr.check(checkpoint)?;
        Ok(Some(Decoded { name, shape, expr, unread, place: Place::Last }))
    }
}

/// Weights of 4-bit floats, which the converter packs anew before all else.
fn floats4(
    checkpoint: &Checkpoint,
    name: String,
    shape: Vec<u64>,
    floats: Fp4,
) -> Result<Option<Decoded>, ModelError> {
    let expr = SourceExpr::Fp4(Box::new(floats));
    expr.check(checkpoint)?;
    Ok(Some(Decoded { name, shape, expr, unread: Vec::new(), place: Place::First }))
}

/// What config.json says of the quantization, or else the files of the tools that write it elsewhere; null where the
/// weights are not quantized.
fn settings(folder: &Path, config: &Config) -> Result<serde_json::Value, ModelError> {
    use serde_json::Value;
    let mut settings = config.get("quantization_config").cloned().unwrap_or(Value::Null);
    let method = settings["quant_method"].as_str();
    if method.is_none_or(|method| method == "modelopt" && settings["quant_algo"].is_null())
        && let Some(mut file) = read_object(&folder.join("hf_quant_config.json"))?
        && let Some(Value::Object(mut found)) = file.remove("quantization")
    {
        let producer = file.get("producer").and_then(|producer| producer["name"].as_str()).unwrap_or("");
        found.entry("quant_method").or_insert_with(|| producer.to_lowercase().into());
        return Ok(Value::Object(found));
    }
    for (name, method) in [("quantize_config.json", "gptq"), ("quant_config.json", "awq")] {
        if settings.is_null()
            && let Some(mut found) = read_object(&folder.join(name))?
        {
            found.entry("quant_method").or_insert_with(|| method.into());
            settings = Value::Object(found);
        }
    }
    Ok(settings)
}

/// The two lengths that a tensor of whole numbers holds.
fn two_lengths(checkpoint: &Checkpoint, tensor: &SourceTensor) -> Result<[u64; 2], ModelError> {
    let bad = || ModelError::Unreadable {
        tensor: tensor.name.clone(),
        reason: "it does not hold two lengths; get the checkpoint anew".to_owned(),
    };
    let width = match tensor.element {
        Element::Plain(Dtype::I64) => 8,
        Element::Plain(Dtype::I32) => 4,
        _ => return Err(bad()),
    };
    if tensor.shape != [2] {
        return Err(bad());
    }
    let mut bytes = [0u8; 16];
    let bytes = &mut bytes[..2 * width];
    checkpoint.read_at(tensor, 0, bytes)?;
    let mut lengths = [0u64; 2];
    for (length, bytes) in lengths.iter_mut().zip(bytes.chunks_exact(width)) {
        // Little-endian; a negative length becomes one that is too large.
        *length = bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        if *length == 0 || *length > u64::from(u32::MAX) {
            return Err(bad());
        }
    }
    Ok(lengths)
}

/// Rows and columns of a block, where config.json gives them.
fn block(config: &Config, block: &serde_json::Value) -> Result<Option<[u64; 2]>, ModelError> {
    if block.is_null() {
        return Ok(None);
    }
    match block.as_array().map(Vec::as_slice).unwrap_or_default() {
        [rows, cols] => rows.as_u64().zip(cols.as_u64()).map(|(rows, cols)| [rows, cols]),
        _ => None,
    }
    .filter(|[rows, cols]| *rows > 0 && *cols > 0)
    .map(Some)
    .ok_or_else(|| {
        config.bad(format!("the weights' blocks are {block}, not two positive numbers; get the file anew"))
    })
}

/// The file of each tensor, where an index says.
fn shards(folder: &Path) -> Result<HashMap<String, String>, ModelError> {
    if folder.join("model.safetensors").is_file() {
        return Ok(HashMap::new());
    }
    let mut index = read_object(&folder.join("model.safetensors.index.json"))?.unwrap_or_default();
    let Some(serde_json::Value::Object(files)) = index.remove("weight_map") else {
        return Ok(HashMap::new());
    };
    Ok(files.into_iter().filter_map(|(name, file)| Some((name, file.as_str()?.to_owned()))).collect())
}

/// Scales of 8-bit weights, and tensors that only matter for 8-bit activations.
#[derive(Default)]
struct Scales {
    /// Scale tensor by the name of its weight.
    of: HashMap<String, String>,
    companions: HashSet<String>,
    /// Rows and columns that share a scale, where config.json says.
    block: Option<[u64; 2]>,
    /// Weights of 8 bits mean nothing without a scale.
    needed: bool,
}

impl Scales {
    fn find(checkpoint: &Checkpoint, block: Option<[u64; 2]>) -> Self {
        let mut scales = Self { block, needed: true, ..Self::default() };
        const ACTIVATIONS: &[&str] = &[
            ".activation_scale",
            "_activation_scale",
            ".input_scale",
            ".input_global_scale",
            ".input_zero_point",
            ".k_scale",
            ".v_scale",
        ];
        for tensor in checkpoint.tensors() {
            let name = &tensor.name;
            let weight = name
                .strip_suffix("_scale_inv")
                .or_else(|| name.strip_suffix("_scale").filter(|weight| weight.ends_with(".weight")));
            if let Some(weight) = weight.filter(|weight| checkpoint.tensor(weight).is_some()) {
                scales.of.insert(weight.to_owned(), name.clone());
                scales.companions.insert(name.clone());
                scales.companions.insert(format!("{weight}_zero_point"));
            } else if ACTIVATIONS.iter().any(|ending| name.ends_with(ending)) {
                scales.companions.insert(name.clone());
            }
        }
        scales
    }

    fn is_companion(&self, name: &str) -> bool {
        self.companions.contains(name)
    }

    /// The tensor's values, scaled where it has a scale.
    fn apply(&self, checkpoint: &Checkpoint, tensor: &SourceTensor) -> Result<SourceExpr, ModelError> {
        let Some(scale) = self.of.get(&tensor.name).and_then(|name| checkpoint.tensor(name)) else {
            let narrow = matches!(tensor.element, Element::Plain(Dtype::F8E4M3 | Dtype::F8E5M2 | Dtype::I8));
            if self.needed && narrow {
                return Err(ModelError::MissingTensors { names: vec![format!("{}_scale", tensor.name)] });
            }
            return Ok(SourceExpr::tensor(tensor));
        };
        let shape = matrix_shape(&tensor.shape);
        let values: u64 = scale.shape.iter().product();
        // Scales of blocks may be as many as rows or slices, but not in this shape.
        let of_rows = scale.shape.len() < tensor.shape.len() || scale.shape.last() == Some(&1);
        let (rows, cols, block) = match self.block {
            _ if values == 1 || of_rows && values == shape.slices => {
                (1, 1, [shape.rows.max(1), shape.cols.max(1)])
            }
            _ if of_rows && Some(values) == shape.rows.checked_mul(shape.slices) => {
                (shape.rows, 1, [1, shape.cols.max(1)])
            }
            Some(block) => (shape.rows.div_ceil(block[0]), shape.cols.div_ceil(block[1]), block),
            None => (shape.rows, 1, [1, shape.cols.max(1)]),
        };
        let zero = checkpoint.tensor(&format!("{}_zero_point", tensor.name));
        let expr = SourceExpr::Dequant {
            name: tensor.name.clone(),
            shape,
            scale: scale.name.clone(),
            scales: MatrixShape { rows, cols, slices: if values == 1 { 1 } else { shape.slices } },
            zero: zero.map(|zero| zero.name.clone()),
            block,
        };
        expr.check(checkpoint)?;
        Ok(expr)
    }
}
