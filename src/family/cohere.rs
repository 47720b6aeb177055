//! Command R (Cohere) and Command R7B, A (Cohere 2), with names and defaults as in transformers' `CohereConfig` and
//! `Cohere2Config`: attention and MLP in parallel behind one LayerNorm without bias, rotation in neighbouring pairs, scaled
//! logits. In Cohere 2 most layers have a window, and those that have none do not rotate.

use serde_json::json;

use crate::error::Result;
use crate::program::{Program, RopeStyle};

use super::builder::Builder;
use super::dense::{Dense, LLAMA, Names, QkNorm};
use super::rope::Rotation;
use super::{Config, Family};

pub const FAMILY: Family = Family {
    name: "cohere",
    architectures: &["CohereForCausalLM"],
    special: "attention and MLP in parallel, LayerNorm, rotation in pairs, scaled logits",
    build,
};

pub const COHERE2: Family = Family {
    name: "cohere2",
    architectures: &["Cohere2ForCausalLM"],
    special: "as cohere; windows on most layers, no rotation on the others",
    build: build_cohere2,
};

fn build(config: &Config, builder: Builder) -> Result<Program> {
    let config = config.or(json!({"max_position_embeddings": 8192, "rope_theta": 5e5}));
    let dense = read(&config)?;
    let qk_norm = if config.flag("use_qk_norm", false)? { QkNorm::EachHead } else { QkNorm::None };
    builder.dense(Dense { qk_norm, ..dense })
}

fn build_cohere2(config: &Config, builder: Builder) -> Result<Program> {
    let config =
        config.or(json!({"max_position_embeddings": 8192, "sliding_window": 4096, "sliding_window_pattern": 4}));
    config.require("use_qk_norm", false)?;
    let dense = read(&config)?;
    let pattern = config.count("sliding_window_pattern")?;
    let slides = config.sliding_layers(dense.layers, |layer| (layer + 1) % pattern != 0)?;
    let layer_ropes = slides.iter().map(|slides| slides.then_some(0)).collect();
    builder.dense(Dense { layer_ropes, windows: config.windows(&slides)?, ..dense })
}

fn read(config: &Config) -> Result<Dense> {
    let config = config.or(json!({"hidden_act": "silu", "tie_word_embeddings": true, "norm_eps": 1e-5}));
    config.require("use_parallel_block", true)?;
    config.require("use_gated_activation", true)?;
    let bias = config.flag("attention_bias", false)?;
    let dense = Dense::without_rope(&config)?.with_layer_norm(false);
    let rotation = Rotation::new(dense.head_dim, dense.max_positions);
    let rope = Rotation { style: RopeStyle::Interleaved, ..rotation }.read(&config)?;
    Ok(Dense {
        names: Names { mlp_norm: None, ..LLAMA },
        parallel: true,
        qkv_bias: bias,
        output_bias: bias,
        logit_scale: config.number("logit_scale", 0.0625)? as f32,
        ..dense.with_rope(rope)
    })
}
