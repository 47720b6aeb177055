//! gated_add.cu against float64: sums of rows, rows times a gate, and both.

use super::{Check, Outcome, SIZES};
use crate::launch::Launch;
use crate::launch::gated_add::{gated_add, naive_gated_add};
use crate::params::{Dtype, GatedAddParams};

/// What there is beside x, and where the result goes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// A sum, in the place of what is added to.
    Add,
    /// A product, in the place of x.
    Gate,
    /// Both, elsewhere.
    Both,
}

/// Every size as the row's length, every kind, aligned and not.
pub fn check(check: &mut Check) -> Outcome {
    for (i, n) in SIZES.into_iter().chain([128, 516, 1023, 1024, 1028, 2052]).enumerate() {
        for (j, kind) in [Kind::Add, Kind::Gate, Kind::Both].into_iter().enumerate() {
            let gap = if n % 4 == 0 { [0, 4, 3][(i + j) % 3] } else { 3 };
            case(check, kind, [1, 2, 7][(i + 2 * j) % 3], n, gap)?;
        }
    }
    Ok(())
}

fn case(check: &mut Check, kind: Kind, rows: usize, n: usize, gap: usize) -> Outcome {
    check.case(format!("gated_add, {kind:?}, {rows} rows of {n} (+{gap})"));
    // Of the last row there is no more than its numbers.
    let (stride, gate_stride) = (n + gap, 1 + gap);
    let len = (rows - 1) * stride + n;
    let (x, add) = (check.normal(len), check.normal(len));
    let gate: Vec<f32> = check.normal(rows * gate_stride).iter().map(|v| v * 8.0).collect();
    let mut run = |launch: fn(&GatedAddParams) -> Launch| -> Result<Vec<f64>, String> {
        let [from, to, elsewhere] = [check.in_place(&x), check.in_place(&add), check.output(len, Dtype::DTYPE_F32)];
        let out = match kind {
            Kind::Add => to,
            Kind::Gate => from,
            Kind::Both => elsewhere,
        };
        let params = GatedAddParams {
            x: from.address as *const f32,
            gate: if kind == Kind::Add { std::ptr::null() } else { check.input(&gate) },
            add: if kind == Kind::Gate { std::ptr::null() } else { to.address as *const f32 },
            out: out.address as *mut f32,
            stride: stride as i64,
            gate_stride: gate_stride as i64,
            out_stride: stride as i64,
            rows: rows as i32,
            n: n as i32,
        };
        check.launch(&launch(&params), &params)?;
        Ok(check.read(out))
    };
    let got = run(gated_add)?;
    let naive = run(naive_gated_add)?;

    let mut truth = Vec::new();
    let mut picked = [Vec::new(), Vec::new()];
    for at in 0..len {
        if at % stride >= n {
            let before = [add[at].into(), x[at].into(), f64::NAN][kind as usize];
            if got[at].to_bits() != f64::to_bits(before) && !(got[at].is_nan() && before.is_nan()) {
                return Err(check.failure(&format!("wrote {} between the rows of its output", got[at])));
            }
            continue;
        }
        let factor = 1.0 / (1.0 + (-f64::from(gate[at / stride * gate_stride])).exp());
        let factor = if kind == Kind::Add { 1.0 } else { factor };
        truth.push(f64::from(x[at]) * factor + if kind == Kind::Gate { 0.0 } else { f64::from(add[at]) });
        picked[0].push(got[at]);
        picked[1].push(naive[at]);
    }
    check.gate("out", &picked[0], &picked[1], &truth, Dtype::DTYPE_F32)
}
