//! Golden cases on the simulated driver, by the check that the GPU bundle makes on a real one (tests/reference/gpu.rs).

use std::fs;
use std::path::Path;

use layerstream::Device;

use crate::child::{Job, Outcome};
use crate::gpu::{self, Budget};
use crate::parent::{End, case, run};

/// Everything on the GPU, and hardly anything in memory at all. Tiles of a few rows would be right as well, but a launch of
/// theirs takes as long as one of many rows.
const BUDGETS: [Budget; 2] = [(None, None), (Some(200_000), Some(0))];

/// Cases that are not carried along: for where all golden cases are at hand.
const NOT_CARRIED: [&str; 11] = [
    "awq_int4_gemm",
    "bnb_fp4",
    "bnb_int8",
    "bnb_nf4",
    "bnb_nf4_double",
    "ct_int8_channel",
    "ct_pack_int4_asym",
    "ct_pack_int4_sym",
    "gptq_int4",
    "gptq_int4_actorder",
    "qwen3_5_text",
];

/// Every golden case, each in another order of events. `CASES=falcon,/path/to/another` runs those alone.
#[test]
fn every_case_passes_the_gate_with_the_same_bits_at_every_budget() {
    let mut names: Vec<String> = fs::read_dir(case(""))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    for more in NOT_CARRIED.map(|name| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden").join(name)) {
        match more.is_dir() {
            true => names.push(more.to_str().unwrap().into()),
            false => println!("SKIPPED: {}, which is not there", more.display()),
        }
    }
    names.sort();
    if let Ok(some) = std::env::var("CASES") {
        println!("SKIPPED: all cases but {some}");
        names = some.split(',').map(String::from).collect();
    }
    let names = &names;
    let one = |i: usize| {
        let problem = problem(&case(&names[i]), i as u64);
        problem.map(|problem| format!("{}: {problem}", names[i])).inspect(|problem| println!("{problem}"))
    };
    let problems: Vec<String> = std::thread::scope(|scope| {
        let part = move |part: usize| (part..names.len()).step_by(2).filter_map(one).collect::<Vec<_>>();
        let threads = [0, 1].map(|number| scope.spawn(move || part(number)));
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// What is wrong with a case, in the order of events of this seed.
pub fn problem(case: &Path, seed: u64) -> Option<String> {
    let job = Job { model: case.to_str().unwrap().into(), golden: true, ..Job::default() };
    match run(&[job], &[("SEED", &seed.to_string())]) {
        End::Done(outcomes, _) => outcomes[0].errors.first().cloned(),
        other => Some(format!("{other:?}")),
    }
}

/// The check of one case, in the process with the driver.
pub fn check(job: &Job) -> Outcome {
    let checked = gpu::check(Path::new(&job.model), Device::Cuda(0), &BUDGETS);
    Outcome { errors: checked.err().iter().map(ToString::to_string).collect(), ..Outcome::default() }
}
