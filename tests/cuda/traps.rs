//! The tests can fail: each fault that can be planted in the backend (src/backend/cuda/traps.rs) is noticed, by the simulated
//! driver or in the bits.

use crate::child::Job;
use crate::parent::{End, model, run};

const TRAPS: [&str; 9] = [
    "UseBeforeCopy",
    "OverwriteBeforeUse",
    "HostFreedEarly",
    "DropWithoutWaiting",
    "LogitsNotWaited",
    "KvUseBeforeCopy",
    "KvOverwriteBeforeUse",
    "FreeWithoutWaiting",
    "AbandonWithoutWaiting",
];

/// Seeds that a fault may need to show.
const PATIENCE: u64 = 12;

#[test]
fn every_planted_fault_is_noticed() {
    if !cfg!(debug_assertions) {
        println!("SKIPPED: faults cannot be planted in a build without debug assertions");
        return;
    }
    let base = Job {
        model: model("llama31_gqa"),
        prompts: vec![(1..30).collect(), vec![7, 8]],
        context: 48,
        sequences: 2,
        new_tokens: 3,
        times: 2,
        ..Job::default()
    };
    let budgets = [(20_000, Some(0)), (0, None)];
    let mut jobs: Vec<Job> = budgets.map(|(vram, ram)| Job { vram: Some(vram), ram, ..base.clone() }).into();
    jobs.push(Job { stop_at: Some(100_000), ..jobs[0].clone() });
    let right = run(&jobs, &[("SEED", "1")]).done().0;
    let noticed = |name: &str, seed: u64| {
        let seed = seed.to_string();
        match run(&jobs, &[("SEED", &seed), ("LAYERSTREAM_TRAP", name)]) {
            End::Misuse(_) => true,
            End::Done(outcomes, _) => outcomes.iter().zip(&right).any(|(found, right)| found.tokens != right.tokens),
            End::Failed(what) => panic!("{name}: {what}"),
        }
    };
    assert!(!(0..PATIENCE).any(|seed| noticed("None", seed)), "a fault is noticed where there is none");
    let survivors: Vec<_> = TRAPS.into_iter().filter(|name| !(0..PATIENCE).any(|seed| noticed(name, seed))).collect();
    assert!(survivors.is_empty(), "not noticed: {survivors:?}");
}
