//! Every encoding of weights against a decoder that is written down plainly here: decoding inside the multiply gives the
//! very bits that multiplying with the decoded matrix gives, on every instruction set, for any number of tokens, however
//! the matrix is cut.

use layerstream::backend::cpu::{Columns, Cpu, Finish, Isa, Scales, Tile};
use layerstream::encoding::{Encoding, FP4, NF4, Packed, scale_map};

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

/// One E2M1 by the definition of the format.
fn e2m1(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 1 & 3), f32::from(bits & 1));
    let magnitude = if exponent == 0 { mantissa / 2.0 } else { (1.0 + mantissa / 2.0) * 2f32.powi(exponent - 1) };
    if bits & 8 != 0 { -magnitude } else { magnitude }
}

/// The numbers of some rows of `k`, before factors.
fn decode(encoding: Encoding, bytes: &[u8], k: usize) -> Vec<f32> {
    match encoding {
        Encoding::Packed(packed) => bytes.chunks(encoding.bytes(k)).flat_map(|row| unpack(packed, row, k)).collect(),
        Encoding::F32 => bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        Encoding::F16 => bytes.chunks(2).map(|b| half::f16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect(),
        Encoding::Bf16 => bytes.chunks(2).map(|b| half::bf16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect(),
        Encoding::F8E4M3 => bytes.iter().map(|b| e4m3(*b)).collect(),
        Encoding::Q8_0 => bytes.chunks(34).flat_map(q8_0).collect(),
        Encoding::Q4_0 => bytes.chunks(18).flat_map(q4_0).collect(),
        Encoding::Q4_1 => bytes.chunks(20).flat_map(q4_1).collect(),
        Encoding::Q5_0 => bytes.chunks(22).flat_map(q5_0).collect(),
        Encoding::Q5_1 => bytes.chunks(24).flat_map(q5_1).collect(),
        Encoding::Q4K => bytes.chunks(144).flat_map(|block| q4_k_or_q5_k(block, None, &block[16..])).collect(),
        Encoding::Q5K => bytes.chunks(176).flat_map(|b| q4_k_or_q5_k(b, Some(&b[16..48]), &b[48..])).collect(),
        Encoding::Q6K => bytes.chunks(210).flat_map(q6_k).collect(),
        Encoding::Mxfp4 => bytes.iter().flat_map(|b| [e2m1(b & 15), e2m1(b >> 4)]).collect(),
        Encoding::Int8 => bytes.iter().map(|b| f32::from(*b as i8)).collect(),
        Encoding::Offset8 => bytes.iter().map(|b| f32::from(*b) - 128.0).collect(),
        Encoding::Offset4 => bytes.iter().flat_map(|b| [b & 15, b >> 4].map(|code| f32::from(code) - 8.0)).collect(),
        Encoding::Nf4 => bytes.iter().flat_map(|b| [b >> 4, b & 15].map(|code| NF4[usize::from(code)])).collect(),
        Encoding::Fp4 => bytes.iter().flat_map(|b| [b >> 4, b & 15].map(|code| FP4[usize::from(code)])).collect(),
        other => panic!("{other} is tested in tests/cpu_kernels/grouped.rs"),
    }
}

/// A packed row: codes for whole blocks of 64 numbers, then scales.
fn unpack(packed: Packed, row: &[u8], k: usize) -> Vec<f32> {
    let float = |at: usize| f32::from_le_bytes(row[at..at + 4].try_into().unwrap());
    if let Packed::Lossless { .. } = packed {
        return unpack_lossless(row, k);
    }
    let padded = k.next_multiple_of(64);
    let nf4 = |i: usize| NF4[usize::from(if i.is_multiple_of(2) { row[i / 2] >> 4 } else { row[i / 2] & 15 })];
    let number = |i: usize| match packed {
        Packed::Int8 { block } => row[i] as i8 as f32 * float(padded + i / usize::from(block) * 4),
        Packed::Nf4 { double: false } => nf4(i) * float(padded / 2 + i / 64 * 4),
        Packed::Nf4 { double: true } => {
            let scales = k.div_ceil(64);
            let outer = padded / 2 + scales.next_multiple_of(4);
            let offset = float(outer + scales.div_ceil(256) * 4);
            nf4(i) * (scale_map()[usize::from(row[padded / 2 + i / 64])] * float(outer + i / 64 / 256 * 4) + offset)
        }
        Packed::Lossless { .. } => unreachable!("decoded above"),
    };
    (0..k).map(number).collect()
}

/// The exponents of codes 1 to 7, a count for each 256 numbers, and escapes; at the end of the row its blocks: codes of three
/// bits, then signs over mantissas.
fn unpack_lossless(row: &[u8], k: usize) -> Vec<f32> {
    let blocks = &row[row.len() - k.div_ceil(64) * 88..];
    let mut escapes = row[2 + 2 * k.div_ceil(256)..].iter();
    let number = |i: usize| {
        let block = &blocks[i / 64 * 88..];
        let bit = |b: usize| block[b / 8] >> (b % 8) & 1;
        let exponent = match (0..3).map(|b| bit(3 * (i % 64) + b) << b).sum::<u8>() {
            0 => *escapes.next().unwrap(),
            1 => row[0],
            code => row[1] + code - 2,
        };
        let byte = block[24 + i % 64];
        f32::from_bits(u32::from(byte >> 7) << 31 | u32::from(exponent) << 23 | u32::from(byte & 127) << 16)
    };
    (0..k).map(number).collect()
}

/// A row of bfloat16 in that form, with codes for the exponents `alone` and `first` to `first + 5`. What nothing says
/// anything about is not zero.
fn pack_lossless(bits: &[u16], [alone, first]: [u8; 2], room: u16) -> Vec<u8> {
    let (mut before, mut escapes, mut blocks) = (Vec::new(), Vec::new(), Vec::new());
    for (i, block) in bits.chunks(64).enumerate() {
        if i % 4 == 0 {
            before.extend((escapes.len() as u16).to_le_bytes());
        }
        let (mut codes, mut numbers) = ([0; 24], [0xee; 64]);
        for (i, bits) in block.iter().enumerate() {
            let exponent = (bits >> 7) as u8;
            let code = match exponent.wrapping_sub(first) {
                _ if exponent == alone => 1,
                above @ 0..6 => above + 2,
                _ => 0,
            };
            if code == 0 {
                escapes.push(exponent);
            }
            (0..3).for_each(|b| codes[(3 * i + b) / 8] |= (code >> b & 1) << ((3 * i + b) % 8));
            numbers[i] = (bits >> 8 & 0x80 | bits & 0x7f) as u8;
        }
        blocks.extend(codes.into_iter().chain(numbers));
    }
    assert!(escapes.len() <= usize::from(room));
    let mut row = [vec![alone, first], before, escapes].concat();
    row.resize(Packed::Lossless { escapes: room }.row_bytes(bits.len()) - blocks.len(), 0xee);
    [row, blocks].concat()
}

/// Random bytes of one packed row, with scales of ordinary size. What pads it is not zero.
fn random_row(packed: Packed, random: &mut Random, k: usize) -> Vec<u8> {
    if let Packed::Lossless { escapes } = packed {
        // One number in 32 has an exponent that may have no code.
        let exponent = |random: &mut Random| match random.next() % 32 {
            0 => random.next() % 140,
            _ => [118, 119, 120, 121, 122, 123, 125][random.next() as usize % 7],
        };
        let bits: Vec<u16> = (0..k).map(|_| (random.next() & 0x807f | exponent(random) << 7) as u16).collect();
        return pack_lossless(&bits, [125, 118], escapes);
    }
    let mut row = random.bytes(packed.row_bytes(k));
    let from = packed.code_bytes(k)
        + if packed == (Packed::Nf4 { double: true }) { k.div_ceil(64).next_multiple_of(4) } else { 0 };
    for scale in row[from..].chunks_exact_mut(4) {
        scale.copy_from_slice(&(random.numbers(1)[0] / 16.0).to_le_bytes());
    }
    row
}

fn half_at(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn q8_0(block: &[u8]) -> Vec<f32> {
    block[2..].iter().map(|b| *b as i8 as f32 * half_at(block, 0)).collect()
}

fn q4_0(block: &[u8]) -> Vec<f32> {
    let number = |i: usize| if i < 16 { block[2 + i] & 15 } else { block[2 + i - 16] >> 4 };
    (0..32).map(|i| (number(i) as f32 - 8.0) * half_at(block, 0)).collect()
}

fn q4_1(block: &[u8]) -> Vec<f32> {
    let number = |i: usize| if i < 16 { block[4 + i] & 15 } else { block[4 + i - 16] >> 4 };
    (0..32).map(|i| number(i) as f32 * half_at(block, 0) + half_at(block, 2)).collect()
}

/// A word with the fifth bits, and sixteen bytes with the others.
fn five(bytes: &[u8], i: usize) -> f32 {
    let high = u32::from_le_bytes(bytes[..4].try_into().unwrap());
    let four = if i < 16 { bytes[4 + i] & 15 } else { bytes[4 + i - 16] >> 4 };
    (u32::from(four) | (high >> i & 1) << 4) as f32
}

fn q5_0(block: &[u8]) -> Vec<f32> {
    (0..32).map(|i| (five(&block[2..], i) - 16.0) * half_at(block, 0)).collect()
}

fn q5_1(block: &[u8]) -> Vec<f32> {
    (0..32).map(|i| five(&block[4..], i) * half_at(block, 0) + half_at(block, 2)).collect()
}

/// `high` has the fifth bits, if there are any.
fn q4_k_or_q5_k(block: &[u8], high: Option<&[u8]>, low: &[u8]) -> Vec<f32> {
    let packed = &block[4..16];
    let six = |run: usize| match run {
        0..4 => (packed[run] & 63, packed[run + 4] & 63),
        _ => {
            let (scale, minimum) = (packed[run + 4] & 15, packed[run + 4] >> 4);
            (scale | packed[run - 4] >> 6 << 4, minimum | packed[run] >> 6 << 4)
        }
    };
    let number = |i: usize| {
        let (run, at) = (i / 32, i % 32);
        let four = low[run / 2 * 32 + at] >> (4 * (run % 2)) & 15;
        four + high.map_or(0, |high| high[at] >> run & 1) * 16
    };
    (0..256)
        .map(|i| {
            let (scale, minimum) = six(i / 32);
            half_at(block, 0) * scale as f32 * number(i) as f32 - half_at(block, 2) * minimum as f32
        })
        .collect()
}

fn q6_k(block: &[u8]) -> Vec<f32> {
    (0..256)
        .map(|i| {
            let (half, quarter, at) = (i / 128, i % 128 / 32, i % 32);
            let low = block[half * 64 + quarter % 2 * 32 + at] >> (4 * (quarter / 2)) & 15;
            let high = block[128 + half * 32 + at] >> (2 * quarter) & 3;
            let scale = block[192 + i / 16] as i8 as f32 * half_at(block, 208);
            scale * ((low | high << 4) as f32 - 32.0)
        })
        .collect()
}

/// Random bytes of rows whose numbers are finite and of ordinary size.
fn random_rows(encoding: Encoding, random: &mut Random, rows: usize, k: usize) -> Vec<u8> {
    let numbers = rows * k;
    match encoding {
        Encoding::Packed(packed) => (0..rows).flat_map(|_| random_row(packed, random, k)).collect(),
        Encoding::F32 => random.numbers(numbers).iter().flat_map(|x| x.to_le_bytes()).collect(),
        Encoding::F16 => random.numbers(numbers).iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
        Encoding::Bf16 => random.numbers(numbers).iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
        Encoding::F8E4M3 => random.bytes(numbers).into_iter().map(|b| if b & 0x7f == 0x7f { 0 } else { b }).collect(),
        // Where the float16 scales of a block are.
        Encoding::Q8_0 | Encoding::Q4_0 | Encoding::Q5_0 => with_scales(random, encoding, numbers, &[0]),
        Encoding::Q4_1 | Encoding::Q5_1 | Encoding::Q4K | Encoding::Q5K => {
            with_scales(random, encoding, numbers, &[0, 2])
        }
        Encoding::Q6K => with_scales(random, encoding, numbers, &[208]),
        Encoding::Int8 | Encoding::Offset8 => random.bytes(numbers),
        Encoding::Mxfp4 | Encoding::Offset4 | Encoding::Nf4 | Encoding::Fp4 => random.bytes(numbers / 2),
        other => panic!("{other} is tested in tests/cpu_kernels/grouped.rs"),
    }
}

fn with_scales(random: &mut Random, encoding: Encoding, numbers: usize, places: &[usize]) -> Vec<u8> {
    let mut bytes = random.bytes(encoding.bytes(numbers));
    for block in bytes.chunks_mut(encoding.bytes(encoding.multiple())) {
        for at in places {
            block[*at..at + 2].copy_from_slice(&half::f16::from_f32(random.numbers(1)[0] / 16.0).to_le_bytes());
        }
    }
    bytes
}

/// A matrix, with factors if its encoding needs them.
struct Matrix {
    encoding: Encoding,
    k: usize,
    /// After one byte that is not part of it: at an odd address.
    bytes: Vec<u8>,
    factors: Vec<f32>,
    /// As many, or none.
    zeros: Vec<f32>,
    /// Of each column its block, or none.
    index: Vec<u32>,
    /// Rows and columns of a block.
    block: (usize, usize),
    /// What it stands for.
    decoded: Vec<u8>,
}

impl Matrix {
    fn random(random: &mut Random, encoding: Encoding, rows: usize, k: usize, block: (usize, usize)) -> Matrix {
        let body = random_rows(encoding, random, rows, k);
        let mut values = decode(encoding, &body, k);
        let (mut factors, mut zeros, mut index) = (Vec::new(), Vec::new(), Vec::new());
        if !encoding.is_complete() {
            let across = k.div_ceil(block.1);
            factors = random.numbers(rows.div_ceil(block.0) * across);
            let may = matches!(encoding, Encoding::Int8 | Encoding::Offset8 | Encoding::Offset4);
            if may && rows % 2 == 1 {
                zeros = random.bytes(factors.len()).iter().map(|b| f32::from(b % 16)).collect();
            }
            if may && rows % 4 > 1 {
                index = random.bytes(k).iter().map(|b| u32::from(*b) % across as u32).collect();
            }
            for (i, value) in values.iter_mut().enumerate() {
                let column = index.get(i % k).map_or(i % k / block.1, |place| *place as usize);
                let at = i / k / block.0 * across + column;
                *value = (*value - zeros.get(at).unwrap_or(&0.0)) * factors[at];
            }
        }
        let decoded = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Matrix { encoding, k, bytes: [vec![0xee], body].concat(), factors, zeros, index, block, decoded }
    }

    fn tile(&self, first: usize, rows: usize) -> Tile<'_> {
        let row = self.encoding.bytes(self.k);
        let (row_block, col_block) = self.block;
        let Matrix { factors: values, zeros, index, .. } = self;
        let scales = Scales { values, zeros, row_block, col_block, index, first_row: first };
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
            let scales = Scales { values: &[1.0], zeros: &[], row_block: 1, col_block: 256, index: &[], first_row: 0 };
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
            let bytes = random_rows(encoding, &mut random, 1, 4 * 256);
            let expected = decode(encoding, &bytes, 4 * 256);
            let mut out = vec![f32::NAN; expected.len()];
            cpu.widen(&bytes, encoding, &mut out);
            assert!(out.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{encoding}, {}", cpu.isa());
        }
    }
}

/// Codes and what they stand for, from a checkpoint that bitsandbytes wrote.
const SCALES_OF_BITSANDBYTES: [(usize, f32); 28] = [
    (0, -0.99296874),
    (1, -0.9789063),
    (2, -0.96484375),
    (17, -0.75390625),
    (40, -0.43046874),
    (64, -0.09859375),
    (77, -0.06203125),
    (96, -0.00971875),
    (111, -0.0012812499),
    (119, -0.00015625001),
    (124, -7.75e-06),
    (126, -5.5000004e-07),
    (127, 0.0),
    (128, 5.5000004e-07),
    (129, 3.2500002e-06),
    (131, 2.1249998e-05),
    (140, 0.00071875006),
    (150, 0.0052187503),
    (163, 0.02265625),
    (177, 0.06203125),
    (190, 0.09859375),
    (191, 0.107031256),
    (192, 0.12109375),
    (200, 0.23359375),
    (213, 0.41640624),
    (231, 0.6695312),
    (254, 0.99296874),
    (255, 1.0),
];

#[test]
fn the_map_of_scales_is_that_of_bitsandbytes() {
    let map = scale_map();
    assert!(map.is_sorted());
    assert_eq!(SCALES_OF_BITSANDBYTES.map(|(code, _)| map[code]), SCALES_OF_BITSANDBYTES.map(|(_, number)| number));
}

#[test]
fn every_pattern_of_bfloat16_comes_back() {
    // Among numbers that have codes, 256 of any pattern: of these, nearly all are escapes in one row and few in the next.
    for [alone, first] in [[0, 250], [255, 0], [119, 121], [7, 8], [200, 100]] {
        for start in (0..=u16::MAX).step_by(256) {
            let coded = |n: u16| (n & 0x8055) | u16::from(if n % 8 == 7 { alone } else { first + n as u8 % 6 }) << 7;
            let bits: Vec<u16> = (0..256).flat_map(|n| [start + n, coded(n), coded(3 * n), coded(7 * n)]).collect();
            // Rows of whole runs, and rows that end anywhere.
            for bits in [&bits[..], &bits[..1024 - usize::from(start / 256)]] {
                let row = pack_lossless(bits, [alone, first], 256);
                for cpu in cpus() {
                    let mut out = vec![0.0; bits.len()];
                    cpu.widen(&row, Encoding::Packed(Packed::Lossless { escapes: 256 }), &mut out);
                    let found = out.iter().map(|x| x.to_bits());
                    assert!(found.eq(bits.iter().map(|b| u32::from(*b) << 16)), "{start:#x}, {first}, {}", cpu.isa());
                }
            }
        }
    }
}

#[test]
fn a_damaged_lossless_row_is_no_more_than_other_numbers() {
    let (mut random, k) = (Random(4), 1500);
    for escapes in [0, 7, 60_000] {
        let row = random.bytes(Packed::Lossless { escapes }.row_bytes(k));
        for mut cpu in cpus() {
            let tile = Tile { bytes: &row, encoding: Encoding::Packed(Packed::Lossless { escapes }), k, scales: None };
            product(&mut cpu, tile, &random.numbers(k));
        }
    }
}
