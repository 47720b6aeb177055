//! Gemma, Gemma 2 and Gemma 3 (arXiv:2403.08295, arXiv:2408.00118, arXiv:2503.19786; names and defaults as in transformers'
//! configurations): embeddings scaled by the root of their width, norms that store weight − 1, GELU gates. Gemma 2 adds
//! norms behind attention and MLP, soft caps, and windows on every other layer; Gemma 3 norms on queries and keys, and two
//! rotations. Of a multimodal Gemma 3 the text part is run.

use serde_json::{Value, json};

use crate::error::Result;
use crate::program::{Activation, Program};

use super::builder::{Builder, NormStyle};
use super::dense::{Dense, LLAMA, Names, QkNorm};
use super::rope::Rotation;
use super::{Config, Family};

pub const FAMILY: Family = Family {
    name: "gemma",
    architectures: &["GemmaForCausalLM"],
    special: "norm weights less 1, scaled embeddings, GELU gates",
    build,
};

pub const GEMMA2: Family = Family {
    name: "gemma2",
    architectures: &["Gemma2ForCausalLM"],
    special: "as gemma; norms behind attention and MLP, soft caps, windows on every other layer",
    build: build_gemma2,
};

pub const GEMMA3: Family = Family {
    name: "gemma3",
    architectures: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
    special: "as gemma2 without caps; norms on q and k, two rotations; the text part of multimodal checkpoints",
    build: build_gemma3,
};

const SANDWICH: Names = Names {
    attention_post_norm: Some("post_attention_layernorm"),
    mlp_norm: Some("pre_feedforward_layernorm"),
    mlp_post_norm: Some("post_feedforward_layernorm"),
    ..LLAMA
};

fn build(config: &Config, builder: Builder) -> Result<Program> {
    let config = config.or(defaults());
    let dense = Dense::read(&config)?;
    // Early configurations say "gelu" under the older key and mean the approximation.
    let activation = match config.has("hidden_activation") {
        true => config.activation("hidden_activation")?,
        false if dense.activation == Activation::Gelu => Activation::GeluTanh,
        false => dense.activation,
    };
    builder.dense(Dense { activation, ..common(&config, dense)? })
}

fn build_gemma2(config: &Config, builder: Builder) -> Result<Program> {
    let config = config.or(defaults()).or(json!({
        "num_key_value_heads": 4, "sliding_window": 4096, "query_pre_attn_scalar": 256,
        "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0
    }));
    let dense = common(&config, Dense::read(&config)?)?;
    let windows = config.windows(&config.sliding_layers(dense.layers, |layer| layer % 2 == 0)?)?;
    builder.dense(Dense { windows, ..later(&config, dense)? })
}

fn build_gemma3(config: &Config, builder: Builder) -> Result<Program> {
    // The published multimodal configurations leave out what is as in the class.
    let config = config.or(json!({
        "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 131_072,
        "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "sliding_window": 4096,
        "sliding_window_pattern": 6
    }));
    let config = config.or(defaults());
    config.require("use_bidirectional_attention", false)?;
    let dense = common(&config, Dense::without_rope(&config)?)?;
    let pattern = config.count("sliding_window_pattern")?;
    let slides = config.sliding_layers(dense.layers, |layer| (layer + 1) % pattern != 0)?;
    let rotation = Rotation::new(dense.head_dim, dense.max_positions);
    let full = Rotation { theta: 1e6, layer_type: Some("full_attention"), ..rotation }.read(&config)?;
    let local = match config.section("rope_parameters")?.is_some_and(|keys| keys.contains_key("sliding_attention")) {
        true => Rotation { layer_type: Some("sliding_attention"), ..rotation }.read(&config)?,
        false => rotation.plain(&config, config.number("rope_local_base_freq", 10_000.0)?, dense.head_dim)?,
    };
    builder.dense(Dense {
        ropes: vec![full, local],
        layer_ropes: slides.iter().map(|slides| Some(usize::from(*slides))).collect(),
        windows: config.windows(&slides)?,
        qk_norm: QkNorm::Heads,
        ..later(&config, dense)?
    })
}

fn defaults() -> Value {
    json!({
        "hidden_act": "gelu_pytorch_tanh", "head_dim": 256, "max_position_embeddings": 8192, "tie_word_embeddings": true
    })
}

/// What all generations share.
fn common(config: &Config, dense: Dense) -> Result<Dense> {
    let bias = config.flag("attention_bias", false)?;
    Ok(Dense {
        norm: NormStyle { offset: 1.0, ..dense.norm },
        qkv_bias: bias,
        output_bias: bias,
        embedding_scale: (dense.hidden as f32).sqrt(),
        ..dense
    })
}

/// What the second and the third share.
fn later(config: &Config, dense: Dense) -> Result<Dense> {
    let scalar = config.optional_number("query_pre_attn_scalar")?.unwrap_or(dense.head_dim as f64);
    Ok(Dense {
        names: SANDWICH,
        activation: config.activation("hidden_activation")?,
        scale: scalar.powf(-0.5) as f32,
        soft_cap: config.optional_number("attn_logit_softcapping")?.map(|cap| cap as f32),
        logit_cap: config.optional_number("final_logit_softcapping")?.map(|cap| cap as f32),
        ..dense
    })
}
