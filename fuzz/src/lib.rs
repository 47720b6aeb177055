//! What is tried with random bytes: one function for each parser of foreign bytes. The fuzzer calls them through
//! `fuzz_targets/`, and `tests/fuzz.rs` includes this file, so that a short run needs neither nightly Rust nor cargo-fuzz.
//! Each panics if what must hold does not.

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::LazyLock;

use layerstream::checkpoint::{Checkpoint, parse_gguf, parse_header, parse_index, parse_pickle, parse_zip};
use layerstream::family::{self, Config};
use layerstream::text::{ChatInput, ChatTemplate, DateTime, TextSide, Tokenizer};
use layerstream::{Model, Options, Outline};
use serde_json::{Value, json};

/// A target and the name of its corpus.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("header", header),
    ("index", index),
    ("zip", zip),
    ("pickle", pickle),
    ("gguf", gguf),
    ("sentencepiece", sentencepiece),
    ("tiktoken", tiktoken),
    ("config", config),
    ("tokenizer_json", tokenizer_json),
    ("tokenizer_config", tokenizer_config),
    ("chat", chat),
    ("manifest", manifest),
];

/// For libFuzzer, which ends a process at any panic: the tokenizers library panics on some damaged files, which is caught and
/// told as an error. A panic that nobody catches still ends it.
pub fn panics_may_be_caught() {
    std::panic::set_hook(Box::new(|_| {}));
}

/// An error is one that a person can read.
fn refused(error: layerstream::Error) {
    let text = error.to_string();
    assert!(!text.is_empty() && text.len() < 4000, "{} bytes of error", text.len());
}

/// The header of a safetensors file: any bytes are either refused with one line, or become tensors whose ranges lie
/// in the file, do not overlap, and have the length of their shape.
pub fn header(bytes: &[u8]) {
    // The true length, and one at which no range is refused for lying past the end.
    for file_len in [bytes.len() as u64, 1 << 40] {
        match parse_header(Path::new("model.safetensors"), bytes, file_len) {
            Err(error) => refused(error),
            Ok(tensors) => {
                let mut end = 0;
                for tensor in &tensors {
                    let elements: u64 = tensor.shape.iter().map(|&dim| dim as u64).product();
                    assert_eq!(elements * tensor.dtype.size() as u64, tensor.span.len);
                    assert!(tensor.span.offset + tensor.span.len <= file_len);
                    if tensor.span.len > 0 {
                        assert!(tensor.span.offset >= end);
                        end = tensor.span.offset + tensor.span.len;
                    }
                }
            }
        }
    }
}

/// `model.safetensors.index.json`: any bytes are either refused with one line, or name shards that stay in the
/// directory.
pub fn index(bytes: &[u8]) {
    match parse_index(Path::new("model.safetensors.index.json"), bytes) {
        Err(error) => refused(error),
        Ok(index) => {
            assert!(index.weights.is_sorted_by(|a, b| a.0 < b.0));
            for (_, shard) in &index.weights {
                let name = Path::new(&index.shards[*shard as usize]);
                assert!(matches!(name.components().collect::<Vec<_>>()[..], [Component::Normal(_)]));
            }
        }
    }
}

/// The directory of a zip archive: any bytes are either refused with one line, or become entries that lie in the file and
/// do not overlap.
pub fn zip(bytes: &[u8]) {
    match parse_zip(Path::new("pytorch_model.bin"), bytes) {
        Err(error) => refused(error),
        Ok(entries) => {
            let mut end = 0;
            for entry in entries {
                assert!(entry.offset >= end);
                end = entry.offset + entry.len;
                assert!(end <= bytes.len() as u64);
            }
        }
    }
}

/// The pickle of a `pytorch_model.bin`: any bytes are either refused with one line, or become descriptions of tensors
/// with distinct names.
pub fn pickle(bytes: &[u8]) {
    match parse_pickle(Path::new("pytorch_model.bin"), bytes) {
        Err(error) => refused(error),
        Ok(tensors) => {
            let mut names: Vec<_> = tensors.iter().map(|tensor| &tensor.name).collect();
            names.sort();
            assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
            assert!(tensors.iter().all(|tensor| tensor.shape.len() == tensor.strides.len()));
        }
    }
}

/// A GGUF file: any bytes are either refused with one line, or become metadata and tensors whose ranges lie in the file, do
/// not overlap, and have the length of their shape. The same file as a model, with its configuration, its tokenizer and its
/// chat template, gives errors at worst.
pub fn gguf(bytes: &[u8]) {
    // The true length, and one at which no range is refused for lying past the end.
    for file_len in [bytes.len() as u64, 1 << 40] {
        match parse_gguf(Path::new("model.gguf"), bytes, file_len) {
            Err(error) => refused(error),
            Ok(header) => {
                let mut end = 0;
                for tensor in &header.tensors {
                    let (block, size) = tensor.dtype.block();
                    let elements: u64 = tensor.shape.iter().map(|&dim| dim as u64).product();
                    assert_eq!(elements / block as u64 * size as u64, tensor.span.len);
                    assert!(tensor.span.offset + tensor.span.len <= file_len);
                    if tensor.span.len > 0 {
                        assert!(tensor.span.offset >= end);
                        end = tensor.span.offset + tensor.span.len;
                    }
                }
            }
        }
    }
    let dir = Folder::with(&[("model.gguf", bytes)]);
    match Checkpoint::open(&dir.path("model.gguf")) {
        Err(error) => refused(error),
        Ok(checkpoint) => {
            family::program(&checkpoint).map(drop).unwrap_or_else(refused);
            match TextSide::of(&checkpoint) {
                Err(error) => refused(error),
                Ok(text) => speak(&text),
            }
        }
    }
}

/// A SentencePiece model: any bytes are either refused with one line, or become a tokenizer that encodes and decodes.
pub fn sentencepiece(bytes: &[u8]) {
    match Tokenizer::from_sentencepiece(Path::new("tokenizer.model"), bytes) {
        Err(error) => refused(error),
        Ok(tokenizer) => {
            // Texts that the model knows are in the model.
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(400)]);
            for text in [&text, " Hello  w\u{F6}rld \u{2581}\u{65E5}\u{672C}<s>\n"] {
                let ids = tokenizer.encode(text, true).expect("any text has ids");
                tokenizer.decode(&ids, false).expect("ids have a text");
            }
        }
    }
}

/// A tiktoken vocabulary: any bytes are either refused with one line, or become a tokenizer whose ids give the text back.
pub fn tiktoken(bytes: &[u8]) {
    match Tokenizer::from_tiktoken(Path::new("qwen.tiktoken"), bytes) {
        Err(error) => refused(error),
        Ok(tokenizer) => {
            let text = " Hello, world's 123\n\n <|im_end|>\u{65E5}\u{672C}";
            let ids = tokenizer.encode(text, true).expect("any text has ids");
            assert_eq!(tokenizer.decode(&ids, false).expect("ids have a text"), text);
        }
    }
}

/// A configuration for one of the small checkpoints in `tests/golden/models`: its folder's name, then a JSON object with keys
/// that replace its own, or with `architectures`, the whole configuration. It is refused with one line, or the program that
/// comes of it runs.
pub fn config(bytes: &[u8]) {
    let (name, rest) = bytes.split_at(bytes.iter().position(u8::is_ascii_whitespace).unwrap_or(0));
    let name = std::str::from_utf8(name).unwrap_or_default();
    let case = CASES.iter().find(|case| case.name == name).unwrap_or(&CASES[0]);
    let Ok(mut keys) = serde_json::from_slice::<Value>(rest) else { return };
    if let (Value::Object(keys), Value::Object(own)) = (&mut keys, &case.config)
        && !keys.contains_key("architectures")
    {
        for (key, value) in own {
            keys.entry(key).or_insert_with(|| value.clone());
        }
    }
    let path = case.checkpoint.dir().join("config.json");
    let program = Config::new(&path, keys).and_then(|config| family::program_of(&case.checkpoint, &config, &[]));
    match program {
        Err(error) => refused(error),
        Ok(program) => {
            let options = Options { ram: Some(64 << 20), context: Some(8), threads: Some(1), ..Options::default() };
            let options = Options { all_logits: true, ..options };
            let vocab = program.vocab;
            let outline = Outline::with_program(case.checkpoint.clone(), program, &options);
            let text = || TextSide::open(Path::new("/nonexistent"));
            match outline.and_then(|outline| Model::start(outline, text()?, &options)) {
                Err(error) => refused(error),
                Ok(mut model) => {
                    let mut logits = 0;
                    let count = |rows: &[f32]| {
                        logits += rows.len();
                        Ok(())
                    };
                    model.logits(&[1, 2, 3, 1, 0], count).expect("a program that was accepted runs");
                    assert_eq!(logits, 5 * vocab);
                }
            }
        }
    }
}

/// `tokenizer.json`: any bytes are either refused with one line, or become a tokenizer that encodes and decodes, or says why
/// it cannot.
pub fn tokenizer_json(bytes: &[u8]) {
    let dir = Folder::with(&[("tokenizer.json", bytes)]);
    match Tokenizer::open(dir.0.path()) {
        Err(error) => refused(error),
        Ok(tokenizer) => round_trip(&tokenizer),
    }
}

/// `tokenizer_config.json` beside a tokenizer: any bytes are refused, or a chat can be rendered or is refused.
pub fn tokenizer_config(bytes: &[u8]) {
    let dir = Folder::with(&[("tokenizer_config.json", bytes), ("tokenizer.json", TOKENIZER)]);
    match TextSide::open(dir.0.path()) {
        Err(error) => refused(error),
        Ok(text) => speak(&text),
    }
    let dir = Folder::with(&[("tokenizer_config.json", bytes), ("tokenizer.model", SENTENCEPIECE)]);
    match TextSide::open(dir.0.path()) {
        Err(error) => refused(error),
        Ok(text) => speak(&text),
    }
}

/// A chat template: any text either becomes a prompt or is refused with one line.
pub fn chat(bytes: &[u8]) {
    let dir = Folder::with(&[("chat_template.jinja", bytes)]);
    match ChatTemplate::open(dir.0.path()) {
        Err(error) => refused(error),
        Ok(template) => {
            let template = template.expect("there is one");
            template.render(&conversation()).map(drop).unwrap_or_else(refused);
        }
    }
}

/// `layerstream-pack.json`: any bytes are refused with one line, or say only what can be true.
pub fn manifest(bytes: &[u8]) {
    layerstream::parse_manifest(Path::new("layerstream-pack.json"), bytes).unwrap_or_else(refused);
}

/// A tokenizer with few words, in the form of the tokenizers library and of SentencePiece.
const TOKENIZER: &[u8] = include_bytes!("../corpus/tokenizer_json/seed-bpe");
const SENTENCEPIECE: &[u8] = include_bytes!("../corpus/sentencepiece/seed-bpe");

/// A text with many kinds of characters becomes ids and text again, or it is said why not.
fn round_trip(tokenizer: &Tokenizer) {
    for text in [" Hello,  w\u{F6}rld's 123\n\n\u{65E5}\u{672C}<s><|im_end|>", ""] {
        match tokenizer.encode(text, true).and_then(|ids| tokenizer.decode(&ids, true)) {
            Ok(_) => {}
            Err(error) => refused(error),
        }
    }
}

/// A text and a chat, or why not.
fn speak(text: &TextSide) {
    text.tokenizer().map(round_trip).unwrap_or_else(refused);
    text.encode_chat(&conversation()).map(drop).unwrap_or_else(refused);
}

/// One turn of every role, on a day that is always the same.
fn conversation() -> ChatInput<'static> {
    static MESSAGES: LazyLock<Value> = LazyLock::new(|| {
        json!([
            {"role": "system", "content": "You are helpful."},
            {"role": "user", "content": "What is <|im_end|> 2 + 2?\n"},
            {"role": "assistant", "content": "4", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2}}}]},
            {"role": "user", "content": [{"type": "text", "text": "And \u{65E5}?"}]},
        ])
    });
    ChatInput { now: Some(DateTime::constant(2025, 1, 31, 12, 0, 0, 0)), ..ChatInput::new(&MESSAGES) }
}

/// A directory with these files, for parsers that take a path.
struct Folder(tempfile::TempDir);

impl Folder {
    fn with(files: &[(&str, &[u8])]) -> Folder {
        let folder = Folder(tempfile::tempdir().expect("a temporary directory"));
        for (name, bytes) in files {
            fs::write(folder.path(name), bytes).expect("a file in it");
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// A small checkpoint of the project and the configuration that it came with.
struct Case {
    name: String,
    checkpoint: Checkpoint,
    config: Value,
}

static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let models = [".", ".."].map(|up| root.join(up).join("tests/golden/models"));
    let models = models.iter().find(|dir| dir.is_dir()).expect("tests/golden/models");
    let mut dirs: Vec<PathBuf> =
        models.read_dir().expect("a directory").map(|entry| entry.expect("an entry").path()).collect();
    dirs.sort();
    let case = |dir: &PathBuf| {
        let config = fs::read(dir.join("config.json")).ok()?;
        Some(Case {
            name: dir.file_name()?.to_str()?.into(),
            checkpoint: Checkpoint::open(dir).expect("a checkpoint"),
            config: serde_json::from_slice(&config).expect("a configuration"),
        })
    };
    dirs.iter().filter_map(case).collect()
});
