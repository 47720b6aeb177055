//! layerstream runs language models that do not fit: the weights stay on disk and flow, tile by tile, through a fixed
//! amount of memory while they are multiplied.

pub mod checkpoint;
mod error;

pub use error::{Error, Result};
