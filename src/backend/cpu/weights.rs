//! Weights as they lie in the checkpoint: little-endian bytes at any address, widened to float32 sixteen at a time.
//! Each of the three widenings is exact.

use super::isa::{F32x16, Isa, Kernel, LANES};
use crate::checkpoint::Dtype;

/// The element types that matrices may have here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float {
    Bf16,
    F16,
    F32,
}

impl Float {
    /// `None` for the types this backend does not multiply with.
    pub fn from_dtype(dtype: Dtype) -> Option<Float> {
        match dtype {
            Dtype::Bf16 => Some(Float::Bf16),
            Dtype::F16 => Some(Float::F16),
            Dtype::F32 => Some(Float::F32),
            _ => None,
        }
    }

    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Float::Bf16 | Float::F16 => 2,
            Float::F32 => 4,
        }
    }
}

/// A run of whole rows of a `[rows, k]` matrix.
#[derive(Clone, Copy)]
pub struct Tile<'a> {
    /// `rows × k` elements, row after row, without padding, at any address.
    pub bytes: &'a [u8],
    pub float: Float,
    /// Elements in a row.
    pub k: usize,
}

impl Tile<'_> {
    /// Rows in `bytes`.
    pub fn rows(&self) -> usize {
        self.bytes.len() / self.row_bytes()
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.k * self.float.size()
    }
}

/// An element type at compile time; [`Float`] is the same at run time.
pub(super) trait Element {
    /// The bytes of sixteen elements.
    type Chunk: bytemuck::Pod;
    fn widen<V: F32x16>(chunk: &Self::Chunk) -> V;

    /// The whole chunks of some elements, and the bytes after them.
    #[inline(always)]
    fn chunks(bytes: &[u8]) -> (&[Self::Chunk], &[u8]) {
        let (whole, rest) = bytes.split_at(bytes.len() - bytes.len() % size_of::<Self::Chunk>());
        (bytemuck::cast_slice(whole), rest)
    }

    /// Fewer than sixteen elements, the missing ones as zero.
    #[inline(always)]
    fn widen_part<V: F32x16>(bytes: &[u8]) -> V {
        let mut chunk: Self::Chunk = bytemuck::Zeroable::zeroed();
        bytemuck::bytes_of_mut(&mut chunk)[..bytes.len()].copy_from_slice(bytes);
        Self::widen(&chunk)
    }
}

pub(super) struct Bf16;
pub(super) struct F16;
pub(super) struct F32;

impl Element for Bf16 {
    type Chunk = [u8; 2 * LANES];
    #[inline(always)]
    fn widen<V: F32x16>(chunk: &Self::Chunk) -> V {
        V::load_bf16(chunk)
    }
}

impl Element for F16 {
    type Chunk = [u8; 2 * LANES];
    #[inline(always)]
    fn widen<V: F32x16>(chunk: &Self::Chunk) -> V {
        V::load_f16(chunk)
    }
}

impl Element for F32 {
    type Chunk = [u8; 4 * LANES];
    #[inline(always)]
    fn widen<V: F32x16>(chunk: &Self::Chunk) -> V {
        V::load_f32(chunk)
    }
}

/// Widens `bytes` to float32: a row of the embedding, a norm's weight, a bias.
///
/// # Panics
/// If `bytes` does not hold exactly `out.len()` elements.
pub(super) fn widen(isa: Isa, bytes: &[u8], float: Float, out: &mut [f32]) {
    assert_eq!(bytes.len(), out.len() * float.size(), "bytes of {} elements", out.len());
    isa.run(Widen { bytes, float, out });
}

struct Widen<'a> {
    bytes: &'a [u8],
    float: Float,
    out: &'a mut [f32],
}

impl Kernel for Widen<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: F32x16>(self) {
        match self.float {
            Float::Bf16 => widen_elements::<V, Bf16>(self.bytes, self.out),
            Float::F16 => widen_elements::<V, F16>(self.bytes, self.out),
            Float::F32 => widen_elements::<V, F32>(self.bytes, self.out),
        }
    }
}

#[inline(always)]
fn widen_elements<V: F32x16, E: Element>(bytes: &[u8], out: &mut [f32]) {
    let (chunks, rest) = E::chunks(bytes);
    let (out, out_rest) = out.as_chunks_mut::<LANES>();
    for (chunk, out) in chunks.iter().zip(out) {
        E::widen::<V>(chunk).store(out);
    }
    E::widen_part::<V>(rest).store_part(out_rest);
}
