//! Weight matrices in every encoding, made from random numbers, with what they mean in float64.

use half::{bf16, f16};
use rand::RngExt;

use super::lossless::{self, Escapes};
use super::{Check, gguf};
use crate::launch::gemm::Encoding;
use crate::params::Weights;

/// An encoding and where its factors are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// Without any.
    Plain(Encoding),
    /// GGUF's blocks.
    Blocks(Encoding),
    /// In matrices of their own, for blocks of 2^rows x 2^columns numbers.
    Factors { encoding: Encoding, rows: i32, columns: i32, zeros: bool },
    /// As those, but which of the blocks of a row a column is in, a list says.
    AnyOrder { encoding: Encoding, columns: i32, zeros: bool },
    /// Behind the codes of each row, for blocks of 2^columns numbers.
    Packed { encoding: Encoding, columns: i32 },
    /// Bfloat16 with coded exponents.
    Lossless(Escapes),
}

const fn factors(encoding: Encoding, rows: i32, columns: i32) -> Form {
    Form::Factors { encoding, rows, columns, zeros: false }
}
const fn zeros(encoding: Encoding, rows: i32, columns: i32) -> Form {
    Form::Factors { encoding, rows, columns, zeros: true }
}

/// Every encoding, with the layouts of factors that exist and some that are awkward.
pub const FORMS: [Form; 36] = [
    Form::Plain(Encoding::F32),
    Form::Plain(Encoding::F16),
    Form::Plain(Encoding::Bf16),
    Form::Packed { encoding: Encoding::Int8, columns: 6 },
    Form::Packed { encoding: Encoding::Int8, columns: 11 },
    Form::Packed { encoding: Encoding::Nf4, columns: 6 },
    Form::Packed { encoding: Encoding::Nf4d, columns: 6 },
    Form::Lossless(Escapes::None),
    Form::Lossless(Escapes::Some),
    Form::Lossless(Escapes::All),
    factors(Encoding::Int8, 0, 31),
    factors(Encoding::Fp8, 7, 7),
    factors(Encoding::Fp8, 0, 31),
    factors(Encoding::Fp8, 31, 31),
    factors(Encoding::Nf4, 0, 6),
    factors(Encoding::Nf4, 0, 5),
    factors(Encoding::Nf4, 2, 31),
    factors(Encoding::Fp4, 0, 7),
    zeros(Encoding::Int8Zero, 0, 31),
    zeros(Encoding::Int8Zero, 31, 31),
    zeros(Encoding::Offset8, 0, 6),
    factors(Encoding::Offset8, 0, 4),
    zeros(Encoding::Offset4, 0, 7),
    factors(Encoding::Offset4, 0, 5),
    Form::AnyOrder { encoding: Encoding::Offset4, columns: 6, zeros: true },
    Form::AnyOrder { encoding: Encoding::Offset8, columns: 5, zeros: false },
    Form::AnyOrder { encoding: Encoding::Int8Zero, columns: 7, zeros: false },
    factors(Encoding::Mxfp4, 0, 5),
    Form::Blocks(Encoding::Q8_0),
    Form::Blocks(Encoding::Q4_0),
    Form::Blocks(Encoding::Q4_1),
    Form::Blocks(Encoding::Q5_0),
    Form::Blocks(Encoding::Q5_1),
    Form::Blocks(Encoding::Q4K),
    Form::Blocks(Encoding::Q5K),
    Form::Blocks(Encoding::Q6K),
];

impl Form {
    pub fn encoding(self) -> Encoding {
        match self {
            Form::Plain(encoding) | Form::Blocks(encoding) => encoding,
            Form::Factors { encoding, .. } | Form::AnyOrder { encoding, .. } | Form::Packed { encoding, .. } => {
                encoding
            }
            Form::Lossless(_) => Encoding::Lossless,
        }
    }

    /// The least number of columns that it can have, of so many or more.
    pub fn columns(self, k: usize) -> usize {
        match self {
            Form::Factors { encoding: Encoding::Nf4, .. } => k.next_multiple_of(2),
            _ => k.next_multiple_of(self.encoding().multiple()),
        }
    }

    /// Whether numbers are operands without being rounded.
    pub fn is_exact(self) -> bool {
        matches!(self, Form::Plain(_) | Form::Lossless(_)) || self.encoding() == Encoding::Mxfp4
    }
}

/// The 4-bit normal-float numbers, as bitsandbytes has them.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The numbers of four bits of MXFP4, without a sign.
const E2M1: [f64; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// The tile of rows `first .. first + n` of a random matrix with k columns and some rows more: its device side, and its
/// numbers [n, k].
pub fn random_tile(check: &mut Check, form: Form, first: usize, n: usize, k: usize) -> (Weights, Vec<f64>) {
    let mut weights = Weights { first_row: first as i32, ..Weights::default() };
    let numbers = match form {
        Form::Plain(encoding) => plain(check, &mut weights, encoding, n * k),
        Form::Blocks(encoding) => {
            let (bytes, numbers) = gguf::random(check, encoding, n * k);
            weights.data = check.input(&bytes).cast();
            numbers
        }
        Form::Factors { encoding, rows, columns, zeros } => {
            (weights.row_shift, weights.column_shift) = (rows, columns);
            beside(check, &mut weights, encoding, zeros, n, k)
        }
        Form::AnyOrder { encoding, columns, zeros } => {
            weights.column_shift = columns;
            let blocks = ((k - 1) as i32 >> columns) + 1;
            let index: Vec<i32> = (0..k).map(|_| check.rng.random_range(0..blocks)).collect();
            weights.index = check.input(&index);
            in_blocks(check, &mut weights, encoding, zeros, n, &index)
        }
        Form::Packed { encoding, columns } => {
            weights.column_shift = columns;
            packed(check, &mut weights, encoding, n, k)
        }
        Form::Lossless(escapes) => {
            let (numbers, coded) = lossless::random(check, escapes, n * k);
            weights = Weights {
                first_row: weights.first_row,
                ..lossless::put(check, &lossless::pack(&numbers, k, coded), n)
            };
            numbers.into_iter().map(|bits| bf16::from_bits(bits).to_f64()).collect()
        }
    };
    (weights, numbers)
}

/// Codes with factors in matrices of their own, for blocks that are runs of columns.
fn beside(
    check: &mut Check,
    weights: &mut Weights,
    encoding: Encoding,
    with_zeros: bool,
    n: usize,
    k: usize,
) -> Vec<f64> {
    let index: Vec<i32> = (0..k as i32).map(|i| i >> weights.column_shift).collect();
    in_blocks(check, weights, encoding, with_zeros, n, &index)
}

/// Codes with factors in matrices of their own, which have a row more than the tile needs; of each column its block.
fn in_blocks(
    check: &mut Check,
    weights: &mut Weights,
    encoding: Encoding,
    with_zeros: bool,
    n: usize,
    index: &[i32],
) -> Vec<f64> {
    let (first, rows, k) = (weights.first_row as usize, weights.row_shift, index.len());
    let across = ((k - 1) >> weights.column_shift) + 1;
    let count = ((first + n) >> rows) * across + across;
    let codes = codes(check, encoding, n * k);
    let bytes: Vec<u8> = codes.chunks(k).flat_map(|row| stored(encoding, row)).collect();
    weights.data = check.input(&bytes).cast();
    (weights.row_bytes, weights.scale_stride) = ((bytes.len() / n) as i32, across as i32);
    let scales: Vec<f64> = if encoding == Encoding::Mxfp4 {
        // Around those of weights: the sums stay what float32 can hold.
        let exponents: Vec<u8> = (0..count).map(|_| check.rng.random_range(117..124)).collect();
        weights.scale = check.input(&exponents).cast();
        exponents.iter().map(|e| 2f64.powi(i32::from(*e) - 127)).collect()
    } else {
        let scales = scales(check, count);
        weights.scale = check.input(&scales).cast();
        scales.into_iter().map(f64::from).collect()
    };
    let middle = if encoding == Encoding::Offset4 { 8 } else { 128 };
    let zeros: Vec<f32> =
        (0..count).map(|_| if with_zeros { check.rng.random_range(-middle..middle) as f32 } else { 0.0 }).collect();
    if with_zeros {
        weights.zero = check.input(&zeros);
    }
    let at = |r: usize, i: usize| ((first + r) >> rows) * across + index[i] as usize;
    let value = |j: usize| {
        let at = at(j / k, j % k);
        (number(encoding, codes[j]) - f64::from(zeros[at])) * scales[at]
    };
    (0..n * k).map(value).collect()
}

/// Rows that stand alone: codes of whole blocks of 64, the scales behind them, and what fills 16 bytes, which nobody reads.
fn packed(check: &mut Check, weights: &mut Weights, encoding: Encoding, n: usize, k: usize) -> Vec<f64> {
    let blocks = ((k - 1) >> weights.column_shift) + 1;
    let (mut bytes, mut numbers, mut behind) = (Vec::new(), Vec::new(), 0);
    for _ in 0..n {
        let codes = codes(check, encoding, k.next_multiple_of(64));
        let row = stored(encoding, &codes);
        behind = row.len();
        bytes.extend(row);
        let scales: Vec<f64> = if encoding == Encoding::Nf4d {
            let coded: Vec<u8> = (0..blocks).map(|_| check.rng.random()).collect();
            let (outer, offset) = (scales(check, blocks.div_ceil(256)), 0.02f32);
            bytes.extend(&coded);
            bytes.resize(bytes.len().next_multiple_of(4), 0xff);
            bytes.extend(outer.iter().chain([&offset]).flat_map(|v| v.to_le_bytes()));
            let scale = |(i, code): (usize, &u8)| dynamic_map(*code) * f64::from(outer[i / 256]) + f64::from(offset);
            coded.iter().enumerate().map(scale).collect()
        } else {
            let scales = scales(check, blocks);
            bytes.extend(scales.iter().flat_map(|v| v.to_le_bytes()));
            scales.into_iter().map(f64::from).collect()
        };
        bytes.resize(bytes.len().next_multiple_of(16), 0xff);
        numbers.extend((0..k).map(|i| number(encoding, codes[i]) * scales[i >> weights.column_shift]));
    }
    weights.data = check.input(&bytes).cast();
    weights.row_bytes = (bytes.len() / n) as i32;
    weights.scale_stride = if encoding == Encoding::Nf4d { weights.row_bytes } else { weights.row_bytes / 4 };
    // Where the scales of the matrix' first row would be.
    let before = i64::from(weights.first_row) * i64::from(weights.row_bytes);
    weights.scale = (weights.data as i64 + behind as i64 - before) as *const _;
    numbers
}

/// Codes that are all numbers.
fn codes(check: &mut Check, encoding: Encoding, len: usize) -> Vec<u8> {
    let code = |q: u8| match encoding {
        Encoding::Fp8 if q & 0x7f == 0x7f => 0,
        Encoding::Fp8 | Encoding::Int8 | Encoding::Int8Zero | Encoding::Offset8 => q,
        _ => q & 15,
    };
    (0..len).map(|_| check.rng.random()).map(code).collect()
}

/// How a row of codes is stored.
fn stored(encoding: Encoding, codes: &[u8]) -> Vec<u8> {
    let pair = |pair: &[u8], high_first: bool| {
        let (first, second) = (pair[0], pair.get(1).copied().unwrap_or(0));
        if high_first { first << 4 | second } else { second << 4 | first }
    };
    match encoding {
        Encoding::Nf4 | Encoding::Nf4d | Encoding::Fp4 => codes.chunks(2).map(|codes| pair(codes, true)).collect(),
        Encoding::Offset4 | Encoding::Mxfp4 => codes.chunks(2).map(|codes| pair(codes, false)).collect(),
        _ => codes.to_vec(),
    }
}

/// What a code stands for, without factors.
fn number(encoding: Encoding, code: u8) -> f64 {
    match encoding {
        Encoding::Int8 | Encoding::Int8Zero => f64::from(code as i8),
        Encoding::Offset8 => f64::from(code) - 128.0,
        Encoding::Offset4 => f64::from(code) - 8.0,
        Encoding::Nf4 | Encoding::Nf4d => f64::from(NF4[usize::from(code)]),
        Encoding::Fp4 => signed(code, &[0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0]) / 12.0,
        Encoding::Mxfp4 => signed(code, &E2M1),
        Encoding::Fp8 => e4m3(code),
        other => panic!("{other:?} has no factors"),
    }
}

/// Of a code of four bits whose highest is the sign.
fn signed(code: u8, numbers: &[f64; 8]) -> f64 {
    let number = numbers[usize::from(code & 7)];
    if code & 8 == 0 { number } else { -number }
}

/// bitsandbytes' signed dynamic map: for each power of ten from 1e-6 to 1 the middles of twice as many parts of [0.1, 1] as for the
/// one before; these negative; zero, and one.
fn dynamic_map(code: u8) -> f64 {
    let above = (0..7).flat_map(|power: i32| {
        let (parts, scale) = (1 << power, 10f64.powi(power - 6));
        (0..parts).map(move |i| scale * (0.1 + 0.9 * (f64::from(i) + 0.5) / f64::from(parts)))
    });
    let mut map: Vec<f64> = above.flat_map(|v| [v, -v]).chain([0.0, 1.0]).collect();
    map.sort_by(f64::total_cmp);
    map[usize::from(code)]
}

fn plain(check: &mut Check, weights: &mut Weights, encoding: Encoding, len: usize) -> Vec<f64> {
    let values = check.normal(len);
    match encoding {
        Encoding::F16 => {
            let values: Vec<f16> = values.into_iter().map(f16::from_f32).collect();
            weights.data = check.input(&values.iter().map(|v| v.to_bits()).collect::<Vec<_>>()).cast();
            values.into_iter().map(f16::to_f64).collect()
        }
        Encoding::Bf16 => {
            let values: Vec<bf16> = values.into_iter().map(bf16::from_f32).collect();
            weights.data = check.input(&values.iter().map(|v| v.to_bits()).collect::<Vec<_>>()).cast();
            values.into_iter().map(bf16::to_f64).collect()
        }
        _ => {
            weights.data = check.input(&values).cast();
            values.into_iter().map(f64::from).collect()
        }
    }
}

fn scales(check: &mut Check, count: usize) -> Vec<f32> {
    (0..count).map(|_| check.rng.random_range(0.004..0.02)).collect()
}

/// The number of an fp8 e4m3 byte (bias 7, no infinities).
fn e4m3(q: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(q >> 3 & 15), f64::from(q & 7));
    let magnitude = if exponent == 0 { mantissa * 2f64.powi(-9) } else { (8.0 + mantissa) * 2f64.powi(exponent - 10) };
    if q & 0x80 == 0 { magnitude } else { -magnitude }
}
