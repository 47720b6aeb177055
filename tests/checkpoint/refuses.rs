//! What is refused, and that each message names the file, the tensor and the numbers.

use std::fs;
use std::path::{Path, PathBuf};

use layerstream::checkpoint::{Checkpoint, read_json};

use crate::{INDEX, SHARD_1, SHARD_2, directory, entry, file, index, refused, vectors};

/// Opens a directory whose model.safetensors has these bytes, and wants it refused.
#[track_caller]
fn refused_file(bytes: &[u8], parts: &[&str]) {
    let dir = directory(&[("model.safetensors", bytes)]);
    let path = dir.path().join("model.safetensors").display().to_string();
    refused(Checkpoint::open(dir.path()), &[&[path.as_str()], parts].concat());
}

/// The same for one header entry `x`, with 64 bytes of data: the message must name the tensor.
#[track_caller]
fn refused_entry(entry: &str, parts: &[&str]) {
    refused_file(&file(&format!("{{{entry}}}"), 64), &[&["tensor `x`"], parts].concat());
}

// What is refused: files.

#[test]
fn a_file_too_short_to_be_one() {
    refused_file(b"", &["has 0 bytes", "8"]);
    refused_file(b"1234567", &["has 7 bytes", "8"]);
}

#[test]
fn a_header_longer_than_the_file_or_the_limit() {
    let mut bytes = vectors(&["a"]);
    bytes[..8].copy_from_slice(&5000u64.to_le_bytes());
    refused_file(&bytes, &["5000 bytes", &format!("only {} follow", bytes.len() - 8), "truncated"]);
    refused_file(&u64::MAX.to_le_bytes(), &["18446744073709551615", "100000000"]);

    // A header over the limit in a file that is long enough for it.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    fs::write(&path, 100_000_001u64.to_le_bytes()).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(200_000_000).unwrap();
    refused(Checkpoint::open(dir.path()), &["100000001 bytes", "100000000 that the format allows"]);
}

#[test]
fn a_pointer_left_by_git_lfs() {
    refused_file(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", &["Git LFS", "git lfs pull"]);
}

#[test]
fn a_header_that_is_not_text_or_not_json() {
    let mut bytes = vectors(&["a"]);
    bytes[10] = 0xff;
    refused_file(&bytes, &["not UTF-8", "byte 10"]);
    refused_file(&file("", 0), &["not valid JSON", "EOF"]);
    refused_file(&file("{\"a\":", 0), &["tensor `a`", "EOF"]);
    refused_file(&file("[1,2]", 0), &["not valid JSON", "an entry per tensor", "line 1 column"]);
    refused_file(&file("{} {}", 0), &["not valid JSON", "trailing characters"]);
    refused_file(&file(&"[".repeat(100_000), 0), &["not valid JSON"]);
    refused_file(&file(&format!("{{\"x\":{}", "[".repeat(100_000)), 0), &["tensor `x`", "malformed"]);
}

#[test]
fn a_truncated_file() {
    let bytes = vectors(&["a", "b", "c"]);
    let (have, should) = (bytes.len() - 20, bytes.len());
    refused_file(
        &bytes[..have],
        &[&format!("has {have} bytes"), &format!("describes {should}"), "20 are missing", "tensor `b`", "download"],
    );
}

#[test]
fn a_name_that_comes_twice() {
    let twice = [entry("x", "U8", "[4]", 0, 4), entry("y", "U8", "[1]", 4, 5), entry("x", "U8", "[4]", 5, 9)].join(",");
    refused_entry(&twice, &["comes twice"]);
    let escaped = format!("{},{}", entry("x", "U8", "[0]", 0, 0), entry("\\u0078", "U8", "[0]", 0, 0));
    refused_entry(&escaped, &["comes twice"]);
}

// What is refused: tensors.

#[test]
fn a_dtype_that_is_unknown_or_of_less_than_a_byte() {
    refused_entry(&entry("x", "F4", "[8]", 0, 4), &["`F4`", "not supported", "BF16"]);
    refused_entry(&entry("x", "F6_E2M3", "[4]", 0, 3), &["`F6_E2M3`"]);
    refused_entry(&entry("x", "bf16", "[4]", 0, 8), &["`bf16`"]);
    refused_entry(&entry("x", &"Z".repeat(1_000_000), "[4]", 0, 8), &["ZZZ…"]);
    refused_entry(r#""x":{"dtype":3,"shape":[],"data_offsets":[0,1]}"#, &["malformed", "integer `3`", "line 1"]);
}

#[test]
fn a_shape_that_is_none() {
    refused_entry(&entry("x", "U8", "[-4]", 0, 4), &["shape", "`-4`", "line 1 column"]);
    refused_entry(&entry("x", "U8", "[2.0]", 0, 2), &["shape", "`2.0`"]);
    refused_entry(&entry("x", "U8", "4", 0, 4), &["shape", "integer `4`", "list of dimensions"]);
    refused_entry(&entry("x", "U8", "[1e30]", 0, 4), &["shape"]);
    refused_entry(&entry("x", "U8", "[99999999999999999999]", 0, 4), &["shape"]);
    refused_entry(&entry("x", "U8", &format!("[{}1]", "1,".repeat(64)), 0, 1), &["more than 64 dimensions"]);
    let overflow = "[4294967296, 4294967296]";
    refused_entry(&entry("x", "U8", overflow, 0, 0), &[overflow, "U8", "more bytes than can be counted"]);
    refused_entry(&entry("x", "F64", "[4611686018427387904]", 0, 0), &["F64", "more bytes than can be counted"]);
}

#[test]
fn a_shape_that_does_not_fill_its_range() {
    refused_entry(&entry("x", "BF16", "[3,5]", 0, 32), &["[3, 5]", "BF16", "needs 30", "[0, 32] hold 32"]);
    refused_entry(&entry("x", "U8", "[0]", 0, 1), &["needs 0 bytes", "hold 1"]);
}

#[test]
fn offsets_that_are_none() {
    refused_entry(&entry("x", "U8", "[4]", 8, 4), &["[8, 4]", "end before they start"]);
    refused_entry(&entry("x", "U8", "[4]", u64::MAX - 4, u64::MAX), &["out of range", "18446744073709551615"]);
    refused_entry(r#""x":{"dtype":"U8","shape":[4],"data_offsets":[-4,0]}"#, &["data_offsets", "`-4`"]);
    refused_entry(r#""x":{"dtype":"U8","shape":[4],"data_offsets":[0]}"#, &["data_offsets", "length 1"]);
    refused_entry(r#""x":{"dtype":"U8","shape":[4],"data_offsets":[0,4,8]}"#, &["malformed"]);
    refused_entry(r#""x":{"dtype":"U8","shape":[4]}"#, &["missing field `data_offsets`"]);
    refused_entry(r#""x":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}"#, &["duplicate field `dtype`"]);
    // Past the end of the file: indistinguishable from a truncated one, and told so.
    refused_entry(&entry("x", "U8", "[4]", 61, 65), &["1 are missing"]);
    refused_entry(&entry("x", "U8", "[4]", 1 << 60, (1 << 60) + 4), &["are missing"]);
}

#[test]
fn ranges_that_overlap() {
    let overlap = format!("{},{}", entry("x", "U8", "[8]", 4, 12), entry("y", "U8", "[8]", 0, 8));
    refused_entry(&overlap, &["[4, 12]", "overlap", "`y`", "[0, 8]"]);
    let same = format!("{},{}", entry("w", "U8", "[8]", 0, 8), entry("x", "U8", "[8]", 0, 8));
    refused_entry(&same, &["overlap", "`w`"]);
    let hidden = [entry("w", "U8", "[20]", 0, 20), entry("z", "U8", "[0]", 5, 5), entry("x", "U8", "[1]", 19, 20)];
    refused_entry(&hidden.join(","), &["overlap", "`w`"]);
}

#[test]
fn names_from_a_file_cannot_command_the_terminal() {
    let dir = directory(&[("model.safetensors", &file(&format!("{{{}}}", entry("\\u001b[2J", "X", "[]", 0, 0)), 0))]);
    let text = refused(Checkpoint::open(dir.path()), &["\\u{1b}[2J"]);
    assert!(!text.contains('\u{1b}'));
}

// What is refused: indexes and directories.

#[test]
fn a_missing_shard() {
    let shards =
        ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"];
    let index = index(&[("a", shards[0]), ("b", shards[1]), ("c", shards[2])]);
    let dir = directory(&[(INDEX, index.as_bytes()), (shards[1], &vectors(&["b"]))]);
    let first = dir.path().join(shards[0]).display().to_string();
    refused(Checkpoint::open(dir.path()), &[&first, "2 of the 3 shards", INDEX, shards[2], "download"]);
}

/// An index over two good shards, which hold `a` and `b`.
#[track_caller]
fn refused_index(index: &str, parts: &[&str]) {
    let dir = directory(&[(INDEX, index.as_bytes()), (SHARD_1, &vectors(&["a"])), (SHARD_2, &vectors(&["b"]))]);
    let path = dir.path().join(INDEX).display().to_string();
    refused(Checkpoint::open(dir.path()), &[&[path.as_str()], parts].concat());
}

#[test]
fn an_index_that_the_shards_contradict() {
    let listing = index(&[("a", SHARD_1), ("b", SHARD_2), ("lost", SHARD_2)]);
    refused_index(&listing, &["tensor `lost`", SHARD_2, "does not hold it"]);
    refused_index(&index(&[("a", SHARD_2), ("b", SHARD_2)]), &["tensor `a`", "does not hold it"]);
    let swapped = index(&[("a", SHARD_2), ("b", SHARD_1)]);
    refused_index(&swapped, &["tensor `a`", &format!("in {SHARD_2}, but it is in {SHARD_1}")]);
}

#[test]
fn an_index_that_is_malformed() {
    refused_index("", &["not a valid index", "line 1 column 0"]);
    refused_index("{\n  \"weight_map\": {\n    \"a\" \"b\" } }", &["expected `:` at line 3 column 9"]);
    refused_index(r#"{"metadata": {}}"#, &["no `weight_map`"]);
    refused_index(r#"{"weight_map": null}"#, &["no `weight_map`"]);
    refused_index(r#"{"weight_map": {}}"#, &["empty `weight_map`"]);
    refused_index(r#"{"weight_map": ["a"]}"#, &["names of tensors to names of files"]);
    refused_index(r#"{"weight_map": {"a": 1}}"#, &["integer `1`", "line 1"]);
    refused_index(&index(&[("a", SHARD_1), ("a", SHARD_2)]), &["tensor `a`", "named twice", SHARD_1, SHARD_2]);
    refused_index(r#"{"weight_map": {"a": "x"}, "weight_map": {"b": "x"}}"#, &["duplicate field `weight_map`"]);
}

#[test]
fn an_index_that_points_out_of_the_directory() {
    for shard in ["../secret.safetensors", "/etc/passwd", "..", ".", "", "a/b.safetensors", "a\\\\b", "a\\u0000b"] {
        refused_index(&index(&[("a", SHARD_1), ("b", shard)]), &["tensor `b`", "not the name of a file"]);
    }
}

#[test]
fn a_tensor_in_two_shards() {
    let listing = index(&[("a", SHARD_1), ("b", SHARD_2)]);
    let shards = [vectors(&["a", "b"]), vectors(&["b"])];
    let dir = directory(&[(INDEX, listing.as_bytes()), (SHARD_1, &shards[0]), (SHARD_2, &shards[1])]);
    refused(Checkpoint::open(dir.path()), &["tensor `b`", SHARD_1, SHARD_2]);
}

#[test]
fn a_directory_without_a_checkpoint_says_what_it_has() {
    #[track_caller]
    fn with(files: &[&str], parts: &[&str]) {
        let dir = directory(&files.iter().map(|name| (*name, &b"x"[..])).collect::<Vec<_>>());
        let always = [dir.path().to_str().unwrap(), "pytorch_model.bin", "model.safetensors"];
        refused(Checkpoint::open(dir.path()), &[&always[..], parts].concat());
    }
    with(&[], &["empty"]);
    with(&["config.json", "model.ckpt"], &["model.ckpt", "PyTorch", "not supported yet"]);
    with(&["model.ggml"], &["model.ggml", "GGML", "not supported yet"]);
    with(&["config.json", "tokenizer.json"], &["found config.json, tokenizer.json"]);
    with(&[SHARD_1, SHARD_2], &[SHARD_1, SHARD_2, "index"]);
    with(&["a", "b", "c", "d", "e", "f"], &["a, b, c, d and 2 more"]);
}

#[test]
fn a_path_that_is_no_checkpoint() {
    let dir =
        directory(&[("model.gguf", b"GGUF"), ("pytorch_model.bin", b"PK"), (INDEX, b"{}"), ("config.json", b"{}")]);
    let open = |name: &str| Checkpoint::open(&dir.path().join(name));
    refused(open("absent"), &["absent", "does not exist", "org/name"]);
    refused(open("model.gguf"), &["model.gguf", "past the end of the file (4 bytes)"]);
    refused(open("pytorch_model.bin"), &["pytorch_model.bin", "2 bytes", "not a zip archive"]);
    refused(open(INDEX), &[INDEX, "directory"]);
    refused(Checkpoint::open(Path::new("/dev/null")), &["/dev/null", "not a regular file"]);

    let tree = tempfile::tempdir().unwrap();
    fs::create_dir(tree.path().join("model.safetensors")).unwrap();
    refused(Checkpoint::open(tree.path()), &["model.safetensors", "is a directory"]);
}

#[test]
fn a_missing_tensor_is_told_its_neighbours() {
    let dir =
        directory(&[("model.safetensors", &vectors(&["model.norm.weight", "model.layers.0.mlp.up_proj.weight"]))]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let path = dir.path().join("model.safetensors").display().to_string();
    let parts = [path.as_str(), "tensor `norm.weight`", "2 tensors", "`model.norm.weight`"];
    refused(checkpoint.require("norm.weight"), &parts);
    let text = refused(checkpoint.require("visual.patch_embed"), &["visual.patch_embed"]);
    assert!(!text.contains("nearest"), "{text}");
}

#[test]
fn json_beside_the_weights() {
    let bad: PathBuf = "bad.json".into();
    let files: [(&str, &[u8]); 3] =
        [("good.json", b"{\"a\": [1]}"), ("bad.json", b"{\n  \"a\": oops\n}"), ("empty.json", b" \n")];
    let dir = directory(&files);
    let read = |name: &str| read_json(&dir.path().join(name));
    assert_eq!(read("good.json").unwrap()["a"][0], 1);
    refused(read("bad.json"), &[dir.path().join(bad).to_str().unwrap(), "not valid JSON", "line 2 column 8"]);
    refused(read("empty.json"), &["empty.json", "is empty (2 bytes)"]);
    refused(read("absent.json"), &["absent.json", "cannot open"]);
    refused(read(""), &["is a directory"]);

    let huge = dir.path().join("huge.json");
    fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
    refused(read_json(&huge), &["huge.json", "1099511627776 bytes", "100000000"]);
    fs::write(dir.path().join("deep.json"), "[".repeat(1_000_000)).unwrap();
    refused(read("deep.json"), &["deep.json", "recursion limit", "line 1"]);
}
