//! What it leaves behind: nothing of a scratch file, however it ends, and everything that was there before as it was.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{directory, disk2gpu, entries, fails, file, text};

/// A measurement that does not end by itself, once its scratch file is there.
fn endless(dir: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_disk2gpu"));
    command.args(["--device", "cpu", "--scratch", "8MiB", "--repetitions", "1000000", "--dir"]).arg(dir);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let since = Instant::now();
    while !holds_a_file_of(&child, dir) {
        assert!(child.try_wait().unwrap().is_none(), "it ends only when it is told to");
        assert!(since.elapsed() < Duration::from_secs(60), "it makes its file");
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

/// Whether the process has a file without a name in `dir` open.
fn holds_a_file_of(child: &Child, dir: &Path) -> bool {
    let open = fs::read_dir(format!("/proc/{}/fd", child.id())).into_iter().flatten().flatten();
    let dir = dir.canonicalize().unwrap();
    open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|target| target.starts_with(&dir))
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn a_scratch_file_is_gone_after_success() {
    let dir = directory();
    text(disk2gpu(["--scratch", "2MiB", "--repetitions", "1", "--dir"]).arg(dir.path()));
    assert_eq!(entries(dir.path()), 0);
}

#[test]
fn a_scratch_file_is_gone_after_failure() {
    let dir = directory();
    // It is made, and then there is no memory for the reads.
    let args = ["--scratch", "2MiB", "--chunk", "1GiB", "--depth", "1024", "--dir"];
    fails(disk2gpu(args).arg(dir.path()), 1, &["bytes of memory are needed"]);
    assert_eq!(entries(dir.path()), 0);
}

#[test]
fn a_scratch_file_is_gone_after_ctrl_c_once_and_twice() {
    for (signals, wait) in [(1, 0), (2, 0), (2, 20)] {
        let dir = directory();
        let mut child = endless(dir.path());
        for _ in 0..signals {
            signal(&child, Signal::INT);
            std::thread::sleep(Duration::from_millis(wait));
            if child.try_wait().unwrap().is_some() {
                break;
            }
        }
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert_eq!(entries(dir.path()), 0);
    }
}

#[test]
fn a_scratch_file_is_gone_after_being_killed() {
    let dir = directory();
    let mut child = endless(dir.path());
    signal(&child, Signal::KILL);
    child.wait().unwrap();
    assert_eq!(entries(dir.path()), 0);
}

#[test]
fn a_scratch_file_has_no_name_while_it_is_used() {
    let dir = directory();
    let mut child = endless(dir.path());
    assert_eq!(entries(dir.path()), 0);
    signal(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn files_stay_as_they_are() {
    let dir = directory();
    let path = file(dir.path(), "a", 3_000_001, 1);
    let (before, changed) = (fs::read(&path).unwrap(), fs::metadata(&path).unwrap().modified().unwrap());
    for reader in ["uring", "pread", "mmap", "buffered"] {
        text(disk2gpu(["--repetitions", "1", "--reader", reader]).arg(&path));
    }
    assert!(fs::read(&path).unwrap() == before);
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), changed);
    assert_eq!(entries(dir.path()), 1);
}

#[test]
fn a_sweep_does_not_overwrite() {
    let dir = directory();
    let path = file(dir.path(), "a", 2_000_000, 1);
    for target in [dir.path().join("map.svg"), dir.path().join("dangling.svg")] {
        if target.ends_with("dangling.svg") {
            std::os::unix::fs::symlink(dir.path().join("nowhere"), &target).unwrap();
        } else {
            fs::write(&target, "mine").unwrap();
        }
        fails(disk2gpu([&path]).arg("--sweep").arg(&target), 1, &["is not overwritten", ".svg"]);
    }
    assert_eq!(fs::read_to_string(dir.path().join("map.svg")).unwrap(), "mine");
    assert!(!dir.path().join("nowhere").exists());
}
