//! `generate`: where an answer ends, how tokens are chosen, and what must not change them.

use super::{copy_of_demo, edit_json, fails, json, layerstream, on_demo, text};

const STORY: &str = "How does layer streaming work?";

fn ids(args: &[&str]) -> serde_json::Value {
    json(on_demo("generate", &[STORY, "--chat", "--json"]).args(args))["ids"].clone()
}

#[test]
fn an_answer_ends_after_max_new_tokens() {
    let answer = json(&mut on_demo("generate", &[STORY, "--json", "--max-new-tokens", "3"]));
    assert_eq!((&answer["finish"], &answer["new_tokens"]), (&"length".into(), &3.into()));
}

#[test]
fn an_answer_ends_before_a_stop_string() {
    let answer = json(&mut on_demo("generate", &[STORY, "--chat", "--json", "--stop", "xyz", "--stop", " model th"]));
    assert_eq!((&answer["finish"], &answer["text"]), (&"stop".into(), &"Layer streaming runs a".into()));
}

#[test]
fn end_tokens_can_be_ignored() {
    let args = ["Capital of Japan?", "--json", "--ignore-eos", "--max-new-tokens", "20"];
    let answer = json(&mut on_demo("generate", &args));
    assert_eq!((&answer["finish"], &answer["new_tokens"]), (&"length".into(), &20.into()));
    assert_eq!(answer["ids"].as_array().unwrap()[..5], [351, 468, 95, 85, 1]);
}

#[test]
fn an_answer_ends_where_the_context_is_full() {
    let answer = json(&mut on_demo("generate", &[STORY, "--chat", "--json", "--context", "16"]));
    // The last token need not be in the context to be given.
    assert_eq!(answer["finish"], "context");
    assert_eq!(answer["prompt_tokens"].as_u64().unwrap() + answer["new_tokens"].as_u64().unwrap(), 17);
}

#[test]
fn prompts_are_cut_to_max_length() {
    let answer = json(&mut on_demo("generate", &["Capital of Japan? And more words", "--json", "--max-length", "7"]));
    assert_eq!((&answer["prompt_tokens"], &answer["text"]), (&7.into(), &" Tokyo".into()));
}

#[test]
fn equal_seeds_give_equal_answers() {
    let hot = |seed| ids(&["--temperature", "4", "--seed", seed, "--max-new-tokens", "30"]);
    assert_eq!(hot("1"), hot("1"));
    assert_ne!(hot("1"), hot("2"));
    assert_ne!(hot("1"), ids(&["--max-new-tokens", "30"]));
}

#[test]
fn filters_that_keep_one_token_are_greedy() {
    let greedy = ids(&["--max-new-tokens", "30"]);
    for filter in [["--top-k", "1"], ["--top-p", "0.000001"], ["--min-p", "1"]] {
        assert_eq!(
            ids(&[&["--temperature", "2", "--max-new-tokens", "30"][..], &filter].concat()),
            greedy,
            "{filter:?}"
        );
    }
    assert_ne!(ids(&["--repetition-penalty", "5", "--max-new-tokens", "30"]), greedy);
}

#[test]
fn the_models_own_defaults_count_unless_overridden() {
    let model = copy_of_demo();
    edit_json(&model.path().join("generation_config.json"), |config| {
        config["do_sample"] = true.into();
        config["temperature"] = 3.0.into();
        config["max_new_tokens"] = 12.into();
    });
    let ids = |args: &[&str]| {
        let mut command = layerstream(["generate"]);
        json(command.arg(model.path()).args([STORY, "--chat", "--json"]).args(args))["ids"].clone()
    };
    assert_ne!(ids(&[]), ids(&["--temperature", "0"]));
    assert_eq!(ids(&["--temperature", "0"]), super::options::ids(&["--max-new-tokens", "12"]));
}

#[test]
fn nothing_about_memory_disk_or_threads_changes_an_answer() {
    let expected = text(&mut on_demo("generate", &[STORY, "--chat"]));
    let replica = copy_of_demo();
    let replica = replica.path().to_str().unwrap();
    let mut ways: Vec<Vec<&str>> = vec![
        vec!["--ram", "6MiB", "--threads", "2"],
        vec!["--ram", "7MiB", "--threads", "1"],
        vec!["--ram", "8MiB", "--threads", "3", "--chunk", "64KiB", "--depth", "2"],
        vec!["--ram", "7MiB", "--threads", "2", "--replica", replica],
        vec!["--device", "auto"],
        vec!["--reader", "pread", "--ram", "7MiB", "--threads", "2"],
        vec!["--reader", "buffered", "--ram", "7MiB", "--threads", "2"],
    ];
    if on_demo("generate", &["hi", "--max-new-tokens", "1", "--reader", "uring"]).output().unwrap().status.success() {
        ways.push(vec!["--reader", "uring", "--ram", "7MiB", "--threads", "2"]);
    } else {
        println!("SKIPPED: io_uring does not work here");
    }
    for way in ways {
        assert_eq!(text(on_demo("generate", &[STORY, "--chat"]).args(&way)), expected, "{way:?}");
    }
}

#[test]
fn the_floor_that_an_error_names_is_enough() {
    let args = ["Capital of Japan?", "--max-new-tokens", "8", "--threads", "2", "--ram"];
    fails(on_demo("generate", &args).arg("1MiB"), 1, &["a budget of 1 MiB is too small", "at least"]);
    let said = super::stderr(&on_demo("generate", &args).arg("1MiB").output().unwrap());
    let floor = said.split("at least ").nth(1).unwrap().split(" for").next().unwrap().replace(' ', "");
    assert_eq!(text(on_demo("generate", &args).arg(floor)), " Tokyo\n");
}

#[test]
fn a_model_may_be_its_only_file() {
    let model = super::golden("models/yi/model.safetensors");
    let answer = json(layerstream(["generate"]).arg(model).args(["--ids", "1,2,3", "--max-new-tokens", "2", "--json"]));
    assert_eq!(answer["new_tokens"], 2);
}
