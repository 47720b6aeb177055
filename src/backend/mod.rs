//! The operations that a program needs, on the devices that can run them.

pub mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod device;

pub use device::{Device, Processor};

use crate::error::Result;
use crate::pass::Segment;
use crate::plan::{ExpertTile, Tile};
use crate::program::{Buffer, Experts, Product, Routing, Step};
use crate::stream::{self, Conveyor};

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

    /// Chooses experts for every token of the pass; returns those that any token has, rising. The engine asks for their
    /// tiles and goes on with other steps while they are read. Tiles of `feed` may be brought nearer meanwhile.
    fn route(&mut self, logits: Buffer, routing: &Routing, feed: &mut Conveyor) -> Result<Vec<usize>>;

    /// Asks `feed` for tiles of experts, by their index in the plan: all of one layer, in the order in which they will be
    /// used. A device leaves out those that it has still.
    fn request(&mut self, layer: usize, tiles: &[usize], feed: &mut stream::Experts) -> Result<()> {
        feed.request(layer, tiles.iter().copied());
        Ok(())
    }

    /// Takes the next tile of an expert, which is this one, from `feed`, and multiplies with it. They come in the order of
    /// the plan; with the last tile of an expert, its result is added to the step's output.
    /// Tiles of `conveyor` may be brought nearer while it has to be waited for.
    fn expert(
        &mut self,
        step: &Experts,
        tile: &ExpertTile,
        feed: &mut stream::Experts,
        conveyor: &mut Conveyor,
    ) -> Result<()>;

    /// Ends a pass: its logits are there.
    fn finish(&mut self, feed: &mut Conveyor) -> Result<()>;

    /// The logits of the pass that has ended, `[rows, vocab]`, which may be changed in place.
    fn logits(&mut self) -> &mut [f32];

    /// Gives all tiles back after a pass that was not completed. Errors are for the next pass to find.
    fn abandon(&mut self, feed: &mut Conveyor);
}
