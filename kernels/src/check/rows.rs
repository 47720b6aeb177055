//! rows.cu against float64: exactly, for a product of two numbers has one correct rounding.

use super::{Check, Outcome, SIZES};
use crate::launch::Launch;
use crate::launch::rows::{naive_scale_rows, scale_rows};
use crate::params::{Dtype, ScaleRowsParams};

/// Every size as the row's length, rows that start on 16 bytes and rows that do not.
pub fn check(check: &mut Check) -> Outcome {
    for (i, n) in SIZES.into_iter().chain([128, 1024, 1028, 1030]).enumerate() {
        for gap in [0, 4, 3] {
            case(check, [1, 2, 9][i % 3], n, gap)?;
        }
    }
    Ok(())
}

fn case(check: &mut Check, rows: usize, n: usize, gap: usize) -> Outcome {
    check.case(format!("{rows} rows of {n} (+{gap}), scaled"));
    let stride = n + gap;
    let (x, factors) = (check.normal(rows * stride), check.normal(rows));
    let mut run = |launch: fn(&ScaleRowsParams) -> Launch| -> Result<Vec<f64>, String> {
        let out = check.in_place(&x);
        let params = ScaleRowsParams {
            x: out.address as *mut f32,
            factors: check.input(&factors),
            stride: stride as i64,
            rows: rows as i32,
            n: n as i32,
        };
        check.launch(&launch(&params), &params)?;
        Ok(check.read(out))
    };
    let got = run(scale_rows)?;
    let naive = run(naive_scale_rows)?;
    check.same("the naive twin", &got, &naive)?;
    let factor = |i: usize| if i % stride < n { f64::from(factors[i / stride]) } else { 1.0 };
    let truth: Vec<f64> = x.iter().enumerate().map(|(i, x)| f64::from(*x) * factor(i)).collect();
    let between = (0..truth.len()).find(|i| i % stride >= n && got[*i] != truth[*i]);
    if let Some(i) = between {
        return Err(check.failure(&format!("wrote {} between rows", got[i])));
    }
    check.gate("x", &got, &naive, &truth, Dtype::DTYPE_F32)
}
