//! Every mistake a person can make at `generate`: what is said, and with which exit code.

use std::fs;

use super::{copy_of_demo, edit_json, fails, layerstream, on_demo, stderr, text};

#[test]
fn wrong_usage_is_exit_code_2() {
    let wrong: [(&[&str], &[&str]); 15] = [
        (&["--ram", "12x"], &["12x", "4GiB"]),
        (&["--ram", "0"], &["--ram"]),
        (&["--ram", "-4GiB"], &["-4"]),
        (&["--chunk", "big"], &["--chunk"]),
        (&["--device", "tpu"], &["tpu", "cuda:0"]),
        (&["--reader", "mmap"], &["mmap", "uring, pread or buffered"]),
        (&["--threads", "0"], &["--threads", "at least 1"]),
        (&["--context", "0"], &["--context", "at least 1"]),
        (&["--max-new-tokens", "many"], &["many"]),
        (&["--max-new-tokens", "0"], &["at least 1"]),
        (&["--temperature", "warm"], &["warm"]),
        (&["--ids", "1,2"], &["--ids"]),
        (&["--system", "Be kind."], &["--chat"]),
        (&["--no-such-option"], &["--no-such-option"]),
        (&["--seed", "-1"], &["-1"]),
    ];
    for (args, words) in wrong {
        fails(on_demo("generate", &["hi"]).args(args), 2, words);
    }
    fails(&mut layerstream(["generate"]), 2, &["<MODEL>"]);
    fails(&mut layerstream(["conjure"]), 2, &["conjure"]);
    fails(&mut on_demo("generate", &["--ids", "1;2"]), 2, &["1;2", "1,2,3"]);
    let nothing: [&str; 0] = [];
    assert_eq!(layerstream(nothing).output().unwrap().status.code(), Some(2));
}

#[test]
fn help_and_version_are_no_mistakes() {
    assert!(text(&mut layerstream(["--version"])).starts_with("layerstream "));
    for command in ["generate", "chat", "plan", "inspect", "logits", "tokenize", "detokenize", "render-chat", "synth"] {
        assert!(text(&mut layerstream([command, "--help"])).contains("Usage: layerstream "), "{command}");
    }
}

#[test]
fn options_that_mean_nothing_are_refused() {
    let wrong: [(&[&str], &[&str]); 8] = [
        (&["--temperature", "-1"], &["temperature is -1", "0 (greedy) or more"]),
        (&["--temperature", "NaN"], &["temperature"]),
        (&["--top-p", "0"], &["top-p is 0"]),
        (&["--min-p", "2"], &["min-p is 2"]),
        (&["--repetition-penalty", "0"], &["repetition penalty"]),
        (&["--stop", ""], &["stop string is empty"]),
        (&["--chunk", "1"], &["chunk"]),
        (&["--depth", "5000"], &["depth"]),
    ];
    for (args, words) in wrong {
        fails(on_demo("generate", &["hi"]).args(args), 1, words);
    }
}

#[test]
fn prompts_that_cannot_be_run_are_refused() {
    fails(&mut on_demo("generate", &[""]), 1, &["the prompt is empty", "--ids"]);
    fails(on_demo("generate", &[]).write_stdin(""), 1, &["the prompt is empty"]);
    fails(on_demo("generate", &[]).write_stdin(&b"\xc3("[..]), 1, &["standard input", "UTF-8"]);
    fails(&mut on_demo("generate", &["--ids", ""]), 1, &["the prompt is empty"]);
    fails(&mut on_demo("generate", &["--ids", "1,1536"]), 1, &["1536", "vocabulary of 1536"]);
    fails(&mut on_demo("generate", &[&"word ".repeat(3000)]), 1, &["the context holds 2048", "--max-length"]);
    fails(&mut on_demo("generate", &["one two three", "--context", "2"]), 1, &["the context holds 2"]);
    fails(&mut on_demo("generate", &["--prompts-file", "nowhere.txt"]), 1, &["nowhere.txt"]);
    let empty = tempfile::NamedTempFile::new().unwrap();
    fails(on_demo("generate", &["--prompts-file"]).arg(empty.path()), 1, &["holds no prompt"]);
}

#[test]
fn models_that_cannot_be_opened_are_refused_by_name() {
    fails(&mut layerstream(["generate", "nowhere", "hi"]), 1, &["nowhere", "does not exist"]);
    let empty = tempfile::tempdir().unwrap();
    fails(layerstream(["generate"]).arg(empty.path()).arg("hi"), 1, &["the directory is empty"]);

    let model = copy_of_demo();
    let run = |args: &[&str]| {
        let mut command = layerstream(["generate"]);
        command.arg(model.path()).args(args);
        command
    };
    let shard = model.path().join("model-00002-of-00002.safetensors");
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() - 100]).unwrap();
    fails(&mut run(&["hi"]), 1, &["model-00002-of-00002.safetensors"]);
    fs::remove_file(&shard).unwrap();
    fails(&mut run(&["hi"]), 1, &["model-00002-of-00002.safetensors"]);
    fs::write(&shard, &bytes).unwrap();

    let config = model.path().join("config.json");
    let whole = fs::read(&config).unwrap();
    edit_json(&config, |config| config["hidden_act"] = "mish".into());
    fails(&mut run(&["hi"]), 1, &["config.json", "hidden_act", "mish"]);
    fs::write(&config, "{").unwrap();
    fails(&mut run(&["hi"]), 1, &["config.json", "not valid JSON"]);
    fs::remove_file(&config).unwrap();
    fails(&mut run(&["hi"]), 1, &["config.json"]);
    fs::write(&config, whole).unwrap();

    fails(&mut run(&["hi", "--replica", "nowhere"]), 1, &["nowhere"]);
    fs::write(model.path().join("tokenizer.json"), "{}").unwrap();
    fails(&mut run(&["hi"]), 1, &["tokenizer.json"]);
    fs::remove_file(model.path().join("tokenizer.json")).unwrap();
    fails(&mut run(&["hi"]), 1, &["tokenizer.json", "token ids only"]);
    fails(&mut run(&["--ids", "1", "--stop", "x"]), 1, &["stop strings need a tokenizer"]);
}

#[test]
fn logging_goes_to_standard_error_and_has_no_colours_here() {
    let quiet = on_demo("generate", &["Capital of Japan?"]).output().unwrap();
    let loud = on_demo("generate", &["Capital of Japan?"]).env("RUST_LOG", "debug").output().unwrap();
    assert_eq!(loud.stdout, quiet.stdout);
    assert!(stderr(&loud).contains("DEBUG") && !stderr(&quiet).contains("DEBUG"));
    assert!(!stderr(&loud).contains('\u{1b}'), "{}", stderr(&loud));
}
