//! Packing: a checkpoint written again in fewer bytes, shard by shard, in a fixed amount of memory (docs/packing.md). The
//! matrices that stream become int8, nf4, or bf16 with coded exponents; all else is copied as it is. A shard of the result
//! is written under another name, synced, read back and renamed; only then may the one it came from be deleted. What was
//! done is in the manifest, so an interrupted run goes on where it stopped.

mod agree;
mod choose;
mod encode;
mod files;
mod lock;
mod lossless;
mod manifest;
mod reading;
mod shard;
mod source;
mod verify;

#[cfg(test)]
mod damage_tests;

use std::fs;
use std::path::{Path, PathBuf};

use crate::checkpoint::Checkpoint;
use crate::disk::Checksums;
use crate::error::{Error, Result};

use files::Steps;
use lock::Lock;
use manifest::{MANIFEST, Manifest, Shard};
pub(crate) use verify::verify;

use crate::encoding::Packed;

/// What to write, and how.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Of lossless rows, how many escapes they have room for is found for each matrix.
    pub to: Packed,
    /// Pack the output head, too.
    pub head: bool,
    /// Delete each shard of the source as soon as all that came from it is safe.
    pub delete_original: bool,
    /// The most memory for rows on their way, in bytes.
    pub ram: u64,
    /// Threads; twice as many as cores keep both drive and cores busy.
    pub threads: usize,
    /// For tests: end the process at this operation on files, as a loss of power would.
    pub abort_at: Option<u64>,
    /// For tests: the file to which every operation on files is written before it is done.
    pub steps_to: Option<PathBuf>,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Report {
    /// Bytes of the source's shards, and of the result's.
    pub before: u64,
    pub after: u64,
    /// Matrices that were packed; those that could have been, but lie as their transpose.
    pub packed: usize,
    pub transposed: usize,
    /// Those that would not get smaller without loss.
    pub kept: usize,
    /// Files of the source that were to be deleted and stay, as other snapshots in the Hub's cache have them, too.
    pub shared: usize,
}

/// Packs the model in the directory `source` into the directory `out`, or goes on with that. `progress` is told bytes of the
/// source done and in all, twice as many if it is read twice.
///
/// # Errors
/// A source that is quantised already, of which nothing would be packed, or whose numbers are not all finite; `out` with
/// anything else in it, or begun with other options; too little room or memory; anything that the operating system refuses.
/// What is done is kept, and the source is as it was, less the shards that are safe in the result.
pub(crate) fn pack(
    source: &Path,
    out: &Path,
    options: &Options,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Report> {
    let steps = Steps::new(options.abort_at, options.steps_to.as_deref())?;
    // Where there is nothing yet, there shall be nothing if it turns out that nothing can be packed.
    let chosen = if out.exists() { None } else { Some(choose(source, out, options, progress)?) };
    steps.step("create", out);
    fs::create_dir_all(out).map_err(Error::io(out, "create"))?;
    let _lock = Lock::take(out)?;
    files::sync_above(out, &steps)?;
    let begun = Manifest::read(out)?;
    let twice = begun.is_none() && matches!(options.to, Packed::Lossless { .. });
    let mut manifest = match (begun, chosen) {
        (Some(manifest), _) => manifest.continued(out, options)?,
        (None, Some(chosen)) => begin(chosen, source, out, &steps)?,
        (None, None) => begin(choose(source, out, options, progress)?, source, out, &steps)?,
    };
    if !manifest.finished {
        verify::small_files(out, &manifest.small)?;
    }
    require_source(source, out, &manifest)?;
    remove_unrecorded(out, &manifest, &steps)?;
    require_room(out, &manifest)?;
    let total = manifest.shards.iter().map(|shard| shard.source_bytes).sum();
    let ahead = if twice { total } else { 0 };
    let progress = |done| progress(ahead + done, ahead + total);
    let (mut done, mut shared) = (0, 0);
    for i in 0..manifest.shards.len() {
        let from = source::directory(source).join(&manifest.shards[i].source);
        if !manifest.shards[i].packed {
            let tell = |bytes| progress(done + bytes);
            source::require(&from, out, &manifest, &manifest.shards[i])?;
            shard::write(&from, out, &mut manifest.shards[i], options, &steps, &tell)?;
            manifest.packed(i);
            manifest.write(out, &steps)?;
        } else if options.delete_original && from.exists() {
            // Interrupted between the two: what was safe then should be so now, and what it was made from be the same.
            let threads = shard::threads(&manifest.shards[i], options)?;
            source::require_whole(&from, out, &manifest.shards[i], threads)?;
            verify::shard(out, &manifest.shards[i], threads)?;
        }
        if options.delete_original && from.symlink_metadata().is_ok() {
            shared += usize::from(files::delete_original(&from, &steps)?);
        }
        done += manifest.shards[i].source_bytes;
        progress(done);
    }
    if !manifest.finished {
        if manifest.shards.len() > 1 {
            files::replace(&out.join("model.safetensors.index.json"), &manifest.index(), &steps)?;
        }
        manifest.finished = true;
        manifest.write(out, &steps)?;
    }
    Ok(Report {
        before: total,
        after: manifest.shards.iter().map(|shard| shard.bytes).sum(),
        packed: manifest.shards.iter().flat_map(|shard| &shard.tensors).filter(|t| t.packed.is_some()).count(),
        transposed: manifest.transposed,
        kept: manifest.kept,
        shared,
    })
}

/// What the bytes of a packed model must be, to be compared while it streams.
///
/// # Errors
/// No manifest, or one that does not know all files of this checkpoint.
pub(crate) fn checksums(checkpoint: &Checkpoint) -> Result<Checksums> {
    let path = checkpoint.dir().join(MANIFEST);
    let problem = match Manifest::read(checkpoint.dir())? {
        Some(manifest) => match manifest.checksums(checkpoint) {
            Ok(checksums) => return Ok(checksums),
            Err(problem) => problem,
        },
        None => "is not there: only what `layerstream pack` wrote has checksums to compare with".into(),
    };
    Err(Error::Checkpoint { path, problem })
}

/// What random bytes are tried on: a manifest is refused, or its numbers agree with each other.
pub fn parse_manifest(path: &Path, bytes: &[u8]) -> Result<()> {
    Manifest::parse(path, bytes).map(drop)
}

/// Whether a packing into `out` was begun that can go on with what is in this directory.
///
/// # Errors
/// A manifest that cannot be read.
pub(crate) fn goes_on_with(source: &Path, out: &Path) -> Result<bool> {
    let left = |manifest: Manifest| manifest.shards.into_iter().filter(|shard| !shard.packed);
    Ok(Manifest::read(out)?.is_some_and(|manifest| left(manifest).all(|shard| source.join(shard.source).exists())))
}

/// Chooses what becomes of every tensor.
fn choose(source: &Path, out: &Path, options: &Options, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<Manifest> {
    let mut manifest = Manifest::new(options, choose::small_files(&source::directory(source))?);
    require_ours(out, &manifest)?;
    choose::choose(&mut manifest, source, options, &|read, of| progress(read, 2 * of))?;
    Ok(manifest)
}

/// Copies the small files, and writes what is to be done.
fn begin(mut manifest: Manifest, source: &Path, out: &Path, steps: &Steps) -> Result<Manifest> {
    for small in &mut manifest.small {
        let from = source::directory(source).join(&small.file);
        let bytes = fs::read(&from).map_err(Error::io(&from, "read"))?;
        small.bytes = bytes.len() as u64;
        small.sum = files::sum(&bytes);
        files::replace(&out.join(&small.file), &bytes, steps)?;
    }
    manifest.write(out, steps)?;
    Ok(manifest)
}

/// Refuses a directory with anything in it that packing did not write. Small files may have been copied before there was a
/// manifest: they are copied again.
fn require_ours(out: &Path, manifest: &Manifest) -> Result<()> {
    if !out.exists() {
        return Ok(());
    }
    let ours = |name: &str| name.starts_with('.') || manifest.small.iter().any(|small| small.file == name);
    for entry in fs::read_dir(out).map_err(Error::io(out, "list"))? {
        let name = entry.map_err(Error::io(out, "list"))?.file_name();
        if !ours(&name.to_string_lossy()) {
            let problem = format!("holds {}, and no packing was begun there: give an empty directory", name.display());
            return Err(Error::Request(format!("{}: {problem}", out.display())));
        }
    }
    Ok(())
}

/// Refuses a source that lacks what is left to do, or is another one.
fn require_source(source: &Path, out: &Path, manifest: &Manifest) -> Result<()> {
    let path = |shard: &Shard| source::directory(source).join(&shard.source);
    if let Some(missing) = manifest.shards.iter().find(|shard| !shard.packed && !path(shard).exists()) {
        let problem = format!("is not there, and {} was not made from it yet", missing.file);
        return Err(Error::Checkpoint { path: path(missing), problem });
    }
    source::require_same(source, out, manifest)
}

/// Removes files that got their names, but whose run ended before the manifest said so: they are made again, and where the
/// drive is full, there would be no room for both.
fn remove_unrecorded(out: &Path, manifest: &Manifest, steps: &Steps) -> Result<()> {
    let unrecorded = manifest.shards.iter().filter(|shard| !shard.packed).map(|shard| out.join(&shard.file));
    unrecorded.filter(|path| path.symlink_metadata().is_ok()).try_for_each(|path| files::remove_left(&path, steps))
}

/// Refuses to begin what would not fit. What deleting will free is not counted on.
fn require_room(out: &Path, manifest: &Manifest) -> Result<()> {
    let needed: u64 = manifest.shards.iter().filter(|shard| !shard.packed).map(|shard| shard.bytes).sum();
    let needed = if manifest.finished { 0 } else { needed + manifest.bytes_to_come() };
    let room = rustix::fs::statvfs(out).map_err(|e| Error::io(out, "ask for the free space")(e.into()))?;
    let begun = manifest.shards.iter().filter_map(|shard| fs::metadata(files::partial(&out.join(&shard.file))).ok());
    let begun: u64 = begun.map(|metadata| std::os::unix::fs::MetadataExt::blocks(&metadata) * 512).sum();
    let free = room.f_bavail.saturating_mul(room.f_frsize).saturating_add(begun);
    if needed <= free {
        return Ok(());
    }
    let [needed, free] = [needed, free].map(|bytes| bytesize::ByteSize::b(bytes).display().si().to_string());
    let problem =
        format!("{needed} will be written, but {free} are free; free some room and run the same command again");
    Err(Error::Request(format!("{}: {problem}", out.display())))
}
