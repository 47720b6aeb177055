//! The same weights under the names that other versions of a checkpoint have: not a bit may change.

use std::fs;
use std::path::Path;

use layerstream::{GenerateOptions, Model, Options};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::config::Changed;
use super::reference::{case, logits, nmse, prompts};

/// A copy of a case whose tensors and configuration have been changed.
fn rewritten(name: &str, rename: impl Fn(&str) -> String, configure: impl Fn(Value) -> Value) -> TempDir {
    let (from, to) = (case(name), tempfile::tempdir().unwrap());
    let bytes = fs::read(from.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let renamed: Vec<(String, TensorView)> =
        tensors.tensors().into_iter().map(|(name, view)| (rename(&name), view)).collect();
    fs::write(to.path().join("model.safetensors"), safetensors::serialize(renamed, None).unwrap()).unwrap();
    let config = serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    fs::write(to.path().join("config.json"), configure(config).to_string()).unwrap();
    to
}

/// Logits of the longest prompt, and what follows it.
fn run(model: &Path, name: &str) -> (Vec<f32>, Vec<u32>) {
    let prompt = &prompts(&case(name))[2];
    let options = Options { ram: Some(64 << 20), context: Some(192), all_logits: true, ..Options::default() };
    let mut model = Model::open(model, &options).unwrap();
    let found = logits(&mut model, &prompt.ids);
    let greedy = GenerateOptions { max_new_tokens: 12, ..GenerateOptions::default() };
    let output = model.generate(vec![prompt.ids.clone()], &greedy).unwrap().outputs().unwrap().remove(0);
    assert_eq!(output.ids, prompt.greedy, "{name}");
    (found, output.ids)
}

fn same(config: Value) -> Value {
    config
}

#[test]
fn a_multimodal_checkpoint_has_its_text_part_under_either_name() {
    let name = "gemma3_vl_wrapper";
    let older = run(&case(name), name);
    let newer = |tensor: &str| match tensor.strip_prefix("language_model.model.") {
        Some(rest) => format!("model.language_model.{rest}"),
        None => format!("model.{tensor}"),
    };
    assert!(run(rewritten(name, newer, same).path(), name) == older);
    // The text part alone, as its own class saves it.
    let alone = |tensor: &str| tensor.strip_prefix("language_model.").unwrap_or(tensor).to_string();
    let text = |config: Value| {
        let mut text = config["text_config"].clone();
        text["architectures"] = json!(["Gemma3ForCausalLM"]);
        text
    };
    assert!(run(rewritten(name, alone, text).path(), name) == older);
}

#[test]
fn names_may_lack_the_root_that_the_whole_model_adds() {
    for name in ["qwen1_ntk_logn", "starcoder2", "llama_bias", "falcon"] {
        let bare = |tensor: &str| tensor.trim_start_matches("model.").trim_start_matches("transformer.").to_string();
        assert!(run(rewritten(name, bare, same).path(), name) == run(&case(name), name), "{name}");
    }
}

/// Rows of a matrix of bfloat16 numbers, taken from these places.
fn rows_of(view: &TensorView, rows: impl IntoIterator<Item = std::ops::Range<usize>>) -> Vec<u8> {
    let row = view.shape()[1] * 2;
    rows.into_iter().flat_map(|rows| view.data()[rows.start * row..rows.end * row].to_vec()).collect()
}

/// Qwen3.5 with experts is Qwen3-Next with four projections where that has two, and with all experts of a layer in one tensor.
#[test]
fn qwen3_next_is_qwen3_5_moe_in_another_layout() {
    let name = "qwen3_next";
    let bytes = fs::read(case(name).join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut made: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (old, view) in tensors.tensors() {
        let new = match old.strip_prefix("model.") {
            Some(rest) => format!("model.language_model.{rest}"),
            None => old.clone(),
        };
        // Two key heads of 16, with two value heads of 16 each: in rows, q, k, v, z of a key head; then b, a.
        let parts: &[(&str, Vec<std::ops::Range<usize>>)] = if old.ends_with("in_proj_qkvz.weight") {
            &[("qkv", vec![0..16, 96..112, 16..32, 112..128, 32..64, 128..160]), ("z", vec![64..96, 160..192])]
        } else if old.ends_with("in_proj_ba.weight") {
            &[("b", vec![0..2, 4..6]), ("a", vec![2..4, 6..8])]
        } else if old.contains(".experts.") {
            let Some(layer) = new.strip_suffix(".experts.0.gate_proj.weight") else { continue };
            let of = |part: &str, i: usize| {
                let name = old.replace("experts.0.gate_proj", &format!("experts.{i}.{part}"));
                tensors.tensor(&name).unwrap().data().to_vec()
            };
            let gate_up = (0..6).flat_map(|i| [of("gate_proj", i), of("up_proj", i)].concat()).collect();
            made.push((format!("{layer}.experts.gate_up_proj"), vec![6, 48, 64], gate_up));
            let down = (0..6).flat_map(|i| of("down_proj", i)).collect();
            made.push((format!("{layer}.experts.down_proj"), vec![6, 64, 24], down));
            continue;
        } else {
            made.push((new, view.shape().to_vec(), view.data().to_vec()));
            continue;
        };
        for (part, rows) in parts {
            let bytes = rows_of(&view, rows.clone());
            let old = ["qkvz", "ba"].into_iter().find(|old| new.contains(&format!("in_proj_{old}."))).unwrap();
            made.push((new.replace(old, part), vec![bytes.len() / 128, 64], bytes));
        }
    }
    let to = tempfile::tempdir().unwrap();
    let views =
        made.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap()));
    fs::write(to.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    let mut text: Value = serde_json::from_slice(&fs::read(case(name).join("config.json")).unwrap()).unwrap();
    text["architectures"] = Value::Null;
    text["model_type"] = json!("qwen3_5_moe_text");
    let config = json!({
        "architectures": ["Qwen3_5MoeForConditionalGeneration"], "model_type": "qwen3_5_moe", "text_config": text
    });
    fs::write(to.path().join("config.json"), config.to_string()).unwrap();
    assert!(run(to.path(), name) == run(&case(name), name));
}

/// A head of Falcon's case: 16 rows of 64 bfloat16 numbers.
const HEAD: usize = 16 * 64 * 2;

#[test]
fn falcon_packs_heads_in_three_ways() {
    let name = "falcon";
    let original = run(&case(name), name);
    let same_tensors = |_: &str, bytes: &[u8]| bytes.to_vec();
    // One key head is one group of all queries, as the larger ones pack it.
    let grouped = |mut config: Value| {
        config["new_decoder_architecture"] = json!(true);
        config["num_kv_heads"] = json!(1);
        config["num_ln_in_parallel_attn"] = json!(1);
        config
    };
    assert!(run(edited(name, same_tensors, &[], grouped).path(), name) == original);
    // With a norm for attention and one for the MLP.
    let two_norms = |config: Value| {
        let mut config = grouped(config);
        config["num_ln_in_parallel_attn"] = Value::Null;
        config
    };
    let copies = [("input_layernorm", "ln_attn"), ("input_layernorm", "ln_mlp")];
    assert!(run(edited(name, same_tensors, &copies, two_norms).path(), name) == original);
    // A key head for every query head, each of them the same: [q, k, v] head by head.
    let repeated = |tensor: &str, bytes: &[u8]| match tensor.ends_with("query_key_value.weight") {
        true => (0..4).flat_map(|head| [&bytes[head * HEAD..][..HEAD], &bytes[4 * HEAD..]].concat()).collect(),
        false => bytes.to_vec(),
    };
    let plain = |mut config: Value| {
        config["multi_query"] = json!(false);
        config
    };
    assert!(run(edited(name, repeated, &[], plain).path(), name) == original);
}

/// What is tied lies in a file once, under either name, or twice; a multimodal configuration may say it inside or outside.
#[test]
fn tied_heads_are_found_however_they_are_said() {
    let name = "gemma";
    let only_head = |tensor: &str| tensor.replace("model.embed_tokens", "lm_head");
    assert!(run(rewritten(name, only_head, same).path(), name) == run(&case(name), name));
    let name = "gemma3_vl_wrapper";
    let original = run(&case(name), name);
    for (inner, outer) in [(false, true), (true, false), (true, true)] {
        let said = |mut config: Value| {
            config["tie_word_embeddings"] = json!(outer);
            config["text_config"]["tie_word_embeddings"] = json!(inner);
            config
        };
        assert!(run(rewritten(name, str::to_string, said).path(), name) == original, "{inner}, {outer}");
    }
    // A head in the file counts, whatever is said.
    let name = "llama31_gqa";
    let apart = Changed::new(name).set("tie_word_embeddings", json!(true));
    assert!(run(&apart.path(), name) == run(&case(name), name));
}

#[test]
fn chatglm_packs_heads_in_two_ways() {
    let name = "chatglm2";
    // Each of two key heads for two query heads, repeated: [q, k, v] head by head.
    let repeated = |tensor: &str, bytes: &[u8]| match tensor.contains("query_key_value") {
        true => {
            let heads: Vec<&[u8]> = bytes.chunks(bytes.len() / 8).collect();
            (0..4).flat_map(|head| [heads[head], heads[4 + head / 2], heads[6 + head / 2]].concat()).collect()
        }
        false => bytes.to_vec(),
    };
    let plain = |mut config: Value| {
        config["multi_query_attention"] = json!(false);
        config
    };
    assert!(run(edited(name, repeated, &[], plain).path(), name) == run(&case(name), name));
}

/// As tools that quantise Llama 4 leave it: every expert with three matrices, stored row by row.
#[test]
fn llama4_may_have_experts_apart() {
    let name = "llama4_vl_wrapper";
    let bytes = fs::read(case(name).join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut made: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (tensor, view) in tensors.tensors() {
        let Some((at, part)) = tensor.split_once(".experts.") else {
            made.push((tensor, view.shape().to_vec(), view.data().to_vec()));
            continue;
        };
        let &[experts, inputs, outputs] = view.shape() else { panic!("{tensor} is of all experts") };
        let parts: &[&str] = if part == "gate_up_proj" { &["gate_proj", "up_proj"] } else { &["down_proj"] };
        let rows = outputs / parts.len();
        for (expert, bytes) in view.data().chunks(inputs * outputs * 2).enumerate() {
            assert!(expert < experts);
            for (i, part) in parts.iter().enumerate() {
                let element = |row: usize, col: usize| {
                    let number = col * outputs + i * rows + row;
                    [bytes[2 * number], bytes[2 * number + 1]]
                };
                let stored = (0..rows).flat_map(|row| (0..inputs).flat_map(move |col| element(row, col))).collect();
                made.push((format!("{at}.experts.{expert}.{part}.weight"), vec![rows, inputs], stored));
            }
        }
    }
    let to = tempfile::tempdir().unwrap();
    let views =
        made.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap()));
    fs::write(to.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    fs::copy(case(name).join("config.json"), to.path().join("config.json")).unwrap();
    // Sums of products with rows have another order than those with columns.
    let error = nmse(&run(to.path(), name).0, &run(&case(name), name).0);
    assert!(error <= 1e-10, "NMSE {error:e}");
}

/// What AutoFP8 writes: the method that DeepSeek's blocks are called by, with a factor for each matrix under another name.
#[test]
fn fp8_may_have_a_factor_for_each_matrix() {
    let name = "ct_fp8_tensor";
    let renamed = |mut config: Value| {
        config["quantization_config"] = json!({"quant_method": "fp8", "activation_scheme": "static"});
        config
    };
    assert!(run(rewritten(name, str::to_string, renamed).path(), name) == run(&case(name), name));
}

/// A copy of a case with other bytes in its matrices (whose rows follow), and copies of tensors under other names.
fn edited(
    name: &str,
    edit: impl Fn(&str, &[u8]) -> Vec<u8>,
    copies: &[(&str, &str)],
    configure: impl Fn(Value) -> Value,
) -> TempDir {
    let (from, to) = (case(name), tempfile::tempdir().unwrap());
    let bytes = fs::read(from.join("model.safetensors")).unwrap();
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for (tensor, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
        let bytes = edit(&tensor, view.data());
        let mut shape = view.shape().to_vec();
        shape[0] = shape[0] * bytes.len() / view.data().len();
        for (_, copy) in copies.iter().filter(|(part, _)| tensor.contains(part)) {
            tensors.push((tensor.replace("input_layernorm", copy), view.dtype(), shape.clone(), bytes.clone()));
        }
        tensors.push((tensor, view.dtype(), shape, bytes));
    }
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    fs::write(to.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    let config = serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    fs::write(to.path().join("config.json"), configure(config).to_string()).unwrap();
    to
}

#[test]
fn newer_configurations_mean_the_same() {
    // What each says about its rotation, in `rope_parameters`; keys that it replaces go.
    let newer = |config: Value, parameters: Value, gone: &[&str]| {
        let mut config = config;
        let keys = config.as_object_mut().unwrap();
        gone.iter().for_each(|key| drop(keys.shift_remove(*key)));
        keys.insert("rope_parameters".into(), parameters);
        config
    };
    let check = |name: &str, parameters: fn(&Value) -> Value, gone: &[&str]| {
        let changed = rewritten(name, str::to_string, |config| {
            let parameters = parameters(&config);
            newer(config, parameters, gone)
        });
        assert!(run(changed.path(), name) == run(&case(name), name), "{name}");
    };
    check(
        "phi4_mini",
        |config| {
            let mut parameters = config["rope_scaling"].clone();
            for key in ["rope_theta", "partial_rotary_factor", "original_max_position_embeddings"] {
                parameters[key] = config[key].clone();
            }
            parameters["rope_type"] = json!("longrope");
            parameters
        },
        &["rope_scaling", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"],
    );
    check(
        "gpt_neox",
        |_| json!({"rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 0.25}),
        &["rotary_pct", "rotary_emb_base"],
    );
    check(
        "glm4",
        |_| json!({"rope_theta": 10000.0, "partial_rotary_factor": 0.5}),
        &["rope_theta", "partial_rotary_factor"],
    );
    let name = "gemma3_vl_wrapper";
    let changed = rewritten(name, str::to_string, |mut config| {
        let text = config["text_config"].as_object_mut().unwrap();
        for key in ["rope_theta", "rope_local_base_freq", "rope_scaling", "sliding_window_pattern"] {
            text.shift_remove(key);
        }
        text.insert(
            "rope_parameters".into(),
            json!({
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}
            }),
        );
        let types = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"];
        text.insert("layer_types".into(), json!(types));
        config
    });
    assert!(run(changed.path(), name) == run(&case(name), name), "{name}");
}

#[test]
fn the_first_configurations_of_qwen_mean_the_same() {
    let name = "qwen1_ntk_logn";
    let changed = rewritten(name, str::to_string, |mut config| {
        let keys = config.as_object_mut().unwrap();
        for (newer, older) in [
            ("hidden_size", "n_embd"),
            ("num_hidden_layers", "n_layer"),
            ("num_attention_heads", "n_head"),
            ("intermediate_size", "ffn_hidden_size"),
            ("vocab_size", "padded_vocab_size"),
        ] {
            let value = keys.shift_remove(newer).unwrap();
            keys.insert(older.into(), value);
        }
        config
    });
    assert!(run(changed.path(), name) == run(&case(name), name));
}
