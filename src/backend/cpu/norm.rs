//! Root-mean-square norm, in the order of roundings that Hugging Face's float32 has: x · (1/√(mean(x²) + ε)), and then
//! times the weight.

use super::Heads;
use super::isa::{F32x16, Isa, Kernel, LANES};
use super::workers::Workers;

/// The parameters of one norm.
#[derive(Clone, Copy)]
pub struct RmsNorm<'a> {
    /// As many as a row, or for `head_norm` a head, has elements.
    pub weight: &'a [f32],
    pub eps: f32,
    /// The checkpoint stores weight − 1.
    pub unit_offset: bool,
}

pub(super) fn rows(isa: Isa, workers: &mut Workers, x: &[f32], norm: RmsNorm<'_>, out: &mut [f32]) {
    let width = norm.weight.len();
    assert_eq!(x.len(), out.len(), "a norm writes as many numbers as it reads");
    assert_eq!(x.len() % width, 0, "rows of {width}");
    workers.rows(out, width, |i, row| {
        row.copy_from_slice(&x[i * width..(i + 1) * width]);
        isa.run(Normalise { row, norm });
    });
}

pub(super) fn heads(isa: Isa, workers: &mut Workers, x: &mut [f32], heads: Heads, norm: RmsNorm<'_>) {
    assert_eq!(norm.weight.len(), heads.dim, "a weight for every element of a head");
    workers.rows(x, heads.stride, |_, row| {
        for row in row[..heads.width()].chunks_exact_mut(heads.dim) {
            isa.run(Normalise { row, norm });
        }
    });
}

struct Normalise<'a> {
    row: &'a mut [f32],
    norm: RmsNorm<'a>,
}

impl Kernel for Normalise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        let mean = sum_of_squares::<V>(self.row) / self.row.len() as f32;
        let scale = 1.0 / (mean + self.norm.eps).sqrt();
        let offset = if self.norm.unit_offset { 1.0 } else { 0.0 };
        for (x, w) in self.row.iter_mut().zip(self.norm.weight) {
            *x = (*x * scale) * (w + offset);
        }
    }
}

/// The sum over a row in the order of `dots`.
#[inline(always)]
fn sum_of_squares<V: F32x16>(row: &[f32]) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut lanes = V::zero();
    for chunk in chunks {
        let x = V::load(chunk);
        lanes = x.mul_add(x, lanes);
    }
    let x = V::load_part(rest);
    x.mul_add(x, lanes).sum()
}
