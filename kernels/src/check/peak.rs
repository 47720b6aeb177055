//! peak.cu, whose results are exact.

use rand::RngExt;

use super::{Check, Outcome};
use crate::launch::peak::{THREADS, peak};
use crate::params::{Dtype, PEAK_CHAINS, PeakParams};

/// Copies and reads of no bytes, some and more than the grid takes in one go; a few rounds of multiplies.
pub fn check(check: &mut Check) -> Outcome {
    for (blocks, pieces) in [(1, 0), (1, 1), (2, 100), (2, 512), (3, 769), (1, 1000)] {
        check.case(format!("copy and read of {pieces} pieces by {blocks} blocks"));
        let words: Vec<u32> = (0..pieces * 4).map(|_| check.rng.random_range(0..1 << 20)).collect();
        let input = check.input(&words);
        let copy = check.output(pieces * 4, Dtype::DTYPE_F32);
        let params = PeakParams {
            in_: input.cast(),
            out: copy.address as *mut _,
            bytes: (pieces * 16) as i64,
            ..PeakParams::default()
        };
        check.launch(&peak("peak_copy", blocks), &params)?;
        let as_number = |word: u32| f64::from(f32::from_bits(word));
        let expected: Vec<f64> = words.iter().map(|&word| as_number(word)).collect();
        let got = check.read(copy);
        check.same("copy", &got, &expected)?;

        let threads = blocks * THREADS;
        let folded = check.output(threads, Dtype::DTYPE_F32);
        check.launch(&peak("peak_read", blocks), &PeakParams { out: folded.address as *mut _, ..params })?;
        let mut expected = vec![0; threads];
        words.iter().enumerate().for_each(|(i, word)| expected[i / 4 % threads] ^= word);
        let expected: Vec<f64> = expected.into_iter().map(as_number).collect();
        let got = check.read(folded);
        check.same("read", &got, &expected)?;
    }
    for rounds in [0, 1, 3] {
        check.case(format!("{rounds} rounds of multiplies"));
        let out = check.output(2 * THREADS, Dtype::DTYPE_F32);
        let params = PeakParams { out: out.address as *mut _, rounds, ..PeakParams::default() };
        check.launch(&peak("peak_mma", 2), &params)?;
        let got = check.read(out);
        let times = f64::from(rounds) * f64::from(PEAK_CHAINS);
        let simt: Vec<f64> = vec![times * 64.0; 2 * THREADS];
        let mma: Vec<f64> = (0..2 * THREADS).map(|thread| times * lane_share(thread % 32)).collect();
        // Which of the two is for the device to know.
        if got != simt {
            check.same("mma", &got, &mma)?;
        }
    }
    Ok(())
}

/// The sum of the four elements of A B that a lane holds.
fn lane_share(lane: usize) -> f64 {
    let (g, t) = (lane / 4, lane % 4);
    let element = |row: usize, column: usize| -> f64 {
        let a = |k: usize| ((row + k) % 5) as f64 - 2.0;
        let b = |k: usize| ((2 * k + column) % 7) as f64 - 3.0;
        (0..16).map(|k| a(k) * b(k)).sum()
    };
    [(g, 2 * t), (g, 2 * t + 1), (g + 8, 2 * t), (g + 8, 2 * t + 1)].iter().map(|&(r, c)| element(r, c)).sum()
}
