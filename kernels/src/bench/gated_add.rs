//! Sums of rows: m rows of n, each times the gate of its token, added to others.

use super::{Case, Shape, bytes_of, pattern};
use crate::check::{Device, Output};
use crate::launch::gated_add::gated_add;
use crate::launch::gemm::Encoding;
use crate::params::{Dtype, GatedAddParams};

pub fn prepare(device: &mut dyn Device, shape: &Shape) -> Result<Case, String> {
    let &Shape { m, n, .. } = shape;
    let numbers = pattern(Encoding::F32);
    let out = device.repeat(&[0xff; 4], m * n * 4)?;
    let params = GatedAddParams {
        x: device.repeat(&numbers, m * n * 4)? as *const f32,
        gate: device.repeat(&numbers, m * 4)? as *const f32,
        add: device.repeat(&numbers, m * n * 4)? as *const f32,
        out: out as *mut f32,
        stride: n as i64,
        gate_stride: 1,
        out_stride: n as i64,
        rows: m as i32,
        n: n as i32,
    };
    Ok(Case {
        name: format!("gated_add rows {m} of {n}"),
        steps: vec![(gated_add(&params), bytes_of(&params))],
        bytes: (m * n * 12 + m * 4) as u64,
        flops: (2 * m * n) as u64,
        out: Output { address: out, len: m * n, dtype: Dtype::DTYPE_F32 },
        goal: None,
    })
}
