//! Experts on demand, as a library user sees them: what a token reads, what memory saves, and that neither changes a bit.
#![cfg(feature = "cli")]

use std::path::{Path, PathBuf};
use std::process::Command;

use layerstream::{GenerateOptions, Model, Options};
use serde_json::json;

/// Mixtral in small: the experts are 16 MiB a layer, of which a token uses a quarter.
fn config() -> serde_json::Value {
    json!({
        "architectures": ["MixtralForCausalLM"], "hidden_act": "silu", "hidden_size": 512, "intermediate_size": 1792,
        "max_position_embeddings": 4096, "num_attention_heads": 8, "num_experts_per_tok": 2, "num_hidden_layers": 3,
        "num_key_value_heads": 2, "num_local_experts": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 1000
    })
}

const LAYERS: u64 = 3;
/// Bytes of one expert of one layer.
const EXPERT: u64 = 3 * 512 * 1792 * 2;
/// Bytes of what every token uses: projections, router and head.
const SHARED: u64 = LAYERS * (2 * 512 * 512 + 2 * 128 * 512 + 8 * 512) * 2 + 1000 * 512 * 2;

fn synthetic(dir: &Path) -> PathBuf {
    let (config_path, model) = (dir.join("config.json"), dir.join("model"));
    std::fs::write(&config_path, config().to_string()).unwrap();
    let made = Command::new(env!("CARGO_BIN_EXE_layerstream"))
        .args(["synth", "--config"])
        .arg(&config_path)
        .arg("--out")
        .arg(&model)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    model
}

/// What a run of single tokens did.
struct Run {
    ids: Vec<u32>,
    passes: u64,
    /// Bytes that the drives delivered, and of these the experts'.
    read: u64,
    experts_read: u64,
    experts_used: u64,
}

/// One pass for each of `tokens` tokens, the prompt included.
fn run(model: &Path, mib: u64, tokens: usize) -> Run {
    let options = Options { ram: Some(mib << 20), context: Some(64), ..Options::default() };
    let mut model = Model::open(model, &options).unwrap();
    let greedy = GenerateOptions { max_new_tokens: tokens, ..GenerateOptions::default() };
    let mut generation = model.generate(vec![vec![17]], &greedy).unwrap();
    let ids = generation.outputs().unwrap().remove(0).ids;
    let passes = generation.stats().passes;
    let (shared, experts) = (model.stream_stats(), model.expert_stats().unwrap());
    assert!((experts.memory_bytes + shared.ring_bytes + shared.resident_bytes) as u64 <= mib << 20);
    let read = shared.bytes_read + experts.bytes_read;
    Run { ids, passes, read, experts_read: experts.bytes_read, experts_used: experts.bytes_used }
}

#[test]
fn a_token_reads_the_shared_weights_and_its_experts() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let model = synthetic(dir.path());
    let chosen = LAYERS * 2 * EXPERT;

    // Little room: nearly everything is read for every token, and nothing else.
    let little = run(&model, 24, 30);
    assert_eq!(little.passes, 30);
    assert_eq!(little.experts_used, 30 * chosen);
    let most = 1.05 * (30 * (SHARED + chosen)) as f64;
    assert!(little.read as f64 <= most, "{} bytes read where {most} are allowed", little.read);

    // Room for more experts: fewer are read, the same are used, and the same comes out.
    let more = run(&model, 64, 30);
    assert_eq!((&more.ids, more.experts_used), (&little.ids, little.experts_used));
    assert!(10 * more.experts_read < 9 * little.experts_read, "{} and {}", more.experts_read, little.experts_read);

    // Room for all: each that is used is read once.
    let all = run(&model, 400, 30);
    assert_eq!((&all.ids, all.experts_used), (&little.ids, little.experts_used));
    assert!(all.experts_read as f64 <= 1.05 * (LAYERS * 8 * EXPERT) as f64, "{}", all.experts_read);
}
