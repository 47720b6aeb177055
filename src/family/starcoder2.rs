//! StarCoder 2: LayerNorm and biases everywhere, an MLP without gate, grouped queries, a window (Lozhkov et al., 2024,
//! arXiv:2402.19173; names and defaults as in transformers' `Starcoder2Config`).

use serde_json::json;

use crate::error::Result;
use crate::program::Program;

use super::builder::Builder;
use super::dense::{Dense, LLAMA, Mlp, Names};
use super::{Config, Family};

pub const FAMILY: Family = Family {
    name: "starcoder2",
    architectures: &["Starcoder2ForCausalLM"],
    special: "LayerNorm, biases, MLP without gate, a window",
    build,
};

const NAMES: Names = Names { mlp: Mlp::Plain("mlp.c_fc"), mlp_output: "mlp.c_proj", ..LLAMA };

fn build(config: &Config, builder: Builder) -> Result<Program> {
    let config = config.or(json!({
        "hidden_act": "gelu_pytorch_tanh", "num_key_value_heads": 2, "max_position_embeddings": 4096, "norm_eps": 1e-5,
        "tie_word_embeddings": true
    }));
    config.require("norm_type", "layer_norm")?;
    config.require("mlp_type", "default")?;
    let bias = config.flag("use_bias", true)?;
    let dense = Dense::read(&config)?.with_layer_norm(true);
    let windows = vec![config.optional_size("sliding_window")?; dense.layers];
    builder.dense(Dense { names: NAMES, qkv_bias: bias, output_bias: bias, mlp_bias: bias, windows, ..dense })
}
