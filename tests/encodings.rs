//! Every encoding of weights against a decoder that is written down plainly here: decoding inside the multiply gives the
//! very bits that multiplying with the decoded matrix gives, on every instruction set, for any number of tokens, however
//! the matrix is cut.

use layerstream::backend::cpu::{Columns, Cpu, Finish, Isa, Scales, Tile};
use layerstream::encoding::Encoding;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }

    fn numbers(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }
}

/// One E4M3 by the definition of the format.
fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte & 0x80 != 0 { -magnitude } else { magnitude }
}

/// The numbers of some rows, before factors.
fn decode(encoding: Encoding, bytes: &[u8]) -> Vec<f32> {
    match encoding {
        Encoding::F32 => bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        Encoding::F16 => bytes.chunks(2).map(|b| half::f16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect(),
        Encoding::Bf16 => bytes.chunks(2).map(|b| half::bf16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect(),
        Encoding::F8E4M3 => bytes.iter().map(|b| e4m3(*b)).collect(),
    }
}

/// Random bytes of rows whose numbers are finite and of ordinary size.
fn random_rows(encoding: Encoding, random: &mut Random, numbers: usize) -> Vec<u8> {
    match encoding {
        Encoding::F32 => random.numbers(numbers).iter().flat_map(|x| x.to_le_bytes()).collect(),
        Encoding::F16 => random.numbers(numbers).iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
        Encoding::Bf16 => random.numbers(numbers).iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
        Encoding::F8E4M3 => random.bytes(numbers).into_iter().map(|b| if b & 0x7f == 0x7f { 0 } else { b }).collect(),
    }
}

/// A matrix, with factors if its encoding needs them.
struct Matrix {
    encoding: Encoding,
    k: usize,
    /// After one byte that is not part of it: at an odd address.
    bytes: Vec<u8>,
    factors: Vec<f32>,
    /// Rows and columns of a block.
    block: (usize, usize),
    /// What it stands for.
    decoded: Vec<u8>,
}

impl Matrix {
    fn random(random: &mut Random, encoding: Encoding, rows: usize, k: usize, block: (usize, usize)) -> Matrix {
        let body = random_rows(encoding, random, rows * k);
        let mut values = decode(encoding, &body);
        let mut factors = Vec::new();
        if !encoding.is_complete() {
            let across = k.div_ceil(block.1);
            factors = random.numbers(rows.div_ceil(block.0) * across);
            for (i, value) in values.iter_mut().enumerate() {
                *value *= factors[i / k / block.0 * across + i % k / block.1];
            }
        }
        let decoded = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Matrix { encoding, k, bytes: [vec![0xee], body].concat(), factors, block, decoded }
    }

    fn tile(&self, first: usize, rows: usize) -> Tile<'_> {
        let row = self.encoding.bytes(self.k);
        let (row_block, col_block) = self.block;
        let scales = Scales { values: &self.factors, row_block, col_block, first_row: first };
        let scales = (!self.encoding.is_complete()).then_some(scales);
        Tile { bytes: &self.bytes[1 + first * row..][..rows * row], encoding: self.encoding, k: self.k, scales }
    }

    fn plain(&self) -> Tile<'_> {
        Tile { bytes: &self.decoded, encoding: Encoding::F32, k: self.k, scales: None }
    }
}

fn product(cpu: &mut Cpu, w: Tile<'_>, x: &[f32]) -> Vec<u32> {
    let rows = w.rows();
    let mut out = vec![f32::NAN; x.len() / w.k * rows];
    cpu.matmul(w, x, Columns { data: &mut out, stride: rows, first: 0 }, Finish::default());
    out.iter().map(|x| x.to_bits()).collect()
}

fn cpus() -> Vec<Cpu> {
    Isa::available().map(|isa| Cpu::with_isa(Some(2), isa).unwrap()).collect()
}

#[test]
fn multiplying_decodes_exactly_on_every_instruction_set() {
    let mut random = Random(1);
    let mut cpus = cpus();
    for encoding in Encoding::ALL {
        let unit = encoding.multiple();
        for (i, tokens) in [1, 2, 3, 4, 5, 7, 64, 129].into_iter().enumerate() {
            for blocks in [1, 2, 3, 5, 17, 160, 1040, 2500] {
                let k = if unit > 1 { blocks.min(9) * unit } else { blocks };
                let rows = [1, 3, 4, 70, 5, 131, 2, 66][i];
                let block = [(128, 128), (1, k), (rows, k), (3, 16)][(i + blocks) % 4];
                let matrix = Matrix::random(&mut random, encoding, rows, k, block);
                let x = random.numbers(tokens * k);
                let expected = product(&mut cpus[0], matrix.plain(), &x);
                for cpu in &mut cpus {
                    let found = product(cpu, matrix.tile(0, rows), &x);
                    assert!(
                        found == expected,
                        "{encoding} {rows}×{k}, {tokens} tokens, blocks {block:?}, {}",
                        cpu.isa()
                    );
                }
            }
        }
    }
}

#[test]
fn the_cut_into_tiles_does_not_show() {
    let mut random = Random(2);
    let mut cpu = Cpu::new(Some(2)).unwrap();
    for encoding in Encoding::ALL {
        let (rows, k) = (300, 512);
        let matrix = Matrix::random(&mut random, encoding, rows, k, (128, 128));
        for tokens in [1, 6] {
            let x = random.numbers(tokens * k);
            let whole = product(&mut cpu, matrix.tile(0, rows), &x);
            for at_once in [1, 7, 128, 150] {
                let mut out = vec![0.0; tokens * rows];
                for first in (0..rows).step_by(at_once) {
                    let tile = matrix.tile(first, at_once.min(rows - first));
                    cpu.matmul(tile, &x, Columns { data: &mut out, stride: rows, first }, Finish::default());
                }
                assert!(out.iter().map(|x| x.to_bits()).eq(whole.iter().copied()), "{encoding}, {at_once} rows a tile");
            }
        }
    }
}

#[test]
fn every_byte_of_fp8_is_what_the_format_says() {
    let all: Vec<u8> = (0..=255).collect();
    let mut x = vec![0.0; 256];
    for mut cpu in cpus() {
        for (i, byte) in all.iter().enumerate() {
            x[i] = 1.0;
            let scales = Scales { values: &[1.0], row_block: 1, col_block: 256, first_row: 0 };
            // Alone in its row, so that the NaNs do not reach the others.
            let mut row = vec![0; 256];
            row[i] = *byte;
            let tile = Tile { bytes: &row, encoding: Encoding::F8E4M3, k: 256, scales: Some(scales) };
            let found = f32::from_bits(product(&mut cpu, tile, &x)[0]);
            assert!(found == e4m3(*byte) || (found.is_nan() && e4m3(*byte).is_nan()), "{byte:#x}: {found}");
            x[i] = 0.0;
        }
    }
}

#[test]
fn rows_are_decoded_for_gathers() {
    let mut random = Random(3);
    for cpu in cpus() {
        for encoding in Encoding::ALL.into_iter().filter(|encoding| encoding.is_complete()) {
            let bytes = random_rows(encoding, &mut random, 4 * 256);
            let expected = decode(encoding, &bytes);
            let mut out = vec![f32::NAN; expected.len()];
            cpu.widen(&bytes, encoding, &mut out);
            assert!(out.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{encoding}, {}", cpu.isa());
        }
    }
}
