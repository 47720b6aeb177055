//! Programs that run on the simulated driver, each in a process of its own: the test binary starts itself again, with the
//! driver in its path and the name of the program in its environment.
#![allow(dead_code, reason = "each test binary uses some of it")]

use std::process::{Command, Output};

pub mod driver;
pub mod pipeline;

/// Names the program that a started process runs.
const PROGRAM: &str = "CUDASIM_TEST_PROGRAM";

/// A program by its name.
pub type Program = (&'static str, fn());

/// Starts a program of this test binary, whose test `programs` calls [`run_if_asked`].
pub fn start(program: &str, variables: &[(&str, &str)]) -> Output {
    let directory = layerstream_cudasim::directory().expect("cargo has built the library");
    let mut command = Command::new(std::env::current_exe().expect("a test has a path"));
    command.args(["--exact", "programs", "--nocapture", "--test-threads=1"]);
    command.env(PROGRAM, program).env("LD_LIBRARY_PATH", directory);
    for (name, value) in variables {
        command.env(format!("LAYERSTREAM_SIM_{name}"), value);
    }
    command.output().expect("a test can be started")
}

/// Runs the program that this process was started for, if it was.
pub fn run_if_asked(programs: &[Program]) {
    let Ok(name) = std::env::var(PROGRAM) else { return };
    let program = programs.iter().find(|(known, _)| *known == name);
    program.unwrap_or_else(|| panic!("there is no program {name}")).1();
}

/// What a process said on standard error.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The program ends well.
#[track_caller]
pub fn passes(program: &str, variables: &[(&str, &str)]) -> Output {
    let output = start(program, variables);
    assert!(output.status.success(), "{program} {variables:?}: {}\n{}", output.status, said(&output));
    output
}

/// The program is ended as one that misuses the driver, with a message that has these words in it.
#[track_caller]
pub fn is_caught(program: &str, variables: &[(&str, &str)], words: &str) {
    let output = start(program, variables);
    let said = said(&output);
    let caught = output.status.code() == Some(layerstream_cudasim::EXIT_MISUSE);
    assert!(caught && said.contains(words), "{program} {variables:?}: {}, expected `{words}`\n{said}", output.status);
}
