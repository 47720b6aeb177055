//! The embedding lookup: m rows of k numbers, picked from a table of n, become float32.

use super::{Case, Shape, bytes_of, pattern};
use crate::check::{Device, Output};
use crate::launch::convert::convert;
use crate::launch::gemm::Encoding;
use crate::params::{ConvertParams, Dtype};

pub fn prepare(device: &mut dyn Device, shape: &Shape) -> Result<Case, String> {
    let &Shape { m, n, k, .. } = shape;
    if n == 0 {
        return Err("a table of 0 rows: give --n".into());
    }
    // Far apart, so that no row is in the cache for its neighbour's sake.
    let ids: Vec<u8> = (0..m).flat_map(|row| ((row * 7919 % n) as i32).to_le_bytes()).collect();
    let out = device.repeat(&[0xff; 4], m * k * 4)?;
    let params = ConvertParams {
        in_: device.repeat(&pattern(Encoding::Bf16), n * k * 2)? as *const _,
        ids: device.alloc(&ids) as *const i32,
        out: out as *mut _,
        in_stride: k as i64,
        out_stride: k as i64,
        rows: m as i32,
        cols: k as i32,
        in_dtype: Dtype::DTYPE_BF16,
        out_dtype: Dtype::DTYPE_F32,
        scale: 1.0,
    };
    Ok(Case {
        name: format!("convert rows {m} of {n} x {k}"),
        steps: vec![(convert(&params), bytes_of(&params))],
        bytes: (m * (4 + k * (2 + 4))) as u64,
        flops: (m * k) as u64,
        out: Output { address: out, len: m * k, dtype: Dtype::DTYPE_F32 },
        goal: None,
    })
}
