//! Qwen3, dense: no projection biases by default, RMSNorm on every query and key head, and a head size of its own (Yang
//! et al., 2025, arXiv:2505.09388; names and defaults as in transformers' `Qwen3Config`).

use serde_json::json;

use crate::error::Result;
use crate::program::Program;

use super::builder::Builder;
use super::dense::{Dense, QkNorm};
use super::qwen2::windows;
use super::{Config, Family};

pub const FAMILY: Family = Family {
    name: "qwen3",
    architectures: &["Qwen3ForCausalLM"],
    special: "norms on query and key heads, a head size of its own",
    build,
};

fn build(config: &Config, builder: Builder) -> Result<Program> {
    let config = config.or(json!({
        "hidden_act": "silu", "num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32_768
    }));
    let bias = config.flag("attention_bias", false)?;
    let dense = Dense::read(&config)?;
    let windows = windows(&config, dense.layers)?;
    builder.dense(Dense { qkv_bias: bias, output_bias: bias, qk_norm: QkNorm::Heads, windows, ..dense })
}
