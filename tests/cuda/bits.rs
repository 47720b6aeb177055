//! Bits do not depend on the plumbing: not on tiers, tiles and rings, nor on the order in which the driver lets things happen.

use std::path::PathBuf;
use std::thread;

use crate::child::{Job, Outcome};
use crate::gpu::Budget;
use crate::parent::{case, model, run};

/// How many seeds `make soak SEEDS=…` tries, or else these.
fn seeds(otherwise: u64) -> u64 {
    std::env::var("SEEDS").map_or(otherwise, |seeds| seeds.parse().expect("SEEDS is a number"))
}

/// A prompt and its continuation, while another is answered beside it, at budgets where weights stream from memory and from
/// disk, with keys and values on the GPU and without, and to and fro between the two phases.
fn jobs() -> Vec<Job> {
    let base = Job {
        prompts: vec![(1..12).collect(), vec![7, 8]],
        context: 24,
        sequences: 2,
        new_tokens: 3,
        ..Job::default()
    };
    let small = Job { model: model("llama31_gqa"), ..base.clone() };
    // States that stay on the GPU, in the place of keys and values.
    let states = Job { model: model("qwen3_5_vl_wrapper"), vram: Some(60_000), ram: Some(0), ..base.clone() };
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/demo").to_string();
    vec![
        Job { vram: Some(100_000), ..small.clone() },
        Job { vram: Some(200_000), ram: Some(0), stream_kv: true, ..small.clone() },
        Job { vram: Some(1_000_000), ram: Some(3 << 20), model: demo, ..base.clone() },
        states,
        // A few of the experts fit.
        Job { vram: Some(100_000), model: model("mixtral"), ..base },
        // Logits instead of tokens.
        Job { vram: Some(100_000), ram: Some(0), new_tokens: 0, ..small.clone() },
        Job { vram: Some(300_000), new_tokens: 0, ..small },
    ]
}

/// Runs seeds on two processors, and looks at what each leaves.
fn try_seeds(
    jobs: &[Job],
    seeds: std::ops::Range<u64>,
    environment: &[(&str, &str)],
    check: impl Fn(u64, &[Outcome]) + Sync,
) {
    let check = &check;
    thread::scope(|scope| {
        for part in 0..2 {
            let seeds = seeds.clone().filter(move |seed| seed % 2 == part);
            scope.spawn(move || {
                for seed in seeds {
                    let text = seed.to_string();
                    let environment: Vec<_> = [("SEED", text.as_str())].iter().chain(environment).copied().collect();
                    let (outcomes, _) = run(jobs, &environment).done();
                    let errors: Vec<_> = outcomes.iter().flat_map(|outcome| &outcome.errors).collect();
                    assert!(errors.is_empty(), "seed {seed}: {errors:?}");
                    check(seed, &outcomes);
                }
            });
        }
    });
}

/// The driver checks every access for order, whatever is computed.
#[test]
fn no_order_of_events_is_a_misuse() {
    try_seeds(&jobs(), 0..seeds(200), &[("ARITHMETIC", "0")], |_, outcomes| {
        let [memory, kv, disk, states, experts, ..] = outcomes else { panic!("five jobs and more") };
        assert!(memory.tiers[1] > 0, "nothing is streamed from memory: {:?}", memory.tiers);
        assert!(!kv.kv_on_gpu, "keys and values are on the GPU");
        assert!(states.tiers[2] > 0, "nothing is streamed from disk: {:?}", states.tiers);
        assert!(disk.tiers.iter().all(|tiles| *tiles > 0), "not all tiers have tiles: {:?}", disk.tiers);
        assert!(experts.experts_used > 0, "no experts are used");
    });
}

/// With hardly anything on the GPU and in memory.
const TIGHT: Budget = (Some(100_000), Some(0));

/// A job for every golden case, and so for every family, step and form of weights.
fn families((vram, ram): Budget) -> Vec<Job> {
    let names = std::fs::read_dir(case("")).unwrap().map(|entry| entry.unwrap().path());
    let mut models: Vec<_> = names.filter(|path| path.is_dir()).collect();
    models.sort();
    let job = |model: PathBuf| Job {
        model: model.to_str().unwrap().into(),
        prompts: vec![(1..12).collect(), vec![7, 8]],
        context: 24,
        sequences: 2,
        new_tokens: 3,
        vram,
        ram,
        ..Job::default()
    };
    models.into_iter().map(job).collect()
}

#[test]
fn no_order_of_events_is_a_misuse_in_any_family() {
    try_seeds(&families(TIGHT), 0..seeds(8), &[("ARITHMETIC", "0")], |_, outcomes| {
        // Some are so small that no budget leaves anything out.
        let streams = |outcome: &&Outcome| outcome.tiers[2] > 0 || outcome.experts_read > 0;
        let streamed = outcomes.iter().filter(streams).count();
        assert!(streamed * 4 > outcomes.len() * 3, "{streamed} of {} models are streamed from disk", outcomes.len());
    });
}

/// Logits at every position, each budget in orders of its own.
#[test]
fn neither_order_nor_budget_changes_a_bit_in_any_family() {
    let budgets = [TIGHT, (None, None), (Some(40_000), None), (Some(200_000), Some(100_000))];
    let jobs =
        |budget: Budget| families(budget).into_iter().map(|job| Job { new_tokens: 0, ..job }).collect::<Vec<_>>();
    let (first, _) = run(&jobs(budgets[0]), &[("SEED", "0")]).done();
    let each = seeds(8).div_ceil(budgets.len() as u64);
    for (begin, budget) in (0..).step_by(each as usize).zip(budgets) {
        let jobs = jobs(budget);
        try_seeds(&jobs, begin..begin + each, &[], |seed, outcomes| {
            for ((outcome, first), job) in outcomes.iter().zip(&first).zip(&jobs) {
                let same = !first.logits.is_empty() && outcome.logits == first.logits;
                assert!(same, "seed {seed} or its budget changes {}: {:?}", job.model, outcome.sizes);
            }
        });
    }
}

#[test]
fn no_order_of_events_changes_a_bit() {
    let (first, _) = run(&jobs(), &[("SEED", "0")]).done();
    assert!(first[0].tokens == first[1].tokens, "budgets change tokens");
    assert!(first[5].logits == first[6].logits, "budgets change logits");
    try_seeds(&jobs(), 1..seeds(25), &[], |seed, outcomes| {
        for (outcome, first) in outcomes.iter().zip(&first) {
            assert!(outcome.tokens == first.tokens, "seed {seed} changes tokens");
            assert!(outcome.logits == first.logits, "seed {seed} changes logits");
        }
    });
}

/// Budgets of either side from nearly nothing to everything, with which the sizes of tiles and rings change as well.
#[test]
fn no_budget_changes_a_bit() {
    const KIB: usize = 1 << 10;
    let budgets: [Budget; 7] = [
        (None, None),
        (Some(60 * KIB), Some(0)),
        (Some(100 * KIB), Some(64 << 10)),
        (Some(150 * KIB), Some(200 << 10)),
        (Some(250 * KIB), Some(4 << 20)),
        (Some(350 * KIB), None),
        (Some(450 * KIB), Some(0)),
    ];
    for (name, stream_kv) in [("llama31_gqa", true), ("gemma2", false), ("fmt_f32", false), ("fp8_block128", false)] {
        let base = Job {
            model: model(name),
            prompts: vec![(1..40).collect(), vec![3, 1, 4, 1, 5]],
            context: 48,
            sequences: 1,
            ..Job::default()
        };
        let mut jobs: Vec<Job> = budgets.iter().map(|&(vram, ram)| Job { vram, ram, ..base.clone() }).collect();
        if stream_kv {
            jobs.push(Job { vram: Some(200 * KIB), ram: Some(200 << 10), stream_kv, ..base });
        }
        let (outcomes, _) = run(&jobs, &[("SEED", "7")]).done();
        for (outcome, job) in outcomes.iter().zip(&jobs) {
            assert!(outcome.errors.is_empty(), "{name}: {:?}", outcome.errors);
            assert!(
                outcome.logits == outcomes[0].logits,
                "{name}: other bits with {job:?}: {:?}, {:?}",
                outcome.tiers,
                outcome.sizes
            );
        }
        let mut ways: Vec<_> = outcomes.iter().map(|outcome| (outcome.tiers, outcome.sizes)).collect();
        println!("{name}: {ways:?}");
        ways.sort();
        ways.dedup();
        assert!(ways.len() >= 5, "{name}: only {ways:?}");
    }
}

/// Generated tokens are computed by other kernels than those of prompts. When they come back as part of a prompt, they are
/// computed again, so that what a fresh model gives is what comes out; what was part of a prompt before is not.
#[test]
fn of_an_earlier_call_only_the_prompt_is_used_again() {
    let job = Job {
        model: model("llama31_gqa"),
        prompts: vec![vec![1, 2, 3]],
        context: 2048,
        sequences: 1,
        new_tokens: 800,
        goes_on: vec![4],
        ..Job::default()
    };
    let (outcomes, _) = run(&[job], &[("ARITHMETIC", "0")]).done();
    let Outcome { errors, rows, passes, .. } = &outcomes[0];
    assert!(errors.is_empty(), "{errors:?}");
    let prompt = (3 + 800 + 1 - 3_usize).div_ceil(*rows);
    assert!(prompt > 1, "one pass has room for all: {rows} rows");
    // The last pass of the prompt gives the first token of the answer.
    assert_eq!(*passes as usize, prompt + 800 - 1);
}
