//! Configurations: both key styles mean the same, every kind of rope scaling has the frequencies of its definition,
//! shapes that contradict the configuration are errors that show both, and what is not implemented is refused by name.

use std::f64::consts::TAU;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use layerstream::Options;
use layerstream::Outline;
use layerstream::program::{Program, Step};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A golden case with another configuration beside its weights.
pub struct Changed {
    dir: TempDir,
    config: Value,
}

impl Changed {
    pub fn new(case: &str) -> Changed {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(case);
        let dir = tempfile::tempdir().unwrap();
        for file in fs::read_dir(&golden).unwrap().map(|entry| entry.unwrap()) {
            if file.file_name() != "config.json" {
                symlink(file.path(), dir.path().join(file.file_name())).unwrap();
            }
        }
        let config = serde_json::from_slice(&fs::read(golden.join("config.json")).unwrap()).unwrap();
        Changed { dir, config }
    }

    pub fn set(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    pub fn remove(mut self, key: &str) -> Self {
        self.config.as_object_mut().unwrap().shift_remove(key);
        self
    }

    pub fn path(&self) -> PathBuf {
        fs::write(self.dir.path().join("config.json"), self.config.to_string()).unwrap();
        self.dir.path().to_path_buf()
    }

    fn program(&self) -> Program {
        Outline::new(&self.path(), &Options::default()).map(|outline| outline.program().clone()).unwrap()
    }

    /// All of the program, to be compared.
    fn shown(&self) -> String {
        format!("{:?}", self.program())
    }

    fn refusal(&self) -> String {
        match Outline::new(&self.path(), &Options::default()) {
            Ok(_) => panic!("not refused: {}", self.config),
            Err(error) => error.to_string(),
        }
    }
}

fn assert_close(found: &[f32], expected: impl IntoIterator<Item = f64>) {
    let expected: Vec<f64> = expected.into_iter().collect();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((*found as f64 / expected - 1.0).abs() < 1e-6, "{found} for {expected}");
    }
}

fn plain(theta: f64, dim: usize) -> impl Iterator<Item = f64> {
    (0..dim / 2).map(move |i| 1.0 / theta.powf(2.0 * i as f64 / dim as f64))
}

#[test]
fn the_newer_key_style_means_the_same() {
    let published = Changed::new("llama31_gqa");
    let mut parameters = published.config["rope_scaling"].clone();
    parameters["rope_theta"] = published.config["rope_theta"].clone();
    let newer = Changed::new("llama31_gqa")
        .remove("rope_scaling")
        .remove("rope_theta")
        .remove("torch_dtype")
        .set("rope_parameters", parameters)
        .set("dtype", json!("bfloat16"));
    assert_eq!(newer.program().ropes, published.program().ropes);
}

#[test]
fn linear_scaling_divides_every_frequency() {
    let scaled = Changed::new("yi").set("rope_scaling", json!({"type": "linear", "factor": 4.0})).program();
    assert_close(&scaled.ropes[0].inv_freq, plain(5e6, 8).map(|freq| freq / 4.0));
}

#[test]
fn dynamic_scaling_grows_the_base_beyond_the_original_length() {
    let config = Changed::new("yi").set("rope_scaling", json!({"rope_type": "dynamic", "factor": 2.0}));
    let rope = config.set("max_position_embeddings", json!(64)).program().ropes.remove(0);
    assert_close(&rope.inv_freq(64, 64), plain(5e6, 8));
    let base: f64 = 5e6 * (2.0 * 100.0 / 64.0 - 1.0_f64).powf(8.0 / 6.0);
    assert_close(&rope.inv_freq(60, 100), plain(base, 8));
}

#[test]
fn llama3_scaling_blends_between_the_two_wavelengths() {
    let rope = Changed::new("llama31_gqa").program().ropes.remove(0);
    let expected = plain(500_000.0, 24).map(|freq| {
        let (length, wavelength) = (48.0, TAU / freq);
        match wavelength {
            short if short < length / 4.0 => freq,
            long if long > length / 1.0 => freq / 8.0,
            _ => {
                let smooth = (length / wavelength - 1.0) / (4.0 - 1.0);
                (1.0 - smooth) * freq / 8.0 + smooth * freq
            }
        }
    });
    assert_close(&rope.inv_freq, expected);
}

#[test]
fn windows_are_where_the_configuration_puts_them() {
    let windows = |changed: Changed| -> Vec<Option<usize>> {
        let steps = changed.program().steps.into_iter();
        steps
            .filter_map(|step| if let Step::Attend { attention, .. } = step { Some(attention.window) } else { None })
            .collect()
    };
    let qwen = || Changed::new("qwen2_yarn").set("use_sliding_window", json!(true)).set("sliding_window", json!(16));
    assert_eq!(windows(Changed::new("mistral_window")), [Some(24); 3]);
    assert_eq!(windows(Changed::new("mistral_window").set("sliding_window", Value::Null)), [None; 3]);
    assert_eq!(windows(Changed::new("qwen2_yarn")), [None; 2]);
    assert_eq!(windows(qwen().set("max_window_layers", json!(1))), [None, Some(16)]);
    let types = json!(["sliding_attention", "full_attention"]);
    assert_eq!(windows(qwen().set("layer_types", types)), [Some(16), None]);
}

/// Falcon's code makes slopes in bfloat16, whatever the weights are, and scales biases with the scores.
#[test]
fn falcon_rounds_its_slopes() {
    let program = Changed::new("falcon").set("alibi", json!(true)).program();
    let mut attentions = program.steps.iter().filter_map(|step| match step {
        Step::Attend { attention, .. } => Some(attention),
        _ => None,
    });
    let attention = attentions.next().unwrap();
    assert_eq!(attention.bias_factor, Some(attention.scale));
    let slopes = attention.slopes.as_ref().unwrap();
    let (heads, power) = (slopes.len(), slopes.len().next_power_of_two());
    for (i, slope) in slopes.iter().enumerate().take(if heads == power { heads } else { power / 2 }) {
        let count = if heads == power { heads } else { power / 2 };
        let exact = 2f64.powf(-8.0 * (i + 1) as f64 / count as f64);
        assert_eq!(slope.to_bits() << 16, 0, "{slope} is no bfloat16");
        assert!((f64::from(*slope) / exact - 1.0).abs() <= 1.0 / 256.0, "{slope} for {exact}");
    }
}

/// The code of DeepSeek V2 divides by the sum of what was chosen, or multiplies by the factor (3 here); of one expert the latter.
#[test]
fn deepseek_v2_normalises_or_scales() {
    let routing = |normalise: bool, chosen: usize| {
        let changed = Changed::new("deepseek_v2").set("norm_topk_prob", json!(normalise));
        let program = changed.set("num_experts_per_tok", json!(chosen)).program();
        let routing = program.steps.iter().find_map(|step| match step {
            Step::Route { routing, .. } => Some((routing.renormalise, routing.scale)),
            _ => None,
        });
        routing.unwrap()
    };
    assert_eq!(routing(false, 3), (false, 3.0));
    assert_eq!(routing(true, 3), (true, 1.0));
    assert_eq!(routing(true, 1), (false, 3.0));
}

#[test]
fn what_is_not_implemented_is_refused_by_name() {
    let yi = || Changed::new("yi");
    let cases = [
        (yi().set("architectures", json!(["MambaForCausalLM"])), "MambaForCausalLM"),
        (yi().set("hidden_act", json!("relu2")), "relu2"),
        (yi().set("rope_scaling", json!({"rope_type": "proportional", "factor": 2.0})), "proportional"),
        (yi().set("partial_rotary_factor", json!(0.5)), "partial_rotary_factor"),
        (yi().set("quantization_config", json!({"quant_method": "hqq"})), "hqq"),
        (yi().set("head_dim", json!(512)), "head size of 512"),
        (Changed::new("qwen1_ntk_logn").set("use_cache_quantization", json!(true)), "use_cache_quantization"),
        (Changed::new("chatglm2").set("quantization_bit", json!(4)), "quantization_bit"),
        (Changed::new("chatglm2").set("position_encoding_2d", json!(true)), "first ChatGLM-6B"),
        (Changed::new("chatglm2").set("pre_seq_len", json!(128)), "pre_seq_len"),
        (Changed::new("chatglm2").set("post_layer_norm", json!(false)), "post_layer_norm"),
        (Changed::new("internlm1").set("rotary", json!({"base": 10000, "type": "xpos"})), "xpos"),
        (
            Changed::new("gemma3_vl_wrapper").set("text_config", json!({"use_bidirectional_attention": true})),
            "bidirect",
        ),
        (Changed::new("gemma").set("hidden_activation", json!("quick_gelu")), "quick_gelu"),
        (Changed::new("phi3").set("mlp_bias", json!(true)), "mlp_bias"),
        (Changed::new("cohere2").set("use_parallel_block", json!(false)), "use_parallel_block"),
        (Changed::new("starcoder2").set("mlp_type", json!("gated")), "mlp_type"),
        (Changed::new("gpt_neox").set("hidden_act", json!("mish")), "mish"),
        (Changed::new("falcon").set("apply_residual_connection_post_layernorm", json!(true)), "post_layernorm"),
        (Changed::new("qwen3_yarn").set("layer_types", json!(["full_attention", "chunked_attention"])), "chunked"),
    ];
    for (changed, name) in cases {
        let error = changed.refusal();
        assert!(error.contains(name) && error.contains("not supported"), "{error}");
    }
}

#[test]
fn a_configuration_that_is_wrong_is_one_clear_error() {
    let yi = || Changed::new("yi");
    let cases = [
        (yi().remove("architectures"), "architectures"),
        (yi().remove("hidden_size"), "`hidden_size` is missing"),
        (yi().set("hidden_size", json!("big")), "`hidden_size` is \"big\""),
        (yi().set("num_hidden_layers", json!(1u64 << 40)), "num_hidden_layers"),
        (yi().set("num_hidden_layers", json!(60000)), "model.layers.2."),
        (yi().set("num_attention_heads", json!(0)), "num_attention_heads"),
        (yi().set("num_key_value_heads", json!(3)), "no multiple"),
        (yi().set("head_dim", json!(7)), "head size 7 is odd"),
        (yi().set("rope_theta", json!(-5)), "rope_theta"),
        (yi().set("rope_scaling", json!({"type": "linear"})), "factor"),
        (yi().set("rope_scaling", json!([1])), "rope_scaling"),
        (yi().set("tie_word_embeddings", json!("no")), "tie_word_embeddings"),
        (Changed::new("phi4_mini").set("tie_word_embeddings", json!(false)), "lm_head.weight"),
        (Changed::new("qwen3_yarn").set("layer_types", json!(["full_attention"])), "1 entries for 2 layers"),
    ];
    for (changed, words) in cases {
        let error = changed.refusal();
        assert!(error.contains(words), "{error} lacks {words}");
    }
}

/// Llama 4 Scout has both factors 1: nothing is blended.
#[test]
fn llama3_scaling_may_have_nothing_between() {
    let changed = Changed::new("llama31_gqa");
    let mut scaling = changed.config["rope_scaling"].clone();
    scaling["high_freq_factor"] = json!(1.0);
    let rope = changed.set("rope_scaling", scaling).program().ropes.remove(0);
    let kept = |freq: f64| if 48.0 * freq / TAU < 1.0 { freq / 8.0 } else { freq };
    assert_close(&rope.inv_freq, plain(500_000.0, 24).map(kept));
}

#[test]
fn what_a_configuration_leaves_out_is_as_in_its_class() {
    let windows = |changed: Changed| {
        let steps = changed.program().steps;
        let window = |step: Step| if let Step::Attend { attention, .. } = step { Some(attention.window) } else { None };
        steps.into_iter().find_map(window).expect("attention")
    };
    assert_eq!(windows(Changed::new("mistral_window").remove("sliding_window")), Some(4096));
    assert_eq!(windows(Changed::new("mistral_window").set("sliding_window", Value::Null)), None);
    let with = |name: &str, key: &str| {
        let changed = Changed::new(name);
        let set = changed.shown();
        assert!(set == changed.remove(key).shown(), "{name} without {key}");
    };
    with("mixtral", "rope_theta");
    with("glm", "attention_bias");
    let rope = Changed::new("gpt_oss_bf16").remove("rope_scaling").program().ropes.remove(0);
    let published = Changed::new("gpt_oss_bf16");
    let mut scaling = published.config["rope_scaling"].clone();
    scaling["original_max_position_embeddings"] = json!(4096);
    assert_eq!(rope, published.set("rope_scaling", scaling).program().ropes.remove(0));
    assert_eq!(rope, Changed::new("gpt_oss_bf16").set("rope_scaling", Value::Null).program().ropes.remove(0));
    let error = Changed::new("deepseek_v3").remove("n_group").refusal();
    assert!(error.contains("12 experts in 8 groups"), "{error}");
    let error = Changed::new("deepseek_v3").remove("first_k_dense_replace").refusal();
    assert!(error.contains("model.layers.1.mlp"), "{error}");
}

#[test]
fn null_and_zero_say_what_they_do_elsewhere() {
    let same = |name: &str, key: &str, value: Value| {
        let plain = Changed::new(name).shown();
        assert!(plain == Changed::new(name).set(key, value.clone()).shown(), "{name} with {key} {value}");
    };
    same("falcon", "ffn_hidden_size", Value::Null);
    same("qwen2_yarn", "use_sliding_window", json!(false));
    let full = Changed::new("qwen2_yarn").set("use_sliding_window", json!(true)).set("sliding_window", Value::Null);
    assert!(full.shown() == Changed::new("qwen2_yarn").shown());
    let chunks = |value: Value| {
        let changed = Changed::new("llama4_vl_wrapper");
        let mut text = changed.config["text_config"].clone();
        text["attention_chunk_size"] = value;
        text["no_rope_layers"] = json!([1, 1, 0, 1, 1, 1, 1, 0]);
        let steps = changed.set("text_config", text).program().steps;
        let chunk = |step: Step| if let Step::Attend { attention, .. } = step { Some(attention.chunk) } else { None };
        steps.into_iter().filter_map(chunk).collect::<Vec<_>>()
    };
    assert_eq!(chunks(json!(32)), [Some(32), Some(32), None, Some(32)]);
    assert_eq!(chunks(Value::Null), [None; 4]);
    let strength = |value: Option<f64>| {
        let changed = Changed::new("deepseek_v3");
        let mut scaling = changed.config["rope_scaling"].clone();
        for key in ["mscale", "mscale_all_dim"] {
            match value {
                Some(number) => scaling[key] = json!(number),
                None => drop(scaling.as_object_mut().unwrap().shift_remove(key)),
            }
        }
        changed.set("rope_scaling", scaling).shown()
    };
    assert!(strength(Some(0.0)) == strength(None) && strength(Some(1.0)) != strength(None));
}

/// Beside what is said of scaling, in it, or as long as can be.
#[test]
fn the_length_that_scaling_begins_from_is_found_anywhere() {
    let key = "original_max_position_embeddings";
    for name in ["llama31_gqa", "qwen2_yarn"] {
        let inside = Changed::new(name);
        let mut scaling = inside.config["rope_scaling"].clone();
        let length = scaling.as_object_mut().unwrap().shift_remove(key).unwrap();
        let without = || Changed::new(name).set("rope_scaling", scaling.clone());
        assert!(without().set(key, length.clone()).shown() == inside.shown(), "{name}: beside");
        let both = Changed::new(name).set(key, json!(24)).shown();
        assert!(both == without().set(key, json!(24)).shown(), "{name}: what is beside counts");
        let longest = inside.config["max_position_embeddings"].clone();
        assert!(without().shown() == without().set(key, longest).shown(), "{name}: nowhere");
    }
}

/// Newer versions of transformers write the number of experts under the name that Mixtral has.
#[test]
fn experts_may_be_counted_under_another_name() {
    let older = Changed::new("qwen3_moe");
    let newer = Changed::new("qwen3_moe").remove("num_experts").set("num_local_experts", json!(8));
    assert!(older.shown() == newer.shown());
}

#[test]
fn the_long_chatglm2_divides_positions_and_all_others_multiply_the_base() {
    let rope = |name: &str| {
        let changed = Changed::new("chatglm2").set("rope_ratio", json!(16)).set("_name_or_path", json!(name));
        changed.program().ropes.remove(0).inv_freq
    };
    assert_close(&rope("THUDM/chatglm2-6b-32k"), plain(1e4, 8).map(|freq| freq / 16.0));
    assert_close(&rope("THUDM/chatglm3-6b-32k"), plain(16e4, 8));
}

#[test]
fn the_frequencies_of_qwen_are_those_of_its_prompt() {
    let rope = Changed::new("qwen1_ntk_logn").program().ropes.remove(0);
    // Trained on 48 tokens: up to 48 plain, up to 96 three times, up to 192 seven times the base's stretch.
    for (prompt, alpha) in [(48, 1.0_f64), (49, 3.0), (96, 3.0), (97, 7.0)] {
        let base = 1e4 * alpha.powf(16.0 / 14.0);
        assert_close(&rope.inv_freq(prompt, prompt), plain(base, 16));
        assert_close(&rope.inv_freq(prompt, 1000), plain(base, 16));
    }
}

#[test]
fn packed_projections_and_missing_norms_are_checked_too() {
    let cases = [
        (Changed::new("phi3").set("num_key_value_heads", json!(2)), "qkv_proj", "[192, 64]", "[128, 64]"),
        (Changed::new("glm").set("intermediate_size", json!(100)), "gate_up_proj", "[288, 64]", "[200, 64]"),
        (Changed::new("gpt_neox").set("num_hidden_layers", json!(3)), "gpt_neox.layers.2", "", ""),
        (Changed::new("falcon").set("new_decoder_architecture", json!(true)), "ln_attn", "", ""),
        (Changed::new("gemma2").set("head_dim", json!(16)), "q_proj", "[128, 64]", "[64, 64]"),
        (Changed::new("phi4_mini").set("partial_rotary_factor", json!(0.5)), "long_factor", "12 entries", "8 numbers"),
    ];
    for (changed, name, found, expected) in cases {
        let error = changed.refusal();
        assert!([name, found, expected].iter().all(|words| error.contains(words)), "{error} lacks {name}");
    }
}

#[test]
fn shapes_that_contradict_the_configuration_show_both() {
    let error = Changed::new("yi").set("intermediate_size", json!(100)).refusal();
    assert!(error.contains("[176, 64]") && error.contains("[100, 64]") && error.contains("gate_proj"), "{error}");
}
