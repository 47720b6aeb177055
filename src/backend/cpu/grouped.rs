//! Matrices of a few bits that are stored as their transposes, GPTQ's and AWQ's: words whose fields are decoded in
//! registers, less the zero of their group, times its scale. The order of a sum is that of `transposed`, so neither tiles nor
//! groups show in it.

use super::isa::{F32x16, Isa, Kernel, LANES};
use super::transposed::{Block, DEPTH, Stored};
use crate::encoding::Encoding;

/// A run of whole stored rows of a `[inputs, outputs]` matrix.
#[derive(Clone, Copy)]
pub struct GroupedTile<'a> {
    /// The stored rows, one after another without padding, at any address.
    pub bytes: &'a [u8],
    /// [`Encoding::Gptq4`], [`Encoding::Gptq8`] or [`Encoding::Awq4`].
    pub encoding: Encoding,
    pub outputs: usize,
    /// `[groups, outputs]`, of the whole matrix.
    pub scales: &'a [f32],
    /// `[groups, outputs]`, of the whole matrix.
    pub zeros: &'a [f32],
    /// The group of each input of these rows.
    pub index: &'a [u32],
}

impl Stored for GroupedTile<'_> {
    fn outputs(self) -> usize {
        self.outputs
    }

    fn inputs(self) -> usize {
        let row = self.encoding.bytes(self.outputs);
        let inputs = self.bytes.len() / row * self.encoding.inputs();
        assert_eq!(self.bytes.len() % row, 0, "whole stored rows of {} {}", self.outputs, self.encoding);
        assert_eq!(self.index.len(), inputs, "a group for every input");
        assert_eq!(self.scales.len(), self.zeros.len(), "a zero for every scale");
        inputs
    }

    fn add(self, isa: Isa, block: Block<'_>) {
        isa.run(Grouped { w: self, block });
    }
}

/// How words become numbers.
trait Words {
    /// What has the weights of a stored row for sixteen outputs.
    type Chunk: bytemuck::Pod;
    /// Of so many inputs.
    const INPUTS: usize;

    /// Those of one of the inputs.
    fn lanes<V: F32x16>(chunk: &Self::Chunk, input: usize) -> V;
}

/// Words with the weights of one output for several inputs, of so many bits each.
struct Gptq<const BITS: u32>;

impl<const BITS: u32> Words for Gptq<BITS> {
    type Chunk = [u8; 4 * LANES];
    const INPUTS: usize = 32 / BITS as usize;

    #[inline(always)]
    fn lanes<V: F32x16>(chunk: &Self::Chunk, input: usize) -> V {
        V::load_field(chunk, BITS * input as u32, (1 << BITS) - 1)
    }
}

struct Awq;

impl Awq {
    /// Where the weights of sixteen outputs are in two words.
    const SHIFTS: [u32; LANES] = [0, 16, 4, 20, 8, 24, 12, 28, 0, 16, 4, 20, 8, 24, 12, 28];
}

impl Words for Awq {
    type Chunk = [u8; LANES / 2];
    const INPUTS: usize = 1;

    #[inline(always)]
    fn lanes<V: F32x16>(chunk: &Self::Chunk, _: usize) -> V {
        V::load_nibbles(chunk, &Self::SHIFTS)
    }
}

struct Grouped<'a> {
    w: GroupedTile<'a>,
    block: Block<'a>,
}

impl Kernel for Grouped<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(mut self) {
        match self.w.encoding {
            Encoding::Gptq4 => self.rows::<V, Gptq<4>, 8, 8>(),
            Encoding::Gptq8 => self.rows::<V, Gptq<8>, 4, 4>(),
            Encoding::Awq4 => self.rows::<V, Awq, DEPTH, 1>(),
            other => unreachable!("{other} is never stored as a transpose in words"),
        }
    }
}

impl Grouped<'_> {
    /// `MANY` inputs at once, and `FEW` where fewer than that are left.
    #[inline(always)]
    fn rows<V: F32x16, W: Words, const MANY: usize, const FEW: usize>(&mut self) {
        let (rows, many) = (self.w.index.len() / W::INPUTS, MANY / W::INPUTS);
        let whole = rows - rows % many;
        for row in (0..whole).step_by(many) {
            self.add::<V, W, MANY>(row);
        }
        for row in whole..rows {
            self.add::<V, W, FEW>(row);
        }
    }

    /// Adds the products of `D` inputs, those of the stored rows from `row` on.
    #[inline(always)]
    fn add<V: F32x16, W: Words, const D: usize>(&mut self, row: usize) {
        let GroupedTile { bytes, encoding, outputs, scales, zeros, index } = self.w;
        let (first, width, input) = (self.block.first, self.block.width, row * W::INPUTS);
        let mut stored: [&[u8]; D] = [&[]; D];
        let mut factors: [[&[f32]; 2]; D] = [[&[]; 2]; D];
        for d in 0..D {
            let start = (row + d / W::INPUTS) * encoding.bytes(outputs) + encoding.bytes(first);
            stored[d] = &bytes[start..start + encoding.bytes(width)];
            let group = index[input + d] as usize * outputs + first;
            factors[d] = [&scales[group..group + width], &zeros[group..group + width]];
        }
        for at in (0..width).step_by(LANES) {
            let end = width.min(at + LANES);
            let mut w = [V::zero(); D];
            for d in 0..D {
                let codes = &stored[d][encoding.bytes(at)..encoding.bytes(end)];
                let codes = match bytemuck::try_from_bytes::<W::Chunk>(codes) {
                    Ok(chunk) => W::lanes::<V>(chunk, d % W::INPUTS),
                    Err(_) => lanes_part::<V, W>(codes, d % W::INPUTS),
                };
                let [scale, zero] = [load::<V>(&factors[d][0][at..end]), load::<V>(&factors[d][1][at..end])];
                w[d] = codes.sub(zero).mul(scale);
            }
            self.block.accumulate(w, input, at);
        }
    }
}

/// The weights of fewer than sixteen outputs.
#[inline(always)]
fn lanes_part<V: F32x16, W: Words>(bytes: &[u8], input: usize) -> V {
    let mut chunk: W::Chunk = bytemuck::Zeroable::zeroed();
    bytemuck::bytes_of_mut(&mut chunk)[..bytes.len()].copy_from_slice(bytes);
    W::lanes(&chunk, input)
}

#[inline(always)]
fn load<V: F32x16>(from: &[f32]) -> V {
    match from.as_chunks::<LANES>() {
        ([lanes], _) => V::load(lanes),
        (_, part) => V::load_part(part),
    }
}
