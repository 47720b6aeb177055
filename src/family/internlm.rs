//! InternLM and InternLM 2 (Cai et al., 2024, arXiv:2403.17297; names as in the published modeling code). The first is
//! Llama with biases around attention; the second packs queries, keys and values, each key head's together.

use serde_json::json;

use crate::error::Result;
use crate::program::Program;

use super::builder::Builder;
use super::dense::{Dense, LLAMA, Mlp, Names, Qkv};
use super::{Config, Family};

pub const FAMILY: Family =
    Family { name: "internlm", architectures: &["InternLMForCausalLM"], special: "biases on q, k, v, o", build };

pub const INTERNLM2: Family = Family {
    name: "internlm2",
    architectures: &["InternLM2ForCausalLM"],
    special: "q, k, v interleaved by key head; rope scaling (linear, dynamic)",
    build: build_internlm2,
};

const INTERNLM2_NAMES: Names = Names {
    embedding: "tok_embeddings",
    attention_norm: Some("attention_norm"),
    qkv: Qkv::Grouped("attention.wqkv"),
    attention_output: "attention.wo",
    mlp_norm: Some("ffn_norm"),
    mlp: Mlp::Gated { gate: "feed_forward.w1", up: "feed_forward.w3" },
    mlp_output: "feed_forward.w2",
    head: "output",
    ..LLAMA
};

fn build(config: &Config, builder: Builder) -> Result<Program> {
    let config = config.or(json!({"hidden_act": "silu", "max_position_embeddings": 2048, "bias": true}));
    let bias = config.flag("bias", true)?;
    let dense = Dense::read(&config)?;
    builder.dense(Dense { qkv_bias: bias, output_bias: bias, ..dense })
}

fn build_internlm2(config: &Config, builder: Builder) -> Result<Program> {
    let config = config.or(json!({"hidden_act": "silu", "max_position_embeddings": 2048, "bias": true}));
    let bias = config.flag("bias", true)?;
    let dense = Dense::read(&config)?;
    builder.dense(Dense { names: INTERNLM2_NAMES, qkv_bias: bias, output_bias: bias, ..dense })
}
