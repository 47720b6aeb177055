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

use serde_json::{Map, Value};

use crate::error::Result;

use super::Config;

/// Where the factors of quantised weights are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// Every tensor is what its type says.
    None,
    /// A tensor beside the weights, with this ending of its name; if there are blocks, of so many rows and columns.
    Factors { suffix: &'static str, block: Option<(usize, usize)> },
}

/// What one factor is for: so many rows and columns.
pub type Block = (usize, usize);

impl Quantization {
    /// Reads what a configuration says.
    ///
    /// # Errors
    /// A method, or an option of one, that is not implemented.
    pub fn read(config: &Config) -> Result<Quantization> {
        let section = match config.section("quantization_config")? {
            Some(section) => section,
            None => match config.section("compression_config")? {
                Some(section) => section,
                None => return Ok(Quantization::None),
            },
        };
        let method = section.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed");
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
            _ => Err(config.unsupported(format!("a checkpoint quantized with `{method}` (quantization_config)"))),
        }
    }

    /// The block that each factor is for, of a `[rows, cols]` matrix whose factors have this shape; `None` if none fits.
    pub fn block(self, rows: usize, cols: usize, shape: &[usize]) -> Option<Block> {
        let Quantization::Factors { block, .. } = self else { return None };
        if shape.iter().product::<usize>() == 1 {
            return Some((rows, cols));
        }
        match (shape, block) {
            ([count] | [count, 1], None) if *count == rows => Some((1, cols)),
            ([down, across], Some((r, c))) if *down == rows.div_ceil(r) && *across == cols.div_ceil(c) => Some((r, c)),
            _ => None,
        }
    }
}

/// Compressed-tensors: all groups must have weights of 8-bit floats, and blocks of one size if any.
fn compressed(config: &Config, section: &Map<String, Value>) -> Result<Quantization> {
    let format = text(section, "format").unwrap_or("unnamed");
    let refuse = |what: String| Err(config.unsupported(format!("compressed-tensors with {what} (format `{format}`)")));
    let groups = section.get("config_groups").and_then(Value::as_object);
    let mut block = None;
    for weights in groups.into_iter().flat_map(Map::values).filter_map(|group| group.get("weights")?.as_object()) {
        let (kind, bits) = (text(weights, "type").unwrap_or("int"), weights.get("num_bits").and_then(Value::as_u64));
        if (kind, bits) != ("float", Some(8)) {
            return refuse(format!("weights of type {kind} with {} bits", bits.unwrap_or(8)));
        }
        match text(weights, "strategy") {
            Some("tensor" | "channel") | None => {}
            Some("block") => block = block_size(config, weights, "block_structure")?,
            Some(other) => return refuse(format!("weights by `{other}`")),
        }
    }
    if !matches!(format, "float-quantized" | "naive-quantized") {
        return refuse("weights in a packed form".into());
    }
    let sparsity = section.get("sparsity_config").and_then(|sparsity| text(sparsity.as_object()?, "format"));
    if let Some(sparsity) = sparsity.filter(|sparsity| *sparsity != "dense") {
        return refuse(format!("sparse weights, `{sparsity}`"));
    }
    Ok(Quantization::Factors { suffix: "_scale", block })
}

/// A list of two sizes: rows and columns.
fn block_size(config: &Config, section: &Map<String, Value>, key: &str) -> Result<Option<Block>> {
    let Some(value) = section.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
    let sizes = value.as_array().map(|sizes| sizes.iter().map(Value::as_u64).collect::<Vec<_>>());
    match sizes.as_deref() {
        Some(&[Some(rows), Some(cols)]) if rows > 0 && rows < 1 << 31 && cols.is_power_of_two() && cols >= 16 => {
            Ok(Some((rows as usize, cols as usize)))
        }
        _ => Err(config.unsupported(format!("`{key}`: {value} (quantization_config)"))),
    }
}

fn text<'a>(section: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    section.get(key).and_then(Value::as_str)
}
