//! From disk to memory: by the readers alone, which drop what lands (the bandwidth of the drive), and by the conveyor, in
//! order, for a consumer that does nothing.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use crate::disk::memory::{Mapping, Region};
use crate::disk::{DiskOptions, Drive, Geometry, Read, Reader, ReaderKind, open_drives};
use crate::engine::StopFlag;
use crate::error::{Error, Result};
use crate::stream::{Conveyor, Verdict, judge};

use super::sample::{Facts, Gate, Log, Sample, Timed, Watch};
use super::work::{Piece, Work, tiles};

/// How to read: shared by the stages.
#[derive(Clone, Debug)]
pub struct How {
    pub disk: DiskOptions,
    /// Bytes of a read and of a copy, a multiple of the alignment.
    pub chunk: usize,
    /// Reads in flight for each queue.
    pub depth: usize,
    /// Bytes of the ring.
    pub ring: usize,
    /// Whether to sum what arrives.
    pub sums: bool,
}

/// Reads all pieces, in any order, each drive as fast as it can.
pub fn raw(work: &Work, how: &How, stop: &StopFlag) -> Result<Sample> {
    let start = Instant::now();
    let pieces = work.pieces(how.chunk);
    let drives = open_drives(&work.source, &Geometry::of(&work.source)?, &how.disk)?;
    // Of each queue: its drive, its number of threads, and the reads that each of them has in flight.
    let queues: Vec<(&Drive, usize, usize)> = drives
        .iter()
        .map(|drive| {
            let (threads, depth) = drive.threads(how.depth);
            (drive, threads, depth)
        })
        .collect();
    let threads: usize = queues.iter().map(|(_, threads, _)| threads).sum();
    let in_flight: usize = queues.iter().map(|(_, threads, depth)| threads * depth).sum();
    let mut memory = Mapping::map(in_flight * how.chunk, true)?;
    let mapping = Arc::clone(memory.mapping());
    let shared = Shared { pieces: &pieces, next: AtomicUsize::new(0), failed: AtomicBool::new(false), stop, how };
    let log = Log::default();
    let ready = Barrier::new(threads);
    let done: Vec<Result<Done>> = std::thread::scope(|scope| {
        let (shared, ready) = (&shared, &ready);
        let mut running = Vec::new();
        for (drive, threads, depth) in queues {
            for _ in 0..threads {
                let mine: Vec<Region> = (0..depth).map(|_| memory.split_to(how.chunk)).collect();
                let (mapping, log) = (&mapping, log.clone());
                running.push(scope.spawn(move || {
                    let reader = drive.reader(depth, Some(mapping));
                    ready.wait();
                    let reader = reader.map_err(Error::io(drive.files.path(0), "set up reading"))?;
                    let done = shared.read(drive, Timed::new(reader, log, true), mine);
                    shared.failed.fetch_or(done.is_err(), Ordering::Relaxed);
                    done
                }));
            }
        }
        let join = |thread: std::thread::ScopedJoinHandle<Result<Done>>| thread.join().expect("reading does not panic");
        // All are waited for, whichever fails.
        running.into_iter().map(join).collect()
    });
    let done = done.into_iter().collect::<Result<Vec<Done>>>()?;
    // By the threads' own watches: a few small reads are over before this thread is woken.
    let first = done.iter().map(|done| &done.watch).min_by_key(|watch| watch.start).expect("there is a thread");
    let end = done.iter().map(|done| done.end).max().expect("there is a thread");
    let (seconds, cpu_seconds) = (first.until(end), first.cpu_seconds());
    let registered = done.iter().all(|done| done.registered);
    let mut sums = vec![0; pieces.len()];
    done.iter().flat_map(|done| &done.sums).for_each(|&(piece, sum)| sums[piece] = sum);
    let (memory, huge) = (mapping.range().1, mapping.huge_bytes());
    Ok(Sample {
        bytes: work.total(),
        seconds,
        cpu_seconds,
        init_seconds: (Instant::now() - start).as_secs_f64() - seconds,
        latencies: log.take(),
        sums: how.sums.then_some(sums),
        facts: Facts {
            readers: drives.iter().map(|drive| drive.kind).collect(),
            threads,
            in_flight,
            memory,
            huge,
            registered: if registered { memory } else { 0 },
            locked: 0,
        },
        ..Sample::default()
    })
}

/// What the threads of a raw run share.
struct Shared<'a> {
    pieces: &'a [Piece],
    /// Index of the first piece that nobody reads yet.
    next: AtomicUsize,
    /// One has failed: the others may stop.
    failed: AtomicBool,
    stop: &'a StopFlag,
    how: &'a How,
}

/// What a thread has done.
struct Done {
    /// Since it began to read.
    watch: Watch,
    end: Instant,
    registered: bool,
    /// By index of the piece.
    sums: Vec<(usize, u32)>,
}

impl Shared<'_> {
    /// Keeps as many reads in flight as there are regions in `idle`, each a chunk long, until all pieces have landed.
    fn read(&self, drive: &Drive, mut reader: Timed, mut idle: Vec<Region>) -> Result<Done> {
        let watch = Watch::start();
        let registered = reader.registered();
        let (mut landed, mut sums) = (Vec::new(), Vec::new());
        // The rear ends of regions whose pieces are shorter than a chunk, by piece.
        let mut rests: Vec<(u64, Region)> = Vec::new();
        let mut in_flight = 0;
        loop {
            while let Some(region) = idle.pop() {
                let Some((index, piece)) = self.take() else { break };
                let mut rest = region;
                let region = rest.split_to(piece.len);
                if !rest.is_empty() {
                    rests.push((index as u64, rest));
                }
                let (file, offset) = (piece.file, piece.offset);
                reader.submit(Read { token: index as u64, file, offset, region, filled: 0, attempts: 0 });
                in_flight += 1;
            }
            if in_flight == 0 {
                super::check(self.stop)?;
                return Ok(Done { watch, end: Instant::now(), registered, sums });
            }
            reader.wait(&mut landed).map_err(Error::io(drive.files.path(0), "wait for reads"))?;
            for read in landed.drain(..) {
                match judge(&drive.files, read)? {
                    Verdict::Done(read, _) => {
                        in_flight -= 1;
                        if self.how.sums {
                            let index = read.token as usize;
                            sums.push((index, crc32fast::hash(&read.region[..self.pieces[index].bytes])));
                        }
                        idle.push(match rests.iter().position(|(token, _)| *token == read.token) {
                            Some(at) => read.region.join(rests.swap_remove(at).1),
                            None => read.region,
                        });
                    }
                    Verdict::Again(read, after) => {
                        std::thread::sleep(after);
                        reader.submit(read);
                    }
                }
            }
        }
    }

    fn take(&self) -> Option<(usize, Piece)> {
        if self.failed.load(Ordering::Relaxed) || self.stop.is_set() {
            return None;
        }
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        Some((index, *self.pieces.get(index)?))
    }
}

/// A conveyor over the pieces that has not begun to read.
pub struct Belt {
    /// Before the conveyor, whose end waits for threads that may wait here.
    gate: Gate,
    pub conveyor: Conveyor,
    /// Of when chunks were asked for, and, unless the consumer says when they are done, of how long they took.
    pub log: Log,
    /// What the conveyor counted as waiting before it was to read.
    before: Duration,
}

impl Belt {
    /// Everything up to the first read.
    pub fn new(work: &Work, how: &How, pieces: &[Piece], until_landed: bool) -> Result<Belt> {
        let (gate, log) = (Gate::default(), Log::default());
        let (enter, noted) = (gate.entrance(), log.clone());
        let wrap = move |reader: Box<dyn Reader>| {
            enter();
            Box::new(Timed::new(reader, noted.clone(), until_landed)) as Box<dyn Reader>
        };
        let conveyor = Conveyor::start_wrapped(&work.source, &tiles(pieces), how.ring, &how.disk, Arc::new(wrap))?;
        Ok(Belt { gate, conveyor, log, before: Duration::ZERO })
    }

    /// Begins to read, once all threads are ready to.
    pub fn start(&mut self, how: &How, stop: &StopFlag) -> Result<Watch> {
        let drives = self.conveyor.stats().drives;
        let threads = threads_of(drives.iter().map(|drive| drive.reader), how);
        while self.gate.arrived() < threads {
            super::check(stop)?;
            // Whoever does not arrive has left an error; there are no tiles yet.
            drop(self.conveyor.next_within(Duration::from_millis(1))?);
        }
        self.before = self.conveyor.stats().consumer_wait;
        let watch = Watch::start();
        self.gate.open();
        Ok(watch)
    }
}

fn threads_of(readers: impl Iterator<Item = ReaderKind>, how: &How) -> usize {
    readers.map(|kind| kind.threads(how.depth, how.disk.threads).0).sum()
}

/// Takes all pieces in order from the conveyor, and gives each back at once.
pub fn in_order(work: &Work, how: &How, stop: &StopFlag) -> Result<Sample> {
    let start = Instant::now();
    let pieces = work.pieces(how.chunk);
    let mut belt = Belt::new(work, how, &pieces, true)?;
    let init = start.elapsed();
    let watch = belt.start(how, stop)?;
    let mut sums = Vec::new();
    for _ in &pieces {
        super::check(stop)?;
        let tile = belt.conveyor.next()?;
        if how.sums {
            sums.push(crc32fast::hash(&tile));
        }
    }
    let (seconds, cpu_seconds) = (watch.until(Instant::now()), watch.cpu_seconds());
    let sample = Sample {
        bytes: work.total(),
        seconds,
        cpu_seconds,
        init_seconds: init.as_secs_f64(),
        sums: how.sums.then_some(sums),
        ..Sample::default()
    };
    Ok(of_belt(sample, &belt, how))
}

/// Adds what the conveyor knows.
pub fn of_belt(sample: Sample, belt: &Belt, how: &How) -> Sample {
    let stats = belt.conveyor.stats();
    let readers: Vec<_> = stats.drives.iter().map(|drive| drive.reader).collect();
    let threads = threads_of(readers.iter().copied(), how);
    Sample {
        waited_for_disk: Some(stats.consumer_wait.saturating_sub(belt.before).as_secs_f64()),
        waited_for_copy: Some(stats.reader_wait.as_secs_f64() / threads.max(1) as f64),
        latencies: belt.log.take(),
        facts: Facts {
            threads,
            in_flight: how.depth * readers.len(),
            readers,
            memory: stats.ring_bytes,
            huge: stats.huge_bytes,
            registered: if stats.drives.iter().all(|drive| drive.registered) { stats.ring_bytes } else { 0 },
            locked: 0,
        },
        ..sample
    }
}
