//! The tensors of a Hugging Face folder as they would be without quantization, in the order of llama.cpp's converter.
//!
//! A weight that is stored as codes and scales is one source here, whose expression decodes it; its parts are no
//! sources of their own.

use super::config::{Config, read_object};
use crate::expr::matrix_shape;
use crate::packed::{Groups, Layout, Packed, Zero};
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
    let quantization = Quantization::read(config)?;
    let scales = match quantization {
        Quantization::Scaled { block } => Scales::find(checkpoint, block),
        _ => Scales::default(),
    };
    let shards = shards(folder)?;
    let mut tensors: Vec<&SourceTensor> = checkpoint.tensors().iter().collect();
    tensors.sort_by(|a, b| (shards.get(&a.name), &a.name).cmp(&(shards.get(&b.name), &b.name)));
    let (mut first, mut plain, mut last) = (Vec::new(), Vec::new(), Vec::new());
    let mut parts = HashSet::new();
    for tensor in &tensors {
        match quantization.decoded(checkpoint, config, tensor)? {
            Some(decoded) => {
                parts.extend(decoded.expr.sources().into_iter().map(str::to_owned));
                parts.extend(decoded.unread);
                let source = Source { name: decoded.name, shape: decoded.shape, expr: decoded.expr };
                if decoded.at_the_end { last.push(source) } else { first.push(source) }
            }
            None if scales.is_companion(&tensor.name) => {}
            None => {
                let expr = scales.apply(checkpoint, tensor)?;
                plain.push(Source { name: tensor.name.clone(), shape: tensor.shape.clone(), expr });
            }
        }
    }
    plain.retain(|source| !parts.contains(&source.name));
    first.extend(plain);
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
    Packed { bits: u32 },
    /// Experts in MXFP4.
    Mxfp4,
}

/// A weight that several tensors make up.
struct Decoded {
    name: String,
    shape: Vec<u64>,
    expr: SourceExpr,
    /// Tensors that belong to it and say nothing more.
    unread: Vec<String>,
    /// Where the converter writes it.
    at_the_end: bool,
}

impl Quantization {
    fn read(config: &Config) -> Result<Self, ModelError> {
        let Some(settings) = config.get("quantization_config") else { return Ok(Self::None) };
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
        let group = settings["group_size"]
            .as_i64()
            .and_then(|size| u64::try_from(size).ok())
            .filter(|size| *size > 0);
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
                Ok(Self::Scaled { block: block(config, &weights["block_structure"])? })
            }
            ("compressed-tensors", "pack-quantized") => Ok(Self::Packed { bits: bits(&weights["num_bits"])? }),
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
                "the weights are quantized by {method:?} {format:?}, which kbit does not read; it reads fp8, gptq, awq, mxfp4 and compressed-tensors (float-quantized, naive-quantized, int-quantized, pack-quantized): get the unquantized checkpoint"
            ))),
        }
    }

    /// The weight whose codes are in `tensor`; `None` where it is a tensor of its own, or another part of a weight.
    fn decoded(
        &self,
        checkpoint: &Checkpoint,
        config: &Config,
        tensor: &SourceTensor,
    ) -> Result<Option<Decoded>, ModelError> {
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
            Self::Packed { bits } => {
                let Some(weight) = tensor.name.strip_suffix("_packed") else { return Ok(None) };
                let scales = part(format!("{weight}_scale"))?;
                let sizes = part(format!("{weight}_shape"))?;
                let zeros = checkpoint.tensor(&format!("{weight}_zero_point"));
                let named = checkpoint.tensor(&format!("{weight}_g_idx"));
                let [rows, cols] = two_lengths(checkpoint, sizes)?;
                let &[_, group_count] = scales.shape.as_slice() else { return Err(bad_shape()) };
                let groups = match named {
                    Some(named) => Groups::Named(named.name.clone()),
                    None => {
                        let settings =
                            config.get("quantization_config").map(|settings| &settings["config_groups"]);
                        let first = settings.and_then(|groups| groups.as_object()?.values().next());
                        let size = first.and_then(|group| group["weights"]["group_size"].as_u64());
                        Groups::Of(size.unwrap_or(cols).max(1))
                    }
                };
                let zero = match zeros {
                    Some(zeros) => Zero::Packed { name: zeros.name.clone(), plus: 0 },
                    None => Zero::Constant(1 << (bits - 1)),
                };
                let packed = Packed {
                    shape: MatrixShape::dense(rows, cols),
                    layout: Layout::CompressedTensors,
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
                let expr =
                    SourceExpr::Mxfp4 { blocks: tensor.name.clone(), scales: scales.name.clone(), shape };
                expr.check(checkpoint)?;
                return Ok(Some(Decoded {
                    name: tensor.name.clone(),
                    shape: vec![slices, rows, cols],
                    expr,
                    unread: Vec::new(),
                    at_the_end: false,
                }));
            }
            Self::None | Self::Scaled { .. } => return Ok(None),
        };
        let shape = vec![packed.shape.rows, packed.shape.cols];
        let expr = SourceExpr::Packed(Box::new(packed));
        expr.check(checkpoint)?;
        Ok(Some(Decoded { name, shape, expr, unread, at_the_end: true }))
    }
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
}

impl Scales {
    fn find(checkpoint: &Checkpoint, block: Option<[u64; 2]>) -> Self {
        let mut scales = Self { block, ..Self::default() };
        const ACTIVATIONS: &[&str] =
            &[".activation_scale", "_activation_scale", ".input_scale", ".k_scale", ".v_scale"];
        for tensor in checkpoint.tensors() {
            let name = &tensor.name;
            let weight = name
                .strip_suffix("_scale_inv")
                .or_else(|| name.strip_suffix("_scale").filter(|weight| weight.ends_with(".weight")));
            if let Some(weight) = weight.filter(|weight| checkpoint.tensor(weight).is_some()) {
                scales.of.insert(weight.to_owned(), name.clone());
                scales.companions.insert(name.clone());
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
            return Ok(SourceExpr::tensor(tensor));
        };
        let shape = matrix_shape(&tensor.shape);
        let values: u64 = scale.shape.iter().product();
        let (scales, block) = match self.block {
            _ if values == 1 => (MatrixShape::dense(1, 1), [shape.rows.max(1), shape.cols.max(1)]),
            Some(block) => {
                (MatrixShape::dense(shape.rows.div_ceil(block[0]), shape.cols.div_ceil(block[1])), block)
            }
            // A scale a row.
            None => (MatrixShape::dense(shape.rows, 1), [1, shape.cols.max(1)]),
        };
        let expr = SourceExpr::Dequant {
            name: tensor.name.clone(),
            shape,
            scale: scale.name.clone(),
            scales,
            block,
        };
        expr.check(checkpoint)?;
        Ok(expr)
    }
}
