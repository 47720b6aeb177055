//! The mutation check: deletes every barrier, every wait and every bounds test of the kernels in turn, builds the host
//! library from the mutated copy, and runs the kernels' tests. A mutant that no test notices survives; each survivor has to
//! be explained in kernels/survivors.txt, and each explanation has to be about a survivor.
//!
//!     cargo run -p layerstream-kernels --example mutants [-- --list] [FILE ...]
//!
//! With files, only their mutants. Takes about half a minute a mutant; the tree itself is not touched.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// One place in the sources and what to put there.
#[derive(Debug)]
struct Mutant {
    file: String,
    line: usize,
    /// The line as it is, trimmed.
    text: String,
    /// The part that is replaced, and by what.
    fragment: String,
    replacement: String,
    /// Bytes into the file.
    at: usize,
}

impl Mutant {
    /// How survivors.txt names it. Line numbers change too often.
    fn key(&self) -> String {
        format!("{} | {} | {}", self.file, self.text, self.fragment)
    }
}

/// From the opening parenthesis at `open` to behind the one that closes it.
fn parenthesised(text: &str, open: usize) -> Option<usize> {
    let mut depth = 0;
    for (i, c) in text[open..].char_indices() {
        depth += i32::from(c == '(') - i32::from(c == ')');
        if depth == 0 {
            return Some(open + i + 1);
        }
    }
    None
}

/// What stands before the first comma outside of parentheses.
fn first_argument(arguments: &str) -> &str {
    let mut depth = 0;
    let end = arguments.find(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    });
    &arguments[..end.unwrap_or(arguments.len())]
}

/// All mutants of one file.
fn mutants(file: &str, source: &str) -> Vec<Mutant> {
    let mut found = Vec::new();
    let mut start = 0;
    for (number, line) in source.split_inclusive('\n').enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for name in ["__syncthreads", "__syncwarp", "cp_async_wait<", "within", "clamped"] {
            for (i, _) in code.match_indices(name) {
                let before = code[..i].chars().next_back();
                let is_definition = code.contains("bool within(") || code.contains("int clamped(");
                if is_definition || before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
                    continue;
                }
                let Some(open) = code[i..].find('(').map(|o| i + o) else { continue };
                let Some(end) = parenthesised(code, open) else { continue };
                let (at, fragment) = (start + i, code[i..end].to_string());
                let text = line.trim().to_string();
                let replacement = match name {
                    "within" => "true".to_string(),
                    "clamped" => format!("({})", first_argument(&code[open + 1..end])),
                    _ => "(void)0".to_string(),
                };
                found.push(Mutant { file: file.into(), line: number + 1, text, fragment, replacement, at });
            }
        }
        start += line.len();
    }
    found
}

/// Explained survivors: key and reason. A paragraph each, the key on its first line; lines with # are comments.
fn explained(text: &str) -> BTreeMap<String, String> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let paragraphs = lines.split(|line| line.trim().is_empty()).filter(|paragraph| !paragraph.is_empty());
    paragraphs.map(|p| (p[0].trim().to_string(), p[1..].join(" ").trim().to_string())).collect()
}

enum Verdict {
    Caught,
    CaughtByTimeout,
    Survived,
    DoesNotBuild,
}

/// Builds and runs the tests whose names contain `filter` on the kernels in `sources`.
fn test(sources: &Path, filter: &str) -> Result<Verdict, Box<dyn Error>> {
    let cargo = |extra: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        command.args(["test", "-q", "-p", "layerstream-kernels", "--test", "kernels"]).args(extra);
        command.env("LAYERSTREAM_KERNEL_SOURCES", sources).env("RUST_BACKTRACE", "0");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    if !cargo(&["--no-run"]).status()?.success() {
        return Ok(Verdict::DoesNotBuild);
    }
    let mut child = cargo(&[filter]).spawn()?;
    let deadline = Instant::now() + Duration::from_secs(600);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(if status.success() { Verdict::Survived } else { Verdict::Caught });
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Ok(Verdict::CaughtByTimeout);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The tests of x.cu have x in their names; what is in a header concerns all.
fn filter_of(file: &str) -> &str {
    file.strip_suffix(".cu").unwrap_or("")
}

fn copy_folder(from: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        if path.is_file() {
            fs::copy(&path, to.join(path.file_name().ok_or("a file has a name")?))?;
        }
    }
    Ok(())
}

fn run() -> Result<bool, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let list = arguments.iter().any(|a| a == "--list");
    let wanted: Vec<&String> = arguments.iter().filter(|a| !a.starts_with("--")).collect();

    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<String> = fs::read_dir(&folder)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".cu") || name.ends_with(".cuh"))
        .filter(|name| wanted.is_empty() || wanted.contains(&name))
        .collect();
    files.sort();
    let mut all = Vec::new();
    for file in &files {
        all.extend(mutants(file, &fs::read_to_string(folder.join(file))?));
    }
    if list {
        all.iter().for_each(|m| println!("{}:{}: {}", m.file, m.line, m.fragment));
        println!("{} mutants", all.len());
        return Ok(true);
    }

    let copy = std::env::temp_dir().join(format!("layerstream-mutants-{}", std::process::id()));
    copy_folder(&folder, &copy)?;
    copy_folder(&folder.join("host"), &copy.join("host"))?;
    let reasons = explained(&fs::read_to_string(folder.join("survivors.txt"))?);
    let mut ok = true;
    let mut caught = 0;
    for file in &files {
        // Unmutated, the tests pass, and there are some: else nothing below would mean anything.
        let output = Command::new(env!("CARGO"))
            .args(["test", "-p", "layerstream-kernels", "--test", "kernels", filter_of(file)])
            .env("LAYERSTREAM_KERNEL_SOURCES", &copy)
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() || said.contains("ok. 0 passed") {
            return Err(format!("the unmutated tests of {file} fail, or there are none:\n{said}").into());
        }
        let source = fs::read_to_string(folder.join(file))?;
        for m in all.iter().filter(|m| m.file == *file) {
            let mutated = format!("{}{}{}", &source[..m.at], m.replacement, &source[m.at + m.fragment.len()..]);
            fs::write(copy.join(file), mutated)?;
            let verdict = match (test(&copy, filter_of(file))?, reasons.get(&m.key())) {
                (Verdict::Caught, None) => "caught",
                (Verdict::CaughtByTimeout, None) => "caught (ran for ten minutes)",
                (Verdict::Survived, Some(reason)) if !reason.is_empty() => "survives, as explained",
                (Verdict::Survived, _) => "SURVIVES, unexplained",
                (Verdict::Caught | Verdict::CaughtByTimeout, Some(_)) => "CAUGHT, but explained as a survivor",
                (Verdict::DoesNotBuild, _) => "DOES NOT BUILD",
            };
            caught += usize::from(verdict.starts_with("caught"));
            ok &= verdict.starts_with(|c: char| c.is_lowercase());
            println!("{}:{}: {} -> {}: {verdict}", m.file, m.line, m.fragment, m.replacement);
        }
        fs::write(copy.join(file), source)?;
    }
    for key in reasons.keys() {
        let about = files.iter().any(|file| key.starts_with(&format!("{file} |")));
        if (about || wanted.is_empty()) && !all.iter().any(|m| m.key() == *key) {
            println!("survivors.txt explains what is not there: {key}");
            ok = false;
        }
    }
    println!("{caught} of {} mutants caught", all.len());
    fs::remove_dir_all(&copy)?;
    Ok(ok)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("mutants: {message}");
            ExitCode::FAILURE
        }
    }
}
