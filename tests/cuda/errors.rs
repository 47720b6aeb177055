//! Everything that can go wrong with a GPU is a message, never a hang; what is wrong once does no harm to the next pass.

use crate::child::{Job, Outcome};
use crate::parent::{WITHOUT_DRIVER, model, run};

fn job() -> Job {
    Job {
        model: model("llama31_gqa"),
        prompts: vec![(1..20).collect()],
        context: 24,
        sequences: 1,
        vram: Some(100_000),
        ram: Some(0),
        ..Job::default()
    }
}

fn outcome(job: Job, environment: &[(&str, &str)]) -> Outcome {
    let (mut outcomes, _) = run(&[job], environment).done();
    outcomes.remove(0)
}

#[track_caller]
fn says(environment: (&str, &str), job: Job, parts: &[&str]) {
    says_all(&[environment], job, parts);
}

#[track_caller]
fn says_all(environment: &[(&str, &str)], job: Job, parts: &[&str]) {
    let errors = outcome(job, environment).errors;
    let [error] = &errors[..] else { panic!("{environment:?}: {errors:?}") };
    for part in parts {
        assert!(error.contains(part), "{environment:?}: `{part}` is not in: {error}");
    }
}

#[test]
fn what_keeps_a_gpu_from_being_used_is_said() {
    says(("DEVICES", "1"), Job { device: Some("cuda:3".into()), ..job() }, &["no GPU 3", "shows 1"]);
    says(("CC", "6.1"), job(), &["6.1", "7.5", "--device cpu"]);
    says(("DRIVER", "11020"), job(), &["too old", "11.2", "update"]);
    says(("DEVICES", "1"), Job { device: Some("cuda:x".into()), ..job() }, &["cuda:x"]);
    says(("FAIL", "context"), job(), &["context", "out of memory", "another program"]);
    says_all(&[("FAIL", "module:1"), ("DRIVER", "99000")], job(), &["gemm", "compute capability 7.5"]);
    says(("FAIL", "oom:1"), job(), &["allocating", "out of memory", "--vram"]);
    says(("FAIL", "pin:1"), job(), &["page-locking"]);
    says(("FAIL", "pin:2"), job(), &["page-locking"]);
}

/// A driver older than nvcc refuses kernels in several ways, none of which says why.
#[test]
fn a_driver_that_is_older_than_the_kernels_is_said() {
    let (major, minor) = layerstream_kernels::TOOLKIT.expect("nvcc has said its version");
    let needed = if major == 13 { "at least CUDA 13.0 is needed, which is driver 580 or newer" } else { "is needed" };
    for fault in ["image:1", "ptx:1", "module:1", "ptx:9"] {
        let before = format!("{}", major * 1000 - 920);
        let has = format!("it has CUDA {}.8", major - 1);
        let parts = ["too old", &has, needed, "update NVIDIA's driver", "--device cpu"];
        says_all(&[("FAIL", fault), ("DRIVER", &before)], job(), &parts);
        // As old as nvcc, and still it cannot: then that is not why.
        let same = format!("{}", major * 1000 + minor * 10);
        let errors = outcome(job(), &[("FAIL", fault), ("DRIVER", &same)]).errors;
        assert!(errors.len() == 1 && !errors[0].contains("is needed, which is driver"), "{fault}: {errors:?}");
    }
}

/// Drivers newer than this program return what it has no name for: its number is said.
#[test]
fn a_status_of_times_to_come_is_said_by_its_number() {
    let outcome = outcome(Job { times: 2, ..job() }, &[("FAIL", "strange:40")]);
    let [error] = &outcome.errors[..] else { panic!("{:?}", outcome.errors) };
    assert!(error.contains("status 1001"), "{error}");
    assert!(!outcome.logits.is_empty(), "one refused call, and no other pass");
}

#[test]
fn without_a_driver_it_is_said() {
    let nowhere = tempfile::tempdir().unwrap();
    let path = nowhere.path().to_str().unwrap();
    let (outcomes, _) = match run(&[job()], &[(WITHOUT_DRIVER, path)]) {
        crate::parent::End::Done(outcomes, report) => (outcomes, report),
        other => panic!("{other:?}"),
    };
    match outcomes[0].errors.first() {
        None => println!("SKIPPED: this machine has a CUDA driver of its own"),
        Some(error) => assert!(error.contains("no NVIDIA driver") && error.contains("--device cpu"), "{error}"),
    }
}

/// Refuses `calls` calls in a row from each of `first` on, and compares the bits of the pass after the last error.
#[track_caller]
fn recovers(job: &Job, calls: usize, first: impl Iterator<Item = usize>) {
    let right = outcome(job.clone(), &[]).logits;
    let mut refused = 0;
    for (seed, n) in first.enumerate() {
        let fail = (n..n + calls).map(|n| format!("enqueue:{n}")).collect::<Vec<_>>().join(",");
        let seed = seed.to_string();
        let outcome = outcome(Job { times: 1 + calls, ..job.clone() }, &[("FAIL", &fail), ("SEED", &seed)]);
        if outcome.logits.is_empty() {
            // Refused before there was a model.
            assert_eq!(outcome.errors.len(), 1, "{fail}: {:?}", outcome.errors);
            continue;
        }
        refused += outcome.errors.len();
        assert!(outcome.errors.len() <= calls, "{fail}: {:?}", outcome.errors);
        assert!(outcome.logits == right, "{fail}, seed {seed}: the pass after it is wrong");
    }
    assert!(refused > 10, "only {refused} calls were refused");
}

/// A call that is refused once ends a pass; the next one gives the right bits.
#[test]
fn after_a_refused_call_the_next_pass_is_right() {
    // Both the calls of the first tiles and later ones, in several orders.
    recovers(&job(), 1, (1..60).step_by(4).chain((60..1500).step_by(150)));
}

/// Likewise where blocks hold experts from one pass to the next.
#[test]
fn after_a_refused_copy_of_an_expert_its_block_holds_nothing() {
    recovers(&Job { model: model("mixtral"), ..job() }, 1, (20..100).step_by(16).chain((100..400).step_by(20)));
}

/// Two in a row: nothing that is done about the first may rest on a call of its own. Some tiles stay on the GPU, some in memory.
#[test]
fn after_two_refused_calls_in_a_row_the_next_pass_is_right() {
    let job = Job { vram: Some(200_000), ram: Some(100_000), ..job() };
    recovers(&job, 2, (24..72).step_by(2));
}

/// What breaks a card ends every pass from then on, with a message, and the process as it should.
#[test]
fn a_broken_card_is_said_and_nothing_hangs() {
    for fault in ["copy", "kernel", "lost"] {
        for n in [1, 9, 60, 200] {
            let seed = n.to_string();
            let fail = format!("{fault}:{n}");
            let outcome = outcome(Job { times: 2, ..job() }, &[("FAIL", &fail), ("SEED", &seed)]);
            assert!(!outcome.errors.is_empty(), "{fail} was not noticed");
            let text = outcome.errors.join(" ");
            assert!(text.contains("of no use to this process"), "{fail}: {text}");
            assert!(outcome.logits.is_empty(), "{fail}: logits of a broken card");
        }
    }
}

/// Whenever a pass is stopped, the next one is right, with what had already been copied and what had not.
#[test]
fn a_stopped_pass_leaves_nothing_behind() {
    let plain = [job(), Job { vram: None, ram: None, ..job() }];
    let right = outcome(job(), &[]).logits;
    for seed in 0..3u64 {
        for stop_at in [0, 1, 100_000, 300_000] {
            let jobs: Vec<_> =
                plain.iter().map(|job| Job { times: 2, stop_at: Some(stop_at), ..job.clone() }).collect();
            let (outcomes, _) = run(&jobs, &[("SEED", &seed.to_string())]).done();
            for outcome in outcomes {
                assert!(outcome.errors.iter().all(|error| error == "interrupted"), "{:?}", outcome.errors);
                assert!(stop_at > 0 || !outcome.errors.is_empty(), "nothing was interrupted");
                assert!(outcome.logits == right, "stopped at {stop_at} bytes, seed {seed}");
            }
        }
    }
}
