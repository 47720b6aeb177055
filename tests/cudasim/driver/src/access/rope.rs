//! What rope touches: q in place, k and v, and the rows that they take in the cache.

use layerstream_kernels::params::{RopeParams, Sequence};

use super::{Rows, Touch, size};

pub fn rope(p: &RopeParams, t: &mut Touch) {
    let (dim, v_dim, pairs) = (i64::from(p.dim), i64::from(p.v_dim), i64::from(p.rotary_dim / 2));
    if p.rotary_dim > 0 {
        // Both or neither: without them everything has turned already.
        if !(p.cos.is_null() && p.sin.is_null()) {
            t.read("cos", p.cos, Rows::packed(p.rows, pairs, 4));
            t.read("sin", p.sin, Rows::packed(p.rows, pairs, 4));
        }
        if p.q_heads > 0 {
            t.write("q", p.q, Rows::of(p.rows, p.q_stride, i64::from(p.q_heads) * dim, 4));
        }
    }
    if p.kv_heads <= 0 {
        return;
    }
    let heads = i64::from(p.kv_heads);
    let hull = |stride: i32, width: i64| (heads - 1) * i64::from(stride) + width;
    // Of a key whose turning part lies elsewhere, only what comes before it.
    let own = if p.k_shared.is_null() { dim } else { i64::from(p.rotary_start) };
    t.read("k", p.k, Rows::of(p.rows, p.k_stride, hull(p.k_head_stride, own), 4));
    t.read("v", p.v, Rows::of(p.rows, p.v_stride, hull(p.v_head_stride, v_dim), 4));
    t.read_any("k_shared", p.k_shared, Rows::of(p.rows, p.k_shared_stride, p.rotary_dim.into(), 4));

    let owners = t.fetch("row_sequence", p.row_sequence, p.rows.into());
    let count = owners.iter().max().map_or(0, |&last| i64::from(last) + 1);
    let sequences: Vec<Sequence> = t.fetch("sequences", p.sequences, count);
    let caches = [(p.keys as u64, dim, "keys"), (p.values as u64, v_dim, "values")];
    for (cache, width, what) in caches {
        let bytes = width * size(p.cache_dtype);
        for head in 0..heads {
            for (row, &owner) in owners.iter().enumerate() {
                let Some(s) = usize::try_from(owner).ok().and_then(|owner| sequences.get(owner)) else { continue };
                let position = i64::from(s.start) + row as i64 - i64::from(s.first_row);
                let at = s.cache_row + head * i64::from(s.capacity) + position;
                t.touch(what, cache.wrapping_add_signed(at * bytes), Rows::one(bytes), true);
            }
        }
    }
}
