//! RMSNorm of m rows of k, the residual added in the same pass, for 16-bit activations.

use super::{Case, Shape, bytes_of, f32_bytes, numbers};
use crate::check::{Device, Output};
use crate::launch::norm::{Norm, norm};
use crate::params::{Dtype, NormParams, Vector};

pub fn prepare(device: &mut dyn Device, shape: &Shape) -> Result<Case, String> {
    let (rows, dim) = (shape.m, shape.k);
    let row = f32_bytes(numbers(dim));
    let sum = device.repeat(&[0xff; 4], rows * dim * 4)?;
    let out = device.repeat(&[0xff; 2], rows * dim * 2)?;
    let params = NormParams {
        x: device.repeat(&row, rows * dim * 4)? as *const f32,
        add: device.repeat(&row, rows * dim * 4)? as *const f32,
        sum: sum as *mut f32,
        out: out as *mut _,
        gain: Vector { data: device.alloc(&row) as *const _, dtype: Dtype::DTYPE_F32 },
        stride: dim as i64,
        out_stride: dim as i64,
        rows: rows as i32,
        heads: 1,
        dim: dim as i32,
        out_dtype: Dtype::DTYPE_BF16,
        eps: 1e-5,
        ..NormParams::default()
    };
    Ok(Case {
        name: format!("norm rows {rows} dim {dim}"),
        steps: vec![(norm(Norm::Rms, &params), bytes_of(&params))],
        bytes: (rows * dim * (3 * 4 + 2) + dim * 4) as u64,
        flops: (5 * rows * dim) as u64,
        out: Output { address: out, len: rows * dim, dtype: Dtype::DTYPE_BF16 },
        goal: None,
    })
}
