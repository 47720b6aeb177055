//! gemm_prefill.cu against float64: the multiply for any number of rows, in every encoding.

use rand::RngExt;

use super::gemm::{operand, upload};
use super::weights::{FORMS, Form, random_tile};
use super::{Check, Outcome, SIZES, unit_roundoff};
use crate::launch::Launch;
use crate::launch::gemm::Encoding;
use crate::launch::gemm_prefill::{naive, prefill};
use crate::params::{Dtype, GemmParams, PrefillParams, Vector, Weights};

/// Every encoding, every number of rows of activations, ragged and whole n and k, with and without what is added, rows in
/// order and gathered, results of 32 and of 16 bits.
pub fn check(check: &mut Check) -> Outcome {
    for form in FORMS {
        for m in SIZES.into_iter().chain([200]) {
            let n = check.pick(&[SIZES.as_slice(), &[128, 130, 200]].concat());
            let ragged = check.pick(&SIZES);
            let k = check.pick(&[ragged, 32, 64, 96, 128, 192, 320]);
            case(check, form, m, n, k)?;
        }
        // Some slices more, so that every stage is used again and again.
        case(check, form, 17, 33, 704)?;
    }
    // More tiles of rows than are grouped.
    case(check, Form::Plain(Encoding::Bf16), 17 * 128 + 5, 130, 32)
}

fn case(check: &mut Check, form: Form, m: usize, n: usize, k: usize) -> Outcome {
    let k = form.columns(k);
    let first = check.pick(&[0, 4, 1, 5, 132]);
    let after = check.pick(&[0, 3, 8]);
    let columns = if after == 8 { (first + n).next_multiple_of(8) } else { first + n + after };
    let bias = check.pick(&[None, Some(Dtype::DTYPE_F32), Some(Dtype::DTYPE_BF16), Some(Dtype::DTYPE_F16)]);
    let residual = check.pick(&[false, true]);
    let in_place = residual && check.pick(&[false, true]);
    let dtype =
        if in_place { Dtype::DTYPE_F32 } else { check.pick(&[Dtype::DTYPE_F32, Dtype::DTYPE_F16, Dtype::DTYPE_BF16]) };
    let gathered = check.pick(&[false, true]);
    let (scale, divided) = (check.pick(&[0.0, 1.0, 0.37]), check.pick(&[false, false, true]));
    let more = format!(
        "first row {first} of {columns}, bias {bias:?}, residual {residual}, gathered {gathered}, scale {scale}, divided \
         {divided}, {dtype:?}"
    );
    check.case(format!("{form:?} prefill gemm, m {m}, n {n}, k {k}, {more}"));

    let encoding = form.encoding();
    let (w, weights) = random_tile(check, form, first, n, k);
    let sources = if gathered { m.div_ceil(2) + 1 } else { m };
    let values = check.normal(sources * k);
    let (x, x_stride, xs) = upload(check, &values, k, operand(encoding));
    let rows: Vec<usize> = (0..m).map(|r| if gathered { check.rng.random_range(0..sources) } else { r }).collect();
    let gather =
        if gathered { check.input(&rows.iter().map(|&r| r as i32).collect::<Vec<_>>()) } else { std::ptr::null() };
    let values = check.normal(columns);
    let (bias_data, biases) = match bias {
        Some(dtype) => check.rounded(&values, dtype),
        None => (std::ptr::null(), vec![0.0; columns]),
    };
    let stream = check.normal(m * columns);
    let lengths = lengths(check, columns, divided);

    let mut run = |launch: fn(Encoding, &PrefillParams) -> Launch| -> Result<Vec<f64>, String> {
        let out = if in_place { check.in_place(&stream) } else { check.output(m * columns, dtype) };
        let wide = dtype == Dtype::DTYPE_F32;
        let added = match (residual, in_place) {
            (false, _) => std::ptr::null(),
            (true, true) => out.address as *const f32,
            (true, false) => check.input(&stream),
        };
        let product = GemmParams {
            w,
            x,
            out: if wide { out.address as *mut f32 } else { std::ptr::null_mut() },
            residual: added,
            bias: Vector { data: bias_data, dtype: bias.unwrap_or(Dtype::DTYPE_F32) },
            lengths: if divided { check.input(&lengths) } else { std::ptr::null() },
            x_stride: x_stride as i64,
            out_stride: columns as i64,
            m: m as i32,
            n: n as i32,
            k: k as i32,
            scale,
        };
        let out16 = if wide { std::ptr::null_mut() } else { out.address as *mut _ };
        let params = PrefillParams { product, gather, out16, out16_dtype: dtype };
        check.launch(&launch(encoding, &params), &params)?;
        Ok(check.read(out))
    };
    let got = run(prefill)?;
    let twin = run(naive)?;

    let mut truth = Vec::new();
    let mut picked = [Vec::new(), Vec::new()];
    let (mut largest, mut norm) = (0f64, 0f64);
    for r in 0..m {
        for column in 0..columns {
            let at = r * columns + column;
            let before = f64::from(stream[at]);
            if !(first..first + n).contains(&column) {
                let untouched = if in_place { got[at] == before } else { got[at].is_nan() };
                if !untouched {
                    return Err(check.failure(&format!("wrote column {column}, which is outside of the tile")));
                }
                continue;
            }
            let terms = xs[rows[r] * k..][..k].iter().zip(&weights[(column - first) * k..][..k]).map(|(a, b)| a * b);
            let (sum, square) = terms.fold((0f64, 0f64), |(sum, square), t| (sum + t, square + t * t));
            let scale = if scale == 0.0 { 1.0 } else { f64::from(scale) };
            let factor = scale / f64::from(lengths[column]);
            let (sum, spread) = (sum * factor, square.sqrt() * factor);
            let added = scale * biases[column] + if residual { before } else { 0.0 };
            norm = norm.max(spread);
            largest = largest.max(sum.abs().max(spread) + added.abs());
            truth.push(sum + added);
            picked[0].push(got[at]);
            picked[1].push(twin[at]);
        }
    }
    // As for the multiply of decode: the twin may be lucky, but not better than three roundings of the sums, one to a result
    // of 16 bits, and where weights are rounded to be operands, one of each, which add up as independent errors do.
    let narrow = if dtype == Dtype::DTYPE_F32 { 0.0 } else { unit_roundoff(dtype) };
    let floor = (3.0 * unit_roundoff(Dtype::DTYPE_F32) + narrow) * largest
        + if form.is_exact() { 0.0 } else { unit_roundoff(Dtype::DTYPE_BF16) * norm };
    check.gate_above(floor, "out", &picked[0], &picked[1], &truth)
}

/// What a row of each column is divided by: 1, or something else.
fn lengths(check: &mut Check, columns: usize, divided: bool) -> Vec<f32> {
    (0..columns).map(|_| if divided { check.rng.random_range(0.5..4.0) } else { 1.0 }).collect()
}

/// A row of activations has the same result, bit for bit, alone, in front of, behind and among others, and gathered.
pub fn check_neighbours(check: &mut Check) -> Outcome {
    const ALL: usize = 200;
    for form in FORMS {
        let (n, k) = (check.pick(&[9, 33, 65, 130]), form.columns(check.pick(&[65, 96, 192, 320])));
        check.case(format!("{form:?} prefill gemm beside 0 to {} others, n {n}, k {k}", ALL - 1));
        let (w, _) = random_tile(check, form, 0, n, k);
        let values = check.normal(ALL * k);
        let everyone: Vec<usize> = (0..ALL).collect();
        let all = product(check, form, w, &values, &everyone, n, k)?;
        for _ in 0..3 {
            let m = check.pick(&SIZES);
            let from = check.rng.random_range(0..=ALL - m);
            let some = product(check, form, w, &values[from * k..][..m * k], &everyone[..m], n, k)?;
            check.same(&format!("rows {from}.. of {m}"), &some, &all[from * n..][..m * n])?;
        }
        let chosen: Vec<usize> = (0..33).map(|_| check.rng.random_range(0..ALL)).collect();
        let some = product(check, form, w, &values, &chosen, n, k)?;
        let expected: Vec<f64> = chosen.iter().flat_map(|&r| &all[r * n..][..n]).copied().collect();
        check.same(&format!("rows {chosen:?}"), &some, &expected)?;
    }
    Ok(())
}

/// The product of the rows `chosen`; without gathering, where these are all in order.
fn product(
    check: &mut Check,
    form: Form,
    w: Weights,
    values: &[f32],
    chosen: &[usize],
    n: usize,
    k: usize,
) -> Result<Vec<f64>, String> {
    let (x, x_stride, _) = upload(check, values, k, operand(form.encoding()));
    let m = chosen.len();
    let in_order = chosen.iter().copied().eq(0..values.len() / k);
    let gather = chosen.iter().map(|&r| r as i32).collect::<Vec<_>>();
    let gather = if in_order { std::ptr::null() } else { check.input(&gather) };
    let out = check.output(m * n, Dtype::DTYPE_F32);
    let product = GemmParams {
        w,
        x,
        out: out.address as *mut f32,
        x_stride: x_stride as i64,
        out_stride: n as i64,
        m: m as i32,
        n: n as i32,
        k: k as i32,
        ..GemmParams::default()
    };
    let params = PrefillParams { product, gather, ..PrefillParams::default() };
    check.launch(&prefill(form.encoding(), &params), &params)?;
    Ok(check.read(out))
}
