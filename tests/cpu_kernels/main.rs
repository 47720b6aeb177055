//! The CPU's operations against float64 references, and against themselves: the same bits from every instruction set,
//! number of threads, cut into tiles, and company of other tokens.

mod attention;
mod elementwise;
mod grouped;
mod transposed;

use half::{bf16, f16};
use layerstream::backend::cpu::{Activation, Columns, Cpu, Finish, Isa, Mode, Tile};
use layerstream::encoding::Encoding;

const TOKENS: [usize; 12] = [1, 2, 3, 7, 8, 9, 16, 17, 33, 64, 65, 129];
const WIDTHS: [usize; 12] = [1, 3, 8, 15, 16, 17, 40, 64, 100, 128, 333, 1000];

/// SplitMix64, as numbers in [-1, 1).
struct Random(u64);

impl Random {
    fn number(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn numbers(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.number()).collect()
    }
}

/// A matrix as a checkpoint stores it, at an odd address, and the same numbers as float32.
struct Matrix {
    bytes: Vec<u8>,
    encoding: Encoding,
    k: usize,
    values: Vec<f32>,
}

impl Matrix {
    fn new(encoding: Encoding, k: usize, values: &[f32]) -> Matrix {
        let mut bytes = vec![0xee];
        let mut rounded = Vec::new();
        for &v in values {
            match encoding {
                Encoding::Bf16 => {
                    bytes.extend(bf16::from_f32(v).to_le_bytes());
                    rounded.push(bf16::from_f32(v).to_f32());
                }
                Encoding::F16 => {
                    bytes.extend(f16::from_f32(v).to_le_bytes());
                    rounded.push(f16::from_f32(v).to_f32());
                }
                Encoding::F32 => {
                    bytes.extend(v.to_le_bytes());
                    rounded.push(v);
                }
                other => panic!("{other} is tested in tests/encodings.rs"),
            }
        }
        Matrix { bytes, encoding, k, values: rounded }
    }

    fn random(random: &mut Random, encoding: Encoding, rows: usize, k: usize) -> Matrix {
        Matrix::new(encoding, k, &random.numbers(rows * k))
    }

    fn tile(&self) -> Tile<'_> {
        let len = self.values.len() * self.encoding.bytes(1);
        let bytes = &self.bytes[1..];
        assert!(bytes.len() == len && !bytes.as_ptr().addr().is_multiple_of(2), "weights at an odd address");
        Tile { bytes, encoding: self.encoding, k: self.k, scales: None }
    }
}

fn floats() -> [Encoding; 3] {
    [Encoding::Bf16, Encoding::F16, Encoding::F32]
}

fn cpus() -> Vec<Cpu> {
    Isa::available().map(|isa| Cpu::with_isa(Some(2), isa).unwrap()).collect()
}

fn product(cpu: &mut Cpu, w: Tile<'_>, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let rows = w.rows();
    let mut out = vec![f32::NAN; x.len() / w.k * rows];
    cpu.matmul(w, x, Columns { data: &mut out, stride: rows, first: 0 }, Finish { bias, ..Finish::default() });
    out
}

/// Bits, with every NaN alike.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).collect()
}

fn rms_error(values: &[f32], exact: &[f64]) -> f64 {
    let sum: f64 = values.iter().zip(exact).map(|(v, e)| (*v as f64 - e).powi(2)).sum();
    (sum / exact.len() as f64).sqrt()
}

#[test]
fn every_instruction_set_is_tested() {
    let names: Vec<String> = Isa::available().map(|isa| isa.to_string()).collect();
    eprintln!("instruction sets: {names:?}");
    assert_eq!(names.last().map(String::as_str), Some("portable"));
    assert_eq!(Isa::available().next(), Some(Isa::best()));
}

#[test]
fn matmul_is_accurate_and_the_same_on_every_instruction_set() {
    let mut random = Random(1);
    let mut cpus = cpus();
    let shapes = TOKENS.iter().flat_map(|&n| WIDTHS.map(|k| (n, k)));
    for (i, (n, k)) in shapes.chain([(1, 4096), (9, 4096), (65, 4096), (17, 2500), (129, 1025)]).enumerate() {
        let rows = [1, 2, 3, 4, 5, 7, 11, 64, 67, 129][i % 10];
        let float = floats()[i % 3];
        let w = Matrix::random(&mut random, float, rows, k);
        let x = random.numbers(n * k);
        let bias = (i % 2 == 0).then(|| random.numbers(rows));

        let (mut exact, mut naive) = (Vec::new(), Vec::new());
        for x in x.chunks(k) {
            for (r, w) in w.values.chunks(k).enumerate() {
                let b = bias.as_ref().map_or(0.0, |bias| bias[r]);
                exact.push(w.iter().zip(x).map(|(w, x)| *w as f64 * *x as f64).sum::<f64>() + b as f64);
                naive.push(w.iter().zip(x).map(|(w, x)| w * x).sum::<f32>() + b);
            }
        }
        let results: Vec<_> = cpus.iter_mut().map(|cpu| product(cpu, w.tile(), &x, bias.as_deref())).collect();
        let error = rms_error(&results[0], &exact);
        let allowed = 2.0 * rms_error(&naive, &exact) + f32::EPSILON as f64 * 0.1;
        assert!(error <= allowed, "{n} tokens, {rows}×{k} {float:?}: error {error:e}, allowed {allowed:e}");
        for (cpu, result) in cpus.iter().zip(&results) {
            assert_eq!(bits(result), bits(&results[0]), "{n} tokens, {rows}×{k} {float:?}, {:?}", cpu.isa());
        }
    }
}

#[test]
fn matmul_bits_do_not_depend_on_company() {
    let mut random = Random(2);
    for (i, k) in [17, 128, 1000, 4096, 2051].into_iter().enumerate() {
        let float = floats()[i % 3];
        let (rows, n) = (139, 131);
        let w = Matrix::random(&mut random, float, rows, k);
        let x = random.numbers(n * k);
        let mut one_thread = Cpu::new(Some(1)).unwrap();
        let whole = product(&mut one_thread, w.tile(), &x, None);
        for threads in [2, 3, 5] {
            let mut cpu = Cpu::new(Some(threads)).unwrap();
            assert_eq!(bits(&product(&mut cpu, w.tile(), &x, None)), bits(&whole), "{threads} threads");
        }
        // Fewer tokens.
        for n in TOKENS {
            let first = 131 - n;
            let some = product(&mut one_thread, w.tile(), &x[first * k..], None);
            assert_eq!(bits(&some), bits(&whole[first * rows..]), "the last {n} tokens, k {k}");
        }
        // Cut into tiles, written beside each other.
        for rows_of_tile in [1, 3, 8, 50] {
            let mut out = vec![0.0; n * rows];
            let tile = w.tile();
            for (i, bytes) in tile.bytes.chunks(rows_of_tile * tile.row_bytes()).enumerate() {
                let columns = Columns { data: &mut out, stride: rows, first: i * rows_of_tile };
                one_thread.matmul(Tile { bytes, ..tile }, &x, columns, Finish { mode: Mode::Add, ..Finish::default() });
            }
            assert_eq!(bits(&out), bits(&whole), "tiles of {rows_of_tile} rows");
        }
    }
}

/// More rows than any block of the arithmetic holds, for every number of tokens that is a case of its own.
#[test]
fn a_tile_of_thousands_of_rows_is_multiplied_whole_by_every_instruction_set() {
    let mut random = Random(3);
    let (k, rows) = (5, 10_007);
    for float in floats() {
        let w = Matrix::random(&mut random, float, rows, k);
        for n in [1, 2, 3, 4, 5, 7, 130] {
            let x = random.numbers(n * k);
            let results: Vec<_> = cpus().iter_mut().map(|cpu| bits(&product(cpu, w.tile(), &x, None))).collect();
            let spread: Vec<f32> = (0..n)
                .flat_map(|t| [0, rows / 2, rows - 1].map(|r| (t, r)))
                .map(|(t, r)| (0..k).map(|i| w.values[r * k + i] as f64 * x[t * k + i] as f64).sum::<f64>() as f32)
                .collect();
            let found = (0..n).flat_map(|t| [0, rows / 2, rows - 1].map(|r| f32::from_bits(results[0][t * rows + r])));
            assert!(found.zip(spread).all(|(a, b)| (a - b).abs() < 1e-5), "{n} tokens, {float:?}");
            assert!(results.iter().all(|bits| *bits == results[0]), "{n} tokens, {float:?}");
        }
    }
}

#[test]
fn matmul_adds_and_leaves_other_columns_alone() {
    let mut cpu = Cpu::new(Some(2)).unwrap();
    let w = Matrix::new(Encoding::F32, 2, &[1.0, 2.0, 3.0, 4.0]);
    let mut out = vec![10.0; 8];
    let columns = Columns { data: &mut out, stride: 4, first: 1 };
    let finish = Finish { bias: Some(&[0.5, 0.25]), mode: Mode::Add, ..Finish::default() };
    cpu.matmul(w.tile(), &[1.0, 1.0, 2.0, 0.0], columns, finish);
    assert_eq!(out, [10.0, 13.5, 17.25, 10.0, 10.0, 12.5, 16.25, 10.0]);
    let columns = Columns { data: &mut out, stride: 4, first: 0 };
    cpu.matmul(w.tile(), &[1.0, 1.0, 2.0, 0.0], columns, Finish::default());
    assert_eq!(out, [3.0, 7.0, 17.25, 10.0, 2.0, 6.0, 16.25, 10.0]);
}

#[test]
fn nothing_to_do_is_done() {
    for cpu in &mut cpus() {
        let w = Matrix::new(Encoding::Bf16, 4, &[]);
        assert!(product(cpu, w.tile(), &[1.0; 8], None).is_empty());
        let w = Matrix::new(Encoding::Bf16, 4, &[1.0; 8]);
        assert!(product(cpu, w.tile(), &[], None).is_empty());
        cpu.glu(Activation::Silu, &mut [], &[]);
    }
}

#[test]
fn not_a_number_infinity_and_subnormals_come_through() {
    for cpu in &mut cpus() {
        for n in [1, 40] {
            for float in floats() {
                let mut values = vec![0.0; 4 * 40];
                values[3] = f32::NAN;
                values[40 + 39] = f32::INFINITY;
                // The smallest subnormal of the type.
                let tiny = match float {
                    Encoding::Bf16 => f32::from_bits(1 << 16),
                    Encoding::F16 => 2.0f32.powi(-24),
                    _ => f32::from_bits(1),
                };
                values[80] = tiny;
                let w = Matrix::new(float, 40, &values);
                let out = product(cpu, w.tile(), &vec![1.0; 40 * n], None);
                for out in out.chunks(4) {
                    assert!(out[0].is_nan(), "{:?} {float:?}", cpu.isa());
                    assert_eq!(out[1..], [f32::INFINITY, tiny, 0.0], "{:?} {float:?}", cpu.isa());
                }
            }
        }
    }
}

#[test]
fn every_half_is_widened_exactly() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for cpu in cpus() {
        let mut out = vec![0.0; 1 << 16];
        cpu.widen(&all, Encoding::F16, &mut out);
        let expected: Vec<f32> = (0..=u16::MAX).map(|b| f16::from_bits(b).to_f32_const()).collect();
        assert_eq!(bits(&out), bits(&expected), "{:?}", cpu.isa());
        cpu.widen(&all, Encoding::Bf16, &mut out);
        let expected: Vec<f32> = (0..=u16::MAX).map(|b| bf16::from_bits(b).to_f32_const()).collect();
        assert_eq!(bits(&out), bits(&expected), "{:?}", cpu.isa());
        let mut some = vec![0.0; 21];
        cpu.widen(&all[6..48], Encoding::Bf16, &mut some);
        assert_eq!(bits(&some), bits(&expected[3..24]));
    }
}

#[test]
fn rows_of_weights_are_normalised_and_products_scaled() {
    let mut random = Random(11);
    for (i, (n, rows, k)) in [(1, 5, 17), (4, 9, 100), (7, 70, 333), (130, 3, 16)].into_iter().enumerate() {
        let mut values = random.numbers(rows * k);
        // A row of zeros has no direction: it stays zeros.
        values[..k].fill(0.0);
        let w = Matrix::new(floats()[i % 3], k, &values);
        let (x, bias) = (random.numbers(n * k), random.numbers(rows));
        let finish = Finish { bias: Some(&bias), scale: 0.5, normalise_rows: true, mode: Mode::Add };
        let mut exact = Vec::new();
        for x in x.chunks(k) {
            for (w, b) in w.values.chunks(k).zip(&bias) {
                let length = w.iter().map(|w| (*w as f64).powi(2)).sum::<f64>().sqrt().max(1e-12);
                let dot: f64 = w.iter().zip(x).map(|(w, x)| *w as f64 * *x as f64).sum();
                exact.push(3.0 + 0.5 * (dot / length + *b as f64));
            }
        }
        let mut first = None;
        for cpu in &mut cpus() {
            // Whole, and in tiles of two rows.
            for rows_at_once in [rows, 2] {
                let mut out = vec![3.0; n * rows];
                for (i, bytes) in w.tile().bytes.chunks(rows_at_once * w.tile().row_bytes()).enumerate() {
                    let columns = Columns { data: &mut out, stride: rows, first: i * rows_at_once };
                    let bias = &bias[i * rows_at_once..rows.min((i + 1) * rows_at_once)];
                    cpu.matmul(Tile { bytes, ..w.tile() }, &x, columns, Finish { bias: Some(bias), ..finish });
                }
                assert!(rms_error(&out, &exact) < 3e-7, "{n} tokens, {rows}×{k}: {:e}", rms_error(&out, &exact));
                assert_eq!(&bits(&out), first.get_or_insert_with(|| bits(&out)), "{:?}", cpu.isa());
            }
        }
    }
}
