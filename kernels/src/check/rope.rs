//! rope.cu against float64: the rotation of queries and keys, fused with the append to the KV cache.

use super::ragged::{Ragged, cache_row};
use super::{Check, Outcome};
use crate::launch::rope::{naive_rope, rope};
use crate::params::{Dtype, RopeParams};

/// Heads of a model.
#[derive(Clone, Copy, Debug)]
struct Shape {
    q_heads: usize,
    kv_heads: usize,
    dim: usize,
    v_dim: usize,
    /// Where the elements that turn start, and how many they are.
    rotary: (usize, usize),
    interleaved: bool,
    /// The elements of a key that turn are shared by all heads.
    shared: bool,
    /// They have turned already.
    turned: bool,
}

/// The shapes of the families and some that none has, for ragged batches of every size and every dtype of the cache.
pub fn check(check: &mut Check) -> Outcome {
    let plain = |q_heads, kv_heads, dim, rotary| {
        let (interleaved, shared, turned, rotary) = (false, false, false, (0, rotary));
        Shape { q_heads, kv_heads, dim, v_dim: dim, rotary, interleaved, shared, turned }
    };
    let shapes = [
        plain(4, 2, 64, 64),
        plain(3, 1, 80, 32),
        plain(2, 2, 96, 96),
        plain(5, 1, 128, 128),
        plain(2, 1, 256, 64),
        Shape { interleaved: true, ..plain(4, 2, 128, 64) },
        Shape { interleaved: true, shared: true, rotary: (128, 64), v_dim: 128, ..plain(3, 3, 192, 64) },
        Shape { shared: true, turned: true, rotary: (128, 64), v_dim: 128, ..plain(0, 3, 192, 64) },
        // ALiBi: nothing turns. Queries alone. Keys alone. Odd sizes.
        plain(0, 3, 128, 0),
        plain(4, 0, 64, 64),
        plain(0, 2, 64, 64),
        Shape { v_dim: 3, rotary: (1, 2), ..plain(3, 2, 7, 2) },
        Shape { interleaved: true, ..plain(1, 1, 2, 2) },
        Shape { rotary: (3, 6), ..plain(2, 2, 17, 6) },
    ];
    let batches: [&[(usize, usize)]; 6] =
        [&[(0, 1)], &[(5, 1), (0, 2)], &[(0, 3), (7, 1), (2, 5)], &[(16, 17)], &[(1, 33)], &[(0, 9), (129, 56)]];
    let dtypes = [Dtype::DTYPE_F32, Dtype::DTYPE_F16, Dtype::DTYPE_BF16];
    for (i, shape) in shapes.into_iter().enumerate() {
        for (j, batch) in batches.into_iter().enumerate() {
            case(check, shape, batch, dtypes[(i + j) % 3])?;
        }
    }
    Ok(())
}

fn case(check: &mut Check, s: Shape, batch: &[(usize, usize)], dtype: Dtype) -> Outcome {
    check.case(format!("rope of {s:?}, sequences (start, rows) {batch:?}, cache {dtype:?}"));
    let ragged = Ragged::new(batch, s.kv_heads);
    let (rows, pairs) = (ragged.rows, s.rotary.1 / 2);
    // Between heads and rows lies something that must be neither read nor written.
    let (k_head, v_head) = (s.dim + 3, s.v_dim + 1);
    let (q_stride, k_stride, v_stride) = (s.q_heads * s.dim + 5, s.kv_heads * k_head + 1, s.kv_heads * v_head + 2);
    let shared_stride = s.rotary.1 + 1;
    let q = check.normal(rows * q_stride);
    let (k, v) = (check.normal(rows * k_stride), check.normal(rows * v_stride));
    let shared = check.normal(rows * shared_stride);
    let angles: Vec<f64> = check.normal(rows * pairs).iter().map(|&a| f64::from(a) * 10.0).collect();
    let cos: Vec<f32> = angles.iter().map(|a| a.cos() as f32 * 1.25).collect();
    let sin: Vec<f32> = angles.iter().map(|a| a.sin() as f32 * 1.25).collect();

    let mut run = |launch: fn(&RopeParams) -> crate::launch::Launch| -> Result<[Vec<f64>; 3], String> {
        let turned = check.in_place(&q);
        let keys = check.output(ragged.cache_rows * s.dim, dtype);
        let values = check.output(ragged.cache_rows * s.v_dim, dtype);
        let params = RopeParams {
            q: turned.address as *mut f32,
            k: check.input(&k),
            v: check.input(&v),
            k_shared: if s.shared { check.input(&shared) } else { std::ptr::null() },
            cos: if s.turned { std::ptr::null() } else { check.input(&cos) },
            sin: if s.turned { std::ptr::null() } else { check.input(&sin) },
            keys: keys.address as *mut _,
            values: values.address as *mut _,
            sequences: check.input(&ragged.sequences),
            row_sequence: check.input(&ragged.row_sequence()),
            q_stride: q_stride as i64,
            k_stride: k_stride as i64,
            v_stride: v_stride as i64,
            k_shared_stride: shared_stride as i64,
            k_head_stride: k_head as i32,
            v_head_stride: v_head as i32,
            rows: rows as i32,
            q_heads: s.q_heads as i32,
            kv_heads: s.kv_heads as i32,
            dim: s.dim as i32,
            v_dim: s.v_dim as i32,
            rotary_start: s.rotary.0 as i32,
            rotary_dim: s.rotary.1 as i32,
            interleaved: s.interleaved.into(),
            cache_dtype: dtype,
        };
        check.launch(&launch(&params), &params)?;
        Ok([check.read(turned), check.read(keys), check.read(values)])
    };
    let got = run(rope)?;
    let naive = run(naive_rope)?;

    // What is not written is as it was: q between its heads, and NaN in the cache.
    let mut truth =
        [q.iter().map(|&x| f64::from(x)).collect(), vec![f64::NAN; got[1].len()], vec![f64::NAN; got[2].len()]];
    let turn = |head: &mut [f64], row: usize| {
        for i in 0..pairs {
            let (a, b) = if s.interleaved { (2 * i, 2 * i + 1) } else { (i, i + pairs) };
            let (c, sn) = match s.turned {
                false => (f64::from(cos[row * pairs + i]), f64::from(sin[row * pairs + i])),
                true => (1.0, 0.0),
            };
            let (x, y) = (head[s.rotary.0 + a], head[s.rotary.0 + b]);
            head[s.rotary.0 + a] = x * c - y * sn;
            head[s.rotary.0 + b] = y * c + x * sn;
        }
    };
    for sequence in &ragged.sequences {
        for i in 0..sequence.rows as usize {
            let row = sequence.first_row as usize + i;
            for head in 0..s.q_heads {
                let at = row * q_stride + head * s.dim;
                turn(&mut truth[0][at..at + s.dim], row);
            }
            for head in 0..s.kv_heads {
                let to = cache_row(sequence, head, sequence.start as usize + i);
                let mut key: Vec<f64> = (0..s.dim).map(|d| k[row * k_stride + head * k_head + d].into()).collect();
                if s.shared {
                    let at = row * shared_stride;
                    let new = shared[at..at + s.rotary.1].iter().map(|&x| f64::from(x));
                    key.splice(s.rotary.0..s.rotary.0 + s.rotary.1, new);
                }
                turn(&mut key, row);
                truth[1][to * s.dim..(to + 1) * s.dim].copy_from_slice(&key);
                for d in 0..s.v_dim {
                    truth[2][to * s.v_dim + d] = v[row * v_stride + head * v_head + d].into();
                }
            }
        }
    }
    let outputs = [("q", Dtype::DTYPE_F32), ("keys", dtype), ("values", dtype)];
    for (i, (what, dtype)) in outputs.into_iter().enumerate() {
        check.unwritten(what, &got[i], &truth[i])?;
        let written: Vec<usize> = (0..truth[i].len()).filter(|&at| !truth[i][at].is_nan()).collect();
        let pick = |from: &[f64]| written.iter().map(|&at| from[at]).collect::<Vec<_>>();
        check.gate(what, &pick(&got[i]), &pick(&naive[i]), &pick(&truth[i]), dtype)?;
    }
    Ok(())
}
