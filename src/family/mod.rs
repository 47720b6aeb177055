//! Families: model architectures, written as data. A family turns a configuration and the list of tensors into a
//! [`Program`]; one small file each. What is detected from `config.json` decides, never a flag; whatever would change
//! the result and is not implemented is refused by name.

mod baichuan;
mod blocks;
mod builder;
mod chatglm;
mod cohere;
mod config;
mod deepseek;
mod delta;
mod dense;
mod falcon;
mod gemma;
mod gguf;
mod glm;
mod gpt_neox;
mod gpt_oss;
mod granite;
mod internlm;
mod latent;
mod llama;
mod llama4;
mod mistral;
mod mixtral;
mod moe;
mod olmo2;
mod phi3;
mod quantization;
mod quantized;
mod qwen1;
mod qwen2;
mod qwen3;
mod qwen3_next;
mod qwen_moe;
mod rope;
mod starcoder2;

use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::program::Program;

pub use builder::{Builder, NormStyle, Projection};
pub use config::Config;
pub use rope::Rotation;

use quantization::Quantization;

/// A family: the class names it answers to, and how its program is built. Those of this crate are values of this type, and so
/// are those that a program brings along in [`Options::families`](crate::Options::families).
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// What it is called where programs are shown.
    pub name: &'static str,
    /// Class names, as `architectures` in `config.json` has them.
    pub architectures: &'static [&'static str],
    /// What is special about it, in a line.
    pub special: &'static str,
    /// Makes the program of a configuration whose architecture is one of these. The configuration is that of the text part
    /// in a multimodal model; the builder knows the checkpoint and takes tensors and steps.
    pub build: fn(&Config, Builder) -> Result<Program>,
}

const FAMILIES: &[Family] = &[
    llama::FAMILY,
    mistral::FAMILY,
    mixtral::FAMILY,
    qwen1::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    qwen_moe::QWEN2,
    qwen_moe::QWEN3,
    qwen3_next::QWEN3_NEXT,
    qwen3_next::QWEN3_5,
    qwen3_next::QWEN3_5_MOE,
    chatglm::FAMILY,
    glm::FAMILY,
    glm::GLM4,
    baichuan::FAMILY,
    internlm::FAMILY,
    internlm::INTERNLM2,
    gemma::FAMILY,
    gemma::GEMMA2,
    gemma::GEMMA3,
    deepseek::V2,
    deepseek::V3,
    phi3::FAMILY,
    llama4::FAMILY,
    gpt_oss::FAMILY,
    olmo2::FAMILY,
    cohere::FAMILY,
    cohere::COHERE2,
    granite::FAMILY,
    starcoder2::FAMILY,
    falcon::FAMILY,
    gpt_neox::FAMILY,
];

/// What every family is read from.
const FORMS: &str = "safetensors, .bin: bf16, f16, f32, fp8, int8, int4, nf4";

/// What a family is read from.
fn forms(family: &Family) -> String {
    let gguf = gguf::CLASSES.iter().any(|class| family.architectures.contains(class));
    let mxfp4 = family.name == gpt_oss::FAMILY.name;
    format!("{FORMS}{}{}", if mxfp4 { ", mxfp4" } else { "" }, if gguf { "; GGUF" } else { "" })
}

/// A family that can be run, for people to read.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Supported {
    pub family: &'static str,
    /// Class names, as `config.json` has them.
    pub architectures: &'static [&'static str],
    /// How it differs from Llama.
    pub special: &'static str,
    /// The forms of checkpoints that it is read from.
    pub forms: String,
}

/// All families that can be run.
pub fn supported() -> impl Iterator<Item = Supported> {
    let row = |family: &Family| Supported {
        family: family.name,
        architectures: family.architectures,
        special: family.special,
        forms: forms(family),
    };
    FAMILIES.iter().map(row)
}

/// All families that can be run, as a Markdown table with columns of equal width.
pub fn table() -> String {
    let head = ["family", "architectures", "what is special", "forms"].map(String::from);
    let rows = supported().map(|row| [row.family.into(), row.architectures.join(", "), row.special.into(), row.forms]);
    let mut rows: Vec<[String; 4]> = std::iter::once(head).chain(rows).collect();
    let widths: [usize; 4] = std::array::from_fn(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0));
    rows.insert(1, widths.map(|width| "-".repeat(width)));
    let line = |row: &[String; 4]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    rows.iter().map(line).collect()
}

/// Builds the program of the model in `checkpoint`, from the `config.json` beside it or the metadata in it.
///
/// # Errors
/// As [`program_of`], and those of [`Config::of`].
pub fn program(checkpoint: &Checkpoint) -> Result<Program> {
    program_of(checkpoint, &Config::of(checkpoint)?, &[])
}

/// Builds the program that `config` describes, with the tensors of `checkpoint`. Families in `own` are asked before those of
/// this crate.
///
/// # Errors
/// `Unsupported` for an architecture or option that is not implemented, `Config` for a configuration that is incomplete
/// or impossible, `Tensor` for tensors that are missing or contradict the configuration.
pub fn program_of(checkpoint: &Checkpoint, config: &Config, own: &[Family]) -> Result<Program> {
    let architecture = config.architecture()?;
    let families = || own.iter().chain(FAMILIES);
    let Some(family) = families().find(|family| family.architectures.contains(&architecture)) else {
        let known: Vec<_> = families().flat_map(|family| family.architectures).copied().collect();
        return Err(config.unsupported(format!("the architecture {architecture} (known: {})", known.join(", "))));
    };
    let config = config.text()?;
    let quantization = Quantization::read(&config)?;
    quantization.require_explained(&config, checkpoint)?;
    let mut program = (family.build)(&config, Builder::new(family.name, checkpoint, quantization))?;
    if let Some(metadata) = checkpoint.metadata() {
        gguf::finish(&mut program, metadata)?;
    }
    Ok(program)
}
