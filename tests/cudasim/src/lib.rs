//! Where the simulated CUDA driver lies, and what tests need to know of it. README.md says what it plays and what it does
//! not; the driver itself is the package in `driver/`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The summaries of bytes that traces have.
#[path = "../driver/src/fingerprint.rs"]
pub mod fingerprint;

/// How a process ends that misused the driver. It has said on standard error what it did.
pub const EXIT_MISUSE: i32 = 86;

/// The first bytes of a fatbin: enough of one for `cuModuleLoadData`, which finds every kernel in every module.
pub const FATBIN: [u8; 16] = [0x50, 0xed, 0x55, 0xba, 1, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A directory with the simulated driver in it, to be put first in the `LD_LIBRARY_PATH` of a process to be started. It
/// does nothing for the process that calls, whose loader has read that variable.
///
/// Cargo builds the library beside the tests that depend on this package, whatever they are run with.
///
/// # Errors
/// The library is not there: the test was moved away from where cargo built it, or is not run by cargo at all.
pub fn directory() -> io::Result<PathBuf> {
    let test = std::env::current_exe()?;
    let deps = test.parent().unwrap_or(Path::new("."));
    // Programs lie one level above tests.
    let library = [deps.join(FILE), deps.join("deps").join(FILE)].into_iter().find(|path| path.exists());
    let library = library.ok_or_else(|| {
        let message =
            format!("{FILE}, the simulated CUDA driver, is not in {}: run this test with cargo", deps.display());
        io::Error::new(io::ErrorKind::NotFound, message)
    })?;
    let directory = library.with_file_name("cudasim");
    std::fs::create_dir_all(&directory)?;
    // All names, or a loader that looks for another one first finds a real driver.
    for name in ["libcuda.so", "libcuda.so.1", "libnvidia-ml.so.1"] {
        let link = directory.join(name);
        if std::fs::read_link(&link).is_ok_and(|target| target == library) {
            continue;
        }
        // Made beside and renamed: other tests may be here at the same time.
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let new = directory.join(format!("{name}.{}.{number}", std::process::id()));
        let _ = std::fs::remove_file(&new);
        std::os::unix::fs::symlink(&library, &new)?;
        std::fs::rename(&new, &link)?;
    }
    Ok(directory)
}

/// What cargo calls the library.
const FILE: &str = "libcudasim.so";
