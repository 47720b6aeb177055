//! Every kernel on the host build: all dialects, copies that land early and late, and every order of threads.

use layerstream_kernels::check::{Check, Outcome, attention, convert, norm, rope};
use layerstream_kernels::host::{Dialect, HostDevice, Schedule};

/// Runs a check on every dialect under every schedule, each with inputs of its own.
fn everywhere(check: fn(&mut Check) -> Outcome) {
    for dialect in Dialect::ALL {
        for (seed, schedule) in Schedule::all(1).enumerate() {
            let mut device = HostDevice::new(dialect, schedule);
            if let Err(message) = check(&mut Check::new(&mut device, seed as u64)) {
                panic!("{message}");
            }
        }
    }
}

#[test]
fn attention_prefill_matches_float64() {
    everywhere(attention::check_prefill);
}

#[test]
fn attention_decode_matches_float64() {
    everywhere(attention::check_decode);
}

#[test]
fn convert_matches_float64() {
    everywhere(convert::check);
}

#[test]
fn norm_matches_float64() {
    everywhere(norm::check);
}

#[test]
fn rope_matches_float64() {
    everywhere(rope::check);
}
