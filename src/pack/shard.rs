//! One shard: read in runs of whole rows by several threads, packed, and written to its place in the new file. Every so
//! many bytes are synced and read back from the drive while other threads go on; and when all are, the file gets its name.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};

use super::encode::{Numbers, encode_rows};
use super::files::{Steps, cannot_write, partial, put_in_place, sum};
use super::manifest::{Entry, Shard};
use super::reading::Reading;
use super::{Options, source, verify};
use crate::disk::memory::Region;
use crate::encoding::Packed;
use crate::error::{Error, Result};

/// Bytes of the source that are read at once, unless memory is scarcer.
pub const RUN: u64 = 4 << 20;
/// The fewest into which rows that are too long for that are cut.
pub const LEAST_PIECE: u64 = 4096;
/// Bytes that are written before they are synced: a fraction of a second's, so that the drive always has some to write.
const BATCH: u64 = 64 << 20;

/// Bytes of the source that a thread reads at once, at most.
pub fn most_at_once(options: &Options) -> u64 {
    (options.ram / (2 * options.threads as u64)).min(RUN)
}

/// Bytes of the result of a tensor that are made, and have a checksum, at once: whole rows.
pub fn run_of(entry: &Entry, options: &Options) -> Result<u64> {
    let most = most_at_once(options);
    let rows = entry.shape.iter().rev().skip(1).product::<usize>().max(1) as u64;
    let row_bytes = entry.bytes / rows;
    // Runs end where an expert does, whose tiles may be streamed without its neighbours'.
    let whole = |most_rows: u64| match entry.shape[..] {
        [_, rows, _] => (1..=most_rows.min(rows as u64)).rev().find(|n| (rows as u64).is_multiple_of(*n)).unwrap_or(1),
        _ => most_rows.min(rows),
    };
    let Some(stored) = &entry.packed else {
        return Ok(if row_bytes == 0 || row_bytes > most {
            most.max(LEAST_PIECE)
        } else {
            whole(most / row_bytes) * row_bytes
        });
    };
    // Half of a thread's memory is for rows as they are and one as float32, the other for them packed.
    let (source_row, widened) = (entry.source_bytes / rows, 4 * stored.columns as u64);
    if source_row + widened > most {
        let least = (source_row + widened) * 2 * options.threads as u64;
        let least = bytesize::ByteSize::b(least).display().iec().to_string();
        return Err(Error::Budget(format!("the rows of `{}` need {least}: give at least that (--ram)", entry.name)));
    }
    // Narrow rows can be longer packed than before.
    Ok(whole(((most - widened) / source_row.max(1)).min(most / row_bytes)) * row_bytes)
}

/// Threads that fit into memory, of those asked for: runs are as long as they were when packing began, which may have been
/// with more memory.
///
/// # Errors
/// Too little memory for one.
pub fn threads(shard: &Shard, options: &Options) -> Result<usize> {
    let longest = |bytes: &dyn Fn(&Entry) -> u64| {
        shard.tensors.iter().filter(|tensor| tensor.bytes > 0).map(bytes).max().unwrap_or(0)
    };
    let made = |tensor: &Entry| run_at(tensor, 0).1;
    let of_packed = |tensor: &Entry| match &tensor.packed {
        Some(stored) => made(tensor) + 4 * stored.columns as u64,
        None => 0,
    };
    // The memory of a thread is for a run as it was or is read back, and for it packed, with one row as float32.
    let each = longest(&|tensor| made(tensor).max(source_at(tensor, 0).1)) + longest(&of_packed);
    let fit = options.ram / each.max(1);
    if fit == 0 {
        let least = bytesize::ByteSize::b(each).display().iec().to_string();
        let file = &shard.file;
        return Err(Error::Budget(format!(
            "what {file} is made of in one go needs {least}: give at least that (--ram)"
        )));
    }
    Ok(options.threads.min(fit as usize))
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
    let threads = threads(shard, options)?;
    let path = out.join(&shard.file);
    let partial = partial(&path);
    steps.step("create", &partial);
    let file = File::create(&partial).map_err(cannot_write(&partial))?;
    match fallocate(&file, FallocateFlags::empty(), 0, shard.bytes) {
        Err(error) if error == rustix::io::Errno::OPNOTSUPP => file.set_len(shard.bytes),
        other => other.map_err(Into::into),
    }
    .map_err(cannot_write(&partial))?;
    steps.step("write", &partial);
    file.write_all_at(&shard.header(), 0).map_err(cannot_write(&partial))?;
    let (reading, back) = (Reading::open(from)?, Reading::open(&partial)?);
    let rest = source::rest(shard);
    let longest = rest.iter().map(|(_, len)| *len).max().unwrap_or(0);
    let rest = source::sums(&reading, &rest, reading.regions(threads, longest)?)?;
    let work = Work { source: reading, from, file: &file, back, partial: &partial, steps };
    let made = work.all(&shard.tensors, threads, tell)?;
    steps.step("sync", &partial);
    file.sync_all().map_err(cannot_write(&partial))?;
    verify::header(&partial, &work.back, shard)?;
    shard.source_whole = source::joined(rest.iter().chain(made.iter().flatten().map(|run| &run.from)));
    for (tensor, made) in shard.tensors.iter_mut().zip(made) {
        tensor.sums = made.into_iter().map(|run| run.sum).collect();
    }
    put_in_place(&path, steps)
}

/// A shard being made.
struct Work<'a> {
    source: Reading,
    from: &'a Path,
    file: &'a File,
    /// The same file, to read back what was written.
    back: Reading,
    partial: &'a Path,
    steps: &'a Steps,
}

/// The memory of a thread.
struct Buffers {
    region: Region,
    result: Vec<u8>,
}

/// The checksums of a run: of what was made, and of what it was made from.
#[derive(Clone, Default)]
struct Made {
    sum: String,
    from: String,
}

/// What is known of a shard being made.
struct Progress {
    /// Of each tensor's runs.
    made: Vec<Vec<Made>>,
    /// Bytes of the source that are done.
    done: u64,
    /// Runs that were written and not read back yet, and their bytes.
    unread: Vec<(usize, usize)>,
    written: u64,
}

impl Work<'_> {
    /// Makes all tensors; returns the checksums of each one's runs, all of which were read back.
    fn all(&self, tensors: &[Entry], threads: usize, tell: &(dyn Fn(u64) + Sync)) -> Result<Vec<Vec<Made>>> {
        let longest = |&(t, run): &(usize, usize)| run_at(&tensors[t], run).1.max(source_at(&tensors[t], run).1);
        let longest = runs(tensors).iter().map(longest).max().unwrap_or(0);
        let buffers = || -> Result<Vec<Buffers>> {
            let regions = self.source.regions(threads, longest)?;
            Ok(regions.into_iter().map(|region| Buffers { region, result: Vec::new() }).collect())
        };
        let made = tensors.iter().map(|tensor| vec![Made::default(); runs_of(tensor)]).collect();
        let progress = Mutex::new(Progress { made, done: 0, unread: Vec::new(), written: 0 });
        let lock = || progress.lock().unwrap_or_else(PoisonError::into_inner);
        in_parallel(runs(tensors), buffers()?, |buffers, (t, run)| {
            let made = self.one(&tensors[t], run, buffers)?;
            let mut now = lock();
            now.made[t][run] = made;
            now.done += source_at(&tensors[t], run).1;
            now.unread.push((t, run));
            now.written += run_at(&tensors[t], run).1;
            tell(now.done);
            if now.written < BATCH {
                return Ok(());
            }
            now.written = 0;
            let unread = std::mem::take(&mut now.unread);
            drop(now);
            self.sync()?;
            unread.iter().try_for_each(|&(t, run)| {
                let sum = lock().made[t][run].sum.clone();
                self.read_back(&tensors[t], run, &sum, &mut buffers.region)
            })
        })?;
        let Progress { made, unread, .. } = progress.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.sync()?;
        in_parallel(unread, buffers()?, |buffers, (t, run)| {
            self.read_back(&tensors[t], run, &made[t][run].sum, &mut buffers.region)
        })?;
        Ok(made)
    }

    /// Makes one run.
    fn one(&self, tensor: &Entry, run: usize, Buffers { region, result }: &mut Buffers) -> Result<Made> {
        let (offset, len) = source_at(tensor, run);
        let source = self.source.read(offset, len, region)?;
        let from = sum(source);
        let (offset, len) = run_at(tensor, run);
        let made = match &tensor.packed {
            None => source,
            Some(stored) => {
                let kind = Numbers::of(&tensor.source_dtype).expect("only floats are packed");
                result.resize(len as usize, 0);
                let packed = stored.packed().expect("a packing that was begun here");
                encode_rows(packed, kind, stored.columns, source, result).map_err(|row| {
                    let row = run as u64 * tensor.run / row_bytes(tensor) + row as u64;
                    let problem = match packed {
                        Packed::Lossless { .. } => format!("row {row} is not as it was when packing began"),
                        to => format!("row {row} has a number that is not finite, which {} cannot hold", to.name()),
                    };
                    Error::Tensor { path: self.from.into(), tensor: tensor.name.clone(), problem }
                })?;
                result
            }
        };
        self.steps.step("write", self.partial);
        self.file.write_all_at(made, offset).map_err(cannot_write(self.partial))?;
        Ok(Made { sum: sum(made), from })
    }

    /// Makes sure of what was written, and that it need not stay in memory: where that is not heeded, and the drive cannot be
    /// read past the page cache, what is read back comes from there, and no harm is done.
    fn sync(&self) -> Result<()> {
        self.steps.step("sync", self.partial);
        self.file.sync_data().map_err(cannot_write(self.partial))?;
        let _ = fadvise(self.file, 0, None, Advice::DontNeed);
        Ok(())
    }

    fn read_back(&self, tensor: &Entry, run: usize, sum: &String, region: &mut Region) -> Result<()> {
        verify::run(self.partial, &self.back, tensor, run, Some(sum), region)
    }
}

/// Bytes of a row of a packed tensor, of the result.
fn row_bytes(tensor: &Entry) -> u64 {
    tensor.shape[tensor.shape.len() - 1] as u64
}

/// Where a run of a tensor is in the result: offset and bytes.
pub fn run_at(tensor: &Entry, run: usize) -> (u64, u64) {
    let start = run as u64 * tensor.run;
    (tensor.offset + start, tensor.run.min(tensor.bytes - start))
}

/// Where in the source is what it is made of.
pub fn source_at(tensor: &Entry, run: usize) -> (u64, u64) {
    let (offset, len) = run_at(tensor, run);
    let start = offset - tensor.offset;
    match &tensor.packed {
        None => (tensor.source_offset + start, len),
        Some(_) => {
            let source_row = tensor.source_bytes / (tensor.bytes / row_bytes(tensor));
            let [start, len] = [start, len].map(|bytes| bytes / row_bytes(tensor) * source_row);
            (tensor.source_offset + start, len)
        }
    }
}

/// Runs of a tensor.
pub fn runs_of(tensor: &Entry) -> usize {
    tensor.bytes.div_ceil(tensor.run.max(1)) as usize
}

/// All runs of all tensors, by the index of the tensor and theirs in it.
pub fn runs(tensors: &[Entry]) -> Vec<(usize, usize)> {
    tensors.iter().enumerate().flat_map(|(t, tensor)| (0..runs_of(tensor)).map(move |run| (t, run))).collect()
}

/// Does all jobs, in order, on as many threads as there are states for them; stops at the first error.
pub fn in_parallel<S: Send, J: Copy + Sync>(
    jobs: Vec<J>,
    states: Vec<S>,
    work: impl Fn(&mut S, J) -> Result<()> + Sync,
) -> Result<()> {
    let (next, stop, failed) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(None));
    let (jobs, next, stop, failed_at, work) = (&jobs, &next, &stop, &failed, &work);
    std::thread::scope(|scope| {
        for mut state in states {
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed)
                    && let Some(&job) = jobs.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    if let Err(error) = work(&mut state, job) {
                        stop.store(true, Ordering::Relaxed);
                        failed_at.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
