//! Where nvcc is, and how kernels are compiled with it. build.rs compiles ours with this, the workbench those of its users.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What to do when [`find`] finds nothing.
pub const MISSING: &str = "nvcc was not found (looked in NVCC, CUDA_HOME, PATH and target/cuda); `make cuda-toolchain` installs one without root";

/// The target folder: the outermost ancestor of `inside` that cargo has tagged as a cache.
pub fn target_dir(inside: &Path) -> Option<PathBuf> {
    inside.ancestors().filter(|dir| dir.join("CACHEDIR.TAG").exists()).last().map(Path::to_path_buf)
}

/// nvcc: from NVCC, CUDA_HOME, PATH, or installed into this target folder by `make cuda-toolchain`.
pub fn find(target: &Path) -> Option<PathBuf> {
    if let Some(nvcc) = env::var_os("NVCC") {
        return Some(nvcc.into());
    }
    let home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc"));
    let path = env::var_os("PATH").unwrap_or_default();
    let in_path = env::split_paths(&path).map(|dir| dir.join("nvcc"));
    let installed = target.join("cuda/nvidia/cu13/bin/nvcc");
    home.into_iter().chain(in_path).chain([installed]).find(|nvcc| nvcc.is_file())
}

/// The command that compiles `source` to a fatbin: machine code for each of `archs` (such as 80), PTX of the first for
/// cards to come. `-o` is still to be added. On stderr, ptxas tells what each kernel takes. With `lines`, profilers can
/// point to lines of the source; they are three quarters of a fatbin.
pub fn command(nvcc: &Path, archs: &[u32], source: &Path, lines: bool) -> Command {
    let mut command = Command::new(nvcc);
    command.args(["-fatbin", "-std=c++17", "-O3"]).args(lines.then_some("-lineinfo"));
    command.args(["-allow-unsupported-compiler", "-Xptxas", "-v"]);
    command.args(["--compress-mode=size", "-Xcudafe", "--diag_suppress=177"]); // 177: a helper this file does not use
    for (i, arch) in archs.iter().enumerate() {
        let code = if i == 0 { format!("[sm_{arch},compute_{arch}]") } else { format!("sm_{arch}") };
        command.arg("-gencode").arg(format!("arch=compute_{arch},code={code}"));
    }
    command.arg(source);
    command
}

/// The version of CUDA that `nvcc --version` says it is of, such as (13, 0).
pub fn release(said: &str) -> Option<(u32, u32)> {
    let (_, version) = said.split_once("release ")?;
    let (major, minor) = version.split(',').next()?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Splits what nvcc says into the facts that `-Xptxas -v` asks for and the rest, which somebody should read.
pub fn facts_and_rest(said: &str) -> (String, String) {
    let is_fact = |line: &&str| line.starts_with("ptxas info") || line.contains(" bytes stack frame, ");
    let (facts, rest): (Vec<&str>, Vec<&str>) = said.lines().partition(is_fact);
    (facts.join("\n"), rest.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::release;

    #[test]
    fn the_version_of_nvcc_is_read() {
        let said = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88\nBuild x/y\n";
        assert_eq!(release(said), Some((13, 0)));
        assert_eq!(release("Cuda compilation tools, release 12.10, V12.10.1"), Some((12, 10)));
        assert_eq!(release(""), None);
        assert_eq!(release("release of something else"), None);
    }
}
