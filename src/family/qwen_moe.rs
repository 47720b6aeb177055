//! Qwen1.5-MoE, Qwen2-MoE and Qwen3-MoE: many small experts in every layer or every few. The older ones have biases on the
//! query, key and value projections and an expert that every token goes through, scaled by a sigmoid of its own; the newer
//! ones RMSNorm on query and key heads (Yang et al., 2024, arXiv:2407.10671, and 2025, arXiv:2505.09388; names and defaults
//! as in transformers' `Qwen2MoeConfig` and `Qwen3MoeConfig`).

use serde_json::json;

use crate::error::Result;
use crate::program::{Program, Routing};

use super::builder::Builder;
use super::dense::{Dense, QkNorm};
use super::moe::{Moe, Shared, Sparse};
use super::{Config, Family};

pub const QWEN2: Family = Family {
    name: "qwen2_moe",
    architectures: &["Qwen2MoeForCausalLM"],
    special: "experts beside a gated shared one; biases on q, k, v",
    build: qwen2,
};

pub const QWEN3: Family = Family {
    name: "qwen3_moe",
    architectures: &["Qwen3MoeForCausalLM"],
    special: "experts, streamed as tokens choose them; norms on q and k heads",
    build: qwen3,
};

fn qwen2(config: &Config, builder: Builder) -> Result<Program> {
    let config = config.or(json!({
        "hidden_act": "silu", "num_key_value_heads": 16, "max_position_embeddings": 32_768, "sliding_window": 4096,
        "num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408, "intermediate_size": 5632,
        "shared_expert_intermediate_size": 5632
    }));
    let dense = Dense::read(&config)?;
    // Every other one of the lower layers, unless the configuration says which.
    let used = config.flag("use_sliding_window", false)?;
    let last = config.number("max_window_layers", 28.0)? as usize;
    let windows = super::qwen2::windows_where(&config, dense.layers, |i| used && i % 2 == 0 && i < last)?;
    let sparse = shared(&config, sparse(&config, &dense)?)?;
    builder.dense(Dense { qkv_bias: config.flag("qkv_bias", true)?, windows, moe: Some(sparse), ..dense })
}

fn qwen3(config: &Config, builder: Builder) -> Result<Program> {
    let config = config.or(json!({
        "hidden_act": "silu", "num_key_value_heads": 4, "max_position_embeddings": 32_768, "num_experts": 128,
        "num_experts_per_tok": 8, "moe_intermediate_size": 768, "intermediate_size": 6144
    }));
    let bias = config.flag("attention_bias", false)?;
    let dense = Dense::read(&config)?;
    let used = config.flag("use_sliding_window", false)?;
    let window = if used { config.optional_size("sliding_window")? } else { None };
    let (windows, moe) = (vec![window; dense.layers], Some(sparse(&config, &dense)?));
    builder.dense(Dense { qkv_bias: bias, output_bias: bias, qk_norm: QkNorm::Heads, windows, moe, ..dense })
}

/// Layers with experts: every `decoder_sparse_step`-th, but for `mlp_only_layers`.
pub(super) fn sparse(config: &Config, dense: &Dense) -> Result<Sparse> {
    let renormalise = config.flag("norm_topk_prob", false)?;
    let routing = Routing { renormalise, ..Routing::softmax(config.count("num_experts_per_tok")?) };
    let (experts, intermediate) = (config.count("num_experts")?, config.size("moe_intermediate_size")?);
    let moe = Moe::new(dense, intermediate, experts, routing).check(config)?;
    let step = config.optional_size("decoder_sparse_step")?.unwrap_or(1);
    let only = config.indices("mlp_only_layers")?.unwrap_or_default();
    let has = |layer: usize| !only.contains(&layer) && (layer + 1).is_multiple_of(step);
    Ok(Sparse::new(moe, (0..dense.layers).map(has).collect()))
}

/// The same with the expert that every token goes through.
pub(super) fn shared(config: &Config, sparse: Sparse) -> Result<Sparse> {
    let intermediate = config.size("shared_expert_intermediate_size")?;
    let shared = Some(Shared { name: "shared_expert", intermediate, gate: Some("shared_expert_gate") });
    Ok(Sparse { moe: Moe { shared, ..sparse.moe }, ..sparse })
}
