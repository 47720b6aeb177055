//! What others do meanwhile: a second packing into the same directory, and bytes that change under the first.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{SHARDS, copy_of_demo, demo, fails, layerstream, nothing_is_lost, pack, succeeds, verify};

const ARGS: [&str; 7] = ["--to", "int8", "--ram", "64KiB", "--threads", "1", "--delete-original"];

/// A packing that was stopped while it writes its first file, after the file's header.
struct Stopped {
    source: TempDir,
    out: TempDir,
    child: Child,
    partial: PathBuf,
}

impl Stopped {
    fn new() -> Stopped {
        for _ in 0..50 {
            let (source, out) = (copy_of_demo(), tempfile::tempdir().unwrap());
            let mut command = layerstream();
            command.arg("pack").arg(source.path()).arg("--out").arg(out.path()).args(ARGS);
            let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
            let partial = out.path().join(format!(".{}.partial", SHARDS[0]));
            let mut ended = false;
            while !has_header(&partial) && !ended {
                std::thread::sleep(Duration::from_micros(200));
                ended = child.try_wait().unwrap().is_some();
            }
            if ended {
                continue;
            }
            kill_process(Pid::from_child(&child), Signal::STOP).unwrap();
            while is_running(&child) {
                std::thread::sleep(Duration::from_micros(200));
            }
            if has_header(&partial) {
                return Stopped { source, out, child, partial };
            }
            child.kill().unwrap();
            child.wait().unwrap();
        }
        panic!("it is always done before it is stopped");
    }

    fn goes_on(self) -> (TempDir, TempDir, std::process::Output) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).unwrap();
        (self.source, self.out, self.child.wait_with_output().unwrap())
    }
}

fn has_header(partial: &Path) -> bool {
    let mut length = [0; 8];
    fs::File::open(partial).is_ok_and(|file| file.read_exact_at(&mut length, 0).is_ok()) && length != [0; 8]
}

/// Neither stopped nor ended.
fn is_running(child: &Child) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    !matches!(stat.rsplit(") ").next().and_then(|rest| rest.chars().next()), Some('T' | 'Z'))
}

#[test]
fn a_second_packing_into_the_same_directory_is_refused() {
    let finished = tempfile::tempdir().unwrap();
    succeeds(&pack(&demo(), finished.path(), &ARGS[..6]));
    let stopped = Stopped::new();
    let second = pack(stopped.source.path(), stopped.out.path(), &ARGS);
    fails(&second, &["another packing is running", stopped.out.path().to_str().unwrap()]);
    nothing_is_lost(stopped.source.path(), stopped.out.path(), &demo(), finished.path());
    let (source, out, first) = stopped.goes_on();
    succeeds(&first);
    succeeds(&verify(out.path()));
    nothing_is_lost(source.path(), out.path(), &demo(), finished.path());
    assert!(!out.path().join(".layerstream-pack.lock").exists());
    // One that was killed is in nobody's way.
    let mut stopped = Stopped::new();
    stopped.child.kill().unwrap();
    stopped.child.wait().unwrap();
    succeeds(&pack(stopped.source.path(), stopped.out.path(), &ARGS));
    succeeds(&verify(stopped.out.path()));
}

#[test]
fn two_that_begin_at_once_lose_nothing() {
    let finished = tempfile::tempdir().unwrap();
    succeeds(&pack(&demo(), finished.path(), &ARGS[..6]));
    for _ in 0..10 {
        let (source, out) = (copy_of_demo(), tempfile::tempdir().unwrap());
        let two = [(); 2].map(|()| {
            let mut command = layerstream();
            command.arg("pack").arg(source.path()).arg("--out").arg(out.path()).args(ARGS);
            command.stderr(Stdio::piped()).spawn().unwrap()
        });
        let two = two.map(|child| child.wait_with_output().unwrap());
        assert!(two.iter().any(|output| output.status.success()), "{two:?}");
        two.iter()
            .filter(|output| !output.status.success())
            .for_each(|other| fails(other, &["another packing is running"]));
        succeeds(&verify(out.path()));
        nothing_is_lost(source.path(), out.path(), &demo(), finished.path());
    }
}

#[test]
fn a_header_that_is_not_what_was_written_is_found_before_anything_is_deleted() {
    let stopped = Stopped::new();
    let file = OpenOptions::new().write(true).open(&stopped.partial).unwrap();
    file.write_all_at(b"?", 20).unwrap();
    let (source, _out, output) = stopped.goes_on();
    fails(&output, &[SHARDS[0], "its header is not the one that was written"]);
    assert!(SHARDS.iter().all(|shard| source.path().join(shard).exists()));
}
