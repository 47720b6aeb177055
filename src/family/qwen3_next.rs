//! Qwen3-Next and Qwen3.5 with and without experts, the text part: most layers keep a state of fixed size by the gated delta rule; every fourth or
//! so attends, rotates a quarter of each head, and scales what it attended to by a sigmoid (names and defaults as in
//! transformers' `Qwen3NextConfig`, `Qwen3_5TextConfig` and `Qwen3_5MoeTextConfig`). Text has the same position in all parts of Qwen3.5's rotation.

use serde_json::json;

use crate::error::Result;
use crate::program::Program;

use super::builder::{Builder, NormStyle};
use super::delta::{Delta, Inputs};
use super::dense::{Dense, QkNorm};
use super::rope::Rotation;
use super::{Config, Family, qwen_moe};

pub const QWEN3_NEXT: Family = Family {
    name: "qwen3_next",
    architectures: &["Qwen3NextForCausalLM"],
    special: "gated delta rule on most layers; experts beside a gated shared one",
    build: build_next,
};

pub const QWEN3_5: Family = Family {
    name: "qwen3_5",
    architectures: &["Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"],
    special: "gated delta rule on most layers",
    build: build_3_5,
};

pub const QWEN3_5_MOE: Family = Family {
    name: "qwen3_5_moe",
    architectures: &["Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"],
    special: "gated delta rule on most layers; experts beside a gated shared one",
    build: build_3_5_moe,
};

fn build_next(config: &Config, builder: Builder) -> Result<Program> {
    let config = config.or(json!({
        "hidden_act": "silu", "num_key_value_heads": 2, "head_dim": 256, "max_position_embeddings": 32_768,
        "num_experts": 512, "num_experts_per_tok": 10, "moe_intermediate_size": 512, "norm_topk_prob": true,
        "shared_expert_intermediate_size": 512, "intermediate_size": 5632
    }));
    let dense = common(&config, Inputs::Grouped)?;
    let sparse = qwen_moe::shared(&config, qwen_moe::sparse(&config, &dense)?)?;
    builder.dense(Dense { moe: Some(sparse), ..dense })
}

fn build_3_5(config: &Config, builder: Builder) -> Result<Program> {
    let config = config.text()?.or(json!({
        "hidden_act": "silu", "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 32_768
    }));
    config.require("attn_output_gate", true)?;
    builder.dense(common(&config, Inputs::Separate)?)
}

fn build_3_5_moe(config: &Config, builder: Builder) -> Result<Program> {
    // Its router always renormalises, whatever a configuration that comes from an older family may say.
    let config = config.text()?.or(json!({
        "hidden_act": "silu", "num_key_value_heads": 2, "head_dim": 256, "max_position_embeddings": 32_768,
        "num_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512, "intermediate_size": 512
    }));
    config.require("attn_output_gate", true)?;
    let dense = common(&config, Inputs::Separate)?;
    let mut sparse = qwen_moe::shared(&config, qwen_moe::sparse(&config, &dense)?)?;
    sparse.moe.routing.renormalise = true;
    builder.dense(Dense { moe: Some(sparse), ..dense })
}

fn common(config: &Config, inputs: Inputs) -> Result<Dense> {
    let bias = config.flag("attention_bias", false)?;
    let dense = Dense::without_rope(config)?;
    let rotation = Rotation { partial: Some(0.25), ..Rotation::new(dense.head_dim, dense.max_positions) };
    let delta = Delta::read(config, dense.layers, inputs)?;
    let norm = NormStyle { offset: 1.0, ..dense.norm };
    let dense = dense.with_rope(rotation.read(config)?);
    Ok(Dense {
        norm,
        qkv_bias: bias,
        output_bias: bias,
        qk_norm: QkNorm::Heads,
        gated: true,
        delta: Some(delta),
        ..dense
    })
}
