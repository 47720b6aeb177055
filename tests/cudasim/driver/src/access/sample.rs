//! What the kernels behind the logits touch: their cap, and the search for the largest.

use layerstream_kernels::launch::sample::top_k_parts;
use layerstream_kernels::params::{SoftCapParams, TopKParams};

use super::{Rows, Touch};

pub fn soft_cap(p: &SoftCapParams, t: &mut Touch) {
    t.read("x", p.x, Rows::of(p.rows, p.stride, p.n.into(), 4));
    t.write("out", p.out, Rows::of(p.rows, p.out_stride, p.n.into(), 4));
}

pub fn pieces(p: &TopKParams, t: &mut Touch) {
    t.read("logits", p.logits, Rows::of(p.rows, p.stride, p.n.into(), 4));
    t.write("parts", p.parts, Rows::one(top_k_parts(p) as i64 * 8));
}

pub fn top_k(p: &TopKParams, t: &mut Touch) {
    t.read("parts", p.parts, Rows::one(top_k_parts(p) as i64 * 8));
    candidates(p, t);
}

pub fn naive(p: &TopKParams, t: &mut Touch) {
    t.read("logits", p.logits, Rows::of(p.rows, p.stride, p.n.into(), 4));
    candidates(p, t);
}

fn candidates(p: &TopKParams, t: &mut Touch) {
    t.write("ids", p.ids, Rows::packed(p.rows, p.k.into(), 4));
    t.write_any("values", p.values, Rows::packed(p.rows, p.k.into(), 4));
}
