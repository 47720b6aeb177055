//! Mixtral: Mistral with eight or so experts instead of one MLP, two of them for every token, whose softmax counts among
//! themselves (Jiang et al., 2024, arXiv:2401.04088; names and defaults as in transformers' `MixtralConfig`).

use serde_json::json;

use crate::error::Result;
use crate::program::{Program, Routing};

use super::builder::Builder;
use super::dense::Dense;
use super::moe::{Moe, Sparse};
use super::{Config, Family};

pub const FAMILY: Family = Family {
    name: "mixtral",
    architectures: &["MixtralForCausalLM"],
    special: "experts, streamed as tokens choose them",
    build,
};

fn build(config: &Config, builder: Builder) -> Result<Program> {
    let config = config.or(json!({
        "hidden_act": "silu", "num_key_value_heads": 8, "max_position_embeddings": 131_072, "num_local_experts": 8,
        "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_theta": 1e6
    }));
    let dense = Dense::read(&config)?;
    let windows = vec![config.optional_size("sliding_window")?; dense.layers];
    let routing = Routing { renormalise: true, ..Routing::softmax(config.count("num_experts_per_tok")?) };
    let moe = Moe::new(&dense, dense.intermediate, config.count("num_local_experts")?, routing);
    let moe = Moe { parts: ["w1", "w3", "w2"], ..moe }.check(&config)?;
    // Newer versions of transformers write the whole block under another name.
    let block = if builder.has("model.layers.0.mlp.gate.weight") { "mlp" } else { "block_sparse_moe" };
    let sparse = Sparse { block, ..Sparse::new(moe, vec![true; dense.layers]) };
    builder.dense(Dense { windows, moe: Some(sparse), ..dense })
}
