//! Baichuan and Baichuan 2 (Yang et al., 2023, arXiv:2309.10305; names as in the published `modeling_baichuan.py`): Llama
//! with packed projections; the larger size has ALiBi instead of a rotation, and the second generation a head whose rows
//! are normalised.

use serde_json::json;

use crate::error::Result;
use crate::program::Program;

use super::builder::Builder;
use super::dense::{Dense, LLAMA, Names, Qkv, alibi_slopes};
use super::{Config, Family};

pub const FAMILY: Family = Family {
    name: "baichuan",
    architectures: &["BaiChuanForCausalLM", "BaichuanForCausalLM"],
    special: "packed q, k, v; 13B: ALiBi; Baichuan 2: a head of normalised rows",
    build,
};

fn build(config: &Config, builder: Builder) -> Result<Program> {
    let alibi = alibi(config)?;
    let head = normalised_head(config)?;
    let longest = config.optional_size("model_max_length")?.unwrap_or(4096);
    let config = config.or(json!({"hidden_act": "silu", "max_position_embeddings": longest}));
    let dense = match alibi {
        true => Dense::without_rope(&config)?,
        false => Dense::read(&config)?,
    };
    if dense.kv_heads != dense.heads {
        return Err(config.unsupported(format!("`num_key_value_heads`: {} in this family", dense.kv_heads)));
    }
    let slopes = alibi.then(|| alibi_slopes(dense.heads));
    let names = Names { qkv: Qkv::Packed("self_attn.W_pack"), ..LLAMA };
    builder.dense(Dense { names, slopes, normalise_head: head, ..dense })
}

/// Whether it is a 13B. Its class has the name of Baichuan 2's 7B; the published sizes are told apart by their hidden
/// size, others by what the published configurations of 7B models have and those of 13B models do not.
fn alibi(config: &Config) -> Result<bool> {
    if config.architecture()? == "BaiChuanForCausalLM" {
        return Ok(false);
    }
    Ok(match config.size("hidden_size")? {
        4096 => false,
        5120 => true,
        _ => !config.has("max_position_embeddings"),
    })
}

/// Whether it is a Baichuan 2: by its vocabulary, or by a key that only its configuration has.
fn normalised_head(config: &Config) -> Result<bool> {
    Ok(config.has("z_loss_weight") || config.size("vocab_size")? == 125_696)
}
