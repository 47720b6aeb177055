//! transposed.cu against float64, and the same bits wherever the stored rows are cut and whoever shares the launch.

use rand::RngExt;

use super::{Check, Outcome, Output, SIZES};
use crate::launch::Launch;
use crate::launch::transposed::{Stored, naive, product};
use crate::params::{Dtype, TransposedParams, Vector};

const DTYPES: [Dtype; 3] = [Dtype::DTYPE_F32, Dtype::DTYPE_F16, Dtype::DTYPE_BF16];

const STORED: [Stored; 4] = [Stored::Numbers, Stored::Gptq4, Stored::Gptq8, Stored::Awq4];

/// A product of m rows with the weights of k inputs for n outputs.
struct Case {
    stored: Stored,
    m: usize,
    n: usize,
    k: usize,
    dtype: Dtype,
    x: Vec<f32>,
    /// [k, n]
    w: Matrix,
    bias: Option<Vec<f32>>,
    /// What is in the output, [m, out_stride], where the product is added to it.
    before: Option<Vec<f32>>,
    x_stride: usize,
    out_stride: usize,
    factor: f32,
}

enum Matrix {
    Numbers(Vec<f32>),
    Codes(Codes),
}

/// Codes [k, n], and the factors of groups of inputs.
struct Codes {
    codes: Vec<u8>,
    /// [groups, n]
    scales: Vec<f32>,
    zeros: Vec<f32>,
    groups: usize,
    group_size: usize,
    /// Groups in any order.
    index: Option<Vec<u32>>,
}

impl Codes {
    fn new(check: &mut Check, stored: Stored, n: usize, k: usize) -> Codes {
        let limit = if stored == Stored::Gptq8 { 256 } else { 16u32 };
        let group_size = check.pick(&[5, 16, 24, 200]);
        let groups = k.div_ceil(group_size);
        let random = |check: &mut Check, len: usize, limit: u32| -> Vec<u32> {
            (0..len).map(|_| check.rng.random_range(0..limit)).collect()
        };
        let ordered = check.pick(&[true, false]);
        Codes {
            codes: random(check, k * n, limit).into_iter().map(|code| code as u8).collect(),
            scales: (0..groups * n).map(|_| check.rng.random_range(0.004..0.02)).collect(),
            zeros: random(check, groups * n, limit).into_iter().map(|zero| zero as f32).collect(),
            index: (!ordered).then(|| random(check, k, groups as u32)),
            groups,
            group_size,
        }
    }

    /// What input i counts for output j.
    fn number(&self, i: usize, j: usize, n: usize) -> f64 {
        let group = self.index.as_ref().map_or(i / self.group_size, |index| index[i] as usize);
        let (scale, zero) = (self.scales[group * n + j], self.zeros[group * n + j]);
        (f64::from(self.codes[i * n + j]) - f64::from(zero)) * f64::from(scale)
    }

    /// The words of some inputs.
    fn words(&self, stored: Stored, n: usize, from: usize, to: usize) -> Vec<u32> {
        let pack = |codes: &mut dyn Iterator<Item = u8>, bits: usize| {
            codes.enumerate().fold(0, |word, (i, code)| word | u32::from(code) << (bits * i))
        };
        let code = |i: usize, j: usize| self.codes[i * n + j];
        if stored == Stored::Awq4 {
            let words = (from..to).flat_map(|i| (0..n / 8).map(move |word| (i, word)));
            let order = [0, 2, 4, 6, 1, 3, 5, 7];
            return words.map(|(i, word)| pack(&mut order.iter().map(|j| code(i, word * 8 + j)), 4)).collect();
        }
        let bits = if stored == Stored::Gptq4 { 4 } else { 8 };
        let words = (from..to).step_by(32 / bits).flat_map(|i| (0..n).map(move |j| (i, j)));
        words.map(|(i, j)| pack(&mut (i..i + 32 / bits).map(|i| code(i, j)), bits)).collect()
    }
}

/// What inputs, and outputs, come in whole numbers of.
fn units(stored: Stored) -> [usize; 2] {
    match stored {
        Stored::Numbers => [1, 1],
        Stored::Gptq4 => [8, 1],
        Stored::Gptq8 => [4, 1],
        Stored::Awq4 => [1, 8],
    }
}

impl Case {
    fn new(check: &mut Check, stored: Stored, m: usize, n: usize, k: usize) -> Case {
        let [inputs, outputs] = units(stored);
        let (k, n) = (k.next_multiple_of(inputs), n.next_multiple_of(outputs));
        let (dtype, gap) = (check.pick(&DTYPES), check.pick(&[0, 3]));
        let (x_stride, out_stride) = (k + gap, n + gap);
        let (bias, add, factor) = (check.pick(&[false, true]), check.pick(&[false, true]), check.pick(&[0.0, 0.37]));
        let more = format!("{dtype:?}, bias {bias}, add {add}, factor {factor}");
        check.case(format!("{stored:?} transposed product, m {m}, n {n}, k {k} (+{gap}), {more}"));
        let x = check.normal(m * x_stride);
        let w = match stored {
            Stored::Numbers => Matrix::Numbers(check.normal(n * k)),
            _ => Matrix::Codes(Codes::new(check, stored, n, k)),
        };
        let bias = bias.then(|| check.normal(n));
        let before = add.then(|| check.normal(m * out_stride));
        Case { stored, m, n, k, dtype, x, w, bias, before, x_stride, out_stride, factor }
    }

    /// What the weights are, [k, n].
    fn numbers(&self, check: &mut Check) -> Vec<f64> {
        match &self.w {
            Matrix::Numbers(w) => check.rounded(w, self.dtype).1,
            Matrix::Codes(codes) => {
                (0..self.k * self.n).map(|at| codes.number(at / self.n, at % self.n, self.n)).collect()
            }
        }
    }

    fn output(&self, check: &mut Check) -> Output {
        match &self.before {
            Some(before) => check.in_place(before),
            None => check.output(self.m * self.out_stride, Dtype::DTYPE_F32),
        }
    }

    /// What some stored rows of some rows of activations add, the first of them with the bias.
    fn part(&self, check: &mut Check, rows: [usize; 2], from: usize, to: usize, out: Output) -> TransposedParams {
        let mut of_codes = TransposedParams::default();
        let w = match &self.w {
            Matrix::Numbers(w) => check.rounded(&w[from * self.n..to * self.n], self.dtype).0,
            Matrix::Codes(codes) => {
                of_codes.scale = check.input(&codes.scales);
                of_codes.zero = check.input(&codes.zeros);
                let index = codes.index.as_ref().map(|index| check.input(&index[from..to]));
                of_codes.index = index.map_or(std::ptr::null(), |index| index.cast());
                (of_codes.groups, of_codes.group_size) = (codes.groups as i32, codes.group_size as i32);
                check.input(&codes.words(self.stored, self.n, from, to)).cast()
            }
        };
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
            first_input: from as i32,
            add: i32::from(from > 0 || self.before.is_some()),
            factor: self.factor,
            dtype: self.dtype,
            ..of_codes
        }
    }

    fn whole(&self, check: &mut Check, launch: fn(Stored, &TransposedParams) -> Launch) -> Result<Vec<f64>, String> {
        let out = self.output(check);
        let params = self.part(check, [0, self.m], 0, self.k, out);
        check.launch(&launch(self.stored, &params), &params)?;
        Ok(check.read(out))
    }
}

/// Every number of rows, of outputs and of stored rows.
pub fn check(check: &mut Check) -> Outcome {
    for (i, n) in SIZES.into_iter().chain([128, 260]).enumerate() {
        for j in 0..3 {
            let m = SIZES[(i * 3 + j * 5) % SIZES.len()];
            let k = check.pick(&[SIZES.as_slice(), &[63, 128, 200]].concat());
            one(check, STORED[(i + j) % 4], m, n, k)?;
        }
    }
    Ok(())
}

fn one(check: &mut Check, stored: Stored, m: usize, n: usize, k: usize) -> Outcome {
    let case = Case::new(check, stored, m, n, k);
    let Case { n, k, factor, .. } = case;
    let factor = if factor == 0.0 { 1.0 } else { f64::from(factor) };
    let got = case.whole(check, product)?;
    let twin = case.whole(check, naive)?;
    let w = case.numbers(check);
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
        let start = before.unwrap_or(0.0) + case.bias.as_ref().map_or(0.0, |bias| factor * f64::from(bias[j]));
        let terms = (0..k).map(|i| factor * f64::from(case.x[r * case.x_stride + i]) * w[i * n + j]);
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
    for (number, (m, n, k)) in
        [(1, 65, 200), (7, 9, 129), (9, 130, 130), (33, 17, 193), (40, 129, 70)].into_iter().enumerate()
    {
        for stored in [Stored::Numbers, STORED[1 + number % 3]] {
            let case = Case::new(check, stored, m, n, k);
            cuts(check, &case)?;
        }
    }
    Ok(())
}

fn cuts(check: &mut Check, case: &Case) -> Outcome {
    let (k, [unit, _]) = (case.k, units(case.stored));
    let whole = case.whole(check, product)?;
    for pieces in [vec![1, k], vec![3, 64, 65, k], vec![k / 2, k]] {
        let mut pieces: Vec<usize> = pieces.into_iter().map(|to| to.next_multiple_of(unit)).collect();
        pieces.dedup();
        let out = case.output(check);
        let mut from = 0;
        for to in pieces.iter().copied() {
            let params = case.part(check, [0, case.m], from, to, out);
            check.launch(&product(case.stored, &params), &params)?;
            from = to;
        }
        let got = check.read(out);
        check.same(&format!("cut at {pieces:?}"), &got, &whole)?;
    }
    let out = case.output(check);
    for r in 0..case.m {
        let params = case.part(check, [r, r + 1], 0, k, out);
        check.launch(&product(case.stored, &params), &params)?;
    }
    let got = check.read(out);
    check.same("row by row", &got, &whole)
}
