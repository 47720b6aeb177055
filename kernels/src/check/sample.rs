//! sample.cu: the soft cap against float64, candidates exactly.

use super::{Check, Outcome, SIZES};
use crate::launch::Launch;
use crate::launch::sample::{MAX_TOP_K, naive_soft_cap, naive_top_k, soft_cap, top_k, top_k_parts};
use crate::params::{Dtype, SoftCapParams, TOP_K_PIECE, TopKParams};

const F32: Dtype = Dtype::DTYPE_F32;

/// Every size as the row's length, in place and not.
pub fn check_soft_cap(check: &mut Check) -> Outcome {
    for (i, n) in SIZES.into_iter().chain([128, 1024, 1028, 1030]).enumerate() {
        for in_place in [false, true] {
            soft_cap_case(check, [1, 2, 9][i % 3], n, in_place)?;
        }
    }
    Ok(())
}

fn soft_cap_case(check: &mut Check, rows: usize, n: usize, in_place: bool) -> Outcome {
    let stride = n + check.pick(&[0, 4, 1]);
    let out_stride = if in_place { stride } else { n + check.pick(&[0, 4, 3]) };
    let cap = check.pick(&[30.0f32, 1.5, 0.01]);
    check
        .case(format!("soft cap {cap} of {rows} rows of {n}, strides {stride} and {out_stride}, in place: {in_place}"));
    let x: Vec<f32> = check.normal(rows * stride).iter().map(|v| v * 20.0).collect();
    let mut run = |launch: fn(&SoftCapParams) -> Launch| -> Result<Vec<f64>, String> {
        let logits = check.in_place(&x);
        let out = if in_place { logits } else { check.output(rows * out_stride, F32) };
        let params = SoftCapParams {
            x: logits.address as *const f32,
            out: out.address as *mut f32,
            stride: stride as i64,
            out_stride: out_stride as i64,
            rows: rows as i32,
            n: n as i32,
            cap,
        };
        check.launch(&launch(&params), &params)?;
        Ok(check.read(out))
    };
    let got = run(soft_cap)?;
    let naive = run(naive_soft_cap)?;

    let cap = f64::from(cap);
    let mut truth = Vec::new();
    let mut picked = [Vec::new(), Vec::new()];
    for r in 0..rows {
        for i in 0..out_stride {
            let at = r * out_stride + i;
            if i < n {
                truth.push(cap * (f64::from(x[r * stride + i]) / cap).tanh());
                picked[0].push(got[at]);
                picked[1].push(naive[at]);
            } else if !(got[at].is_nan() || in_place && got[at] == f64::from(x[at])) {
                return Err(check.failure(&format!("wrote {} between the rows of its output", got[at])));
            }
        }
    }
    check.gate("out", &picked[0], &picked[1], &truth, F32)
}

/// What a row of logits is full of.
#[derive(Clone, Copy, Debug)]
enum Row {
    Different,
    /// Few values, so most are equals of others.
    Equals,
    /// Also NaN, infinities and both zeroes.
    Broken,
    AllNan,
    /// The largest is the last.
    Rising,
}

/// Every size and some that take several pieces, with one candidate and with many.
pub fn check_top_k(check: &mut Check) -> Outcome {
    let piece = TOP_K_PIECE as usize;
    let kinds = [Row::Different, Row::Equals, Row::Broken, Row::AllNan, Row::Rising];
    for n in SIZES.into_iter().chain([piece - 1, piece, piece + 1, 3 * piece + 5]) {
        for kind in kinds {
            let rows = check.pick(&[1, 2, 3]);
            let many = check.pick(&[2, 3, 8, 50, 64]).min(n);
            for k in [1, many] {
                top_k_case(check, rows, n, k, kind)?;
            }
        }
    }
    // Parts that one block cannot take at once, and as many candidates as there can be.
    for (n, k) in [(5 * piece, 700), (3 * piece, MAX_TOP_K), (33 * piece, 64)] {
        top_k_case(check, 1, n, k, Row::Broken)?;
    }
    top_k_case(check, 1, 300 * piece + 1, 1, Row::Rising)
}

fn top_k_case(check: &mut Check, rows: usize, n: usize, k: usize, kind: Row) -> Outcome {
    let stride = n + check.pick(&[0, 3]);
    let with_values = check.pick(&[true, true, false]);
    check.case(format!("the {k} largest of {n}, {rows} rows, stride {stride}, {kind:?}, values: {with_values}"));
    // Between rows lies what would win.
    let mut logits = vec![f32::INFINITY; rows * stride];
    for row in logits.chunks_mut(stride) {
        row[..n].copy_from_slice(&random_row(check, n, kind));
    }
    let mut run = |launches: &dyn Fn(&TopKParams) -> Vec<Launch>| -> Result<(Vec<i32>, Vec<f64>), String> {
        let (ids, values) = (check.output(rows * k, F32), check.output(rows * k, F32));
        let mut params = TopKParams {
            logits: check.input(&logits),
            parts: std::ptr::null_mut(),
            values: if with_values { values.address as *mut f32 } else { std::ptr::null_mut() },
            ids: ids.address as *mut i32,
            stride: stride as i64,
            rows: rows as i32,
            n: n as i32,
            k: k as i32,
        };
        // A part is as large as two float32.
        params.parts = check.output(2 * top_k_parts(&params), F32).address as *mut u64;
        for launch in launches(&params) {
            check.launch(&launch, &params)?;
        }
        Ok((check.read_ints(ids), check.read(values)))
    };
    let (ids, values) = run(&|params| top_k(params).to_vec())?;
    // The twin looks through k candidates for every logit and every candidate.
    let twin = if n * k * k < 300_000 { Some(run(&|params| vec![naive_top_k(params)])?) } else { None };

    for r in 0..rows {
        let right = candidates(&logits[r * stride..][..n], k);
        for (i, &(id, value)) in right.iter().enumerate() {
            let at = r * k + i;
            let fits = |ids: &[i32], values: &[f64]| ids[at] == id && (!with_values || values[at] == f64::from(value));
            if !fits(&ids, &values) {
                let message = format!("candidate {i} of row {r} is {} ({})", ids[at], values[at]);
                return Err(check.failure(&format!("{message}, should be {id} ({value})")));
            }
            if twin.as_ref().is_some_and(|(ids, values)| !fits(ids, values)) {
                return Err(check.failure(&format!("the naive twin has another candidate {i} of row {r}")));
            }
        }
    }
    Ok(())
}

fn random_row(check: &mut Check, n: usize, kind: Row) -> Vec<f32> {
    let mut row = check.normal(n);
    match kind {
        Row::Different => {}
        Row::Equals => row.iter_mut().for_each(|v| *v = v.round()),
        Row::Broken => {
            let odd = [f32::NAN, f32::NEG_INFINITY, 0.0, -0.0, f32::INFINITY, f32::MIN_POSITIVE / 2.0, f32::MIN];
            row.iter_mut().for_each(|v| {
                let other = check.pick(&odd);
                *v = check.pick(&[*v, *v, -1.0, other]);
            });
        }
        Row::AllNan => row.fill(f32::NAN),
        Row::Rising => (0..n).for_each(|i| row[i] = i as f32 - 100.0),
    }
    row
}

/// The `k` largest, largest first, the first among equals first.
fn candidates(row: &[f32], k: usize) -> Vec<(i32, f32)> {
    let number = |&v: &f32| if v.is_nan() { f32::NEG_INFINITY } else { v };
    let mut all: Vec<(i32, f32)> = row.iter().map(number).enumerate().map(|(i, v)| (i as i32, v)).collect();
    // Stable, and zeroes are equal.
    all.sort_by(|a, b| b.1.partial_cmp(&a.1).expect("no NaN is left"));
    all.truncate(k);
    all
}
