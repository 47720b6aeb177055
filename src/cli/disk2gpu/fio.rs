//! fio beside it: the command that does the same as the raw reads, printed always and run where someone asks for it. Its
//! buffers lie on ordinary pages unless told otherwise, which costs more than most tools differ by.

use std::process::Command;

use serde::Serialize;
use serde_json::Value;

use crate::disk::ReaderKind;
use crate::error::{Error, Result};

use super::work::Work;

/// The kinds of memory that fio is run with: 2 MiB pages, ordinary ones.
pub const MEMORY: [&str; 2] = ["mmaphuge", "mmap"];

/// What fio measured.
#[derive(Clone, Debug, Serialize)]
pub struct Fio {
    pub version: String,
    pub runs: Vec<FioRun>,
}

/// One kind of memory.
#[derive(Clone, Debug, Serialize)]
pub struct FioRun {
    pub iomem: &'static str,
    pub samples_gbps: Vec<f64>,
    /// Why there are no samples: for huge pages usually that none are reserved.
    pub error: Option<String>,
}

/// The arguments that do what `reader` does. Several files are read one after the other, by one queue.
pub fn arguments(work: &Work, reader: ReaderKind, chunk: usize, depth: usize, iomem: &str) -> Vec<String> {
    let (engine, jobs) = match reader {
        ReaderKind::Uring => ("io_uring", 1),
        ReaderKind::Pread | ReaderKind::Buffered => ("psync", depth),
        ReaderKind::Mmap => ("mmap", depth),
    };
    // A scratch file is gone when anyone else could read it: fio then makes its own.
    let files = if work.is_scratch() { vec!["SCRATCH".into()] } else { work.source.files.clone() };
    // Colons separate names.
    let names: Vec<String> = files.iter().map(|file| file.display().to_string().replace(':', "\\:")).collect();
    let each = work.total() / jobs as u64 / chunk as u64 * chunk as u64;
    let mut arguments =
        vec!["--name=disk2gpu".to_string(), "--rw=read".into(), format!("--filename={}", names.join(":"))];
    if !work.is_scratch() {
        arguments.push("--readonly".into());
    }
    arguments.extend([
        format!("--ioengine={engine}"),
        format!("--direct={}", u8::from(reader.is_direct())),
        format!("--bs={chunk}"),
        format!("--iodepth={}", if jobs == 1 { depth } else { 1 }),
        format!("--size={}", each.max(chunk as u64)),
        format!("--iomem={iomem}"),
    ]);
    if reader == ReaderKind::Uring {
        arguments.extend(["--fixedbufs=1".into(), "--registerfiles=1".into()]);
    }
    if jobs > 1 {
        arguments.extend([
            format!("--numjobs={jobs}"),
            format!("--offset_increment={each}"),
            "--thread".into(),
            "--group_reporting".into(),
        ]);
    }
    arguments
}

/// The command as one would type it.
pub fn command(arguments: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./,:+".contains(c);
    let quoted = arguments.iter().map(|argument| match argument.chars().all(plain) {
        true => argument.clone(),
        false => format!("'{}'", argument.replace('\'', "'\\''")),
    });
    std::iter::once("fio".to_string()).chain(quoted).collect::<Vec<_>>().join(" ")
}

/// Which fio there is.
///
/// # Errors
/// None, or one that does not run.
pub fn find() -> Result<Fio> {
    let output = Command::new("fio").arg("--version").output();
    let missing =
        |why: String| Error::Request(format!("--fio: fio cannot be run ({why}): install it, or leave --fio out"));
    let output = output.map_err(|e| missing(e.to_string()))?;
    if !output.status.success() {
        return Err(missing(output.status.to_string()));
    }
    let version = String::from_utf8_lossy(&output.stdout).trim().to_string();
    let runs = MEMORY.map(|iomem| FioRun { iomem, samples_gbps: Vec::new(), error: None }).into();
    Ok(Fio { version, runs })
}

impl FioRun {
    /// One run: GB/s, or else why not, of which the first reason is kept.
    pub fn run(&mut self, work: &Work, arguments: &[String]) {
        let mut command = Command::new("fio");
        let mine = arguments.iter().filter(|argument| !argument.starts_with("--filename="));
        // Scratch files are read through this process, whose they are.
        let names: Vec<String> =
            work.source.files.iter().map(|f| f.display().to_string().replace(':', "\\:")).collect();
        command
            .args(mine)
            .arg(format!("--filename={}", names.join(":")))
            .args(["--output-format=json", "--allow_file_create=0"]);
        match command.output().map_err(|e| e.to_string()).and_then(|output| {
            bandwidth(&output.stdout)
                .ok_or_else(|| complaint(&output.stderr, &output.stdout).unwrap_or(output.status.to_string()))
        }) {
            Ok(gbps) => self.samples_gbps.push(gbps),
            Err(why) => {
                self.error.get_or_insert(why);
            }
        }
    }
}

/// GB/s of a report without errors. fio puts warnings before the JSON.
fn bandwidth(report: &[u8]) -> Option<f64> {
    let start = report.iter().position(|&byte| byte == b'{')?;
    let report: Value = serde_json::from_slice(&report[start..]).ok()?;
    let jobs = report["jobs"].as_array()?;
    if jobs.iter().any(|job| job["error"].as_i64() != Some(0)) {
        return None;
    }
    let bytes: f64 = jobs.iter().map(|job| job["read"]["bw_bytes"].as_f64().unwrap_or(0.0)).sum();
    (bytes > 0.0).then_some(bytes / 1e9)
}

/// The first line that fio wrote on standard error, or else before its report.
fn complaint(error: &[u8], report: &[u8]) -> Option<String> {
    let before = report.split(|&byte| byte == b'{').next().unwrap_or_default();
    let line = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().lines().next().map(str::to_string);
    line(error).or_else(|| line(before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidth_is_read_and_errors_are_none() {
        let report = |error, bytes| {
            format!("fio: note\n{{\"jobs\": [{{\"error\": {error}, \"read\": {{\"bw_bytes\": {bytes}}}}}]}}")
        };
        assert_eq!(bandwidth(report(0, 2_500_000_000u64).as_bytes()), Some(2.5));
        assert_eq!(bandwidth(report(12, 2_500_000_000).as_bytes()), None);
        assert_eq!(bandwidth(report(0, 0).as_bytes()), None);
        assert_eq!(bandwidth(b"fio: nothing"), None);
    }

    #[test]
    fn a_complaint_is_found_wherever_fio_puts_it() {
        let report = b"fio: pid=1, func=mmap, error=Cannot allocate memory\n{\"jobs\": []}";
        assert_eq!(complaint(b"", report).as_deref(), Some("fio: pid=1, func=mmap, error=Cannot allocate memory"));
        assert_eq!(complaint(b"fio: no such file\nmore\n", report).as_deref(), Some("fio: no such file"));
        assert_eq!(complaint(b"", b"{}"), None);
    }

    #[test]
    fn what_a_shell_would_take_apart_is_quoted() {
        let arguments = ["--rw=read".to_string(), "--filename=a b's".to_string()];
        assert_eq!(command(&arguments), "fio --rw=read '--filename=a b'\\''s'");
    }
}
