//! GGUF: files put together by hand. What opens, what is refused and in which words, what the metadata becomes, and that any
//! bytes at all are judged without a panic.

use std::fs;
use std::path::Path;

use layerstream::checkpoint::{Checkpoint, Dtype, parse_gguf};
use layerstream::program::RopeStyle;
use layerstream::text::{ChatInput, TextSide};
use layerstream::{GenerateOptions, Options, Outline};
use proptest::prelude::*;

use crate::{directory, refused};

/// A file in the making.
#[derive(Clone, Default)]
struct Gguf {
    keys: Vec<u8>,
    key_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    data: u64,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl Gguf {
    fn key(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.keys.extend([text(key), kind.to_le_bytes().to_vec(), value.to_vec()].concat());
        self.key_count += 1;
        self
    }

    fn text(self, key: &str, value: &str) -> Self {
        self.key(key, 8, &text(value))
    }

    fn size(self, key: &str, value: u32) -> Self {
        self.key(key, 4, &value.to_le_bytes())
    }

    fn number(self, key: &str, value: f32) -> Self {
        self.key(key, 6, &value.to_le_bytes())
    }

    /// Dimensions innermost first, as in the file.
    fn tensor(mut self, name: &str, dims: &[u64], kind: u32, bytes: u64) -> Self {
        let offset = self.data;
        self.data = (offset + bytes).next_multiple_of(32);
        self.tensor_at(name, dims, kind, offset)
    }

    fn tensor_at(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        self.tensors.extend([text(name), (dims.len() as u32).to_le_bytes().to_vec()].concat());
        self.tensors.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
        self.tensors.extend([&kind.to_le_bytes()[..], &offset.to_le_bytes()].concat());
        self.tensor_count += 1;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let counts = [self.tensor_count, self.key_count].map(u64::to_le_bytes).concat();
        let mut bytes = [b"GGUF\x03\0\0\0", &counts[..], &self.keys, &self.tensors].concat();
        bytes.resize(bytes.len().next_multiple_of(32) + self.data as usize, 0);
        bytes
    }
}

/// A llama of one layer, 32 wide.
fn model(architecture: &str) -> Gguf {
    let key = |name: &str| format!("{architecture}.{name}");
    let keys = Gguf::default().text("general.architecture", architecture);
    let keys = keys.size(&key("context_length"), 64).size(&key("embedding_length"), 32).size(&key("block_count"), 1);
    let keys = keys.size(&key("feed_forward_length"), 64).size(&key("attention.head_count"), 4);
    let keys = keys.size(&key("attention.head_count_kv"), 2).number(&key("attention.layer_norm_rms_epsilon"), 1e-5);
    let f16 = |file: Gguf, name: &str, rows: u64, cols: u64| file.tensor(name, &[cols, rows], 1, rows * cols * 2);
    let file = f16(keys, "token_embd.weight", 10, 32);
    let file = f16(f16(file, "blk.0.attn_q.weight", 32, 32), "blk.0.attn_k.weight", 16, 32);
    let file = f16(f16(file, "blk.0.attn_v.weight", 16, 32), "blk.0.attn_output.weight", 32, 32);
    let file = f16(f16(file, "blk.0.ffn_gate.weight", 64, 32), "blk.0.ffn_up.weight", 64, 32);
    let file = f16(file, "blk.0.ffn_down.weight", 32, 64);
    let norms = ["blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"];
    norms.iter().fold(file, |file, name| file.tensor(name, &[32], 0, 128))
}

fn outline(file: &Gguf) -> layerstream::Result<Outline> {
    let dir = directory(&[("model.gguf", &file.bytes())]);
    Outline::new(dir.path(), &Options { ram: Some(64 << 20), ..Options::default() })
}

#[test]
fn tensors_and_metadata_of_a_file() {
    let file = Gguf::default().text("general.name", "n").key("t.flag", 7, &[1]).key("t.big", 10, &[0xff; 8]);
    let list = [&4u32.to_le_bytes()[..], &2u64.to_le_bytes(), &[1, 0, 0, 0, 2, 0, 0, 0]].concat();
    let texts = [&8u32.to_le_bytes()[..], &1u64.to_le_bytes(), &text("é")].concat();
    let file = file.key("t.list", 9, &list).key("t.texts", 9, &texts).number("t.number", 0.5);
    let file = file.tensor("token_embd.weight", &[64, 3], 8, 204).tensor("v", &[5], 0, 20).tensor("k", &[256], 14, 210);
    let dir = directory(&[("some.gguf", &file.bytes())]);
    for path in [dir.path().to_path_buf(), dir.path().join("some.gguf")] {
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.dir(), dir.path());
        let embedding = checkpoint.require("model.embed_tokens.weight").unwrap();
        assert_eq!((embedding.name.as_str(), embedding.dtype), ("token_embd.weight", Dtype::Q8_0));
        assert_eq!((&embedding.shape[..], embedding.span.len), (&[3, 64][..], 204));
        assert_eq!(embedding.span.offset % 32, 0);
        assert_eq!(checkpoint.get("k").unwrap().span.offset - embedding.span.offset, 224 + 32);
        refused(checkpoint.require("model.layers.2.mlp.up_proj.weight"), &["`blk.2.ffn_up.weight`", "is missing"]);
        let metadata = checkpoint.metadata().unwrap();
        assert_eq!(metadata.text("general.name").unwrap(), Some("n"));
        assert_eq!(metadata.flag("t.flag").unwrap(), Some(true));
        assert_eq!(metadata.size("t.big").unwrap(), Some(u64::MAX));
        assert_eq!(metadata.token_id("t.big").unwrap(), None);
        assert_eq!(metadata.number("t.number").unwrap(), Some(0.5));
        assert_eq!(metadata.ints("t.list").unwrap(), Some(&[1, 2][..]));
        assert_eq!(metadata.texts("t.texts").unwrap().unwrap(), ["é"]);
        assert_eq!(metadata.text("absent").unwrap(), None);
        refused(metadata.size("general.name"), &["some.gguf", "`general.name` is text", "whole number"]);
    }
}

#[test]
fn the_parts_of_a_split_model() {
    let part = |no: u16, count: u16| {
        Gguf::default().key("split.no", 2, &no.to_le_bytes()).key("split.count", 2, &count.to_le_bytes())
    };
    let first = part(0, 2).key("split.tensors.count", 5, &2i32.to_le_bytes()).tensor("a", &[4], 0, 16).bytes();
    let second = part(1, 2).tensor("b", &[4], 0, 16).bytes();
    let names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];
    let dir = directory(&[(names[0], &first), (names[1], &second), ("mmproj-m.gguf", b"a projector")]);
    for path in [dir.path().to_path_buf(), dir.path().join(names[1])] {
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.files().len(), 2);
        assert_eq!(checkpoint.get("b").unwrap().span.file.0, 1);
    }
    let open = |files: &[(&str, &[u8])]| Checkpoint::open(directory(files).path());
    refused(open(&[(names[0], &first)]), &[names[1], "does not exist", "download"]);
    refused(open(&[(names[0], &first), (names[1], &first)]), &[names[1], "part 2 of 2", "part 1 of 2"]);
    refused(open(&[(names[0], &first), (names[1], &part(1, 2).bytes())]), &["2 tensors", "hold 1"]);
    refused(open(&[("a.gguf", &first), ("b.gguf", &first)]), &["2 models", "a.gguf, b.gguf", "path of one"]);
    refused(open(&[("a.gguf", &first)]), &["a.gguf", "part 1 of 1 by its name", "part 1 of 2"]);
}

#[test]
fn files_that_are_damaged_or_of_another_kind() {
    #[track_caller]
    fn with(bytes: &[u8], parts: &[&str]) {
        refused(parse_gguf(Path::new("m.gguf"), bytes, bytes.len() as u64), &[&["m.gguf"], parts].concat());
    }
    let whole = Gguf::default().tensor("a", &[4], 0, 16).bytes();
    with(b"", &["past the end of the file (0 bytes)"]);
    with(b"GGML\0\0\0\0", &["no GGUF file"]);
    with(b"ggjt\x03\0\0\0", &["before GGUF"]);
    with(b"version https://git-lfs", &["Git LFS pointer"]);
    with(b"GGUF\x01\0\0\0", &["version 1", "2 and 3"]);
    with(b"GGUF\0\0\0\x03", &["big-endian", "version 3"]);
    with(b"GGUF\x04\0\0\0", &["version 4"]);
    with(&whole[..20], &["truncated"]);
    with(&whole[..whole.len() - 17], &["tensor `a`", "16 bytes", "truncated"]);
    with(&[&b"GGUF\x03\0\0\0"[..], &[0; 8], &[0xff; 8]].concat(), &["keys, more than the file can hold"]);
    with(&[&b"GGUF\x03\0\0\0"[..], &[0xff; 8], &[0; 8]].concat(), &["tensors, more than the file can hold"]);
    with(&Gguf::default().key("k", 8, &[0xff; 8]).bytes(), &["characters of a text"]);
    with(&Gguf::default().key("k", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]).bytes(), &["not UTF-8"]);
    with(&Gguf::default().key("k", 13, &[0; 8]).bytes(), &["`k`", "unknown type, 13"]);
    with(&Gguf::default().key("k", 9, &[9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).bytes(), &["`k`", "unknown type, 9"]);
    with(&Gguf::default().size("k", 1).size("k", 1).bytes(), &["`k` twice"]);
    with(&Gguf::default().size("general.alignment", 33).bytes(), &["`general.alignment` is 33"]);
    with(&Gguf::default().tensor("a", &[1, 1, 1, 1, 1], 0, 4).bytes(), &["tensor `a`", "5 dimensions"]);
    with(&Gguf::default().tensor("a", &[33], 8, 34).bytes(), &["tensor `a`", "no multiple of the 32", "Q8_0"]);
    with(&Gguf::default().tensor("a", &[1 << 40, 1 << 40], 0, 0).bytes(), &["tensor `a`", "counted"]);
    with(&Gguf::default().tensor("a", &[256], 10, 84).bytes(), &["`a` of type Q2_K", "not supported"]);
    with(&Gguf::default().tensor("a", &[256], 99, 84).bytes(), &["`a` of type number 99", "not supported"]);
    with(&Gguf::default().tensor("a", &[4], 0, 16).tensor("a", &[4], 0, 16).bytes(), &["tensor `a`", "twice"]);
    let overlap = Gguf::default().tensor("a", &[16], 0, 64).tensor_at("b", &[4], 0, 32);
    with(&overlap.bytes(), &["tensor `b`", "overlap", "`a`"]);
}

#[test]
fn metadata_becomes_a_configuration() {
    let program = outline(&model("llama")).unwrap().program().clone();
    assert_eq!((program.family, program.vocab, program.max_positions), ("llama", 10, 64));
    assert_eq!(program.ropes[0].style, RopeStyle::Interleaved);
    assert_eq!(program.ropes[0].inv_freq.len(), 4);
    // No output.weight: the head is the embedding.
    assert_eq!(program.matrices.last().unwrap().tensor.name, "token_embd.weight");

    let factors = model("llama").tensor("rope_freqs.weight", &[4], 0, 16);
    let mut bytes = factors.bytes();
    let at = bytes.len() - 32;
    bytes[at..at + 16].copy_from_slice(&[1f32, 2.0, 4.0, 8.0].map(f32::to_le_bytes).concat());
    let dir = directory(&[("model.gguf", &bytes)]);
    let options = Options { ram: Some(64 << 20), ..Options::default() };
    let scaled = Outline::new(dir.path(), &options).unwrap().program().clone();
    for (i, (scaled, plain)) in scaled.ropes[0].inv_freq.iter().zip(&program.ropes[0].inv_freq).enumerate() {
        assert_eq!(scaled * (1 << i) as f32, *plain);
    }

    let linear = model("llama").text("llama.rope.scaling.type", "linear").number("llama.rope.scaling.factor", 4.0);
    assert_eq!(outline(&linear).unwrap().program().ropes[0].inv_freq[0], 0.25);
    let yarn = model("llama").text("llama.rope.scaling.type", "yarn").number("llama.rope.scaling.factor", 4.0);
    let yarn = yarn.size("llama.rope.scaling.original_context_length", 16);
    assert!(outline(&yarn).unwrap().program().ropes[0].attention_factor > 1.1);
    assert_eq!(outline(&model("llama").size("llama.attention.sliding_window", 8)).unwrap().program().family, "mistral");

    let biases = ["q", "k", "v"].iter().zip([32, 16, 16]);
    let qwen2 = biases.fold(model("qwen2"), |f, (x, n)| f.tensor(&format!("blk.0.attn_{x}.bias"), &[n], 0, 4 * n));
    let program = outline(&qwen2).unwrap().program().clone();
    assert_eq!((program.family, program.ropes[0].style), ("qwen2", RopeStyle::Half));
    let norms =
        ["q", "k"].iter().fold(model("qwen3"), |f, x| f.tensor(&format!("blk.0.attn_{x}_norm.weight"), &[8], 0, 32));
    assert_eq!(outline(&norms).unwrap().program().family, "qwen3");
}

#[test]
fn the_tokenizer_and_the_template_are_in_the_file() {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/gguf_q8_0");
    let checkpoint = Checkpoint::open(&case).unwrap();
    let side = TextSide::of(&checkpoint).unwrap();
    // SentencePiece with nothing but bytes: the beginning, then U+2581 and "A", each byte b as the token b + 3.
    let ids = side.encode("A").unwrap();
    assert_eq!(ids, [1, 0xe2 + 3, 0x96 + 3, 0x81 + 3, 0x41 + 3]);
    assert_eq!(side.tokenizer().unwrap().decode(&ids[1..], true).unwrap(), "▁A");
    refused(side.chat_template().map(|_| ()), &["model-Q8_0.gguf", "no chat template"]);
    assert_eq!(GenerateOptions::of_model(&checkpoint, &TextSide::of(&checkpoint).unwrap()).unwrap().eos, [2]);

    let texts = |texts: &[&str]| {
        let items = texts.iter().flat_map(|item| text(item));
        [8u32.to_le_bytes().to_vec(), (texts.len() as u64).to_le_bytes().to_vec(), items.collect()].concat()
    };
    let ints = [&4u32.to_le_bytes()[..], &3u64.to_le_bytes(), &[3, 2, 1].map(u32::to_le_bytes).concat()].concat();
    let file = model("llama").text("tokenizer.ggml.model", "llama").key("tokenizer.ggml.token_type", 9, &ints);
    let file =
        file.key("tokenizer.ggml.tokens", 9, &texts(&["<s>", "<unk>", "x"])).size("tokenizer.ggml.bos_token_id", 0);
    let template = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}";
    let file = file.text("tokenizer.chat_template", template).size("tokenizer.ggml.unknown_token_id", 1);
    let dir = directory(&[("model.gguf", &file.bytes())]);
    let side = TextSide::of(&Checkpoint::open(dir.path()).unwrap()).unwrap();
    let messages = serde_json::json!([{"role": "user", "content": "x"}]);
    assert_eq!(side.chat_template().unwrap().render(&ChatInput::new(&messages)).unwrap(), "<s>[x]");
    let bare =
        TextSide::of(&Checkpoint::open(directory(&[("m.gguf", &model("llama").bytes())]).path()).unwrap()).unwrap();
    refused(bare.encode("x"), &["m.gguf", "no tokenizer"]);
}

#[test]
fn what_is_not_implemented_is_named() {
    let not = |file: Gguf, parts: &[&str]| {
        refused(outline(&file).map(|_| ()), &[&["model.gguf", "not supported"], parts].concat())
    };
    not(model("gemma3"), &["`gemma3`"]);
    not(model("llama").size("llama.expert_count", 8), &["mixture of experts", "expert_count"]);
    not(model("llama").text("llama.rope.scaling.type", "longrope"), &["`longrope`"]);
    not(model("qwen3").size("qwen3.attention.sliding_window", 8), &["sliding_window"]);
    not(model("llama").size("llama.rope.dimension_count", 4), &["partial_rotary_factor"]);
    not(model("llama").size("llama.attention.key_length", 16), &["value_length"]);
    not(model("llama").tensor("blk.0.attn_q.bias", &[32], 0, 128), &["biases"]);
    refused(outline(&Gguf::default()).map(|_| ()), &["general.architecture"]);
    let silent = Gguf::default().text("general.architecture", "llama");
    refused(outline(&silent).map(|_| ()), &["`llama.context_length` is missing"]);
    let other = model("llama").tensor("rope_freqs.weight", &[3], 0, 12);
    refused(outline(&other).map(|_| ()), &["rope_freqs.weight"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, ..ProptestConfig::default() })]

    #[test]
    fn any_change_to_a_file_is_judged(
        changes in prop::collection::vec((0.0..1.0f64, any::<u8>()), 0..6),
        keep in prop_oneof![Just(1.0), 0.0..1.0f64],
    ) {
        let texts = [&8u32.to_le_bytes()[..], &2u64.to_le_bytes(), &text("a"), &text("b")].concat();
        let file = Gguf::default().text("t", "u").key("l", 9, &texts).number("n", 1.0).size("s", 3);
        let mut bytes = file.tensor("a", &[32, 2], 8, 68).tensor("b", &[3], 0, 12).bytes();
        for (at, byte) in changes {
            let at = (at * bytes.len() as f64) as usize;
            bytes[at] = byte;
        }
        bytes.truncate((keep * bytes.len() as f64).ceil() as usize);
        match parse_gguf(Path::new("m.gguf"), &bytes, bytes.len() as u64) {
            Ok(header) => for tensor in header.tensors {
                let (block, size) = tensor.dtype.block();
                let elements: usize = tensor.shape.iter().product();
                prop_assert_eq!((elements / block * size) as u64, tensor.span.len);
                prop_assert!(tensor.span.offset + tensor.span.len <= bytes.len() as u64);
            },
            Err(error) => prop_assert!(error.to_string().len() < 2000),
        }
    }
}

#[test]
fn reference_files_open_by_path() {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/gguf_q4_k_m");
    let checkpoint = Checkpoint::open(&case.join("model-Q4_K_M.gguf")).unwrap();
    assert_eq!(checkpoint.files()[0].len, fs::metadata(case.join("model-Q4_K_M.gguf")).unwrap().len());
    assert_eq!(checkpoint.require("lm_head.weight").unwrap().dtype, Dtype::Q6K);
    assert_eq!(checkpoint.metadata().unwrap().texts("tokenizer.ggml.tokens").unwrap().unwrap().len(), 264);
}
