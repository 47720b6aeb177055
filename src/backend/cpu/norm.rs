//! Norms, in the order of roundings that Hugging Face's float32 has: what is normalised first, then times the weight, then
//! plus the bias.

use super::isa::{F32x16, Isa, Kernel, LANES};
use super::workers::Workers;
use super::{Heads, Mode};
use crate::program::NormKind;

/// The parameters of one norm.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    pub kind: NormKind,
    /// As many as a row, or for `head_norm` a head or all heads together, has elements. None: 1.
    pub weight: Option<&'a [f32]>,
    /// The same. None: 0.
    pub bias: Option<&'a [f32]>,
    /// Added to every weight.
    pub offset: f32,
    pub eps: f32,
}

pub(super) fn rows(
    isa: Isa,
    workers: &mut Workers,
    x: &[f32],
    width: usize,
    norm: Norm<'_>,
    out: &mut [f32],
    mode: Mode,
) {
    assert_eq!(x.len(), out.len(), "a norm writes as many numbers as it reads");
    assert_eq!(x.len() % width, 0, "rows of {width}");
    workers.rows(out, width, |i, out| {
        let x = &x[i * width..(i + 1) * width];
        let statistics = isa.run(Statistics { x, norm });
        let normalised = x.iter().enumerate().map(|(i, x)| statistics.apply(*x, i, norm));
        match mode {
            Mode::Store => out.iter_mut().zip(normalised).for_each(|(out, x)| *out = x),
            Mode::Add => out.iter_mut().zip(normalised).for_each(|(out, x)| *out += x),
        }
    });
}

pub(super) fn heads(isa: Isa, workers: &mut Workers, x: &mut [f32], heads: Heads, norm: Norm<'_>) {
    let sizes = [heads.dim, heads.width()];
    assert!([norm.weight, norm.bias].into_iter().flatten().all(|v| sizes.contains(&v.len())), "vectors of {sizes:?}");
    workers.rows(x, heads.stride, |_, row| {
        for (h, head) in row[..heads.width()].chunks_exact_mut(heads.dim).enumerate() {
            let norm = Norm { weight: of_head(norm.weight, heads, h), bias: of_head(norm.bias, heads, h), ..norm };
            let statistics = isa.run(Statistics { x: head, norm });
            head.iter_mut().enumerate().for_each(|(i, x)| *x = statistics.apply(*x, i, norm));
        }
    });
}

/// What one head takes of a vector that is the same for all of them, or has a part for each.
fn of_head(vector: Option<&[f32]>, heads: Heads, head: usize) -> Option<&[f32]> {
    vector.map(|v| if v.len() == heads.dim { v } else { &v[head * heads.dim..(head + 1) * heads.dim] })
}

/// What a norm has to know of a row before it can normalise it: `(x − mean) · scale`.
struct Normalise {
    mean: f32,
    scale: f32,
}

impl Normalise {
    #[inline(always)]
    fn apply(&self, x: f32, i: usize, norm: Norm<'_>) -> f32 {
        let x = (x - self.mean) * self.scale;
        let x = norm.weight.map_or(x, |weight| x * (weight[i] + norm.offset));
        norm.bias.map_or(x, |bias| x + bias[i])
    }
}

struct Statistics<'a> {
    x: &'a [f32],
    norm: Norm<'a>,
}

impl Kernel for Statistics<'_> {
    type Output = Normalise;

    #[inline(always)]
    fn run<V: F32x16>(self) -> Normalise {
        let n = self.x.len() as f32;
        let mean = match self.norm.kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => sum::<V>(self.x) / n,
        };
        let variance = sum_of_squares::<V>(self.x, mean) / n;
        Normalise { mean, scale: 1.0 / (variance + self.norm.eps).sqrt() }
    }
}

/// The sum over a row in the order of `dots`.
#[inline(always)]
fn sum<V: F32x16>(row: &[f32]) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut lanes = V::zero();
    for chunk in chunks {
        lanes = lanes.add(V::load(chunk));
    }
    lanes.add(V::load_part(rest)).sum()
}

/// The sum of (x − mean)² in the same order.
#[inline(always)]
fn sum_of_squares<V: F32x16>(row: &[f32], mean: f32) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut lanes = V::zero();
    for chunk in chunks {
        let x = V::load(chunk).sub(V::splat(mean));
        lanes = x.mul_add(x, lanes);
    }
    let mut last = [0.0; LANES];
    for (last, x) in last.iter_mut().zip(rest) {
        *last = x - mean;
    }
    let x = V::load(&last);
    x.mul_add(x, lanes).sum()
}
