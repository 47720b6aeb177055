//! Rows multiplied by a number each: m rows of n.

use super::{Case, Shape, bytes_of, f32_bytes, numbers, pattern};
use crate::check::{Device, Output};
use crate::launch::gemm::Encoding;
use crate::launch::rows::scale_rows;
use crate::params::{Dtype, ScaleRowsParams};

pub fn prepare(device: &mut dyn Device, shape: &Shape) -> Result<Case, String> {
    let (rows, n) = (shape.m, shape.n);
    let x = device.repeat(&pattern(Encoding::F32), rows * n * 4)?;
    let params = ScaleRowsParams {
        x: x as *mut f32,
        factors: device.alloc(&f32_bytes(numbers(rows))) as *const f32,
        stride: n as i64,
        rows: rows as i32,
        n: n as i32,
    };
    Ok(Case {
        name: format!("rows_scaled rows {rows} of {n}"),
        steps: vec![(scale_rows(&params), bytes_of(&params))],
        bytes: (rows * (n * 8 + 4)) as u64,
        flops: (rows * n) as u64,
        out: Output { address: x, len: rows * n, dtype: Dtype::DTYPE_F32 },
        goal: None,
    })
}
