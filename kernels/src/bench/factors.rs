//! Factors that become float32: n rows of k weights have one, in float16, for each 64 of them.

use super::{Case, Shape, bytes_of, pattern};
use crate::check::{Device, Output};
use crate::launch::factors::factors;
use crate::launch::gemm::Encoding;
use crate::params::{Dtype, FactorParams, FactorRole};

pub fn prepare(device: &mut dyn Device, shape: &Shape) -> Result<Case, String> {
    let count = shape.n * shape.k.div_ceil(64);
    let out = device.repeat(&[0xff; 4], count * 4)?;
    let params = FactorParams {
        in_: device.repeat(&pattern(Encoding::F16), count * 2)? as *const _,
        out: out as *mut _,
        count: count as i32,
        outputs: count as i32,
        repeat: 1,
        divisor: 1.0,
        role: FactorRole::FACTOR_SCALES,
        dtype: Dtype::DTYPE_F16,
        ..FactorParams::default()
    };
    Ok(Case {
        name: format!("factors of {} x {}", shape.n, shape.k),
        steps: vec![(factors(&params), bytes_of(&params))],
        bytes: (count * 6) as u64,
        flops: count as u64,
        out: Output { address: out, len: count, dtype: Dtype::DTYPE_F32 },
        goal: None,
    })
}
