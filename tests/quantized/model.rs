//! A small model whose matrices are in one of the forms, and the same in float32: Llama's, with packed projections as Phi-3's,
//! or with experts as Mixtral's.

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::forms::{Fault, Form, Random, Stored};

const HIDDEN: usize = 64;
const INNER: usize = 160;
pub const VOCAB: usize = 96;

/// Experts in a layer.
pub const EXPERTS: usize = 4;

/// How the projections of a layer are divided into matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    Separate,
    /// Queries, keys and values are one, gate and up are one.
    Packed,
    /// Every expert has its own; so many are for a token.
    Experts(usize),
}

impl Layout {
    fn architecture(self) -> &'static str {
        match self {
            Layout::Separate => "LlamaForCausalLM",
            Layout::Packed => "Phi3ForCausalLM",
            Layout::Experts(_) => "MixtralForCausalLM",
        }
    }

    /// The projections of a layer: rows and columns.
    fn projections(self) -> Vec<(String, usize, usize)> {
        let mut all = match self {
            Layout::Packed => vec![("self_attn.qkv_proj".into(), 2 * HIDDEN, HIDDEN)],
            _ => vec![
                ("self_attn.q_proj".into(), HIDDEN, HIDDEN),
                ("self_attn.k_proj".into(), HIDDEN / 2, HIDDEN),
                ("self_attn.v_proj".into(), HIDDEN / 2, HIDDEN),
            ],
        };
        all.push(("self_attn.o_proj".into(), HIDDEN, HIDDEN));
        let mut mlp = |names: &[(&str, usize, usize)], at: &str| {
            all.extend(names.iter().map(|(name, rows, cols)| (format!("{at}.{name}"), *rows, *cols)));
        };
        match self {
            Layout::Separate => mlp(&[("gate_proj", INNER, HIDDEN), ("up_proj", INNER, HIDDEN)], "mlp"),
            Layout::Packed => mlp(&[("gate_up_proj", 2 * INNER, HIDDEN)], "mlp"),
            Layout::Experts(_) => {
                let names = [("w1", INNER, HIDDEN), ("w3", INNER, HIDDEN), ("w2", HIDDEN, INNER)];
                (0..EXPERTS).for_each(|e| mlp(&names, &format!("block_sparse_moe.experts.{e}")));
            }
        }
        if !matches!(self, Layout::Experts(_)) {
            mlp(&[("down_proj", HIDDEN, INNER)], "mlp");
        }
        all
    }
}

fn config(layout: Layout, quantization: &Value) -> Value {
    let top_k = if let Layout::Experts(top_k) = layout { top_k } else { 1 };
    json!({
        "architectures": [layout.architecture()], "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_local_experts": EXPERTS, "num_experts_per_tok": top_k, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": VOCAB,
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
pub fn make(layout: Layout, form: &Form, fault: Option<Fault>, quantised: &Path, plain: &Path) -> (Vec<Stored>, Value) {
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
        if matches!(layout, Layout::Experts(_)) {
            let name = format!("{at}.block_sparse_moe.gate.weight");
            both.push(floats(&name, &[EXPERTS, HIDDEN], random.numbers(EXPERTS * HIDDEN)));
        }
        for (i, (name, rows, cols)) in layout.projections().into_iter().enumerate() {
            let stem = format!("{at}.{name}");
            if (layer, i) == (1, 0) {
                let values = random.numbers(rows * cols);
                both.push(floats(&format!("{stem}.weight"), &[rows, cols], values.iter().map(|x| x / 8.0)));
                continue;
            }
            let (tensors, values) = form.matrix(&stem, rows, cols, fault, &mut random);
            codes.extend(tensors);
            decoded.push(floats(&format!("{stem}.weight"), &[rows, cols], values.iter().map(|x| *x as f32)));
        }
    }
    write(plain, &[both.clone(), decoded].concat(), &config(layout, &Value::Null));
    let (tensors, config) = ([both, codes].concat(), config(layout, &form.config));
    write(quantised, &tensors, &config);
    (tensors, config)
}
