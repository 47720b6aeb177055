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
mod isa;
mod matmul;
mod norm;
mod panel;
mod rope;
mod run;
mod transposed;
mod weights;
mod workers;

pub use attention::{Attention, Sequence, append};
pub use isa::Isa;
pub use matmul::{Columns, Mode};
pub use norm::RmsNorm;
pub use rope::{Rope, RopeStyle};
pub(crate) use run::CpuBackend;
pub use transposed::Inputs;
pub use weights::{Scales, Tile};

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

    /// `out[t, first + r] = Σₖ w[r, k] · x[t, k] + bias[r]` for every row r of the tile and every token t, or added to
    /// what is there. `x` is `[tokens, k]`; `bias`, if any, has one number for every row of the tile.
    pub fn matmul(&mut self, w: Tile<'_>, x: &[f32], bias: Option<&[f32]>, out: Columns<'_>, mode: Mode) {
        matmul::matmul(self.isa, &mut self.workers, w, x, bias, out, mode);
    }

    /// The same product with a tile of a matrix that is stored as its transpose, `[inputs, outputs]`: adds to every one of
    /// `out`, `[tokens, outputs]`, what the tile's inputs contribute. [`Mode::Store`] and `bias` are for the first tile.
    pub fn matmul_transposed(&mut self, w: Tile<'_>, x: Inputs<'_>, bias: Option<&[f32]>, out: &mut [f32], mode: Mode) {
        transposed::matmul(self.isa, &mut self.workers, w, x, bias, out, mode);
    }

    /// Normalises every row of `x`, `[tokens, width]` with the width of the norm's weight, into `out`.
    pub fn rms_norm(&mut self, x: &[f32], norm: RmsNorm<'_>, out: &mut [f32]) {
        norm::rows(self.isa, &mut self.workers, x, norm, out);
    }

    /// Normalises every head of every row of `x` in place (the norms of queries and keys).
    pub fn head_norm(&mut self, x: &mut [f32], heads: Heads, norm: RmsNorm<'_>) {
        norm::heads(self.isa, &mut self.workers, x, heads, norm);
    }

    /// Rotates every head of every row of `x` in place.
    pub fn rope(&mut self, x: &mut [f32], heads: Heads, rope: Rope<'_>) {
        rope::rotate(&mut self.workers, x, heads, rope);
    }

    /// Attends from every query of `q` (rows laid out as `heads` says) to the cached keys of its sequence. Writes
    /// `out`, `[tokens, heads × head_dim]`, for the rows that the sequences name.
    pub fn attention(&mut self, q: &[f32], sequences: &[Sequence<'_>], shape: Attention, out: &mut [f32]) {
        attention::attention(self.isa, &mut self.workers, q, sequences, shape, out);
    }

    /// SwiGLU: `gate = silu(gate) × up`, where silu(x) = x / (1 + e⁻ˣ).
    pub fn silu_mul(&mut self, gate: &mut [f32], up: &[f32]) {
        activation::silu_mul(self.isa, &mut self.workers, gate, up);
    }

    /// Decodes `out.len()` numbers (rows of the embedding, a norm's weight, a bias) to float32, exactly.
    pub fn widen(&self, bytes: &[u8], encoding: Encoding, out: &mut [f32]) {
        weights::widen(self.isa, bytes, encoding, out);
    }
}
