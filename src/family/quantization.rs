//! `quantization_config`: how quantised weights lie in a checkpoint. Which tensors are quantised their types say; the
//! configuration says where their factors are. What is about activations (`activation_scheme`, `input_scale`) is left
//! aside: activations stay in float32. Any method that is not listed here is refused by name.
//!
//! | `quant_method` | weights | factors |
//! | --- | --- | --- |
//! | `fp8` (DeepSeek-V3, Qwen3-FP8) | E4M3 | `weight_scale_inv`, one for each block of `weight_block_size` |
//! | `compressed-tensors`, 8-bit float | E4M3 | `weight_scale`: one, one for each row, or for each block |
//! | `fbgemm_fp8` | E4M3 | `weight_scale`, one for each row |
//! | `mxfp4` (gpt-oss) | experts alone, in tensors of other names | beside them |
//! | `compressed-tensors`, integers | `weight_packed`: words of 4 or 8 bits; or signed bytes | `weight_scale`, `weight_zero_point` |
//! | `bitsandbytes`, 4 bits | bytes; which numbers the halves stand for, a JSON beside them says | `absmax`, itself quantized or not |
//! | `bitsandbytes`, 8 bits | signed bytes | `SCB`, the largest number of each row |
//! | `gptq` | `qweight`: words of eight (or four) inputs | `scales`, `qzeros`, `g_idx` |
//! | `awq`, version `gemm` | `qweight`: words of eight outputs | `scales`, `qzeros` |

use serde_json::{Map, Value};

use crate::checkpoint::Checkpoint;
use crate::error::Result;

use super::Config;

/// Where the factors of quantised weights are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// Every tensor is what its type says.
    None,
    /// A tensor beside the weights, with this ending of its name; if there are blocks, of so many rows and columns.
    Factors { suffix: &'static str, block: Option<(usize, usize)> },
    /// Integers of compressed-tensors, in one of these ways.
    Integers(Vec<Integers>),
    /// Dettmers et al., 2022 and 2023, arXiv:2208.07339 and 2305.14314: the tensors say which.
    Bitsandbytes,
    /// Frantar et al., 2022, arXiv:2210.17323, as AutoGPTQ and GPTQModel store it.
    Gptq(Gptq),
    /// Lin et al., 2023, arXiv:2306.00978, as AutoAWQ stores it; with the length of groups.
    Awq { group: Option<usize> },
}

/// Options of integers of compressed-tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Integers {
    pub bits: usize,
    /// In words of 32 bits.
    pub packed: bool,
    /// There are no zeros.
    pub symmetric: bool,
    pub scale: ScaleFor,
}

/// What one scale is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleFor {
    All,
    Row,
    /// So many columns of a row.
    Group(usize),
}

/// Options of GPTQ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gptq {
    pub bits: usize,
    /// The length of groups; `None`: all inputs are one.
    pub group: Option<usize>,
    /// Zeros are stored less one (format `gptq`, not `gptq_v2`).
    pub less_one: bool,
    /// Every zero is the middle.
    pub symmetric: bool,
    /// Groups are not runs of inputs: a tensor says which input is in which.
    pub ordered: bool,
}

/// What one factor is for: so many rows and columns.
pub type Block = (usize, usize);

impl Quantization {
    /// Reads what a configuration says.
    ///
    /// # Errors
    /// A method, or an option of one, that is not implemented.
    pub fn read(config: &Config) -> Result<Quantization> {
        let section = match (config.section("quantization_config")?, config.section("compression_config")?) {
            (Some(section), _) | (_, Some(section)) => section,
            _ => return beside(config),
        };
        let method = text(section, "quant_method").unwrap_or("unnamed");
        match method {
            "fp8" => {
                if let Some(format) = text(section, "fmt").filter(|format| *format != "e4m3") {
                    return Err(config.unsupported(format!("fp8 weights of format `{format}` (quantization_config)")));
                }
                let block = block_size(config, section, "weight_block_size")?;
                Ok(Quantization::Factors { suffix: "_scale_inv", block })
            }
            "fbgemm_fp8" => Ok(Quantization::Factors { suffix: "_scale", block: None }),
            // Which tensors are, their names say: the family knows them.
            "mxfp4" => Ok(Quantization::None),
            "compressed-tensors" => compressed(config, section),
            "bitsandbytes" => Ok(Quantization::Bitsandbytes),
            "gptq" => gptq(config, section),
            "awq" => awq(config, section),
            _ => Err(config.unsupported(format!("a checkpoint quantized with `{method}` (quantization_config)"))),
        }
    }

    /// The block that each factor is for, of a `[rows, cols]` matrix whose factors have this shape; `None` if none fits.
    pub fn block(&self, rows: usize, cols: usize, shape: &[usize]) -> Option<Block> {
        let Quantization::Factors { block, .. } = *self else { return None };
        if shape.iter().product::<usize>() == 1 {
            return Some((rows, cols));
        }
        match (shape, block) {
            ([down, across], Some((r, c))) if *down == rows.div_ceil(r) && *across == cols.div_ceil(c) => Some((r, c)),
            // By row, be it that other matrices are by block.
            ([count], None) | ([count, 1], _) if *count == rows => Some((1, cols)),
            _ => None,
        }
    }

    /// Refuses a checkpoint with tensors that only quantisation leaves, of which no configuration says anything.
    ///
    /// # Errors
    /// The first such tensor, the method that it is of, and what is missing.
    pub fn require_explained(&self, config: &Config, checkpoint: &Checkpoint) -> Result<()> {
        if *self != Quantization::None || checkpoint.metadata().is_some() {
            return Ok(());
        }
        let method = |name: &str| match name {
            _ if name.contains(".quant_state.bitsandbytes__") || name.ends_with(".SCB") => Some("bitsandbytes"),
            _ if name.ends_with(".qweight") => Some("GPTQ or AWQ"),
            _ if name.ends_with(".weight_packed") => Some("compressed-tensors"),
            _ => None,
        };
        let found = checkpoint.tensors().find_map(|tensor| Some((&tensor.name, method(&tensor.name)?)));
        found.map_or(Ok(()), |(name, method)| {
            Err(config.problem(format!(
                "the tensor `{name}` was quantized with {method}, but `quantization_config` is missing here, and so are \
                 quantize_config.json and quant_config.json beside it: take them from where the weights come from"
            )))
        })
    }
}

/// What files beside the configuration say, where it says nothing: GPTQ's as AutoGPTQ wrote them first, AWQ's as AutoAWQ did.
fn beside(config: &Config) -> Result<Quantization> {
    if let Some(section) = config.beside("quantize_config.json")? {
        return gptq(config, &section);
    }
    match config.beside("quant_config.json")? {
        Some(section) if section.contains_key("w_bit") || section.contains_key("q_group_size") => awq(config, &section),
        _ => Ok(Quantization::None),
    }
}

/// Compressed-tensors: all groups must have weights of 8-bit floats, with blocks of one size if any, or all integers.
fn compressed(config: &Config, section: &Map<String, Value>) -> Result<Quantization> {
    let format = text(section, "format").unwrap_or("unnamed");
    let refuse = |what: String| Err(config.unsupported(format!("compressed-tensors with {what} (format `{format}`)")));
    let sparsity = section.get("sparsity_config").and_then(|sparsity| text(sparsity.as_object()?, "format"));
    if let Some(sparsity) = sparsity.filter(|sparsity| *sparsity != "dense") {
        return refuse(format!("sparse weights, `{sparsity}`"));
    }
    let transforms = section.get("transform_config").and_then(Value::as_object);
    if transforms.is_some_and(|transforms| !transforms.is_empty()) {
        return refuse("transformed weights (transform_config)".into());
    }
    let packed = match format {
        "pack-quantized" => true,
        "float-quantized" | "naive-quantized" | "int-quantized" => false,
        _ => return refuse("weights in that format".into()),
    };
    let groups = section.get("config_groups").and_then(Value::as_object);
    let (mut block, mut floats, mut integers) = (None, false, Vec::new());
    for weights in groups.into_iter().flat_map(Map::values).filter_map(|group| group.get("weights")?.as_object()) {
        let (kind, bits) = (text(weights, "type").unwrap_or("int"), weights.get("num_bits").and_then(Value::as_u64));
        let bits = bits.unwrap_or(8) as usize;
        match (kind, bits, packed) {
            ("float", 8, false) => {
                floats = true;
                match text(weights, "strategy") {
                    Some("tensor" | "channel") | None => {}
                    Some("block") => block = block_size(config, weights, "block_structure")?,
                    Some(other) => return refuse(format!("weights by `{other}`")),
                }
            }
            // Numbers of 4 bits that are not in words are in bytes of their own.
            ("int", 4 | 8, _) => integers.push(Integers {
                bits,
                packed,
                symmetric: weights.get("symmetric") != Some(&Value::Bool(false)),
                scale: scale_for(config, weights)?,
            }),
            _ => return refuse(format!("weights of type {kind} with {bits} bits")),
        }
    }
    match (integers.is_empty(), floats) {
        (true, _) if packed => refuse("no group of weights".into()),
        (true, _) => Ok(Quantization::Factors { suffix: "_scale", block }),
        (false, false) => Ok(Quantization::Integers(integers)),
        (false, true) => refuse("both integers and floats".into()),
    }
}

/// What the scales of integers are for.
fn scale_for(config: &Config, weights: &Map<String, Value>) -> Result<ScaleFor> {
    let group = group(config, weights, "group_size")?;
    match (text(weights, "strategy"), group) {
        (Some("group"), Some(group)) | (None, Some(group)) => Ok(ScaleFor::Group(group)),
        (Some("channel"), _) | (Some("group"), None) => Ok(ScaleFor::Row),
        (Some("tensor") | None, _) => Ok(ScaleFor::All),
        (Some(other), _) => Err(config.unsupported(format!("compressed-tensors with integers by `{other}`"))),
    }
}

fn gptq(config: &Config, section: &Map<String, Value>) -> Result<Quantization> {
    let refuse = |what: String| Err(config.unsupported(format!("GPTQ with {what}")));
    let bits = match section.get("bits").and_then(Value::as_u64) {
        Some(bits @ (4 | 8)) => bits as usize,
        Some(bits) => return refuse(format!("{bits} bits (4 and 8 are)")),
        None => return Err(config.problem("GPTQ without `bits` (quantization_config)")),
    };
    let format = text(section, "checkpoint_format").or(text(section, "format")).unwrap_or("gptq");
    let less_one = match format {
        "gptq" => true,
        "gptq_v2" => false,
        other => return refuse(format!("weights in the format `{other}` (gptq, gptq_v2 are)")),
    };
    if is_set(section, "is_marlin_format") {
        return refuse("weights in the format `marlin` (gptq, gptq_v2 are)".into());
    }
    if let Some(other) = text(section, "pack_dtype").filter(|dtype| *dtype != "int32") {
        return refuse(format!("weights in words of type `{other}`"));
    }
    // Rules of this kind leave modules as they were, which their tensors say.
    let rules = section.get("dynamic").and_then(Value::as_object).into_iter().flat_map(Map::keys);
    if let Some(rule) = rules.into_iter().find(|rule| !rule.starts_with("-:")) {
        return refuse(format!("options for single modules, `{rule}` (dynamic)"));
    }
    let (symmetric, ordered) = (is_set(section, "sym"), is_set(section, "desc_act"));
    Ok(Quantization::Gptq(Gptq { bits, group: group(config, section, "group_size")?, less_one, symmetric, ordered }))
}

fn awq(config: &Config, section: &Map<String, Value>) -> Result<Quantization> {
    let refuse = |what: String| Err(config.unsupported(format!("AWQ with {what}")));
    let version =
        ["version", "format", "checkpoint_format"].iter().find_map(|key| text(section, key)).unwrap_or("gemm");
    if !version.eq_ignore_ascii_case("gemm") {
        return refuse(format!("weights in the version `{version}` (gemm is)"));
    }
    match section.get("bits").or(section.get("w_bit")).and_then(Value::as_u64) {
        Some(4) | None => {}
        Some(bits) => return refuse(format!("{bits} bits (4 are)")),
    }
    if section.get("zero_point") == Some(&Value::Bool(false)) {
        return refuse("weights that have no zeros (`zero_point` is false)".into());
    }
    let key = if section.contains_key("q_group_size") { "q_group_size" } else { "group_size" };
    Ok(Quantization::Awq { group: group(config, section, key)? })
}

/// The length of groups; -1 and null mean that there is one.
fn group(config: &Config, section: &Map<String, Value>, key: &str) -> Result<Option<usize>> {
    match section.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_i64() {
            Some(-1) => Ok(None),
            Some(size) if (1..1 << 31).contains(&size) => Ok(Some(size as usize)),
            _ => Err(config.wrong(&format!("quantization_config.{key}"), "a whole number of at least 1, or -1", value)),
        },
    }
}

fn is_set(section: &Map<String, Value>, key: &str) -> bool {
    section.get(key) == Some(&Value::Bool(true))
}

/// Two sizes, rows and columns, as a list or a text such as `128x128`.
fn block_size(config: &Config, section: &Map<String, Value>, key: &str) -> Result<Option<Block>> {
    let Some(value) = section.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
    let sizes = match value {
        // As compressed-tensors wrote it first.
        Value::String(text) => text.split('x').map(|size| size.parse().ok()).collect(),
        _ => value.as_array().map_or(Vec::new(), |sizes| sizes.iter().map(Value::as_u64).collect::<Vec<_>>()),
    };
    match sizes[..] {
        [Some(rows), Some(cols)] if rows > 0 && rows < 1 << 31 && cols.is_power_of_two() && cols >= 16 => {
            Ok(Some((rows as usize, cols as usize)))
        }
        _ => Err(config.unsupported(format!("`{key}`: {value} (quantization_config)"))),
    }
}

fn text<'a>(section: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    section.get(key).and_then(Value::as_str)
}
