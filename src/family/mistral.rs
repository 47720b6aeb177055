//! Mistral 7B, Nemo, Small, Large: Llama with a sliding window on every layer where the configuration gives one (Jiang
//! et al., 2023, arXiv:2310.06825; names and defaults as in transformers' `MistralConfig`).

use serde_json::json;

use crate::error::Result;
use crate::program::Program;

use super::builder::Builder;
use super::dense::Dense;
use super::{Config, Family};

pub const FAMILY: Family = Family {
    name: "mistral",
    architectures: &["MistralForCausalLM"],
    special: "a sliding window on every layer",
    build,
};

fn build(config: &Config, builder: Builder) -> Result<Program> {
    let config = config.or(json!({
        "hidden_act": "silu", "num_key_value_heads": 8, "max_position_embeddings": 131_072, "sliding_window": 4096
    }));
    let dense = Dense::read(&config)?;
    let windows = vec![config.optional_size("sliding_window")?; dense.layers];
    builder.dense(Dense { windows, ..dense })
}
