//! What the kernels of layers with a state touch: the rows of each stretch, the state before them, and the state after.

use layerstream_kernels::params::{ConvolveParams, DeltaRuleParams, Stretch};

use super::{Rows, Touch};

/// The state that a stretch begins with, if there is one, and the state that it leaves, of so many numbers.
fn states(states: *mut f32, stretch: &Stretch, numbers: i64, t: &mut Touch) {
    let of = |state: i32| (states as u64).wrapping_add_signed(i64::from(state) * numbers * 4);
    if stretch.from >= 0 {
        t.touch("states", of(stretch.from), Rows::one(numbers * 4), false);
    }
    t.touch("states", of(stretch.to), Rows::one(numbers * 4), true);
}

/// The stretch's rows of a buffer.
fn rows<T>(what: &str, buffer: *const T, stretch: &Stretch, stride: i64, width: i64, write: bool, t: &mut Touch) {
    let first = (buffer as u64).wrapping_add_signed(i64::from(stretch.first_row) * stride * 4);
    t.touch(what, first, Rows::of(stretch.rows, stride, width, 4), write);
}

pub fn convolve(p: &ConvolveParams, t: &mut Touch) {
    let (channels, taps) = (i64::from(p.channels), i64::from(p.taps));
    t.read("weight", p.weight, Rows::one(channels * taps * 4));
    for stretch in t.fetch("stretches", p.stretches, p.stretch_count.into()) {
        rows("x", p.x, &stretch, p.stride, channels, true, t);
        states(p.states, &stretch, (taps - 1) * channels, t);
    }
}

pub fn delta_rule(p: &DeltaRuleParams, t: &mut Touch) {
    let (heads, key_dim, value_dim) = (i64::from(p.value_heads), i64::from(p.key_dim), i64::from(p.value_dim));
    let width = 2 * i64::from(p.key_heads) * key_dim + heads * value_dim;
    t.read("log_decay", p.log_decay, Rows::one(heads * 4));
    t.read("decay_bias", p.decay_bias, Rows::one(heads * 4));
    for stretch in t.fetch("stretches", p.stretches, p.stretch_count.into()) {
        rows("mixed", p.mixed, &stretch, p.mixed_stride, width, false, t);
        rows("decay", p.decay, &stretch, p.decay_stride, heads, false, t);
        rows("write", p.write, &stretch, p.write_stride, heads, false, t);
        rows("out", p.out, &stretch, p.out_stride, heads * value_dim, true, t);
        states(p.states, &stretch, heads * value_dim * key_dim, t);
    }
}
