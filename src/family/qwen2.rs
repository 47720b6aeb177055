//! Qwen2 and Qwen2.5: Llama with biases on the query, key and value projections, and optionally a sliding window on the
//! upper layers (Yang et al., 2024, arXiv:2407.10671; names and defaults as in transformers' `Qwen2Config`).

use crate::error::Result;
use crate::program::Program;

use super::builder::{Builder, Defaults, Dense};
use super::{Config, Family};

pub const FAMILY: Family = Family { name: "qwen2", architectures: &["Qwen2ForCausalLM"], build };

fn build(config: &Config, builder: Builder) -> Result<Program> {
    let dense = Dense::read(config, Defaults { kv_heads: Some(32), head_dim: None, max_positions: 32_768 })?;
    let windows = windows(config, dense.layers)?;
    builder.dense(Dense { qkv_bias: true, windows, ..dense })
}

/// Which layers of a Qwen2 or Qwen3 model see a window: those that `layer_types` names, else those from
/// `max_window_layers` (28) up; none unless `use_sliding_window`.
pub(super) fn windows(config: &Config, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = match config.flag("use_sliding_window", false)? {
        true => Some(config.size("sliding_window")?),
        false => None,
    };
    if let Some(types) = config.strings("layer_types")? {
        if types.len() != layers {
            return Err(config.problem(format!("`layer_types` has {} entries for {layers} layers", types.len())));
        }
        let of = |kind: &&str| match (*kind, window) {
            ("full_attention", _) => Ok(None),
            ("sliding_attention", Some(window)) => Ok(Some(window)),
            ("sliding_attention", None) => {
                Err(config.problem("`layer_types` has sliding layers, but there is no `sliding_window` in use"))
            }
            (other, _) => Err(config.unsupported(format!("a layer of type `{other}` (layer_types)"))),
        };
        return types.iter().map(of).collect();
    }
    let first = config.number("max_window_layers", 28.0)? as usize;
    Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect())
}
