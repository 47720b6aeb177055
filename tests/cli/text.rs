//! `tokenize`, `detokenize`, `render-chat`: exactly the reference's ids, text and prompts.

use std::fs;

use serde_json::{Value, json};

use super::{fails, golden, json as parsed, layerstream, on_demo, text};

#[test]
fn ids_are_those_of_the_reference() {
    for case in fs::read_dir(golden("tokenizers")).unwrap() {
        let dir = case.unwrap().path();
        let lines = fs::read_to_string(dir.join("expected.jsonl")).unwrap();
        // Every ninth: each is a process, and the library's tests have them all.
        for line in lines.lines().step_by(9) {
            let case: Value = serde_json::from_str(line).unwrap();
            let tokenize = |args: &[&str]| {
                parsed(layerstream(["tokenize"]).arg(&dir).args(args).write_stdin(case["text"].as_str().unwrap()))
            };
            assert_eq!(tokenize(&["--no-special"]), case["ids"], "{}: {line}", dir.display());
            let framed = case.get("ids_add_special").unwrap_or(&case["ids"]);
            assert_eq!(tokenize(&[]), *framed, "{}: {line}", dir.display());
            let ids = case["ids"].to_string();
            let decoded = text(layerstream(["detokenize", "--ids", &ids]).arg(&dir));
            assert_eq!(decoded, case["decoded"].as_str().unwrap(), "{}: {line}", dir.display());
            if let Some(expected) = case["decoded_skip_special"].as_str() {
                let plain = text(layerstream(["detokenize", "--skip-special", "--ids", &ids]).arg(&dir));
                assert_eq!(plain, expected, "{}: {line}", dir.display());
            }
        }
    }
}

#[test]
fn text_is_taken_byte_by_byte_and_given_back() {
    for given in ["a\n", "a\r\n", "  a  ", "é\u{0}\u{301}🙂"] {
        let ids = text(on_demo("tokenize", &["--no-special"]).write_stdin(given));
        assert_eq!(text(&mut on_demo("detokenize", &["--ids", &ids])), given);
    }
    assert_eq!(text(&mut on_demo("detokenize", &["--ids", "0,495"])), "<|bos|>Capital");
    assert_eq!(text(&mut on_demo("detokenize", &["--ids", "0,495", "--skip-special"])), "Capital");
    assert_eq!(text(on_demo("tokenize", &["--no-special"]).write_stdin("")), "[]\n");
}

#[test]
fn what_is_not_text_or_not_a_token_is_refused() {
    fails(on_demo("tokenize", &[]).write_stdin(&b"ab\xff"[..]), 1, &["standard input", "UTF-8", "byte 2 is 0xff"]);
    fails(&mut on_demo("detokenize", &["--ids", "1,99999"]), 1, &["99999", "vocabulary of 1536"]);
    fails(&mut on_demo("detokenize", &["--ids", "1,x"]), 2, &["`x` is not a token id"]);
    fails(&mut on_demo("detokenize", &[]), 2, &["--ids"]);
    let empty = tempfile::tempdir().unwrap();
    fails(layerstream(["tokenize"]).arg(empty.path()).write_stdin("a"), 1, &["there is no tokenizer (tokenizer.json"]);
    fails(layerstream(["tokenize", "nowhere"]).write_stdin("a"), 1, &["nowhere", "does not exist"]);
}

/// A directory with a case's template and special tokens, and its messages and tools in files.
fn chat_case(case: &Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config =
        json!({"bos_token": case["bos_token"], "eos_token": case["eos_token"], "chat_template": case["template"]});
    for (name, value) in [("tokenizer_config", &config), ("messages", &case["messages"]), ("tools", &case["tools"])] {
        fs::write(dir.path().join(format!("{name}.json")), value.to_string()).unwrap();
    }
    dir
}

#[test]
fn chats_are_rendered_as_by_the_reference() {
    let mut rendered = 0;
    for entry in fs::read_dir(golden("chat")).unwrap() {
        let path = entry.unwrap().path();
        let case: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let kwargs = case["kwargs"].as_object().unwrap();
        // The date, and variables beyond the messages, have no option.
        let dated = case["template"].as_str().unwrap().contains("strftime_now");
        if dated || kwargs.keys().any(|key| key != "add_generation_prompt") {
            continue;
        }
        let dir = chat_case(&case);
        let mut command = layerstream(["render-chat", "--messages"]);
        command.arg(dir.path().join("messages.json")).arg(dir.path());
        if !case["tools"].is_null() {
            command.arg("--tools").arg(dir.path().join("tools.json"));
        }
        if kwargs.get("add_generation_prompt") != Some(&true.into()) {
            command.arg("--no-generation-prompt");
        }
        match case["rendered"].as_str() {
            Some(expected) => assert_eq!(text(&mut command), expected, "{}", path.display()),
            None => fails(&mut command, 1, &["chat template"]),
        }
        rendered += 1;
    }
    assert!(rendered > 40, "{rendered}");
}

#[test]
fn messages_that_cannot_be_rendered_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("messages.json");
    let render = |messages: &str| {
        fs::write(&file, messages).unwrap();
        let mut command = on_demo("render-chat", &["--messages"]);
        command.arg(&file);
        command
    };
    assert_eq!(text(&mut render(r#"[{"role":"user","content":" hi "}]"#)), "<|bos|><|user|>hi<|end|><|assistant|>");
    fails(&mut render("[]"), 1, &["at least one message"]);
    fails(&mut render("{"), 1, &["messages.json", "not valid JSON"]);
    fails(&mut render(r#"["hi"]"#), 1, &["must be an object"]);
    fails(on_demo("render-chat", &["--messages"]).arg(dir.path().join("none.json")), 1, &["none.json"]);
    fails(&mut on_demo("render-chat", &[]), 2, &["--messages"]);
}
