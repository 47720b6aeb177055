//! Ctrl-C once and twice, and readers that go away.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::demo;

/// More text than the pipe below takes: the command cannot end before someone reads.
const ENDLESS: [&str; 4] = ["--ignore-eos", "--max-new-tokens", "2000", "--stats"];
const PIPE: usize = 4096;

/// A command whose standard output is a small pipe.
struct Running {
    child: Child,
    stdout: std::io::PipeReader,
}

/// Starts an endless answer and waits until the pipe is full, so that the command waits for a reader.
fn start(args: &[&str]) -> Running {
    let (stdout, writer) = std::io::pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&writer, PIPE).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_layerstream"));
    command.arg("generate").arg(demo()).args(args).args(ENDLESS).stdin(Stdio::null());
    let mut child = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    // The command holds the other end, which must be the only one.
    drop(command);
    let mut full = 0;
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let filled = rustix::io::ioctl_fionread(&stdout).unwrap();
        if filled == full && filled > PIPE as u64 - 64 {
            break;
        }
        full = filled;
        assert!(child.try_wait().unwrap().is_none(), "it has more to print");
    }
    Running { child, stdout }
}

impl Running {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The exit code, and what was printed on standard error.
    fn end(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().unwrap();
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status.code(), said)
    }
}

#[test]
fn the_first_ctrl_c_ends_the_answer() {
    let mut running = start(&["How does layer streaming work?"]);
    running.signal(Signal::INT);
    // Time for the handler, before there is room to print more.
    std::thread::sleep(Duration::from_millis(300));
    let mut rest = String::new();
    running.stdout.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with('\n') && rest.len() < 3 * PIPE, "{} bytes", rest.len());
    let (code, said) = running.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("tokens/s") && !said.contains("answer  2000 tokens"), "{said}");
}

#[test]
fn the_second_ctrl_c_ends_the_program() {
    let mut running = start(&["How does layer streaming work?"]);
    running.signal(Signal::INT);
    std::thread::sleep(Duration::from_millis(300));
    assert!(running.child.try_wait().unwrap().is_none(), "it still has to print what there is");
    running.signal(Signal::INT);
    let start = Instant::now();
    let (code, said) = running.end();
    assert_eq!(code, Some(130), "{said}");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_reader_that_goes_away_ends_the_program_quietly() {
    let running = start(&["How does layer streaming work?"]);
    let Running { child, stdout } = running;
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn ctrl_c_leaves_no_part_of_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (dir.path().join("model"), dir.path().join("out"));
    std::fs::create_dir(&out).unwrap();
    let synth = ["synth", "--like", "llama-2-7b", "--sparse", "--out"];
    super::text(super::layerstream(synth).arg(&model));
    let mut command = Command::new(env!("CARGO_BIN_EXE_layerstream"));
    let ids = vec!["1"; 256].join(",");
    command.args(["logits", "--ids", &ids, "--ram", "1GiB", "--out"]).arg(out.join("logits")).arg(model);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    while std::fs::read_dir(&out).unwrap().count() == 0 {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(100));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
}
