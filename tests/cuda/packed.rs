//! What `layerstream pack` wrote, on a GPU: as the processor computes it, within the error that bfloat16 has on the original.

use std::path::Path;
use std::process::Command;

use layerstream::{Device, GenerateOptions, Model, Options};

use crate::golden::{Prompt, agrees, prompts};
use crate::parent::case;

/// What there is to expect of a model: what the processor gives, and the gates of the case that it was packed from.
fn by_processor(model: &Path, of: &Path) -> Vec<Prompt> {
    let options = Options { device: Device::Cpu, context: Some(192), all_logits: true, ..Options::default() };
    let mut model = Model::open(model, &options).unwrap();
    let mut logits = |ids: &[u32]| {
        let mut all = Vec::new();
        model
            .logits(ids, |rows| {
                all.extend_from_slice(rows);
                Ok(())
            })
            .unwrap();
        all
    };
    let expected = prompts(of).into_iter().map(|prompt| (logits(&prompt.ids), prompt)).collect::<Vec<_>>();
    let greedy = GenerateOptions { max_new_tokens: 12, ..GenerateOptions::default() };
    let one = |(logits, prompt): (Vec<f32>, Prompt)| {
        let outputs = model.generate(vec![prompt.ids.clone()], &greedy).unwrap().outputs().unwrap();
        let tokens = outputs[0].ids.clone();
        let whole = [prompt.ids.clone(), tokens.clone()].concat();
        let mut all = Vec::new();
        model
            .logits(&whole, |rows| {
                all.extend_from_slice(rows);
                Ok(())
            })
            .unwrap();
        let chose = all.chunks(all.len() / whole.len()).skip(prompt.ids.len() - 1).take(tokens.len());
        let gap = chose.map(|row| {
            let mut row = row.to_vec();
            row.sort_by(|a, b| b.total_cmp(a));
            f64::from(row[0] - row[1])
        });
        Prompt { logits, greedy: tokens, gap: gap.fold(f64::INFINITY, f64::min), ..prompt }
    };
    expected.into_iter().map(one).collect()
}

fn check(name: &str, seed: u64, args: &[&str]) {
    let out = tempfile::tempdir().unwrap();
    let mut pack = Command::new(env!("CARGO_BIN_EXE_layerstream"));
    pack.arg("pack").arg(case(name)).arg("--out").arg(out.path()).args(args).env_remove("RUST_LOG");
    let output = pack.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let expected = by_processor(out.path(), &case(name));
    let path = out.path().to_str().unwrap().into();
    agrees(&format!("{name} {args:?}"), path, &expected, seed, true).unwrap();
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
