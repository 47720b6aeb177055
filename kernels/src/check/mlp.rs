//! mlp.cu against float64: what an MLP does between its products, with a gate and without.

use super::{Check, Outcome, SIZES};
use crate::launch::Launch;
use crate::launch::mlp::{activate, glu, naive_activate, naive_glu};
use crate::params::{ActivateParams, Dtype, Gate, GluParams};

/// Where the two halves are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Halves {
    Separate,
    /// The same, and the output replaces the gate.
    InPlace,
    /// Rows of [gate | up].
    Packed,
    /// Rows of pairs.
    Interleaved,
}

/// Those that need nothing beside the gate.
const ACTIVATIONS: [Gate; 5] =
    [Gate::GATE_SILU, Gate::GATE_GELU_TANH, Gate::GATE_GELU_ERF, Gate::GATE_RELU, Gate::GATE_SIGMOID];

const DTYPES: [Dtype; 3] = [Dtype::DTYPE_F32, Dtype::DTYPE_BF16, Dtype::DTYPE_F16];

const ALPHA: f32 = 1.702;
const LIMIT: f32 = 2.5;

// SAFETY: C's mathematical library, which Rust's standard library links but does not offer whole.
unsafe extern "C" {
    safe fn erfc(x: f64) -> f64;
}

/// Every size as the row's length, every kind, every layout, every dtype.
pub fn check(check: &mut Check) -> Outcome {
    use Halves::*;
    let kinds = [ACTIVATIONS.as_slice(), &[Gate::GATE_CLAMPED]].concat();
    let dims = SIZES.into_iter().chain([128, 516, 1023, 1024, 1028]);
    for (i, dim) in dims.enumerate() {
        for (j, kind) in kinds.iter().copied().enumerate() {
            for (k, halves) in [Separate, InPlace, Packed, Interleaved].into_iter().enumerate() {
                let rows = [1, 2, 7][(i + k) % 3];
                case(check, kind, halves, rows, dim, DTYPES[(i + j + k) % 3])?;
            }
        }
    }
    Ok(())
}

fn case(check: &mut Check, kind: Gate, halves: Halves, rows: usize, dim: usize, dtype: Dtype) -> Outcome {
    // Gaps that keep rows on 16 bytes, and gaps that do not.
    let gap = check.pick(&[0, 4, 3]);
    let stride = gap + if matches!(halves, Halves::Packed | Halves::Interleaved) { 2 * dim } else { dim };
    let dtype = if halves == Halves::InPlace { Dtype::DTYPE_F32 } else { dtype };
    let out_stride = if halves == Halves::InPlace { stride } else { dim + check.pick(&[0, 4, 1]) };
    check.case(format!("{kind:?}, {halves:?}, {rows} rows of {dim}, strides {stride} and {out_stride}, out {dtype:?}"));
    // Large enough that every activation saturates somewhere.
    let deviation = check.pick(&[1.0, 4.0, 40.0]);
    let first: Vec<f32> = check.normal(rows * stride).iter().map(|v| v * deviation).collect();
    let second: Vec<f32> = check.normal(rows * stride).iter().map(|v| v * deviation).collect();

    let mut run = |launch: fn(&GluParams) -> Launch| -> Result<Vec<f64>, String> {
        let gate = check.in_place(&first);
        let result = check.output(rows * out_stride, dtype);
        let out = if halves == Halves::InPlace { gate } else { result };
        let gate = gate.address as *const f32;
        let params = GluParams {
            gate,
            up: match halves {
                Halves::Separate | Halves::InPlace => check.input(&second),
                Halves::Packed => gate.wrapping_add(dim),
                Halves::Interleaved => std::ptr::null(),
            },
            out: out.address as *mut _,
            stride: stride as i64,
            out_stride: out_stride as i64,
            rows: rows as i32,
            dim: dim as i32,
            out_dtype: dtype,
            kind,
            alpha: ALPHA,
            limit: LIMIT,
        };
        check.launch(&launch(&params), &params)?;
        Ok(check.read(out))
    };
    let got = run(glu)?;
    let naive = run(naive_glu)?;

    let mut truth = Vec::new();
    let mut picked = [Vec::new(), Vec::new()];
    for r in 0..rows {
        for i in 0..out_stride {
            let at = r * out_stride + i;
            if i >= dim {
                let untouched = if halves == Halves::InPlace { got[at] == first[at].into() } else { got[at].is_nan() };
                if !untouched {
                    return Err(check.failure(&format!("wrote {} between the rows of its output", got[at])));
                }
                continue;
            }
            let row = r * stride;
            let (gate, up) = match halves {
                Halves::Separate | Halves::InPlace => (first[row + i], second[row + i]),
                Halves::Packed => (first[row + i], first[row + dim + i]),
                Halves::Interleaved => (first[row + 2 * i], first[row + 2 * i + 1]),
            };
            truth.push(reference(kind, gate.into(), up.into()));
            picked[0].push(got[at]);
            picked[1].push(naive[at]);
        }
    }
    check.gate("out", &picked[0], &picked[1], &truth, dtype)
}

/// Every size as the row's length, every activation, every dtype, in place and not.
pub fn check_activate(check: &mut Check) -> Outcome {
    let dims = SIZES.into_iter().chain([128, 516, 1023, 1024, 1028]);
    for (i, dim) in dims.enumerate() {
        for (j, kind) in ACTIVATIONS.into_iter().enumerate() {
            for in_place in [false, true] {
                activate_case(check, kind, [1, 2, 7][(i + j) % 3], dim, in_place, DTYPES[(i + j) % 3])?;
            }
        }
    }
    Ok(())
}

fn activate_case(check: &mut Check, kind: Gate, rows: usize, dim: usize, in_place: bool, dtype: Dtype) -> Outcome {
    let dtype = if in_place { Dtype::DTYPE_F32 } else { dtype };
    let stride = dim + check.pick(&[0, 4, 3]);
    let out_stride = if in_place { stride } else { dim + check.pick(&[0, 4, 1]) };
    check.case(format!("{kind:?} of {rows} rows of {dim}, strides {stride} and {out_stride}, out {dtype:?}"));
    let deviation = check.pick(&[1.0, 4.0, 40.0]);
    let x: Vec<f32> = check.normal(rows * stride).iter().map(|v| v * deviation).collect();
    let mut run = |launch: fn(&ActivateParams) -> Launch| -> Result<Vec<f64>, String> {
        let input = check.in_place(&x);
        let out = if in_place { input } else { check.output(rows * out_stride, dtype) };
        let params = ActivateParams {
            x: input.address as *const f32,
            out: out.address as *mut _,
            stride: stride as i64,
            out_stride: out_stride as i64,
            rows: rows as i32,
            dim: dim as i32,
            out_dtype: dtype,
            kind,
        };
        check.launch(&launch(&params), &params)?;
        Ok(check.read(out))
    };
    let got = run(activate)?;
    let naive = run(naive_activate)?;

    let mut truth = Vec::new();
    let mut picked = [Vec::new(), Vec::new()];
    for at in 0..rows * out_stride {
        let (r, i) = (at / out_stride, at % out_stride);
        if i < dim {
            truth.push(reference(kind, x[r * stride + i].into(), 1.0));
            picked[0].push(got[at]);
            picked[1].push(naive[at]);
        } else if !(got[at].is_nan() || in_place && got[at] == x[at].into()) {
            return Err(check.failure(&format!("wrote {} between the rows of its output", got[at])));
        }
    }
    check.gate("out", &picked[0], &picked[1], &truth, dtype)
}

/// Without the cancellation of 1 + tanh(u) and 1 + erf(x), which float64 would suffer as well.
fn reference(kind: Gate, gate: f64, up: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match kind {
        Gate::GATE_SILU => gate * sigmoid(gate) * up,
        Gate::GATE_RELU => gate.max(0.0) * up,
        Gate::GATE_SIGMOID => sigmoid(gate) * up,
        Gate::GATE_GELU_TANH => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044715 * gate.powi(3));
            gate * sigmoid(2.0 * inner) * up
        }
        Gate::GATE_GELU_ERF => 0.5 * gate * erfc(-gate * std::f64::consts::FRAC_1_SQRT_2) * up,
        _ => {
            let limit = f64::from(LIMIT);
            let (gate, up) = (gate.min(limit), up.clamp(-limit, limit));
            gate * sigmoid(f64::from(ALPHA) * gate) * (up + 1.0)
        }
    }
}
