//! The conveyor: I/O threads fill the ring from one shared schedule, one consumer empties it tile by tile.

use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::schedule::{Lent, Schedule};
use super::worker::{self, Feed, Wrap};
use super::{DriveStats, StreamStats, TileRead, arena_len, ring_floor, ring_len};
use crate::checkpoint::Span;
use crate::disk::memory::{Mapping, Region};
use crate::disk::{self, Checker, DEFAULT_CHUNK, DEFAULT_DEPTH, DiskOptions, Drive, Geometry, Read, Source};
use crate::error::{Error, Result};
use crate::profile::{Recorder, Whose};

/// Below this many bytes a measurement costs more than it can bring.
const WORTH_TUNING: u64 = 2 << 30;
/// The most time that choosing chunk size and depth may take, for all drives together.
const TUNING: Duration = Duration::from_millis(250);

/// Streams tiles from drives in a fixed cyclic order, reading ahead as far as its memory allows.
///
/// All memory is allocated by [`Conveyor::start`]: exactly [`resident_bytes`](super::resident_bytes).
pub struct Conveyor {
    shared: Arc<Shared>,
    memory: [Arc<Mapping>; 2],
    threads: Vec<JoinHandle<()>>,
    /// Where tiles come from, and what compares them with their checksums, if that is wanted.
    check: Option<(Vec<Span>, Checker)>,
}

/// What the consumer and the I/O threads share.
struct Shared {
    state: Mutex<State>,
    /// For I/O threads: there is room, or the end has come.
    room: Condvar,
    /// For the consumer: its tile is complete, or nothing is in flight any more, or a read has failed.
    ready: Condvar,
    recorder: Recorder,
}

struct State {
    schedule: Schedule,
    /// Reads that have been handed to I/O threads and have not landed.
    in_flight: usize,
    /// No new reads while the consumer rewinds.
    paused: bool,
    /// No new reads ever again.
    stopped: bool,
    failure: Option<Error>,
    stats: StreamStats,
}

impl Conveyor {
    /// Opens the files, finds the reader that works on each drive, allocates the memory and starts reading.
    ///
    /// `ring_bytes` is the memory for tiles that are not resident; more lets the drives run further ahead. For large
    /// sources, chunk size and depth are measured first, in a quarter of a second, unless `options` give either.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Checkpoint`] for files that cannot be opened or are too short for a tile,
    /// [`Error::Budget`] if the ring is smaller than the largest tile or there is not that much memory, and
    /// [`Error::Request`] for options that cannot be followed.
    pub fn start(source: &Source, tiles: Vec<TileRead>, ring_bytes: usize, options: &DiskOptions) -> Result<Conveyor> {
        Conveyor::start_recorded(source, tiles, ring_bytes, options, Recorder::default())
    }

    /// As [`Conveyor::start`]; `recorder` is told of every read.
    ///
    /// # Errors
    /// As [`Conveyor::start`].
    pub fn start_recorded(
        source: &Source,
        tiles: Vec<TileRead>,
        ring_bytes: usize,
        options: &DiskOptions,
        recorder: Recorder,
    ) -> Result<Conveyor> {
        Conveyor::open(source, &tiles, ring_bytes, options, recorder, Arc::new(|reader| reader))
    }

    /// As [`Conveyor::start`], with every reader inside what `wrap` makes of it.
    pub(crate) fn start_wrapped(
        source: &Source,
        tiles: &[TileRead],
        ring_bytes: usize,
        options: &DiskOptions,
        wrap: Arc<Wrap>,
    ) -> Result<Conveyor> {
        Conveyor::open(source, tiles, ring_bytes, options, Recorder::default(), wrap)
    }

    fn open(
        source: &Source,
        tiles: &[TileRead],
        ring_bytes: usize,
        options: &DiskOptions,
        recorder: Recorder,
        wrap: Arc<Wrap>,
    ) -> Result<Conveyor> {
        options.check()?;
        let geometry = Geometry::of(source)?;
        let align = geometry.align;
        check_tiles(source, tiles, &geometry)?;
        let (floor, ring_bytes) = (ring_floor(tiles, align), ring_len(tiles, ring_bytes, align));
        if ring_bytes < floor {
            let message = "bytes of memory for streaming do not hold the largest tile: at least";
            return Err(Error::Budget(format!("{ring_bytes} {message} {floor} bytes are needed")));
        }
        let drives = disk::open_drives(source, &geometry, options)?;
        let ring = Mapping::map(ring_bytes, true)?;
        let (ring, chunk, depths) = chunk_and_depths(&drives, tiles, ring, align, options)?;
        // Pages of the arena come with the first pass: preparing them all would delay its first read.
        let arena = Mapping::map(arena_len(tiles, align), false)?;
        let buffer = Arc::clone(ring.mapping());
        let huge_bytes = buffer.huge_bytes();
        if huge_bytes < ring.len() / 2 {
            let len = ring.len();
            tracing::warn!(
                "only {huge_bytes} of {len} bytes of the ring are on 2 MiB pages: reading may be much slower"
            );
        }
        let stats = StreamStats {
            bytes_read: 0,
            bytes_checked: 0,
            reads: 0,
            consumer_wait: Duration::ZERO,
            reader_wait: Duration::ZERO,
            ring_bytes: ring.len(),
            huge_bytes,
            resident_bytes: arena.len(),
            chunk_bytes: chunk,
            drives: drives.iter().zip(&depths).map(|(drive, &depth)| drive_stats(drive, depth)).collect(),
        };
        let memory = [Arc::clone(ring.mapping()), Arc::clone(arena.mapping())];
        let schedule = Schedule::new(tiles, ring, arena, chunk, align);
        let state = State { schedule, in_flight: 0, paused: false, stopped: false, failure: None, stats };
        let (state, room, ready) = (Mutex::new(state), Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { state, room, ready, recorder });
        let check = Checker::of(source).map(|checker| (tiles.iter().map(|tile| tile.span).collect(), checker));
        let mut conveyor = Conveyor { shared, memory, threads: Vec::new(), check };
        for (index, (drive, depth)) in drives.into_iter().zip(depths).enumerate() {
            conveyor.threads.extend(worker::launch(&conveyor.shared, index, &drive, depth, Some(&buffer), &wrap)?);
        }
        Ok(conveyor)
    }

    /// Waits for the next tile in order, which after the last is the first again. The tile is given back by dropping it;
    /// several may be held, though every one that is leaves less room to read ahead.
    ///
    /// # Errors
    /// [`Error::Read`] with file, offset and length of a read that failed, now or earlier. The conveyor is then of no
    /// further use.
    ///
    /// # Panics
    /// If the tiles that are held leave no room for the next, so that the caller would wait for itself.
    #[expect(clippy::should_implement_trait, reason = "there is no end, and errors are final")]
    pub fn next(&mut self) -> Result<Tile> {
        loop {
            if let Some(tile) = self.next_within(Duration::MAX)? {
                return Ok(tile);
            }
        }
    }

    /// The next tile if it is there already.
    ///
    /// # Errors
    /// As [`Conveyor::next`].
    pub fn try_next(&mut self) -> Result<Option<Tile>> {
        self.next_within(Duration::ZERO)
    }

    /// The next tile if it is there in time.
    ///
    /// # Errors
    /// As [`Conveyor::next`].
    pub fn next_within(&mut self, patience: Duration) -> Result<Option<Tile>> {
        let mut state = self.shared.lock();
        let since = Instant::now();
        let mut waited = false;
        loop {
            if let Some(failure) = &state.failure {
                return Err(repeat(failure));
            }
            let tile = state.schedule.take();
            let left = patience.saturating_sub(since.elapsed());
            if tile.is_some() || left.is_zero() {
                if waited {
                    state.stats.consumer_wait += since.elapsed();
                }
                drop(state);
                return tile.map(|lent| self.checked(lent)).transpose();
            }
            let stuck = state.in_flight == 0 && state.schedule.head_is_lent();
            assert!(!(stuck && patience == Duration::MAX), "the next tile is held by who asks for it");
            waited = true;
            let wake = self.shared.ready.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
            state = wake.0;
        }
    }

    /// Compares a tile with its checksums, if that is wanted.
    fn checked(&mut self, Lent { index, region, span }: Lent) -> Result<Tile> {
        let tile = Tile { shared: Arc::clone(&self.shared), index, region: Some(region), span };
        if let Some((spans, checker)) = &mut self.check
            && let Err(error) = checker.streamed(spans[index], &tile)
        {
            return Err(repeat(self.shared.lock().failure.insert(error)));
        }
        Ok(tile)
    }

    /// The memory that tiles lie in: the ring, and that of the tiles that stay here.
    pub(crate) fn memory(&self) -> &[Arc<Mapping>; 2] {
        &self.memory
    }

    /// Goes back to the first tile, after a pass that was not completed and all of whose tiles were given back. Waits for
    /// the reads in flight, whose bytes are dropped; does nothing if the next tile is the first anyway.
    ///
    /// # Errors
    /// As [`Conveyor::next`].
    pub fn rewind(&mut self) -> Result<()> {
        let mut state = self.shared.lock();
        if !state.schedule.at_start() {
            state.paused = true;
            while state.in_flight > 0 && state.failure.is_none() {
                state = wait(&self.shared.ready, state);
            }
            state.paused = false;
            if state.failure.is_none() {
                state.schedule.rewind();
            }
            self.shared.room.notify_all();
        }
        state.failure.as_ref().map_or(Ok(()), |failure| Err(repeat(failure)))
    }

    /// What has been done so far, and with what.
    pub fn stats(&self) -> StreamStats {
        let bytes_checked = self.check.as_ref().map_or(0, |(_, checker)| checker.bytes());
        StreamStats { bytes_checked, ..self.shared.lock().stats.clone() }
    }
}

impl Drop for Conveyor {
    /// Returns when every read in flight has landed.
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.room.notify_all();
        for thread in self.threads.drain(..) {
            // A panic has been reported as a failure by the thread itself.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// A panicking thread leaves a failure behind, which is what everybody else looks at: poisoning adds nothing.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, index: usize, region: Region) {
        self.lock().schedule.give_back(index, region);
        self.room.notify_all();
    }
}

impl Feed for Shared {
    fn next_read(&self, wait_for_room: bool) -> Option<Read> {
        let mut state = self.lock();
        loop {
            if state.stopped || state.failure.is_some() {
                return None;
            }
            let read = if state.paused { None } else { state.schedule.next_read() };
            if let Some(read) = read {
                state.in_flight += 1;
                self.recorder.read_started(Whose::Tile(read.token), read.file, read.offset);
                return Some(read);
            }
            if !wait_for_room {
                return None;
            }
            let since = Instant::now();
            state = wait(&self.room, state);
            state.stats.reader_wait += since.elapsed();
        }
    }

    fn landed(&self, drive: usize, read: Read, bytes: usize) {
        self.recorder.read_landed(Whose::Tile(read.token), read.file, read.offset, bytes as u64);
        let mut state = self.lock();
        state.stats.bytes_read += bytes as u64;
        state.stats.drives[drive].bytes_read += bytes as u64;
        state.stats.reads += 1;
        state.in_flight -= 1;
        let ready = state.schedule.landed(read);
        if ready || (state.paused && state.in_flight == 0) {
            self.ready.notify_one();
        }
    }

    fn fail(&self, error: Error) {
        self.lock().failure.get_or_insert(error);
        self.ready.notify_all();
        self.room.notify_all();
    }

    fn started(&self, drive: usize, registered: bool) {
        self.lock().stats.drives[drive].registered = registered;
    }
}

pub(super) fn wait<'a, T>(signal: &Condvar, state: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    signal.wait(state).unwrap_or_else(PoisonError::into_inner)
}

/// The bytes of one tile; gives its place in the ring back when dropped.
pub struct Tile {
    shared: Arc<Shared>,
    index: usize,
    /// `None` only while being dropped.
    region: Option<Region>,
    span: std::ops::Range<usize>,
}

impl Deref for Tile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.region.as_ref().expect("is there until dropped")[self.span.clone()]
    }
}

#[cfg(any(test, feature = "cuda"))]
impl Tile {
    /// Which of the tiles it is, in the order of a pass.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Gives the tile back as if it had not been taken, after a pass that was not completed: after
    /// [`rewind`](Conveyor::rewind), which has to follow, it comes again, even if it was to stay with its consumer.
    pub(crate) fn give_back_unused(mut self) {
        let region = self.region.take().expect("is there until dropped");
        self.shared.lock().schedule.give_back_unused(self.index, region);
    }
}

impl Drop for Tile {
    fn drop(&mut self) {
        if let Some(region) = self.region.take() {
            self.shared.give_back(self.index, region);
        }
    }
}

fn check_tiles(source: &Source, tiles: &[TileRead], geometry: &Geometry) -> Result<()> {
    if tiles.is_empty() {
        return Err(Error::Request("there is nothing to stream: no tiles".into()));
    }
    tiles.iter().try_for_each(|tile| check_span(source, tile.span, geometry))
}

/// Refuses a span outside of its file.
pub(super) fn check_span(source: &Source, span: Span, geometry: &Geometry) -> Result<()> {
    let Some(path) = source.files.get(span.file.0 as usize) else {
        let (file, files) = (span.file.0, source.files.len());
        return Err(Error::Request(format!("a tile of file {file}: there are {files} files")));
    };
    let len = geometry.lens[span.file.0 as usize];
    if span.len == 0 || span.offset.checked_add(span.len).is_none_or(|end| end > len) {
        let problem =
            format!("is {len} bytes long, too short for a tile of {} bytes at offset {}", span.len, span.offset);
        return Err(Error::Checkpoint { path: path.clone(), problem });
    }
    Ok(())
}

/// The chunk size for all drives, and the depth for each: as told, or measured in the ring's memory where that is worth
/// it, or the defaults.
fn chunk_and_depths(
    drives: &[Drive],
    tiles: &[TileRead],
    mut ring: Region,
    align: usize,
    options: &DiskOptions,
) -> Result<(Region, usize, Vec<usize>)> {
    let mut chunk = options.chunk_bytes.unwrap_or(DEFAULT_CHUNK).next_multiple_of(align);
    let mut depths = vec![options.depth.unwrap_or(DEFAULT_DEPTH); drives.len()];
    let told = options.chunk_bytes.is_some() || options.depth.is_some();
    if !told && tiles.iter().map(|tile| tile.span.len).sum::<u64>() >= WORTH_TUNING {
        // The last drive measured is the original, whose chunk size is used for all.
        for (drive, depth) in drives.iter().zip(&mut depths).rev() {
            (ring, chunk, *depth) = disk::tune(drive, ring, TUNING / drives.len() as u32)?;
        }
    }
    Ok((ring, chunk, depths))
}

pub(super) fn drive_stats(drive: &Drive, depth: usize) -> DriveStats {
    DriveStats { reader: drive.kind, depth, registered: false, bytes_read: 0 }
}

/// The same error once more: it is told to every call after the first, too.
pub(super) fn repeat(error: &Error) -> Error {
    let copy = |source: &std::io::Error| match source.raw_os_error() {
        Some(code) => std::io::Error::from_raw_os_error(code),
        None => std::io::Error::new(source.kind(), source.to_string()),
    };
    match error {
        Error::Read { path, offset, len, source } => {
            Error::Read { path: path.clone(), offset: *offset, len: *len, source: copy(source) }
        }
        Error::Tensor { path, tensor, problem } => {
            Error::Tensor { path: path.clone(), tensor: tensor.clone(), problem: problem.clone() }
        }
        Error::Io { path, doing, source } => Error::Io { path: path.clone(), doing, source: copy(source) },
        other => Error::Request(other.to_string()),
    }
}
