//! `quantization_config`: where factors are found and what shapes they may have, and that every method, format and option
//! that is not implemented is refused by name.

use std::fs;
use std::path::Path;

use layerstream::encoding::Encoding;
use layerstream::program::Program;
use layerstream::{Options, Outline};
use safetensors::{SafeTensors, serialize_to_file};
use serde_json::{Value, json};

/// A golden case with changes to its configuration.
fn open(case: &str, change: impl Fn(&mut Value)) -> layerstream::Result<Program> {
    open_as(case, change, str::to_owned)
}

/// The same with its tensors by other names.
fn open_as(case: &str, change: impl Fn(&mut Value), name: impl Fn(&str) -> String) -> layerstream::Result<Program> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(case);
    let dir = tempfile::tempdir().unwrap();
    let file = fs::read(golden.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let tensors = tensors.iter().map(|(old, view)| (name(old), view));
    serialize_to_file(tensors, None, &dir.path().join("model.safetensors")).unwrap();
    let mut config = serde_json::from_slice(&fs::read(golden.join("config.json")).unwrap()).unwrap();
    change(&mut config);
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let options = Options { ram: Some(64 << 20), ..Options::default() };
    Outline::new(dir.path(), &options).map(|outline| outline.program().clone())
}

#[track_caller]
fn refused(case: &str, change: impl Fn(&mut Value), parts: &[&str]) {
    let text = open(case, change).expect_err("should be refused").to_string();
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

/// The blocks of every matrix that has factors.
fn blocks(program: &Program) -> Vec<(usize, usize)> {
    let scaled = program.matrices.iter().filter(|matrix| !matrix.encoding.is_complete());
    scaled.map(|matrix| matrix.scales.map(|scales| (scales.row_block, scales.col_block)).unwrap()).collect()
}

#[test]
fn factors_are_for_blocks_rows_or_all() {
    let program = open("fp8_block128", |_| ()).unwrap();
    assert_eq!(blocks(&program), [(128, 128); 14]);
    let program = open("ct_fp8_channel", |_| ()).unwrap();
    assert!(blocks(&program).iter().all(|(rows, cols)| *rows == 1 && [64, 160].contains(cols)));
    let program = open("ct_fp8_tensor", |_| ()).unwrap();
    assert!(blocks(&program).iter().all(|(rows, cols)| *rows >= 32 && [64, 160].contains(cols)));
    // The head is not quantised, and its type says so.
    assert_eq!(program.matrices.last().unwrap().encoding, Encoding::Bf16);
    // The same layouts by other names.
    let fbgemm = |config: &mut Value| config["quantization_config"] = json!({"quant_method": "fbgemm_fp8"});
    assert_eq!(blocks(&open("ct_fp8_channel", fbgemm).unwrap()).len(), 14);
    // Matrices by row beside others by block; blocks in the older spelling, and factors by compressed-tensors' name.
    let both = |config: &mut Value| {
        let groups = config["quantization_config"]["config_groups"].as_object_mut().unwrap();
        let by_block =
            json!({"weights": {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": "128x128"}});
        groups.insert("group_1".into(), by_block);
    };
    assert!(blocks(&open("ct_fp8_channel", both).unwrap()).iter().all(|(rows, _)| *rows == 1));
    let compressed = |config: &mut Value| {
        let weights = json!({"num_bits": 8, "type": "float", "strategy": "block", "block_structure": "128x128"});
        config["quantization_config"] = json!({"quant_method": "compressed-tensors", "format": "float-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}});
    };
    let renamed = open_as("fp8_block128", compressed, |name| name.replace("weight_scale_inv", "weight_scale")).unwrap();
    assert_eq!(blocks(&renamed), [(128, 128); 14]);
    let older = |config: &mut Value| {
        config["compression_config"] = config.as_object_mut().unwrap().shift_remove("quantization_config").unwrap();
    };
    assert_eq!(blocks(&open("ct_fp8_channel", older).unwrap()).len(), 14);
}

#[test]
fn what_is_not_implemented_is_named() {
    for method in ["hqq", "quanto", "eetq", "aqlm", "vptq"] {
        let change = |config: &mut Value| config["quantization_config"] = json!({"quant_method": method});
        refused("fp8_block128", change, &[method, "not supported"]);
    }
    let method = |section: Value| move |config: &mut Value| config["quantization_config"] = section.clone();
    let gptq = |key: &str, value: Value| {
        let mut section = json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": true, "desc_act": false});
        section[key] = value;
        method(section)
    };
    for bits in [2, 3, 5] {
        refused("fp8_block128", gptq("bits", json!(bits)), &["GPTQ", &format!("{bits} bits"), "not supported"]);
    }
    refused("fp8_block128", gptq("bits", Value::Null), &["GPTQ", "`bits`"]);
    refused("fp8_block128", gptq("checkpoint_format", json!("marlin")), &["GPTQ", "marlin", "not supported"]);
    refused("fp8_block128", gptq("is_marlin_format", json!(true)), &["GPTQ", "marlin", "not supported"]);
    refused("fp8_block128", gptq("dynamic", json!({".*down.*": {"bits": 8}})), &["GPTQ", ".*down.*", "dynamic"]);
    refused("fp8_block128", gptq("group_size", json!(-2)), &["group_size", "-2"]);
    let awq = |key: &str, value: Value| {
        let mut section = json!({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"});
        section[key] = value;
        method(section)
    };
    for version in ["gemv", "gemv_fast", "marlin", "exllama", "ipex"] {
        refused("fp8_block128", awq("version", json!(version)), &["AWQ", version, "not supported"]);
    }
    let unnamed = json!({"quant_method": "awq", "bits": 4, "group_size": 128, "checkpoint_format": "gemv"});
    refused("fp8_block128", method(unnamed), &["AWQ", "gemv", "not supported"]);
    refused("fp8_block128", awq("bits", json!(3)), &["AWQ", "3 bits", "not supported"]);
    refused("fp8_block128", awq("zero_point", json!(false)), &["AWQ", "zero_point", "not supported"]);
    let set =
        |key: &'static str, value: Value| move |config: &mut Value| config["quantization_config"][key] = value.clone();
    refused("fp8_block128", set("fmt", json!("e5m2")), &["e5m2", "not supported"]);
    refused("fp8_block128", set("weight_block_size", json!([128, 100])), &["weight_block_size", "[128,100]"]);
    refused("fp8_block128", set("weight_block_size", json!("all")), &["weight_block_size", "\"all\""]);
    refused("ct_fp8_channel", set("format", json!("pack-quantized")), &["pack-quantized", "not supported"]);
    refused("ct_fp8_channel", set("sparsity_config", json!({"format": "sparse-24-bitmask"})), &["sparse-24-bitmask"]);
    let weights = |key: &'static str, value: Value| {
        move |config: &mut Value| {
            config["quantization_config"]["config_groups"]["group_0"]["weights"][key] = value.clone();
        }
    };
    refused("ct_fp8_channel", set("format", json!("marlin-24")), &["marlin-24", "not supported"]);
    refused("ct_fp8_channel", set("transform_config", json!({"config_groups": {}})), &["transform_config"]);
    refused("ct_fp8_channel", weights("num_bits", json!(4)), &["float with 4 bits"]);
    refused("ct_fp8_channel", weights("type", json!("int")), &["q_proj.weight", "F8_E4M3", "quantization_config"]);
    refused("ct_fp8_channel", weights("strategy", json!("group")), &["`group`"]);
}

#[test]
fn factors_that_are_missing_or_of_another_shape() {
    let none = |config: &mut Value| config["quantization_config"] = Value::Null;
    refused("fp8_block128", none, &["q_proj.weight", "F8_E4M3", "quantization_config", "not supported"]);
    let channel = |config: &mut Value| config["quantization_config"] = json!({"quant_method": "fp8"});
    // Factors under either name are found.
    let blocks = blocks(&open("ct_fp8_channel", channel).unwrap());
    assert!(!blocks.is_empty() && blocks.iter().all(|(rows, _)| *rows == 1), "{blocks:?}");
    let other = |config: &mut Value| config["quantization_config"] = json!({"quant_method": "fbgemm_fp8"});
    refused("fp8_block128", other, &["q_proj.weight_scale`", "is missing"]);
    refused("fp8_block128", channel, &["q_proj.weight_scale_inv", "[2, 2]", "[160, 160]"]);
    let larger = |config: &mut Value| config["quantization_config"]["weight_block_size"] = json!([128, 256]);
    refused("fp8_block128", larger, &["weight_scale_inv", "[2, 2]"]);
}
