//! `layerstream pack` and `verify`: what is written is what a plain implementation of the format makes; read back, the model
//! computes with exactly those numbers; and whenever packing ends, source or result is complete.
#![cfg(feature = "cli")]

#[path = "pack/hub.rs"]
mod hub;
#[path = "pack/memory.rs"]
mod memory;
#[path = "pack/order.rs"]
mod order;
#[path = "pack/room.rs"]
mod room;
#[path = "pack/sources.rs"]
mod sources;
#[path = "pack/together.rs"]
mod together;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use layerstream::encoding::{NF4, scale_map};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize_to_file};
use serde_json::Value;

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

fn layerstream() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_layerstream"));
    command.env_remove("RUST_LOG");
    command
}

fn pack(model: &Path, out: &Path, args: &[&str]) -> Output {
    layerstream().arg("pack").arg(model).arg("--out").arg(out).args(args).output().unwrap()
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

#[track_caller]
fn fails(output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` in {text}");
    }
}

fn verify(dir: &Path) -> Output {
    layerstream().arg("verify").arg(dir).output().unwrap()
}

fn copy_of_demo() -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(demo()).unwrap() {
        let from = entry.unwrap().path();
        // The originals may be read-only, which a copy by `fs::copy` would be, too.
        fs::write(copy.path().join(from.file_name().unwrap()), fs::read(&from).unwrap()).unwrap();
    }
    copy
}

/// Name, type, shape and bytes of every tensor in a directory.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(dir: &Path) -> Tensors {
    let mut all = Tensors::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            let bytes = fs::read(path).unwrap();
            for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                all.insert(name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
            }
        }
    }
    all
}

fn bf16(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
}

/// A row, packed, and what it stands for.
fn reference(row: &[f32], to: &str, block: usize) -> (Vec<u8>, Vec<f32>) {
    let k = row.len();
    let absmax: Vec<f32> = row.chunks(block).map(|b| b.iter().fold(0f32, |m, w| m.max(w.abs()))).collect();
    let padded = k.next_multiple_of(64);
    let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let (mut bytes, numbers): (Vec<u8>, Vec<f32>) = if to == "int8" {
        let scales: Vec<f32> = absmax.iter().map(|a| a / 127.0).collect();
        let code = |i: usize| (row[i] / scales[i / block]).round_ties_even();
        let codes: Vec<u8> = (0..padded).map(|i| if i < k { code(i) as i8 as u8 } else { 0 }).collect();
        ([codes, floats(&scales)].concat(), (0..k).map(|i| code(i) * scales[i / block]).collect())
    } else {
        // Nearest by distance to the scaled number; where two are equally near, the lower.
        let code = |i: usize| {
            let x = row.get(i).map_or(0.0, |w| w * (1.0 / absmax[i / 64].max(1e-38)));
            let middle = |i: usize| (NF4[i] + NF4[i + 1]) / 2.0;
            (0..15).take_while(|i| x > middle(*i)).count()
        };
        let codes: Vec<u8> = (0..padded / 2).map(|i| (code(2 * i) << 4 | code(2 * i + 1)) as u8).collect();
        let (behind, scales) = if to == "nf4" { (floats(&absmax), absmax.clone()) } else { doubled(&absmax) };
        ([codes, behind].concat(), (0..k).map(|i| NF4[code(i)] * scales[i / 64]).collect())
    };
    bytes.resize(bytes.len().next_multiple_of(16), 0);
    (bytes, numbers)
}

/// Scales as codes of the map, and what these stand for; rows of up to 256 scales.
fn doubled(absmax: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let map = scale_map();
    let offset = (absmax.iter().map(|a| f64::from(*a)).sum::<f64>() / absmax.len() as f64) as f32;
    let outer = absmax.iter().fold(0f32, |m, a| m.max((a - offset).abs()));
    let nearest = |a: &f32| {
        let x = if outer > 0.0 { (a - offset) / outer } else { 0.0 };
        (0..256).min_by(|i, j| (map[*i] - x).abs().total_cmp(&(map[*j] - x).abs())).unwrap()
    };
    let codes: Vec<usize> = absmax.iter().map(nearest).collect();
    let mut bytes: Vec<u8> = codes.iter().map(|code| *code as u8).collect();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend([outer, offset].iter().flat_map(|v| v.to_le_bytes()));
    (bytes, codes.iter().map(|code| map[*code] * outer + offset).collect())
}

fn logits(model: &Path) -> Vec<u8> {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("logits.safetensors");
    let ids = (0..40).map(|i| (i * 37 % 200).to_string()).collect::<Vec<_>>().join(",");
    let mut command = layerstream();
    command.arg("logits").arg(model).args(["--ids", &ids, "--ram", "32MiB", "--out"]).arg(&file);
    succeeds(&command.output().unwrap());
    fs::read(file).unwrap()
}

/// Packs the demo model and compares every tensor with the reference, and the logits with those of a checkpoint that has the
/// unpacked numbers as float32.
fn compare(to: &str, block: usize, args: &[&str]) {
    let (out, plain) = (tempfile::tempdir().unwrap(), copy_of_demo());
    succeeds(&pack(&demo(), out.path(), args));
    succeeds(&verify(out.path()));
    let (before, after) = (tensors(&demo()), tensors(out.path()));
    let head = args.contains(&"--head");
    let mut unpacked = Tensors::new();
    assert_eq!(before.len(), after.len());
    for (name, (dtype, shape, bytes)) in &before {
        let matrix = name.ends_with("_proj.weight") || (head && name == "lm_head.weight");
        if !matrix {
            assert_eq!(after.get(name), Some(&(*dtype, shape.clone(), bytes.clone())), "{name}");
            unpacked.insert(name.clone(), (*dtype, shape.clone(), bytes.clone()));
            continue;
        }
        let rows = bf16(bytes);
        let made: Vec<_> = rows.chunks_exact(shape[1]).map(|row| reference(row, to, block)).collect();
        let packed: Vec<u8> = made.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
        let (found_type, found_shape, found) = &after[&format!("{name}.{to}")];
        assert_eq!((*found_type, &found_shape[..]), (Dtype::U8, &[shape[0], packed.len() / shape[0]][..]), "{name}");
        assert!(*found == packed, "{name} as {to}");
        let numbers = made.iter().flat_map(|(_, numbers)| numbers.iter().flat_map(|n| n.to_le_bytes())).collect();
        unpacked.insert(name.clone(), (Dtype::F32, shape.clone(), numbers));
    }
    for file in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    {
        fs::remove_file(plain.path().join(file)).unwrap();
    }
    let views = unpacked
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    serialize_to_file(views, None, &plain.path().join("model.safetensors")).unwrap();
    assert!(logits(out.path()) == logits(plain.path()), "logits as {to}");
}

#[test]
fn int8_is_what_the_format_says_and_computes_with_those_numbers() {
    compare("int8", 128, &["--to", "int8"]);
    compare("int8", 64, &["--to", "int8", "--block", "64", "--head"]);
    compare("int8", 2048, &["--to", "int8", "--block", "2048", "--ram", "64KiB", "--threads", "2"]);
}

#[test]
fn nf4_is_what_the_format_says_and_computes_with_those_numbers() {
    compare("nf4", 64, &["--to", "nf4"]);
    compare("nf4d", 64, &["--to", "nf4", "--double-quant", "--head"]);
}

#[test]
fn lossless_is_smaller_and_the_same_model() {
    let out = tempfile::tempdir().unwrap();
    let told = succeeds(&pack(&demo(), out.path(), &["--to", "lossless", "--ram", "256KiB"]));
    assert!(told.contains("72 tensors packed as lossless"), "{told}");
    succeeds(&verify(out.path()));
    let (before, after) = (tensors(&demo()), tensors(out.path()));
    assert_eq!(before.len(), after.len());
    let mut bytes = [0, 0];
    for (name, (dtype, shape, plain)) in &before {
        match after.get(&format!("{name}.lossless")) {
            Some((_, _, packed)) => bytes = [bytes[0] + plain.len(), bytes[1] + packed.len()],
            None => assert_eq!(after.get(name), Some(&(*dtype, shape.clone(), plain.clone())), "{name}"),
        }
    }
    println!("{} bytes became {}", bytes[0], bytes[1]);
    // Rows of 128 numbers have no less than 0.75; those of real models have 0.71 or 0.72.
    assert!(bytes[1] * 100 <= bytes[0] * 75, "{bytes:?}");
    assert!(logits(out.path()) == logits(&demo()), "every bit of every logit");
    fails(&pack(&demo(), out.path(), &["--to", "nf4"]), &["was begun as lossless"]);
    for (args, word) in [(["--block", "64"], "--block"), (["--double-quant", "--head"], "--double-quant")] {
        let fresh = tempfile::tempdir().unwrap();
        fails(&pack(&demo(), fresh.path(), &[&["--to", "lossless"][..], &args].concat()), &[word]);
    }
}

#[test]
fn what_does_not_get_smaller_stays() {
    // Random bits for numbers in one of two files.
    let (model, out) = (copy_of_demo(), tempfile::tempdir().unwrap());
    let shard = model.path().join("model-00001-of-00002.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut state = 1u64;
    for byte in &mut bytes[header..] {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = (state >> 33) as u8;
    }
    fs::write(&shard, &bytes).unwrap();
    let told = succeeds(&pack(model.path(), out.path(), &["--to", "lossless"]));
    assert!(told.contains("would hardly get smaller"), "{told}");
    succeeds(&verify(out.path()));
    let (before, after) = (tensors(model.path()), tensors(out.path()));
    let random = SafeTensors::deserialize(&bytes).unwrap();
    assert!(!random.is_empty() && random.names().into_iter().all(|name| after.get(name) == before.get(name)));
    assert!(after.keys().any(|name| name.ends_with(".lossless")), "the other file is as it was");
}

#[test]
fn golden_models_are_the_same_without_loss() {
    let (mut same, mut refused, mut smaller) = (0, 0, 0);
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models")).unwrap() {
        let (model, out) = (entry.unwrap().path(), tempfile::tempdir().unwrap());
        if !model.is_dir() {
            continue;
        }
        let packed = pack(&model, out.path(), &["--to", "lossless"]);
        if !packed.status.success() {
            let text = String::from_utf8_lossy(&packed.stderr);
            assert!(text.contains("not supported") || text.contains("no matrix would be packed"), "{text}");
            println!("refused: {}", String::from_utf8_lossy(&packed.stderr).trim());
            refused += 1;
            continue;
        }
        succeeds(&verify(out.path()));
        assert!(logits(out.path()) == logits(&model), "{}", model.display());
        same += 1;
        smaller += tensors(out.path()).keys().filter(|name| name.ends_with(".lossless")).count();
    }
    println!("{same} models with equal logits, {smaller} matrices packed; {refused} refused");
    assert!(same >= 35 && smaller >= 350, "{same} models, {smaller} matrices");
}

#[test]
fn what_would_only_be_copied_is_refused() {
    let model = copy_of_demo();
    for shard in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
        let path = model.path().join(shard);
        let bytes = fs::read(&path).unwrap();
        let plain = SafeTensors::deserialize(&bytes).unwrap();
        let narrow = |number: f32| half::f16::from_f32(number).to_le_bytes();
        let halves: Vec<_> = plain
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, view.shape().to_vec(), bf16(view.data()).into_iter().flat_map(narrow).collect()))
            .collect::<Vec<(String, Vec<usize>, Vec<u8>)>>();
        let views =
            halves.iter().map(|(name, shape, b)| (name, TensorView::new(Dtype::F16, shape.clone(), b).unwrap()));
        serialize_to_file(views, None, &path).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let words = ["no matrix would be packed as lossless", "72 are not bf16", "F16", "--to int8 or nf4"];
    fails(&pack(model.path(), &out, &["--to", "lossless"]), &words);
    assert!(!out.exists(), "nothing was written");
    succeeds(&pack(model.path(), &out, &["--to", "int8"]));
}

#[test]
fn a_packed_model_is_a_directory_like_any_other() {
    let out = tempfile::tempdir().unwrap();
    succeeds(&pack(&demo(), out.path(), &["--to", "nf4"]));
    let inspect = layerstream().arg("inspect").arg(out.path()).arg("--json").output().unwrap();
    succeeds(&inspect);
    let report: Value = serde_json::from_slice(&inspect.stdout).unwrap();
    assert_eq!(report["supported"], true, "{report}");
    let mut generate = layerstream();
    generate.arg("generate").arg(out.path()).args(["--chat", "What is the capital of France?", "--ram", "32MiB"]);
    assert!(!generate.output().unwrap().stdout.is_empty());
    // Packed again, or continued as something else, it is refused.
    let again = tempfile::tempdir().unwrap();
    fails(&pack(out.path(), again.path(), &["--to", "int8"]), &["quantised already", "nf4"]);
    fails(&pack(&demo(), out.path(), &["--to", "int8"]), &["was begun as nf4"]);
    succeeds(&pack(&demo(), out.path(), &["--to", "nf4"]));
}

#[test]
fn what_cannot_be_packed_is_refused() {
    let (model, out) = (copy_of_demo(), tempfile::tempdir().unwrap());
    fs::write(out.path().join("mine.txt"), "precious").unwrap();
    fails(&pack(model.path(), out.path(), &["--to", "int8"]), &["mine.txt", "empty directory"]);
    let out = tempfile::tempdir().unwrap();
    fails(&pack(model.path(), out.path(), &["--to", "int8", "--ram", "1KiB"]), &["--ram"]);
    fails(&pack(model.path(), out.path(), &["--to", "nf4", "--block", "128"]), &["64"]);
    // A number that is not finite.
    let shard = model.path().join("model-00001-of-00002.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    let at = {
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let entries: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
        let matrix = entries.as_object().unwrap().iter().find(|(name, _)| name.ends_with("_proj.weight")).unwrap().1;
        header + matrix["data_offsets"][0].as_u64().unwrap() as usize
    };
    bytes[at..at + 2].copy_from_slice(&[0x80, 0x7f]);
    fs::write(&shard, bytes).unwrap();
    fails(
        &pack(model.path(), out.path(), &["--to", "int8", "--delete-original"]),
        &["_proj.weight", "row 0", "not finite"],
    );
    assert!(shard.exists());
}

#[test]
fn damage_is_found_and_named() {
    let whole = tempfile::tempdir().unwrap();
    succeeds(&pack(&demo(), whole.path(), &["--to", "int8", "--ram", "256KiB"]));
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"].map(|f| whole.path().join(f));
    let good = shards.clone().map(|shard| fs::read(shard).unwrap());
    let manifest: Value =
        serde_json::from_slice(&fs::read(whole.path().join("layerstream-pack.json")).unwrap()).unwrap();
    let last = manifest["shards"][1]["tensors"].as_array().unwrap().last().unwrap().clone();
    // A flipped bit in the last tensor of the second file.
    let mut flipped = good[1].clone();
    *flipped.last_mut().unwrap() ^= 4;
    fs::write(&shards[1], &flipped).unwrap();
    fails(&verify(whole.path()), &["model-00002", last["name"].as_str().unwrap(), "not those that were written"]);
    // Truncated.
    fs::write(&shards[1], &good[1][..good[1].len() - 1]).unwrap();
    fails(&verify(whole.path()), &["model-00002", "bytes, but"]);
    // Swapped.
    fs::write(&shards[1], &good[0]).unwrap();
    fs::write(&shards[0], &good[1]).unwrap();
    fails(&verify(whole.path()), &["model-00001"]);
    for (shard, good) in shards.iter().zip(&good) {
        fs::write(shard, good).unwrap();
    }
    succeeds(&verify(whole.path()));
    // Another tokenizer.
    let tokenizer = whole.path().join("tokenizer.json");
    let mut bytes = fs::read(&tokenizer).unwrap();
    bytes[100] ^= 1;
    fs::write(&tokenizer, bytes).unwrap();
    fails(&verify(whole.path()), &["tokenizer.json"]);
    fs::remove_file(&shards[0]).unwrap();
    fails(&verify(whole.path()), &["tokenizer.json"]);
    fails(&verify(&demo()), &["layerstream pack"]);
}

#[test]
fn a_manifest_that_contradicts_itself_is_refused_by_all() {
    let dir = tempfile::tempdir().unwrap();
    succeeds(&pack(&demo(), dir.path(), &["--to", "int8"]));
    let file = dir.path().join("layerstream-pack.json");
    let good: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let name = good["shards"][0]["tensors"][0]["name"].as_str().unwrap().to_owned();
    for (key, value, word) in [
        ("bytes", serde_json::json!(1u64 << 50), "bytes"),
        ("offset", serde_json::json!(1u64 << 50), "offset"),
        ("run", 1.into(), "runs of 1"),
        ("run", 0.into(), "runs of 0"),
        ("shape", serde_json::json!([1u64 << 40, 1u64 << 40]), "1099511627776"),
        ("sums", serde_json::json!([]), "0 checksums"),
    ] {
        let mut bad = good.clone();
        bad["shards"][0]["tensors"][0][key] = value;
        fs::write(&file, bad.to_string()).unwrap();
        let words = ["layerstream-pack.json", &name, word, "copy it again"];
        fails(&verify(dir.path()), &words);
        fails(&checked(dir.path(), "64MiB"), &words);
        fails(&pack(&demo(), dir.path(), &["--to", "int8"]), &words);
    }
    // What contradicts nothing is not as it was written either.
    let mut bad = good.clone();
    bad["kept"] = 3.into();
    fs::write(&file, bad.to_string()).unwrap();
    fails(&verify(dir.path()), &["layerstream-pack.json", "checksum of itself"]);
}

/// Five tokens of a model, checked while it streams.
fn checked(model: &Path, ram: &str) -> Output {
    let mut command = layerstream();
    command.arg("generate").arg(model).args(["--ids", "5,6,7,8", "--max-new-tokens", "5", "--ignore-eos", "--json"]);
    command.args(["--device", "cpu", "--check", "--ram", ram]).output().unwrap()
}

#[test]
fn damage_is_found_while_streaming() {
    let mixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/mixtral_fused");
    for (model, args) in [
        (demo(), &["--to", "int8", "--ram", "512KiB"][..]),
        (mixture, &["--to", "nf4"]),
        (demo(), &["--to", "lossless"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        succeeds(&pack(&model, dir.path(), args));
        // With tiles that are smaller and larger than the runs that have checksums; all that is used is checked.
        for ram in ["12MiB", "64MiB"] {
            let output = checked(dir.path(), ram);
            succeeds(&output);
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(report["bytes_checked"].as_u64() >= report["bytes_read"].as_u64(), "{report}");
        }
        let manifest: Value =
            serde_json::from_slice(&fs::read(dir.path().join("layerstream-pack.json")).unwrap()).unwrap();
        let mut streamed = 0;
        for shard in manifest["shards"].as_array().unwrap() {
            let path = dir.path().join(shard["file"].as_str().unwrap());
            let good = fs::read(&path).unwrap();
            // Single rows of the embedding are read, which is no streaming.
            let streams =
                |tensor: &&Value| !tensor["packed"].is_null() && !tensor["name"].to_string().contains("embed");
            for tensor in shard["tensors"].as_array().unwrap().iter().filter(streams) {
                let number = |key: &str| tensor[key].as_u64().unwrap();
                let mut bad = good.clone();
                bad[(number("offset") + (streamed * 7919) % number("bytes")) as usize] ^= 1;
                streamed += 1;
                fs::write(&path, &bad).unwrap();
                fails(
                    &checked(dir.path(), "64MiB"),
                    &[tensor["name"].as_str().unwrap(), "not those that were written"],
                );
            }
            fs::write(&path, &good).unwrap();
        }
        assert!(streamed > 5);
    }
    fails(&checked(&demo(), "64MiB"), &["layerstream-pack.json", "layerstream pack"]);
}

/// Arguments of the kill tests: little memory, so that there are many operations to be killed at.
fn few<'a>(to: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["--to", to, "--ram", "256KiB", "--threads", "2"], more].concat()
}

const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// Every tensor of the original is either whole in the source, or whole in the result.
fn nothing_is_lost(source: &Path, out: &Path, original: &Path, finished: &Path) {
    for shard in SHARDS {
        let same = |dir: &Path, reference: &Path| match fs::read(dir.join(shard)) {
            Ok(bytes) => bytes == fs::read(reference.join(shard)).unwrap(),
            Err(_) => false,
        };
        assert!(same(source, original) || same(out, finished), "{shard} is neither in source nor in result");
    }
}

#[test]
fn killed_at_any_operation_nothing_is_lost_and_it_goes_on() {
    let killed = kill_at_every("int8", 1) + kill_at_every("lossless", 6);
    assert!(killed >= 100, "only {killed} kills");
}

/// Ends packing at every `stride`-th operation on files; returns how often.
fn kill_at_every(to: &str, stride: usize) -> usize {
    let (original, finished) = (copy_of_demo(), tempfile::tempdir().unwrap());
    succeeds(&pack(original.path(), finished.path(), &few(to, &[])));
    let (mut killed, mut at) = (0, 0);
    loop {
        let (source, out) = (copy_of_demo(), tempfile::tempdir().unwrap());
        let mut ended = false;
        // Killed, the run that continues it killed a little further on, and then left alone.
        for round in 0.. {
            let limit = (at + 3 * round).to_string();
            let abort: &[&str] = if round < 2 { &["--abort-at", &limit] } else { &[] };
            let output = pack(source.path(), out.path(), &few(to, &[&["--delete-original"], abort].concat()));
            nothing_is_lost(source.path(), out.path(), original.path(), finished.path());
            if output.status.success() {
                ended = round == 0;
                break;
            }
            assert_eq!(output.status.code(), None, "{}", String::from_utf8_lossy(&output.stderr));
            killed += 1;
        }
        succeeds(&verify(out.path()));
        assert!(tensors(out.path()) == tensors(finished.path()));
        assert!(
            fs::read_dir(source.path()).unwrap().all(|e| e
                .unwrap()
                .path()
                .extension()
                .is_none_or(|e| e != "safetensors"))
        );
        if ended {
            break;
        }
        at += stride;
    }
    println!("{to}: killed {killed} times, at {at} operations");
    killed
}

#[test]
fn killed_at_any_time_nothing_is_lost() {
    let (original, finished) = (copy_of_demo(), tempfile::tempdir().unwrap());
    succeeds(&pack(original.path(), finished.path(), &["--to", "int8", "--ram", "128KiB"]));
    let args = few("int8", &["--delete-original"]);
    for round in 0..12u64 {
        let (source, out) = (copy_of_demo(), tempfile::tempdir().unwrap());
        for _ in 0..4 {
            let mut child = layerstream()
                .arg("pack")
                .arg(source.path())
                .arg("--out")
                .arg(out.path())
                .args(&args)
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(std::time::Duration::from_millis(5 + round * 7));
            // Signal 9.
            child.kill().unwrap();
            let status = child.wait().unwrap();
            nothing_is_lost(source.path(), out.path(), original.path(), finished.path());
            if status.success() {
                break;
            }
        }
        succeeds(&pack(source.path(), out.path(), &args));
        succeeds(&verify(out.path()));
    }
}

/// A model of random weights in one file: layers of 34 MB.
fn synthetic(dir: &Path, layers: usize) -> PathBuf {
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": layers, "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 1000,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    });
    let file = dir.join("shape.json");
    fs::write(&file, config.to_string()).unwrap();
    let model = dir.join("model");
    succeeds(&layerstream().arg("synth").arg("--config").arg(&file).arg("--out").arg(&model).output().unwrap());
    model
}

#[test]
fn files_larger_than_what_is_synced_at_once_are_whole() {
    let (source, once, again) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let model = synthetic(source.path(), 9);
    succeeds(&pack(&model, once.path(), &["--to", "int8", "--threads", "1"]));
    succeeds(&pack(&model, again.path(), &["--to", "int8", "--threads", "7"]));
    succeeds(&verify(once.path()));
    let [once, again] = [once, again].map(|dir| fs::read(dir.path().join("model.safetensors")).unwrap());
    assert!(once.len() > 2 * (64 << 20), "{} bytes are too few to test anything", once.len());
    assert!(once == again);
}

/// SHA-256 over the matrices of the demo model by name, of each the codes and then the absolute maxima (float32), as
/// `bitsandbytes.functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")` of bitsandbytes 0.50.2 makes them on a CPU.
const BITSANDBYTES: &str = "c5a72e7035475f8c0f6c3929c71c34da04d46e34b18c5e64ebd664dcb54d61ff";

#[test]
fn nf4_is_what_bitsandbytes_makes_of_the_same_weights() {
    use sha2::{Digest, Sha256};
    let out = tempfile::tempdir().unwrap();
    succeeds(&pack(&demo(), out.path(), &["--to", "nf4"]));
    let (before, mut all) = (tensors(&demo()), Sha256::new());
    for (name, (_, shape, bytes)) in tensors(out.path()) {
        let Some(name) = name.strip_suffix(".nf4") else { continue };
        let (rows, k) = (before[name].1[0], before[name].1[1]);
        assert_eq!((shape[0], k % 64), (rows, 0));
        bytes.chunks_exact(shape[1]).for_each(|row| all.update(&row[..k / 2]));
        bytes.chunks_exact(shape[1]).for_each(|row| all.update(&row[k / 2..][..k / 64 * 4]));
    }
    let digest: String = all.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest, BITSANDBYTES);
}
