//! Qwen (the first one): one packed projection with biases, an MLP whose gate comes second, and two ways to go beyond the
//! length it was trained for (Bai et al., 2023, arXiv:2309.16609; names as in the published `modeling_qwen.py`):
//! frequencies whose base grows with the prompt and then stays, and queries scaled by the logarithm of their position.

use serde_json::json;

use crate::error::Result;
use crate::program::{Dynamic, Program, QueryScale, Rope};

use super::builder::Builder;
use super::dense::{Dense, LLAMA, Mlp, Names, Qkv};
use super::rope::Rotation;
use super::{Config, Family};

pub const FAMILY: Family = Family {
    name: "qwen",
    architectures: &["QWenLMHeadModel"],
    special: "packed q, k, v with biases; w1 · silu(w2); dynamic NTK fixed at the prompt; log-n",
    build,
};

const NAMES: Names = Names {
    root: "transformer.",
    embedding: "wte",
    layers: "h",
    attention_norm: Some("ln_1"),
    qkv: Qkv::Packed("attn.c_attn"),
    attention_output: "attn.c_proj",
    mlp_norm: Some("ln_2"),
    mlp: Mlp::Gated { gate: "mlp.w2", up: "mlp.w1" },
    mlp_output: "mlp.c_proj",
    final_norm: "ln_f",
    ..LLAMA
};

fn build(config: &Config, builder: Builder) -> Result<Program> {
    let config = config.or(json!({"hidden_act": "silu", "max_position_embeddings": 8192}));
    config.require("scale_attn_weights", true)?;
    config.require("use_cache_quantization", false)?;
    let dense = Dense::without_rope(&config)?;
    if dense.kv_heads != dense.heads {
        return Err(config.unsupported(format!("`num_key_value_heads`: {} in this family", dense.kv_heads)));
    }
    if dense.intermediate % 2 != 0 {
        return Err(config.problem(format!("`intermediate_size` {} is odd; it counts both halves", dense.intermediate)));
    }
    let partial = Some(1.0);
    let mut rope = Rotation { partial, ..Rotation::new(dense.head_dim, dense.max_positions) }.read(&config)?;
    let trained = config.optional_size("seq_length")?.unwrap_or(dense.max_positions);
    if config.flag("use_dynamic_ntk", false)? {
        let base = config.number("rope_theta", 10_000.0)?;
        let dynamic = Dynamic::NtkOfPrompt { base, original: trained, dim: rope.rotary_dim() };
        rope = Rope { dynamic: Some(dynamic), ..rope };
    }
    let query_scale = config.flag("use_logn_attn", false)?.then_some(QueryScale::LogN { length: trained });
    let bias = !config.flag("no_bias", true)?;
    let intermediate = dense.intermediate / 2;
    let dense = Dense { names: NAMES, qkv_bias: true, output_bias: bias, mlp_bias: bias, ..dense };
    builder.dense(Dense { intermediate, query_scale, ..dense }.with_rope(rope))
}
