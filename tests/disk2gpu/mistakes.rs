//! Every mistake that one can make with it gets one clear line.

use std::fs;

use super::{directory, disk2gpu, entries, fails, file};

#[test]
fn nothing_to_read() {
    fails(&mut disk2gpu::<&str>([]), 2, &["PATH"]);
    fails(&mut disk2gpu(["a", "--scratch", "1GiB"]), 2, &["cannot be used with"]);
    fails(&mut disk2gpu(["nowhere"]), 1, &["nowhere"]);
    let dir = directory();
    fails(disk2gpu::<&str>([]).arg(dir.path()), 1, &[dir.path().to_str().unwrap()]);
    fails(&mut disk2gpu(["/dev/null"]), 1, &["/dev/null", "not a regular file"]);
}

#[test]
fn too_little_to_read() {
    let dir = directory();
    let path = file(dir.path(), "small", 1000, 1);
    fails(disk2gpu::<&str>([]).arg(&path), 1, &["small: 1000 bytes", "at least 1048576"]);
    fails(&mut disk2gpu(["--scratch", "4KiB"]), 1, &["4096 bytes", "at least 1048576"]);
    let path = file(dir.path(), "large", 2_000_000, 1);
    fails(disk2gpu(["--bytes", "10"]).arg(&path), 1, &["--bytes 10", "at least"]);
}

#[test]
fn no_room_for_a_scratch_file() {
    let dir = directory();
    let words = ["bytes are free", "--scratch", "--dir"];
    fails(disk2gpu(["--scratch", "4EiB", "--dir"]).arg(dir.path()), 1, &words);
    assert_eq!(entries(dir.path()), 0);
    fails(&mut disk2gpu(["--scratch", "1MiB", "--dir", "nowhere"]), 1, &["nowhere"]);
    let path = file(dir.path(), "file", 10, 1);
    fails(disk2gpu(["--scratch", "1MiB", "--dir"]).arg(path), 1, &["file"]);
}

#[test]
fn sizes_that_cannot_work() {
    let dir = directory();
    let path = file(dir.path(), "a", 2_000_000, 1);
    for (args, code, words) in [
        (["--chunk", "0"], 2, "size"),
        (["--chunk", "100"], 1, "a chunk of 100 bytes"),
        (["--chunk", "2GiB"], 1, "a chunk of 2147483648 bytes"),
        (["--depth", "0"], 2, "at least 1"),
        (["--depth", "5000"], 1, "a queue depth of 5000"),
        (["--threads", "5000"], 1, "5000 threads"),
        (["--ring", "4KiB"], 1, "--ring 4096"),
        (["--reader", "aio"], 2, "uring, pread, mmap or buffered"),
        (["--device", "gpu"], 2, "cuda:N"),
        (["--repetitions", "0"], 2, "at least 1"),
        (["--cache", "hot"], 2, "cold"),
    ] {
        // The last device that is named counts, and may be named once only.
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_disk2gpu"));
        fails(command.args(args).arg(&path), code, &[words]);
    }
}

#[test]
fn replicas_that_are_none() {
    let dir = directory();
    let (a, b) = (file(dir.path(), "a", 2_000_000, 1), file(dir.path(), "b", 2_000_001, 1));
    fails(disk2gpu::<&str>([]).arg(&a).arg("--replica").arg(&b), 1, &["2000001", "2000000"]);
    fails(disk2gpu([&a, &b]).arg("--replica").arg(&b), 1, &["give a directory"]);
    let empty = directory();
    fails(disk2gpu([&a]).arg("--replica").arg(empty.path()), 1, &[empty.path().to_str().unwrap()]);
}

#[test]
fn no_fio() {
    let dir = directory();
    let path = file(dir.path(), "a", 2_000_000, 1);
    fails(disk2gpu(["--fio"]).arg(&path).env("PATH", dir.path()), 1, &["--fio", "install it"]);
}

/// A file that shrinks between being looked at and being read is an error that names it, not a hang.
#[test]
fn a_file_that_is_cut() {
    let dir = directory();
    let path = file(dir.path(), "a", 8 << 20, 1);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_disk2gpu"));
    command.args(["--device", "cpu", "--repetitions", "1000000", "--reader", "pread"]).arg(&path);
    let child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(700));
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1000).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = super::stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("/a: "), "{said}");
}
