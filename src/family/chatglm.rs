//! ChatGLM2, ChatGLM3, and GLM-4 as published with their own code (Du et al., 2022, arXiv:2103.10360; names as in the
//! published `modeling_chatglm.py`): packed projections, few key heads, and a rotation of the first half of each head in
//! neighbouring pairs.

use serde_json::json;

use crate::error::Result;
use crate::program::{Program, Rope, RopeStyle};

use super::builder::Builder;
use super::dense::{Dense, LLAMA, Mlp, Names, Qkv};
use super::rope::Rotation;
use super::{Config, Family};

pub const FAMILY: Family = Family {
    name: "chatglm",
    architectures: &["ChatGLMModel", "ChatGLMForConditionalGeneration"],
    special: "ChatGLM2, ChatGLM3, GLM-4 with their own code: packed projections, half of each head turns, in pairs",
    build,
};

const QKV: &str = "self_attention.query_key_value";

const NAMES: Names = Names {
    root: "transformer.",
    embedding: "embedding.word_embeddings",
    layers: "encoder.layers",
    qkv: Qkv::Packed(QKV),
    attention_output: "self_attention.dense",
    mlp: Mlp::Packed("mlp.dense_h_to_4h"),
    mlp_output: "mlp.dense_4h_to_h",
    final_norm: "encoder.final_layernorm",
    head: "transformer.output_layer",
    ..LLAMA
};

fn build(config: &Config, builder: Builder) -> Result<Program> {
    // The first ChatGLM has the same class names and none of this layout.
    if config.has("position_encoding_2d") || config.has("inner_hidden_size") {
        return Err(config.unsupported("the first ChatGLM-6B (`position_encoding_2d`, `inner_hidden_size`)"));
    }
    let heads = config.count("num_attention_heads")?;
    // With as many key heads as queries, each head has its own three one after the other.
    let (groups, qkv) = match config.flag("multi_query_attention", false)? {
        true => (config.count("multi_query_group_num")?, Qkv::Packed(QKV)),
        false => (heads, Qkv::Grouped(QKV)),
    };
    let config = config.or(json!({
        "hidden_act": "silu", "num_key_value_heads": groups, "max_position_embeddings": 2048, "norm_eps": 1e-5
    }));
    config.require("apply_residual_connection_post_layernorm", false)?;
    config.require("post_layer_norm", true)?;
    config.require("quantization_bit", 0)?;
    if config.has("pre_seq_len") {
        return Err(config.unsupported("`pre_seq_len` (a trained prefix)"));
    }
    let dense = Dense::without_rope(&config)?;
    let dense = match config.flag("rmsnorm", true)? {
        true => dense,
        false => dense.with_layer_norm(true),
    };
    let bias = config.flag("add_bias_linear", false)?;
    let dense = Dense {
        names: Names { qkv, ..NAMES },
        qkv_bias: bias || config.flag("add_qkv_bias", false)?,
        output_bias: bias,
        mlp_bias: bias,
        ..dense
    };
    let rope = rope(&config, &dense)?;
    builder.dense(dense.with_rope(rope))
}

/// The frequencies, with `rope_ratio` where there is one: ChatGLM2's long variant divides positions by it, all others
/// multiply the base. Only the name that the checkpoint was saved under tells the two apart.
fn rope(config: &Config, dense: &Dense) -> Result<Rope> {
    let (head_dim, style) = (dense.head_dim, RopeStyle::Interleaved);
    let ratio = config.optional_number("rope_ratio")?.unwrap_or(1.0);
    let rotation = Rotation { style, ..Rotation::new(head_dim, dense.max_positions) };
    if !head_dim.is_multiple_of(4) {
        return Err(config.problem(format!("`kv_channels` {head_dim}: half of it cannot be rotated in pairs")));
    }
    let divides = config.text_of("_name_or_path").is_some_and(|name| name.to_lowercase().contains("chatglm2"));
    if !divides {
        return rotation.plain(config, 10_000.0 * ratio, head_dim / 2);
    }
    let plain = rotation.plain(config, 10_000.0, head_dim / 2)?;
    let inv_freq = plain.inv_freq.iter().map(|freq| (*freq as f64 / ratio) as f32).collect();
    Ok(Rope { inv_freq, ..plain })
}
