//! Products with matrices in words of a few bits, stored as their transposes (GPTQ, AWQ), against float64.

use layerstream::backend::cpu::{Columns, Finish, GroupedTile, Inputs, Mode};
use layerstream::encoding::Encoding;

use super::{Random, TOKENS, bits, cpus, rms_error};

/// A matrix as a checkpoint stores it, at an odd address, and its numbers.
struct Words {
    encoding: Encoding,
    outputs: usize,
    bytes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<f32>,
    index: Vec<u32>,
    /// `[inputs, outputs]`
    values: Vec<f64>,
}

impl Words {
    fn random(random: &mut Random, encoding: Encoding, inputs: usize, outputs: usize, groups: usize) -> Words {
        let limit = if encoding == Encoding::Gptq8 { 256 } else { 16 };
        let mut below = |limit: usize| ((random.number() as f64 + 1.0) / 2.0 * limit as f64) as usize % limit;
        let codes: Vec<usize> = (0..inputs * outputs).map(|_| below(limit)).collect();
        let zeros: Vec<f32> = (0..groups * outputs).map(|_| below(limit + 1) as f32).collect();
        // In no order, as with `desc_act`.
        let index: Vec<u32> = (0..inputs).map(|_| below(groups) as u32).collect();
        let scales = random.numbers(groups * outputs);
        let value = |(i, code): (usize, &usize)| {
            let at = index[i / outputs] as usize * outputs + i % outputs;
            (*code as f64 - zeros[at] as f64) * scales[at] as f64
        };
        let values = codes.iter().enumerate().map(value).collect();
        let mut bytes = vec![0xee];
        match encoding {
            Encoding::Awq4 => {
                // As AutoAWQ's `pack` does it.
                for codes in codes.chunks(8) {
                    let order = [0, 2, 4, 6, 1, 3, 5, 7];
                    let word = order.iter().enumerate().fold(0u32, |word, (i, o)| word | (codes[*o] as u32) << (4 * i));
                    bytes.extend(word.to_le_bytes());
                }
            }
            _ => {
                let (per_word, width) = (encoding.inputs(), 32 / encoding.inputs());
                for (row, o) in (0..inputs / per_word).flat_map(|row| (0..outputs).map(move |o| (row, o))) {
                    let code = |i: usize| codes[(row * per_word + i) * outputs + o] as u32;
                    let word = (0..per_word).fold(0u32, |word, i| word | code(i) << (width * i));
                    bytes.extend(word.to_le_bytes());
                }
            }
        }
        Words { encoding, outputs, bytes, scales, zeros, index, values }
    }

    /// Some stored rows.
    fn tile(&self, first: usize, rows: usize) -> GroupedTile<'_> {
        let Words { encoding, outputs, scales, zeros, index, .. } = self;
        let (row, inputs) = (encoding.bytes(*outputs), encoding.inputs());
        let bytes = &self.bytes[1 + first * row..1 + (first + rows) * row];
        let index = &index[first * inputs..(first + rows) * inputs];
        GroupedTile { bytes, encoding: *encoding, outputs: *outputs, scales, zeros, index }
    }
}

#[test]
fn words_are_multiplied_accurately_and_the_same_however_they_are_cut() {
    let mut random = Random(12);
    let mut cpus = cpus();
    let encodings = [Encoding::Gptq4, Encoding::Gptq8, Encoding::Awq4];
    for (i, (n, inputs)) in TOKENS.iter().flat_map(|&n| [8, 40, 136].map(|k| (n, k))).enumerate() {
        let (outputs, encoding) = ([8, 16, 40, 328, 2064][i % 5], encodings[i % 3]);
        let stored = inputs / encoding.inputs();
        let w = Words::random(&mut random, encoding, inputs, outputs, [1, 3, 5][i / 3 % 3]);
        let x = random.numbers(n * inputs);
        let bias = (i % 2 == 0).then(|| random.numbers(outputs));
        let mut exact = Vec::new();
        for x in x.chunks(inputs) {
            for o in 0..outputs {
                let products = x.iter().enumerate().map(|(k, x)| w.values[k * outputs + o] * *x as f64);
                exact.push(products.sum::<f64>() + bias.as_ref().map_or(0.0, |bias| bias[o] as f64));
            }
        }
        let mut first: Option<Vec<u32>> = None;
        for cpu in &mut cpus {
            for rows in [stored, 1, 3] {
                let mut out = vec![f32::NAN; n * outputs];
                for start in (0..stored).step_by(rows) {
                    let x = Inputs { data: &x, stride: inputs, first: start * encoding.inputs() };
                    let columns = Columns { data: &mut out, stride: outputs, first: 0 };
                    let begins = Finish { bias: bias.as_deref(), ..Finish::default() };
                    let finish = if start == 0 { begins } else { Finish { mode: Mode::Add, ..Finish::default() } };
                    cpu.matmul_grouped(w.tile(start, rows.min(stored - start)), x, columns, finish);
                }
                let (error, largest) =
                    (rms_error(&out, &exact), if encoding == Encoding::Gptq8 { 256.0 } else { 16.0 });
                let gate = 3e-7 * largest * (inputs as f64).sqrt();
                assert!(error <= gate, "{n} tokens, {inputs}×{outputs} {encoding}: error {error:e}");
                let found = bits(&out);
                assert!(
                    first.get_or_insert_with(|| found.clone()) == &found,
                    "{n} tokens, {encoding}, {rows} rows a tile"
                );
            }
        }
    }
}
