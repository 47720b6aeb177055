//! On a terminal: the status line, which is gone before text comes, and prompts to type.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::{demo, layerstream, text};

/// The two ends of a new terminal: ours, and the one for a program.
fn terminal() -> (File, File) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    let theirs = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    (File::from(ours), theirs)
}

/// What a command prints on a terminal.
fn on_terminal(mut command: Command) -> String {
    let (mut ours, theirs) = terminal();
    let copy = || Stdio::from(OwnedFd::from(theirs.try_clone().unwrap()));
    let mut child = command.stdin(Stdio::null()).stdout(copy()).stderr(copy()).spawn().unwrap();
    drop((command, theirs));
    let mut printed = Vec::new();
    // A terminal without programs ends with an error.
    let _ = ours.read_to_end(&mut printed);
    assert!(child.wait().unwrap().success());
    String::from_utf8(printed).unwrap()
}

#[test]
fn slow_passes_show_what_they_do() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    text(layerstream(["synth", "--like", "llama-2-13b", "--sparse", "--layers", "20", "--out"]).arg(&model));
    let mut command = Command::new(env!("CARGO_BIN_EXE_layerstream"));
    command.arg("generate").arg(&model).args([
        "--ids",
        "1",
        "--max-new-tokens",
        "2",
        "--ignore-eos",
        "--ram",
        "600MiB",
    ]);
    command.env("TERM", "xterm");
    let printed = on_terminal(command);
    assert!(printed.contains("prompt, pass 1 ["), "{printed:?}");
    assert!(printed.contains("GB/s") && printed.contains(" left"), "{printed:?}");
    // Zeros multiply to equal logits, of which the first is taken.
    let (before, after) = printed.split_once(",0").expect("the second id");
    assert!(before.contains("\r\u{1b}[K0"), "the line is cleared before text comes: {before:?}");
    assert_eq!(after, "\r\n");
}

#[test]
fn fast_passes_show_how_fast_they_are_below_the_text() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_layerstream"));
    let long = ["Hello", "--max-new-tokens", "1500", "--ignore-eos", "--ram", "16MiB"];
    command.arg("generate").arg(demo()).args(long).env("TERM", "xterm");
    let printed = on_terminal(command);
    assert!(printed.contains(" tokens/s  ") && printed.contains("B/s\u{1b}[K\u{1b}8"), "{printed:?}");
    assert!(printed.ends_with("\r\n"), "{printed:?}");
}

#[test]
fn a_dumb_terminal_gets_text_alone() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_layerstream"));
    command.arg("generate").arg(demo()).args(["Capital of Japan?", "--max-new-tokens", "2"]).env("TERM", "dumb");
    assert_eq!(on_terminal(command), " Tok\r\n");
}

/// Reads until the terminal shows something.
fn until(terminal: &mut File, shown: &str) -> String {
    let mut printed = Vec::new();
    while !String::from_utf8_lossy(&printed).contains(shown) {
        let mut byte = [0];
        terminal.read_exact(&mut byte).unwrap();
        printed.extend(byte);
    }
    String::from_utf8(printed).unwrap()
}

/// A chat with the demo model, and our end of its terminal.
fn chat() -> (Child, File) {
    let (ours, theirs) = terminal();
    let copy = || Stdio::from(OwnedFd::from(theirs.try_clone().unwrap()));
    let mut command = Command::new(env!("CARGO_BIN_EXE_layerstream"));
    let chat = command
        .arg("chat")
        .arg(demo())
        .env("TERM", "dumb")
        .stdin(copy())
        .stdout(copy())
        .stderr(copy())
        .spawn()
        .unwrap();
    (chat, ours)
}

#[test]
fn a_chat_asks_for_lines_until_their_end() {
    let (mut chat, mut terminal) = chat();
    until(&mut terminal, "> ");
    terminal.write_all(b"What is the capital of France?\n").unwrap();
    until(&mut terminal, "Paris\r\n> ");
    // Ctrl-D at the beginning of a line.
    terminal.write_all(b"\x04").unwrap();
    until(&mut terminal, "\r\n");
    assert!(chat.wait().unwrap().success());
}

#[test]
fn a_chat_that_waits_says_how_to_leave_at_the_first_ctrl_c_and_ends_at_the_second() {
    let (mut chat, mut terminal) = chat();
    let interrupt = |chat: &Child| kill_process(Pid::from_child(chat), Signal::INT).unwrap();
    until(&mut terminal, "> ");
    interrupt(&chat);
    until(&mut terminal, "(/quit or Ctrl-D leaves)\r\n> ");
    terminal.write_all(b"What is the capital of France?\n").unwrap();
    until(&mut terminal, "Paris\r\n> ");
    interrupt(&chat);
    until(&mut terminal, "(/quit or Ctrl-D leaves)\r\n> ");
    interrupt(&chat);
    assert_eq!(chat.wait().unwrap().code(), Some(130));
}
