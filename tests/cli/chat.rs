//! `chat`: turns from standard input, what is remembered, and the commands between them.

use super::{fails, layerstream, on_demo, stderr, text};

const FRANCE: &str = "What is the capital of France?";
const JAPAN: &str = "Capital of Japan?";

/// What a chat prints for these lines.
fn chat(args: &[&str], lines: &[&str]) -> String {
    text(on_demo("chat", args).write_stdin(lines.join("\n")))
}

#[test]
fn each_line_is_a_turn() {
    assert_eq!(chat(&[], &[FRANCE]), "Paris\n");
    assert_eq!(chat(&[], &["", FRANCE, "  ", "/quit", JAPAN]), "Paris\n");
    assert_eq!(chat(&[], &[]), "");
}

#[test]
fn what_was_said_is_part_of_the_next_prompt() {
    let both = chat(&[], &[FRANCE, JAPAN]);
    let dir = tempfile::tempdir().unwrap();
    let messages = dir.path().join("messages.json");
    let said = serde_json::json!([
        {"role": "user", "content": FRANCE}, {"role": "assistant", "content": "Paris"}, {"role": "user", "content": JAPAN}
    ]);
    std::fs::write(&messages, said.to_string()).unwrap();
    let rendered = text(on_demo("render-chat", &["--messages"]).arg(messages));
    let ids = text(on_demo("tokenize", &["--no-special"]).write_stdin(rendered));
    let second = text(&mut on_demo("generate", &["--ids", &ids]));
    assert_eq!(both, format!("Paris\n{second}"));
}

#[test]
fn a_reset_forgets_all_but_the_system_message() {
    let alone = chat(&[], &[JAPAN]);
    assert_eq!(chat(&[], &[FRANCE, "/reset", JAPAN]), format!("Paris\n{alone}"));
    let system = "You are short.";
    let told = text(&mut on_demo("generate", &["--chat", "--system", system, JAPAN]));
    assert_eq!(chat(&["--system", system], &[FRANCE, "/reset", JAPAN]).lines().last(), told.lines().last());
    assert_eq!(chat(&[], &[FRANCE, &format!("/system {system}"), JAPAN]), format!("Paris\n{told}"));
    assert_eq!(chat(&["--system", system], &["/system", JAPAN]), alone);
}

#[test]
fn unknown_commands_are_explained() {
    let output = on_demo("chat", &[]).write_stdin("/help\n").output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty());
    assert!(stderr(&output).contains("/reset, /system TEXT and /quit"), "{}", stderr(&output));
}

#[test]
fn a_turn_that_does_not_fit_is_said_and_forgotten() {
    let long = "word ".repeat(100);
    let output = on_demo("chat", &["--context", "32"]).write_stdin(format!("{long}\n{JAPAN}\n")).output().unwrap();
    assert!(output.status.success());
    assert!(
        stderr(&output).contains("the context holds 32") && stderr(&output).contains("/reset"),
        "{}",
        stderr(&output)
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), chat(&[], &[JAPAN]));
}

#[test]
fn stats_follow_each_answer() {
    let output = on_demo("chat", &["--stats"]).write_stdin(format!("{FRANCE}\n{JAPAN}\n")).output().unwrap();
    assert_eq!(stderr(&output).matches("tokens/s").count(), 2);
}

#[test]
fn a_model_without_a_template_cannot_chat() {
    let model = super::copy_of_demo();
    super::edit_json(&model.path().join("tokenizer_config.json"), |config| {
        config.as_object_mut().unwrap().remove("chat_template");
    });
    fails(layerstream(["chat"]).arg(model.path()).write_stdin("hi\n"), 1, &["no chat template"]);
    fails(layerstream(["generate"]).arg(model.path()).args(["--chat", "hi"]), 1, &["no chat template"]);
    assert_eq!(text(layerstream(["generate"]).arg(model.path()).arg(FRANCE)), " Paris\n");
}
