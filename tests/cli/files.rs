//! `plan`, `inspect`, `synth`, `completions`: what is told about a model without running it, and made without one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use super::{copy_of_demo, edit_json, fails, golden, json, layerstream, on_demo, stderr, text};

#[test]
fn families_are_listed_as_the_readme_has_them() {
    let table = text(&mut layerstream(["families"]));
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let marked =
        readme.split("<!-- layerstream families -->\n").nth(1).and_then(|rest| rest.split("<!-- end -->").next());
    assert_eq!(marked, Some(table.as_str()), "put what `layerstream families` prints between the marks in README.md");
    let list = json(&mut layerstream(["families", "--json"]));
    let gemma = list.as_array().unwrap().iter().find(|row| row["family"] == "gemma3").unwrap();
    assert_eq!(gemma["architectures"][1], "Gemma3ForConditionalGeneration");
    assert!(list.as_array().unwrap().iter().all(|row| row["special"].as_str().is_some_and(|text| !text.is_empty())));
}

#[test]
fn a_plan_adds_up() {
    let plan = json(&mut on_demo("plan", &["--json", "--ram", "6MiB", "--context", "256", "--threads", "2"]));
    let number =
        |path: &str| plan.pointer(path).and_then(serde_json::Value::as_u64).unwrap_or_else(|| panic!("{path}"));
    assert_eq!((plan["family"].as_str(), number("/context"), number("/sequences")), (Some("llama"), 256, 1));
    assert_eq!(number("/bytes_per_pass"), 4_325_376);
    assert_eq!(number("/tiers/host/bytes") + number("/tiers/disk/bytes"), number("/bytes_per_pass"));
    assert_eq!(number("/tiers/disk/bytes"), number("/disk_bytes_per_pass"));
    assert!(number("/tiers/disk/tiles") > 0);
    let parts = ["host_tiles", "ring", "kv_cache", "activations", "scratch", "norms_and_biases"];
    let sum: u64 = parts.iter().map(|part| number(&format!("/memory/{part}"))).sum();
    assert_eq!(sum, number("/memory/total"));
    assert!(number("/memory/total") <= number("/memory/ram_bytes"));
    assert!(number("/memory/floor_bytes") <= number("/memory/ram_bytes"));
    assert_eq!(number("/memory/ram_bytes"), 6 << 20);
    for speed in ["disk_bytes_per_second", "multiply_bytes_per_second", "seconds_per_token"] {
        assert!(plan[speed].as_f64().unwrap() > 0.0, "{speed}");
    }
    let more = json(&mut on_demo("plan", &["--json", "--ram", "1GiB", "--context", "256"]));
    assert_eq!(more["disk_bytes_per_pass"], 0);
}

#[test]
fn a_plan_is_a_table() {
    let table =
        text(&mut on_demo("plan", &["--ram", "16MiB", "--context", "256", "--sequences", "2", "--threads", "2"]));
    for words in ["(llama)", "2 sequences × 256 tokens", "read every pass", "KV cache", "budget", "a token takes"] {
        assert!(table.contains(words), "`{words}` in {table}");
    }
    fails(&mut on_demo("plan", &["--ram", "1MiB"]), 1, &["too small", "at least"]);
}

#[test]
fn inspect_counts_what_is_there() {
    let report = json(&mut on_demo("inspect", &["--json", "--tensors"]));
    assert_eq!(report["architecture"], "LlamaForCausalLM");
    assert_eq!((&report["family"], &report["supported"]), (&"llama".into(), &true.into()));
    assert_eq!((&report["parameters"], &report["bytes"]), (&2_361_984.into(), &4_723_968.into()));
    assert_eq!(report["layers"]["count"], 10);
    assert_eq!(report["kv_bytes_per_token"], 10 * 2 * 2 * 32 * 4);
    assert_eq!(report["files"].as_array().unwrap().len(), 2);
    let tensors = report["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), report["tensor_count"].as_u64().unwrap() as usize);
    let bytes: u64 = tensors.iter().map(|tensor| tensor["bytes"].as_u64().unwrap()).sum();
    assert_eq!(report["bytes"], bytes);
    let table = text(&mut on_demo("inspect", &["--tensors"]));
    for words in ["2.4 million", "LlamaForCausalLM", "10 of 393.7 kB", "model.layers.9.mlp.up_proj.weight", "yes"] {
        assert!(table.contains(words), "`{words}` in {table}");
    }
    let tied = json(layerstream(["inspect", "--json"]).arg(golden("models/phi4_mini")));
    assert_eq!((&tied["tied_head"], &report["tied_head"]), (&true.into(), &false.into()));
}

#[test]
fn inspect_lists_what_cannot_be_run_and_says_why() {
    let model = copy_of_demo();
    edit_json(&model.path().join("config.json"), |config| config["architectures"] = ["MambaForCausalLM"].into());
    let output = layerstream(["inspect", "--tensors"]).arg(model.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let listing = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(listing.contains("MambaForCausalLM") && listing.contains("model.embed_tokens.weight"), "{listing}");
    assert!(stderr(&output).contains("the architecture MambaForCausalLM"), "{}", stderr(&output));

    let output = layerstream(["inspect", "--json"]).arg(model.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["supported"], false);
    assert!(report["problem"].as_str().unwrap().contains("MambaForCausalLM"));
    fails(layerstream(["generate", "--ids", "1"]).arg(model.path()), 1, &["MambaForCausalLM", "not supported"]);
}

#[test]
fn synthetic_models_run() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model");
    let config = golden("models/qwen3_yarn/config.json");
    let output = layerstream(["synth", "--seed", "7", "--layers", "2", "--config"])
        .arg(config)
        .arg("--out")
        .arg(&out)
        .output()
        .unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{}", stderr(&output));
    let report = json(layerstream(["inspect", "--json"]).arg(&out));
    assert_eq!((&report["layers"]["count"], &report["family"]), (&2.into(), &"qwen3".into()));
    let answer =
        json(layerstream(["generate", "--ids", "1,2", "--max-new-tokens", "3", "--ignore-eos", "--json"]).arg(&out));
    assert_eq!(answer["new_tokens"], 3);
    fails(layerstream(["synth", "--like", "llama-3.2-1b", "--out"]).arg(&out), 1, &["model"]);
}

#[test]
fn sparse_models_take_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("405b");
    text(layerstream(["synth", "--like", "llama-3.1-405b", "--sparse", "--out"]).arg(&out));
    let report = json(layerstream(["inspect", "--json"]).arg(&out));
    assert!(report["bytes"].as_u64().unwrap() > 800_000_000_000, "{}", report["bytes"]);
    let files = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
    let blocks: u64 = files.map(|file| file.blocks() * 512).sum();
    assert!(blocks < 100 << 20, "{blocks} bytes on disk");
}

#[test]
fn synth_refuses_what_it_does_not_know() {
    fails(&mut layerstream(["synth", "--like", "gpt-5", "--out", "x"]), 2, &["gpt-5", "llama-3.1-70b"]);
    fails(&mut layerstream(["synth", "--out", "x"]), 2, &["--like"]);
    fails(&mut layerstream(["synth", "--like", "llama-3-8b"]), 2, &["--out"]);
    fails(&mut layerstream(["synth", "--like", "llama-3-8b", "--config", "x", "--out", "x"]), 2, &["--config"]);
    fails(&mut layerstream(["synth", "--config", "nowhere.json", "--out", "x"]), 1, &["nowhere.json"]);
    fails(
        &mut layerstream(["synth", "--like", "llama-3-8b", "--dtype", "int4", "--out", "x"]),
        2,
        &["bf16, f16 or f32"],
    );
}

#[test]
fn completions_know_every_command() {
    let commands = ["generate", "chat", "plan", "inspect", "logits", "tokenize", "detokenize", "render-chat", "synth"];
    for shell in ["bash", "zsh", "fish"] {
        let script = text(&mut layerstream(["completions", shell]));
        commands.iter().for_each(|command| assert!(script.contains(command), "{command} in {shell}"));
        assert!(script.contains("max-new-tokens") && script.contains("llama-3.1-70b"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("completions");
    fs::write(&script, text(&mut layerstream(["completions", "bash"]))).unwrap();
    assert!(Command::new("bash").arg("-n").arg(script).status().unwrap().success());
    fails(&mut layerstream(["completions", "tcsh"]), 2, &["tcsh"]);
}
