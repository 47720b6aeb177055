//! gpt-oss: experts with biases and a clamped activation, a window on every other layer, and for each head a sink that
//! takes its share of attention (OpenAI, 2025, arXiv:2508.10925; names and defaults as in transformers' `GptOssConfig`).

use serde_json::json;

use crate::error::Result;
use crate::program::{Gating, Packing, Program, Routing};

use super::builder::Builder;
use super::dense::Dense;
use super::moe::{Moe, Sparse, Stored};
use super::rope::Rotation;
use super::{Config, Family};

pub const FAMILY: Family = Family {
    name: "gpt_oss",
    architectures: &["GptOssForCausalLM"],
    special: "experts with biases; attention sinks; a window on every other layer",
    build,
};

/// What the gate is multiplied by inside of its sigmoid, where the configuration does not say.
const ALPHA: f64 = 1.702;

fn build(config: &Config, builder: Builder) -> Result<Program> {
    let config = config.or(json!({
        "hidden_act": "silu", "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131_072,
        "sliding_window": 128, "rms_norm_eps": 1e-5, "num_local_experts": 128, "num_experts_per_tok": 4,
        "attention_bias": true
    }));
    // Without a word about rotation, as published.
    let config = match config.has("rope_scaling") || config.has("rope_parameters") {
        true => config,
        false => config.with("rope_theta", 150_000.0).with(
            "rope_scaling",
            json!({
                "rope_type": "yarn", "factor": 32.0, "truncate": false, "original_max_position_embeddings": 4096
            }),
        ),
    };
    let bias = config.flag("attention_bias", true)?;
    let dense = Dense::without_rope(&config)?;
    let rotation = Rotation { theta: 150_000.0, ..Rotation::new(dense.head_dim, dense.max_positions) };
    let windows = config.windows(&config.sliding_layers(dense.layers, |layer| layer % 2 == 0)?)?;
    let routing = Routing { renormalise: true, ..Routing::softmax(config.count("num_experts_per_tok")?) };
    let limit = config.optional_number("swiglu_limit")?.unwrap_or(7.0) as f32;
    let moe = Moe {
        gating: Gating::Clamped { alpha: config.number("swiglu_alpha", ALPHA)? as f32, limit },
        stored: Stored::Columns(Packing::Pairs),
        biases: true,
        ..Moe::new(&dense, dense.intermediate, config.count("num_local_experts")?, routing).check(&config)?
    };
    let sparse = Sparse { router: "router", ..Sparse::new(moe, vec![true; dense.layers]) };
    let dense = dense.with_rope(rotation.read(&config)?);
    let sinks = Some("self_attn.sinks");
    builder.dense(Dense { qkv_bias: bias, output_bias: bias, windows, sinks, moe: Some(sparse), ..dense })
}
