//! layerstream runs language models that do not fit: the weights stay on disk and flow, tile by tile, through a fixed
//! amount of memory while they are multiplied.
//!
//! ```
//! use layerstream::{Model, Options};
//!
//! let mut model = Model::open("demo", &Options { ram: Some(32 << 20), ..Options::default() })?;
//! let prompt = model.encode_chat(&serde_json::json!([{"role": "user", "content": "What is the capital of France?"}]))?;
//! let options = model.defaults().clone();
//! let mut answer = String::new();
//! for token in model.generate(vec![prompt], &options)? {
//!     answer += &token?.text;
//! }
//! assert_eq!(answer, "Paris");
//! # Ok::<(), layerstream::Error>(())
//! ```
//!
//! [`Model`] is where to begin; [`Outline`] says what would happen before anything is run. The modules are the parts, in
//! the order in which data flows through them: [`checkpoint`], [`family`] and [`program`], [`plan`], [`disk`], [`stream`].
//! A model whose architecture is not among the [families](family::supported) needs a [`Family`](family::Family) of its own,
//! which the program that uses this crate brings along: `examples/family.rs` writes one. [`eval`] measures how good a model is.

#[doc(hidden)]
pub mod backend;
pub mod checkpoint;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
mod defaults;
pub mod disk;
pub mod encoding;
mod engine;
mod error;
pub mod eval;
pub mod family;
mod generate;
pub mod hub;
mod kv;
pub mod memory;
mod model;
#[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "packing is what the command line offers"))]
mod pack;
mod pass;
pub mod plan;
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "lanes of copies are for GPUs"))]
pub mod profile;
pub mod program;
mod sample;
#[cfg_attr(
    not(feature = "cuda"),
    allow(dead_code, reason = "what is page-locked, and measured on the way, is for GPUs")
)]
pub mod stream;
#[cfg(feature = "cli")]
mod synth;
pub mod text;

pub use backend::{Device, Processor};
pub use engine::{Progress, StopFlag};
pub use error::{Error, Result};
pub use generate::{Finish, GenerateOptions, GenerateStats, Generation, Output, Token};
pub use model::{Model, Options, Outline};
#[doc(hidden)]
pub use pack::parse_manifest;
pub use sample::Sampling;
