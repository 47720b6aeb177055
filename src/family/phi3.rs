//! Phi-3, Phi-3.5 and Phi-4: Llama with packed projections, a window on every layer where the configuration gives one,
//! LongRoPE, and rotation of a part of each head (Abdin et al., 2024, arXiv:2404.14219; names and defaults as in
//! transformers' `Phi3Config`).

use serde_json::json;

use crate::error::Result;
use crate::program::Program;

use super::builder::Builder;
use super::dense::{Dense, LLAMA, Mlp, Names, Qkv};
use super::rope::Rotation;
use super::{Config, Family};

pub const FAMILY: Family = Family {
    name: "phi3",
    architectures: &["Phi3ForCausalLM"],
    special: "Phi-3, 3.5, 4: packed projections, windows, LongRoPE, partial rotation",
    build,
};

const NAMES: Names = Names { qkv: Qkv::Packed("self_attn.qkv_proj"), mlp: Mlp::Packed("mlp.gate_up_proj"), ..LLAMA };

fn build(config: &Config, builder: Builder) -> Result<Program> {
    let config = config.or(json!({
        "hidden_act": "silu", "max_position_embeddings": 4096, "norm_eps": 1e-5
    }));
    for option in ["attention_bias", "mlp_bias", "lm_head_bias"] {
        config.require(option, false)?;
    }
    let dense = Dense::without_rope(&config)?;
    let rotation = Rotation::new(dense.head_dim, dense.max_positions);
    let rope = Rotation { partial: Some(1.0), ..rotation }.read(&config)?;
    let windows = vec![config.optional_size("sliding_window")?; dense.layers];
    builder.dense(Dense { names: NAMES, windows, ..dense.with_rope(rope) })
}
