//! Experts on demand: what a token reads, what memory saves on either side, and that neither changes a token.

use std::path::Path;
use std::process::Command;

use crate::child::{Job, Outcome};
use crate::parent::run;

const LAYERS: u64 = 2;
/// Bytes of one expert of one layer.
const EXPERT: u64 = 3 * 256 * 512 * 2;
/// Bytes of what every token uses: projections, router and head.
const SHARED: u64 = LAYERS * (2 * 256 * 256 + 2 * 64 * 256 + 8 * 256) * 2 + 300 * 256 * 2;

/// Mixtral in small, with random weights; `chosen` of eight experts for a token.
pub fn synthetic(folder: &Path, chosen: u64) -> String {
    let config = serde_json::json!({
        "architectures": ["MixtralForCausalLM"], "hidden_act": "silu", "hidden_size": 256, "intermediate_size": 512,
        "max_position_embeddings": 200_000, "num_attention_heads": 4, "num_experts_per_tok": chosen,
        "num_hidden_layers": LAYERS, "num_key_value_heads": 1, "num_local_experts": 8, "rms_norm_eps": 1e-5,
        "rope_theta": 1e6, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 300
    });
    let (file, model) = (folder.join("config.json"), folder.join("model"));
    std::fs::write(&file, config.to_string()).unwrap();
    let mut synth = Command::new(env!("CARGO_BIN_EXE_layerstream"));
    let made = synth.args(["synth", "--config"]).arg(&file).arg("--out").arg(&model).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    model.to_str().unwrap().into()
}

#[test]
fn a_token_reads_the_shared_weights_and_its_experts() {
    const TOKENS: u64 = 6;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let base = Job {
        model: synthetic(folder.path(), 2),
        prompts: vec![vec![17]],
        context: 24,
        sequences: 1,
        new_tokens: TOKENS as usize,
        ..Job::default()
    };
    let jobs = [
        // The least on either side, more in memory, more on the GPU, and all there. The driver has 1 MiB.
        Job { exact_vram: Some(5 << 20), ram: Some(0), ..base.clone() },
        Job { exact_vram: Some(5 << 20), ..base.clone() },
        Job { exact_vram: Some(9 << 20), ram: Some(0), ..base.clone() },
        Job { ram: Some(0), ..base },
    ];
    let (outcomes, _) = run(&jobs, &[("SEED", "5")]).done();
    let errors: Vec<_> = outcomes.iter().flat_map(|outcome| &outcome.errors).collect();
    assert!(errors.is_empty(), "{errors:?}");
    let chosen = LAYERS * 2 * EXPERT;
    for outcome in &outcomes {
        assert_eq!(outcome.tokens, outcomes[0].tokens, "memory changes tokens");
        assert_eq!(outcome.experts_used, TOKENS * chosen);
        let most = 1.05 * (TOKENS * (SHARED + chosen)) as f64;
        assert!(outcome.read as f64 <= most, "{} bytes read where {most} are allowed", outcome.read);
    }
    let [little, memory, gpu, all] = &outcomes[..] else { panic!("four jobs") };
    let misses = |outcome: &Outcome| outcome.experts_used - outcome.experts_hit;
    assert!(little.experts_read > 2 * memory.experts_read, "memory saves nothing: {little:?}");
    assert!(2 * misses(gpu) < misses(little), "the GPU saves nothing: {} and {}", misses(gpu), misses(little));
    // Room for all, on either side: each that is used is read once.
    for outcome in [memory, all] {
        assert!(outcome.experts_read as f64 <= 1.05 * (LAYERS * 8 * EXPERT) as f64, "{}", outcome.experts_read);
    }
}

/// While the host waits to learn what a router chose, the copies that are under way give their host memory back.
#[test]
fn a_routers_choice_is_waited_for_with_nothing_else_to_do() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let job = Job {
        model: synthetic(folder.path(), 2),
        prompts: vec![(1..10).collect()],
        context: 24,
        sequences: 1,
        new_tokens: 2,
        vram: Some(500_000),
        ram: Some(0),
        ..Job::default()
    };
    for seed in ["0", "2", "4"] {
        let (outcomes, report) = run(std::slice::from_ref(&job), &[("SEED", seed)]).done();
        assert!(outcomes[0].errors.is_empty() && outcomes[0].kv_on_gpu, "{:?}", outcomes[0]);
        assert_eq!(report["idle_waits"], 0, "seed {seed}: the host waited for kernels with copies to be waited for");
    }
}

/// Experts that come as late as can be: what the conveyor has goes on to the GPU meanwhile, with the same bits.
#[test]
fn other_tiles_are_copied_while_experts_are_waited_for() {
    if !cfg!(debug_assertions) {
        println!("SKIPPED: experts cannot be held back in a build without debug assertions");
        return;
    }
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let base = Job {
        model: synthetic(folder.path(), 2),
        prompts: vec![(1..10).collect(), vec![7, 8]],
        context: 24,
        sequences: 2,
        new_tokens: 4,
        ..Job::default()
    };
    let jobs = [
        // Weights stream from disk, and from memory.
        Job { vram: Some(500_000), ram: Some(0), ..base.clone() },
        Job { vram: Some(500_000), ..base },
    ];
    for seed in 0..2 {
        let seed = seed.to_string();
        let [on_time, late] = ["", "ExpertsComeLate"].map(|trap| {
            let (outcomes, _) = run(&jobs, &[("SEED", &seed), ("LAYERSTREAM_TRAP", trap)]).done();
            let errors: Vec<_> = outcomes.iter().flat_map(|outcome| &outcome.errors).collect();
            assert!(errors.is_empty(), "seed {seed}: {errors:?}");
            outcomes
        });
        for (on_time, late) in on_time.iter().zip(&late) {
            assert!(late.meanwhile > 0, "seed {seed}: nothing was copied meanwhile: {late:?}");
            assert_eq!(late.tokens, on_time.tokens, "seed {seed}");
        }
    }
}
