//! Simple work on rows of activations: picking parts of packed ones, and multiplying by a factor.

use super::workers::Workers;

/// Which parts of a row make another: runs of `run` numbers, run i from `first + i × stride`.
#[derive(Clone, Copy, Debug)]
pub struct Runs {
    pub first: usize,
    pub run: usize,
    pub stride: usize,
}

pub(super) fn rearrange(workers: &mut Workers, x: &[f32], x_width: usize, runs: Runs, out: &mut [f32], width: usize) {
    let Runs { first, run, stride } = runs;
    assert_eq!(x.len() / x_width, out.len() / width, "as many rows");
    assert!(width.is_multiple_of(run) && first + (width / run - 1) * stride + run <= x_width, "{runs:?} of {x_width}");
    workers.rows(out, width, |t, out| {
        let row = &x[t * x_width..(t + 1) * x_width];
        for (i, out) in out.chunks_exact_mut(run).enumerate() {
            out.copy_from_slice(&row[first + i * stride..first + i * stride + run]);
        }
    });
}

pub(super) fn scale(workers: &mut Workers, x: &mut [f32], width: usize, factors: &[f32]) {
    assert_eq!(x.len(), width * factors.len(), "a factor for every row");
    workers.rows(x, width, |t, row| row.iter_mut().for_each(|x| *x *= factors[t]));
}
