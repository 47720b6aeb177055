//! Random blocks of GGUF's encodings, and their numbers in float64 by the definitions of llama.cpp's ggml-common.h, written
//! without a look at the kernels' decoders.

use half::f16;
use rand::RngExt;

use super::Check;
use crate::launch::gemm::Encoding;

/// Blocks of `len` numbers together.
pub fn random(check: &mut Check, encoding: Encoding, len: usize) -> (Vec<u8>, Vec<f64>) {
    assert!(len.is_multiple_of(encoding.multiple()), "whole blocks");
    let (mut bytes, mut numbers) = (Vec::new(), Vec::new());
    for _ in 0..len / encoding.multiple() {
        let (block, values) = one(check, encoding);
        bytes.extend(block);
        numbers.extend(values);
    }
    (bytes, numbers)
}

fn one(check: &mut Check, encoding: Encoding) -> (Vec<u8>, Vec<f64>) {
    let mut random = |len: usize| (0..len).map(|_| check.rng.random()).collect::<Vec<u8>>();
    match encoding {
        Encoding::Q8_0 => {
            let q = random(32);
            let scale = factor(check, 0.02);
            let numbers = q.iter().map(|q| scale.to_f64() * f64::from(*q as i8)).collect();
            (join(&[&scale.to_le_bytes(), &q]), numbers)
        }
        Encoding::Q4_0 => {
            let q = random(16);
            let scale = factor(check, 0.2);
            let low = q.iter().map(|q| q & 15);
            let both = low.chain(q.iter().map(|q| q >> 4));
            let numbers = both.map(|q| scale.to_f64() * (f64::from(q) - 8.0)).collect();
            (join(&[&scale.to_le_bytes(), &q]), numbers)
        }
        Encoding::Q4_1 => {
            let q = random(16);
            let (scale, added) = (factor(check, 0.2), factor(check, 1.5));
            let low = q.iter().map(|q| q & 15);
            let both = low.chain(q.iter().map(|q| q >> 4));
            let numbers = both.map(|q| scale.to_f64() * f64::from(q) - added.to_f64()).collect();
            (join(&[&scale.to_le_bytes(), &(-added).to_le_bytes(), &q]), numbers)
        }
        Encoding::Q5_0 => {
            let (high, q) = (random(4), random(16));
            let scale = factor(check, 0.1);
            let numbers = five(&high, &q).map(|q| scale.to_f64() * (q - 16.0)).collect();
            (join(&[&scale.to_le_bytes(), &high, &q]), numbers)
        }
        Encoding::Q5_1 => {
            let (high, q) = (random(4), random(16));
            let (scale, added) = (factor(check, 0.1), factor(check, 1.5));
            let numbers = five(&high, &q).map(|q| scale.to_f64() * q - added.to_f64()).collect();
            (join(&[&scale.to_le_bytes(), &(-added).to_le_bytes(), &high, &q]), numbers)
        }
        Encoding::Q4K => {
            let (packed, q) = (random(12), random(128));
            let (head, runs) = run_scales(check, &packed);
            let number = |i: usize| {
                let byte = q[i / 64 * 32 + i % 32];
                let four = if (i / 32).is_multiple_of(2) { byte & 15 } else { byte >> 4 };
                runs[i / 32].0 * f64::from(four) - runs[i / 32].1
            };
            (join(&[&head, &packed, &q]), (0..256).map(number).collect())
        }
        Encoding::Q5K => {
            let (packed, high, q) = (random(12), random(32), random(128));
            let (head, runs) = run_scales(check, &packed);
            let number = |i: usize| {
                let byte = q[i / 64 * 32 + i % 32];
                let four = if (i / 32).is_multiple_of(2) { byte & 15 } else { byte >> 4 };
                let fifth = high[i % 32] >> (i / 32) & 1;
                runs[i / 32].0 * f64::from(four + 16 * fifth) - runs[i / 32].1
            };
            (join(&[&head, &packed, &high, &q]), (0..256).map(number).collect())
        }
        Encoding::Q6K => {
            let (low, high, scales) = (random(128), random(64), random(16));
            let scale = factor(check, 0.0005);
            let number = |i: usize| {
                // Each half of the block: four runs of 32, of which two share each 32 bytes of lower bits.
                let (half, run, j) = (i / 128, i % 128 / 32, i % 32);
                let byte = low[64 * half + 32 * (run % 2) + j];
                let four = if run < 2 { byte & 15 } else { byte >> 4 };
                let two = high[32 * half + j] >> (2 * run) & 3;
                scale.to_f64() * f64::from(scales[i / 16] as i8) * (f64::from(four + 16 * two) - 32.0)
            };
            (join(&[&low, &high, &scales, &scale.to_le_bytes()]), (0..256).map(number).collect())
        }
        other => panic!("{other:?} has no blocks"),
    }
}

/// 32 numbers of five bits: the fifth ones in a word, as llama.cpp's dequantize_row_q5_0 shifts it.
fn five(high: &[u8], q: &[u8]) -> impl Iterator<Item = f64> {
    let high = u32::from_le_bytes(high.try_into().expect("four bytes"));
    (0..32).map(move |i| {
        let four = if i < 16 { q[i] & 15 } else { q[i - 16] >> 4 };
        f64::from(u32::from(four) | (high >> i & 1) << 4)
    })
}

/// The scale and the minimum of each run of a block, and the two factors that go before what is packed.
fn run_scales(check: &mut Check, packed: &[u8]) -> (Vec<u8>, Vec<(f64, f64)>) {
    let (scale, minimum) = (factor(check, 0.004), factor(check, 0.02));
    // llama.cpp's get_scale_min_k4.
    let six = |run: usize| match run {
        0..4 => (packed[run] & 63, packed[run + 4] & 63),
        _ => {
            let shared = packed[run + 4];
            (shared & 15 | packed[run - 4] >> 6 << 4, shared >> 4 | packed[run] >> 6 << 4)
        }
    };
    let run = |run: usize| (scale.to_f64() * f64::from(six(run).0), minimum.to_f64() * f64::from(six(run).1));
    (join(&[&scale.to_le_bytes(), &minimum.to_le_bytes()]), (0..8).map(run).collect())
}

/// A factor of about this size.
fn factor(check: &mut Check, size: f32) -> f16 {
    f16::from_f32(size * check.rng.random_range(0.5f32..1.5))
}

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}
