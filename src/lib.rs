//! layerstream runs language models that do not fit: the weights stay on disk and flow, tile by tile, through a fixed
//! amount of memory while they are multiplied.

#[allow(dead_code, unused_imports)] // until the parts are joined
pub mod backend;
#[allow(dead_code, unused_imports)] // until the parts are joined
pub mod checkpoint;
#[allow(dead_code, unused_imports)] // until the parts are joined
pub mod disk;
#[allow(dead_code, unused_imports)] // until the parts are joined
pub mod error;
#[allow(dead_code, unused_imports)] // until the parts are joined
pub mod family;
#[allow(dead_code, unused_imports)] // until the parts are joined
pub mod plan;
#[allow(dead_code, unused_imports)] // until the parts are joined
pub mod program;
#[allow(dead_code, unused_imports)] // until the parts are joined
pub mod stream;
#[allow(dead_code, unused_imports)] // until the parts are joined
pub mod text;

pub use error::{Error, Result};
