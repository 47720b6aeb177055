//! What `layerstream pack` wrote, on a GPU: as the processor computes it, within the error that bfloat16 has on the original; the
//! bits of the original, if nothing was lost; and damage, found while it streams.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use layerstream::{Device, GenerateOptions, Model, Options, Result};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::child::Job;
use crate::expected::{Prompt, prompts};
use crate::golden::problem;
use crate::parent::{case, run};

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

/// A model, packed.
fn pack(model: &Path, args: &[&str]) -> tempfile::TempDir {
    let out = tempfile::tempdir().unwrap();
    let mut pack = Command::new(env!("CARGO_BIN_EXE_layerstream"));
    pack.arg("pack").arg(model).arg("--out").arg(out.path()).args(args).env_remove("RUST_LOG");
    let output = pack.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    out
}

fn check(name: &str, seed: u64, args: &[&str]) {
    let out = pack(&case(name), args);
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

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

/// The packed matrices of a model, as its manifest has them: the file, the name, where their bytes begin, and how many there are.
fn matrices(model: &Path) -> Vec<(PathBuf, String, usize, usize)> {
    let manifest: Value = serde_json::from_slice(&fs::read(model.join("layerstream-pack.json")).unwrap()).unwrap();
    let of_shard = |shard: &Value| {
        let file = model.join(shard["file"].as_str().unwrap());
        let packed = shard["tensors"].as_array().unwrap().iter().filter(|tensor| !tensor["packed"].is_null());
        let number = |tensor: &Value, key: &str| tensor[key].as_u64().unwrap() as usize;
        let all = packed.map(|tensor| {
            (
                file.clone(),
                tensor["name"].as_str().unwrap().to_string(),
                number(tensor, "offset"),
                number(tensor, "bytes"),
            )
        });
        all.collect::<Vec<_>>()
    };
    manifest["shards"].as_array().unwrap().iter().flat_map(of_shard).collect()
}

/// What is packed without loss has the logits and the tokens of the original, bit for bit: with all of it on the GPU, and with
/// rows from disk; with heads of their own, a tied one, and one whose rows are divided by their lengths; with experts, and with
/// rows that are no whole blocks.
#[test]
fn packed_without_loss_it_has_the_bits_of_the_original() {
    let mut packed = 0;
    let mut names = Vec::new();
    let cases = [("gemma2", 100_000), ("baichuan2_7b", 20_000), ("mixtral", 20_000), ("mixtral_fused", 20_000)];
    for (seed, (name, few)) in cases.into_iter().enumerate() {
        let original = case(name);
        let out = pack(&original, &["--to", "lossless"]);
        let found = matrices(out.path());
        packed += found.len();
        names.extend(found.into_iter().map(|(_, tensor, ..)| tensor));
        let base =
            Job { prompts: vec![(1..12).collect(), vec![3, 1, 4, 1, 5]], context: 24, sequences: 2, ..Job::default() };
        let of = |model: &Path| Job { model: model.to_str().unwrap().into(), ..base.clone() };
        let streamed = |job: Job| Job { vram: Some(few), ram: Some(0), ..job };
        let answer = |job: Job| Job { new_tokens: 4, ..job };
        let jobs = [
            of(&original),
            of(out.path()),
            streamed(of(out.path())),
            answer(of(&original)),
            answer(of(out.path())),
            streamed(answer(of(out.path()))),
        ];
        let (outcomes, _) = run(&jobs, &[("SEED", &seed.to_string())]).done();
        for outcome in &outcomes {
            assert!(outcome.errors.is_empty(), "{name}: {:?}", outcome.errors);
        }
        let [first, all, disk, first_answers, all_answers, disk_answers] = &outcomes[..] else { panic!("six jobs") };
        assert!(!first.logits[0].is_empty() && !first_answers.tokens[0].is_empty());
        for outcome in [all, disk] {
            assert!(outcome.logits == first.logits, "{name}: other logits, tiers {:?}", outcome.tiers);
        }
        for outcome in [all_answers, disk_answers] {
            assert_eq!(outcome.tokens, first_answers.tokens, "{name}");
        }
        assert!(disk.read > all.read, "{name}: nothing is streamed: {:?}", disk.tiers);
    }
    println!("{packed} matrices packed: {names:?}");
    for part in ["embed_tokens", "lm_head", "experts", "o_proj"] {
        assert!(names.iter().any(|name| name.contains(part)), "no {part} among {names:?}");
    }
}

/// A bit of a streamed matrix, of one that stays on the GPU, or of an expert that is not as it was written.
#[test]
fn damage_is_found_while_streaming_to_a_gpu() {
    let mixture = case("mixtral_fused");
    for (model, few) in [(demo(), 1_000_000), (mixture, 20_000)] {
        let good = pack(&model, &["--to", "lossless"]);
        let (mut damaged, mut jobs, mut names) = (Vec::new(), Vec::new(), Vec::new());
        let base =
            Job { prompts: vec![(5..40).collect(), vec![7]], context: 64, sequences: 1, check: true, ..Job::default() };
        let ways = |model: &Path| {
            let job = Job { model: model.to_str().unwrap().into(), ..base.clone() };
            [job.clone(), Job { vram: Some(few), ram: Some(0), ..job }]
        };
        jobs.extend(ways(good.path()));
        for (i, (file, name, at, bytes)) in matrices(good.path()).into_iter().enumerate() {
            if !name.contains("layers.1.") {
                continue;
            }
            let bad = tempfile::tempdir().unwrap();
            for entry in fs::read_dir(good.path()).unwrap() {
                let entry = entry.unwrap();
                fs::copy(entry.path(), bad.path().join(entry.file_name())).unwrap();
            }
            let file = bad.path().join(file.file_name().unwrap());
            let mut content = fs::read(&file).unwrap();
            content[at + i * 7919 % bytes] ^= 1;
            fs::write(&file, content).unwrap();
            jobs.extend(ways(bad.path()));
            names.push(name);
            damaged.push(bad);
        }
        let (outcomes, _) = run(&jobs, &[]).done();
        let (whole, broken) = outcomes.split_at(2);
        assert!(whole[0].tiers[0] > 0 && whole[1].read > whole[0].read, "nothing is streamed: {:?}", whole[1].tiers);
        whole.iter().for_each(|outcome| assert!(outcome.errors.is_empty(), "{:?}", outcome.errors));
        assert!(names.len() > 5, "{names:?}");
        for (pair, name) in broken.chunks(2).zip(&names) {
            for outcome in pair {
                let [error] = &outcome.errors[..] else {
                    panic!("{name}: {:?}, tiers {:?}", outcome.errors, outcome.tiers)
                };
                assert!(error.contains(name) && error.contains("not those that were written"), "{name}: {error}");
            }
        }
    }
}

/// The same from the command line.
#[test]
fn the_command_line_finds_damage_on_its_way_to_a_gpu() {
    let model = pack(&demo(), &["--to", "lossless"]);
    let generate = || -> Output {
        let mut generate = Command::new(env!("CARGO_BIN_EXE_layerstream"));
        generate.arg("generate").arg(model.path()).args(["--ids", "5,6,7,8", "--max-new-tokens", "3", "--ignore-eos"]);
        generate.args(["--check", "--device", "cuda:0"]).env_remove("RUST_LOG");
        generate.env("LD_LIBRARY_PATH", layerstream_cudasim::directory().unwrap());
        generate.env("LAYERSTREAM_SIM_VRAM", (512u64 << 20).to_string()).output().unwrap()
    };
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let whole = generate();
    assert!(whole.status.success(), "{}", said(&whole));
    let (file, name, at, bytes) =
        matrices(model.path()).into_iter().find(|(_, name, ..)| name.contains("down_proj")).unwrap();
    let mut content = fs::read(&file).unwrap();
    content[at + bytes / 2] ^= 0x10;
    fs::write(&file, content).unwrap();
    let broken = generate();
    let said = said(&broken);
    assert!(!broken.status.success() && said.contains(&name) && said.contains("not those that were written"), "{said}");
}
