//! Tokenizers that are not a `tokenizer.json`: SentencePiece models, tiktoken vocabularies, ChatGLM's, and those of GGUF
//! metadata; against what their originals give, and against files that are damaged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use layerstream::GenerateOptions;
use layerstream::checkpoint::Checkpoint;
use layerstream::text::{ChatInput, ChatTemplate, TextSide, Tokenizer, TokenizerParts};
use proptest::prelude::*;
use serde_json::{Value, json};

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizers").join(name)
}

fn read_json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn rows(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(case(name).join("expected.jsonl")).unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(rows.len() >= 60, "{name} has lost rows");
    rows
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// A directory with the vocabulary of a case and another configuration.
fn configured(name: &str, config: Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["tokenizer.model", "qwen.tiktoken"] {
        if case(name).join(file).exists() {
            std::fs::copy(case(name).join(file), dir.path().join(file)).unwrap();
        }
    }
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

fn open(name: &str, config: Value) -> Tokenizer {
    Tokenizer::open(configured(name, config).path()).unwrap()
}

/// A template that writes what the user says and nothing else.
fn echo() -> ChatTemplate {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    ChatTemplate::open(dir.path()).unwrap().unwrap()
}

fn said_by_user(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let messages = json!([{"role": "user", "content": text}]);
    echo().encode(tokenizer, &ChatInput::new(&messages)).unwrap()
}

/// What a user says is text, in every tokenizer: as the original gives it when special tokens are not looked for.
#[test]
fn special_tokens_in_messages_are_text() {
    let qwen = Tokenizer::open(&case("qwen_tiktoken")).unwrap();
    for row in rows("qwen_tiktoken") {
        let text = row["text"].as_str().unwrap();
        assert_eq!(said_by_user(&qwen, text), ids(&row["ids_no_special"]), "{text:?}");
    }
    let llama = Tokenizer::open(&case("spm_bpe_llama2")).unwrap();
    for row in rows("spm_bpe_llama2").iter().filter(|row| !row["text"].as_str().unwrap().contains('▁')) {
        let text = row["text"].as_str().unwrap();
        assert_eq!(said_by_user(&llama, text), ids(&row["raw_sentencepiece_ids"]), "{text:?}");
    }
}

/// SentencePiece by itself, with the model whose other rows are transformers'.
#[test]
fn plain_sentencepiece() {
    let tokenizer = open("spm_bpe_llama2", json!({"tokenizer_class": "BaichuanTokenizer"}));
    for row in rows("spm_bpe_llama2") {
        let text = row["text"].as_str().unwrap();
        let expected = ids(&row["raw_sentencepiece_ids"]);
        assert_eq!(tokenizer.encode(text, true).unwrap(), expected, "{text:?}");
        assert_eq!(tokenizer.decode(&expected, false).unwrap(), row["raw_sentencepiece_decoded"], "{expected:?}");
    }
}

#[test]
fn special_ids() {
    for name in ["qwen_tiktoken", "spm_bpe_glm"] {
        let tokenizer = Tokenizer::open(&case(name)).unwrap();
        let expected: BTreeMap<String, u32> =
            serde_json::from_value(read_json(&case(name).join("expected.json"))["special_ids"].clone()).unwrap();
        assert!(expected.len() >= 5, "{name}");
        for (token, id) in expected {
            assert_eq!(tokenizer.token_id(&token), Some(id), "{name}: {token}");
            assert_eq!(tokenizer.decode(&[id], false).unwrap(), token, "{name}");
            assert_eq!(tokenizer.decode(&[id], true).unwrap(), "", "{name}: {token}");
        }
    }
    // Releases after the first have other names after the first three.
    let later = open("qwen_tiktoken", json!({"tokenizer_class": "QWenTokenizer"}));
    assert_eq!(later.token_id("<|extra_0|>"), Some(2303));
    assert_eq!(later.token_id("<|extra_204|>"), Some(2507));
    assert_eq!((later.token_id("<R>"), later.vocab_size()), (None, 2508));
    assert_eq!(Tokenizer::open(&case("qwen_tiktoken")).unwrap().vocab_size(), 2508);
}

#[test]
fn chatglm_chats() {
    let text = TextSide::open(&case("spm_bpe_glm")).unwrap();
    let cases = read_json(&case("spm_bpe_glm").join("expected.json"))["chat"].as_array().unwrap().clone();
    assert!(cases.len() >= 2);
    for case in cases {
        let mut messages = Vec::new();
        for turn in case["history"].as_array().unwrap() {
            messages.push(json!({"role": "user", "content": turn[0]}));
            messages.push(json!({"role": "assistant", "content": turn[1]}));
        }
        messages.push(json!({"role": "user", "content": case["query"]}));
        let messages = Value::from(messages);
        let input = ChatInput::new(&messages);
        let prompt = case["prompt"].as_str().unwrap();
        assert_eq!(text.chat_template().unwrap().render(&input).unwrap(), format!("[gMASK]sop{prompt}"));
        assert_eq!(text.encode_chat(&input).unwrap(), ids(&case["ids"]));
        assert_eq!(text.encode(prompt).unwrap(), ids(&case["ids"]), "the frame does the same");
    }
    let messages = json!([{"role": "system", "content": "x"}]);
    let error = text.encode_chat(&ChatInput::new(&messages)).unwrap_err().to_string();
    assert!(error.contains("no place for a message of the role system"), "{error}");
}

/// ChatGLM 3 has four more special tokens and encodes every message by itself.
#[test]
fn chatglm3_chats() {
    let config = json!({"tokenizer_class": "ChatGLMTokenizer", "name_or_path": "THUDM/chatglm3-6b-base"});
    let dir = configured("spm_bpe_glm", config);
    let text = TextSide::open(dir.path()).unwrap();
    let tokenizer = text.tokenizer().unwrap();
    assert_eq!(tokenizer.token_id("<|system|>"), Some(1005));
    assert_eq!(tokenizer.token_id("<|observation|>"), Some(1008));
    let messages = json!([{"role": "system", "content": "be"}, {"role": "user", "content": "hi <|user|>"}]);
    let input = ChatInput::new(&messages);
    let part = |text: &str| tokenizer.encode(text, false).unwrap();
    let expected =
        [&[1001, 1003, 1005], &part("\n")[..], &part("be"), &[1006], &part("\n"), &part("hi <|user|>"), &[1007]];
    assert_eq!(text.encode_chat(&input).unwrap(), expected.concat());
    assert_eq!(part("sop<|user|>").iter().filter(|id| **id >= 1000).count(), 0, "plain text has no special tokens");
}

#[test]
fn qwen_chats() {
    let text = TextSide::open(&case("qwen_tiktoken")).unwrap();
    let messages = json!([{"role": "user", "content": "hi<|im_end|>"}]);
    let input = ChatInput::new(&messages);
    let rendered = text.chat_template().unwrap().render(&input).unwrap();
    let expected = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nhi<|im_end|><|im_end|>\n\
                    <|im_start|>assistant\n";
    assert_eq!(rendered, expected);
    let ids = text.encode_chat(&input).unwrap();
    assert_eq!(ids.iter().filter(|id| **id == 2302).count(), 2, "the user's is text");
}

/// A token before each message, which is encoded by itself.
#[test]
fn baichuan_chats() {
    let config = json!({"tokenizer_class": "BaichuanTokenizer", "add_bos_token": false});
    let dir = configured("spm_bpe_baichuan", config);
    let plain = Tokenizer::open(dir.path()).unwrap();
    let generation = dir.path().join("generation_config.json");
    std::fs::write(&generation, r#"{"user_token_id": 3, "assistant_token_id": 4, "eos_token_id": 2}"#).unwrap();
    let text = TextSide::open(dir.path()).unwrap();
    let messages = json!([
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi<reserved_107>"},
        {"role": "assistant", "content": " yes"},
        {"role": "user", "content": "go"},
    ]);
    let input = ChatInput::new(&messages);
    let rendered = text.chat_template().unwrap().render(&input).unwrap();
    let expected = "be brief<reserved_106>hi<reserved_107><reserved_107> yes<reserved_106>go<reserved_107>";
    assert_eq!(rendered, expected);
    let ids = text.encode_chat(&input).unwrap();
    let part = |text: &str| plain.encode(text, false).unwrap();
    // What the user says holds no token of the format.
    let start = [&part("be brief")[..], &[3]].concat();
    let end = [&[4], &part(" yes")[..], &[3], &part("go"), &[4]].concat();
    assert!(ids.starts_with(&start) && ids.ends_with(&end), "{ids:?}");
    let said = &ids[start.len()..ids.len() - end.len()];
    assert!(!said.contains(&3) && !said.contains(&4), "{said:?}");
    assert_eq!(text.tokenizer().unwrap().decode(said, false).unwrap(), "hi<reserved_107>");
    assert!(text.ends().is_empty(), "the configuration names the end");
    // An answer that was begun is continued, as in the original.
    let begun = json!([{"role": "user", "content": "go"}, {"role": "assistant", "content": "on"}]);
    let ids = text.encode_chat(&ChatInput::new(&begun)).unwrap();
    assert_eq!(ids, [&[3], &part("go")[..], &[4], &part("on")].concat());
    let late = json!([{"role": "user", "content": "go"}, {"role": "system", "content": "x"}]);
    let error = text.encode_chat(&ChatInput::new(&late)).unwrap_err().to_string();
    assert!(error.contains("no place here for a message of the role system"), "{error}");
    std::fs::write(&generation, r#"{"user_token_id": 195000, "assistant_token_id": 4}"#).unwrap();
    let error = TextSide::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("generation_config.json") && error.contains("195000"), "{error}");
}

/// Both releases of the code, told apart by what their configurations have.
#[test]
fn internlm_chats() {
    let config = json!({
        "tokenizer_class": "InternLMTokenizer",
        "added_tokens_decoder": {"2000": {"content": "<eoh>"}, "2001": {"content": "<eoa>"}},
    });
    let dir = configured("spm_bpe_llama2", config);
    let messages = json!([
        {"role": "user", "content": "a<eoa>"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"},
    ]);
    let input = ChatInput::new(&messages);
    let ask = json!([{"role": "system", "content": "be"}, {"role": "user", "content": "c"}]);

    let first = TextSide::open(dir.path()).unwrap();
    let render = |text: &TextSide, input: &ChatInput| text.chat_template().unwrap().render(input);
    let expected = "<s><s><|User|>:a<eoa><eoh>\n<|Bot|>:b<eoa>\n<|User|>:c<eoh>\n<|Bot|>:";
    assert_eq!(render(&first, &input).unwrap(), expected);
    let alone = json!([{"role": "user", "content": "c"}]);
    assert_eq!(render(&first, &ChatInput::new(&alone)).unwrap(), "<s><s><|User|>:c<eoh>\n<|Bot|>:");
    let ids = first.encode_chat(&input).unwrap();
    assert_eq!(ids[..2], [1, 1]);
    assert_eq!(ids.iter().filter(|id| **id == 2000).count(), 2);
    assert_eq!(ids.iter().filter(|id| **id == 2001).count(), 1, "the user's is text");
    assert_eq!(first.ends(), [2001]);
    let error = render(&first, &ChatInput::new(&ask)).unwrap_err().to_string();
    assert!(error.contains("no place for a message of the role system"), "{error}");

    let rotary = json!({"rotary": {"base": 10000, "type": "dynamic"}});
    std::fs::write(dir.path().join("config.json"), rotary.to_string()).unwrap();
    let later = TextSide::open(dir.path()).unwrap();
    assert_eq!(render(&later, &ChatInput::new(&ask)).unwrap(), "<s><|System|>:be\n<|User|>:c\n<|Bot|>:");
    let own = render(&later, &input).unwrap();
    assert!(own.starts_with("<s><|System|>:You are an AI assistant whose name is InternLM (书生·浦语).\n- InternLM"));
    assert!(own.ends_with("and 中文.\n<|User|>:a<eoa>\n<|Bot|>:b<eoa>\n<|User|>:c\n<|Bot|>:"), "{own}");
    let ids = later.encode_chat(&input).unwrap();
    assert_eq!(ids.iter().filter(|id| **id == 1).count(), 1);
    assert_eq!(ids.iter().filter(|id| **id >= 2000).collect::<Vec<_>>(), [&2001]);
    assert_eq!(later.ends(), [2001]);

    // Without what ends an answer it is no chat model.
    let base = configured("spm_bpe_llama2", json!({"tokenizer_class": "InternLMTokenizer"}));
    assert!(TextSide::open(base.path()).unwrap().chat_template().is_err());
}

/// What `tokenizer_config.json` and its neighbours change about a SentencePiece model.
#[test]
fn configurations() {
    let llama = |more: Value| {
        let mut config = json!({"tokenizer_class": "LlamaTokenizer"});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        open("spm_bpe_llama2", config)
    };
    let plain = llama(json!({}));
    let hello = plain.encode("Hello", false).unwrap();
    assert_eq!(plain.encode("Hello", true).unwrap(), [&[1], &hello[..]].concat(), "Llama's own names and frame");
    assert_eq!(llama(json!({"add_bos_token": false})).encode("Hello", true).unwrap(), hello);
    let both = llama(json!({"add_eos_token": true})).encode("Hello", true).unwrap();
    assert_eq!(both, [&[1], &hello[..], &[2]].concat());
    assert_eq!((plain.bos_token(), plain.eos_token()), (Some("<s>"), Some("</s>")));
    assert_eq!(llama(json!({"bos_token": null})).encode("Hello", true).unwrap(), hello, "null is no token");

    // With `legacy`, which is the default, every text between special tokens gets a space in front.
    let after = |tokenizer: &Tokenizer| tokenizer.encode("<s>Hello", false).unwrap();
    assert_eq!(after(&plain), [&[1], &hello[..]].concat());
    // Decoding takes off two spaces then, as in transformers 4.40.2.
    let spaced = plain.encode(" li", false).unwrap();
    assert_eq!(plain.decode(&spaced, true).unwrap(), "li");
    let modern = llama(json!({"legacy": false}));
    assert_eq!(modern.encode(" li", false).unwrap(), spaced);
    assert_eq!(modern.decode(&spaced, true).unwrap(), " li");
    assert_ne!(after(&modern), [&[1], &hello[..]].concat());
    assert_eq!(modern.encode("Hello", false).unwrap(), hello);
    let bare = llama(json!({"legacy": false, "add_prefix_space": false}));
    assert_eq!(after(&modern)[1..], bare.encode("Hello", false).unwrap());
    assert_ne!(bare.encode("Hello", false).unwrap(), hello);

    // Tokens after the pieces, by the old and the new way to list them, and by name only.
    let added = json!({"added_tokens_decoder": {"2000": {"content": "<|new|>", "special": true}}});
    let tokenizer = llama(added);
    assert_eq!(tokenizer.encode("<|new|>", false).unwrap(), [2000]);
    assert_eq!(tokenizer.decode(&[2000], true).unwrap(), "");
    assert_eq!(tokenizer.vocab_size(), 2001);
    let dir = configured("spm_bpe_llama2", json!({"tokenizer_class": "LlamaTokenizer"}));
    std::fs::write(dir.path().join("added_tokens.json"), r#"{"<old>": 2000}"#).unwrap();
    std::fs::write(dir.path().join("special_tokens_map.json"), r#"{"eos_token": {"content": "<old>"}}"#).unwrap();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(tokenizer.encode("<old>", false).unwrap(), [2000]);
    assert_eq!((tokenizer.eos_token(), tokenizer.decode(&[2000], true).unwrap().as_str()), (Some("<old>"), ""));
    // One that replaces a piece.
    let replaced = llama(json!({"added_tokens_decoder": {"1999": {"content": "<|im_start|>", "special": true}}}));
    assert_eq!(replaced.encode("<|im_start|>", false).unwrap(), [1999]);
    assert_eq!(replaced.decode(&[1999], false).unwrap(), "<|im_start|>");
}

/// A user-defined piece that is a control token too (Gemma's `<start_of_turn>`) is for the template only.
#[test]
fn user_defined_control_pieces() {
    let config = json!({"tokenizer_class": "BaichuanTokenizer", "additional_special_tokens": ["<reserved_106>"]});
    let tokenizer = open("spm_bpe_baichuan", config);
    assert_eq!(tokenizer.encode("<reserved_106>", false).unwrap(), [3]);
    let ids = said_by_user(&tokenizer, "a<reserved_106>b<reserved_107>");
    assert!(!ids.contains(&3), "{ids:?}");
    assert!(ids.contains(&4), "the other one is nobody's control token");
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "a<reserved_106>b<reserved_107>");
}

#[test]
fn glm4_vocabularies() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(case("qwen_tiktoken").join("qwen.tiktoken"), dir.path().join("tokenizer.model")).unwrap();
    let config = json!({
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLM4Tokenizer", null]},
        "added_tokens_decoder": {
            "2300": {"content": "[gMASK]", "special": true},
            "2301": {"content": "<sop>", "special": true},
        },
    });
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let hello = tokenizer.encode("Hello", false).unwrap();
    assert_eq!(hello, [39, 1824, 78]);
    assert_eq!(tokenizer.encode("Hello", true).unwrap(), [&[2300, 2301], &hello[..]].concat());
    std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"tokenizer_class": "ChatGLM4Tokenizer"}"#).unwrap();
    let error = Tokenizer::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("[gMASK] has no id"), "{error}");
}

#[test]
fn tokenizer_json_comes_first() {
    let dir = configured("spm_unigram", json!({}));
    std::fs::copy(case("bbpe_gpt2").join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    assert_eq!(Tokenizer::open(dir.path()).unwrap().vocab_size(), 802);
}

/// What is passed on early is what stays, and all that can be.
#[test]
fn streams() {
    for name in ["spm_bpe_llama2", "spm_bpe_glm", "spm_bpe_baichuan", "spm_unigram", "qwen_tiktoken"] {
        let tokenizer = Tokenizer::open(&case(name)).unwrap();
        for row in rows(name).iter().filter(|row| !row["decoded"].as_str().unwrap().contains('\u{FFFD}')) {
            let ids = ids(&row["ids"]);
            let mut stream = tokenizer.stream(false);
            let mut sent = String::new();
            for (i, id) in ids.iter().enumerate().take(200) {
                sent += &stream.push(*id).unwrap();
                let whole = tokenizer.decode(&ids[..=i], false).unwrap();
                assert_eq!(sent, whole.trim_end_matches('\u{FFFD}'), "{name}: {:?} after token {i}", row["text"]);
            }
        }
    }
    // Bytes that are no text: SentencePiece marks each, Python each beginning of a character.
    let baichuan = Tokenizer::open(&case("spm_bpe_baichuan")).unwrap();
    let bytes: Vec<u32> =
        ["<0xE6>", "<0x97>", "<0xE6>", "<0x97>", "<0xA5>"].map(|byte| baichuan.token_id(byte).unwrap()).to_vec();
    assert_eq!(baichuan.decode(&bytes, false).unwrap(), "\u{FFFD}\u{FFFD}日");
    let qwen = Tokenizer::open(&case("qwen_tiktoken")).unwrap();
    let day = qwen.encode("日", false).unwrap();
    assert!(day.len() > 1, "the case has the character as one token");
    assert_eq!(qwen.decode(&[&day[..1], &day].concat(), false).unwrap(), "\u{FFFD}日");
    let error = qwen.decode(&[2508], false).unwrap_err().to_string();
    assert!(error.contains("token id 2508") && error.contains("2508 tokens"), "{error}");
}

/// The SentencePiece model of a case as GGUF metadata has it.
fn spm_parts(name: &str) -> TokenizerParts {
    let tokenizer = open(name, json!({"tokenizer_class": "BaichuanTokenizer"}));
    let file = std::fs::read(case(name).join("tokenizer.model")).unwrap();
    let mut parts = TokenizerParts { model: "llama".into(), bos_token_id: Some(1), ..TokenizerParts::default() };
    // The pieces come first in the file: a field 1 with a text (1), a score (2) and, unless it is 1, a kind (3).
    let mut at = 0;
    while file[at] == 0x0A {
        let piece = &file[at + 2..at + 2 + usize::from(file[at + 1])];
        at += 2 + piece.len();
        let text = &piece[2..2 + usize::from(piece[1])];
        let rest = &piece[2 + text.len()..];
        parts.tokens.push(String::from_utf8(text.to_vec()).unwrap());
        parts.scores.push(f32::from_le_bytes(rest[1..5].try_into().unwrap()));
        parts.token_type.push(rest.get(6).map_or(1, |kind| u32::from(*kind)));
    }
    assert_eq!(parts.tokens.len(), tokenizer.vocab_size());
    parts
}

#[test]
fn gguf_llama() {
    let path = Path::new("model.gguf");
    let tokenizer = Tokenizer::from_parts(path, spm_parts("spm_bpe_llama2")).unwrap();
    for row in rows("spm_bpe_llama2").iter().filter(|row| !row["text"].as_str().unwrap().contains("<s>")) {
        let text = row["text"].as_str().unwrap();
        let expected = ids(&row["raw_sentencepiece_ids"]);
        assert_eq!(tokenizer.encode(text, false).unwrap(), expected, "{text:?}");
        assert_eq!(tokenizer.encode(text, true).unwrap(), [&[1], &expected[..]].concat());
        assert_eq!(tokenizer.decode(&expected, false).unwrap(), row["raw_sentencepiece_decoded"]);
    }
    assert_eq!(tokenizer.encode("<s>", false).unwrap(), [1]);
    assert_eq!(tokenizer.bos_token(), Some("<s>"));
}

/// Byte-level BPE: the data of a `tokenizer.json`, given as GGUF gives it.
#[test]
fn gguf_gpt2() {
    for (name, pre, add_bos) in
        [("bbpe_llama3", "llama-bpe", true), ("bbpe_qwen2", "qwen2", false), ("bbpe_gpt2", "gpt-2", false)]
    {
        let json = read_json(&case(name).join("tokenizer.json"));
        let mut tokens: BTreeMap<u32, (String, u32)> = BTreeMap::new();
        for (token, id) in json["model"]["vocab"].as_object().unwrap() {
            tokens.insert(id.as_u64().unwrap() as u32, (token.clone(), 1));
        }
        for token in json["added_tokens"].as_array().unwrap() {
            let kind = if token["special"] == true { 3 } else { 4 };
            tokens.insert(token["id"].as_u64().unwrap() as u32, (token["content"].as_str().unwrap().into(), kind));
        }
        let pair = |merge: &Value| match merge.as_array() {
            Some(pair) => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
            None => merge.as_str().unwrap().to_owned(),
        };
        let parts = TokenizerParts {
            model: "gpt2".into(),
            pre: Some(pre.into()),
            token_type: tokens.values().map(|(_, kind)| *kind).collect(),
            tokens: tokens.into_values().map(|(token, _)| token).collect(),
            merges: json["model"]["merges"].as_array().unwrap().iter().map(pair).collect(),
            bos_token_id: add_bos.then_some(2400),
            ..TokenizerParts::default()
        };
        let tokenizer = Tokenizer::from_parts(Path::new("model.gguf"), parts).unwrap();
        for row in rows(name) {
            let text = row["text"].as_str().unwrap();
            let expected = ids(&row["ids"]);
            assert_eq!(tokenizer.encode(text, false).unwrap(), expected, "{name}: {text:?}");
            let special = row.get("ids_add_special").map_or(expected.clone(), ids);
            assert_eq!(tokenizer.encode(text, true).unwrap(), special, "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&expected, false).unwrap(), row["decoded"], "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&expected, true).unwrap(), row["decoded_skip_special"], "{name}: {text:?}");
        }
    }
}

#[test]
fn gguf_errors() {
    let fails = |change: &dyn Fn(&mut TokenizerParts), part: &str| {
        let mut parts = spm_parts("spm_bpe_llama2");
        change(&mut parts);
        let error = Tokenizer::from_parts(Path::new("model.gguf"), parts).unwrap_err().to_string();
        assert!(error.starts_with("model.gguf: ") && error.contains(part), "{error:?} does not say {part:?}");
    };
    fails(&|parts| parts.model = "rwkv".into(), "\"rwkv\"");
    fails(&|parts| parts.scores.truncate(1999), "1999 entries for 2000");
    fails(&|parts| parts.token_type[7] = 9, "token 7 has the type 9");
    fails(&|parts| parts.bos_token_id = Some(2000), "bos_token_id");
    fails(&|parts| parts.tokens[900] = parts.tokens[901].clone(), "two of it");
    fails(&|parts| parts.scores[900] = f32::NAN, "score");
    fails(&|parts| (parts.model, parts.pre) = ("gpt2".into(), Some("tekken".into())), "\"tekken\"");
    fails(&|parts| (parts.model, parts.merges) = ("gpt2".into(), vec!["a".into()]), "not two tokens");
    fails(&|parts| (parts.model, parts.merges) = ("gpt2".into(), vec!["q zzzzzz".into()]), "tokenizer");
}

/// Opens a damaged file and, if it still opens, uses it.
fn survives(name: &str, file: &str, bytes: &[u8]) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(file), bytes).unwrap();
    std::fs::copy(case(name).join("tokenizer_config.json"), dir.path().join("tokenizer_config.json")).unwrap();
    match Tokenizer::open(dir.path()) {
        Err(error) => {
            let error = error.to_string();
            prop_assert!(error.len() < 1000 && !error.contains('\n') && error.contains(file), "{error}");
        }
        Ok(tokenizer) => {
            let ids = tokenizer.encode("Hello  wörld, ▁日本 ｆｕｌｌ <s>\n", true).unwrap();
            tokenizer.decode(&ids, false).unwrap();
        }
    }
    Ok(())
}

/// The start of a file of a case, so that what is damaged is often what matters, and its end.
fn damaged(name: &str, file: &str, changes: &[(prop::sample::Index, u8)], cut: Option<prop::sample::Index>) -> Vec<u8> {
    let mut bytes = std::fs::read(case(name).join(file)).unwrap();
    for (at, value) in changes {
        let at = at.index(bytes.len());
        bytes[at] = *value;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len()));
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn damaged_vocabularies_give_one_error(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
        which in 0..4usize,
    ) {
        let (name, file) = [
            ("spm_bpe_llama2", "tokenizer.model"),
            ("spm_bpe_baichuan", "tokenizer.model"),
            ("spm_unigram", "tokenizer.model"),
            ("qwen_tiktoken", "qwen.tiktoken"),
        ][which];
        survives(name, file, &damaged(name, file, &changes, cut))?;
    }

    #[test]
    fn noise_is_no_vocabulary(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        survives("spm_bpe_llama2", "tokenizer.model", &bytes)?;
        survives("qwen_tiktoken", "qwen.tiktoken", &bytes)?;
    }

    /// Whatever text goes in comes out again.
    #[test]
    fn text_survives_the_round_trip(text in "\\PC{0,40}") {
        for name in ["spm_bpe_llama2", "spm_bpe_glm", "spm_bpe_baichuan"] {
            let tokenizer = TOKENIZERS.with(|open| open[name].clone());
            let ids = said_by_user(&tokenizer, &text);
            prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text.replace('▁', " "), "{}", name);
        }
    }
}

thread_local! {
    static TOKENIZERS: BTreeMap<&'static str, Tokenizer> = ["spm_bpe_llama2", "spm_bpe_glm", "spm_bpe_baichuan"]
        .map(|name| (name, Tokenizer::open(&case(name)).unwrap()))
        .into();
}

#[test]
fn answers_end_where_the_models_own_code_ends_them() {
    let qwen = TextSide::open(&case("qwen_tiktoken")).unwrap();
    let id = |token: &str| qwen.tokenizer().unwrap().token_id(token).unwrap();
    let ends = ["<|endoftext|>", "<|im_end|>", "<|im_start|>"].map(id);
    assert_eq!(qwen.ends(), ends);
    let config = json!({"tokenizer_class": "ChatGLMTokenizer", "name_or_path": "THUDM/chatglm3-6b"});
    assert_eq!(TextSide::open(configured("spm_bpe_glm", config).path()).unwrap().ends(), [1006, 1008]);
    // The configurations of these name all of their ends.
    for name in ["spm_bpe_glm", "bbpe_qwen2"] {
        assert!(TextSide::open(&case(name)).unwrap().ends().is_empty(), "{name}");
    }
    // After those of the configuration, and none twice.
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/qwen1_ntk_logn");
    let named = GenerateOptions::of_directory(&model).unwrap().eos;
    let all = GenerateOptions::of_model(&Checkpoint::open(&model).unwrap(), &qwen).unwrap().eos;
    let expected: Vec<u32> = named.iter().copied().chain(ends.into_iter().filter(|id| !named.contains(id))).collect();
    assert!(all == expected && all.len() > named.len(), "{all:?}");
}
