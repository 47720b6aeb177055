//! What an MLP does between its products, for 16-bit activations: SwiGLU, and GELU without a gate, of m rows of n.

use super::{Case, Shape, bytes_of, pattern};
use crate::check::{Device, Output};
use crate::launch::gemm::Encoding;
use crate::launch::mlp::{activate, glu};
use crate::params::{ActivateParams, Dtype, Gate, GluParams};

pub fn prepare(device: &mut dyn Device, shape: &Shape) -> Result<Case, String> {
    let (rows, dim) = (shape.m, shape.n);
    let numbers = pattern(Encoding::F32);
    let out = device.repeat(&[0xff; 2], rows * dim * 2)?;
    let params = GluParams {
        gate: device.repeat(&numbers, rows * dim * 4)? as *const f32,
        up: device.repeat(&numbers, rows * dim * 4)? as *const f32,
        out: out as *mut _,
        stride: dim as i64,
        out_stride: dim as i64,
        rows: rows as i32,
        dim: dim as i32,
        out_dtype: Dtype::DTYPE_BF16,
        kind: Gate::GATE_SILU,
        ..GluParams::default()
    };
    Ok(Case {
        name: format!("mlp_glu rows {rows} dim {dim}"),
        steps: vec![(glu(&params), bytes_of(&params))],
        bytes: (rows * dim * (4 + 4 + 2)) as u64,
        flops: (4 * rows * dim) as u64,
        out: Output { address: out, len: rows * dim, dtype: Dtype::DTYPE_BF16 },
        goal: None,
    })
}

pub fn prepare_activate(device: &mut dyn Device, shape: &Shape) -> Result<Case, String> {
    let (rows, dim) = (shape.m, shape.n);
    let out = device.repeat(&[0xff; 2], rows * dim * 2)?;
    let params = ActivateParams {
        x: device.repeat(&pattern(Encoding::F32), rows * dim * 4)? as *const f32,
        out: out as *mut _,
        stride: dim as i64,
        out_stride: dim as i64,
        rows: rows as i32,
        dim: dim as i32,
        out_dtype: Dtype::DTYPE_BF16,
        kind: Gate::GATE_GELU_ERF,
    };
    Ok(Case {
        name: format!("mlp_activations rows {rows} dim {dim}"),
        steps: vec![(activate(&params), bytes_of(&params))],
        bytes: (rows * dim * (4 + 2)) as u64,
        flops: (4 * rows * dim) as u64,
        out: Output { address: out, len: rows * dim, dtype: Dtype::DTYPE_BF16 },
        goal: None,
    })
}
