//! Every kernel on the host build: all dialects, copies that land early and late, and every order of threads.

use layerstream_kernels::check::{Check, Outcome};
use layerstream_kernels::every_check;
use layerstream_kernels::host::{Dialect, HostDevice, Schedule};

/// Runs a check under every schedule, each with inputs of its own.
fn under_every_schedule(dialect: Dialect, check: fn(&mut Check) -> Outcome) {
    for (seed, schedule) in Schedule::all(1).enumerate() {
        let mut device = HostDevice::new(dialect, schedule);
        if let Err(message) = check(&mut Check::new(&mut device, seed as u64)) {
            panic!("{message}");
        }
    }
}

/// One test a dialect for each check.
macro_rules! on_every_dialect {
    ($($name:ident: $check:path;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn sm_75() {
                under_every_schedule(Dialect::Sm75, $check);
            }

            #[test]
            fn sm_80() {
                under_every_schedule(Dialect::Sm80, $check);
            }

            #[test]
            fn sm_90() {
                under_every_schedule(Dialect::Sm90, $check);
            }
        }
    )*};
}

every_check!(on_every_dialect);
