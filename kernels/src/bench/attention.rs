//! Attention over a KV cache in bfloat16: of a new row a sequence, and of many rows of one.

use super::{Case, Goal, Peer, Shape, bytes_of, pattern};
use crate::check::{Device, Output};
use crate::launch::attention::{decode, decode_workspace, prefill};
use crate::launch::gemm::Encoding;
use crate::params::{AttentionParams, Dtype, Sequence};

/// `sequences` sequences of `context` positions, whose last `rows` are new. Also returns the bytes to move.
fn problem(
    device: &mut dyn Device,
    shape: &Shape,
    sequences: usize,
    rows: usize,
    context: usize,
) -> Result<(AttentionParams, usize), String> {
    let &Shape { heads, kv_heads, head_dim: dim, .. } = shape;
    if kv_heads == 0 || heads % kv_heads != 0 || !(1..=256).contains(&dim) {
        return Err(format!("{heads} heads do not share {kv_heads} key heads, or {dim} is no head dim from 1 to 256"));
    }
    let cache_bytes = sequences * kv_heads * context * dim * 2;
    let all: Vec<u8> = (0..sequences)
        .flat_map(|i| {
            bytes_of(&Sequence {
                cache_row: (i * kv_heads * context) as i64,
                capacity: context as i32,
                first_row: (i * rows) as i32,
                rows: rows as i32,
                start: (context - rows) as i32,
            })
        })
        .collect();
    let numbers = sequences * rows * heads * dim;
    let params = AttentionParams {
        q: device.repeat(&pattern(Encoding::F32), numbers * 4)? as *const f32,
        keys: device.repeat(&pattern(Encoding::Bf16), cache_bytes)? as *const _,
        values: device.repeat(&pattern(Encoding::Bf16), cache_bytes)? as *const _,
        out: device.repeat(&[0xff; 2], numbers * 2)? as *mut _,
        sequences: device.alloc(&all) as *const Sequence,
        q_stride: (heads * dim) as i64,
        out_stride: (heads * dim) as i64,
        sequence_count: sequences as i32,
        heads: heads as i32,
        kv_heads: kv_heads as i32,
        dim: dim as i32,
        v_dim: dim as i32,
        most_rows: rows as i32,
        most_keys: context as i32,
        cache_dtype: Dtype::DTYPE_BF16,
        out_dtype: Dtype::DTYPE_BF16,
        scale: 1.0 / (dim as f32).sqrt(),
        ..AttentionParams::default()
    };
    Ok((params, 2 * cache_bytes + numbers * (4 + 2)))
}

fn output(params: &AttentionParams, rows: usize) -> Output {
    let len = rows * (params.heads * params.v_dim) as usize;
    Output { address: params.out as u64, len, dtype: Dtype::DTYPE_BF16 }
}

pub fn prepare_decode(device: &mut dyn Device, shape: &Shape) -> Result<Case, String> {
    let &Shape { m, context, heads, kv_heads, head_dim, .. } = shape;
    let (mut params, bytes) = problem(device, shape, m, 1, context)?;
    params.workspace = device.repeat(&[0xff; 4], decode_workspace(&params) * 4)? as *mut f32;
    Ok(Case {
        name: format!("attention_decode {heads}/{kv_heads} x {head_dim} context {context} m {m}"),
        steps: decode(&params).into_iter().map(|launch| (launch, bytes_of(&params))).collect(),
        bytes: bytes as u64,
        flops: (4 * m * heads * head_dim * context) as u64,
        out: output(&params, m),
        goal: (context >= 32768).then_some(Goal::Copy(0.75)),
    })
}

pub fn prepare_prefill(device: &mut dyn Device, shape: &Shape) -> Result<Case, String> {
    let &Shape { m, heads, kv_heads, head_dim, .. } = shape;
    let context = shape.context.max(m);
    let (params, bytes) = problem(device, shape, 1, m, context)?;
    let start = context - m;
    // Row i sees the start + i + 1 positions up to its own.
    let pairs = m * start + m * (m + 1) / 2;
    let peer = Peer::Attention { rows: m, heads, kv_heads, head_dim };
    Ok(Case {
        name: format!("attention_prefill {heads}/{kv_heads} x {head_dim} context {context} m {m}"),
        steps: vec![(prefill(&params), bytes_of(&params))],
        bytes: bytes as u64,
        flops: (4 * heads * head_dim * pairs) as u64,
        out: output(&params, m),
        goal: (start == 0 && m >= 2048).then_some(Goal::Peer(0.5, peer)),
    })
}
