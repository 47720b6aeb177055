//! `generate`: the demo model's known answers, in every way of asking for them.

use std::fs;

use serde_json::Value;

use super::{demo, fails, golden, json, layerstream, on_demo, stderr, text};

/// The cases of `expected.json`.
fn expected() -> Vec<Value> {
    let cases: Vec<Value> = serde_json::from_slice(&fs::read(demo().join("expected.json")).unwrap()).unwrap();
    assert_eq!(cases.len(), 46);
    cases
}

fn prompt(case: &Value) -> &str {
    case["prompt"].as_str().unwrap()
}

#[track_caller]
fn is_expected(answer: &Value, case: &Value) {
    assert_eq!(answer["ids"], case["greedy_ids"], "{case}");
    assert_eq!(answer["text"], case["text"], "{case}");
    assert_eq!(answer["finish"], "eos", "{case}");
    assert_eq!(answer["prompt_tokens"], case["ids"].as_array().unwrap().len(), "{case}");
    assert_eq!(answer["new_tokens"], case["greedy_ids"].as_array().unwrap().len(), "{case}");
}

#[test]
fn every_known_answer_alone() {
    for case in expected() {
        let mut command = on_demo("generate", &[prompt(&case), "--temperature", "0", "--json"]);
        if case["chat"] == true {
            command.arg("--chat");
        }
        is_expected(&json(&mut command), &case);
    }
}

#[test]
fn every_known_answer_in_one_call() {
    for chat in [false, true] {
        let cases: Vec<_> = expected().into_iter().filter(|case| case["chat"] == chat).collect();
        let mut command = on_demo("generate", &["--json"]);
        command.args(cases.iter().map(prompt)).args(chat.then_some("--chat"));
        let report = json(&mut command);
        let outputs = report["outputs"].as_array().unwrap();
        assert_eq!(outputs.len(), cases.len());
        outputs.iter().zip(&cases).for_each(|(answer, case)| is_expected(answer, case));
        let sum = |key: &str| outputs.iter().map(|answer| answer[key].as_u64().unwrap()).sum::<u64>();
        assert_eq!(report["prompt_tokens"], sum("prompt_tokens"));
        assert_eq!(report["new_tokens"], sum("new_tokens"));
        let longest = outputs.iter().map(|answer| answer["new_tokens"].as_u64().unwrap()).max().unwrap();
        // The passes of all are those of the longest; a prompt may take a pass more.
        assert!(report["passes"].as_u64().unwrap() <= longest + 2, "{}", report["passes"]);
    }
}

#[test]
fn an_answer_is_printed_as_text_with_a_line_break() {
    let output = on_demo("generate", &["What is the capital of France?"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), " Paris\n");
    assert!(!stderr(&output).contains('['), "progress where there is no terminal: {}", stderr(&output));
}

#[test]
fn several_answers_are_printed_under_headings_in_the_order_of_their_prompts() {
    let prompts = ["How does layer streaming work?", "What is the capital\nof France?", "Capital of Japan?"];
    let answers: Vec<String> =
        prompts.iter().map(|prompt| text(&mut on_demo("generate", &["--chat", prompt]))).collect();
    let printed = text(on_demo("generate", &["--chat"]).args(prompts));
    let expected = format!(
        "## 1: How does layer streaming work?\n{}\n## 2: What is the capital of France?\n{}\n## 3: Capital of Japan?\n{}",
        answers[0], answers[1], answers[2]
    );
    assert_eq!(printed, expected);
}

#[test]
fn prompts_come_from_standard_input() {
    for args in [&["--json"][..], &["-", "--json"]] {
        for input in ["Capital of Japan?", "Capital of Japan?\n", "Capital of Japan?\r\n"] {
            let answer = json(on_demo("generate", args).write_stdin(input));
            assert_eq!(answer["text"], " Tokyo", "{input:?}");
        }
    }
}

#[test]
fn prompts_come_from_a_file_as_lines_or_json_strings() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompts");
    fs::write(&file, "Capital of Japan?\n\n\"What is the capital of \\u0046rance?\"\n").unwrap();
    let report = json(on_demo("generate", &["--json", "--prompts-file"]).arg(&file));
    let texts: Vec<_> = report["outputs"].as_array().unwrap().iter().map(|answer| &answer["text"]).collect();
    assert_eq!(texts, [" Tokyo", " Paris"]);
}

#[test]
fn token_ids_are_prompts_too() {
    let one = json(&mut on_demo("generate", &["--ids", "0,495,277,444,278,285,37", "--json"]));
    assert_eq!(one["text"], " Tokyo");
    let lists = ["--ids", "[0, 495, 277, 444, 278, 285, 37]", "--ids", "0,287,268,270,282,277,1391,37", "--json"];
    let two = json(&mut on_demo("generate", &lists));
    assert_eq!(two["outputs"][0]["text"], " Tokyo");
    assert_eq!(two["outputs"][1]["text"], " Paris");
}

#[test]
fn a_model_without_a_tokenizer_takes_and_gives_ids() {
    let model = super::copy_of_demo();
    fs::remove_file(model.path().join("tokenizer.json")).unwrap();
    let mut command = layerstream(["generate", "--ids", "0,495,277,444,278,285,37"]);
    assert_eq!(text(command.arg(model.path())), "351,468,95,85,1\n");
}

#[test]
fn a_gguf_file_with_an_unknown_tokenizer_takes_and_gives_ids() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = fs::read(golden("models/gguf_q8_0/model-Q8_0.gguf")).unwrap();
    let key = b"tokenizer.ggml.model";
    // Behind the key a type, and the length of the name.
    let name = bytes.windows(key.len()).position(|found| found == key).unwrap() + key.len() + 12;
    assert_eq!(&bytes[name..name + 5], b"llama");
    bytes[name..name + 5].copy_from_slice(b"plamo");
    let model = dir.path().join("model.gguf");
    fs::write(&model, bytes).unwrap();
    let generate = |args: &[&str]| {
        let mut command = layerstream(["generate"]);
        command.arg(&model).args(args).args(["--max-new-tokens", "2", "--device", "cpu"]);
        command
    };
    assert!(!text(&mut generate(&["--ids", "5,6,7", "--json"])).is_empty());
    fails(&mut generate(&["Once upon a time"]), 1, &["model.gguf", "plamo", "token ids only", "not supported"]);
}

#[test]
fn the_report_has_what_scripts_rely_on() {
    let report = json(&mut on_demo("generate", &["Capital of Japan?", "--json", "--ram", "64MiB", "--device", "cpu"]));
    for key in ["text", "finish", "reader", "model", "device"] {
        assert!(report[key].is_string(), "{key} in {report}");
    }
    for key in ["prompt_tokens", "new_tokens", "passes", "bytes_read", "peak_rss_bytes", "ram_bytes"] {
        assert!(report[key].as_u64().is_some_and(|n| n > 0), "{key} in {report}");
    }
    let times = ["seconds", "first_token_seconds", "tokens_per_second", "gb_per_second"];
    for key in times {
        assert!(report[key].as_f64().is_some_and(|n| n > 0.0), "{key} in {report}");
    }
    // All tokens but the first share the rest of the time.
    let later = (report["seconds"].as_f64().unwrap() - report["first_token_seconds"].as_f64().unwrap())
        / (report["new_tokens"].as_f64().unwrap() - 1.0);
    assert!((report["steady_seconds_per_token"].as_f64().unwrap() - later).abs() < 1e-9, "{report}");
    assert!(report["disk_wait_seconds"].is_number() && report["huge_pages"].is_boolean());
    assert_eq!(report["ram_bytes"], 64 << 20);
    assert!(report["peak_rss_bytes"].as_u64().unwrap() < (64 << 20) + 150_000_000);
}

#[test]
fn a_single_token_says_nothing_of_those_after_it() {
    let one = ["Capital of Japan?", "--json", "--max-new-tokens", "1", "--ram", "64MiB"];
    let report = json(&mut on_demo("generate", &one));
    assert_eq!((&report["new_tokens"], &report["steady_seconds_per_token"]), (&1.into(), &serde_json::Value::Null));
}

#[test]
fn stats_are_a_table_on_standard_error() {
    let output = on_demo("generate", &["Capital of Japan?", "--stats", "--ram", "64MiB"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), " Tokyo\n");
    let table = stderr(&output);
    for row in ["prompt  7 tokens", "answer  5 tokens", "tokens/s", "from disk", "first token after", "budget 64.0 MiB"]
    {
        assert!(table.contains(row), "`{row}` in {table}");
    }
}
