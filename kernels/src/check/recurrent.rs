//! recurrent.cu against float64: the convolution over tokens, and the gated delta rule; and that where a sequence is cut
//! into passes does not show in a single bit.

use super::{Check, Outcome, SIZES, Scalar};
use crate::launch::Launch;
use crate::launch::recurrent::{convolve, delta_rule, naive_convolve, naive_delta_rule};
use crate::params::{ConvolveParams, DeltaRuleParams, Dtype, Stretch};

impl Scalar for Stretch {
    fn bytes(self) -> impl Iterator<Item = u8> {
        [self.first_row, self.rows, self.from, self.to].into_iter().flat_map(i32::to_le_bytes)
    }
}

/// Stretches of so many rows, one after the other, and how many states there are. Every other stretch begins with zeros;
/// the last state is one that is read.
fn stretches(rows: &[usize]) -> (Vec<Stretch>, usize) {
    let (count, mut first_row) = (rows.len() as i32, 0);
    let mut all = Vec::new();
    for (to, &rows) in (0..).zip(rows) {
        let from = if to % 2 == 0 { 3 * count - 1 - to } else { -1 };
        all.push(Stretch { first_row, rows: rows as i32, from, to });
        first_row += rows as i32;
    }
    (all, 3 * rows.len())
}

/// The same tokens in two passes, with states in between that belong to nobody else.
fn cut(list: &[Stretch]) -> [Vec<Stretch>; 2] {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for &s in list {
        let (rows, between) = (s.rows / 2, list.len() as i32 + s.to);
        if rows == 0 {
            second.push(s);
            continue;
        }
        first.push(Stretch { rows, to: between, ..s });
        second.push(Stretch { first_row: s.first_row + rows, rows: s.rows - rows, from: between, ..s });
    }
    [first, second]
}

/// Ragged batches: rows of each stretch.
const BATCHES: [&[usize]; 6] = [&[1], &[3, 1], &[2, 1, 5], &[17], &[8, 9, 1, 1, 4], &[33, 16]];

/// What a kernel leaves: rows, and states.
type Made = [Vec<f64>; 2];

/// Compares rows and states with the truth, which is NaN where nothing belongs, and with those of two passes. `states` are
/// those before.
fn judge(check: &Check, [got, naive, cut, truth]: [&Made; 4], states: &[f32]) -> Outcome {
    for (i, what) in ["rows", "states"].into_iter().enumerate() {
        let written: Vec<usize> = (0..truth[i].len()).filter(|&at| !truth[i][at].is_nan()).collect();
        let pick = |from: &Made| written.iter().map(|&at| from[i][at]).collect::<Vec<_>>();
        check.gate(what, &pick(got), &pick(naive), &pick(truth), Dtype::DTYPE_F32)?;
        check.same(&format!("{what} of one pass and of two"), &pick(got), &pick(cut))?;
    }
    let mut others = (0..states.len()).filter(|&at| truth[1][at].is_nan());
    match others.find(|&at| got[1][at] != f64::from(states[at])) {
        None => Ok(()),
        Some(at) => Err(check.failure(&format!("state: wrote {} at {at}, where nothing belongs", got[1][at]))),
    }
}

/// Every size as the number of channels, several numbers of taps, ragged batches.
pub fn check_convolve(check: &mut Check) -> Outcome {
    for (i, channels) in SIZES.into_iter().chain([200]).enumerate() {
        for (j, taps) in [4, 2, 1, 7].into_iter().enumerate() {
            convolve_case(check, BATCHES[(i + j) % 6], channels, taps)?;
        }
    }
    Ok(())
}

fn convolve_case(check: &mut Check, rows: &[usize], channels: usize, taps: usize) -> Outcome {
    check.case(format!("convolution of {channels} channels, {taps} taps, stretches of {rows:?}"));
    let (list, count) = stretches(rows);
    let (all, before, stride) = (rows.iter().sum::<usize>(), taps - 1, channels + 3);
    // Of the last row there is no more than its numbers.
    let x = check.normal((all - 1) * stride + channels);
    let weight = check.normal(channels * taps);
    let states = check.normal(count * before * channels);
    let mut run = |launch: fn(&ConvolveParams) -> Launch, passes: &[Vec<Stretch>]| -> Result<Made, String> {
        let made = [check.in_place(&x), check.in_place(&states)];
        let params = ConvolveParams {
            x: made[0].address as *mut f32,
            weight: check.input(&weight),
            states: made[1].address as *mut f32,
            stride: stride as i64,
            channels: channels as i32,
            taps: taps as i32,
            ..ConvolveParams::default()
        };
        for list in passes.iter().filter(|list| !list.is_empty()) {
            let params = ConvolveParams { stretches: check.input(list), stretch_count: list.len() as i32, ..params };
            check.launch(&launch(&params), &params)?;
        }
        Ok(made.map(|output| check.read(output)))
    };
    let got = run(convolve, &[list.clone()])?;
    let naive = run(naive_convolve, &[list.clone()])?;
    let cut = run(convolve, &cut(&list))?;

    // What lies between rows stays as it is.
    let mut truth = [x.iter().map(|&v| f64::from(v)).collect::<Vec<_>>(), vec![f64::NAN; states.len()]];
    for s in &list {
        let tokens = s.rows as usize;
        for c in 0..channels {
            let at = |state: i32, row: usize| (state as usize * before + row) * channels + c;
            let place = |token: usize| (s.first_row as usize + token) * stride + c;
            let earlier = |row: usize| if s.from < 0 { 0.0 } else { states[at(s.from, row)] };
            let seen: Vec<f32> = (0..before).map(earlier).chain((0..tokens).map(|token| x[place(token)])).collect();
            for token in 0..tokens {
                let product = |j: usize| f64::from(weight[c * taps + j]) * f64::from(seen[token + j]);
                truth[0][place(token)] = (0..taps).map(product).sum();
            }
            (0..before).for_each(|row| truth[1][at(s.to, row)] = seen[tokens + row].into());
        }
    }
    judge(check, [&got, &naive, &cut, &truth], &states)
}

/// Sizes of a layer with the delta rule.
#[derive(Clone, Copy, Debug)]
struct Heads {
    key_heads: usize,
    value_heads: usize,
    key_dim: usize,
    value_dim: usize,
}

/// The shape of the families, every size as either dimension, ragged batches.
pub fn check_delta_rule(check: &mut Check) -> Outcome {
    let shape = |key_heads, value_heads, key_dim, value_dim| Heads { key_heads, value_heads, key_dim, value_dim };
    let mut shapes = vec![shape(1, 2, 128, 128), shape(1, 1, 256, 5), shape(1, 2, 130, 17), shape(3, 3, 33, 4)];
    for (i, size) in SIZES.into_iter().enumerate() {
        let key_heads = 1 + i % 2;
        shapes.push(shape(key_heads, key_heads * (1 + i / 2 % 2), size, SIZES[(i * 5 + 3) % SIZES.len()]));
    }
    for (i, shape) in shapes.into_iter().enumerate() {
        // Each token is many shuffles, which a CPU is slow at.
        delta_rule_case(check, BATCHES[(i + 1) % 3], shape)?;
    }
    Ok(())
}

fn delta_rule_case(check: &mut Check, rows: &[usize], heads: Heads) -> Outcome {
    check.case(format!("delta rule of {heads:?}, stretches of {rows:?}"));
    let Heads { key_heads, value_heads, key_dim, value_dim } = heads;
    let (list, count) = stretches(rows);
    let (all, keys, values) = (rows.iter().sum::<usize>(), key_heads * key_dim, value_heads * value_dim);
    let widths = [2 * keys + values, value_heads, value_heads, values];
    let strides = widths.map(|width| width + 1);
    let [mixed, decay, write, _] = [0, 1, 2, 3].map(|i| check.normal((all - 1) * strides[i] + widths[i]));
    let (log_decay, decay_bias) = (check.normal(value_heads), check.normal(value_heads));
    // Beyond 20 softplus is what it is of.
    let decay: Vec<f32> = decay.iter().map(|v| v * 12.0).collect();
    let size = values * key_dim;
    let states = check.normal(count * size);
    let mut run = |launch: fn(&DeltaRuleParams) -> Launch, passes: &[Vec<Stretch>]| -> Result<Made, String> {
        let out = check.output((all - 1) * strides[3] + values, Dtype::DTYPE_F32);
        let made = [out, check.in_place(&states)];
        let params = DeltaRuleParams {
            mixed: check.input(&mixed),
            decay: check.input(&decay),
            write: check.input(&write),
            log_decay: check.input(&log_decay),
            decay_bias: check.input(&decay_bias),
            states: made[1].address as *mut f32,
            out: made[0].address as *mut f32,
            mixed_stride: strides[0] as i64,
            decay_stride: strides[1] as i64,
            write_stride: strides[2] as i64,
            out_stride: strides[3] as i64,
            key_heads: key_heads as i32,
            value_heads: value_heads as i32,
            key_dim: key_dim as i32,
            value_dim: value_dim as i32,
            ..DeltaRuleParams::default()
        };
        for list in passes.iter().filter(|list| !list.is_empty()) {
            let params = DeltaRuleParams { stretches: check.input(list), stretch_count: list.len() as i32, ..params };
            check.launch(&launch(&params), &params)?;
        }
        Ok(made.map(|output| check.read(output)))
    };
    let got = run(delta_rule, &[list.clone()])?;
    let naive = run(naive_delta_rule, &[list.clone()])?;
    let cut = run(delta_rule, &cut(&list))?;

    let mut truth: Made = [vec![f64::NAN; got[0].len()], vec![f64::NAN; states.len()]];
    for s in &list {
        for head in 0..value_heads {
            let at = |state: i32| state as usize * size + head * value_dim * key_dim;
            let mut state: Vec<f64> = match s.from {
                ..0 => vec![0.0; value_dim * key_dim],
                from => states[at(from)..at(from) + value_dim * key_dim].iter().map(|&v| v.into()).collect(),
            };
            for row in s.first_row as usize..(s.first_row + s.rows) as usize {
                let part = |first: usize, len: usize| {
                    mixed[row * strides[0] + first..][..len].iter().map(|&v| f64::from(v)).collect::<Vec<f64>>()
                };
                let key_head = head / (value_heads / key_heads);
                let q = unit(&part(key_head * key_dim, key_dim), 1.0 / (key_dim as f64).sqrt());
                let k = unit(&part(keys + key_head * key_dim, key_dim), 1.0);
                let v = part(2 * keys + head * value_dim, value_dim);
                let x = f64::from(decay[row * strides[1] + head]) + f64::from(decay_bias[head]);
                let softplus = x.max(0.0) + (-x.abs()).exp().ln_1p();
                let kept_part = (-f64::from(log_decay[head]).exp() * softplus).exp();
                let written = 1.0 / (1.0 + (-f64::from(write[row * strides[2] + head])).exp());
                for (c, state) in state.chunks_exact_mut(key_dim).enumerate() {
                    state.iter_mut().for_each(|s| *s *= kept_part);
                    let change = written * (v[c] - dot(state, &k));
                    state.iter_mut().zip(&k).for_each(|(s, k)| *s += k * change);
                    truth[0][row * strides[3] + head * value_dim + c] = dot(state, &q);
                }
            }
            truth[1][at(s.to)..at(s.to) + value_dim * key_dim].copy_from_slice(&state);
        }
    }
    check.unwritten("rows", &got[0], &truth[0])?;
    judge(check, [&got, &naive, &cut, &truth], &states)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `v · scale / |v|`
fn unit(v: &[f64], scale: f64) -> Vec<f64> {
    let factor = scale / (dot(v, v) + 1e-6).sqrt();
    v.iter().map(|v| v * factor).collect()
}
