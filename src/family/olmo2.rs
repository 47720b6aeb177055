//! OLMo 2: Llama that normalises what attention and MLP give instead of what they read, and queries and keys over their
//! whole width (OLMo team, 2024, arXiv:2501.00656; names and defaults as in transformers' `Olmo2Config`).

use serde_json::json;

use crate::error::Result;
use crate::program::Program;

use super::builder::Builder;
use super::dense::{Dense, LLAMA, Names, QkNorm};
use super::{Config, Family};

pub const FAMILY: Family = Family {
    name: "olmo2",
    architectures: &["Olmo2ForCausalLM"],
    special: "norms behind attention and MLP only, norms over all queries and all keys",
    build,
};

const NAMES: Names = Names {
    attention_norm: None,
    attention_post_norm: Some("post_attention_layernorm"),
    mlp_norm: None,
    mlp_post_norm: Some("post_feedforward_layernorm"),
    ..LLAMA
};

fn build(config: &Config, builder: Builder) -> Result<Program> {
    let config = config.or(json!({"hidden_act": "silu", "max_position_embeddings": 2048, "norm_eps": 1e-5}));
    let bias = config.flag("attention_bias", false)?;
    let dense = Dense::read(&config)?;
    builder.dense(Dense { names: NAMES, qkv_bias: bias, output_bias: bias, qk_norm: QkNorm::Whole, ..dense })
}
