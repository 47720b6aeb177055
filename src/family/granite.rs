//! Granite 3: Llama with a factor each on embeddings, attention scores, residual additions and logits (names and defaults
//! as in transformers' `GraniteConfig`).

use serde_json::json;

use crate::error::Result;
use crate::program::Program;

use super::builder::Builder;
use super::dense::Dense;
use super::{Config, Family};

pub const FAMILY: Family = Family {
    name: "granite",
    architectures: &["GraniteForCausalLM"],
    special: "factors on embeddings, scores, residuals and logits",
    build,
};

fn build(config: &Config, builder: Builder) -> Result<Program> {
    let config = config.or(json!({"hidden_act": "silu", "max_position_embeddings": 2048}));
    let bias = config.flag("attention_bias", false)?;
    let dense = Dense::read(&config)?;
    let factor = |key| -> Result<f64> { Ok(config.optional_number(key)?.unwrap_or(1.0)) };
    builder.dense(Dense {
        qkv_bias: bias,
        output_bias: bias,
        mlp_bias: config.flag("mlp_bias", false)?,
        embedding_scale: factor("embedding_multiplier")? as f32,
        residual_scale: factor("residual_multiplier")? as f32,
        scale: factor("attention_multiplier")? as f32,
        logit_scale: factor("logits_scaling")?.recip() as f32,
        ..dense
    })
}
