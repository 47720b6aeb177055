//! The arithmetic of a program on the processor: float32 activations, row-major `[tokens, width]`; weights in the
//! checkpoint's own bytes.
//!
//! A result has the same bits whatever is computed beside it: how many tokens share the call, how a matrix was cut into
//! tiles, how many threads there are, where a prompt was cut into blocks, and which instruction set was found. Every
//! sum has one fixed order (see `dots`), and work is divided between threads only by what is computed, never inside a
//! sum. All memory is allocated when a [`Cpu`] is made. Slices of the wrong length are a mistake of the caller and
//! panic.

mod activation;
mod attention;
mod blocks;
mod dots;
mod experts;
mod factors;
mod functions;
mod grouped;
mod isa;
mod matmul;
mod mxfp4;
mod norm;
mod packed;
mod panel;
mod recurrent;
mod rope;
mod rotation;
mod route;
mod rows;
mod run;
mod transposed;
mod weights;
mod workers;

pub use crate::program::{Activation, NormKind, RopeStyle};
pub use attention::{Attention, Sequence, append};
pub use grouped::GroupedTile;
pub use isa::Isa;
pub(crate) use isa::{F32x16, Kernel, LANES};
pub use matmul::{Columns, Finish, Mode};
pub use norm::Norm;
pub use rope::Rope;
pub use rows::Runs;
pub(crate) use run::CpuBackend;
#[cfg(feature = "cuda")]
pub(crate) use run::read_vectors;
pub use transposed::Inputs;
pub use weights::{Scales, Tile};

use recurrent::Delta;
use workers::Workers;

use crate::Result;
use crate::encoding::Encoding;

/// How heads lie in rows of activations: `count × dim` numbers at the beginning of every `stride`.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    pub count: usize,
    pub dim: usize,
    /// From one token to the next, in elements. The last row may end early.
    pub stride: usize,
}

impl Heads {
    /// Elements of a token that belong to heads.
    pub fn width(&self) -> usize {
        self.count * self.dim
    }
}

/// The processor's cores and the little memory that they need to work.
pub struct Cpu {
    isa: Isa,
    workers: Workers,
}

impl Cpu {
    /// `threads` at once (all cores by default), with the best instruction set there is.
    ///
    /// # Errors
    /// If the threads cannot be started.
    pub fn new(threads: Option<usize>) -> Result<Cpu> {
        Self::with_isa(threads, Isa::best())
    }

    /// As [`Cpu::new`], with this instruction set.
    ///
    /// # Errors
    /// If the threads cannot be started.
    pub fn with_isa(threads: Option<usize>, isa: Isa) -> Result<Cpu> {
        Ok(Cpu { isa, workers: Workers::new(workers::count(threads))? })
    }

    /// The memory that `Cpu::new(threads)` allocates, in bytes: the same for every model.
    pub fn scratch_bytes(threads: Option<usize>) -> usize {
        workers::count(threads) * workers::Scratch::BYTES
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.workers.len()
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// `out[t, first + r] = Σₖ w[r, k] · x[t, k]` for every row r of the tile and every token t, and what `finish` says.
    /// `x` is `[tokens, k]`.
    pub fn matmul(&mut self, w: Tile<'_>, x: &[f32], out: Columns<'_>, finish: Finish<'_>) {
        matmul::matmul(self.isa, &mut self.workers, w, x, out, finish);
    }

    /// The same product with a tile of a matrix that is stored as its transpose, `[inputs, outputs]`: adds to every output
    /// what the tile's inputs contribute. `out` begins at the matrix's first output. [`Mode::Store`] and a bias are for the
    /// first tile; rows cannot be normalised.
    pub fn matmul_transposed(&mut self, w: Tile<'_>, x: Inputs<'_>, out: Columns<'_>, finish: Finish<'_>) {
        transposed::matmul(self.isa, &mut self.workers, w, x, out, finish);
    }

    /// The same with a tile of words of a few bits and factors for groups of inputs.
    pub fn matmul_grouped(&mut self, w: GroupedTile<'_>, x: Inputs<'_>, out: Columns<'_>, finish: Finish<'_>) {
        transposed::matmul(self.isa, &mut self.workers, w, x, out, finish);
    }

    /// Normalises every row of `x`, `[tokens, width]`, into `out`, or adds the result to what is there.
    pub fn norm(&mut self, x: &[f32], width: usize, norm: Norm<'_>, out: &mut [f32], mode: Mode) {
        norm::rows(self.isa, &mut self.workers, x, width, norm, out, mode);
    }

    /// Normalises every head of every row of `x` in place (the norms of queries and keys).
    pub fn head_norm(&mut self, x: &mut [f32], heads: Heads, norm: Norm<'_>) {
        norm::heads(self.isa, &mut self.workers, x, heads, norm);
    }

    /// Rotates every head of every row of `x` in place.
    pub fn rope(&mut self, x: &mut [f32], heads: Heads, rope: Rope<'_>) {
        rope::rotate(&mut self.workers, x, heads, rope);
    }

    /// Makes every row of `out`, `[tokens, width]`, of parts of a row of `x`, `[tokens, x_width]`.
    pub fn rearrange(&mut self, x: &[f32], x_width: usize, runs: Runs, out: &mut [f32], width: usize) {
        rows::rearrange(&mut self.workers, x, x_width, runs, out, width);
    }

    /// Multiplies every row of `x`, `[tokens, width]`, by its factor in place.
    pub fn scale_rows(&mut self, x: &mut [f32], width: usize, factors: &[f32]) {
        rows::scale(&mut self.workers, x, width, factors);
    }

    /// Attends from every query of `q` (rows laid out as `heads` says) to the cached keys of its sequence. Writes
    /// `out`, `[tokens, heads × value_dim]`, for the rows that the sequences name.
    pub fn attention(&mut self, q: &[f32], sequences: &[Sequence<'_>], shape: Attention<'_>, out: &mut [f32]) {
        attention::attention(self.isa, &mut self.workers, q, sequences, shape, out);
    }

    /// `gate = activation(gate) × up`
    pub fn glu(&mut self, activation: Activation, gate: &mut [f32], up: &[f32]) {
        activation::glu(self.isa, &mut self.workers, activation, gate, up);
    }

    /// Runs tokens of one sequence through the gated delta rule.
    fn delta(&mut self, inputs: Delta<'_>, rows: std::ops::Range<usize>, states: &mut [f32], out: &mut [f32]) {
        recurrent::delta(self.isa, &mut self.workers, inputs, rows, states, out);
    }

    /// `gate = g × sigmoid(alpha × g) × (u + 1)` with `g = min(gate, limit)` and `u` = `up` within ±`limit`
    pub fn clamped_glu(&mut self, alpha: f32, limit: f32, gate: &mut [f32], up: &[f32]) {
        activation::clamped_glu(self.isa, &mut self.workers, alpha, limit, gate, up);
    }

    /// `x = activation(x)`
    pub fn activate(&mut self, activation: Activation, x: &mut [f32]) {
        activation::activate(self.isa, &mut self.workers, activation, x);
    }

    /// `x = cap × tanh(x / cap)`
    pub fn soft_cap(&mut self, x: &mut [f32], cap: f32) {
        activation::soft_cap(self.isa, &mut self.workers, x, cap);
    }

    /// Decodes `out.len()` numbers (rows of the embedding, a norm's weight, a bias) to float32, exactly.
    pub fn widen(&self, bytes: &[u8], encoding: Encoding, out: &mut [f32]) {
        weights::widen(self.isa, bytes, encoding, out);
    }
}
