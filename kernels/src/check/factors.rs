//! factors.cu against float64: factors as each form of quantised checkpoint has them, whole and a run of their elements.

use rand::RngExt;

use super::{Check, Outcome, SIZES};
use crate::launch::factors::{factors, naive};
use crate::params::{Dtype, FactorParams, FactorRole};

/// Elements as they are stored, how many there are and bytes of each, and what they are for: [outputs].
struct Stored {
    bytes: Vec<u8>,
    elements: usize,
    truth: Vec<f64>,
}

/// Every role, of every size, with ends that are not whole.
pub fn check(check: &mut Check) -> Outcome {
    for role in 0..7 {
        for size in SIZES {
            for repeat in [1, 3] {
                case(check, FactorRole(role), size, repeat)?;
            }
        }
    }
    Ok(())
}

fn case(check: &mut Check, role: FactorRole, size: usize, repeat: usize) -> Outcome {
    check.case(format!("factors {role:?}, {size} of them, each for {repeat}"));
    let mut params = FactorParams { role, repeat: repeat as i32, divisor: 1.0, ..FactorParams::default() };
    let Stored { bytes, elements, truth } = stored(check, &mut params, size, repeat);
    params.outputs = truth.len() as i32;
    let each = bytes.len() / elements;
    let some = check.rng.random_range(0..elements);
    for (first, end) in [(0, elements), (some, elements), (some / 2, some + 1)] {
        params.in_ = check.input(&bytes[first * each..end * each]).cast();
        (params.first, params.count) = (first as i32, (end - first) as i32);
        let mut got = [Vec::new(), Vec::new()];
        for (got, launch) in got.iter_mut().zip([factors, naive]) {
            let out = check.output(truth.len(), Dtype::DTYPE_F32);
            params.out = out.address as *mut _;
            check.launch(&launch(&params), &params)?;
            *got = check.read(out);
        }
        let [got, twin] = got;
        // The twin looks from the other side, so that the two agree about what is written.
        if let Some(at) = (0..truth.len()).find(|at| got[*at].is_nan() != twin[*at].is_nan()) {
            return Err(check.failure(&format!("output {at} is {} and {} by the twin", got[at], twin[at])));
        }
        let written: Vec<usize> = (0..truth.len()).filter(|at| !got[*at].is_nan()).collect();
        if written.is_empty() || (end - first == elements && written.len() < truth.len()) {
            return Err(check.failure(&format!("{} of {} outputs were written", written.len(), truth.len())));
        }
        let of = |values: &[f64]| written.iter().map(|at| values[*at]).collect::<Vec<_>>();
        check.gate("factors", &of(&got), &of(&twin), &of(&truth), Dtype::DTYPE_F32)?;
    }
    Ok(())
}

/// Random elements for about so many outputs.
fn stored(check: &mut Check, params: &mut FactorParams, size: usize, repeat: usize) -> Stored {
    let outputs = size * repeat - (repeat - 1) / 2;
    let bytes: Vec<u8> = (0..size).map(|_| check.rng.random()).collect();
    let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    match params.role {
        FactorRole::FACTOR_WORDS => {
            let values = check.normal(size);
            Stored { bytes: floats(&values), elements: size, truth: values.into_iter().map(f64::from).collect() }
        }
        FactorRole::FACTOR_SCALES => {
            params.dtype = check.pick(&[Dtype::DTYPE_F32, Dtype::DTYPE_F16, Dtype::DTYPE_BF16]);
            params.divisor = check.pick(&[1.0, 127.0]);
            let values = check.normal(size);
            let bytes: Vec<u8> = values.iter().flat_map(|v| super::encode(*v, params.dtype)).collect();
            let exact = super::decode(&bytes, params.dtype);
            let truth = (0..outputs).map(|o| exact[o / repeat] / f64::from(params.divisor)).collect();
            Stored { bytes, elements: size, truth }
        }
        FactorRole::FACTOR_CODED_SCALES => {
            (params.block, params.offset) = (check.pick(&[1, 4, 256]), 0.25);
            let block = params.block as usize;
            let (book, outer) = (check.normal(256), check.normal(size.div_ceil(block)));
            (params.codebook, params.block_scales) = (check.input(&book), check.input(&outer));
            let scale = |i: usize| f64::from(book[usize::from(bytes[i])]) * f64::from(outer[i / block]) + 0.25;
            let truth = (0..outputs).map(|o| scale(o / repeat)).collect();
            Stored { bytes, elements: size, truth }
        }
        FactorRole::FACTOR_BYTE_ZEROS => {
            let truth = (0..outputs).map(|o| f64::from(bytes[o / repeat] as i8)).collect();
            Stored { bytes, elements: size, truth }
        }
        FactorRole::FACTOR_ROW_ZEROS => {
            let (bits, across) = (check.pick(&[4, 8]), check.pick(&[1, 3]));
            (params.bits, params.rows) = (bits as i32, size as i32);
            let per_word = 32 / bits;
            let codes = codes(check, size * across, bits);
            // What fills the last words is never looked at.
            let code = |row: usize, i: usize| codes.get(row * across + i).copied().unwrap_or(1);
            let words = (0..size.div_ceil(per_word)).flat_map(|w| (0..across).map(move |i| (w, i)));
            let words = words.map(|(w, i)| word((0..per_word).map(|r| code(w * per_word + r, i)), bits));
            let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
            let middle = f64::from(1 << (bits - 1));
            let truth = (0..size * across * repeat).map(|o| f64::from(codes[o / repeat]) - middle).collect();
            Stored { elements: bytes.len() / 4, bytes, truth }
        }
        FactorRole::FACTOR_GPTQ_ZEROS => {
            let (bits, more) = (check.pick(&[4, 8]), check.pick(&[0, 1]));
            (params.bits, params.more) = (bits as i32, more);
            let codes = codes(check, size * (32 / bits), bits);
            let words = codes.chunks(32 / bits).map(|codes| word(codes.iter().copied(), bits));
            let truth = codes.iter().map(|code| f64::from((code + more as u32) % (1 << bits))).collect();
            Stored { bytes: words.flat_map(u32::to_le_bytes).collect(), elements: size, truth }
        }
        FactorRole::FACTOR_AWQ_ZEROS => {
            let codes = codes(check, size * 8, 4);
            let order = [0, 2, 4, 6, 1, 3, 5, 7];
            let words = codes.chunks(8).map(|codes| word(order.iter().map(|i| codes[*i]), 4));
            let truth = codes.iter().map(|code| f64::from(*code)).collect();
            Stored { bytes: words.flat_map(u32::to_le_bytes).collect(), elements: size, truth }
        }
        other => panic!("{other:?} is no role"),
    }
}

fn codes(check: &mut Check, len: usize, bits: usize) -> Vec<u32> {
    (0..len).map(|_| check.rng.random_range(0..1 << bits)).collect()
}

/// Codes from the lowest bits up.
fn word(codes: impl Iterator<Item = u32>, bits: usize) -> u32 {
    codes.enumerate().fold(0, |word, (i, code)| word | code << (bits * i))
}
