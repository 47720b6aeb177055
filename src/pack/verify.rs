//! Checks what was packed against its manifest: every file, its header, and every run of rows of every tensor. What is wrong
//! is named.

use std::fs;
use std::path::Path;

use super::files::sum;
use super::manifest::{Entry, MANIFEST, Manifest, Shard, Small};
use super::reading::Reading;
use super::shard::{in_parallel, run_at, runs};
use crate::disk::memory::Region;
use crate::error::{Error, Result};

/// Threads that read.
const THREADS: usize = 4;

/// What was found to be right.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Summary {
    pub files: usize,
    pub tensors: usize,
    pub bytes: u64,
}

/// Checks a directory. `progress` is told bytes done and in all.
///
/// # Errors
/// No manifest, one of a packing that is not finished, a file that is missing or of another length, and the first tensor
/// whose bytes are not those that were written.
pub(crate) fn verify(dir: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Summary> {
    let manifest = dir.join(MANIFEST);
    let Some(found) = Manifest::read(dir)? else {
        let problem = "is not there: only what `layerstream pack` wrote can be verified".into();
        return Err(Error::Checkpoint { path: manifest, problem });
    };
    if !found.finished {
        let left = found.shards.iter().filter(|shard| !shard.packed).count();
        let problem = format!("says that packing is not finished, {left} files are left: run the same command again");
        return Err(Error::Checkpoint { path: manifest, problem });
    }
    small_files(dir, &found.small)?;
    if found.shards.len() > 1 {
        let path = dir.join("model.safetensors.index.json");
        if fs::read(&path).map_err(Error::io(&path, "read"))? != found.index() {
            return Err(other_bytes(&path));
        }
    }
    let total = found.shards.iter().map(|shard| shard.bytes).sum();
    let mut done = 0;
    for one in &found.shards {
        shard(dir, one, THREADS)?;
        done += one.bytes;
        progress(done, total);
    }
    let tensors = found.shards.iter().map(|shard| shard.tensors.len()).sum();
    Ok(Summary { files: found.shards.len() + found.small.len(), tensors, bytes: total })
}

/// Checks the files that were copied whole.
pub fn small_files(dir: &Path, files: &[Small]) -> Result<()> {
    for small in files {
        let path = dir.join(&small.file);
        let found = fs::metadata(&path).map_err(Error::io(&path, "open"))?;
        if !found.is_file() || found.len() != small.bytes {
            return Err(other_bytes(&path));
        }
        if sum(&fs::read(&path).map_err(Error::io(&path, "read"))?) != small.sum {
            return Err(other_bytes(&path));
        }
    }
    Ok(())
}

fn other_bytes(path: &Path) -> Error {
    Error::Checkpoint { path: path.into(), problem: "is not the file that was written: its bytes are others".into() }
}

/// Checks one file of tensors, with so many threads.
pub fn shard(dir: &Path, shard: &Shard, threads: usize) -> Result<()> {
    let path = dir.join(&shard.file);
    let len = fs::metadata(&path).map_err(Error::io(&path, "open"))?.len();
    if len != shard.bytes {
        let problem = format!("has {len} bytes, but {} were written", shard.bytes);
        return Err(Error::Checkpoint { path, problem });
    }
    let reading = Reading::open(&path)?;
    header(&path, &reading, shard)?;
    let longest = shard.tensors.iter().map(|tensor| tensor.run.min(tensor.bytes)).max().unwrap_or(0);
    in_parallel(runs(&shard.tensors), reading.regions(threads, longest)?, |region, (t, run)| {
        let tensor = &shard.tensors[t];
        self::run(&path, &reading, tensor, run, tensor.sums.get(run), region)
    })
}

/// Compares the beginning of a file, up to its first tensor.
pub fn header(path: &Path, reading: &Reading, shard: &Shard) -> Result<()> {
    let expected = shard.header();
    let mut region = reading.regions(1, expected.len() as u64)?;
    if reading.read(0, expected.len() as u64, &mut region[0])? == expected {
        return Ok(());
    }
    let problem = "its header is not the one that was written: damaged, or another file under this name".into();
    Err(Error::Checkpoint { path: path.into(), problem })
}

/// Compares a run of rows with its checksum.
pub fn run(
    path: &Path,
    reading: &Reading,
    tensor: &Entry,
    run: usize,
    expected: Option<&String>,
    region: &mut Region,
) -> Result<()> {
    let (offset, len) = run_at(tensor, run);
    if expected == Some(&sum(reading.read(offset, len, region)?)) {
        return Ok(());
    }
    let problem = format!("the {len} bytes at offset {offset} are not those that were written");
    Err(Error::Tensor { path: path.into(), tensor: tensor.name.clone(), problem })
}
