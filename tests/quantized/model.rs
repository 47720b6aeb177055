//! A small llama whose matrices are in one of the forms, and the same in float32.

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::forms::{Fault, Form, Random, Stored};

const HIDDEN: usize = 64;
const INNER: usize = 160;
pub const VOCAB: usize = 96;

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

pub fn write(dir: &Path, tensors: &[Stored], config: &Value) {
    let views = tensors.iter().map(|t| (t.name.clone(), TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

fn floats(name: &str, shape: &[usize], values: impl IntoIterator<Item = f32>) -> Stored {
    let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
    Stored { name: name.into(), dtype: Dtype::F32, shape: shape.to_vec(), bytes }
}

/// The model in this form, and the same in float32; its second layer's first projection is left as it was. Returns the
/// former's tensors and configuration.
pub fn make(form: &Form, fault: Option<Fault>, quantised: &Path, plain: &Path) -> (Vec<Stored>, Value) {
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
    write(plain, &[both.clone(), decoded].concat(), &config(&Value::Null));
    let (tensors, config) = ([both, codes].concat(), config(&form.config));
    write(quantised, &tensors, &config);
    (tensors, config)
}
