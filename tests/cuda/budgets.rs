//! The budget of GPU memory is hard, by the driver's own count, and so are the floors that errors name.

use std::process::Command;

use crate::child::Job;
use crate::parent::{End, model, run};

fn job() -> Job {
    Job {
        model: model("llama31_gqa"),
        prompts: vec![(1..40).collect()],
        context: 64,
        sequences: 1,
        new_tokens: 2,
        ..Job::default()
    }
}

#[test]
fn the_card_never_has_more_of_us_than_the_budget() {
    for above in [Some(50_000), Some(200_000), None] {
        let (outcomes, report) = run(&[Job { vram: above, ..job() }], &[("ARITHMETIC", "0")]).done();
        assert!(outcomes[0].errors.is_empty(), "{:?}", outcomes[0].errors);
        let peak = report["peak_vram"].as_u64().unwrap();
        assert!(peak > 1 << 20 && peak <= outcomes[0].vram, "{peak} bytes of a budget of {}", outcomes[0].vram);
    }
}

/// What the driver takes beside what the plan counts is known only afterwards: it is measured, and told where it is too much.
#[test]
fn what_the_driver_has_taken_is_measured_and_told() {
    let measured = |environment: &[(&str, &str)]| {
        let (outcomes, report) = run(&[Job { vram: Some(200_000), ..job() }], environment).done();
        assert!(outcomes[0].errors.is_empty(), "{:?}", outcomes[0].errors);
        (outcomes[0].vram_taken, report["peak_vram"].as_u64().unwrap(), outcomes[0].vram)
    };
    let (alone, peak, budget) = measured(&[("TAKEN", "100000000")]);
    assert!(alone == Some(peak) && peak <= budget, "{alone:?} of {budget}, the driver says {peak}");
    let (tables, peak, _) = measured(&[("TABLES", "8")]);
    assert!(tables == Some(peak) && tables > alone, "{tables:?} with page tables, {alone:?} without");
    assert_eq!(measured(&[("NVML", "0")]).0, None);

    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/demo");
    let generate = |tables: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_layerstream"));
        command.args(["generate", demo, "--ids", "1,2,3", "--max-new-tokens", "1", "--device", "cuda:0", "--json"]);
        let command = command
            .args(["--vram", "6MiB", "--ram", "64MiB"])
            .env("LD_LIBRARY_PATH", layerstream_cudasim::directory().unwrap());
        let command = command.env("LAYERSTREAM_SIM_CONTEXT", (1 << 20).to_string()).env_remove("RUST_LOG");
        let output = command.env("LAYERSTREAM_SIM_TABLES", tables).output().unwrap();
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (said["vram_measured_bytes"].as_u64().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let ((fits, silent), (more, warning)) = (generate("512"), generate("1"));
    assert!(fits <= 6 << 20 && !silent.contains("than the budget"), "{fits}: {silent}");
    assert!(more > 6 << 20 && warning.contains("than the budget of 6 MiB"), "{more}: {warning}");
}

/// What other programs have of the card is no part of our budget; where the driver does not say whose memory it is, all of it
/// counts as ours, so that the budget holds in any case.
#[test]
fn memory_of_other_programs_is_not_counted_as_ours() {
    let others = ("TAKEN", "100000000");
    let context =
        |environment: &[_]| run(&[job(), job()], environment).done().0.iter().map(|o| o.context).collect::<Vec<_>>();
    let alone = context(&[]);
    assert!(alone.iter().all(|bytes| *bytes == 1 << 20), "{alone:?}");
    assert_eq!(context(&[others]), alone);
    assert_eq!(context(&[others, ("NVML", "0")]), alone.iter().map(|bytes| bytes + 100_000_000).collect::<Vec<_>>());
    let (outcomes, report) = run(&[Job { vram: Some(200_000), ..job() }], &[others]).done();
    assert!(outcomes[0].errors.is_empty(), "{:?}", outcomes[0].errors);
    assert!(report["peak_vram"].as_u64().unwrap() <= outcomes[0].vram);
}

/// A second model beside one that is open: what the first has allocated is not the second one's context.
#[test]
fn memory_of_another_model_of_this_process_is_not_counted_either() {
    for nvml in ["0", "1"] {
        let (outcomes, _) = run(&[Job { beside: true, ..job() }], &[("NVML", nvml)]).done();
        assert!(outcomes[0].errors.is_empty(), "{:?}", outcomes[0].errors);
        assert_eq!(outcomes[0].context, 1 << 20);
    }
}

/// Two models of one command share what is free where no budget is given: the first one leaves room for the second.
#[test]
fn a_model_and_its_reference_share_the_card() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/demo");
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    std::fs::write(&text, "What is 27 + 58? 85").unwrap();
    let eval = |vram: u64, nvml: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_layerstream"));
        command.args(["eval", demo, "--against", demo, "--device", "cuda:0", "--ram", "64MiB", "--json", "--text"]);
        let command = command.arg(&text).env("LD_LIBRARY_PATH", layerstream_cudasim::directory().unwrap());
        let environment = [("VRAM", vram.to_string()), ("CONTEXT", (1 << 20).to_string()), ("NVML", nvml.into())];
        let environment = environment.map(|(name, value)| (format!("LAYERSTREAM_SIM_{name}"), value));
        let output = command.envs(environment).env("LAYERSTREAM_SIM_ARITHMETIC", "0").output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr))
    };
    for nvml in ["0", "1"] {
        // Alone, a model would take more than half of this.
        let (good, said) = eval(12 << 20, nvml);
        assert!(good && said.contains("top1_agreement"), "{said}");
        let (good, said) = eval(8 << 20, nvml);
        assert!(!good && said.contains("two models share the budget"), "{said}");
    }
}

#[test]
fn below_the_floor_the_floor_is_named_and_at_the_floor_it_works() {
    let (outcomes, _) = run(&[job()], &[("ARITHMETIC", "0")]).done();
    let floor = outcomes[0].vram_floor;
    let (outcomes, report) = run(&[Job { exact_vram: Some(floor - 1), ..job() }], &[]).done();
    let named = format!("at least {} MiB", floor.div_ceil(1 << 20));
    assert!(outcomes[0].errors[0].contains(&named), "{:?}", outcomes[0].errors);
    assert_eq!(report["allocations"], 0, "something was allocated below the floor");
}

#[test]
fn a_model_that_fits_is_copied_once() {
    let (outcomes, report) = run(&[Job { times: 3, ..job() }], &[]).done();
    assert_eq!(outcomes[0].tiers[1..], [0, 0], "all tiles on the GPU");
    let bytes = |report: &serde_json::Value| report["host_to_device"]["bytes"].as_u64().unwrap();
    let (_, once) = run(&[job()], &[]).done();
    let weights = std::fs::metadata(crate::parent::case("llama31_gqa").join("model-00001-of-00002.safetensors"));
    let added = bytes(&report) - bytes(&once);
    assert!(added < weights.unwrap().len(), "{added} bytes more were copied for two more rounds");
}

#[test]
fn auto_takes_the_gpu_or_says_why_not() {
    let auto = Job { device: Some("auto".into()), ..job() };
    let (outcomes, _) = run(std::slice::from_ref(&auto), &[]).done();
    assert_eq!(outcomes[0].device, "cuda:0");
    for environment in [("CC", "6.1"), ("DRIVER", "11020"), ("DEVICES", "0"), ("FAIL", "context")] {
        match run(std::slice::from_ref(&auto), &[environment]) {
            End::Done(outcomes, _) => assert_eq!((outcomes[0].device.as_str(), outcomes[0].errors.len()), ("cpu", 0)),
            other => panic!("{environment:?}: {other:?}"),
        }
    }
}

/// Whoever gives a budget of GPU memory wants a GPU: one that is too small is no reason for another device, and where there is no
/// GPU, that is said.
#[test]
fn a_budget_is_not_silently_ignored() {
    let small = Job { device: Some("auto".into()), exact_vram: Some(1 << 20), ..job() };
    let (outcomes, _) = run(&[small], &[]).done();
    assert!(outcomes[0].errors[0].contains("GPU memory is too small"), "{:?}", outcomes[0].errors);

    let mut command = Command::new(env!("CARGO_BIN_EXE_layerstream"));
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/demo");
    command.args(["generate", demo, "--ids", "1,2,3", "--max-new-tokens", "1", "--vram", "4GiB", "--ram", "64MiB"]);
    command.env("LD_LIBRARY_PATH", layerstream_cudasim::directory().unwrap()).env_remove("RUST_LOG");
    let output = command.env("LAYERSTREAM_SIM_DEVICES", "0").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("the processor computes"), "{said}");
}
