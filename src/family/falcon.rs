//! Falcon (Almazrouei et al., 2023, arXiv:2311.16867; names and defaults as in transformers' `FalconConfig`): LayerNorm,
//! an MLP without gate, attention and MLP usually in parallel. The 7B has one key head, packed behind the queries; the 40B,
//! 180B and Falcon 2 pack each key head with its queries; the first small ones (RW) have ALiBi and plain heads.

use half::bf16;
use serde_json::json;

use crate::error::Result;
use crate::program::Program;

use super::builder::Builder;
use super::dense::{Dense, LLAMA, Mlp, Names, Qkv, alibi_slopes};
use super::{Config, Family};

pub const FAMILY: Family = Family {
    name: "falcon",
    architectures: &["FalconForCausalLM", "RWForCausalLM"],
    special: "parallel or in sequence, one or several key heads, one or two norms, rotation or ALiBi",
    build,
};

const NAMES: Names = Names {
    root: "transformer.",
    embedding: "word_embeddings",
    layers: "h",
    attention_output: "self_attention.dense",
    mlp: Mlp::Plain("mlp.dense_h_to_4h"),
    mlp_output: "mlp.dense_4h_to_h",
    final_norm: "ln_f",
    ..LLAMA
};

fn build(config: &Config, builder: Builder) -> Result<Program> {
    // Early configurations say it by their number of key heads alone.
    let grouped = config.flag("new_decoder_architecture", config.has("n_head_kv"))?;
    let one_key = !grouped && config.flag("multi_query", true)?;
    let (heads, hidden) = (config.count("num_attention_heads")?, config.size("hidden_size")?);
    let config = config.with(
        "num_key_value_heads",
        match () {
            _ if one_key => 1,
            _ if grouped => config.optional_size("num_key_value_heads")?.unwrap_or(heads),
            _ => heads,
        },
    );
    let config = config.or(json!({
        "activation": "gelu", "max_position_embeddings": 2048, "norm_eps": 1e-5,
        "tie_word_embeddings": true
    }));
    let inner = config.optional_size("intermediate_size")?.unwrap_or(4 * hidden);
    let config = config.with("intermediate_size", inner);
    let config = config.with("hidden_act", config.text_of("activation").unwrap_or_default().to_string());
    config.require("apply_residual_connection_post_layernorm", false)?;
    let alibi = config.flag("alibi", false)?;
    let dense = match alibi {
        true => Dense::without_rope(&config)?,
        false => Dense::read(&config)?,
    };
    let dense = dense.with_layer_norm(true);
    let parallel = grouped || config.flag("parallel_attn", true)?;
    let two_norms = grouped && config.optional_size("num_ln_in_parallel_attn")?.unwrap_or(2) == 2;
    let (attention_norm, mlp_norm) = match () {
        _ if two_norms => ("ln_attn", Some("ln_mlp")),
        _ if parallel => ("input_layernorm", None),
        _ => ("input_layernorm", Some("post_attention_layernorm")),
    };
    let packed = "self_attention.query_key_value";
    let qkv = if one_key { Qkv::Packed(packed) } else { Qkv::Grouped(packed) };
    let names = Names { attention_norm: Some(attention_norm), qkv, mlp_norm, ..NAMES };
    let bias = config.flag("bias", false)?;
    // The original makes biases in bfloat16, whatever the weights are, and adds them to scores before these are scaled.
    let rounded = |slope: &f32| bf16::from_f32(*slope).to_f32();
    let slopes = alibi.then(|| alibi_slopes(dense.heads).iter().map(rounded).collect());
    let dense = Dense { slopes, bias_factor: alibi.then_some(dense.scale), ..dense };
    builder.dense(Dense { names, parallel, qkv_bias: bias, output_bias: bias, mlp_bias: bias, ..dense })
}
