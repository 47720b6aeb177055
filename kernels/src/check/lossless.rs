//! Packed rows of bfloat16, made by the letter of docs/packing.md, one number after another; and what is promised of them:
//! every number to the last bit, and the products of the numbers as they were.

use rand::RngExt;

use super::gemm::upload;
use super::{Check, Outcome, SIZES};
use crate::launch::convert::{convert_blocks, naive_convert_blocks};
use crate::launch::gemm::{Encoding, decode};
use crate::launch::gemm_prefill::prefill;
use crate::launch::lengths::row_lengths;
use crate::params::{ConvertParams, Dtype, GemmParams, PrefillParams, RowLengthsParams, Weights};

/// How many numbers of a row have an exponent without a code.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Escapes {
    None,
    Some,
    All,
}

const EACH: [Escapes; 3] = [Escapes::None, Escapes::Some, Escapes::All];

/// The code of an exponent, where code 1 stands for the first of `coded`, and codes 2 to 7 for the second and the five after
/// it; 0 if it has none.
fn code(exponent: u8, coded: [u8; 2]) -> u8 {
    match exponent.checked_sub(coded[1]) {
        _ if exponent == coded[0] => 1,
        Some(after) if after < 6 => 2 + after,
        _ => 0,
    }
}

fn exponent(number: u16) -> u8 {
    (number >> 7) as u8
}

/// Rows of k numbers, of which those exponents have codes. What is in a row and no part of its numbers is 0xff.
pub fn pack(numbers: &[u16], k: usize, coded: [u8; 2]) -> Vec<u8> {
    let escapes = |row: &[u16]| row.iter().map(|v| exponent(*v)).filter(|e| code(*e, coded) == 0).collect::<Vec<u8>>();
    let room = numbers.chunks(k).map(|row| escapes(row).len()).max().unwrap_or(0);
    let blocks = k.div_ceil(64) * 88;
    let row_bytes = (2 + 2 * k.div_ceil(256) + room + blocks).next_multiple_of(16);
    let mut all = Vec::new();
    for row in numbers.chunks(k) {
        let mut bytes = coded.to_vec();
        for i in (0..k).step_by(256) {
            bytes.extend((escapes(&row[..i]).len() as u16).to_le_bytes());
        }
        bytes.extend(escapes(row));
        bytes.resize(row_bytes - blocks, 0xff);
        for block in row.chunks(64) {
            let mut codes = [0u8; 24];
            for (i, number) in block.iter().enumerate() {
                let code = u16::from(code(exponent(*number), coded)) << (3 * i % 8);
                codes[3 * i / 8] |= code as u8;
                if code > 0xff {
                    codes[3 * i / 8 + 1] |= (code >> 8) as u8;
                }
            }
            bytes.extend(codes);
            bytes.extend((0..64).map(|i| block.get(i).map_or(0xff, |v| (v >> 8 & 0x80 | v & 0x7f) as u8)));
        }
        all.extend(bytes);
    }
    all
}

/// Numbers that look like trained weights, and the exponents of theirs that have codes.
pub fn random(check: &mut Check, escapes: Escapes, count: usize) -> (Vec<u16>, [u8; 2]) {
    let coded = match escapes {
        Escapes::None => [0, 123],
        Escapes::Some => [122, 123],
        Escapes::All => [1, 200],
    };
    let number = |v: f32| {
        let number = half::bf16::from_f32(v).to_bits();
        if escapes == Escapes::None && code(exponent(number), coded) == 0 { 0 } else { number }
    };
    (check.normal(count).into_iter().map(number).collect(), coded)
}

/// Puts packed rows where kernels read them.
pub fn put(check: &mut Check, bytes: &[u8], rows: usize) -> Weights {
    Weights { data: check.input(bytes).cast(), row_bytes: (bytes.len() / rows) as i32, ..Weights::default() }
}

/// Every bfloat16 that there is comes out of its row as it was, from rows with a few escapes and with hardly anything else, of
/// whole and of other blocks. NaN stays NaN: which one, the product with the scale decides.
pub fn check_every_number(check: &mut Check) -> Outcome {
    let in_order: Vec<u16> = (0..=u16::MAX).collect();
    let mixed: Vec<u16> = (0..=u16::MAX).map(|i| i.wrapping_mul(64) | i >> 10).collect();
    for (what, all) in [("side by side", in_order), ("far apart", mixed)] {
        for cols in [77, 1021, 1024] {
            let rows = all.len().div_ceil(cols);
            let numbers: Vec<u16> = all.iter().copied().cycle().take(rows * cols).collect();
            check.case(format!("every bfloat16, {what}, in rows of {cols}"));
            // Each row has its own codes; all have room for as many escapes.
            let coded = |row: usize| [exponent(numbers[row * cols + cols / 2]), exponent(numbers[row * cols]).min(250)];
            let mut packed: Vec<Vec<u8>> =
                (0..rows).map(|row| pack(&numbers[row * cols..][..cols], cols, coded(row))).collect();
            let longest = packed.iter().map(Vec::len).max().unwrap_or(0);
            let blocks = cols.div_ceil(64) * 88;
            for row in &mut packed {
                let (at, more) = (row.len() - blocks, longest - row.len());
                row.splice(at..at, std::iter::repeat_n(0xff, more));
            }
            let table = put(check, &packed.concat(), rows);
            let ids: Vec<i32> = (0..rows as i32).map(|row| (row * 5 + 2) % rows as i32).collect();
            for picked in [false, true] {
                let out = [check.output(rows * cols, Dtype::DTYPE_F32), check.output(rows * cols, Dtype::DTYPE_F32)];
                let ids = if picked { ids.clone() } else { (0..rows as i32).collect() };
                for (out, launch) in out.into_iter().zip([convert_blocks, naive_convert_blocks]) {
                    let params = ConvertParams {
                        in_: table.data,
                        ids: if picked { check.input(&ids) } else { std::ptr::null() },
                        out: out.address as *mut _,
                        in_stride: table.row_bytes.into(),
                        out_stride: cols as i64,
                        rows: rows as i32,
                        cols: cols as i32,
                        scale: 1.0,
                        ..ConvertParams::default()
                    };
                    check.launch(&launch(Encoding::Lossless, &params), &params)?;
                    let truth = ids.iter().flat_map(|id| &numbers[*id as usize * cols..][..cols]);
                    let truth: Vec<f64> = truth.map(|bits| f32::from_bits(u32::from(*bits) << 16).into()).collect();
                    let got = check.read(out);
                    same_numbers(check, &got, &truth)?;
                }
            }
        }
    }
    Ok(())
}

/// Equal to the last bit, or NaN both.
fn same_numbers(check: &Check, got: &[f64], truth: &[f64]) -> Outcome {
    let wrong = got.iter().zip(truth).position(|(a, b)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan()));
    match wrong {
        None => Ok(()),
        Some(i) => Err(check.failure(&format!("element {i} is {}, should be {}", got[i], truth[i]))),
    }
}

/// Lengths of rows around those of chunks, steps, blocks and runs, and such as every warp takes several rounds of.
const LENGTHS: [usize; 22] =
    [1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 96, 128, 160, 224, 255, 256, 257, 288, 512, 544, 1088, 2336];

/// The product of packed numbers, one of decode and one of a prompt, has the bits that the numbers have as they were.
pub fn check_products(check: &mut Check) -> Outcome {
    for k in LENGTHS {
        for escapes in EACH {
            let (n, m) = (check.pick(&SIZES), check.pick(&[1, 7, 8, 9, 33, 64]));
            check.case(format!("product of {m} rows with {n} x {k} packed numbers, escapes: {escapes:?}"));
            let (numbers, coded) = random(check, escapes, n * k);
            let packed = put(check, &pack(&numbers, k, coded), n);
            let plain = Weights { data: check.input(&numbers).cast(), ..Weights::default() };
            let values = check.normal(m * k);
            let (x, x_stride, _) = upload(check, &values, k, Dtype::DTYPE_BF16);
            let mut both = Vec::new();
            for (encoding, w) in [(Encoding::Bf16, plain), (Encoding::Lossless, packed)] {
                let product = GemmParams {
                    w,
                    x,
                    x_stride: x_stride as i64,
                    out_stride: n as i64,
                    m: m as i32,
                    n: n as i32,
                    k: k as i32,
                    ..GemmParams::default()
                };
                let out = [check.output(m * n, Dtype::DTYPE_F32), check.output(m * n, Dtype::DTYPE_F32)];
                let [short, long] = out.map(|out| GemmParams { out: out.address as *mut f32, ..product });
                check.launch(&decode(encoding, &short), &short)?;
                let long = PrefillParams { product: long, ..PrefillParams::default() };
                check.launch(&prefill(encoding, &long), &long)?;
                both.push(out.map(|out| check.read(out)));
            }
            check.same("decode", &both[0][0], &both[1][0])?;
            check.same("prefill", &both[0][1], &both[1][1])?;
        }
    }
    Ok(())
}

/// Bytes that are no row of anything are some numbers, and no reason to read anywhere else.
pub fn check_damaged(check: &mut Check) -> Outcome {
    for k in LENGTHS {
        for room in [0, 1, 40] {
            let (n, m) = (check.pick(&[1, 3, 17]), 9);
            check.case(format!("{n} rows of {k} random numbers, with {room} more bytes"));
            let row_bytes = (2 + 2 * k.div_ceil(256) + room + k.div_ceil(64) * 88).next_multiple_of(16);
            let bytes: Vec<u8> = (0..n * row_bytes).map(|_| check.rng.random()).collect();
            let w = put(check, &bytes, n);
            let values = check.normal(m * k);
            let (x, x_stride, _) = upload(check, &values, k, Dtype::DTYPE_BF16);
            let out = check.output(m.max(n) * n.max(k), Dtype::DTYPE_F32).address;
            let product = GemmParams {
                w,
                x,
                out: out as *mut f32,
                x_stride: x_stride as i64,
                out_stride: n as i64,
                m: m as i32,
                n: n as i32,
                k: k as i32,
                ..GemmParams::default()
            };
            check.launch(&decode(Encoding::Lossless, &product), &product)?;
            let long = PrefillParams { product, ..PrefillParams::default() };
            check.launch(&prefill(Encoding::Lossless, &long), &long)?;
            let lengths = RowLengthsParams { w, lengths: out as *mut f32, n: n as i32, k: k as i32 };
            check.launch(&row_lengths(Encoding::Lossless, &lengths), &lengths)?;
            let rows = ConvertParams {
                in_: w.data,
                out: out as *mut _,
                in_stride: row_bytes as i64,
                out_stride: k as i64,
                rows: n as i32,
                cols: k as i32,
                scale: 1.0,
                ..ConvertParams::default()
            };
            check.launch(&convert_blocks(Encoding::Lossless, &rows), &rows)?;
        }
    }
    Ok(())
}
