//! gemm.cu against float64: the multiply for decode and verification, 1 to 64 rows of activations, in every encoding.

use super::weights::{FORMS, Form, random_tile};
use super::{Check, Outcome, SIZES, encode, size, unit_roundoff};
use crate::launch::gemm::{Encoding, decode, naive};
use crate::params::{Dtype, GemmParams, Vector, Weights};

/// The dtype in which activations meet weights of an encoding.
pub(super) fn operand(encoding: Encoding) -> Dtype {
    match encoding {
        Encoding::F32 => Dtype::DTYPE_F32,
        Encoding::F16 => Dtype::DTYPE_F16,
        _ => Dtype::DTYPE_BF16,
    }
}

/// Rows of m activations in device memory, with NaN between them, and their numbers [m, k].
fn activations(check: &mut Check, m: usize, k: usize, dtype: Dtype) -> (*const std::ffi::c_void, usize, Vec<f64>) {
    let values = check.normal(m * k);
    upload(check, &values, k, dtype)
}

pub(super) fn upload(
    check: &mut Check,
    values: &[f32],
    k: usize,
    dtype: Dtype,
) -> (*const std::ffi::c_void, usize, Vec<f64>) {
    let stride = k.next_multiple_of(8) + 8;
    let mut bytes = Vec::new();
    let mut exact = Vec::new();
    for row in values.chunks(k) {
        let encoded: Vec<u8> = row.iter().flat_map(|&v| encode(v, dtype)).collect();
        exact.extend(super::decode(&encoded, dtype));
        bytes.extend(encoded);
        bytes.resize(bytes.len().next_multiple_of(stride * size(dtype)), 0xff);
    }
    (check.input(&bytes).cast(), stride, exact)
}

/// Every encoding, every number of rows of activations, ragged and whole n and k, with and without what is added.
pub fn check(check: &mut Check) -> Outcome {
    for form in FORMS {
        for m in SIZES.into_iter().filter(|&m| m <= 64) {
            let ragged = check.pick(&SIZES);
            let whole = check.pick(&[32, 64, 128, 192, 512, 576, 1152]);
            for k in [ragged, whole] {
                let n = check.pick(&SIZES);
                case(check, form, m, n, k)?;
            }
        }
        // Long enough for every warp to take several rounds of steps.
        for k in [2304, 4160] {
            let m = check.pick(&[1, 9]);
            case(check, form, m, 17, k)?;
        }
    }
    Ok(())
}

fn case(check: &mut Check, form: Form, m: usize, n: usize, k: usize) -> Outcome {
    let k = form.columns(k);
    let (first, extra) = (check.pick(&[0, 0, 1, 5, 130]), check.pick(&[0, 3]));
    let bias = check.pick(&[None, Some(Dtype::DTYPE_F32), Some(Dtype::DTYPE_BF16), Some(Dtype::DTYPE_F16)]);
    let residual = check.pick(&[false, true]);
    // From the shape: a case has the numbers that it had before a product could do this.
    let (scale, divided) = ([0.0, 1.0, 0.37][(m + n + k) % 3], (m + k).is_multiple_of(3));
    let more = format!("first row {first}, bias {bias:?}, residual {residual}, scale {scale}, divided {divided}");
    check.case(format!("{form:?} gemm, m {m}, n {n}, k {k}, {more}"));
    let encoding = form.encoding();
    let (w, weights) = random_tile(check, form, first, n, k);
    let (x, x_stride, xs) = activations(check, m, k, operand(encoding));
    let columns = first + n + extra;
    let values = check.normal(columns);
    let (bias_data, biases) = match bias {
        Some(dtype) => check.rounded(&values, dtype),
        None => (std::ptr::null(), vec![0.0; columns]),
    };
    let stream = check.normal(m * columns);
    let lengths: Vec<f32> = (0..columns).map(|c| if divided { 0.5 + (c % 8) as f32 * 0.4375 } else { 1.0 }).collect();

    let mut run = |launch: fn(Encoding, &GemmParams) -> crate::launch::Launch| -> Result<Vec<f64>, String> {
        // With a residual the product is added in place.
        let out = if residual { check.in_place(&stream) } else { check.output(m * columns, Dtype::DTYPE_F32) };
        let params = GemmParams {
            w,
            x,
            out: out.address as *mut f32,
            residual: if residual { out.address as *const f32 } else { std::ptr::null() },
            bias: Vector { data: bias_data, dtype: bias.unwrap_or(Dtype::DTYPE_F32) },
            lengths: if divided { check.input(&lengths) } else { std::ptr::null() },
            x_stride: x_stride as i64,
            out_stride: columns as i64,
            m: m as i32,
            n: n as i32,
            k: k as i32,
            scale,
        };
        check.launch(&launch(encoding, &params), &params)?;
        Ok(check.read(out))
    };
    let got = run(decode)?;
    let twin = run(naive)?;

    let mut truth = Vec::new();
    let mut picked = [Vec::new(), Vec::new()];
    let (mut largest, mut norm) = (0f64, 0f64);
    for r in 0..m {
        for column in 0..columns {
            let at = r * columns + column;
            let before = f64::from(stream[at]);
            if !(first..first + n).contains(&column) {
                let untouched = if residual { got[at] == before } else { got[at].is_nan() };
                if !untouched {
                    return Err(check.failure(&format!("wrote column {column}, which is outside of the tile")));
                }
                continue;
            }
            let terms = xs[r * k..][..k].iter().zip(&weights[(column - first) * k..][..k]).map(|(a, b)| a * b);
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
    // The twin may be lucky, but not better than this: three roundings of the sums, and where weights are rounded to be
    // operands, one rounding of each, which add up as independent errors do.
    let floor = 3.0 * unit_roundoff(Dtype::DTYPE_F32) * largest
        + if form.is_exact() { 0.0 } else { unit_roundoff(Dtype::DTYPE_BF16) * norm };
    check.gate_above(floor, "out", &picked[0], &picked[1], &truth)
}

/// A row of activations has the same result, bit for bit, alone, in front of, behind and among others.
pub fn check_neighbours(check: &mut Check) -> Outcome {
    for form in FORMS {
        let (n, k) = (check.pick(&[9, 16, 33]), form.columns(check.pick(&[65, 192, 576, 2112])));
        check.case(format!("{form:?} gemm beside 0 to 63 others, n {n}, k {k}"));
        let dtype = operand(form.encoding());
        let (w, _) = random_tile(check, form, 0, n, k);
        let values = check.normal(64 * k);
        let all = product(check, form, w, &values, n, k, dtype)?;
        for m in SIZES.into_iter().filter(|&m| m < 64) {
            let from = check.pick(&[0, 1, 64 - m]).min(64 - m);
            let some = product(check, form, w, &values[from * k..][..m * k], n, k, dtype)?;
            check.same(&format!("rows {from}.. of {m}"), &some, &all[from * n..][..m * n])?;
        }
    }
    Ok(())
}

fn product(
    check: &mut Check,
    form: Form,
    w: Weights,
    values: &[f32],
    n: usize,
    k: usize,
    dtype: Dtype,
) -> Result<Vec<f64>, String> {
    let m = values.len() / k;
    let (x, x_stride, _) = upload(check, values, k, dtype);
    let out = check.output(m * n, Dtype::DTYPE_F32);
    let params = GemmParams {
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
    check.launch(&decode(form.encoding(), &params), &params)?;
    Ok(check.read(out))
}
