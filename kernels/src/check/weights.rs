//! Weight matrices in every encoding, made from random numbers, with what they mean in float64.

use half::{bf16, f16};
use rand::RngExt;

use super::{Check, gguf};
use crate::launch::gemm::Encoding;
use crate::params::Weights;

/// An encoding and how its scales are laid out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    Plain(Encoding),
    /// Blocks of so many elements, as a power of two, over the flattened matrix.
    Int8Blocks(i32),
    Int8Rows,
    /// Blocks of 2^rows x 2^columns.
    Fp8 {
        rows: i32,
        columns: i32,
    },
    Nf4 {
        block: i32,
        nested: bool,
    },
    Mxfp4,
    /// GGUF's.
    Blocks(Encoding),
}

/// Every encoding, with the layouts of scales that exist and some that are awkward.
pub const FORMS: [Form; 18] = [
    Form::Plain(Encoding::F32),
    Form::Plain(Encoding::F16),
    Form::Plain(Encoding::Bf16),
    Form::Int8Blocks(6),
    Form::Int8Blocks(11),
    Form::Int8Rows,
    Form::Fp8 { rows: 7, columns: 7 },
    Form::Fp8 { rows: 0, columns: 31 },
    Form::Fp8 { rows: 31, columns: 31 },
    Form::Nf4 { block: 6, nested: false },
    Form::Nf4 { block: 6, nested: true },
    Form::Nf4 { block: 5, nested: false },
    Form::Mxfp4,
    Form::Blocks(Encoding::Q8_0),
    Form::Blocks(Encoding::Q4_0),
    Form::Blocks(Encoding::Q4K),
    Form::Blocks(Encoding::Q5K),
    Form::Blocks(Encoding::Q6K),
];

impl Form {
    pub fn encoding(self) -> Encoding {
        match self {
            Form::Plain(encoding) | Form::Blocks(encoding) => encoding,
            Form::Int8Blocks(_) | Form::Int8Rows => Encoding::Int8,
            Form::Fp8 { .. } => Encoding::Fp8,
            Form::Nf4 { .. } => Encoding::Nf4,
            Form::Mxfp4 => Encoding::Mxfp4,
        }
    }

    /// The least number of columns that it can have, of so many or more.
    pub fn columns(self, k: usize) -> usize {
        k.next_multiple_of(self.encoding().multiple())
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
    let rows = first + n + 1;
    let tile = first * k..(first + n) * k;
    let mut weights = Weights { first_row: first as i32, ..Weights::default() };
    let numbers: Vec<f64> = match form {
        Form::Plain(encoding) => plain(check, &mut weights, encoding, n * k),
        Form::Blocks(encoding) => {
            let (bytes, numbers) = gguf::random(check, encoding, n * k);
            weights.data = check.input(&bytes).cast();
            numbers
        }
        Form::Int8Blocks(_) | Form::Int8Rows => {
            let q: Vec<i8> = (0..n * k).map(|_| check.rng.random()).collect();
            let shift = if let Form::Int8Blocks(shift) = form { shift } else { -1 };
            let count = if shift < 0 { rows } else { (rows * k).div_ceil(1 << shift) };
            let scales = scales(check, count);
            weights.data = check.input(&q).cast();
            weights.scale = check.input(&scales).cast();
            weights.block_shift = shift;
            let scale = |i: usize| f64::from(scales[if shift < 0 { i / k } else { i >> shift }]);
            tile.zip(q).map(|(i, q)| f64::from(q) * scale(i)).collect()
        }
        Form::Fp8 { rows: row_shift, columns: column_shift } => {
            let q: Vec<u8> =
                (0..n * k).map(|_| check.rng.random()).map(|q: u8| if q & 0x7f == 0x7f { 0 } else { q }).collect();
            let per_row = ((k - 1) >> column_shift) + 1;
            let scales = scales(check, (((rows - 1) >> row_shift) + 1) * per_row);
            weights.data = check.input(&q).cast();
            weights.scale = check.input(&scales).cast();
            (weights.row_shift, weights.column_shift) = (row_shift, column_shift);
            let scale = |i: usize| f64::from(scales[((i / k) >> row_shift) * per_row + ((i % k) >> column_shift)]);
            tile.zip(q).map(|(i, q)| e4m3(q) * scale(i)).collect()
        }
        Form::Nf4 { block, nested } => {
            // All bytes of the matrix, of which only those of the tile are uploaded.
            let bytes: Vec<u8> = (0..(rows * k).div_ceil(2)).map(|_| check.rng.random()).collect();
            let count = (rows * k).div_ceil(1 << block);
            weights.data = check.input(&bytes[tile.start / 2..tile.end.div_ceil(2)]).cast();
            weights.block_shift = block;
            let scales = if nested {
                nested_scales(check, &mut weights, count)
            } else {
                plain_scales(check, &mut weights, count)
            };
            let q = |i: usize| bytes[i / 2] >> (4 - i % 2 * 4) & 15;
            tile.map(|i| f64::from(NF4[q(i) as usize]) * scales[i >> block]).collect()
        }
        Form::Mxfp4 => {
            let bytes: Vec<u8> = (0..n * k / 2).map(|_| check.rng.random()).collect();
            // Around those of weights: the sums stay what float32 can hold.
            let exponents: Vec<u8> = (0..rows * k / 32).map(|_| check.rng.random_range(117..124)).collect();
            weights.data = check.input(&bytes).cast();
            weights.scale = check.input(&exponents).cast();
            let number = |q: u8| E2M1[usize::from(q & 7)] * if q & 8 == 0 { 1.0 } else { -1.0 };
            let q = |i: usize| bytes[i / 2] >> (4 * (i % 2)) & 15;
            let power = |i: usize| 2f64.powi(i32::from(exponents[i / 32]) - 127);
            tile.enumerate().map(|(at, i)| number(q(at)) * power(i)).collect()
        }
    };
    (weights, numbers)
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

fn plain_scales(check: &mut Check, weights: &mut Weights, count: usize) -> Vec<f64> {
    let scales = scales(check, count);
    weights.scale = check.input(&scales).cast();
    scales.into_iter().map(f64::from).collect()
}

fn nested_scales(check: &mut Check, weights: &mut Weights, count: usize) -> Vec<f64> {
    let codes: Vec<u8> = (0..count).map(|_| check.rng.random()).collect();
    let map: Vec<f32> = (0..256).map(|i| (i as f32 - 127.0) / 128.0).collect();
    let outer = scales(check, count.div_ceil(256));
    let offset = 0.02;
    weights.scale = check.input(&codes).cast();
    weights.nested_map = check.input(&map);
    weights.nested_scale = check.input(&outer);
    weights.nested_offset = offset;
    let scale =
        |(i, &code): (usize, &u8)| f64::from(map[code as usize]) * f64::from(outer[i / 256]) + f64::from(offset);
    codes.iter().enumerate().map(scale).collect()
}

/// The number of an fp8 e4m3 byte (bias 7, no infinities).
fn e4m3(q: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(q >> 3 & 15), f64::from(q & 7));
    let magnitude = if exponent == 0 { mantissa * 2f64.powi(-9) } else { (8.0 + mantissa) * 2f64.powi(exponent - 10) };
    if q & 0x80 == 0 { magnitude } else { -magnitude }
}
