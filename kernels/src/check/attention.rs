//! attention_prefill.cu and attention_decode.cu against float64, and their promise about bits.

use super::ragged::{Ragged, cache_row};
use super::{Check, Outcome, Output, SIZES};
use crate::launch::Launch;
use crate::launch::attention::{decode, decode_workspace, naive_attention, naive_workspace, prefill};
use crate::params::{AttentionParams, Dtype, Sequence, Vector};

/// The attention of a model.
#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    v_dim: usize,
    window: usize,
    soft_cap: f32,
    sinks: bool,
    alibi: bool,
    /// Biases are rounded, and count so many times.
    bias_factor: f32,
}

const fn shape(heads: usize, kv_heads: usize, dim: usize) -> Shape {
    let (soft_cap, bias_factor) = (0.0, 0.0);
    Shape { heads, kv_heads, dim, v_dim: dim, window: 0, soft_cap, sinks: false, alibi: false, bias_factor }
}

/// Every head dim of the families, with every extra and every kind of grouping; and dims that no tensor core takes.
const SHAPES: [Shape; 16] = [
    shape(4, 2, 64),
    shape(2, 2, 80),
    Shape { alibi: true, ..shape(3, 3, 128) },
    Shape { window: 5, ..shape(4, 1, 96) },
    shape(4, 2, 128),
    Shape { v_dim: 128, ..shape(2, 2, 192) },
    Shape { soft_cap: 2.0, window: 70, ..shape(2, 1, 256) },
    Shape { sinks: true, window: 33, ..shape(8, 1, 64) },
    Shape { sinks: true, alibi: true, soft_cap: 1.5, window: 64, ..shape(5, 1, 128) },
    shape(17, 1, 32),
    Shape { alibi: true, bias_factor: 0.125, ..shape(3, 3, 64) },
    Shape { alibi: true, bias_factor: 0.7, window: 64, soft_cap: 2.0, ..shape(2, 1, 24) },
    // Without tensor cores whatever the dtype.
    Shape { sinks: true, ..shape(2, 1, 40) },
    Shape { window: 7, alibi: true, ..shape(2, 2, 1) },
    Shape { v_dim: 19, ..shape(3, 1, 7) },
    Shape { v_dim: 250, ..shape(1, 1, 131) },
];

/// One call: sequences as `(start, rows)`.
type Batch<'a> = &'a [(usize, usize)];

/// Prefill: every shape and dtype on ragged batches around the tile of 64 queries, and every size.
pub fn check_prefill(check: &mut Check) -> Outcome {
    let batches: [Batch; 3] = [&[(0, 1), (0, 33)], &[(63, 17)], &[(0, 3), (130, 2), (7, 9)]];
    for (i, shape) in SHAPES.into_iter().enumerate() {
        for (j, dtype) in DTYPES.into_iter().enumerate() {
            case(check, Kind::Prefill, shape, batches[(i + j) % 3], dtype)?;
        }
    }
    for (i, rows) in SIZES.into_iter().enumerate() {
        case(check, Kind::Prefill, SHAPES[i % 3], &[(0, rows)], DTYPES[i % 3])?;
    }
    Ok(())
}

/// Decode: every shape and dtype on ragged batches around the split of 256 keys, and every size.
pub fn check_decode(check: &mut Check) -> Outcome {
    let batches: [Batch; 3] = [&[(0, 1), (64, 1), (256, 1)], &[(254, 4), (3, 2)], &[(13, 5)]];
    for (i, shape) in SHAPES.into_iter().enumerate() {
        for (j, dtype) in DTYPES.into_iter().enumerate() {
            case(check, Kind::Decode, shape, batches[(i + j) % 3], dtype)?;
        }
    }
    for (i, keys) in SIZES.into_iter().enumerate() {
        case(check, Kind::Decode, SHAPES[4 + i % 3], &[(keys - 1, 1)], DTYPES[i % 3])?;
    }
    // More splits than the combining block has warps.
    case(check, Kind::Decode, shape(2, 1, 16), &[(2600, 1)], Dtype::DTYPE_BF16)
}

const DTYPES: [Dtype; 3] = [Dtype::DTYPE_BF16, Dtype::DTYPE_F16, Dtype::DTYPE_F32];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Prefill,
    Decode,
}

/// What all launches of a case share.
struct Problem {
    shape: Shape,
    kind: Kind,
    params: AttentionParams,
    rows: usize,
    out_stride: usize,
    out_dtype: Dtype,
}

impl Problem {
    /// Runs some sequences of the case; returns what they wrote, `[rows, out_stride]`, NaN elsewhere.
    fn run(&self, check: &mut Check, sequences: &[Sequence], naive: bool) -> Result<Vec<f64>, String> {
        let out = check.output(self.rows * self.out_stride, self.out_dtype);
        let mut params = AttentionParams {
            out: out.address as *mut _,
            sequences: check.input(sequences),
            sequence_count: sequences.len() as i32,
            most_rows: sequences.iter().map(|s| s.rows).max().unwrap_or(0),
            most_keys: sequences.iter().map(|s| s.start + s.rows).max().unwrap_or(0),
            ..self.params
        };
        let mut workspace = |floats: usize| -> Output { check.output(floats, Dtype::DTYPE_F32) };
        let launches: Vec<Launch> = if naive {
            params.workspace = workspace(naive_workspace(&params)).address as *mut f32;
            vec![naive_attention(&params)]
        } else if self.kind == Kind::Decode {
            params.workspace = workspace(decode_workspace(&params)).address as *mut f32;
            decode(&params).into()
        } else {
            vec![prefill(&params)]
        };
        for launch in launches {
            check.launch(&launch, &params)?;
        }
        Ok(check.read(out))
    }

    /// The elements of a row that are written.
    fn row(&self, row: usize) -> std::ops::Range<usize> {
        row * self.out_stride..row * self.out_stride + self.shape.heads * self.shape.v_dim
    }
}

fn case(check: &mut Check, kind: Kind, s: Shape, batch: Batch, dtype: Dtype) -> Outcome {
    check.case(format!("{kind:?} of {s:?}, sequences (start, rows) {batch:?}, cache {dtype:?}"));
    let ragged = Ragged::new(batch, s.kv_heads);
    let rows = ragged.rows;
    // Where nothing was appended, the cache holds NaN.
    let mut visible = vec![false; ragged.cache_rows];
    for sequence in &ragged.sequences {
        for head in 0..s.kv_heads {
            let from = cache_row(sequence, head, 0);
            visible[from..from + (sequence.start + sequence.rows) as usize].fill(true);
        }
    }
    let mut cache = |width: usize| {
        let mut values = check.normal(ragged.cache_rows * width);
        for (row, there) in values.chunks_exact_mut(width).zip(&visible) {
            if !there {
                row.fill(f32::NAN);
            }
        }
        check.rounded(&values, dtype)
    };
    let (keys_address, keys) = cache(s.dim);
    let (values_address, values) = cache(s.v_dim);
    let q_stride = s.heads * s.dim + rows % 4;
    let q = check.normal(rows * q_stride);
    let sinks = check.normal(s.heads);
    let (sinks_address, sinks) = check.rounded(&sinks, dtype);
    let bf16 = |v: f64| f64::from(half::bf16::from_f32(v as f32));
    let slope = |head: usize| match s.bias_factor {
        0.0 => 0.5f32.powi(head as i32 + 1),
        // Products of these and a position are no bfloat16.
        _ => bf16(0.7f64.powi(head as i32 + 1)) as f32,
    };
    let slopes: Vec<f32> = (0..s.heads).map(slope).collect();
    let out_dtype = [Dtype::DTYPE_F32, dtype][rows % 2];
    let out_stride = s.heads * s.v_dim + 3;
    let scale = 1.5 / (s.dim as f32).sqrt();
    let params = AttentionParams {
        q: check.input(&q),
        keys: keys_address,
        values: values_address,
        out: std::ptr::null_mut(),
        sequences: std::ptr::null(),
        sinks: Vector { data: if s.sinks { sinks_address } else { std::ptr::null() }, dtype },
        slopes: if s.alibi { check.input(&slopes) } else { std::ptr::null() },
        workspace: std::ptr::null_mut(),
        q_stride: q_stride as i64,
        out_stride: out_stride as i64,
        sequence_count: 0,
        heads: s.heads as i32,
        kv_heads: s.kv_heads as i32,
        dim: s.dim as i32,
        v_dim: s.v_dim as i32,
        window: s.window as i32,
        most_rows: 0,
        most_keys: 0,
        cache_dtype: dtype,
        out_dtype,
        scale,
        soft_cap: s.soft_cap,
        bias_factor: s.bias_factor,
    };
    let problem = Problem { shape: s, kind, params, rows, out_stride, out_dtype };
    let got = problem.run(check, &ragged.sequences, false)?;
    let naive = problem.run(check, &ragged.sequences, true)?;

    let mut truth = vec![f64::NAN; got.len()];
    for sequence in &ragged.sequences {
        for i in 0..sequence.rows as usize {
            let (row, position) = (sequence.first_row as usize + i, sequence.start as usize + i);
            let first = if s.window == 0 { 0 } else { (position + 1).saturating_sub(s.window) };
            for head in 0..s.heads {
                let of = |j| cache_row(sequence, head / (s.heads / s.kv_heads), j);
                let q = &q[row * q_stride + head * s.dim..][..s.dim];
                let score = |j: usize| {
                    let key = &keys[of(j) * s.dim..][..s.dim];
                    let product: f64 = q.iter().zip(key).map(|(&q, k)| f64::from(q) * k).sum();
                    let (mut score, cap) = (product * f64::from(scale), f64::from(s.soft_cap));
                    if cap > 0.0 {
                        score = cap * (score / cap).tanh();
                    }
                    let slope = if s.alibi { f64::from(slopes[head]) } else { 0.0 };
                    let bias = |position: usize| bf16(slope * bf16(position as f64));
                    score
                        + match s.bias_factor {
                            0.0 => slope * (j as f64 - position as f64),
                            factor => f64::from(factor) * (bias(j) - bias(position)),
                        }
                };
                let weights: Vec<f64> = (first..=position).map(|j| score(j).exp()).collect();
                let sum = weights.iter().sum::<f64>() + if s.sinks { sinks[head].exp() } else { 0.0 };
                for d in 0..s.v_dim {
                    let value = |j: usize| values[of(j) * s.v_dim + d];
                    let total: f64 = weights.iter().zip(first..).map(|(w, j)| w * value(j)).sum();
                    truth[row * out_stride + head * s.v_dim + d] = total / sum;
                }
            }
        }
    }
    check.unwritten("out", &got, &truth)?;
    let pick = |from: &[f64]| (0..rows).flat_map(|row| from[problem.row(row)].to_vec()).collect::<Vec<_>>();
    check.gate("out", &pick(&got), &pick(&naive), &pick(&truth), out_dtype)?;
    alone(check, &problem, &ragged, &got)
}

/// Rows have the same bits whoever shares the launch: each sequence by itself, and its last row, and those before it.
fn alone(check: &mut Check, problem: &Problem, ragged: &Ragged, together: &[f64]) -> Outcome {
    for &sequence in &ragged.sequences {
        let last = sequence.rows - 1;
        let tail = Sequence { first_row: sequence.first_row + last, start: sequence.start + last, rows: 1, ..sequence };
        let head = Sequence { rows: last, ..sequence };
        let parts: &[Sequence] = if last > 0 { &[tail, head] } else { &[sequence] };
        if ragged.sequences.len() == 1 && last == 0 {
            continue;
        }
        for part in parts {
            let got = problem.run(check, &[*part], false)?;
            for row in part.first_row..part.first_row + part.rows {
                let row = problem.row(row as usize);
                check.same("a row in other company", &got[row.clone()], &together[row])?;
            }
        }
    }
    Ok(())
}
