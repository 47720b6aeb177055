//! The operations that a program needs, on the devices that can run them.

pub mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod device;

pub use device::{Device, Processor};

use crate::error::Result;
use crate::pass::Segment;
use crate::plan::Tile;
use crate::program::{Product, Step};
use crate::stream::Conveyor;

/// A device, with everything that the steps of one program work on: small weights, buffers, KV cache, all taken when it is
/// made. The engine walks the program and calls it for each step, in order; a device may run behind, up to
/// [`finish`](Backend::finish).
pub trait Backend: Send {
    /// Begins a pass over these segments.
    fn begin(&mut self, segments: &[Segment]) -> Result<()>;

    /// Memory for the embedding rows of the pass, which the engine fills before [`Step::Embed`]: one for each token, as
    /// they lie on disk.
    fn staging(&mut self) -> &mut [u8];

    /// Runs a step that needs no streamed weights.
    fn run(&mut self, step: &Step, segments: &[Segment]) -> Result<()>;

    /// Takes the next tile, which is this one, from `feed`, and multiplies with it.
    fn multiply(&mut self, product: &Product, tile: &Tile, feed: &mut Conveyor) -> Result<()>;

    /// Ends a pass: its logits are there.
    fn finish(&mut self, feed: &mut Conveyor) -> Result<()>;

    /// The logits of the pass that has ended, `[rows, vocab]`, which may be changed in place.
    fn logits(&mut self) -> &mut [f32];

    /// Gives all tiles back after a pass that was not completed. Errors are for the next pass to find.
    fn abandon(&mut self, feed: &mut Conveyor);
}
