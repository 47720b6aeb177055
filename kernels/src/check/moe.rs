//! moe.cu against float64: choices exactly, weights and sums by the gate.

use std::collections::BTreeSet;
use std::ops::Range;

use rand::RngExt;

use super::{Check, Outcome, Output, SIZES, unit_roundoff};
use crate::launch::Launch;
use crate::launch::moe::{expert_lists, naive_expert_lists, naive_route, naive_sum_experts, route, sum_experts};
use crate::params::{Dtype, ExpertListsParams, RouteParams, Scores, SumExpertsParams, Vector};

const F32: Dtype = Dtype::DTYPE_F32;

// --- route -----------------------------------------------------------------------------------------------------------

/// A router, but for its weights.
#[derive(Clone, Copy, Debug)]
struct Router {
    experts: usize,
    top_k: usize,
    groups: usize,
    top_groups: usize,
    group_best: usize,
    scores: Scores,
    renormalise: bool,
    scale: f32,
    correction: Option<Dtype>,
}

/// Every number of experts; kinds of scores, groups and corrections as in Mixtral, Qwen, gpt-oss and DeepSeek V2 and V3,
/// and between them.
pub fn check_route(check: &mut Check) -> Outcome {
    for experts in SIZES.into_iter().chain([32, 60, 128, 160, 256, 384]) {
        for scores in [Scores::SCORES_SOFTMAX, Scores::SCORES_SIGMOID] {
            for renormalise in [false, true] {
                let correction = check.pick(&[None, Some(F32), Some(Dtype::DTYPE_BF16)]);
                let plain = Router {
                    experts,
                    top_k: check.pick(&[1, 2, 4, 6, 8, 33]).min(experts),
                    groups: 1,
                    top_groups: 1,
                    group_best: 1,
                    scores,
                    renormalise,
                    scale: check.pick(&[1.0, 2.5]),
                    correction,
                };
                route_case(check, plain)?;
                let groups = check.pick(&[2, 3, 4, 8, 9, 16, 32]);
                if experts % groups == 0 {
                    let (size, top_groups) = (experts / groups, check.pick(&[1, 2, groups / 2, groups]).max(1));
                    let top_k = plain.top_k.min(size * top_groups);
                    let group_best = check.pick(&[1, 2]).min(size);
                    route_case(check, Router { top_k, groups, top_groups, group_best, ..plain })?;
                }
            }
        }
    }
    not_a_number(check)
}

fn route_case(check: &mut Check, router: Router) -> Outcome {
    let rows = check.pick(&[1, 2, 3, 7, 9]);
    check.case(format!("route of {rows} rows, {router:?}"));
    let experts = router.experts;
    let (correction, corrections) = correction(check, router);
    let stride = experts + check.pick(&[0, 1]);
    let mut logits = vec![f32::NAN; rows * stride];
    let mut truth = Vec::new();
    for row in logits.chunks_mut(stride) {
        let (values, chosen) = definite_row(check, &router, &corrections);
        row[..experts].copy_from_slice(&values);
        truth.push(chosen);
    }
    let (ids, weights) = run_route(check, route, &router, &logits, stride, correction)?;
    let (naive_ids, naive_weights) = run_route(check, naive_route, &router, &logits, stride, correction)?;
    let right: Vec<i32> = truth.iter().flat_map(|chosen| chosen.ids.iter().map(|&e| e as i32)).collect();
    same_ints(check, "ids", &ids, &right)?;
    same_ints(check, "the naive twin's ids", &naive_ids, &right)?;
    let right: Vec<f64> = truth.iter().flat_map(|chosen| chosen.weights.clone()).collect();
    check.gate("weights", &weights, &naive_weights, &right, F32)
}

/// The correction of a router in device memory, and exactly: the same for all experts (so that equals stay equal), or not.
fn correction(check: &mut Check, router: Router) -> (Vector, Vec<f64>) {
    let mut values = check.normal(router.experts);
    if check.pick(&[false, true]) {
        values.fill(0.25);
    }
    match router.correction {
        Some(dtype) => {
            let (data, exact) = check.rounded(&values, dtype);
            (Vector { data, dtype }, exact)
        }
        None => (Vector::default(), vec![0.0; router.experts]),
    }
}

/// A row of logits whose choice float32 cannot change, and what is to be chosen. Half of the rows are full of equals.
fn definite_row(check: &mut Check, router: &Router, correction: &[f64]) -> (Vec<f32>, Chosen) {
    let coarse = check.pick(&[false, true]);
    loop {
        let mut logits = check.normal(router.experts);
        for v in &mut logits {
            *v *= 2.0;
            if coarse {
                *v = (*v * 4.0).round() / 4.0 + 0.03125;
            }
        }
        let chosen = choose(router, &logits, correction);
        if chosen.definite {
            return (logits, chosen);
        }
    }
}

struct Chosen {
    ids: Vec<usize>,
    weights: Vec<f64>,
    /// Nothing but an exact tie was closer than float32 can tell.
    definite: bool,
}

fn choose(router: &Router, logits: &[f32], correction: &[f64]) -> Chosen {
    let logits: Vec<f64> = logits.iter().map(|&v| v.into()).collect();
    let scores: Vec<f64> = if router.scores == Scores::SCORES_SOFTMAX {
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|v| (v - largest).exp()).sum();
        logits.iter().map(|v| (v - largest).exp() / sum).collect()
    } else {
        logits.iter().map(|v| 1.0 / (1.0 + (-v).exp())).collect()
    };
    let choice: Vec<f64> = scores.iter().zip(correction).map(|(s, c)| s + c).collect();
    let size = router.experts / router.groups;
    let group = |group: &[f64]| {
        let mut sorted = group.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        sorted[..router.group_best].iter().sum::<f64>()
    };
    let groups: Vec<(usize, f64)> = choice.chunks(size).map(group).enumerate().collect();
    let (open, groups_definite) = best(groups, router.top_groups);
    let candidates = choice.into_iter().enumerate().filter(|(e, _)| open.contains(&(e / size))).collect();
    let (ids, experts_definite) = best(candidates, router.top_k);
    let sum = if router.renormalise { ids.iter().map(|&e| scores[e]).sum::<f64>() + 1e-20 } else { 1.0 };
    let weights = ids.iter().map(|&e| scores[e] / sum * f64::from(router.scale)).collect();
    Chosen { ids, weights, definite: groups_definite && experts_definite }
}

/// The `n` largest, the lower number first among equals, in the order of their numbers; and whether float32 agrees.
fn best(mut all: Vec<(usize, f64)>, n: usize) -> (Vec<usize>, bool) {
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let definite = match all.get(n) {
        None => true,
        Some(&(_, next)) => {
            let last = all[n - 1].1;
            last == next || last - next > 2e-6 * last.abs().max(next.abs())
        }
    };
    let mut ids: Vec<usize> = all[..n].iter().map(|&(id, _)| id).collect();
    ids.sort_unstable();
    (ids, definite)
}

/// Logits that are broken still choose experts that exist, no one twice; what is not a number comes last.
fn not_a_number(check: &mut Check) -> Outcome {
    let router = Router {
        experts: 8,
        top_k: 3,
        groups: 1,
        top_groups: 1,
        group_best: 1,
        scores: Scores::SCORES_SIGMOID,
        renormalise: true,
        scale: 1.0,
        correction: None,
    };
    check.case("route of NaN");
    let (n, low) = (f32::NAN, f32::NEG_INFINITY);
    let logits = [[n; 8], [n, 1.0, n, low, 5.0, -3.0, n, n], [1.0; 8], [-0.0, 0.0, n, -0.0, -1.0, 0.0, n, n]].concat();
    for launch in [route, naive_route] {
        let (ids, _) = run_route(check, launch, &router, &logits, 8, Vector::default())?;
        same_ints(check, "ids", &ids, &[0, 1, 2, 1, 4, 5, 0, 1, 2, 0, 1, 3])?;
    }
    let softmax = Router { scores: Scores::SCORES_SOFTMAX, groups: 4, top_groups: 2, group_best: 2, ..router };
    for launch in [route, naive_route] {
        let (ids, _) = run_route(check, launch, &softmax, &[n; 8], 8, Vector::default())?;
        same_ints(check, "ids", &ids, &[0, 1, 2])?;
    }
    Ok(())
}

fn run_route(
    check: &mut Check,
    launch: fn(&RouteParams) -> Launch,
    router: &Router,
    logits: &[f32],
    stride: usize,
    correction: Vector,
) -> Result<(Vec<i32>, Vec<f64>), String> {
    let rows = logits.len() / stride;
    let (ids, weights) = (check.output(rows * router.top_k, F32), check.output(rows * router.top_k, F32));
    let params = RouteParams {
        logits: check.input(logits),
        correction,
        ids: ids.address as *mut i32,
        weights: weights.address as *mut f32,
        logits_stride: stride as i64,
        rows: rows as i32,
        experts: router.experts as i32,
        top_k: router.top_k as i32,
        groups: router.groups as i32,
        top_groups: router.top_groups as i32,
        group_best: router.group_best as i32,
        scores: router.scores,
        renormalise: router.renormalise.into(),
        scale: router.scale,
    };
    check.launch(&launch(&params), &params)?;
    Ok((check.read_ints(ids), check.read(weights)))
}

fn same_ints(check: &Check, what: &str, got: &[i32], right: &[i32]) -> Outcome {
    match (0..right.len()).find(|&i| got[i] != right[i]) {
        None => Ok(()),
        Some(i) => Err(check.failure(&format!("{what}: element {i} is {}, should be {}", got[i], right[i]))),
    }
}

// --- expert_lists ----------------------------------------------------------------------------------------------------

/// Which experts the rows of a batch have, and where their outputs go.
struct Lists {
    row_ids: Vec<i32>,
    places: Vec<i32>,
    bounds: Vec<i32>,
}

/// Every number of rows, with all experts, few of many, and one.
pub fn check_lists(check: &mut Check) -> Outcome {
    for rows in SIZES {
        for top_k in [1, 2, 8] {
            for experts in [top_k, 9.max(top_k), check.pick(&SIZES).max(top_k)] {
                check.case(format!("lists of {rows} rows, {top_k} of {experts} experts"));
                let ids = random_ids(check, rows, top_k, experts);
                let truth = lists(&ids, top_k, experts);
                for launch in [expert_lists, naive_expert_lists] {
                    let got = run_lists(check, launch, &ids, top_k, experts)?;
                    same_ints(check, "row_ids", &got.row_ids, &truth.row_ids)?;
                    same_ints(check, "places", &got.places, &truth.places)?;
                    same_ints(check, "bounds", &got.bounds, &truth.bounds)?;
                }
            }
        }
    }
    Ok(())
}

/// `top_k` different experts for each row, rising.
fn random_ids(check: &mut Check, rows: usize, top_k: usize, experts: usize) -> Vec<i32> {
    let mut ids = Vec::new();
    for _ in 0..rows {
        let mut row = BTreeSet::new();
        while row.len() < top_k {
            row.insert(check.rng.random_range(0..experts as i32));
        }
        ids.extend(row);
    }
    ids
}

fn lists(ids: &[i32], top_k: usize, experts: usize) -> Lists {
    let mut pairs: Vec<usize> = (0..ids.len()).collect();
    pairs.sort_by_key(|&pair| ids[pair]);
    let mut places = vec![0; ids.len()];
    for (place, &pair) in pairs.iter().enumerate() {
        places[pair] = place as i32;
    }
    let bounds = (0..=experts as i32).map(|e| ids.iter().filter(|&&id| id < e).count() as i32).collect();
    Lists { row_ids: pairs.iter().map(|pair| (pair / top_k) as i32).collect(), places, bounds }
}

fn run_lists(
    check: &mut Check,
    launch: fn(&ExpertListsParams) -> Launch,
    ids: &[i32],
    top_k: usize,
    experts: usize,
) -> Result<Lists, String> {
    let [row_ids, row_weights, places, bounds] =
        [ids.len(), ids.len(), ids.len(), experts + 1].map(|len| check.output(len, F32));
    let weights = check.normal(ids.len());
    let params = ExpertListsParams {
        ids: check.input(ids),
        weights: check.input(&weights),
        row_weights: row_weights.address as *mut f32,
        row_ids: row_ids.address as *mut i32,
        places: places.address as *mut i32,
        bounds: bounds.address as *mut i32,
        rows: (ids.len() / top_k) as i32,
        top_k: top_k as i32,
        experts: experts as i32,
    };
    check.launch(&launch(&params), &params)?;
    let [row_ids, places, bounds] = [row_ids, places, bounds].map(|output| check.read_ints(output));
    // Every weight goes where its pair does.
    let moved = check.read(row_weights);
    let right = places.iter().zip(&weights).all(|(place, weight)| {
        usize::try_from(*place).ok().and_then(|place| moved.get(place)) == Some(&f64::from(*weight))
    });
    if !right {
        return Err(check.failure("weights are not at the places of their pairs"));
    }
    Ok(Lists { row_ids, places, bounds })
}

// --- sum_experts -----------------------------------------------------------------------------------------------------

/// What the sum is added to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Add {
    Nothing,
    Other,
    InPlace,
}

/// Every size as the row's length: all experts at once against float64, and a few at a time against that, bit by bit.
pub fn check_sum(check: &mut Check) -> Outcome {
    for (i, dim) in SIZES.into_iter().chain([128, 1024, 1028, 1030]).enumerate() {
        for (j, add) in [Add::Nothing, Add::Other, Add::InPlace].into_iter().enumerate() {
            let (rows, top_k) = ([1, 3, 9][(i + j) % 3], check.pick(&[1, 2, 3, 8]));
            sum_case(check, rows, dim, top_k, 9, add)?;
        }
    }
    Ok(())
}

/// The sums of a batch.
struct Sum<'a> {
    ids: &'a [i32],
    lists: &'a Lists,
    /// Nothing: 1.
    weights: Option<&'a [f32]>,
    /// [places, dim]
    y: &'a [f32],
    dim: usize,
    /// From row to row, of y and of the output.
    strides: [usize; 2],
}

fn sum_case(check: &mut Check, rows: usize, dim: usize, top_k: usize, experts: usize, add: Add) -> Outcome {
    let strides = [dim + check.pick(&[0, 4, 1]), dim + check.pick(&[0, 4, 3])];
    check.case(format!("sum over {top_k} of {experts} experts, {rows} rows of {dim}, strides {strides:?}, {add:?}"));
    let ids = random_ids(check, rows, top_k, experts);
    let lists = lists(&ids, top_k, experts);
    let (weights, y, before) =
        (check.normal(ids.len()), check.normal(ids.len() * dim), check.normal(rows * strides[1]));
    let weighted = check.pick(&[true, true, false]);
    let sum = Sum { ids: &ids, lists: &lists, weights: weighted.then_some(&weights[..]), y: &y, dim, strides };

    let mut run = |launch, split: usize| -> Result<Vec<f64>, String> {
        let separate = check.in_place(&before);
        let out = if add == Add::InPlace { separate } else { check.output(rows * strides[1], F32) };
        let first_add = if add == Add::Nothing { 0 } else { separate.address };
        sum.run(check, launch, 0..split, first_add, out)?;
        if split < experts {
            sum.run(check, launch, split..experts, out.address, out)?;
        }
        Ok(check.read(out))
    };
    let got = run(sum_experts, experts)?;
    let naive = run(naive_sum_experts, experts)?;
    let parts = run(sum_experts, 4)?;
    check.same("some experts after the others", &parts, &got)?;

    let mut truth = Vec::new();
    let mut picked = [Vec::new(), Vec::new()];
    let mut largest = 0f64;
    for r in 0..rows {
        for i in 0..strides[1] {
            let at = r * strides[1] + i;
            let old = f64::from(before[at]);
            if i >= dim {
                let untouched = if add == Add::InPlace { got[at] == old } else { got[at].is_nan() };
                if !untouched {
                    return Err(check.failure(&format!("wrote {} between the rows of its output", got[at])));
                }
                continue;
            }
            let terms = (r * top_k..(r + 1) * top_k)
                .map(|n| {
                    f64::from(if weighted { weights[n] } else { 1.0 })
                        * f64::from(y[lists.places[n] as usize * dim + i])
                })
                .chain((add != Add::Nothing).then_some(old));
            let (total, absolute) = terms.fold((0.0, 0.0), |(sum, absolute), t| (sum + t, absolute + t.abs()));
            truth.push(total);
            largest = largest.max(absolute);
            picked[0].push(got[at]);
            picked[1].push(naive[at]);
        }
    }
    check.gate_above(2.0 * unit_roundoff(F32) * largest, "out", &picked[0], &picked[1], &truth)
}

impl Sum<'_> {
    /// Adds the outputs of some experts. Only theirs are in device memory.
    fn run(
        &self,
        check: &mut Check,
        launch: fn(&SumExpertsParams) -> Launch,
        experts: Range<usize>,
        add: u64,
        out: Output,
    ) -> Outcome {
        let [y_stride, out_stride] = self.strides;
        let rows = out.len / out_stride;
        let places = self.lists.bounds[experts.start] as usize..self.lists.bounds[experts.end] as usize;
        let mut y = vec![f32::NAN; places.len() * y_stride];
        for (row, place) in y.chunks_mut(y_stride).zip(places.clone()) {
            row[..self.dim].copy_from_slice(&self.y[place * self.dim..][..self.dim]);
        }
        let params = SumExpertsParams {
            y: check.input(&y).wrapping_sub(places.start * y_stride),
            ids: check.input(self.ids),
            places: check.input(&self.lists.places),
            weights: self.weights.map_or(std::ptr::null(), |weights| check.input(weights)),
            add: add as *const f32,
            out: out.address as *mut f32,
            y_stride: y_stride as i64,
            out_stride: out_stride as i64,
            rows: rows as i32,
            top_k: (self.ids.len() / rows) as i32,
            dim: self.dim as i32,
            first_expert: experts.start as i32,
            end_expert: experts.end as i32,
        };
        check.launch(&launch(&params), &params)
    }
}

// --- neighbours ------------------------------------------------------------------------------------------------------

/// Routed, listed and summed, a row gets the same bits alone as among others.
pub fn check_neighbours(check: &mut Check) -> Outcome {
    let router = Router {
        experts: 64,
        top_k: 6,
        groups: 8,
        top_groups: 3,
        group_best: 2,
        scores: Scores::SCORES_SIGMOID,
        renormalise: true,
        scale: 2.5,
        correction: Some(F32),
    };
    let (rows, dim) = (33, 65);
    let logits = check.normal(rows * router.experts);
    let corrections = check.normal(router.experts);
    let outputs = check.normal(router.experts * rows * dim); // of every expert for every row
    let pass = |check: &mut Check, rows: Range<usize>| -> Result<Vec<f64>, String> {
        check.case(format!("experts of rows {rows:?}"));
        let (data, dtype) = (check.input(&corrections).cast(), F32);
        let logits = &logits[rows.start * router.experts..rows.end * router.experts];
        let (ids, weights) = run_route(check, route, &router, logits, router.experts, Vector { data, dtype })?;
        let lists = run_lists(check, expert_lists, &ids, router.top_k, router.experts)?;
        let mut y = vec![0.0; ids.len() * dim];
        for (pair, &place) in lists.places.iter().enumerate() {
            let at = (rows.start + pair / router.top_k) * router.experts + ids[pair] as usize;
            y[place as usize * dim..][..dim].copy_from_slice(&outputs[at * dim..][..dim]);
        }
        let weights: Vec<f32> = weights.iter().map(|&w| w as f32).collect();
        let out = check.output(rows.len() * dim, F32);
        let sum = Sum { ids: &ids, lists: &lists, weights: Some(&weights), y: &y, dim, strides: [dim; 2] };
        sum.run(check, sum_experts, 0..router.experts, 0, out)?;
        Ok(check.read(out))
    };
    let together = pass(check, 0..rows)?;
    for some in [0..1, 7..8, 32..33, 5..21] {
        let alone = pass(check, some.clone())?;
        check.same("the row alone", &alone, &together[some.start * dim..some.end * dim])?;
    }
    Ok(())
}
