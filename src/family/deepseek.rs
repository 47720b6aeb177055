//! DeepSeek V2, V2.5, V2-Lite, V3 and R1: latent attention, and in all but the first layers many small experts beside
//! shared ones (DeepSeek-AI, 2024, arXiv:2405.04434 and 2412.19437; names and defaults as in transformers'
//! `DeepseekV2Config` and `DeepseekV3Config`). What a checkpoint holds beyond the last layer, to predict more than one
//! token, is left alone.

use serde_json::json;

use crate::error::Result;
use crate::program::{Program, RopeStyle, Routing, Scores};

use super::builder::Builder;
use super::dense::Dense;
use super::latent::Latent;
use super::moe::{Moe, Shared, Sparse};
use super::rope::Rotation;
use super::{Config, Family};

pub const V2: Family = Family {
    name: "deepseek_v2",
    architectures: &["DeepseekV2ForCausalLM"],
    special: "latent attention; experts in groups beside shared ones",
    build: build_v2,
};

pub const V3: Family = Family {
    name: "deepseek_v3",
    architectures: &["DeepseekV3ForCausalLM"],
    special: "latent attention; experts by sigmoid, in groups, beside shared ones",
    build: build_v3,
};

fn build_v2(config: &Config, builder: Builder) -> Result<Program> {
    let config = config.or(json!({"topk_method": "greedy", "routed_scaling_factor": 1.0}));
    config.require("scoring_func", "softmax")?;
    config.require("mlp_bias", false)?;
    let (groups, top_groups) = match config.text_of("topk_method") {
        // Early files have a letter wrong.
        Some("greedy" | "gready") => (1, 1),
        Some("group_limited_greedy") => (config.count("n_group")?, config.count("topk_group")?),
        other => {
            let other = other.unwrap_or("no string");
            return Err(config.unsupported(format!("`topk_method`: {other} (greedy, group_limited_greedy are)")));
        }
    };
    // The code that comes with these checkpoints divides by the sum of what was chosen or multiplies by the factor, never both.
    // No published configuration asks for the former; transformers' port of the code knows the latter alone.
    let several = config.optional_count("num_experts_per_tok")?.is_some_and(|count| count > 1);
    let renormalise = config.flag("norm_topk_prob", false)? && several;
    let config = if renormalise { config.with("routed_scaling_factor", 1.0) } else { config };
    let routing = Routing { groups, top_groups, renormalise, ..Routing::softmax(1) };
    build(&config, builder, routing, None, RopeStyle::Interleaved)
}

fn build_v3(config: &Config, builder: Builder) -> Result<Program> {
    let config = config.or(json!({
        "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5, "first_k_dense_replace": 3
    }));
    config.require("scoring_func", "sigmoid")?;
    config.require("topk_method", "noaux_tc")?;
    let routing = Routing {
        scores: Scores::Sigmoid,
        groups: config.count("n_group")?,
        top_groups: config.count("topk_group")?,
        group_best: 2,
        renormalise: config.flag("norm_topk_prob", true)?,
        ..Routing::softmax(1)
    };
    let style = match config.flag("rope_interleave", true)? {
        true => RopeStyle::Interleaved,
        false => RopeStyle::Half,
    };
    build(&config, builder, routing, Some("gate.e_score_correction_bias"), style)
}

fn build(
    config: &Config,
    builder: Builder,
    routing: Routing,
    correction: Option<&'static str>,
    style: RopeStyle,
) -> Result<Program> {
    let config = config.or(json!({
        "hidden_act": "silu", "moe_layer_freq": 1, "first_k_dense_replace": 0, "max_position_embeddings": 2048
    }));
    let latent = Latent::read(&config)?;
    // Here this is not what the rest of the configuration means by it, or it is not there at all.
    let config = config
        .with("head_dim", latent.own + latent.rotary)
        .with("num_key_value_heads", config.count("num_attention_heads")?);
    let dense = Dense::without_rope(&config)?;
    if latent.value > 256 {
        return Err(config.unsupported(format!("values of {} dimensions (up to 256 are)", latent.value)));
    }
    let rotation = Rotation { style, ..Rotation::new(latent.rotary, dense.max_positions) };
    let scale = dense.scale * rotation.score_scale(&config)?;
    let moe = match config.optional_size("n_routed_experts")? {
        None => None,
        Some(experts) => Some(sparse(&config, &dense, experts, routing, correction)?),
    };
    let dense = Dense { scale, moe, output_bias: latent.bias, latent: Some(latent), ..dense };
    builder.dense(dense.with_rope(rotation.read(&config)?))
}

fn sparse(
    config: &Config,
    dense: &Dense,
    experts: usize,
    routing: Routing,
    correction: Option<&'static str>,
) -> Result<Sparse> {
    let scale = config.number("routed_scaling_factor", 1.0)? as f32;
    let routing = Routing { scale, top_k: config.count("num_experts_per_tok")?, ..routing };
    let intermediate = config.size("moe_intermediate_size")?;
    let shared = config.optional_count("n_shared_experts")?.filter(|count| *count > 0);
    let shared = shared.map(|count| Shared { name: "shared_experts", intermediate: count * intermediate, gate: None });
    let moe = Moe { shared, ..Moe::new(dense, intermediate, experts, routing).check(config)? };
    let first = config.optional_count("first_k_dense_replace")?.unwrap_or(0);
    let every = config.count("moe_layer_freq")?;
    let layers = (0..dense.layers).map(|layer| layer >= first && layer % every == 0).collect();
    Ok(Sparse { correction, ..Sparse::new(moe, layers) })
}
