//! InternLM and InternLM 2 (Cai et al., 2024, arXiv:2403.17297; names as in the published modeling code). The first is
//! Llama with biases around attention; the second packs queries, keys and values, each key head's together.

use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::program::{Dynamic, Program, Rope};

use super::builder::Builder;
use super::dense::{Dense, LLAMA, Mlp, Names, Qkv};
use super::rope::Rotation;
use super::{Config, Family};

pub const FAMILY: Family = Family {
    name: "internlm",
    architectures: &["InternLMForCausalLM"],
    special: "biases on q, k, v, o; dynamic NTK over keys that are cached unrotated",
    build,
};

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
    let dense = Dense::without_rope(&config)?;
    let rotation = Rotation::new(dense.head_dim, dense.max_positions);
    let (rope, turn_cached_keys) = match config.section("rotary")? {
        None => (rotation.read(&config)?, false),
        Some(keys) => rotary(&config, rotation, keys)?,
    };
    builder.dense(Dense { qkv_bias: bias, output_bias: bias, turn_cached_keys, ..dense.with_rope(rope) })
}

/// The configuration's own way to say it: `{"base": 10000, "type": "dynamic"}`. With it, and only then, the original
/// turns cached keys anew with the frequencies of each step.
fn rotary(config: &Config, rotation: Rotation, keys: &Map<String, Value>) -> Result<(Rope, bool)> {
    let number = |key: &str, default: f64| match keys.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value.as_f64().ok_or_else(|| config.wrong(key, "a number", value)),
    };
    let base = number("base", 10_000.0)?;
    let plain = rotation.plain(config, base, rotation.head_dim)?;
    match keys.get("type").and_then(Value::as_str) {
        Some("origin") => Ok((plain, false)),
        Some("dynamic") => {
            let factor = number("scaling_factor", 1.0)?;
            let dynamic = Dynamic::Ntk { base, factor, original: rotation.max_positions, dim: rotation.head_dim };
            Ok((Rope { dynamic: Some(dynamic), ..plain }, true))
        }
        Some(other) => Err(config.unsupported(format!("`rotary` of type `{other}`"))),
        None => Err(config.problem("`rotary` without a `type`")),
    }
}

fn build_internlm2(config: &Config, builder: Builder) -> Result<Program> {
    let config = config.or(json!({"hidden_act": "silu", "max_position_embeddings": 2048, "bias": true}));
    let bias = config.flag("bias", true)?;
    let dense = Dense::read(&config)?;
    builder.dense(Dense { names: INTERNLM2_NAMES, qkv_bias: bias, output_bias: bias, ..dense })
}
