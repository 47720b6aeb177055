//! Llama 4, its text part: experts in all or every other layer, beside a shared one; layers whose rotated attention sees
//! only its own chunk of positions, and others that see all, without rotation (names and defaults as in transformers'
//! `Llama4TextConfig`).

use serde_json::json;

use crate::error::Result;
use crate::program::{Packing, Program, QueryScale, RopeStyle, Routing, Scores, Weigh};

use super::builder::Builder;
use super::dense::{Dense, LLAMA, Mlp, Names, QkNorm};
use super::moe::{Moe, Shared, Sparse, Stored};
use super::rope::Rotation;
use super::{Config, Family};

pub const FAMILY: Family = Family {
    name: "llama4",
    architectures: &["Llama4ForCausalLM", "Llama4ForConditionalGeneration"],
    special: "experts beside a shared one; attention in chunks, and some layers without rotation",
    build,
};

const NAMES: Names = Names {
    mlp: Mlp::Gated { gate: "feed_forward.gate_proj", up: "feed_forward.up_proj" },
    mlp_output: "feed_forward.down_proj",
    ..LLAMA
};

fn build(config: &Config, builder: Builder) -> Result<Program> {
    // The published multimodal configurations leave out what is as in the class.
    let config = config.text()?.or(json!({
        "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 8192, "intermediate_size_mlp": 16_384,
        "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 202_048, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "num_local_experts": 16,
        "num_experts_per_tok": 1, "interleave_moe_layer_step": 1, "attention_chunk_size": 8192, "floor_scale": 8192,
        "no_rope_layer_interval": 4
    }));
    let bias = config.flag("attention_bias", false)?;
    let dense = Dense::without_rope(&config)?;
    let rotated = rotated(&config, dense.layers)?;
    let rotation =
        Rotation { style: RopeStyle::Interleaved, theta: 5e5, ..Rotation::new(dense.head_dim, dense.max_positions) };
    let chunk = config.optional_size("attention_chunk_size")?;
    let temperature = QueryScale::Temperature {
        scale: config.number("attn_scale", 0.1)?,
        floor: config.optional_number("floor_scale")?.unwrap_or(8192.0),
    };
    let sparse = sparse(&config, &dense)?;
    builder.dense(Dense {
        names: NAMES,
        intermediate: config.size("intermediate_size_mlp")?,
        qkv_bias: bias,
        output_bias: bias,
        qk_norm: if config.flag("use_qk_norm", true)? { QkNorm::Rotated } else { QkNorm::None },
        chunks: chunked(&config, &rotated)?.iter().map(|chunked| chunk.filter(|_| *chunked)).collect(),
        ropes: vec![rotation.read(&config)?],
        layer_ropes: rotated.iter().map(|rotated| rotated.then_some(0)).collect(),
        unrotated_scale: config.switch("attn_temperature_tuning", true)?.then_some(temperature),
        moe: Some(sparse),
        ..dense
    })
}

/// Layers with rotation: where `no_rope_layers` is 1, for all its name; else all but every fourth or so.
fn rotated(config: &Config, layers: usize) -> Result<Vec<bool>> {
    match config.indices("no_rope_layers")?.filter(|list| !list.is_empty()) {
        Some(list) if list.len() < layers => {
            Err(config.problem(format!("`no_rope_layers` has {} entries for {layers} layers", list.len())))
        }
        Some(list) => Ok(list.iter().take(layers).map(|rotated| *rotated != 0).collect()),
        None => {
            let interval = config.count("no_rope_layer_interval")?;
            Ok((0..layers).map(|layer| (layer + 1) % interval != 0).collect())
        }
    }
}

/// Layers that see only their chunk: those that `layer_types` names, else those with rotation.
fn chunked(config: &Config, rotated: &[bool]) -> Result<Vec<bool>> {
    let Some(types) = config.strings("layer_types")? else { return Ok(rotated.to_vec()) };
    if types.len() != rotated.len() {
        let layers = rotated.len();
        return Err(config.problem(format!("`layer_types` has {} entries for {layers} layers", types.len())));
    }
    let of = |kind: &&str| match *kind {
        "chunked_attention" => Ok(true),
        "full_attention" => Ok(false),
        other => Err(config.unsupported(format!("a layer of type `{other}` (layer_types)"))),
    };
    types.iter().map(of).collect()
}

fn sparse(config: &Config, dense: &Dense) -> Result<Sparse> {
    let routing = Routing { scores: Scores::Sigmoid, ..Routing::softmax(config.count("num_experts_per_tok")?) };
    let (intermediate, experts) = (config.size("intermediate_size")?, config.count("num_local_experts")?);
    let moe = Moe {
        weigh: Weigh::Input,
        stored: Stored::Columns(Packing::Halves),
        shared: Some(Shared { name: "shared_expert", intermediate, gate: None }),
        ..Moe::new(dense, intermediate, experts, routing).check(config)?
    };
    let step = config.count("interleave_moe_layer_step")?;
    let layers = match config.indices("moe_layers")? {
        Some(list) => (0..dense.layers).map(|layer| list.contains(&layer)).collect(),
        None => (0..dense.layers).map(|layer| (layer + 1).is_multiple_of(step)).collect(),
    };
    Ok(Sparse { block: "feed_forward", router: "router", ..Sparse::new(moe, layers) })
}
