//! The workbench as a person at a machine without a GPU meets it: what works there works, the rest says what it lacks.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use layerstream_kernels::nvcc;

fn kernels() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kernels"));
    // Where there is a GPU, it is hidden.
    command.env("CUDA_VISIBLE_DEVICES", "");
    command
}

fn run(arguments: &[&str]) -> Output {
    kernels().args(arguments).output().expect("the workbench runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Fails with this status and a message that has all these parts, and nothing on standard output.
fn refuses(output: &Output, status: i32, parts: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{said}");
    for part in parts {
        assert!(said.contains(part), "`{part}` in: {said}");
    }
    assert_eq!(stdout(output), "");
}

fn file(name: &str, text: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).expect("the target folder can be written");
    path
}

#[test]
fn list_names_kernels_checks_and_benches() {
    let output = run(&["list"]);
    assert!(output.status.success());
    let said = stdout(&output);
    for name in ["  rms_norm ", "  gemm_nf4_m8 ", "  norm_matches_float64", "  gemm_prefill   "] {
        assert_eq!(said.matches(name).count(), 1, "`{name}` in:\n{said}");
    }
    assert!(!said.contains("selftest"), "the tests of the host build are no kernels of ours");
}

#[test]
fn check_runs_on_the_host_and_says_so() {
    let output = run(&["check", "peak"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.starts_with("Checking with the host build, on this CPU ("), "{said}");
    for dialect in ["Sm75", "Sm80", "Sm90"] {
        assert!(said.contains(&format!("ok      peak_is_exact, {dialect}, 12 schedules")), "{said}");
    }
}

#[test]
fn check_of_nothing_names_what_there_is() {
    refuses(&run(&["check", "nothing"]), 1, &["no check has `nothing` in its name", "norm_matches_float64"]);
}

#[test]
fn what_needs_a_gpu_says_so() {
    refuses(&run(&["bench", "gemm"]), 1, &["bench needs a GPU: "]);
    refuses(&run(&["sweep", "--json"]), 1, &["sweep needs a GPU: "]);
    refuses(&run(&["check", "--device", "gpu"]), 1, &["there is no GPU to check on: "]);
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    refuses(&run(&["bench"]), 2, &["<NAME>"]);
    refuses(&run(&["bench", "nobody"]), 2, &["possible values: gemm, gemm_prefill, attention_decode,"]);
    refuses(&run(&["bench", "gemm", "--m", "0"]), 2, &["--m", "1 to 2^30 are possible"]);
    refuses(&run(&["bench", "gemm", "--n", "many"]), 2, &["--n", "a whole number is expected"]);
    refuses(&run(&["bench", "gemm", "--encoding", "int3"]), 2, &["there are f32, f16, bf16, int8, fp8, nf4"]);
    refuses(&run(&["bench", "gemm", "--repeat", "0"]), 2, &["--repeat"]);
    refuses(&run(&["check", "--seeds", "0"]), 2, &["--seeds"]);
}

#[test]
fn variants_that_cannot_be_compiled_are_refused() {
    refuses(&run(&["bench", "norm", "--variant", "nowhere.cu"]), 1, &["nowhere.cu: no such file"]);
    let any = file("any.cu", "");
    let with_nvcc = |nvcc: &str| kernels().args(["check", "norm", "--variant"]).arg(&any).env("NVCC", nvcc).output();
    refuses(&with_nvcc("/nonexistent/nvcc").expect("runs"), 1, &["cannot run /nonexistent/nvcc"]);
    refuses(&with_nvcc("false").expect("runs"), 1, &["any.cu does not compile"]);
}

/// Where nvcc is: a file with a mistake in it, one without kernels of ours, and a good one.
#[test]
fn variants_are_compiled_first() {
    let target = nvcc::target_dir(Path::new(env!("CARGO_BIN_EXE_kernels"))).expect("cargo tags its target folder");
    if nvcc::find(&target).is_none() {
        eprintln!("skipped: {}", nvcc::MISSING);
        return;
    }
    let with = |name: &str, text: &str| {
        let path = file(name, text);
        kernels().args(["bench", "norm", "--variant"]).arg(path).output().expect("the workbench runs")
    };
    let broken = with("broken.cu", "#include \"tile.cuh\"\nKERNEL(rms_norm, NormParams, 256) { p.rows = }\n");
    refuses(&broken, 1, &["broken.cu does not compile", "broken.cu(2): error: expected an expression"]);
    let other = with("other.cu", "#include \"tile.cuh\"\nKERNEL(mine, NormParams, 256) {}\n");
    refuses(&other, 1, &["other.cu has mine, but none of our kernels"]);
    let good = with("good.cu", "#include \"tile.cuh\"\nKERNEL(rms_norm, NormParams, 256) {}\n");
    refuses(&good, 1, &["good.cu, compiled for sm_90", "| rms_norm |", "bench needs a GPU"]);
}

/// With `--features device`: what `make kernel-report` is there for.
#[test]
fn no_kernel_uses_local_memory() {
    let output = run(&["report"]);
    if !cfg!(feature = "device") {
        return refuses(&output, 1, &["--features workbench,device"]);
    }
    let said = stdout(&output);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("| rms_norm |"), "{said}");
    assert!(said.ends_with("Nothing spills, and nothing uses local memory.\n"), "{said}");
}
