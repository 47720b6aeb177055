//! Qwen3, dense: no projection biases by default, RMSNorm on every query and key head, and a head size of its own (Yang
//! et al., 2025, arXiv:2505.09388; names and defaults as in transformers' `Qwen3Config`).

use crate::error::Result;
use crate::program::Program;

use super::builder::{Builder, Defaults, Dense};
use super::qwen2::windows;
use super::{Config, Family};

pub const FAMILY: Family = Family { name: "qwen3", architectures: &["Qwen3ForCausalLM"], build };

fn build(config: &Config, builder: Builder) -> Result<Program> {
    let bias = config.flag("attention_bias", false)?;
    let dense = Dense::read(config, Defaults { kv_heads: Some(32), head_dim: Some(128), max_positions: 32_768 })?;
    let windows = windows(config, dense.layers)?;
    builder.dense(Dense { qkv_bias: bias, output_bias: bias, qk_norm: true, windows, ..dense })
}
