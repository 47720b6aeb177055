//! The CPU's operations against float64 references, and against themselves: the same bits from every instruction set,
//! number of threads, cut into tiles, and company of other tokens.

use half::{bf16, f16};
use layerstream::backend::cpu::{
    Activation, Attention, Columns, Cpu, Finish, Heads, Inputs, Isa, Mode, Norm, NormKind, Rope, RopeStyle, Sequence,
    Tile, append,
};
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

fn rms(weight: &[f32], eps: f32) -> Norm<'_> {
    Norm { kind: NormKind::Rms, weight: Some(weight), bias: None, offset: 0.0, eps }
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

/// A matrix stored as its transpose, `[inputs, outputs]`: against float64, and the same bits from every instruction set and
/// whatever tiles it comes in.
#[test]
fn transposed_matmul_is_accurate_and_the_same_however_it_is_cut() {
    let mut random = Random(11);
    let mut cpus = cpus();
    for (i, (n, inputs)) in TOKENS.iter().flat_map(|&n| [1, 3, 4, 17, 130].map(|k| (n, k))).enumerate() {
        let (outputs, float) = ([1, 15, 16, 40, 333, 8200][i % 6], floats()[i % 3]);
        let w = Matrix::random(&mut random, float, inputs, outputs);
        let x = random.numbers(n * inputs);
        let bias = (i % 2 == 0).then(|| random.numbers(outputs));
        let before = random.numbers(n * outputs);
        let mut exact = Vec::new();
        for (x, before) in x.chunks(inputs).zip(before.chunks(outputs)) {
            for o in 0..outputs {
                let start = bias.as_ref().map_or(0.0, |bias| bias[o]) as f64 + before[o] as f64;
                exact.push(
                    x.iter().enumerate().map(|(k, x)| w.values[k * outputs + o] as f64 * *x as f64).sum::<f64>()
                        + start,
                );
            }
        }
        let mut first: Option<Vec<f32>> = None;
        for cpu in &mut cpus {
            for rows in [inputs, 1, 3, 5] {
                let mut out = before.clone();
                for (t, bytes) in w.tile().bytes.chunks(rows * w.tile().row_bytes()).enumerate() {
                    let x = Inputs { data: &x, stride: inputs, first: t * rows };
                    let bias = bias.as_deref().filter(|_| t == 0);
                    cpu.matmul_transposed(
                        Tile { bytes, ..w.tile() },
                        x,
                        bias,
                        Columns { data: &mut out, stride: outputs, first: 0 },
                        Mode::Add,
                    );
                }
                let error = rms_error(&out, &exact);
                assert!(
                    error <= 1e-6 * (inputs as f64).sqrt(),
                    "{n} tokens, {inputs}×{outputs} {float:?}: error {error:e}"
                );
                assert_eq!(
                    bits(&out),
                    bits(first.get_or_insert_with(|| out.clone())),
                    "{n} tokens, {rows} rows a tile"
                );
            }
        }
        let mut stored = vec![f32::NAN; n * outputs];
        let x = Inputs { data: &x, stride: inputs, first: 0 };
        cpus[0].matmul_transposed(
            w.tile(),
            x,
            None,
            Columns { data: &mut stored, stride: outputs, first: 0 },
            Mode::Store,
        );
        let mut added = vec![0.0; n * outputs];
        cpus[0].matmul_transposed(
            w.tile(),
            x,
            None,
            Columns { data: &mut added, stride: outputs, first: 0 },
            Mode::Add,
        );
        assert_eq!(bits(&stored), bits(&added));
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
fn rms_norm_is_accurate_and_the_same_on_every_instruction_set() {
    let mut random = Random(3);
    for (n, width) in [(1, 1), (3, 40), (7, 333), (33, 1000), (2, 4096), (12, 8192)] {
        let x = random.numbers(n * width);
        let weight = random.numbers(width);
        for unit_offset in [false, true] {
            let offset = if unit_offset { 1.0 } else { 0.0 };
            let norm = Norm { offset, ..rms(&weight, 1e-5) };
            let results: Vec<Vec<f32>> = cpus()
                .iter_mut()
                .map(|cpu| {
                    let mut out = vec![0.0; n * width];
                    cpu.norm(&x, width, norm, &mut out, Mode::Store);
                    out
                })
                .collect();
            for (x, out) in x.chunks(width).zip(results[0].chunks(width)) {
                let mean = x.iter().map(|x| (*x as f64).powi(2)).sum::<f64>() / width as f64;
                for ((x, w), out) in x.iter().zip(&weight).zip(out) {
                    let w = *w as f64 + if unit_offset { 1.0 } else { 0.0 };
                    let exact = *x as f64 / (mean + 1e-5).sqrt() * w;
                    assert!((*out as f64 - exact).abs() <= 4e-7 * exact.abs() + 1e-9, "{out} {exact}");
                }
            }
            assert!(results.iter().all(|result| bits(result) == bits(&results[0])));
        }
    }
}

#[test]
fn head_norm_is_rms_norm_of_every_head() {
    let mut random = Random(4);
    let heads = Heads { count: 3, dim: 24, stride: 100 };
    let weight = random.numbers(24);
    let norm = rms(&weight, 1e-6);
    let before = random.numbers(4 * 100 + 72);
    for cpu in &mut cpus() {
        let mut after = before.clone();
        cpu.head_norm(&mut after, heads, norm);
        for (before, after) in before.chunks(100).zip(after.chunks(100)) {
            let mut expected = vec![0.0; 72];
            cpu.norm(&before[..72], 24, norm, &mut expected, Mode::Store);
            assert_eq!(after[..72], expected);
            assert_eq!(after[72..], before[72..]);
        }
    }
}

#[test]
fn rope_turns_pairs() {
    let mut random = Random(5);
    let (n, heads, rotary_dim) = (5, Heads { count: 2, dim: 16, stride: 40 }, 12);
    let angles: Vec<f32> = random.numbers(n * 6).iter().map(|a| a * 100.0).collect();
    let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
    let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
    let before = random.numbers(n * 40);
    for style in [RopeStyle::Half, RopeStyle::Interleaved] {
        for cpu in &mut cpus() {
            let mut after = before.clone();
            cpu.rope(&mut after, heads, Rope { cos: &cos, sin: &sin, start: 0, rotary_dim, style });
            let mut expected = before.clone();
            for t in 0..n {
                for head in 0..2 {
                    for i in 0..6 {
                        let (a, b) = match style {
                            RopeStyle::Half => (i, i + 6),
                            RopeStyle::Interleaved => (2 * i, 2 * i + 1),
                        };
                        let (a, b) = (t * 40 + head * 16 + a, t * 40 + head * 16 + b);
                        let (c, s) = (cos[t * 6 + i], sin[t * 6 + i]);
                        expected[a] = before[a] * c - before[b] * s;
                        expected[b] = before[b] * c + before[a] * s;
                    }
                }
            }
            assert_eq!(bits(&after), bits(&expected), "{style:?}");
        }
    }
}

#[test]
fn silu_is_accurate_everywhere() {
    let mut gate: Vec<f32> = (-120_000..120_000).map(|i| i as f32 / 1000.0).collect();
    gate.extend([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-40, -1e-40, 0.0, -0.0, 3e38, -3e38]);
    let up: Vec<f32> = Random(6).numbers(gate.len());
    let mut results = Vec::new();
    for cpu in &mut cpus() {
        let mut out = gate.clone();
        cpu.glu(Activation::Silu, &mut out, &up);
        for ((x, up), out) in gate.iter().zip(&up).zip(&out) {
            let exact = *x as f64 / (1.0 + (-*x as f64).exp()) * *up as f64;
            if x.is_nan() || *x == f32::NEG_INFINITY {
                // -inf / (1 + inf) is NaN in Hugging Face's float32 too.
                assert!(out.is_nan(), "silu({x}) * {up} = {out}");
            } else if x.is_infinite() {
                assert_eq!(*out, up * f32::INFINITY);
            } else {
                let allowed = 3e-7 * exact.abs() + 1e-36;
                assert!((*out as f64 - exact).abs() <= allowed, "silu({x}) * {up} = {out}, not {exact}");
            }
        }
        results.push(bits(&out));
    }
    assert!(results.iter().all(|result| *result == results[0]));
}

/// A cache of random keys and values, and queries that look into it.
struct Lookup {
    shape: Attention<'static>,
    start: usize,
    q: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Lookup {
    /// Keys after the last position are NaN: nobody may look at them.
    fn random(random: &mut Random, shape: Attention<'static>, start: usize, n: usize) -> Lookup {
        let (capacity, dim) = (start + n + 5, shape.key_dim);
        let mut lookup = Lookup {
            shape,
            start,
            q: random.numbers(n * shape.q_stride).iter().map(|q| q * 4.0).collect(),
            keys: vec![f32::NAN; shape.kv_heads * capacity * dim],
            values: vec![f32::NAN; shape.kv_heads * capacity * dim],
        };
        for cache in [&mut lookup.keys, &mut lookup.values] {
            let stride = shape.kv_heads * dim + 3;
            let rows = random.numbers((start + n) * stride);
            append(&rows[..start * stride], stride, shape.kv_heads, dim, 0, cache);
            append(&rows[start * stride..], stride, shape.kv_heads, dim, start, cache);
        }
        lookup
    }

    fn n(&self) -> usize {
        self.q.len() / self.shape.q_stride
    }

    fn width(&self) -> usize {
        self.shape.heads * self.shape.value_dim
    }

    fn sequence(&self, first_row: usize, start: usize, n: usize) -> Sequence<'_> {
        Sequence { rows: first_row..first_row + n, start, keys: &self.keys, values: &self.values }
    }

    fn attend(&self, cpu: &mut Cpu) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.n() * self.width()];
        cpu.attention(&self.q, &[self.sequence(0, self.start, self.n())], self.shape, &mut out);
        out
    }

    /// Straight from the definition, with sums and exponentials in the type that the closures use.
    fn reference(&self, round: impl Fn(f64) -> f64) -> Vec<f64> {
        let Attention { heads, kv_heads, key_dim: dim, q_stride, scale, window, .. } = self.shape;
        let capacity = self.keys.len() / kv_heads / dim;
        let mut out = Vec::new();
        for t in 0..self.n() {
            let position = self.start + t;
            let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
            for head in 0..heads {
                let q = &self.q[t * q_stride + head * dim..][..dim];
                let at = |j: usize| ((head / (heads / kv_heads)) * capacity + j) * dim;
                let scores: Vec<f64> = (first..=position)
                    .map(|j| {
                        let key = &self.keys[at(j)..][..dim];
                        let dot = q.iter().zip(key).fold(0.0, |sum, (q, k)| round(sum + round(*q as f64 * *k as f64)));
                        round(dot * scale as f64)
                    })
                    .collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| round((s - top).exp())).collect();
                let total = weights.iter().fold(0.0, |sum, w| round(sum + w));
                for d in 0..dim {
                    let sum = (first..=position)
                        .zip(&weights)
                        .fold(0.0, |sum, (j, w)| round(sum + round(round(w / total) * self.values[at(j) + d] as f64)));
                    out.push(sum);
                }
            }
        }
        out
    }
}

fn shape(heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) -> Attention<'static> {
    let scale = 1.0 / (head_dim as f32).sqrt();
    Attention {
        heads,
        kv_heads,
        key_dim: head_dim,
        value_dim: head_dim,
        q_stride: heads * head_dim + 7,
        scale,
        window,
        chunk: None,
        soft_cap: None,
        sinks: None,
        slopes: None,
    }
}

#[test]
fn attention_is_accurate_and_the_same_on_every_instruction_set() {
    let mut random = Random(7);
    let mut cpus = cpus();
    let cases = [
        (shape(1, 1, 8, None), 0, 1),
        (shape(2, 2, 32, None), 0, 70),
        (shape(4, 2, 64, None), 63, 3),
        (shape(4, 1, 64, Some(10)), 60, 17),
        (shape(3, 1, 72, Some(64)), 100, 65),
        (shape(2, 1, 80, Some(1)), 5, 9),
        (shape(6, 2, 96, None), 200, 1),
        (shape(4, 2, 100, Some(30)), 80, 40),
        (shape(3, 3, 20, None), 60, 19),
        (shape(8, 2, 128, None), 300, 33),
        (shape(8, 2, 128, Some(100)), 64, 129),
        (shape(7, 1, 192, None), 127, 2),
        (shape(2, 2, 256, Some(65)), 190, 8),
    ];
    for (shape, start, n) in cases {
        let lookup = Lookup::random(&mut random, shape, start, n);
        let exact = lookup.reference(|x| x);
        let naive: Vec<f32> = lookup.reference(|x| x as f32 as f64).iter().map(|x| *x as f32).collect();
        let results: Vec<Vec<f32>> = cpus.iter_mut().map(|cpu| lookup.attend(cpu)).collect();
        let error = rms_error(&results[0], &exact);
        let allowed = 2.0 * rms_error(&naive, &exact) + f32::EPSILON as f64 * 0.1;
        assert!(error <= allowed, "{shape:?}: error {error:e}, allowed {allowed:e}");
        for (cpu, result) in cpus.iter().zip(&results) {
            assert_eq!(bits(result), bits(&results[0]), "{shape:?}, {:?}", cpu.isa());
        }
    }
}

#[test]
fn attention_bits_do_not_depend_on_company() {
    let mut random = Random(8);
    for shape in [shape(4, 4, 64, None), shape(6, 2, 80, Some(50)), shape(2, 1, 100, None), shape(8, 1, 128, None)] {
        let a = Lookup::random(&mut random, shape, 90, 61);
        let b = Lookup::random(&mut random, shape, 3, 20);
        let mut cpu = Cpu::new(Some(1)).unwrap();
        let (alone, other) = (a.attend(&mut cpu), b.attend(&mut cpu));
        for threads in [2, 3] {
            assert_eq!(bits(&a.attend(&mut Cpu::new(Some(threads)).unwrap())), bits(&alone));
        }
        // In blocks of every size.
        for size in [1, 2, 7, 16, 40] {
            let mut out = vec![0.0; alone.len()];
            for first in (0..a.n()).step_by(size) {
                let sequence = a.sequence(first, a.start + first, size.min(a.n() - first));
                cpu.attention(&a.q, &[sequence], shape, &mut out);
            }
            assert_eq!(bits(&out), bits(&alone), "{size} at a time");
        }
        // With another sequence.
        let q = [b.q.as_slice(), a.q.as_slice()].concat();
        let mut out = vec![0.0; other.len() + alone.len()];
        let sequences = [a.sequence(b.n(), a.start, a.n()), b.sequence(0, b.start, b.n())];
        cpu.attention(&q, &sequences, shape, &mut out);
        assert_eq!(bits(&out[..other.len()]), bits(&other));
        assert_eq!(bits(&out[other.len()..]), bits(&alone));
    }
}

#[test]
fn a_query_is_not_harmed_by_what_it_cannot_see() {
    let shape = Attention { scale: 1.0, ..shape(2, 1, 16, Some(3)) };
    let mut lookup = Lookup::random(&mut Random(9), shape, 0, 12);
    let clean = lookup.attend(&mut Cpu::new(Some(1)).unwrap());
    for j in [4, 5] {
        lookup.keys[j * 16..(j + 1) * 16].fill(f32::INFINITY);
        lookup.values[j * 16..(j + 1) * 16].fill(f32::NAN);
    }
    for cpu in &mut cpus() {
        let out = lookup.attend(cpu);
        let width = lookup.width();
        for t in 0..12 {
            let (out, clean) = (&out[t * width..(t + 1) * width], &clean[t * width..(t + 1) * width]);
            if (4..8).contains(&t) {
                assert!(out.iter().all(|x| x.is_nan()), "row {t}");
            } else {
                assert_eq!(bits(out), bits(clean), "row {t}");
            }
        }
    }
}

#[test]
fn a_score_of_minus_infinity_weighs_nothing() {
    let shape = Attention { scale: 1.0, ..shape(1, 1, 8, None) };
    let mut lookup = Lookup::random(&mut Random(10), shape, 0, 70);
    lookup.q.iter_mut().for_each(|q| *q = q.abs() + 0.1);
    // A whole block that weighs nothing, then keys that do.
    for key in lookup.keys.chunks_mut(8).take(64) {
        key.fill(f32::NEG_INFINITY);
    }
    let expected: Vec<f32> = lookup.values[64 * 8..65 * 8].to_vec();
    for cpu in &mut cpus() {
        let out = lookup.attend(cpu);
        assert_eq!(out[64 * 8..65 * 8], expected);
        assert!(out[..64 * 8].iter().all(|x| x.is_nan()), "nothing to see");
    }
}
