//! Families: model architectures, written as data. A family turns a configuration and the list of tensors into a
//! [`Program`]; one small file each. What is detected from `config.json` decides, never a flag; whatever would change
//! the result and is not implemented is refused by name.

mod builder;
mod config;
mod gguf;
mod llama;
mod mistral;
mod quantization;
mod qwen2;
mod qwen3;

use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::program::Program;

use builder::Builder;
use config::Config;
use quantization::Quantization;

/// A family: the class names it answers to, and how its program is built.
struct Family {
    name: &'static str,
    architectures: &'static [&'static str],
    build: fn(&Config, Builder) -> Result<Program>,
}

const FAMILIES: &[Family] = &[llama::FAMILY, mistral::FAMILY, qwen2::FAMILY, qwen3::FAMILY];

/// The architectures that can be run, by family, as `config.json` names them.
pub fn supported() -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
    FAMILIES.iter().map(|family| (family.name, family.architectures))
}

/// Builds the program of the model in `checkpoint`, from the `config.json` beside it or the metadata in it.
///
/// # Errors
/// `Unsupported` for an architecture or option that is not implemented, `Config` for a configuration that is incomplete
/// or impossible, `Tensor` for tensors that are missing or contradict the configuration.
pub fn program(checkpoint: &Checkpoint) -> Result<Program> {
    let config = match checkpoint.metadata() {
        Some(metadata) => gguf::config(checkpoint, metadata)?,
        None => Config::open(checkpoint.dir())?,
    };
    let architecture = config.architecture()?;
    let Some(family) = FAMILIES.iter().find(|family| family.architectures.contains(&architecture)) else {
        let known: Vec<_> = FAMILIES.iter().flat_map(|family| family.architectures).copied().collect();
        return Err(config.unsupported(format!("the architecture {architecture} (known: {})", known.join(", "))));
    };
    let quantization = Quantization::read(&config)?;
    let mut program = (family.build)(&config, Builder::new(family.name, checkpoint, quantization))?;
    if let Some(metadata) = checkpoint.metadata() {
        gguf::finish(&mut program, metadata)?;
    }
    Ok(program)
}
