//! Checks what was packed against its manifest: every file, its header, and every run of rows of every tensor. What is wrong
//! is named.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::files::sum;
use super::manifest::{Entry, MANIFEST, Manifest, Shard};
use super::shard::in_parallel;
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
    for small in &found.small {
        let path = dir.join(&small.file);
        let bytes = fs::read(&path).map_err(Error::io(&path, "read"))?;
        if bytes.len() as u64 != small.bytes || sum(&bytes) != small.sum {
            return Err(other_bytes(&path));
        }
    }
    if found.shards.len() > 1 {
        let path = dir.join("model.safetensors.index.json");
        if fs::read(&path).map_err(Error::io(&path, "read"))? != found.index() {
            return Err(other_bytes(&path));
        }
    }
    let total = found.shards.iter().map(|shard| shard.bytes).sum();
    let mut done = 0;
    for one in &found.shards {
        shard(dir, one)?;
        done += one.bytes;
        progress(done, total);
    }
    let tensors = found.shards.iter().map(|shard| shard.tensors.len()).sum();
    Ok(Summary { files: found.shards.len() + found.small.len(), tensors, bytes: total })
}

fn other_bytes(path: &Path) -> Error {
    Error::Checkpoint { path: path.into(), problem: "is not the file that was written: its bytes are others".into() }
}

/// Checks one file of tensors.
pub fn shard(dir: &Path, shard: &Shard) -> Result<()> {
    let path = dir.join(&shard.file);
    let len = fs::metadata(&path).map_err(Error::io(&path, "open"))?.len();
    if len != shard.bytes {
        let problem = format!("has {len} bytes, but {} were written", shard.bytes);
        return Err(Error::Checkpoint { path, problem });
    }
    let expected = shard.header();
    let mut header = vec![0; expected.len()];
    let file = File::open(&path).map_err(Error::io(&path, "open"))?;
    file.read_exact_at(&mut header, 0).map_err(Error::io(&path, "read"))?;
    if header != expected {
        let problem = "its header is not the one that was written: damaged, or another file under this name".into();
        return Err(Error::Checkpoint { path, problem });
    }
    tensors(&path, &shard.tensors, THREADS)
}

/// Compares every run of rows with its checksum.
pub fn tensors(path: &Path, tensors: &[Entry], threads: usize) -> Result<()> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    in_parallel(tensors, threads, |t, run| {
        let tensor = &tensors[t];
        let start = run as u64 * tensor.run;
        let len = tensor.run.min(tensor.bytes - start);
        let offset = tensor.offset + start;
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, offset).map_err(|source| Error::Read {
            path: path.into(),
            offset,
            len,
            source,
        })?;
        if tensor.sums.get(run) == Some(&sum(&bytes)) {
            return Ok(());
        }
        let problem = format!("the {len} bytes at offset {offset} are not those that were written");
        Err(Error::Tensor { path: path.into(), tensor: tensor.name.clone(), problem })
    })
}
