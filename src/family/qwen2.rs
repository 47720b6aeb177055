//! Qwen2 and Qwen2.5: Llama with biases on the query, key and value projections, and optionally a sliding window on the
//! upper layers (Yang et al., 2024, arXiv:2407.10671; names and defaults as in transformers' `Qwen2Config`).

use serde_json::json;

use crate::error::Result;
use crate::program::Program;

use super::builder::Builder;
use super::dense::Dense;
use super::{Config, Family};

pub const FAMILY: Family = Family {
    name: "qwen2",
    architectures: &["Qwen2ForCausalLM"],
    special: "biases on q, k, v; optional window on upper layers",
    build,
};

fn build(config: &Config, builder: Builder) -> Result<Program> {
    let config = config.or(json!({"hidden_act": "silu", "num_key_value_heads": 32, "max_position_embeddings": 32_768}));
    let dense = Dense::read(&config)?;
    let windows = windows(&config, dense.layers)?;
    builder.dense(Dense { qkv_bias: true, windows, ..dense })
}

/// Which layers of a Qwen2 or Qwen3 model see a window: those that `layer_types` names, else those from
/// `max_window_layers` (28) up; none unless `use_sliding_window`.
pub(super) fn windows(config: &Config, layers: usize) -> Result<Vec<Option<usize>>> {
    let used = config.flag("use_sliding_window", false)?;
    let first = config.number("max_window_layers", 28.0)? as usize;
    windows_where(config, layers, |layer| used && layer >= first)
}

/// The same, but where `layer_types` is silent, as `by_default` says.
pub(super) fn windows_where(
    config: &Config,
    layers: usize,
    by_default: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>> {
    let window = config.has("sliding_window");
    let slides = config.sliding_layers(layers, |layer| window && by_default(layer))?;
    match config.flag("use_sliding_window", false)? {
        true => config.windows(&slides),
        false if slides.contains(&true) => {
            Err(config.problem("`layer_types` has sliding layers, but `use_sliding_window` is off"))
        }
        false => Ok(vec![None; layers]),
    }
}
