//! A short run of every fuzz target: over the kept corpus, and over what becomes of it when bytes are changed, moved and put in
//! at random. No input may make a parser panic, never end, or take memory that its size does not account for. The long run,
//! which learns what its inputs reach, is `make fuzz`.

#[path = "../fuzz/src/lib.rs"]
#[allow(dead_code, reason = "the rest of it is for libFuzzer")]
mod targets;

use std::fs;
use std::path::Path;

use peak_alloc::PeakAlloc;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use targets::TARGETS;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Changed inputs for each target, if LAYERSTREAM_FUZZ_INPUTS does not say how many.
const INPUTS: u64 = 100;

/// Bytes that any input may cost: tables of a regular expression, say.
const FREE: usize = 4 << 20;
/// Bytes that a byte of the input may cost beyond that.
const EACH: usize = 200;

/// What parsers tend to trust.
const WORDS: &[&[u8]] = &[
    b"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF",
    b"\xFF\xFF\xFF\x7F",
    b"\0\0\0\0",
    b"-1",
    b"0",
    b"null",
    b"[]",
    b"{}",
    b"18446744073709551615",
    b"2147483647",
    b"1e308",
    b"\"",
    b"{{",
    b"%}",
];

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a whole number"))
}

/// A few changes at once.
fn change(bytes: &mut Vec<u8>, other: &[u8], random: &mut ChaCha8Rng) {
    for _ in 0..random.random_range(1..5) {
        let at = random.random_range(0..=bytes.len());
        let some = |len: usize, random: &mut ChaCha8Rng| {
            let start = random.random_range(0..=len);
            start..random.random_range(start..=len.min(start + 40))
        };
        match random.random_range(0..6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            1 if at < bytes.len() => bytes[at] = random.random(),
            2 => drop(bytes.drain(some(bytes.len(), random))),
            3 => {
                let part = other[some(other.len(), random)].to_vec();
                bytes.splice(at..at, part);
            }
            4 => {
                let word = WORDS[random.random_range(0..WORDS.len())];
                let end = bytes.len().min(at + random.random_range(0..=word.len()));
                bytes.splice(at..end, word.iter().copied());
            }
            _ => bytes.truncate(at),
        }
    }
}

/// All targets in one test, so that the memory is that of one input.
#[test]
fn no_input_is_too_much() {
    let (seed, inputs) = (number("LAYERSTREAM_FUZZ_SEED", 1), number("LAYERSTREAM_FUZZ_INPUTS", INPUTS));
    println!("seed {seed} (LAYERSTREAM_FUZZ_SEED), {inputs} inputs for each target (LAYERSTREAM_FUZZ_INPUTS)");
    for (name, target) in TARGETS {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let mut paths: Vec<_> = fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let corpus: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
        assert!(!corpus.is_empty(), "{name} has no corpus");
        // What libraries panic at and is caught needs no backtrace, which takes memory.
        targets::panics_may_be_caught();
        // What is made once and stays is none of an input's.
        target(&corpus[0]);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut most = 0;
        for number in 0..corpus.len() as u64 + inputs {
            let mut bytes = corpus[number as usize % corpus.len()].clone();
            if number >= corpus.len() as u64 {
                let other = &corpus[random.random_range(0..corpus.len())];
                change(&mut bytes, other, &mut random);
            }
            let before = MEMORY.current_usage();
            MEMORY.reset_peak_usage();
            let panic = std::panic::catch_unwind(|| target(&bytes)).err();
            let used = MEMORY.peak_usage().saturating_sub(before);
            let allowed = FREE + EACH * bytes.len();
            if panic.is_some() || used > allowed {
                drop(std::panic::take_hook());
                let problem = match panic {
                    Some(panic) => format!("panics: {:?}", panic.downcast_ref::<String>()),
                    None => format!("takes {used} bytes of memory"),
                };
                let text = String::from_utf8_lossy(&bytes);
                panic!("{name}: input {number} of seed {seed}, {} bytes, {problem}: {text:?}", bytes.len());
            }
            most = most.max(used);
        }
        drop(std::panic::take_hook());
        println!("{name}: {} kept inputs, {inputs} changed ones, at most {most} bytes of memory", corpus.len());
    }
}
