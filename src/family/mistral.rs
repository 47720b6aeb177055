//! Mistral 7B, Nemo, Small, Large: Llama with a sliding window on every layer where the configuration gives one (Jiang
//! et al., 2023, arXiv:2310.06825; names and defaults as in transformers' `MistralConfig`).

use crate::error::Result;
use crate::program::Program;

use super::builder::{Builder, Defaults, Dense};
use super::{Config, Family};

pub const FAMILY: Family = Family { name: "mistral", architectures: &["MistralForCausalLM"], build };

fn build(config: &Config, builder: Builder) -> Result<Program> {
    let dense = Dense::read(config, Defaults { kv_heads: Some(8), head_dim: None, max_positions: 131_072 })?;
    let windows = vec![config.optional_size("sliding_window")?; dense.layers];
    builder.dense(Dense { windows, ..dense })
}
