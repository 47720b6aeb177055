//! GLM-4 in the layout of transformers: `glm` (GLM-4-9B), and `glm4` (GLM-4-0414), which also normalises what attention and
//! MLP give (names and defaults as in transformers' `GlmConfig` and `Glm4Config`). A part of each head turns, in
//! neighbouring pairs.

use serde_json::json;

use crate::error::Result;
use crate::program::{Program, RopeStyle};

use super::builder::Builder;
use super::dense::{Dense, LLAMA, Mlp, Names};
use super::rope::Rotation;
use super::{Config, Family};

pub const FAMILY: Family = Family {
    name: "glm",
    architectures: &["GlmForCausalLM"],
    special: "half of each head turns, in pairs; packed gate and up",
    build,
};

pub const GLM4: Family = Family {
    name: "glm4",
    architectures: &["Glm4ForCausalLM"],
    special: "as glm, with norms behind attention and MLP too",
    build: build_glm4,
};

const NAMES: Names = Names { mlp: Mlp::Packed("mlp.gate_up_proj"), ..LLAMA };

fn build(config: &Config, builder: Builder) -> Result<Program> {
    builder.dense(Dense { names: NAMES, ..read(config)? })
}

fn build_glm4(config: &Config, builder: Builder) -> Result<Program> {
    let names = Names {
        attention_post_norm: Some("post_self_attn_layernorm"),
        mlp_post_norm: Some("post_mlp_layernorm"),
        ..NAMES
    };
    builder.dense(Dense { names, ..read(config)? })
}

fn read(config: &Config) -> Result<Dense> {
    let config = config.or(json!({
        "hidden_act": "silu", "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 131_072,
        "norm_eps": 1.5625e-7
    }));
    let dense = Dense::without_rope(&config)?;
    let rotation = Rotation::new(dense.head_dim, dense.max_positions);
    let rope = Rotation { style: RopeStyle::Interleaved, partial: Some(0.5), ..rotation }.read(&config)?;
    Ok(Dense { qkv_bias: config.flag("attention_bias", true)?, ..dense.with_rope(rope) })
}
