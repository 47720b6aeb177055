//! GPT-NeoX and Pythia (Black et al., 2022, arXiv:2204.06745; names and defaults as in transformers' `GPTNeoXConfig`):
//! LayerNorm and biases, queries, keys and values packed head by head, a quarter of each head turns, attention and MLP
//! in parallel behind a norm each.

use serde_json::json;

use crate::error::Result;
use crate::program::Program;

use super::builder::Builder;
use super::dense::{Dense, LLAMA, Mlp, Names, Qkv};
use super::rope::Rotation;
use super::{Config, Family};

pub const FAMILY: Family = Family {
    name: "gpt_neox",
    architectures: &["GPTNeoXForCausalLM"],
    special: "LayerNorm, biases, q, k, v packed by head, partial rotation, parallel or in sequence; Pythia",
    build,
};

const NAMES: Names = Names {
    root: "gpt_neox.",
    embedding: "embed_in",
    qkv: Qkv::Grouped("attention.query_key_value"),
    attention_output: "attention.dense",
    mlp: Mlp::Plain("mlp.dense_h_to_4h"),
    mlp_output: "mlp.dense_4h_to_h",
    final_norm: "final_layer_norm",
    head: "embed_out",
    ..LLAMA
};

fn build(config: &Config, builder: Builder) -> Result<Program> {
    let config = config.or(json!({"hidden_act": "gelu", "max_position_embeddings": 2048, "norm_eps": 1e-5}));
    let dense = Dense::without_rope(&config)?.with_layer_norm(true);
    let rotation = Rotation::new(dense.head_dim, dense.max_positions);
    let rope = Rotation { partial: Some(0.25), ..rotation }.read(&config)?;
    let bias = config.flag("attention_bias", true)?;
    let parallel = config.flag("use_parallel_residual", true)?;
    // Newer versions of transformers may write the head under the name that all others have.
    let head = if builder.has("lm_head.weight") { "lm_head" } else { NAMES.head };
    let names = Names { head, ..NAMES };
    let dense = Dense { names, parallel, qkv_bias: bias, output_bias: bias, mlp_bias: true, ..dense };
    builder.dense(dense.with_rope(rope))
}
