//! Attention against its definition in float64.

use layerstream::backend::cpu::{Attention, Cpu, Sequence, append};

use super::{Random, bits, cpus, rms_error};

/// Sinks, or slopes, of up to eight heads.
const OF_HEADS: [f32; 8] = [0.5, 0.25, 1.5, 0.1, 0.9, 0.05, 2.5, 0.3];

/// Slopes that bfloat16 holds, and whose products with a position it does not.
const BF16_SLOPES: [f32; 8] =
    [0.839_843_75, 0.707_031_25, 0.593_75, 0.412_109_38, 0.092_773_44, 0.035_156_25, 0.996_093_75, 0.246_093_75];

/// A cache of random keys and values, and queries that look into it.
struct Lookup {
    shape: Attention<'static>,
    start: usize,
    q: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Lookup {
    /// Keys after the last position are NaN: nobody may look at them.
    fn random(random: &mut Random, shape: Attention<'static>, start: usize, n: usize) -> Lookup {
        let capacity = start + n + 5;
        let mut lookup = Lookup {
            shape,
            start,
            q: random.numbers(n * shape.q_stride).iter().map(|q| q * 4.0).collect(),
            keys: vec![f32::NAN; shape.kv_heads * capacity * shape.key_dim],
            values: vec![f32::NAN; shape.kv_heads * capacity * shape.value_dim],
        };
        for (cache, dim) in [(&mut lookup.keys, shape.key_dim), (&mut lookup.values, shape.value_dim)] {
            let stride = shape.kv_heads * dim + 3;
            let rows = random.numbers((start + n) * stride);
            append(&rows[..start * stride], stride, shape.kv_heads, dim, 0, cache);
            append(&rows[start * stride..], stride, shape.kv_heads, dim, start, cache);
        }
        lookup
    }

    fn n(&self) -> usize {
        self.q.len() / self.shape.q_stride
    }

    fn width(&self) -> usize {
        self.shape.heads * self.shape.value_dim
    }

    fn sequence(&self, first_row: usize, start: usize, n: usize) -> Sequence<'_> {
        Sequence { rows: first_row..first_row + n, start, keys: &self.keys, values: &self.values }
    }

    fn attend(&self, cpu: &mut Cpu) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.n() * self.width()];
        cpu.attention(&self.q, &[self.sequence(0, self.start, self.n())], self.shape, &mut out);
        out
    }

    /// Straight from the definition, with sums and exponentials in the type that the closures use.
    fn reference(&self, round: impl Fn(f64) -> f64) -> Vec<f64> {
        let Attention { heads, kv_heads, key_dim, value_dim, q_stride, scale, window, chunk, .. } = self.shape;
        let Attention { soft_cap, sinks, slopes, bias_factor, .. } = self.shape;
        let capacity = self.keys.len() / kv_heads / key_dim;
        let mut out = Vec::new();
        for t in 0..self.n() {
            let position = self.start + t;
            let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
            let first = first.max(chunk.map_or(0, |chunk| position / chunk * chunk));
            for head in 0..heads {
                let q = &self.q[t * q_stride + head * key_dim..][..key_dim];
                let at = |j: usize| (head / (heads / kv_heads)) * capacity + j;
                let mut scores: Vec<f64> = (first..=position)
                    .map(|j| {
                        let key = &self.keys[at(j) * key_dim..][..key_dim];
                        let dot = q.iter().zip(key).fold(0.0, |sum, (q, k)| round(sum + round(*q as f64 * *k as f64)));
                        let score = round(dot * scale as f64);
                        let cap = soft_cap.map(|cap| cap as f64);
                        let score = cap.map_or(score, |cap| round(cap * round(round(score / cap).tanh())));
                        let slope = slopes.map_or(0.0, |slopes| slopes[head] as f64);
                        let bf16 = |value: f64| f64::from(half::bf16::from_f64(value));
                        let bias = |position: usize| bf16(slope * bf16(position as f64));
                        round(match bias_factor {
                            None => score + round(slope * (j as f64 - position as f64)),
                            Some(factor) => score + round(factor as f64 * (bias(j) - bias(position))),
                        })
                    })
                    .collect();
                // A sink takes its share like one more key, whose value is zero.
                scores.extend(sinks.map(|sinks| sinks[head] as f64));
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| round((s - top).exp())).collect();
                let total = weights.iter().fold(0.0, |sum, w| round(sum + w));
                for d in 0..value_dim {
                    let value = |j: usize| self.values[at(j) * value_dim + d] as f64;
                    let weighted = (first..=position).zip(&weights);
                    out.push(weighted.fold(0.0, |sum, (j, w)| round(sum + round(round(w / total) * value(j)))));
                }
            }
        }
        out
    }
}

fn shape(heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) -> Attention<'static> {
    let scale = 1.0 / (head_dim as f32).sqrt();
    Attention {
        heads,
        kv_heads,
        key_dim: head_dim,
        value_dim: head_dim,
        q_stride: heads * head_dim + 7,
        scale,
        window,
        chunk: None,
        soft_cap: None,
        sinks: None,
        slopes: None,
        bias_factor: None,
    }
}

#[test]
fn attention_is_accurate_and_the_same_on_every_instruction_set() {
    let mut random = Random(7);
    let mut cpus = cpus();
    let cases = [
        (shape(1, 1, 8, None), 0, 1),
        (shape(2, 2, 32, None), 0, 70),
        (shape(4, 2, 64, None), 63, 3),
        (shape(4, 1, 64, Some(10)), 60, 17),
        (shape(3, 1, 72, Some(64)), 100, 65),
        (shape(2, 1, 80, Some(1)), 5, 9),
        (shape(6, 2, 96, None), 200, 1),
        (shape(4, 2, 100, Some(30)), 80, 40),
        (shape(3, 3, 20, None), 60, 19),
        (shape(8, 2, 128, None), 300, 33),
        (shape(8, 2, 128, Some(100)), 64, 129),
        (shape(7, 1, 192, None), 127, 2),
        (shape(2, 2, 256, Some(65)), 190, 8),
        (Attention { value_dim: 40, ..shape(4, 2, 72, None) }, 70, 9),
        (Attention { value_dim: 128, ..shape(2, 1, 64, Some(30)) }, 0, 70),
        (Attention { chunk: Some(24), ..shape(4, 2, 32, None) }, 20, 60),
        (Attention { chunk: Some(64), ..shape(2, 1, 32, Some(100)) }, 100, 40),
        (Attention { soft_cap: Some(2.0), ..shape(4, 2, 64, None) }, 90, 13),
        (Attention { soft_cap: Some(0.5), ..shape(4, 1, 32, Some(20)) }, 10, 70),
        (Attention { sinks: Some(&OF_HEADS), ..shape(8, 2, 64, None) }, 40, 33),
        (Attention { sinks: Some(&OF_HEADS), ..shape(8, 1, 16, Some(5)) }, 0, 20),
        (Attention { slopes: Some(&OF_HEADS), ..shape(8, 2, 64, None) }, 100, 33),
        (Attention { slopes: Some(&BF16_SLOPES), bias_factor: Some(0.125), ..shape(8, 8, 64, None) }, 300, 33),
        (
            Attention { slopes: Some(&OF_HEADS), soft_cap: Some(3.0), sinks: Some(&OF_HEADS), ..shape(8, 4, 20, None) },
            7,
            90,
        ),
    ];
    for (shape, start, n) in cases {
        let lookup = Lookup::random(&mut random, shape, start, n);
        let exact = lookup.reference(|x| x);
        let naive: Vec<f32> = lookup.reference(|x| x as f32 as f64).iter().map(|x| *x as f32).collect();
        let results: Vec<Vec<f32>> = cpus.iter_mut().map(|cpu| lookup.attend(cpu)).collect();
        let error = rms_error(&results[0], &exact);
        let allowed = 2.0 * rms_error(&naive, &exact) + f32::EPSILON as f64 * 0.1;
        assert!(error <= allowed, "{shape:?}: error {error:e}, allowed {allowed:e}");
        for (cpu, result) in cpus.iter().zip(&results) {
            assert_eq!(bits(result), bits(&results[0]), "{shape:?}, {:?}", cpu.isa());
        }
    }
}

#[test]
fn attention_bits_do_not_depend_on_company() {
    let mut random = Random(8);
    let all =
        Attention { soft_cap: Some(3.0), sinks: Some(&OF_HEADS), slopes: Some(&OF_HEADS), ..shape(8, 2, 64, Some(70)) };
    let shapes =
        [shape(4, 4, 64, None), shape(6, 2, 80, Some(50)), shape(2, 1, 100, None), shape(8, 1, 128, None), all];
    for shape in shapes {
        let a = Lookup::random(&mut random, shape, 90, 61);
        let b = Lookup::random(&mut random, shape, 3, 20);
        let mut cpu = Cpu::new(Some(1)).unwrap();
        let (alone, other) = (a.attend(&mut cpu), b.attend(&mut cpu));
        for threads in [2, 3] {
            assert_eq!(bits(&a.attend(&mut Cpu::new(Some(threads)).unwrap())), bits(&alone));
        }
        // In blocks of every size.
        for size in [1, 2, 7, 16, 40] {
            let mut out = vec![0.0; alone.len()];
            for first in (0..a.n()).step_by(size) {
                let sequence = a.sequence(first, a.start + first, size.min(a.n() - first));
                cpu.attention(&a.q, &[sequence], shape, &mut out);
            }
            assert_eq!(bits(&out), bits(&alone), "{size} at a time");
        }
        // With another sequence.
        let q = [b.q.as_slice(), a.q.as_slice()].concat();
        let mut out = vec![0.0; other.len() + alone.len()];
        let sequences = [a.sequence(b.n(), a.start, a.n()), b.sequence(0, b.start, b.n())];
        cpu.attention(&q, &sequences, shape, &mut out);
        assert_eq!(bits(&out[..other.len()]), bits(&other));
        assert_eq!(bits(&out[other.len()..]), bits(&alone));
    }
}

#[test]
fn a_query_is_not_harmed_by_what_it_cannot_see() {
    let shape = Attention { scale: 1.0, ..shape(2, 1, 16, Some(3)) };
    let mut lookup = Lookup::random(&mut Random(9), shape, 0, 12);
    let clean = lookup.attend(&mut Cpu::new(Some(1)).unwrap());
    for j in [4, 5] {
        lookup.keys[j * 16..(j + 1) * 16].fill(f32::INFINITY);
        lookup.values[j * 16..(j + 1) * 16].fill(f32::NAN);
    }
    for cpu in &mut cpus() {
        let out = lookup.attend(cpu);
        let width = lookup.width();
        for t in 0..12 {
            let (out, clean) = (&out[t * width..(t + 1) * width], &clean[t * width..(t + 1) * width]);
            if (4..8).contains(&t) {
                assert!(out.iter().all(|x| x.is_nan()), "row {t}");
            } else {
                assert_eq!(bits(out), bits(clean), "row {t}");
            }
        }
    }
}

#[test]
fn a_score_of_minus_infinity_weighs_nothing() {
    let shape = Attention { scale: 1.0, ..shape(1, 1, 8, None) };
    let mut lookup = Lookup::random(&mut Random(10), shape, 0, 70);
    lookup.q.iter_mut().for_each(|q| *q = q.abs() + 0.1);
    // A whole block that weighs nothing, then keys that do.
    for key in lookup.keys.chunks_mut(8).take(64) {
        key.fill(f32::NEG_INFINITY);
    }
    let expected: Vec<f32> = lookup.values[64 * 8..65 * 8].to_vec();
    for cpu in &mut cpus() {
        let out = lookup.attend(cpu);
        assert_eq!(out[64 * 8..65 * 8], expected);
        assert!(out[..64 * 8].iter().all(|x| x.is_nan()), "nothing to see");
    }
}
