//! What `layerstream pack` wrote, on a GPU: as the processor computes it, within the error that bfloat16 has on the original.

use std::fs;
use std::path::Path;
use std::process::Command;

use layerstream::{Device, GenerateOptions, Model, Options, Result};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::expected::{Prompt, prompts};
use crate::golden::problem;
use crate::parent::case;

/// Makes a golden case of a model: what the processor gives, with the gates of the case that it was packed from.
fn expect_of_processor(model: &Path, of: &Path) {
    let options = Options { device: Device::Cpu, context: Some(192), all_logits: true, ..Options::default() };
    let mut opened = Model::open(model, &options).unwrap();
    let (mut tensors, mut gaps) = (Vec::new(), Vec::new());
    for (i, prompt) in prompts(of).unwrap().iter().enumerate() {
        let (expected, gap) = by_processor(&mut opened, &prompt.ids).unwrap();
        let wide = |ids: &[u32]| ids.iter().flat_map(|id| i64::from(*id).to_le_bytes()).collect::<Vec<u8>>();
        tensors.push((format!("ids.{i}"), Dtype::I64, wide(&expected.ids)));
        tensors.push((format!("logits.{i}"), Dtype::F32, bytemuck::cast_slice(&expected.logits).to_vec()));
        tensors.push((format!("greedy.{i}"), Dtype::I64, wide(&expected.greedy)));
        gaps.push(gap);
    }
    let views = tensors.iter().map(|(name, dtype, data)| {
        (name, TensorView::new(*dtype, vec![data.len() * 8 / dtype.bitsize()], data).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(model.join("expected.safetensors"), bytes).unwrap();
    let about: Value = serde_json::from_slice(&fs::read(of.join("expected.json")).unwrap()).unwrap();
    let about = json!({"nmse_bf16_vs_f32": about["nmse_bf16_vs_f32"], "greedy_gap_per_prompt": gaps});
    fs::write(model.join("expected.json"), about.to_string()).unwrap();
}

/// And the smallest distance between the two best tokens of the continuation.
fn by_processor(model: &mut Model, ids: &[u32]) -> Result<(Prompt, f64)> {
    let greedy = GenerateOptions { max_new_tokens: 12, ..GenerateOptions::default() };
    let tokens = model.generate(vec![ids.to_vec()], &greedy)?.outputs()?.remove(0).ids;
    let whole = [ids, &tokens[..]].concat();
    let all = logits(model, &whole)?;
    let chose = all.chunks(all.len() / whole.len()).skip(ids.len() - 1).take(tokens.len());
    let gap = chose.map(|row| {
        let mut row = row.to_vec();
        row.sort_by(|a, b| b.total_cmp(a));
        f64::from(row[0] - row[1])
    });
    let gap = gap.fold(f64::INFINITY, f64::min);
    Ok((Prompt { ids: ids.to_vec(), logits: logits(model, ids)?, greedy: tokens }, gap))
}

fn logits(model: &mut Model, ids: &[u32]) -> Result<Vec<f32>> {
    let mut all = Vec::new();
    model.logits(ids, |rows| {
        all.extend_from_slice(rows);
        Ok(())
    })?;
    Ok(all)
}

fn check(name: &str, seed: u64, args: &[&str]) {
    let out = tempfile::tempdir().unwrap();
    let mut pack = Command::new(env!("CARGO_BIN_EXE_layerstream"));
    pack.arg("pack").arg(case(name)).arg("--out").arg(out.path()).args(args).env_remove("RUST_LOG");
    let output = pack.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    expect_of_processor(out.path(), &case(name));
    assert_eq!(problem(out.path(), seed), None, "{name} {args:?}");
}

#[test]
fn packed_as_int8() {
    check("llama31_gqa", 1, &["--to", "int8"]);
    check("llama31_gqa", 2, &["--to", "int8", "--block", "64", "--head"]);
}

#[test]
fn packed_as_nf4() {
    check("llama31_gqa", 3, &["--to", "nf4"]);
    check("llama31_gqa", 4, &["--to", "nf4", "--double-quant", "--head"]);
}

/// Matrices whose rows are no whole blocks, and a head whose rows are divided by their lengths.
#[test]
fn packed_rows_of_any_length() {
    check("baichuan2_7b", 5, &["--to", "int8", "--head"]);
    check("baichuan2_7b", 6, &["--to", "nf4", "--double-quant", "--head"]);
}

#[test]
fn packed_experts() {
    check("mixtral", 7, &["--to", "int8"]);
    check("mixtral", 8, &["--to", "nf4", "--double-quant"]);
}
