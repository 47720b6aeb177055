//! What the kernels of mixtures of experts touch: router logits, ids, lists of rows, and the rows that are summed.

use layerstream_kernels::params::{ExpertListsParams, RouteParams, SumExpertsParams};

use super::{Rows, Touch};

pub fn route(p: &RouteParams, t: &mut Touch) {
    t.read("logits", p.logits, Rows::of(p.rows, p.logits_stride, p.experts.into(), 4));
    t.vector("correction", &p.correction, 0, p.experts.into());
    t.write("ids", p.ids, Rows::packed(p.rows, p.top_k.into(), 4));
    t.write("weights", p.weights, Rows::packed(p.rows, p.top_k.into(), 4));
}

pub fn lists(p: &ExpertListsParams, t: &mut Touch) {
    let pairs = Rows::packed(p.rows, p.top_k.into(), 4);
    t.read("ids", p.ids, pairs);
    t.read("weights", p.weights, pairs);
    t.write("row_ids", p.row_ids, pairs);
    t.write("row_weights", p.row_weights, pairs);
    t.write("places", p.places, pairs);
    t.write("bounds", p.bounds, Rows::one((i64::from(p.experts) + 1) * 4));
}

pub fn sum(p: &SumExpertsParams, t: &mut Touch) {
    let (pairs, dim) = (i64::from(p.rows) * i64::from(p.top_k), i64::from(p.dim));
    let ids = t.fetch("ids", p.ids, pairs);
    let places = t.fetch("places", p.places, pairs);
    t.read_any("weights", p.weights, Rows::one(pairs * 4));
    for (expert, place) in ids.into_iter().zip(places) {
        if (p.first_expert..p.end_expert).contains(&expert) {
            let row = (p.y as u64).wrapping_add_signed(i64::from(place) * p.y_stride * 4);
            t.touch("y", row, Rows::one(dim * 4), false);
        }
    }
    t.read_any("add", p.add, Rows::of(p.rows, p.out_stride, dim, 4));
    t.write("out", p.out, Rows::of(p.rows, p.out_stride, dim, 4));
}
