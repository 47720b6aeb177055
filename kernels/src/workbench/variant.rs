//! Somebody else's kernels in the place of ours: a file with the same entry points and arguments, compiled here.

use std::path::Path;

use crate::nvcc;

use super::report::{self, Usages};

/// A compiled file of kernels.
pub struct Variant {
    pub file: String,
    pub image: Vec<u8>,
    /// Its kernels, and what they take.
    pub usages: Usages,
}

/// Compiles `file` for one target, such as 90. It may include the headers of kernels/.
pub fn compile(file: &Path, arch: u32) -> Result<Variant, String> {
    let name = file.display().to_string();
    if !file.is_file() {
        return Err(format!("{name}: no such file; --variant takes a CUDA file with the entry points of one of ours"));
    }
    let program = std::env::current_exe().map_err(|e| format!("where this program lies is not known: {e}"))?;
    let target = nvcc::target_dir(&program).unwrap_or_default();
    let nvcc = nvcc::find(&target).ok_or_else(|| format!("{}; --variant needs it", nvcc::MISSING))?;
    let output = std::env::temp_dir().join(format!("layerstream-variant-{}.fatbin", std::process::id()));
    let mut command = nvcc::command(&nvcc, &[arch], file, true);
    command.arg("-I").arg(env!("CARGO_MANIFEST_DIR")).arg("-o").arg(&output);
    let done = command.output().map_err(|e| format!("cannot run {}: {e}", nvcc.display()))?;
    let image = std::fs::read(&output);
    let _ = std::fs::remove_file(&output);
    let (facts, rest) = nvcc::facts_and_rest(&String::from_utf8_lossy(&done.stderr));
    if !done.status.success() {
        let said = [String::from_utf8_lossy(&done.stdout).trim(), rest.trim()].join("\n");
        return Err(format!("{name} does not compile:\n{}", said.trim()));
    }
    if !rest.trim().is_empty() {
        eprintln!("{}", rest.trim());
    }
    let image = image.map_err(|e| format!("{name}: nvcc made nothing: {e}"))?;
    let usages = report::parse(&facts).map_err(|e| format!("{name}: {e}"))?;
    Ok(Variant { file: name, image, usages })
}

impl Variant {
    /// Fails unless one of these kernels is in the file; `what` says what they are.
    pub fn require(&self, kernels: &[&str], what: &str) -> Result<(), String> {
        if kernels.iter().any(|kernel| self.usages.contains_key(*kernel)) {
            return Ok(());
        }
        let has: Vec<&str> = self.usages.keys().map(String::as_str).collect();
        Err(format!("{} has {}, but none of {what}", self.file, has.join(", ")))
    }
}
