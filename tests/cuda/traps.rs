//! The tests can fail: each fault that can be planted in the backend (src/backend/cuda/traps.rs) is noticed, by the simulated
//! driver or in the bits.

use crate::child::Job;
use crate::experts::synthetic;
use crate::parent::{End, model, run};

const TRAPS: [&str; 15] = [
    "UseBeforeCopy",
    "OverwriteBeforeUse",
    "HostFreedEarly",
    "DropWhileCopying",
    "PassPanics,DropWhileStepsRun",
    "LogitsNotWaited",
    "KvUseBeforeCopy",
    "KvOverwriteBeforeUse",
    "CopiesAbandoned",
    "StepsAbandoned",
    "DefaultStreamNotWaited",
    "ChosenNotWaited",
    "ExpertUseBeforeCopy",
    "ExpertOverwriteBeforeUse",
    "ExpertHostFreedEarly",
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
        prompts: vec![(1..10).collect(), vec![7, 8]],
        context: 24,
        sequences: 2,
        new_tokens: 3,
        vram: Some(50_000),
        ..Job::default()
    };
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // Of which a layer's experts are more than memory holds.
    let experts = synthetic(folder.path(), 4);
    let jobs = [
        base.clone(),
        Job { stop_at: Some(100_000), times: 2, ..base.clone() },
        // Nothing else is copied, so nothing else orders the copies of keys and values.
        Job { stream_kv: true, vram: Some(1_000_000), ..base.clone() },
        // Through the ring in host memory.
        Job {
            model: concat!(env!("CARGO_MANIFEST_DIR"), "/demo").into(),
            ram: Some(0),
            vram: Some(500_000),
            ..base.clone()
        },
        Job { model: experts, ram: Some(0), vram: Some(500_000), new_tokens: 1, ..base.clone() },
        Job { model: model("mixtral"), stop_at: Some(100_000), times: 2, ..base.clone() },
        Job { stream_kv: true, vram: Some(1_000_000), stop_at: Some(200_000), times: 2, ..base.clone() },
    ];
    // Whose first pass is stopped while tiles are under way whose places in host memory the drives would have at once: sooner or
    // later in the pass, since that is not so at every moment.
    let stopped = |at: u64| Job {
        model: concat!(env!("CARGO_MANIFEST_DIR"), "/demo").into(),
        ram: Some(0),
        vram: Some(500_000),
        stop_at: Some(at),
        times: 2,
        ..base.clone()
    };
    let stopped = [200_000, 400_000, 700_000, 1_000_000, 1_500_000].map(stopped);
    let jobs: Vec<Job> = jobs.into_iter().chain(stopped).collect();
    let right = run(&jobs, &[("SEED", "1")]).done().0;
    let noticed = |name: &str, seed: u64| {
        let seed = seed.to_string();
        // The driver sees most of them whatever is computed, but not what the host reads too early.
        let arithmetic = if matches!(name, "LogitsNotWaited" | "ChosenNotWaited" | "None") { "1" } else { "0" };
        match run(&jobs, &[("SEED", &seed), ("LAYERSTREAM_TRAP", name), ("ARITHMETIC", arithmetic)]) {
            End::Misuse(_) => true,
            End::Done(outcomes, _) => {
                arithmetic == "1" && outcomes.iter().zip(&right).any(|(found, right)| found.tokens != right.tokens)
            }
            End::Failed(what) => panic!("{name}: {what}"),
        }
    };
    for none in ["None", "PassPanics"] {
        assert!(!(0..2).any(|seed| noticed(none, seed)), "a fault is noticed where there is none: {none}");
    }
    let survivors: Vec<_> = TRAPS.into_iter().filter(|name| !(0..PATIENCE).any(|seed| noticed(name, seed))).collect();
    assert!(survivors.is_empty(), "not noticed: {survivors:?}");
}
