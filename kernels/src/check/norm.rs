//! norm.cu against float64: RMSNorm of rows and of heads, with and without a residual, and LayerNorm.

use super::{Check, Outcome, SIZES};
use crate::launch::norm::{Norm, naive_norm, norm};
use crate::params::{Dtype, NormParams, Vector};

/// What surrounds the norm in one case.
#[derive(Clone, Copy, Debug, Default)]
struct Extras {
    /// `x + add` is normed and stored; 2: over `x` itself.
    add: u8,
    residual: bool,
    bias: bool,
    gain_offset: f32,
    heads: usize,
}

/// Every size as the row's length, with every combination of what can surround a norm and every dtype.
pub fn check(check: &mut Check) -> Outcome {
    let extras = [
        Extras { heads: 1, ..Extras::default() },
        Extras { heads: 1, add: 1, bias: true, ..Extras::default() },
        Extras { heads: 1, add: 2, gain_offset: 1.0, ..Extras::default() },
        Extras { heads: 3, residual: true, gain_offset: 1.0, ..Extras::default() },
        Extras { heads: 2, bias: true, residual: true, add: 1, ..Extras::default() },
    ];
    let dtypes = [Dtype::DTYPE_F32, Dtype::DTYPE_BF16, Dtype::DTYPE_F16];
    let dims = SIZES.into_iter().chain([128, 516, 1023, 1028, 2048]);
    for (i, dim) in dims.enumerate() {
        for (j, &extra) in extras.iter().enumerate() {
            for kind in [Norm::Rms, Norm::Layer] {
                let (gain, out) = (dtypes[(i + j) % 3], dtypes[(i + 2 * j) % 3]);
                let tokens = [1, 3, 9][(i + j) % 3];
                case(check, kind, tokens, dim, extra, gain, out)?;
            }
        }
    }
    Ok(())
}

fn case(check: &mut Check, kind: Norm, tokens: usize, dim: usize, e: Extras, gain: Dtype, out: Dtype) -> Outcome {
    check.case(format!("{kind:?} norm of {tokens} tokens, dim {dim}, {e:?}, gain {gain:?}, out {out:?}"));
    // Between rows lies something that must be neither read nor written.
    let (stride, out_stride) = (e.heads * dim + dim % 5, e.heads * dim + dim % 3);
    let x = check.normal(tokens * stride);
    let add = check.normal(tokens * stride);
    let residual = check.normal(tokens * stride);
    let (values, offsets) = (check.normal(dim), check.normal(dim));
    let (gain_address, gains) = check.rounded(&values, gain);
    let (bias_address, biases) = check.rounded(&offsets, gain);

    let mut run = |launch: fn(Norm, &NormParams) -> crate::launch::Launch| -> Result<(Vec<f64>, Vec<f64>), String> {
        let stream = check.in_place(&x);
        let result = check.output(tokens * out_stride, out);
        let separate = check.output(tokens * stride, Dtype::DTYPE_F32);
        let sum = if e.add == 2 { stream } else { separate };
        let params = NormParams {
            x: stream.address as *const f32,
            add: if e.add > 0 { check.input(&add) } else { std::ptr::null() },
            sum: if e.add > 0 { sum.address as *mut f32 } else { std::ptr::null_mut() },
            residual: if e.residual { check.input(&residual) } else { std::ptr::null() },
            out: result.address as *mut _,
            gain: Vector { data: gain_address, dtype: gain },
            bias: Vector { data: if e.bias { bias_address } else { std::ptr::null() }, dtype: gain },
            stride: stride as i64,
            out_stride: out_stride as i64,
            rows: (tokens * e.heads) as i32,
            heads: e.heads as i32,
            dim: dim as i32,
            out_dtype: out,
            eps: 1e-5,
            gain_offset: e.gain_offset,
        };
        check.launch(&launch(kind, &params), &params)?;
        Ok((check.read(result), check.read(sum)))
    };
    let (got, sum) = run(norm)?;
    let (naive, naive_sum) = run(naive_norm)?;

    let mut truth = Vec::new();
    let mut picked = [Vec::new(), Vec::new()];
    for row in 0..tokens * e.heads {
        let (token, head) = (row / e.heads, row % e.heads);
        let at = token * stride + head * dim;
        let h: Vec<f64> =
            (at..at + dim).map(|i| if e.add > 0 { f64::from(x[i] + add[i]) } else { x[i].into() }).collect();
        if e.add > 0 {
            check.same("sum", &sum[at..at + dim], &h)?;
            check.same("naive sum", &naive_sum[at..at + dim], &h)?;
        }
        let mean = if kind == Norm::Layer { h.iter().sum::<f64>() / dim as f64 } else { 0.0 };
        let variance = h.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / dim as f64;
        let scale = 1.0 / (variance + f64::from(1e-5f32)).sqrt();
        for i in 0..dim {
            let gain = gains[i] + f64::from(e.gain_offset);
            let rest = if e.residual { residual[at + i].into() } else { 0.0 };
            truth.push((h[i] - mean) * scale * gain + if e.bias { biases[i] } else { 0.0 } + rest);
            let at = token * out_stride + head * dim + i;
            picked[0].push(got[at]);
            picked[1].push(naive[at]);
        }
        // What lies between rows is as it was.
        for i in e.heads * dim..out_stride {
            if !got[token * out_stride + i].is_nan() {
                return Err(check.failure("wrote between the rows of its output"));
            }
        }
    }
    check.gate("out", &picked[0], &picked[1], &truth, out)
}
