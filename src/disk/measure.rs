//! Measuring a drive on the bytes that it is going to deliver: how fast it is, and with which chunk size and queue depth.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::memory::{Mapping, Region};
use super::{
    DEFAULT_CHUNK, DEFAULT_DEPTH, DiskOptions, Drive, Files, Geometry, Landed, Read, Reader, Source, open_drives,
};
use crate::error::{Error, Result};

/// Chunk sizes and depths to choose from. The first is small, so that a slow drive is recognised before it is asked for
/// much at once; the second is the default, which another one must clearly beat.
const CANDIDATES: [(usize, usize); 6] =
    [(1 << 20, 8), (DEFAULT_CHUNK, DEFAULT_DEPTH), (1 << 20, 32), (2 << 20, 16), (4 << 20, 32), (8 << 20, 16)];

/// How much better than the default another candidate must be: short measurements are noisy.
const CLEARLY: f64 = 1.1;

/// Measures how fast the drives of `source` deliver its files, all together, in bytes per second.
///
/// Takes `time` plus what is still in flight then. Chunk and depth are those of `options`, or defaults.
///
/// # Errors
/// What opening and reading the files fails with; [`Error::Request`] if there is nothing to read.
pub fn measure(source: &Source, options: &DiskOptions, time: Duration) -> Result<f64> {
    options.check()?;
    let geometry = Geometry::of(source)?;
    if geometry.lens.iter().all(|&len| len == 0) {
        return Err(Error::Request("there is nothing to read: every file is empty".into()));
    }
    let drives = open_drives(source, &geometry, options)?;
    let chunk = options.chunk_bytes.unwrap_or(DEFAULT_CHUNK).next_multiple_of(geometry.align);
    let depth = options.depth.unwrap_or(DEFAULT_DEPTH);
    std::thread::scope(|scope| {
        let run = move |drive| bandwidth(drive, Mapping::map(chunk * depth, true)?, chunk, depth, 0.0, time);
        let launch = |drive| scope.spawn(move || run(drive));
        let running: Vec<_> = drives.iter().map(launch).collect();
        running.into_iter().map(|drive| drive.join().expect("measuring does not panic")).sum()
    })
}

/// Chooses chunk size and depth for a drive by trying candidates for `time` in all, in `memory`, which is given back with
/// whatever has been read in it. What would take too long to drain is not tried. Where nothing could be learnt it returns
/// the default: a failing drive is left to the reads that matter, whose errors name what they are for.
pub(crate) fn tune(drive: &Drive, mut memory: Region, time: Duration) -> Result<(Region, usize, usize)> {
    let deadline = Instant::now() + time;
    let share = time / CANDIDATES.len() as u32;
    let mut best = (DEFAULT_CHUNK, DEFAULT_DEPTH);
    let mut to_beat = 0.0;
    let mut slowest = f64::INFINITY;
    for (i, (chunk, depth)) in CANDIDATES.into_iter().enumerate() {
        let drain = Duration::try_from_secs_f64((chunk * depth) as f64 / slowest).unwrap_or(Duration::MAX);
        let fits = chunk * depth <= memory.len() && chunk.is_multiple_of(drive.files.align);
        if !fits || share.max(drain) > deadline.saturating_duration_since(Instant::now()) {
            continue;
        }
        let from = i as f64 / CANDIDATES.len() as f64;
        let (mapping, len) = (Arc::clone(memory.mapping()), memory.len());
        let speed = bandwidth(drive, memory, chunk, depth, from, share);
        memory = Region::whole(mapping).map_or_else(|| Mapping::map(len, true), Ok)?;
        let Ok(speed) = speed else { break };
        tracing::debug!(chunk, depth, speed, "tried");
        slowest = slowest.min(speed);
        if i == 1 {
            (best, to_beat) = ((chunk, depth), speed * CLEARLY);
        } else if i > 1 && speed > to_beat {
            (best, to_beat) = ((chunk, depth), speed);
        }
    }
    Ok((memory, best.0, best.1))
}

/// Bytes per second of sequential reads into `memory` with `depth` chunks in flight, starting at the fraction `from` of
/// the files.
fn bandwidth(drive: &Drive, mut memory: Region, chunk: usize, depth: usize, from: f64, time: Duration) -> Result<f64> {
    let (threads, per_thread) = drive.threads(depth);
    let total: u64 = drive.files.lens().iter().sum();
    let position = AtomicU64::new((total as f64 * from) as u64 / chunk as u64);
    let mapping = Arc::clone(memory.mapping());
    let work = |mine: Vec<Region>| {
        let mut reader = drive.reader(per_thread, Some(&mapping))?;
        let next = || locate(&drive.files, position.fetch_add(1, Ordering::Relaxed), chunk);
        let start = Instant::now();
        let bytes = pump(reader.as_mut(), mine, next, start + time)?;
        Ok(bytes as f64 / start.elapsed().as_secs_f64())
    };
    let speed: io::Result<f64> = std::thread::scope(|scope| {
        let work = &work;
        let mut launch = || {
            let mine = (0..per_thread).map(|_| memory.split_to(chunk)).collect();
            scope.spawn(move || work(mine))
        };
        let running: Vec<_> = (0..threads).map(|_| launch()).collect();
        running.into_iter().map(|thread| thread.join().expect("measuring does not panic")).sum()
    });
    speed.map_err(Error::io(drive.files.path(0), "measure reading"))
}

/// File and offset of the `n`th chunk of all files in a row, starting over at the end; files shorter than a chunk are
/// skipped unless there are no others.
fn locate(files: &Files, n: u64, chunk: usize) -> (usize, u64) {
    let chunks = |len: u64| len / chunk as u64;
    let total: u64 = files.lens().iter().map(|&len| chunks(len)).sum();
    if total == 0 {
        let largest = files.lens().iter().enumerate().max_by_key(|&(_, len)| len);
        return (largest.map_or(0, |(file, _)| file), 0);
    }
    let mut n = n % total;
    for (file, &len) in files.lens().iter().enumerate() {
        if n < chunks(len) {
            return (file, n * chunk as u64);
        }
        n -= chunks(len);
    }
    unreachable!("n is less than the number of chunks")
}

/// Reads into every region once, then keeps them all in flight until `deadline`; returns the bytes read.
fn pump(
    reader: &mut dyn Reader,
    mut idle: Vec<Region>,
    next: impl Fn() -> (usize, u64),
    deadline: Instant,
) -> io::Result<u64> {
    let mut in_flight = 0;
    let mut bytes = 0;
    let mut landed = Vec::new();
    loop {
        for region in idle.drain(..) {
            let (file, offset) = next();
            reader.submit(Read { token: 0, file, offset, region, filled: 0, attempts: 0 });
            in_flight += 1;
        }
        if in_flight == 0 {
            return Ok(bytes);
        }
        reader.wait(&mut landed)?;
        for Landed { read, result } in landed.drain(..) {
            bytes += result? as u64;
            in_flight -= 1;
            if Instant::now() < deadline {
                idle.push(read.region);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tuning gives the ring's memory back whole, whatever it could try, also with no time at all.
    #[test]
    fn tuning_gives_the_memory_back() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 << 20).unwrap();
        let source = Source { files: vec![file.path().into()], ..Source::default() };
        let geometry = Geometry::of(&source).unwrap();
        let drive = open_drives(&source, &geometry, &DiskOptions::default()).unwrap().remove(0);
        for len in [2 << 20, 16 << 20, 128 << 20] {
            for time in [Duration::ZERO, Duration::from_millis(60)] {
                let ring = Mapping::map(len, false).unwrap();
                let (ring, chunk, depth) = tune(&drive, ring, time).unwrap();
                assert_eq!((ring.start(), ring.len()), (0, len));
                assert!(CANDIDATES.contains(&(chunk, depth)));
            }
        }
    }

    /// A file that is cut to nothing while it is measured has no speed, and is no reason to panic.
    #[test]
    fn tuning_survives_a_file_that_has_vanished() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 << 20).unwrap();
        let source = Source { files: vec![file.path().into()], ..Source::default() };
        let geometry = Geometry::of(&source).unwrap();
        let drive = open_drives(&source, &geometry, &DiskOptions::default()).unwrap().remove(0);
        file.as_file().set_len(0).unwrap();
        let ring = Mapping::map(64 << 20, false).unwrap();
        assert_eq!(tune(&drive, ring, Duration::from_millis(60)).unwrap().0.len(), 64 << 20);
    }

    #[test]
    fn chunks_of_all_files_are_visited_in_turn() {
        let (mut paths, mut kept) = (Vec::new(), Vec::new());
        for len in [10_000, 100, 4096] {
            let file = tempfile::NamedTempFile::new().unwrap();
            file.as_file().set_len(len).unwrap();
            paths.push(file.path().to_path_buf());
            kept.push(file);
        }
        let geometry = Geometry::of(&Source { files: paths.clone(), ..Source::default() }).unwrap();
        let files = Files::open(&paths, &geometry, false).unwrap();
        let places: Vec<_> = (0..4).map(|n| locate(&files, n, 4096)).collect();
        assert_eq!(places, [(0, 0), (0, 4096), (2, 0), (0, 0)]);
        assert_eq!(locate(&files, 5, 1 << 20), (0, 0));
    }
}
