//! One shard: read in runs of whole rows by several threads, packed, and written to its place in the new file; synced, read
//! back from the drive, and only then given its name.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};

use super::choose::start_of;
use super::encode::{Numbers, encode_row};
use super::files::{Steps, cannot_write, partial, put_in_place, sum};
use super::manifest::{Entry, Shard};
use super::{Options, lossless, verify};
use crate::encoding::Packed;
use crate::error::{Error, Result};

/// Bytes of a source's beginning that it is known by.
pub const SOURCE_START: u64 = 1 << 20;
/// Bytes of the source that are read at once, unless memory is scarcer.
const RUN: u64 = 4 << 20;

/// Bytes of the result of a tensor that are made, and have a checksum, at once: whole rows.
pub fn run_of(entry: &Entry, options: &Options) -> Result<u64> {
    let most = (options.ram / (2 * options.threads as u64)).min(RUN);
    let Some(stored) = &entry.packed else { return Ok(most.max(4096)) };
    let row_bytes = *entry.shape.last().expect("a packed tensor has rows") as u64;
    let rows = entry.bytes.checked_div(row_bytes).unwrap_or(0).max(1);
    // The row as it is, as float32, and packed.
    let source_row = entry.source_bytes / rows + 4 * stored.columns as u64;
    if source_row > most {
        let least = bytesize::ByteSize::b(source_row * 2 * options.threads as u64).display().iec().to_string();
        return Err(Error::Budget(format!("the rows of `{}` need {least}: give at least that (--ram)", entry.name)));
    }
    Ok((most / source_row).min(rows) * row_bytes)
}

/// Makes the file of a shard. `tell` is told bytes of the source that are done.
pub fn write(
    from: &Path,
    out: &Path,
    shard: &mut Shard,
    options: &Options,
    steps: &Steps,
    tell: &(dyn Fn(u64) + Sync),
) -> Result<()> {
    let source = File::open(from).map_err(Error::io(from, "open"))?;
    let len = source.metadata().map_err(Error::io(from, "open"))?.len();
    if len != shard.source_bytes || start_of(from)? != shard.source_sum {
        let problem = format!("is not the file that {} was begun with", out.display());
        return Err(Error::Checkpoint { path: from.into(), problem });
    }
    let path = out.join(&shard.file);
    let partial = partial(&path);
    steps.step();
    let file = File::create(&partial).map_err(cannot_write(&partial))?;
    match fallocate(&file, FallocateFlags::empty(), 0, shard.bytes) {
        Err(error) if error == rustix::io::Errno::OPNOTSUPP => file.set_len(shard.bytes),
        other => other.map_err(Into::into),
    }
    .map_err(cannot_write(&partial))?;
    steps.step();
    file.write_all_at(&shard.header(), 0).map_err(cannot_write(&partial))?;
    let work = Work { source: &source, from, file: &file, partial: &partial, steps };
    let sums = work.all(&shard.tensors, options.threads, tell)?;
    for (tensor, sums) in shard.tensors.iter_mut().zip(sums) {
        tensor.sums = sums;
    }
    steps.step();
    file.sync_all().map_err(cannot_write(&partial))?;
    // What is read back should come from the drive. Where this is not heeded, it comes from memory: no harm is done.
    let _ = fadvise(&file, 0, None, Advice::DontNeed);
    verify::tensors(&partial, &shard.tensors, options.threads)?;
    put_in_place(&path, steps)
}

/// A shard being made.
struct Work<'a> {
    source: &'a File,
    from: &'a Path,
    file: &'a File,
    partial: &'a Path,
    steps: &'a Steps,
}

/// The memory of a thread.
#[derive(Default)]
struct Buffers {
    source: Vec<u8>,
    numbers: Vec<f32>,
    result: Vec<u8>,
}

impl Work<'_> {
    /// Makes all tensors; returns the checksums of each one's runs.
    fn all(&self, tensors: &[Entry], threads: usize, tell: &(dyn Fn(u64) + Sync)) -> Result<Vec<Vec<String>>> {
        let done = AtomicU64::new(0);
        let sums = tensors.iter().map(|t| vec![String::new(); runs(t)]).collect();
        let sums = Mutex::new(sums);
        in_parallel(tensors, threads, |t, run| {
            thread_local! { static BUFFERS: std::cell::RefCell<Buffers> = Default::default(); }
            let (sum, bytes) = BUFFERS.with_borrow_mut(|buffers| self.one(&tensors[t], run as u64, buffers))?;
            let sums: &mut Vec<Vec<String>> = &mut sums.lock().unwrap_or_else(PoisonError::into_inner);
            sums[t][run] = sum;
            tell(done.fetch_add(bytes, Ordering::Relaxed) + bytes);
            Ok(())
        })?;
        Ok(sums.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes one run: its checksum, and the bytes of the source that it took.
    fn one(&self, tensor: &Entry, run: u64, buffers: &mut Buffers) -> Result<(String, u64)> {
        let Buffers { source, numbers, result } = buffers;
        let start = run * tensor.run;
        let len = tensor.run.min(tensor.bytes - start) as usize;
        let read = |source: &mut Vec<u8>, start: u64, len: usize| {
            source.resize(len, 0);
            let offset = tensor.source_offset + start;
            self.source.read_exact_at(source, offset).map_err(|error| Error::Read {
                path: self.from.into(),
                offset,
                len: len as u64,
                source: error,
            })
        };
        let made: &[u8] = match &tensor.packed {
            None => {
                read(source, start, len)?;
                source
            }
            Some(stored) => {
                let row_bytes = tensor.shape[tensor.shape.len() - 1];
                let kind = Numbers::of(&tensor.source_dtype).expect("only floats are packed");
                let source_row = stored.columns * kind.bytes();
                let (first, rows) = (start / row_bytes as u64, len / row_bytes);
                read(source, first * source_row as u64, rows * source_row)?;
                result.resize(len, 0);
                let packed = stored.packed().expect("a packing that was begun here");
                let rows = source.chunks_exact(source_row).zip(result.chunks_exact_mut(row_bytes));
                for ((from, to), r) in rows.zip(first..) {
                    if matches!(packed, Packed::Lossless { .. }) {
                        lossless::encode_row(from, to);
                        continue;
                    }
                    kind.widen(from, numbers);
                    if !encode_row(packed, numbers, to) {
                        let problem =
                            format!("row {r} has a number that is not finite, which {} cannot hold", packed.name());
                        let tensor = tensor.name.clone();
                        return Err(Error::Tensor { path: self.from.into(), tensor, problem });
                    }
                }
                result
            }
        };
        self.steps.step();
        self.file.write_all_at(made, tensor.offset + start).map_err(cannot_write(self.partial))?;
        Ok((sum(made), source.len() as u64))
    }
}

/// Runs of a tensor.
pub fn runs(tensor: &Entry) -> usize {
    tensor.bytes.div_ceil(tensor.run.max(1)) as usize
}

/// Does something to all runs of all tensors, on several threads; stops at the first error.
pub fn in_parallel(tensors: &[Entry], threads: usize, work: impl Fn(usize, usize) -> Result<()> + Sync) -> Result<()> {
    let jobs: Vec<(usize, usize)> =
        tensors.iter().enumerate().flat_map(|(t, tensor)| (0..runs(tensor)).map(move |run| (t, run))).collect();
    let (next, stop, failed) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(None));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed)
                    && let Some(&(t, run)) = jobs.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    if let Err(error) = work(t, run) {
                        stop.store(true, Ordering::Relaxed);
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
