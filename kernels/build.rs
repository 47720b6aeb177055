//! Builds what the kernels' sources become: Rust structs from params.h (always), fatbins by nvcc (feature `device`), and
//! a library that runs the same kernels on a CPU (feature `host`).
//!
//! Compiled files are kept under target/kernels by a hash of all that went into them (the file, what it includes, the
//! compiler, its flags), so only what changed is compiled again, whatever else is cleaned or switched.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

#[path = "src/nvcc.rs"]
mod nvcc;

fn main() {
    // The mutation check compiles a copy of the sources that it has tampered with.
    println!("cargo::rerun-if-env-changed=LAYERSTREAM_KERNEL_SOURCES");
    let folder = PathBuf::from(env::var("LAYERSTREAM_KERNEL_SOURCES").unwrap_or_else(|_| var("CARGO_MANIFEST_DIR")));
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", folder.display()); // all of it: a kernel may be new

    bindings(&folder);
    #[cfg(feature = "host")]
    host::build(&folder);
    if env::var_os("CARGO_FEATURE_DEVICE").is_some() {
        device::build(&folder);
    }
}

/// A variable that cargo sets for build scripts.
fn var(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo did not set {name}"))
}

/// Ends the build with a message instead of a panic's backtrace.
fn stop(message: &str) -> ! {
    for line in message.lines() {
        println!("cargo::error={line}");
    }
    std::process::exit(1)
}

/// The files of a folder with one of the extensions, sorted.
fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("cannot list {}: {e}", folder.display()));
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e)))
        .collect();
    found.sort();
    found
}

fn target_dir() -> PathBuf {
    let out = PathBuf::from(var("OUT_DIR"));
    nvcc::target_dir(&out).unwrap_or(out)
}

// --- params.h to Rust ------------------------------------------------------------------------------------------------

fn bindings(folder: &Path) {
    let wheel = target_dir().join("cuda/clang/native");
    if env::var_os("LIBCLANG_PATH").is_none() && wheel.join("libclang.so").exists() {
        // SAFETY: the build script has one thread here.
        unsafe { env::set_var("LIBCLANG_PATH", &wheel) };
    }
    println!("cargo::rerun-if-env-changed=LIBCLANG_PATH");
    let builder = bindgen::Builder::default()
        .header(folder.join("params.h").to_str().expect("a UTF-8 path"))
        .newtype_enum(".*")
        .prepend_enum_name(false)
        .derive_default(true)
        .derive_debug(true)
        .layout_tests(true);
    // bindgen panics when it finds no libclang.
    std::panic::set_hook(Box::new(|_| {}));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| builder.generate()));
    drop(std::panic::take_hook());
    match result {
        Ok(Ok(bindings)) => {
            bindings.write_to_file(PathBuf::from(var("OUT_DIR")).join("params.rs")).expect("OUT_DIR can be written")
        }
        Ok(Err(e)) => stop(&format!("kernels/params.h cannot be translated: {e}")),
        Err(_) => stop(
            "libclang, which reads kernels/params.h, was not found (looked in LIBCLANG_PATH, target/cuda and the system).\n\
             Either install it without root with `make cuda-toolchain`, or build without CUDA:\n\
             `cargo build --no-default-features --features cli`",
        ),
    }
}

// --- compiled files by content ---------------------------------------------------------------------------------------

/// Adds a file, and all that it includes by #include "…", to a hash.
fn hash_source(path: &Path, hasher: &mut DefaultHasher, seen: &mut Vec<PathBuf>) {
    if seen.iter().any(|s| s == path) {
        return;
    }
    seen.push(path.to_path_buf());
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
    text.hash(hasher);
    for line in text.lines() {
        if let Some(name) = line.trim().strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"')) {
            hash_source(&path.parent().expect("a file lies in a folder").join(name), hasher, seen);
        }
    }
}

/// One run of a compiler: `command` with `-o <output>` added makes a file out of `sources`.
struct Job {
    command: Command,
    output: PathBuf,
}

impl Job {
    /// `kind` is the extension of the output; `salt` is whatever else decides it, such as the compiler's version.
    fn new(sources: &[PathBuf], command: Command, kind: &str, salt: &str) -> Job {
        let mut hasher = DefaultHasher::new();
        let mut seen = Vec::new();
        for source in sources {
            hash_source(source, &mut hasher, &mut seen);
        }
        format!("{command:?} {salt}").hash(&mut hasher);
        let stem = sources[0].file_stem().and_then(|s| s.to_str()).expect("a UTF-8 file name");
        let output = target_dir().join("kernels").join(format!("{stem}-{:016x}.{kind}", hasher.finish()));
        Job { command, output }
    }

    fn run(mut self) -> Result<(), String> {
        // Written beside and renamed, so that an interrupted build leaves nothing that looks finished.
        let partial = self.output.with_extension(format!("{}.partial", std::process::id()));
        let output = self.command.arg("-o").arg(&partial).output();
        let output = output.map_err(|e| format!("cannot run {:?}: {e}", self.command.get_program()))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            return Err(format!("{:?} failed:\n{said}", self.command));
        }
        let (facts, rest) = nvcc::facts_and_rest(&said);
        if !rest.trim().is_empty() {
            println!("cargo::warning={}", rest.trim().replace('\n', " | "));
        }
        let kept = facts.is_empty() || fs::write(self.output.with_extension("ptxas"), facts).is_ok();
        if !kept {
            return Err(format!("cannot write beside {}", self.output.display()));
        }
        fs::rename(&partial, &self.output).map_err(|e| format!("cannot write {}: {e}", self.output.display()))
    }
}

/// Runs those jobs whose output is not there yet, as many at once as cargo allows. Returns all outputs.
fn run_all(jobs: Vec<Job>) -> Vec<PathBuf> {
    let outputs: Vec<PathBuf> = jobs.iter().map(|job| job.output.clone()).collect();
    fs::create_dir_all(target_dir().join("kernels")).expect("the target folder can be written");
    let queue: Mutex<Vec<Job>> = Mutex::new(jobs.into_iter().filter(|job| !job.output.exists()).rev().collect());
    let errors = Mutex::new(Vec::new());
    let workers: usize = var("NUM_JOBS").parse().unwrap_or(1);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(job) = { queue.lock().expect("no worker panics").pop() } {
                    if let Err(message) = job.run() {
                        errors.lock().expect("no worker panics").push(message);
                    }
                }
            });
        }
    });
    let errors = errors.into_inner().expect("no worker panics");
    if !errors.is_empty() {
        stop(&errors.join("\n"));
    }
    outputs
}

// --- the kernels on a CPU --------------------------------------------------------------------------------------------

#[cfg(feature = "host")]
mod host {
    use super::*;

    /// The values of __CUDA_ARCH__ whose code differs: no bfloat16 mma and no cp.async; both; 227 KiB of shared memory.
    const DIALECTS: [u32; 3] = [750, 800, 900];

    pub fn build(folder: &Path) {
        for name in ["LAYERSTREAM_HOST_SANITIZE", "CXX", "CXXFLAGS"] {
            println!("cargo::rerun-if-env-changed={name}");
        }
        let sanitize = env::var("LAYERSTREAM_HOST_SANITIZE").ok();
        let mut cc = cc::Build::new();
        cc.cpp(true).opt_level(2).debug(false).cargo_metadata(false).warnings(false);
        let compiler = cc.get_compiler();
        let command = || {
            let mut command = compiler.to_command();
            // -march=native: the library runs where it was built. -fno-strict-aliasing: kernels, like all CUDA code, look
            // at the same bytes as different types. _FORTIFY_SOURCE rejects a longjmp from one stack to another.
            command.args(["-std=c++17", "-march=native", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE", "-fPIC"]);
            command.args(["-Wall", "-Wextra", "-Wno-unused", "-Wno-unknown-pragmas", "-c"]);
            if let Some(sanitizers) = &sanitize {
                command.arg(format!("-fsanitize={sanitizers}")).args(["-fno-sanitize-recover=all", "-g"]);
            }
            command
        };
        let cpu = cpu_flags();
        let shim = folder.join("host/shim.cpp");
        let mut shim_command = command();
        shim_command.arg(&shim);
        let mut jobs = vec![Job::new(&[shim], shim_command, "o", &cpu)];
        let mut sources = files(folder, &["cu"]);
        sources.push(folder.join("host/selftest.cu"));
        for source in sources {
            for arch in DIALECTS {
                let wrapper = folder.join("host/kernel.cpp");
                let mut command = command();
                command.arg(format!("-D__CUDA_ARCH__={arch}"));
                command.arg(format!("-DKERNEL_FILE=\"{}\"", source.display())).arg(&wrapper);
                jobs.push(Job::new(&[source.clone(), wrapper], command, "o", &cpu));
            }
        }
        let objects = run_all(jobs);

        // One relocatable object: whoever needs the launch function gets the kernels' registrations with it, which a
        // linker would leave out of an archive because nothing refers to them.
        let out = PathBuf::from(var("OUT_DIR"));
        let all = out.join("kernels_host.o");
        let status = compiler.to_command().args(["-nostdlib", "-r", "-o"]).arg(&all).args(&objects).status();
        if !status.is_ok_and(|s| s.success()) {
            stop("the host build of the kernels cannot be linked");
        }
        cc::Build::new().cpp(true).object(&all).compile("kernels_host");
        if let Some(sanitizers) = &sanitize {
            for name in sanitizers.split(',') {
                println!("cargo::rustc-link-lib={}", if name == "address" { "asan" } else { "ubsan" });
            }
        }
    }

    /// What -march=native means here: a target folder may be moved between machines.
    fn cpu_flags() -> String {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        info.lines()
            .find(|line| line.starts_with("flags") || line.starts_with("Features"))
            .unwrap_or_default()
            .to_string()
    }
}

// --- the kernels on a GPU --------------------------------------------------------------------------------------------

mod device {
    use super::*;

    /// sm_80 also serves 8.6 and 8.9. Each is compiled to machine code; PTX of the oldest is for cards to come.
    const ARCHS: &str = "75,80,90,100,120";

    pub fn build(folder: &Path) {
        for name in ["NVCC", "CUDA_HOME", "PATH", "LAYERSTREAM_CUDA_ARCHS"] {
            println!("cargo::rerun-if-env-changed={name}");
        }
        let archs = env::var("LAYERSTREAM_CUDA_ARCHS").unwrap_or_else(|_| ARCHS.into());
        let mut archs: Vec<u32> = archs
            .split(',')
            .map(|a| {
                a.trim()
                    .parse()
                    .unwrap_or_else(|_| stop(&format!("LAYERSTREAM_CUDA_ARCHS: `{a}` is not a number such as 80")))
            })
            .collect();
        archs.sort_unstable();
        archs.dedup();

        let nvcc = nvcc::find(&target_dir()).unwrap_or_else(|| {
            let ways = "Or build without CUDA: `cargo build --no-default-features --features cli`";
            stop(&format!("{}.\n{ways}", nvcc::MISSING))
        });
        let version = Command::new(&nvcc).arg("--version").output().map(|o| o.stdout).unwrap_or_default();
        let version = String::from_utf8_lossy(&version).into_owned();
        // As for Rust's own code: by default with lines in debug builds, without in releases.
        let lines = var("DEBUG") == "true";
        let mut sources = files(folder, &["cu"]);
        sources.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).map_or(0, |m| m.len()))); // the slowest first
        let jobs = sources.iter().map(|source| {
            let command = nvcc::command(&nvcc, &archs, source, lines);
            Job::new(std::slice::from_ref(source), command, "fatbin", &version)
        });
        let fatbins = run_all(jobs.collect());

        // The files are copied: OUT_DIR then holds all that the crate needs, and nothing stale.
        let out = PathBuf::from(var("OUT_DIR"));
        fs::write(out.join("toolkit.rs"), format!("{:?}", nvcc::release(&version))).expect("OUT_DIR can be written");
        let mut table = String::from("&[\n");
        for (source, fatbin) in sources.iter().zip(&fatbins) {
            let name = source.file_stem().and_then(|s| s.to_str()).expect("a UTF-8 file name");
            for kind in ["fatbin", "ptxas"] {
                fs::copy(fatbin.with_extension(kind), out.join(format!("{name}.{kind}")))
                    .expect("OUT_DIR can be written");
            }
            let path = format!("concat!(env!(\"OUT_DIR\"), \"/{name}");
            table +=
                &format!("(\"{name}\", &Aligned(*include_bytes!({path}.fatbin\"))), include_str!({path}.ptxas\"))),\n");
        }
        fs::write(out.join("fatbins.rs"), table + "]\n").expect("OUT_DIR can be written");
    }
}
