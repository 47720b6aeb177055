//! Checkpoints that were quantised beforehand, made here in every form with random codes and factors, as their own tools
//! store them. What they stand for is computed in float64 from the definition of the form, stored as float32, and run as an
//! ordinary checkpoint; logits must agree, and not one bit may depend on the budget. A definition that is wrong in one thing
//! must not agree.

#[path = "quantized/forms.rs"]
mod forms;
mod reference;

use std::fs;
use std::path::Path;

use layerstream::{Model, Options, Outline};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use forms::{Fault, Form, Random, Stored, forms};
use reference::{logits, nmse};

const HIDDEN: usize = 64;
const INNER: usize = 160;
const VOCAB: usize = 96;

/// The projections of a layer: rows and columns.
const PROJECTIONS: [(&str, usize, usize); 7] = [
    ("self_attn.q_proj", HIDDEN, HIDDEN),
    ("self_attn.k_proj", HIDDEN / 2, HIDDEN),
    ("self_attn.v_proj", HIDDEN / 2, HIDDEN),
    ("self_attn.o_proj", HIDDEN, HIDDEN),
    ("mlp.gate_proj", INNER, HIDDEN),
    ("mlp.up_proj", INNER, HIDDEN),
    ("mlp.down_proj", HIDDEN, INNER),
];

fn config(quantization: &Value) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": VOCAB,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": false, "quantization_config": quantization,
    })
}

fn write(dir: &Path, tensors: &[Stored], config: &Value) {
    let views = tensors.iter().map(|t| (t.name.clone(), TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

fn floats(name: &str, shape: &[usize], values: impl IntoIterator<Item = f32>) -> Stored {
    let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
    Stored { name: name.into(), dtype: Dtype::F32, shape: shape.to_vec(), bytes }
}

/// The model in this form, and the same in float32; its second layer's first projection is left as it was.
fn make(form: &Form, fault: Option<Fault>, quantised: &Path, plain: &Path) {
    let mut random = Random(7);
    let mut both = vec![
        floats("model.embed_tokens.weight", &[VOCAB, HIDDEN], random.numbers(VOCAB * HIDDEN)),
        floats("lm_head.weight", &[VOCAB, HIDDEN], random.numbers(VOCAB * HIDDEN)),
        floats("model.norm.weight", &[HIDDEN], vec![1.0; HIDDEN]),
    ];
    let (mut codes, mut decoded) = (Vec::new(), Vec::new());
    for layer in 0..2 {
        let at = format!("model.layers.{layer}");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            both.push(floats(&format!("{at}.{norm}.weight"), &[HIDDEN], vec![1.0; HIDDEN]));
        }
        for (name, rows, cols) in PROJECTIONS {
            let stem = format!("{at}.{name}");
            if (layer, name) == (1, "self_attn.q_proj") {
                let values = random.numbers(rows * cols);
                both.push(floats(&format!("{stem}.weight"), &[rows, cols], values.iter().map(|x| x / 8.0)));
                continue;
            }
            let (tensors, values) = form.matrix(&stem, rows, cols, fault, &mut random);
            codes.extend(tensors);
            decoded.push(floats(&format!("{stem}.weight"), &[rows, cols], values.iter().map(|x| *x as f32)));
        }
    }
    write(quantised, &[both.clone(), codes].concat(), &config(&form.config));
    write(plain, &[both, decoded].concat(), &config(&Value::Null));
}

fn options(ram: u64) -> Options {
    Options { ram: Some(ram), context: Some(64), all_logits: true, ..Options::default() }
}

fn run(dir: &Path, ram: u64) -> Vec<Vec<f32>> {
    let mut model = Model::open(dir, &options(ram)).unwrap_or_else(|error| panic!("{error}"));
    // Prompts of one, a few and many tokens take different ways through the kernels.
    [1, 5, 37].map(|len| logits(&mut model, &(0..len).map(|i| i * 29 % VOCAB as u32).collect::<Vec<_>>())).to_vec()
}

/// The least budget, in bytes.
fn floor(dir: &Path) -> u64 {
    let text = Outline::new(dir, &options(1)).err().expect("one byte is not enough").to_string();
    let mib = text.split("at least ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a floor");
    mib.parse::<u64>().unwrap() << 20
}

fn error_of(form: &Form, fault: Option<Fault>) -> f64 {
    let (quantised, plain) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make(form, fault, quantised.path(), plain.path());
    let found = run(quantised.path(), 1 << 30);
    if fault.is_none() {
        let floor = floor(quantised.path());
        for ram in [floor, floor + (1 << 20)] {
            let again = run(quantised.path(), ram);
            let same = found.iter().zip(&again).all(|(a, b)| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits()));
            assert!(same, "{}: bits differ at a budget of {ram}", form.name);
        }
    }
    let expected = run(plain.path(), 1 << 30);
    found.iter().zip(&expected).map(|(found, expected)| nmse(found, expected)).fold(0.0, f64::max)
}

#[test]
fn every_form_is_what_it_says() {
    for form in forms() {
        let error = error_of(&form, None);
        println!("{}: NMSE {error:e}", form.name);
        assert!(error <= 1e-9, "{}: NMSE {error:e}", form.name);
    }
}

#[test]
fn a_wrong_definition_is_noticed() {
    for form in forms() {
        for fault in form.faults {
            let error = error_of(&form, Some(*fault));
            assert!(error > 1e-3, "{}: {fault:?} gives an NMSE of {error:e} only", form.name);
        }
    }
}
