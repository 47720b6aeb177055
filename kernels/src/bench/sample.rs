//! What happens to logits on the GPU: the soft cap, and the candidates, of m rows of n.

use super::{Case, Shape, bytes_of, pattern};
use crate::check::{Device, Output};
use crate::launch::gemm::Encoding;
use crate::launch::sample::{MAX_TOP_K, soft_cap, top_k, top_k_parts};
use crate::params::{Dtype, SoftCapParams, TopKParams};

pub fn prepare_soft_cap(device: &mut dyn Device, shape: &Shape) -> Result<Case, String> {
    let (rows, n) = (shape.m, shape.n);
    let out = device.repeat(&[0xff; 4], rows * n * 4)?;
    let params = SoftCapParams {
        x: device.repeat(&pattern(Encoding::F32), rows * n * 4)? as *const f32,
        out: out as *mut f32,
        stride: n as i64,
        out_stride: n as i64,
        rows: rows as i32,
        n: n as i32,
        cap: 30.0,
    };
    Ok(Case {
        name: format!("sample_soft_cap rows {rows} of {n}"),
        steps: vec![(soft_cap(&params), bytes_of(&params))],
        bytes: (rows * n * 8) as u64,
        flops: (3 * rows * n) as u64,
        out: Output { address: out, len: rows * n, dtype: Dtype::DTYPE_F32 },
        goal: None,
    })
}

/// `--k` candidates, as many as there can be at most.
pub fn prepare_top_k(device: &mut dyn Device, shape: &Shape) -> Result<Case, String> {
    let (rows, n) = (shape.m, shape.n);
    if n == 0 {
        return Err("candidates of 0 logits: give --n".into());
    }
    let k = shape.k.clamp(1, n.min(MAX_TOP_K));
    let values = device.repeat(&[0xff; 4], rows * k * 4)?;
    let mut params = TopKParams {
        logits: device.repeat(&pattern(Encoding::F32), rows * n * 4)? as *const f32,
        values: values as *mut f32,
        ids: device.repeat(&[0; 4], rows * k * 4)? as *mut i32,
        stride: n as i64,
        rows: rows as i32,
        n: n as i32,
        k: k as i32,
        ..TopKParams::default()
    };
    let parts = top_k_parts(&params);
    params.parts = device.repeat(&[0; 8], parts * 8)? as *mut u64;
    Ok(Case {
        name: format!("sample_top_k rows {rows} of {n}, {k} of them"),
        steps: top_k(&params).into_iter().map(|launch| (launch, bytes_of(&params))).collect(),
        bytes: (rows * (n * 4 + k * 8) + 2 * parts * 8) as u64,
        flops: (rows * n) as u64,
        out: Output { address: values, len: rows * k, dtype: Dtype::DTYPE_F32 },
        goal: None,
    })
}
