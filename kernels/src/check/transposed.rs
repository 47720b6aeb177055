//! transposed.cu against float64, and the same bits wherever the stored rows are cut and whoever shares the launch.

use super::{Check, Outcome, Output, SIZES};
use crate::launch::Launch;
use crate::launch::transposed::{naive, product};
use crate::params::{Dtype, TransposedParams, Vector};

const DTYPES: [Dtype; 3] = [Dtype::DTYPE_F32, Dtype::DTYPE_F16, Dtype::DTYPE_BF16];

/// A product of m rows with k stored rows of n.
struct Case {
    m: usize,
    n: usize,
    k: usize,
    dtype: Dtype,
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Option<Vec<f32>>,
    /// What is in the output, [m, out_stride], where the product is added to it.
    before: Option<Vec<f32>>,
    x_stride: usize,
    out_stride: usize,
}

impl Case {
    fn new(check: &mut Check, m: usize, n: usize, k: usize) -> Case {
        let (dtype, gap) = (check.pick(&DTYPES), check.pick(&[0, 3]));
        let (x_stride, out_stride) = (k + gap, n + gap);
        let (bias, add) = (check.pick(&[false, true]), check.pick(&[false, true]));
        check.case(format!("transposed product, m {m}, n {n}, k {k} (+{gap}), {dtype:?}, bias {bias}, add {add}"));
        let (x, w) = (check.normal(m * x_stride), check.normal(n * k));
        let bias = bias.then(|| check.normal(n));
        let before = add.then(|| check.normal(m * out_stride));
        Case { m, n, k, dtype, x, w, bias, before, x_stride, out_stride }
    }

    fn output(&self, check: &mut Check) -> Output {
        match &self.before {
            Some(before) => check.in_place(before),
            None => check.output(self.m * self.out_stride, Dtype::DTYPE_F32),
        }
    }

    /// What some stored rows of some rows of activations add, the first of them with the bias.
    fn part(&self, check: &mut Check, rows: [usize; 2], from: usize, to: usize, out: Output) -> TransposedParams {
        let (w, _) = check.rounded(&self.w[from * self.n..to * self.n], self.dtype);
        let bias = self.bias.as_ref().filter(|_| from == 0).map(|bias| check.input(bias));
        TransposedParams {
            w,
            x: check.input(&self.x[rows[0] * self.x_stride + from..]),
            out: (out.address + (rows[0] * self.out_stride * 4) as u64) as *mut f32,
            bias: Vector { data: bias.map_or(std::ptr::null(), |bias| bias.cast()), dtype: Dtype::DTYPE_F32 },
            x_stride: self.x_stride as i64,
            out_stride: self.out_stride as i64,
            m: (rows[1] - rows[0]) as i32,
            n: self.n as i32,
            k: (to - from) as i32,
            add: i32::from(from > 0 || self.before.is_some()),
            dtype: self.dtype,
        }
    }

    fn whole(&self, check: &mut Check, launch: fn(&TransposedParams) -> Launch) -> Result<Vec<f64>, String> {
        let out = self.output(check);
        let params = self.part(check, [0, self.m], 0, self.k, out);
        check.launch(&launch(&params), &params)?;
        Ok(check.read(out))
    }
}

/// Every number of rows, of outputs and of stored rows.
pub fn check(check: &mut Check) -> Outcome {
    for (i, n) in SIZES.into_iter().chain([128, 260]).enumerate() {
        for j in 0..3 {
            let m = SIZES[(i * 3 + j * 5) % SIZES.len()];
            let k = check.pick(&[SIZES.as_slice(), &[63, 128, 200]].concat());
            one(check, m, n, k)?;
        }
    }
    Ok(())
}

fn one(check: &mut Check, m: usize, n: usize, k: usize) -> Outcome {
    let case = Case::new(check, m, n, k);
    let got = case.whole(check, product)?;
    let twin = case.whole(check, naive)?;
    let (_, w) = check.rounded(&case.w, case.dtype);
    let mut truth = Vec::new();
    let mut picked = [Vec::new(), Vec::new()];
    let mut largest = 0f64;
    for (at, got) in got.iter().enumerate() {
        let (r, j) = (at / case.out_stride, at % case.out_stride);
        let before = case.before.as_ref().map(|before| f64::from(before[at]));
        if j >= n {
            if !before.map_or(got.is_nan(), |before| before == *got) {
                return Err(check.failure(&format!("wrote {got} between rows")));
            }
            continue;
        }
        let start = before.unwrap_or(0.0) + case.bias.as_ref().map_or(0.0, |bias| bias[j].into());
        let terms = (0..k).map(|i| f64::from(case.x[r * case.x_stride + i]) * w[i * n + j]);
        let (sum, square) = terms.fold((start, start * start), |(sum, square), t| (sum + t, square + t * t));
        largest = largest.max(sum.abs().max(square.sqrt()));
        truth.push(sum);
        picked[0].push(*got);
        picked[1].push(twin[at]);
    }
    // The twin may be lucky in a sum, but not better than three roundings of what it adds.
    let floor = 3.0 * super::unit_roundoff(Dtype::DTYPE_F32) * largest;
    check.gate_above(floor, "out", &picked[0], &picked[1], &truth)
}

/// In one piece, in pieces, and row by row.
pub fn check_cuts(check: &mut Check) -> Outcome {
    for (m, n, k) in [(1, 65, 200), (7, 9, 129), (9, 130, 130), (33, 17, 193), (40, 129, 70)] {
        let case = Case::new(check, m, n, k);
        let whole = case.whole(check, product)?;
        for pieces in [vec![1, k], vec![3, 64, 65, k], vec![k / 2, k]] {
            let out = case.output(check);
            let mut from = 0;
            for to in pieces.iter().copied() {
                let params = case.part(check, [0, m], from, to, out);
                check.launch(&product(&params), &params)?;
                from = to;
            }
            let got = check.read(out);
            check.same(&format!("cut at {pieces:?}"), &got, &whole)?;
        }
        let out = case.output(check);
        for r in 0..m {
            let params = case.part(check, [r, r + 1], 0, k, out);
            check.launch(&product(&params), &params)?;
        }
        let got = check.read(out);
        check.same("row by row", &got, &whole)?;
    }
    Ok(())
}
