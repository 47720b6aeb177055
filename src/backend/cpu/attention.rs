//! Attention of queries to cached keys and values, with grouped heads and, where a family has them, windows, capped
//! scores, biases that grow with distance, and sinks; without ever holding a row of scores: keys are taken in blocks, and what was summed so far is rescaled when a larger score
//! appears (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax").
//!
//! Blocks begin at positions divisible by [`KEYS`], and a query never touches a key it cannot see, so its result does
//! not depend on which other queries share the call.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use half::bf16;

use super::dots::dots;
use super::functions::{exp, tanh};
use super::isa::{F32x16, Isa, Kernel, LANES};
use super::weights::{F32, Tile};
use super::workers::Workers;
use crate::encoding::Encoding;

/// Keys in a block.
const KEYS: usize = 64;
/// Queries (a row and a head each) for which a thread goes through the keys and values once.
const QUERIES: usize = 96;
/// The largest head.
const HEAD_DIM: usize = 256;

/// What all sequences of a call have in common.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Query heads; a multiple of `kv_heads`. Consecutive ones share a key head.
    pub heads: usize,
    pub kv_heads: usize,
    /// Elements of a query and a key head; at most 256.
    pub key_dim: usize,
    /// Elements of a value head; at most 256.
    pub value_dim: usize,
    /// From one row of queries to the next, in elements.
    pub q_stride: usize,
    /// What dot products are multiplied by; positive.
    pub scale: f32,
    /// A query at position p sees the keys p − window < j ≤ p.
    pub window: Option<usize>,
    /// A query sees only keys of its own chunk: those from the last position divisible by it on.
    pub chunk: Option<usize>,
    /// Scores x become `soft_cap × tanh(x / soft_cap)`; positive.
    pub soft_cap: Option<f32>,
    /// `[heads]`: a score that takes its share of the softmax and has no value.
    pub sinks: Option<&'a [f32]>,
    /// `[heads]`: added to a score is `slope × (position of the key − position of the query)`.
    pub slopes: Option<&'a [f32]>,
    /// Instead, with slopes that are bfloat16, this times what bfloat16 has of `slope × position`, less that of the query.
    pub bias_factor: Option<f32>,
}

/// Some rows of queries and the cache that they look into.
#[derive(Clone)]
pub struct Sequence<'a> {
    /// Rows of the queries (and of the output) that belong to this sequence.
    pub rows: Range<usize>,
    /// Position of the first of them; its key and those of the other rows are in the cache already.
    pub start: usize,
    /// `[kv_heads, capacity, key_dim]`
    pub keys: &'a [f32],
    /// `[kv_heads, capacity, value_dim]`
    pub values: &'a [f32],
}

/// Copies new keys, or values, into a cache. `rows` holds one token every `stride` elements, each with `kv_heads ×
/// head_dim` numbers; they go to positions `start`, `start + 1`, … of `cache`, `[kv_heads, capacity, head_dim]`.
pub fn append(rows: &[f32], stride: usize, kv_heads: usize, head_dim: usize, start: usize, cache: &mut [f32]) {
    let capacity = cache.len() / (kv_heads * head_dim);
    for (head, cache) in cache.chunks_exact_mut(capacity * head_dim).enumerate() {
        for (row, key) in rows.chunks(stride).zip(cache[start * head_dim..].chunks_exact_mut(head_dim)) {
            key.copy_from_slice(&row[head * head_dim..(head + 1) * head_dim]);
        }
    }
}

/// What one thread knows of the queries it works on.
pub(super) struct Scratch {
    /// Scores of the block of keys, then their exponentials.
    scores: Vec<[f32; KEYS]>,
    /// Values summed so far, each weighted with e^(score − largest).
    sums: Vec<[f32; HEAD_DIM]>,
    /// The largest score so far.
    largest: Vec<f32>,
    /// The sum of the weights, in lanes: key j in lane j mod 16.
    weight: Vec<[f32; LANES]>,
}

impl Scratch {
    pub const BYTES: usize = QUERIES * (KEYS + HEAD_DIM + 1 + LANES) * size_of::<f32>();

    pub fn new() -> Scratch {
        Scratch {
            scores: vec![[0.0; KEYS]; QUERIES],
            sums: vec![[0.0; HEAD_DIM]; QUERIES],
            largest: vec![0.0; QUERIES],
            weight: vec![[0.0; LANES]; QUERIES],
        }
    }
}

pub(super) fn attention(
    isa: Isa,
    workers: &mut Workers,
    q: &[f32],
    sequences: &[Sequence<'_>],
    shape: Attention<'_>,
    out: &mut [f32],
) {
    let Attention { heads, kv_heads, key_dim, value_dim, .. } = shape;
    assert!(key_dim <= HEAD_DIM && value_dim <= HEAD_DIM, "heads of {key_dim} and {value_dim}");
    assert!([shape.sinks, shape.slopes].into_iter().flatten().all(|of_heads| of_heads.len() == heads));
    assert!(heads.is_multiple_of(kv_heads), "{heads} heads share {kv_heads} key heads");
    let group = heads / kv_heads;
    let tasks_of = |sequence: &Sequence<'_>| kv_heads * (sequence.rows.len() * group).div_ceil(QUERIES);

    let out = Mutex::new(out);
    workers.run(sequences.iter().map(tasks_of).sum(), |scratch, mut task| {
        for sequence in sequences {
            if task >= tasks_of(sequence) {
                task -= tasks_of(sequence);
                continue;
            }
            // Neighbours in time share keys and values.
            let blocks = tasks_of(sequence) / kv_heads;
            let kv_head = task / blocks;
            let first = task % blocks * QUERIES;
            let queries = first..(first + QUERIES).min(sequence.rows.len() * group);
            let task = Task { q, sequence, shape, kv_head, queries };
            let scratch = &mut scratch.attention;
            isa.run(Attend { task: &task, scratch });
            // Computing took far longer than this copy, so nobody waits here for long.
            let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
            for (i, sums) in scratch.sums[..task.queries.len()].iter().enumerate() {
                let at = (task.row(i) * heads + task.head(i)) * value_dim;
                out[at..at + value_dim].copy_from_slice(&sums[..value_dim]);
            }
            return;
        }
    });
}

/// Some queries that share a key head. Query number v of a sequence and a key head is row v / group, head v % group.
struct Task<'a> {
    q: &'a [f32],
    sequence: &'a Sequence<'a>,
    shape: Attention<'a>,
    kv_head: usize,
    queries: Range<usize>,
}

impl<'a> Task<'a> {
    fn group(&self) -> usize {
        self.shape.heads / self.shape.kv_heads
    }

    /// The row of q that the i-th query of the task is in.
    fn row(&self, i: usize) -> usize {
        self.sequence.rows.start + (self.queries.start + i) / self.group()
    }

    /// Its head.
    fn head(&self, i: usize) -> usize {
        self.kv_head * self.group() + (self.queries.start + i) % self.group()
    }

    fn query(&self, i: usize) -> &'a [f32] {
        let at = self.row(i) * self.shape.q_stride + self.head(i) * self.shape.key_dim;
        &self.q[at..at + self.shape.key_dim]
    }

    fn position(&self, i: usize) -> usize {
        self.sequence.start + (self.queries.start + i) / self.group()
    }

    /// The positions that the i-th query sees.
    fn visible(&self, i: usize) -> Range<usize> {
        let position = self.position(i);
        let window = self.shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let chunk = self.shape.chunk.map_or(0, |chunk| position / chunk * chunk);
        window.max(chunk)..position + 1
    }

    /// This key head's part of a cache.
    fn of_head(&self, cache: &'a [f32]) -> &'a [f32] {
        let len = cache.len() / self.shape.kv_heads;
        &cache[self.kv_head * len..(self.kv_head + 1) * len]
    }
}

struct Attend<'a> {
    task: &'a Task<'a>,
    scratch: &'a mut Scratch,
}

impl Kernel for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        if V::WIDE { self.by_groups::<V, 4>() } else { self.by_groups::<V, 2>() }
    }
}

impl Attend<'_> {
    /// With `N` queries at a time, `N` keys at a time, and `N` vectors of values at a time.
    #[inline(always)]
    fn by_groups<V: F32x16, const N: usize>(self) {
        let Attend { task, scratch } = self;
        let n = task.queries.len();
        for i in 0..n {
            scratch.sums[i] = [0.0; HEAD_DIM];
            scratch.largest[i] = f32::NEG_INFINITY;
            scratch.weight[i] = [0.0; LANES];
            if let Some(sinks) = task.shape.sinks {
                scratch.largest[i] = sinks[task.head(i)];
                scratch.weight[i][0] = 1.0;
            }
        }
        // Queries see the further the later they come, so the first and the last of a group say what all of it sees.
        for block in task.visible(0).start / KEYS..task.visible(n - 1).end.div_ceil(KEYS) {
            let whole = n - n % N;
            for i in (0..whole).step_by(N) {
                add_block::<V, N, N>(task, scratch, i, block * KEYS);
            }
            for i in whole..n {
                add_block::<V, N, 1>(task, scratch, i, block * KEYS);
            }
        }
        for i in 0..n {
            let weight = V::splat(V::load(&scratch.weight[i]).sum());
            for sum in scratch.sums[i].as_chunks_mut::<LANES>().0 {
                V::load(sum).div(weight).store(sum);
            }
        }
    }
}

/// Adds what the queries `i..i + T` of a task see of the block of keys that begins at `start`.
#[inline(always)]
fn add_block<V: F32x16, const N: usize, const T: usize>(
    task: &Task<'_>,
    scratch: &mut Scratch,
    i: usize,
    start: usize,
) {
    let clip = |seen: Range<usize>| seen.start.max(start)..seen.end.min(start + KEYS);
    let any = clip(task.visible(i).start..task.visible(i + T - 1).end);
    if any.is_empty() {
        return;
    }
    let (dim, value_dim) = (task.shape.key_dim, task.shape.value_dim);
    let keys = bytemuck::cast_slice(task.of_head(task.sequence.keys));
    let keys = Tile { bytes: keys, encoding: Encoding::F32, k: dim, scales: None };
    let values = task.of_head(task.sequence.values);

    let mut queries: [&[f32]; T] = [&[]; T];
    for (t, query) in queries.iter_mut().enumerate() {
        *query = task.query(i + t);
    }
    let scores = &mut scratch.scores[i..i + T];
    let whole = any.start + any.len() - any.len() % N;
    for j in (any.start..whole).step_by(N) {
        place(dots::<V, F32, N, T>(keys.some_rows(j), queries), scores, j - start);
    }
    for j in whole..any.end {
        place(dots::<V, F32, 1, T>(keys.some_rows(j), queries), scores, j - start);
    }

    for t in 0..T {
        let seen = clip(task.visible(i + t));
        if seen.is_empty() {
            continue;
        }
        let scores = &mut scratch.scores[i + t];
        let mut scale = task.shape.scale;
        if let Some(cap) = task.shape.soft_cap {
            cap_scores::<V>(scores, scale, cap);
            scale = 1.0;
        }
        if let Some(slopes) = task.shape.slopes {
            let distance = start as f32 - task.position(i + t) as f32;
            match task.shape.bias_factor {
                None => bias_scores::<V>(scores, scale, slopes[task.head(i + t)], distance),
                Some(factor) => {
                    let bias = |position| rounded_bias(slopes[task.head(i + t)], position);
                    let own = bias(task.position(i + t));
                    for (score, position) in scores.iter_mut().zip(start..) {
                        *score = *score * scale + (bias(position) - own) * factor;
                    }
                }
            }
            scale = 1.0;
        }
        scores[..seen.start - start].fill(f32::NEG_INFINITY);
        scores[seen.end - start..].fill(f32::NEG_INFINITY);
        let (largest, weight) = (&mut scratch.largest[i + t], &mut scratch.weight[i + t]);
        let rescale = soften::<V>(scores, scale, largest, weight);
        if rescale != 1.0 {
            for sum in scratch.sums[i + t].as_chunks_mut::<LANES>().0 {
                V::load(sum).mul(V::splat(rescale)).store(sum);
            }
        }
    }

    // Keys that all of the queries see, and for each query those before and after.
    let all = clip(task.visible(i + T - 1).start..task.visible(i).end);
    let all = if all.is_empty() { any.end..any.end } else { all };
    let (scores, sums) = (&scratch.scores, &mut scratch.sums);
    for t in i..i + T {
        let seen = clip(task.visible(t));
        let before = seen.start..seen.end.min(all.start);
        add_values::<V, N, 1>(&scores[t..], &mut sums[t..], values, value_dim, before, start);
    }
    add_values::<V, N, T>(&scores[i..], &mut sums[i..], values, value_dim, all.clone(), start);
    for t in i..i + T {
        let after = all.end..clip(task.visible(t)).end;
        add_values::<V, N, 1>(&scores[t..], &mut sums[t..], values, value_dim, after, start);
    }
}

/// `scores[t][j + r] = dots[r][t]`
#[inline(always)]
fn place<const R: usize, const T: usize>(dots: [[f32; T]; R], scores: &mut [[f32; KEYS]], j: usize) {
    for (r, dots) in dots.iter().enumerate() {
        for (scores, dot) in scores.iter_mut().zip(dots) {
            scores[j + r] = *dot;
        }
    }
}

/// Adds the values of `keys`, in that order, to the first `T` of `sums`, weighted as the first `T` of `weights` say,
/// whose first is for the key `start`.
#[inline(always)]
fn add_values<V: F32x16, const D: usize, const T: usize>(
    weights: &[[f32; KEYS]],
    sums: &mut [[f32; HEAD_DIM]],
    values: &[f32],
    dim: usize,
    keys: Range<usize>,
    start: usize,
) {
    if keys.is_empty() {
        return;
    }
    let mut of_keys: [&[f32]; T] = [&[]; T];
    for t in 0..T {
        of_keys[t] = &weights[t][keys.start - start..keys.end - start];
    }
    let values = &values[keys.start * dim..keys.end * dim];
    let whole = dim - dim % (D * LANES);
    for d in (0..whole).step_by(D * LANES) {
        add_columns::<V, D, T>(of_keys, sums, values, dim, d);
    }
    for d in (whole..dim).step_by(LANES) {
        add_columns::<V, 1, T>(of_keys, sums, values, dim, d);
    }
}

/// The part of `add_values` for the `D` vectors of columns from `d` on.
#[inline(always)]
fn add_columns<V: F32x16, const D: usize, const T: usize>(
    weights: [&[f32]; T],
    sums: &mut [[f32; HEAD_DIM]],
    values: &[f32],
    dim: usize,
    d: usize,
) {
    let mut lanes = [[V::zero(); D]; T];
    for t in 0..T {
        let (sums, _) = sums[t][d..].as_chunks::<LANES>();
        for c in 0..D {
            lanes[t][c] = V::load(&sums[c]);
        }
    }
    for (j, row) in values.chunks_exact(dim).enumerate() {
        let (chunks, rest) = row[d..].as_chunks::<LANES>();
        let mut v = [V::zero(); D];
        if D == 1 && chunks.is_empty() {
            v[0] = V::load_part(rest);
        } else {
            for c in 0..D {
                v[c] = V::load(&chunks[c]);
            }
        }
        for t in 0..T {
            let weight = V::splat(weights[t][j]);
            for c in 0..D {
                lanes[t][c] = weight.mul_add(v[c], lanes[t][c]);
            }
        }
    }
    for t in 0..T {
        let (sums, _) = sums[t][d..].as_chunks_mut::<LANES>();
        for c in 0..D {
            lanes[t][c].store(&mut sums[c]);
        }
    }
}

/// Scales dot products and keeps them within ±`cap`.
#[inline(always)]
fn cap_scores<V: F32x16>(dots: &mut [f32; KEYS], scale: f32, cap: f32) {
    for chunk in dots.as_chunks_mut::<LANES>().0 {
        let scores = V::load(chunk).mul(V::splat(scale));
        tanh(scores.div(V::splat(cap))).mul(V::splat(cap)).store(chunk);
    }
}

/// Scales dot products and adds to each the slope times the distance of its key, `distance` for the first and one more for
/// each that follows.
#[inline(always)]
fn bias_scores<V: F32x16>(dots: &mut [f32; KEYS], scale: f32, slope: f32, distance: f32) {
    let mut lane = [0.0; LANES];
    for (l, lane) in lane.iter_mut().enumerate() {
        *lane = distance + l as f32;
    }
    let mut distances = V::load(&lane);
    for chunk in dots.as_chunks_mut::<LANES>().0 {
        let scores = V::load(chunk).mul(V::splat(scale));
        V::splat(slope).mul_add(distances, scores).store(chunk);
        distances = distances.add(V::splat(LANES as f32));
    }
}

/// What ALiBi gives to a key, rounded as Falcon's code does.
fn rounded_bias(slope: f32, position: usize) -> f32 {
    bf16::from_f32(slope * bf16::from_f32(position as f32).to_f32()).to_f32()
}

/// Turns the dot products of a query with a block of keys into weights e^(score − largest), adds them to `weight`, and
/// returns what the sums so far must be multiplied by.
#[inline(always)]
fn soften<V: F32x16>(dots: &mut [f32; KEYS], scale: f32, largest: &mut f32, weight: &mut [f32; LANES]) -> f32 {
    let (chunks, _) = dots.as_chunks_mut::<LANES>();
    let mut tops = V::splat(*largest);
    for chunk in chunks.iter_mut() {
        let scores = V::load(chunk).mul(V::splat(scale));
        scores.store(chunk);
        tops = scores.max(tops);
    }
    let mut top = [0.0; LANES];
    tops.store(&mut top);
    let new = top.into_iter().fold(*largest, |a, b| if a > b { a } else { b });
    // If every score is −∞ their weights are 0, not e^(−∞ + ∞).
    let base = if new == f32::NEG_INFINITY { 0.0 } else { new };

    let mut rescale = [0.0; LANES];
    exp(V::splat(*largest - base)).store(&mut rescale);
    let mut total = V::load(weight).mul(V::load(&rescale));
    for chunk in chunks {
        let e = exp(V::load(chunk).sub(V::splat(base)));
        e.store(chunk);
        total = total.add(e);
    }
    total.store(weight);
    *largest = new;
    rescale[0]
}
