//! Llama 2, 3, 3.1, 3.2, and what is published under the same class: Yi, and many fine-tunes. Pre-norm decoder with
//! RMSNorm, rotate-half RoPE, grouped-query attention and SwiGLU (Touvron et al., 2023, arXiv:2307.09288; names and
//! defaults as in transformers' `LlamaConfig`).

use crate::error::Result;
use crate::program::Program;

use super::builder::{Builder, Defaults, Dense};
use super::{Config, Family};

pub const FAMILY: Family = Family { name: "llama", architectures: &["LlamaForCausalLM", "LLaMAForCausalLM"], build };

fn build(config: &Config, builder: Builder) -> Result<Program> {
    let bias = config.flag("attention_bias", false)?;
    let dense = Dense::read(config, Defaults { kv_heads: None, head_dim: None, max_positions: 2048 })?;
    builder.dense(Dense { qkv_bias: bias, output_bias: bias, mlp_bias: config.flag("mlp_bias", false)?, ..dense })
}
