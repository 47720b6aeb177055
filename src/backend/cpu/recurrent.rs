//! Layers with a state: the convolution of channels, and the gated delta rule. Tokens of a sequence come one after the
//! other, so where a prompt is cut does not show.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::isa::{F32x16, Isa, Kernel, LANES};
use super::workers::Workers;

/// Added to the square of a length before queries and keys are divided by it.
const EPS: f32 = 1e-6;

/// See [`Convolution`](crate::program::Convolution): `x` are the rows of one sequence, `[tokens, channels]`, and `state`
/// the rows before them, `[taps − 1, channels]`.
pub(super) fn convolve(x: &mut [f32], channels: usize, weight: &[f32], state: &mut [f32]) {
    let taps = weight.len() / channels;
    let before = taps - 1;
    let tokens = x.len() / channels;
    // What the next tokens will find: the last rows of state and x together, as they are now.
    let row = |x: &[f32], state: &[f32], i: usize, c: usize| match i.checked_sub(before) {
        None => state[i * channels + c],
        Some(token) => x[token * channels + c],
    };
    let next: Vec<f32> = (tokens..tokens + before)
        .flat_map(|i| (0..channels).map(move |c| (i, c)))
        .map(|(i, c)| row(x, state, i, c))
        .collect();
    // From the last token on, so that those before it are still what they were.
    for token in (0..tokens).rev() {
        for c in 0..channels {
            let weight = &weight[c * taps..(c + 1) * taps];
            let sum = weight.iter().enumerate().fold(0.0, |sum, (j, w)| sum + w * row(x, state, token + j, c));
            x[token * channels + c] = sum;
        }
    }
    state.copy_from_slice(&next);
}

/// The inputs of the delta rule for the rows of one sequence; see [`DeltaRule`](crate::program::DeltaRule).
#[derive(Clone, Copy)]
pub(super) struct Delta<'a> {
    pub key_heads: usize,
    pub value_heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    /// `[rows of the pass, …]`
    pub mixed: &'a [f32],
    pub decay: &'a [f32],
    pub write: &'a [f32],
    pub log_decay: &'a [f32],
    pub decay_bias: &'a [f32],
}

/// Runs the tokens in `rows` through all heads. `states` is `[value_heads, key_dim, value_dim]`, `out` `[rows of the pass,
/// value_heads, value_dim]`.
pub(super) fn delta(
    isa: Isa,
    workers: &mut Workers,
    inputs: Delta<'_>,
    rows: Range<usize>,
    states: &mut [f32],
    out: &mut [f32],
) {
    let Delta { value_heads, key_dim, value_dim, .. } = inputs;
    let out = Mutex::new(out);
    workers.rows(states, key_dim * value_dim, |head, state| {
        let (mut query, mut key) = (vec![0.0; key_dim], vec![0.0; key_dim]);
        let mut made = vec![0.0; value_dim];
        for row in rows.clone() {
            let (q, k, v) = inputs.of(row, head);
            unit(q, 1.0 / (key_dim as f32).sqrt(), &mut query);
            unit(k, 1.0, &mut key);
            let (decay, write) = inputs.gates(row, head);
            isa.run(Step { state, query: &query, key: &key, value: v, decay, write, out: &mut made });
            let at = (row * value_heads + head) * value_dim;
            let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
            out[at..at + value_dim].copy_from_slice(&made);
        }
    });
}

impl<'a> Delta<'a> {
    /// Query, key and value of one value head.
    fn of(&self, row: usize, head: usize) -> (&'a [f32], &'a [f32], &'a [f32]) {
        let (keys, values) = (self.key_heads * self.key_dim, self.value_heads * self.value_dim);
        let row = &self.mixed[row * (2 * keys + values)..(row + 1) * (2 * keys + values)];
        let key_head = head / (self.value_heads / self.key_heads);
        let of = |first: usize, head: usize, dim: usize| &row[first + head * dim..first + (head + 1) * dim];
        (of(0, key_head, self.key_dim), of(keys, key_head, self.key_dim), of(2 * keys, head, self.value_dim))
    }

    /// What the state is multiplied by, and how much of the difference is written.
    fn gates(&self, row: usize, head: usize) -> (f32, f32) {
        let at = row * self.value_heads + head;
        let x = f64::from(self.decay[at]) + f64::from(self.decay_bias[head]);
        let softplus = if x > 20.0 { x } else { x.exp().ln_1p() };
        let decay = (-f64::from(self.log_decay[head]).exp() * softplus).exp();
        (decay as f32, (1.0 / (1.0 + (-f64::from(self.write[at])).exp())) as f32)
    }
}

/// `x · scale / |x|`
fn unit(x: &[f32], scale: f32, out: &mut [f32]) {
    let square: f32 = x.iter().map(|x| x * x).sum();
    let factor = scale / (square + EPS).sqrt();
    out.iter_mut().zip(x).for_each(|(out, x)| *out = x * factor);
}

/// One token through one head.
struct Step<'a> {
    /// `[key_dim, value_dim]`
    state: &'a mut [f32],
    query: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
    decay: f32,
    write: f32,
    out: &'a mut [f32],
}

impl Kernel for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        let Step { state, query, key, value, decay, write, out } = self;
        let width = value.len();
        let (decay, write) = (V::splat(decay), V::splat(write));
        for at in (0..width).step_by(LANES) {
            let end = width.min(at + LANES);
            let mut kept = V::zero();
            for (row, k) in state.chunks_exact_mut(width).zip(key) {
                let s = load::<V>(&row[at..end]).mul(decay);
                kept = s.mul_add(V::splat(*k), kept);
                store(s, &mut row[at..end]);
            }
            let change = load::<V>(&value[at..end]).sub(kept).mul(write);
            let mut sum = V::zero();
            for ((row, k), q) in state.chunks_exact_mut(width).zip(key).zip(query) {
                let s = change.mul_add(V::splat(*k), load::<V>(&row[at..end]));
                sum = s.mul_add(V::splat(*q), sum);
                store(s, &mut row[at..end]);
            }
            store(sum, &mut out[at..end]);
        }
    }
}

#[inline(always)]
fn load<V: F32x16>(from: &[f32]) -> V {
    match from.as_chunks::<LANES>() {
        ([whole], _) => V::load(whole),
        (_, part) => V::load_part(part),
    }
}

#[inline(always)]
fn store<V: F32x16>(value: V, to: &mut [f32]) {
    match to.as_chunks_mut::<LANES>() {
        ([whole], _) => value.store(whole),
        (_, part) => value.store_part(part),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(seed: u32, n: usize) -> Vec<f32> {
        let next = |x: &mut u32| {
            *x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Some((*x >> 8) as f32 / (1 << 23) as f32 - 1.0)
        };
        std::iter::repeat_n((), n).scan(seed, |x, ()| next(x)).collect()
    }

    #[test]
    fn a_convolution_is_the_same_however_the_tokens_are_cut() {
        let (channels, taps, tokens) = (5, 4, 11);
        let (x, weight) = (numbers(1, tokens * channels), numbers(2, channels * taps));
        let mut expected = vec![0.0f64; tokens * channels];
        for t in 0..tokens {
            for c in 0..channels {
                for j in 0..taps {
                    if let Some(from) = (t + j).checked_sub(taps - 1) {
                        expected[t * channels + c] +=
                            f64::from(weight[c * taps + j]) * f64::from(x[from * channels + c]);
                    }
                }
            }
        }
        let mut whole = x.clone();
        convolve(&mut whole, channels, &weight, &mut vec![0.0; (taps - 1) * channels]);
        assert!(whole.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6));
        for cut in [1, 2, 3, 5] {
            let (mut cut_x, mut state) = (x.clone(), vec![0.0; (taps - 1) * channels]);
            cut_x.chunks_mut(cut * channels).for_each(|x| convolve(x, channels, &weight, &mut state));
            assert_eq!(cut_x, whole, "{cut} tokens at a time");
        }
    }

    /// Against the formula in float64, on every instruction set, with the same bits from all of them.
    #[test]
    fn the_delta_rule_is_accurate_and_the_same_however_it_is_run() {
        let (key_heads, value_heads, key_dim, value_dim, tokens) = (2, 6, 24, 40, 9);
        let (keys, values) = (key_heads * key_dim, value_heads * value_dim);
        let mixed = numbers(3, tokens * (2 * keys + values));
        let (decay, write) = (numbers(4, tokens * value_heads), numbers(5, tokens * value_heads));
        let (log_decay, decay_bias) = (numbers(6, value_heads), numbers(7, value_heads));
        let inputs = Delta {
            key_heads,
            value_heads,
            key_dim,
            value_dim,
            mixed: &mixed,
            decay: &decay,
            write: &write,
            log_decay: &log_decay,
            decay_bias: &decay_bias,
        };
        let mut expected = vec![0.0f64; tokens * values];
        for head in 0..value_heads {
            let mut state = vec![0.0f64; key_dim * value_dim];
            for t in 0..tokens {
                let (q, k, v) = inputs.of(t, head);
                let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
                let length = |x: &[f64]| (x.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
                let (q, k, v) = (wide(q), wide(k), wide(v));
                let (q_length, k_length) = (length(&q) * (key_dim as f64).sqrt(), length(&k));
                let (g, beta) = inputs.gates(t, head);
                state.iter_mut().for_each(|s| *s *= f64::from(g));
                for c in 0..value_dim {
                    let kept: f64 = (0..key_dim).map(|i| state[i * value_dim + c] * k[i] / k_length).sum();
                    for i in 0..key_dim {
                        state[i * value_dim + c] += k[i] / k_length * (v[c] - kept) * f64::from(beta);
                    }
                    expected[t * values + head * value_dim + c] =
                        (0..key_dim).map(|i| state[i * value_dim + c] * q[i] / q_length).sum();
                }
            }
        }
        let mut first: Option<Vec<u32>> = None;
        for isa in Isa::available() {
            for (threads, cuts) in [(1, vec![9]), (3, vec![9]), (2, vec![1, 4, 4])] {
                let mut workers = Workers::new(threads).unwrap();
                let (mut out, mut states) = (vec![0.0; tokens * values], vec![0.0; value_heads * key_dim * value_dim]);
                let mut start = 0;
                for cut in cuts {
                    delta(isa, &mut workers, inputs, start..start + cut, &mut states, &mut out);
                    start += cut;
                }
                assert!(out.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5), "{isa}");
                let bits: Vec<u32> = out.iter().map(|x| x.to_bits()).collect();
                assert_eq!(*first.get_or_insert_with(|| bits.clone()), bits, "{isa}, {threads} threads");
            }
        }
    }
}
