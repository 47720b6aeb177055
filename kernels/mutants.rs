//! The mutation check: deletes every barrier, every wait and every bounds test of the kernels in turn, and runs the
//! kernels' tests. A mutant that no test notices survives; each survivor has to be explained in kernels/survivors.txt, and
//! each explanation has to be about a survivor.
//!
//!     cargo run -p layerstream-kernels --example mutants [-- --list] [FILE ...]
//!
//! With files, only their mutants. All mutants are compiled at once, into a copy of the sources, where an environment
//! variable says which of them is on; so the build happens once, and a mutant costs what its tests cost until one fails.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Which mutant is on, by its number; none without it.
const SWITCH: &str = "LAYERSTREAM_KERNEL_MUTANT";

/// A test that takes this much longer than on the sources as they are has been caught in a loop.
const PATIENCE: u32 = 20;

/// One place in the sources and what to put there.
#[derive(Debug)]
struct Mutant {
    file: String,
    line: usize,
    /// The line as it is, trimmed.
    text: String,
    /// The part that is replaced, and by what, when the mutant is on.
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

/// The sources of one file with all its mutants in it; `first` is the number of the first.
fn with_switches(source: &str, mutants: &[&Mutant], first: usize) -> String {
    let (mut text, mut done) = (String::new(), 0);
    for (i, mutant) in mutants.iter().enumerate() {
        let (on, fragment, replacement) =
            (format!("kernel_mutant == {}", first + i), &mutant.fragment, &mutant.replacement);
        text += &source[done..mutant.at];
        text += &format!("({on} ? {replacement} : {fragment})");
        done = mutant.at + fragment.len();
    }
    text + &source[done..]
}

/// Copies a folder's files.
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

/// Builds the tests of the kernels in `sources`; returns the program.
fn build(sources: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let output = Command::new(env!("CARGO"))
        .args(["test", "-p", "layerstream-kernels", "--test", "kernels", "--no-run"])
        .env("LAYERSTREAM_KERNEL_SOURCES", sources)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let program =
        said.lines().find_map(|line| line.trim().strip_prefix("Executable ")?.split_once('(')?.1.strip_suffix(')'));
    match program {
        Some(program) if output.status.success() => Ok(fs::canonicalize(program)?),
        _ => Err(format!("the kernels with switches do not build:\n{said}").into()),
    }
}

/// One test of one dialect.
struct Test {
    name: String,
    /// On the sources as they are.
    time: Duration,
}

/// Whether a test passes with mutant number `mutant` on; `None`: after `limit` it was still running.
fn passes(program: &Path, test: &str, mutant: Option<usize>, limit: Duration) -> Result<Option<bool>, Box<dyn Error>> {
    let mut command = Command::new(program);
    command.args(["--exact", test]).env("RUST_BACKTRACE", "0").env_remove(SWITCH);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Some(mutant) = mutant {
        command.env(SWITCH, mutant.to_string());
    }
    let mut child = command.spawn()?;
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// All tests, each of which passes on the sources as they are: else nothing below would mean anything.
fn tests(program: &Path) -> Result<Vec<Test>, Box<dyn Error>> {
    let output = Command::new(program).args(["--list", "--format", "terse"]).output()?;
    let listed = String::from_utf8(output.stdout)?;
    let names = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    let measure = |name: &str| {
        let start = Instant::now();
        match passes(program, name, None, Duration::from_secs(600))? {
            Some(true) => Ok(Test { name: name.into(), time: start.elapsed() }),
            _ => Err(format!("{name} fails on kernels without mutants").into()),
        }
    };
    names.map(measure).collect()
}

/// The .cu files that a file is compiled into: itself, or those that include it.
fn compiled_into(file: &str, sources: &BTreeMap<String, String>) -> Vec<String> {
    let includes = |text: &str| text.contains(&format!("#include \"{file}\""));
    let mut into: Vec<String> = sources.keys().filter(|name| *name == file && name.ends_with(".cu")).cloned().collect();
    for (name, _) in sources.iter().filter(|(_, text)| includes(text)) {
        into.extend(compiled_into(name, sources));
    }
    into.sort();
    into.dedup();
    into
}

#[derive(Clone, Copy, PartialEq)]
enum Verdict {
    Caught,
    CaughtByTimeout,
    Survived,
}

/// Runs those tests that concern a mutant, until one notices it.
fn judge(program: &Path, tests: &[&Test], mutant: usize) -> Result<Verdict, Box<dyn Error>> {
    for test in tests {
        let limit = test.time * PATIENCE + Duration::from_secs(10);
        match passes(program, &test.name, Some(mutant), limit)? {
            Some(true) => {}
            Some(false) => return Ok(Verdict::Caught),
            None => return Ok(Verdict::CaughtByTimeout),
        }
    }
    Ok(Verdict::Survived)
}

fn run() -> Result<bool, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let wanted: Vec<&String> = arguments.iter().filter(|a| !a.starts_with("--")).collect();
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut sources = BTreeMap::new();
    for entry in fs::read_dir(&folder)? {
        let name = entry?.file_name().into_string().map_err(|_| "a file name is not UTF-8")?;
        if name.ends_with(".cu") || name.ends_with(".cuh") {
            sources.insert(name.clone(), fs::read_to_string(folder.join(&name))?);
        }
    }
    let wants = |file: &str| wanted.is_empty() || wanted.iter().any(|name| *name == file);
    let all: Vec<Mutant> =
        sources.iter().filter(|(file, _)| wants(file)).flat_map(|(file, source)| mutants(file, source)).collect();
    if arguments.iter().any(|a| a == "--list") {
        all.iter().for_each(|m| println!("{}:{}: {}", m.file, m.line, m.fragment));
        println!("{} mutants", all.len());
        return Ok(true);
    }

    let copy = std::env::temp_dir().join(format!("layerstream-mutants-{}", std::process::id()));
    copy_folder(&folder, &copy)?;
    copy_folder(&folder.join("host"), &copy.join("host"))?;
    for (file, source) in sources.iter().filter(|(file, _)| wants(file)) {
        let first = all.iter().position(|m| m.file == *file).unwrap_or(0);
        let own: Vec<&Mutant> = all.iter().filter(|m| m.file == *file).collect();
        fs::write(copy.join(file), with_switches(source, &own, first))?;
    }
    let shim = copy.join("host/shim.h");
    let switch = format!(
        "#include <cstdlib>\ninline const int kernel_mutant = std::getenv(\"{SWITCH}\") ? std::atoi(std::getenv(\"{SWITCH}\")) : -1;\n"
    );
    let text = fs::read_to_string(&shim)?.replacen("#pragma once", &format!("#pragma once\n{switch}"), 1);
    fs::write(&shim, text)?;
    let program = build(&copy)?;
    let tests = tests(&program)?;

    let reasons = explained(&fs::read_to_string(folder.join("survivors.txt"))?);
    let (next, caught, wrong) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || -> Result<(), String> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(m) = all.get(number) else { return Ok(()) };
            let files = compiled_into(&m.file, &sources);
            let concerns = |test: &&Test| files.iter().any(|file| test.name.contains(file.trim_end_matches(".cu")));
            let concerned: Vec<&Test> = tests.iter().filter(concerns).collect();
            if concerned.is_empty() {
                return Err(format!("there are no tests for {}", m.file));
            }
            let verdict = judge(&program, &concerned, number).map_err(|e| e.to_string())?;
            let said = match (verdict, reasons.get(&m.key())) {
                (Verdict::Caught, None) => "caught",
                (Verdict::CaughtByTimeout, None) => "caught (never ends)",
                (Verdict::Survived, Some(reason)) if !reason.is_empty() => "survives, as explained",
                (Verdict::Survived, _) => "SURVIVES, unexplained",
                (Verdict::Caught | Verdict::CaughtByTimeout, Some(_)) => "CAUGHT, but explained as a survivor",
            };
            caught.fetch_add(usize::from(verdict != Verdict::Survived), Ordering::Relaxed);
            wrong.fetch_add(usize::from(!said.starts_with(|c: char| c.is_lowercase())), Ordering::Relaxed);
            println!("{}:{}: {} -> {}: {said}", m.file, m.line, m.fragment, m.replacement);
        }
    };
    let workers = std::thread::available_parallelism()?.get();
    std::thread::scope(|scope| -> Result<(), String> {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a worker has panicked".to_string())?)
    })?;

    for key in reasons.keys() {
        let about = sources.keys().any(|file| wants(file) && key.starts_with(&format!("{file} |")));
        if (about || wanted.is_empty()) && !all.iter().any(|m| m.key() == *key) {
            println!("survivors.txt explains what is not there: {key}");
            wrong.fetch_add(1, Ordering::Relaxed);
        }
    }
    println!("{} of {} mutants caught", caught.into_inner(), all.len());
    fs::remove_dir_all(&copy)?;
    Ok(wrong.into_inner() == 0)
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
