//! Every kernel on the host build: all dialects, copies that land early and late, and every order of threads.

use layerstream_kernels::check::{Check, Outcome, gemm, mlp, moe, norm, sample};
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
fn norm_matches_float64() {
    everywhere(norm::check);
}

#[test]
fn gemm_matches_float64() {
    everywhere(gemm::check);
}

#[test]
fn gemm_rows_do_not_depend_on_their_neighbours() {
    everywhere(gemm::check_neighbours);
}

#[test]
fn glu_matches_float64() {
    everywhere(mlp::check);
}

#[test]
fn route_matches_float64() {
    everywhere(moe::check_route);
}

#[test]
fn expert_lists_are_right() {
    everywhere(moe::check_lists);
}

#[test]
fn sum_experts_matches_float64() {
    everywhere(moe::check_sum);
}

#[test]
fn experts_of_a_row_do_not_depend_on_its_neighbours() {
    everywhere(moe::check_neighbours);
}

#[test]
fn soft_cap_matches_float64() {
    everywhere(sample::check_soft_cap);
}

#[test]
fn top_k_is_right() {
    everywhere(sample::check_top_k);
}
