//! Llama 2, 3, 3.1, 3.2, and what is published under the same class: Yi, and many fine-tunes. Pre-norm decoder with
//! RMSNorm, rotate-half RoPE, grouped-query attention and SwiGLU (Touvron et al., 2023, arXiv:2307.09288; names and
//! defaults as in transformers' `LlamaConfig`).

use serde_json::json;

use crate::error::Result;
use crate::program::Program;

use super::builder::Builder;
use super::dense::Dense;
use super::{Config, Family};

pub const FAMILY: Family = Family {
    name: "llama",
    architectures: &["LlamaForCausalLM", "LLaMAForCausalLM"],
    special: "grouped queries, rope scaling (linear, dynamic, llama3, yarn), optional biases, tied heads; Yi",
    build,
};

fn build(config: &Config, builder: Builder) -> Result<Program> {
    let config = config.or(json!({"hidden_act": "silu", "max_position_embeddings": 2048}));
    let bias = config.flag("attention_bias", false)?;
    let dense = Dense::read(&config)?;
    builder.dense(Dense { qkv_bias: bias, output_bias: bias, mlp_bias: config.flag("mlp_bias", false)?, ..dense })
}
