//! What the kernels of attention touch: queries, the positions of the cache that they see, the workspace, the result.

use layerstream_kernels::launch::attention::{decode_workspace, naive_workspace};
use layerstream_kernels::params::{AttentionParams, Sequence};

use super::{Rows, Touch, size};

/// The longest tile of keys that a kernel takes at once (attention_mma.cuh).
const TILE: i32 = 64;

fn sequences(p: &AttentionParams, t: &mut Touch) -> Vec<Sequence> {
    t.fetch("sequences", p.sequences, p.sequence_count.into())
}

fn inputs(p: &AttentionParams, t: &mut Touch) {
    let (dim, v_dim) = (i64::from(p.dim), i64::from(p.v_dim));
    t.read_any("slopes", p.slopes, Rows::one(i64::from(p.heads) * 4));
    for s in sequences(p, t) {
        let q = (p.q as u64).wrapping_add_signed(i64::from(s.first_row) * p.q_stride * 4);
        t.touch("q", q, Rows::of(s.rows, p.q_stride, i64::from(p.heads) * dim, 4), false);
        // What the first row no longer sees, none does; but tiles of keys begin at multiples of their length.
        let first = if p.window > 0 { (s.start - p.window + 1).max(0) / TILE * TILE } else { 0 };
        for (cache, width, what) in [(p.keys as u64, dim, "keys"), (p.values as u64, v_dim, "values")] {
            let bytes = width * size(p.cache_dtype);
            for head in 0..i64::from(p.kv_heads) {
                let row = s.cache_row + head * i64::from(s.capacity) + i64::from(first);
                let seen = Rows::one(i64::from(s.start + s.rows - first) * bytes);
                t.touch(what, cache.wrapping_add_signed(row * bytes), seen, false);
            }
        }
    }
}

fn output(p: &AttentionParams, t: &mut Touch) {
    t.vector("sinks", &p.sinks, 0, p.heads.into());
    let bytes = size(p.out_dtype);
    for s in sequences(p, t) {
        let out = (p.out as u64).wrapping_add_signed(i64::from(s.first_row) * p.out_stride * bytes);
        let width = i64::from(p.heads) * i64::from(p.v_dim);
        t.touch("out", out, Rows::of(s.rows, p.out_stride, width, bytes), true);
    }
}

pub fn prefill(p: &AttentionParams, t: &mut Touch) {
    inputs(p, t);
    output(p, t);
}

pub fn naive(p: &AttentionParams, t: &mut Touch) {
    prefill(p, t);
    t.write("workspace", p.workspace, Rows::one(naive_workspace(p) as i64 * 4));
}

pub fn decode(p: &AttentionParams, t: &mut Touch) {
    inputs(p, t);
    t.write("workspace", p.workspace, Rows::one(decode_workspace(p) as i64 * 4));
}

pub fn combine(p: &AttentionParams, t: &mut Touch) {
    t.read("workspace", p.workspace, Rows::one(decode_workspace(p) as i64 * 4));
    output(p, t);
}
