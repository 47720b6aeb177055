//! Checkpoints that were quantised beforehand, made here in every form with random codes and factors, as their own tools
//! store them. What they stand for is computed in float64 from the definition of the form, stored as float32, and run as an
//! ordinary checkpoint; logits must agree, and not one bit may depend on the budget. A definition that is wrong in one thing
//! must not agree.

#[path = "quantized/forms.rs"]
mod forms;
#[path = "quantized/model.rs"]
mod model;
#[allow(dead_code, reason = "the cases that are carried are run elsewhere")]
mod reference;

use std::path::Path;

use layerstream::{GenerateOptions, Model, Options, Outline};
use serde_json::Value;

use forms::{Fault, Form, Stored, forms};
use model::{Layout, VOCAB, make, write};
use reference::{GATE, logits, nmse, prompts};

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

fn error_of(layout: Layout, form: &Form, fault: Option<Fault>) -> f64 {
    let (quantised, plain) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make(layout, form, fault, quantised.path(), plain.path());
    let found = run(quantised.path(), 1 << 30);
    if fault.is_none() {
        let floor = floor(quantised.path());
        for ram in [floor, floor + (1 << 20)] {
            let again = run(quantised.path(), ram);
            let same = found.iter().zip(&again).all(|(a, b)| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits()));
            assert!(same, "{}, {layout:?}: bits differ at a budget of {ram}", form.name);
        }
    }
    let expected = run(plain.path(), 1 << 30);
    found.iter().zip(&expected).map(|(found, expected)| nmse(found, expected)).fold(0.0, f64::max)
}

#[test]
fn every_form_is_what_it_says() {
    for form in forms() {
        for layout in [Layout::Separate, Layout::Packed, Layout::Experts(2)] {
            let error = error_of(layout, &form, None);
            println!("{}, {layout:?}: NMSE {error:e}", form.name);
            assert!(error <= 1e-9, "{}, {layout:?}: NMSE {error:e}", form.name);
        }
    }
}

/// What AutoAWQ saved first: options in a file of their own, by older names.
#[test]
fn options_in_a_file_beside_the_configuration() {
    let all = forms();
    let form = all.iter().find(|form| form.name == "awq, groups of 32").unwrap();
    let (quantised, plain) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (tensors, mut config) = make(Layout::Separate, form, None, quantised.path(), plain.path());
    let expected = run(quantised.path(), 1 << 30);
    config.as_object_mut().unwrap().remove("quantization_config");
    write(quantised.path(), &tensors, &config);
    let options = |version: &str| {
        let options = serde_json::json!({"zero_point": true, "q_group_size": 32, "w_bit": 4, "version": version});
        std::fs::write(quantised.path().join("quant_config.json"), options.to_string()).unwrap();
    };
    options("GEMM");
    assert!(run(quantised.path(), 1 << 30) == expected);
    options("GEMV");
    let error = Model::open(quantised.path(), &self::options(1 << 30)).err().expect("an error").to_string();
    assert!(error.contains("AWQ") && error.contains("GEMV"), "{error}");
}

#[test]
fn a_wrong_definition_is_noticed() {
    for form in forms() {
        for fault in form.faults {
            let error = error_of(Layout::Separate, &form, Some(*fault));
            // Far from what passes, even where a step of one is the least there is in 256.
            assert!(error > 100.0 * GATE, "{}: {fault:?} gives an NMSE of {error:e} only", form.name);
        }
    }
}

/// Cases of the larger collection, written by the tools themselves where these could be had.
const PUBLISHED: [&str; 12] = [
    "bnb_nf4",
    "bnb_nf4_double",
    "bnb_fp4",
    "bnb_int8",
    "gptq_int4",
    "gptq_int4_actorder",
    "awq_int4_gemm",
    "ct_pack_int4_sym",
    "ct_pack_int4_asym",
    "ct_int8_channel",
    "ct_fp8_channel",
    "ct_fp8_tensor",
];

#[test]
fn published_forms_agree_with_their_references() {
    for name in PUBLISHED {
        let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden").join(name);
        if !case.exists() {
            println!("SKIPPED: the larger collection of golden cases, with {name}, is not here");
            continue;
        }
        let prompts = prompts(&case);
        let open = |ram| Model::open(&case, &Options { context: Some(192), ..options(ram) }).unwrap();
        let floor = floor(&case);
        let mut first: Option<Vec<Vec<u32>>> = None;
        for ram in [1 << 30, floor + (1 << 20), floor + (2 << 20)] {
            let mut model = open(ram);
            let found: Vec<_> = prompts.iter().map(|prompt| logits(&mut model, &prompt.ids)).collect();
            for (found, prompt) in found.iter().zip(&prompts) {
                let error = nmse(found, &prompt.logits);
                assert!(error <= GATE, "{name}: NMSE {error:e} at a budget of {ram}");
            }
            let bits: Vec<Vec<u32>> = found.iter().map(|row| row.iter().map(|x| x.to_bits()).collect()).collect();
            assert!(first.get_or_insert_with(|| bits.clone()) == &bits, "{name}: bits differ at a budget of {ram}");
        }
        let mut model = open(1 << 30);
        let greedy = GenerateOptions { max_new_tokens: 12, ..GenerateOptions::default() };
        for prompt in &prompts {
            let outputs = model.generate(vec![prompt.ids.clone()], &greedy).unwrap().outputs().unwrap();
            assert_eq!(outputs[0].ids, prompt.greedy, "{name}");
        }
    }
}

fn refused(form: &Form, change: impl Fn(&mut Vec<Stored>, &mut Value), parts: &[&str]) {
    let (quantised, plain) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut tensors, mut config) = make(Layout::Separate, form, None, quantised.path(), plain.path());
    change(&mut tensors, &mut config);
    write(quantised.path(), &tensors, &config);
    let error = match Model::open(quantised.path(), &options(1 << 30)) {
        Err(error) => error,
        Ok(mut model) => model.logits(&[1], |_| Ok(())).expect_err("should be refused"),
    };
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{}: `{part}` is not in: {text}", form.name);
    }
}

/// A tensor of the first layer's first projection.
fn tensor<'a>(tensors: &'a mut [Stored], ending: &str) -> &'a mut Stored {
    let name = format!("model.layers.0.self_attn.q_proj.{ending}");
    tensors.iter_mut().find(|tensor| tensor.name == name).expect("a tensor of that name")
}

#[test]
fn what_contradicts_is_named() {
    let all = forms();
    let form = |name: &str| all.iter().find(|form| form.name == name).expect("a form of that name");
    let shape = |ending: &'static str, shape: &'static [usize]| {
        move |tensors: &mut Vec<Stored>, _: &mut Value| {
            let tensor = tensor(tensors, ending);
            tensor.bytes.resize(
                tensor.bytes.len() / tensor.shape.iter().product::<usize>() * shape.iter().product::<usize>(),
                0,
            );
            tensor.shape = shape.to_vec();
        }
    };
    let gptq = form("gptq, 4 bits, groups of 32");
    refused(gptq, shape("qweight", &[16, 64]), &["q_proj.qweight", "[16, 64]", "[8, 64]"]);
    refused(gptq, shape("scales", &[4, 64]), &["q_proj.scales", "[4, 64]", "[2, 64]"]);
    refused(gptq, shape("qzeros", &[2, 64]), &["q_proj.qzeros", "[2, 64]", "[2, 8]"]);
    let ordered = form("gptq in any order");
    let outside = |tensors: &mut Vec<Stored>, _: &mut Value| tensor(tensors, "g_idx").bytes[20] = 2;
    refused(ordered, outside, &["q_proj.g_idx", "column 5", "group 2"]);
    let negative = |tensors: &mut Vec<Stored>, _: &mut Value| tensor(tensors, "g_idx").bytes[20..24].fill(0xff);
    refused(ordered, negative, &["q_proj.g_idx", "column 5"]);
    let without = |tensors: &mut Vec<Stored>, _: &mut Value| tensors.retain(|t| !t.name.ends_with("q_proj.g_idx"));
    refused(ordered, without, &["q_proj.g_idx", "is missing"]);
    refused(form("awq, groups of 32"), shape("qweight", &[64, 16]), &["q_proj.qweight", "[64, 16]", "[64, 8]"]);
    let nf4 = form("nf4, blocks of 64");
    let state = |text: &'static str| {
        move |tensors: &mut Vec<Stored>, _: &mut Value| {
            let tensor = tensor(tensors, "weight.quant_state.bitsandbytes__nf4");
            (tensor.bytes, tensor.shape) = (text.into(), vec![text.len()]);
        }
    };
    refused(nf4, state(r#"{"blocksize": 64, "shape": [64, 128]}"#), &["quant_state", "[64, 128]", "[64, 64]"]);
    refused(nf4, state(r#"{"blocksize": 0, "shape": [64, 64]}"#), &["quant_state", "impossible"]);
    refused(nf4, state(r#"{"blocksize": 24, "shape": [64, 64]}"#), &["blocks of 24", "not supported"]);
    refused(nf4, state("nonsense"), &["quant_state", "is no state"]);
    refused(nf4, shape("weight.absmax", &[65]), &["weight.absmax", "[65]", "[64]"]);
    refused(nf4, shape("weight", &[2047, 1]), &["q_proj.weight", "2047 bytes", "64 × 64"]);
    let map = |tensors: &mut Vec<Stored>, _: &mut Value| tensor(tensors, "weight.quant_map").bytes[3] = 0x3f;
    refused(nf4, map, &["quant_map", "not supported"]);
    let int8 = form("llm.int8");
    let format = |tensors: &mut Vec<Stored>, _: &mut Value| tensor(tensors, "weight_format").bytes[0] = 1;
    refused(int8, format, &["weight_format", "not supported"]);
    refused(int8, shape("SCB", &[32]), &["q_proj.SCB", "[32]", "[64]"]);
    let packed = form("packed, 4 bits, groups of 32, zeros");
    refused(packed, shape("weight_packed", &[64, 16]), &["q_proj.weight_packed", "[64, 16]", "[64, 8]"]);
    refused(packed, shape("weight_zero_point", &[8, 4]), &["weight_zero_point", "[8, 4]", "[8, 2]"]);
    let several = form("packed, 4 bits, groups of 32 and of 16, zeros or none");
    refused(
        several,
        shape("weight_scale", &[64, 8]),
        &["q_proj.weight_scale", "[64, 8]", "none of the 3 ways", "[64, 64]"],
    );
    for (name, method) in
        [("gptq v2", "GPTQ or AWQ"), ("nf4, blocks of 64", "bitsandbytes"), ("llm.int8", "bitsandbytes")]
    {
        let without = |_: &mut Vec<Stored>, config: &mut Value| config["quantization_config"] = Value::Null;
        refused(form(name), without, &["layers.0.", method, "`quantization_config` is missing", "quant_config.json"]);
    }
    let says = |tensors: &mut Vec<Stored>, _: &mut Value| tensor(tensors, "weight_shape").bytes[0] = 63;
    refused(packed, says, &["weight_shape", "[63, 64]", "[64, 64]"]);
    let ordered = form("packed, 4 bits in any order, zeros");
    refused(ordered, shape("weight_g_idx", &[32]), &["q_proj.weight_g_idx", "[32]", "[64]"]);
    let outside = |tensors: &mut Vec<Stored>, _: &mut Value| tensor(tensors, "weight_g_idx").bytes[20] = 2;
    refused(ordered, outside, &["q_proj.weight_g_idx", "column 5", "group 2"]);
}
