//! Tiles on demand: which experts a pass needs is known only when their router has chosen, so their tiles are read when
//! they are asked for, into memory that keeps what was used for as long as it can.

use std::ops::{Index, Range};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::cache::{Cache, Lent, tile_len};
use super::conveyor::{check_span, drive_stats, repeat, wait};
use super::worker::{self, Feed, Wrap};
use super::{DemandStats, DemandTile};
use crate::disk::memory::{HUGE_PAGE, Mapping};
use crate::disk::{self, Checker, DEFAULT_CHUNK, DEFAULT_DEPTH, DiskOptions, Geometry, Read, Source};
use crate::error::{Error, Result};
use crate::profile::{Recorder, Whose};

/// Reads the tiles of experts when they are asked for, and keeps them while their memory is not needed for others.
///
/// A request is an ordered list of tiles; all that are not in memory are queued for reading at once, as far as there are
/// blocks, and the consumer takes them in that order. It may hold several at a time, fewer than there are blocks.
pub struct Experts {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Where tiles come from, and what compares them with their checksums, if that is wanted.
    check: Option<(Vec<DemandTile>, Checker)>,
    #[cfg(feature = "cuda")]
    memory: Arc<Mapping>,
}

/// What the consumer and the I/O threads share.
struct Shared {
    state: Mutex<State>,
    /// For I/O threads: there may be something to read, or the end has come.
    work: Condvar,
    /// For the consumer: its tile is complete, or a read has failed.
    ready: Condvar,
    recorder: Recorder,
}

struct State {
    cache: Cache,
    /// No new reads ever again.
    stopped: bool,
    failure: Option<Error>,
    stats: DemandStats,
}

/// Bytes of the blocks in which these tiles are kept: all equal, since any of them may hold any tile.
pub fn block_bytes(tiles: &[DemandTile], align: usize) -> usize {
    tiles.iter().map(|tile| tile_len(tile, align)).max().unwrap_or(0)
}

impl Experts {
    /// Opens the files, takes `bytes` of memory (rounded up to 2 MiB, and at most what all tiles need), and waits for
    /// requests.
    ///
    /// # Errors
    /// As [`Conveyor::start`](super::Conveyor::start); the memory must hold at least two tiles.
    pub fn start(source: &Source, tiles: &[DemandTile], bytes: usize, options: &DiskOptions) -> Result<Experts> {
        Experts::start_recorded(source, tiles, bytes, options, Recorder::default())
    }

    /// As [`Experts::start`]; `recorder` is told of every read.
    ///
    /// # Errors
    /// As [`Experts::start`].
    pub fn start_recorded(
        source: &Source,
        tiles: &[DemandTile],
        bytes: usize,
        options: &DiskOptions,
        recorder: Recorder,
    ) -> Result<Experts> {
        Experts::open(source, tiles, bytes, options, recorder, &(Arc::new(|reader| reader) as Arc<Wrap>))
    }

    /// As [`Experts::start`], with every reader inside what `wrap` makes of it.
    #[cfg(test)]
    pub(super) fn start_wrapped(
        source: &Source,
        tiles: &[DemandTile],
        bytes: usize,
        options: &DiskOptions,
        wrap: &Arc<Wrap>,
    ) -> Result<Experts> {
        Experts::open(source, tiles, bytes, options, Recorder::default(), wrap)
    }

    fn open(
        source: &Source,
        tiles: &[DemandTile],
        bytes: usize,
        options: &DiskOptions,
        recorder: Recorder,
        wrap: &Arc<Wrap>,
    ) -> Result<Experts> {
        options.check()?;
        let geometry = Geometry::of(source)?;
        let align = geometry.align;
        for span in tiles.iter().flat_map(|tile| &tile.spans) {
            check_span(source, *span, &geometry)?;
        }
        let block = block_bytes(tiles, align);
        if block == 0 {
            return Err(Error::Request("there are no experts to stream: no tiles".into()));
        }
        let bytes = bytes.min(block.saturating_mul(tiles.len())).next_multiple_of(HUGE_PAGE);
        // One to be read while another is used.
        let floor = block * tiles.len().min(2);
        if bytes < floor {
            let message = "bytes of memory for experts do not hold two tiles: at least";
            return Err(Error::Budget(format!("{bytes} {message} {floor} bytes are needed")));
        }
        let drives = disk::open_drives(source, &geometry, options)?;
        // Pages come with the first use: preparing a large cache would delay the first read. For the same reason it is not
        // registered with the kernel, which saves a little of each read and costs every page of it before the first.
        let memory = Mapping::map(bytes, false)?;
        #[cfg(feature = "cuda")]
        let mapping = Arc::clone(memory.mapping());
        let chunk = options.chunk_bytes.unwrap_or(DEFAULT_CHUNK).next_multiple_of(align);
        let depth = options.depth.unwrap_or(DEFAULT_DEPTH);
        let stats = DemandStats {
            bytes_read: 0,
            bytes_checked: 0,
            reads: 0,
            bytes_used: 0,
            bytes_hit: 0,
            consumer_wait: Duration::ZERO,
            meanwhile: 0,
            memory_bytes: memory.len(),
            blocks: memory.len() / block,
            drives: drives.iter().map(|drive| drive_stats(drive, depth)).collect(),
        };
        let cache = Cache::new(tiles, memory, block, chunk, align);
        let state = State { cache, stopped: false, failure: None, stats };
        let (work, ready) = (Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { state: Mutex::new(state), work, ready, recorder });
        let mut experts = Experts {
            shared,
            threads: Vec::new(),
            check: Checker::of(source).map(|checker| (tiles.to_vec(), checker)),
            #[cfg(feature = "cuda")]
            memory: mapping,
        };
        for (index, drive) in drives.iter().enumerate() {
            experts.threads.extend(worker::launch(&experts.shared, index, drive, depth, None, wrap)?);
        }
        Ok(experts)
    }

    /// Asks for tiles of one layer, by their index in the list given at the start, each once; to be taken in this order.
    /// All tiles of the request before must have been taken.
    pub fn request(&mut self, layer: usize, tiles: impl IntoIterator<Item = usize>) {
        self.shared.lock().cache.request(layer, tiles);
        self.shared.work.notify_all();
    }

    /// Waits for the next tile of the request. It is given back by dropping it.
    ///
    /// # Errors
    /// [`Error::Read`] with file, offset and length of a read that failed, now or earlier. Nothing more can be had then.
    #[expect(clippy::should_implement_trait, reason = "a request has no end that `next` could tell")]
    pub fn next(&mut self) -> Result<ExpertTile> {
        loop {
            if let Some(tile) = self.next_within(Duration::MAX)? {
                return Ok(tile);
            }
        }
    }

    /// The next tile of the request if it is there already.
    ///
    /// # Errors
    /// As [`Experts::next`].
    #[cfg(feature = "cuda")]
    pub(crate) fn try_next(&mut self) -> Result<Option<ExpertTile>> {
        self.next_within(Duration::ZERO)
    }

    /// The next tile of the request if it is there in time.
    ///
    /// # Errors
    /// As [`Experts::next`].
    pub fn next_within(&mut self, patience: Duration) -> Result<Option<ExpertTile>> {
        let mut state = self.shared.lock();
        let since = Instant::now();
        let mut waited = false;
        loop {
            if let Some(failure) = &state.failure {
                return Err(repeat(failure));
            }
            let lent = state.cache.take();
            let left = patience.saturating_sub(since.elapsed());
            if lent.is_some() || left.is_zero() {
                if waited {
                    state.stats.consumer_wait += since.elapsed();
                }
                drop(state);
                return lent.map(|lent| self.checked(lent)).transpose();
            }
            waited = true;
            let wake = self.shared.ready.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
            state = wake.0;
        }
    }

    /// Compares a tile with its checksums, if that is wanted.
    fn checked(&mut self, Lent { tile: index, region, parts }: Lent) -> Result<ExpertTile> {
        let tile = ExpertTile { shared: Arc::clone(&self.shared), region: Some(region), parts };
        if let Some((tiles, checker)) = &mut self.check {
            let mut spans = tiles[index].spans.iter().enumerate();
            if let Err(error) = spans.try_for_each(|(i, span)| checker.streamed(*span, &tile[i])) {
                return Err(repeat(self.shared.lock().failure.insert(error)));
            }
        }
        Ok(tile)
    }

    /// Notes that the consumer needed a tile of so many bytes which it still had.
    #[cfg(feature = "cuda")]
    pub(crate) fn had(&mut self, bytes: u64) {
        self.shared.lock().cache.had(bytes);
    }

    /// Notes that so many tiles of other weights were brought nearer while the consumer waited for one of these.
    #[cfg(feature = "cuda")]
    pub(crate) fn meanwhile(&mut self, tiles: u64) {
        self.shared.lock().stats.meanwhile += tiles;
    }

    /// The memory that tiles are read into.
    #[cfg(feature = "cuda")]
    pub(crate) fn memory(&self) -> &Arc<Mapping> {
        &self.memory
    }

    /// Forgets what was asked for and not taken, after a pass that was not completed. What is being read will be kept.
    ///
    /// # Errors
    /// As [`Experts::next`].
    pub fn cancel(&mut self) -> Result<()> {
        let mut state = self.shared.lock();
        state.cache.cancel();
        state.failure.as_ref().map_or(Ok(()), |failure| Err(repeat(failure)))
    }

    /// What has been done so far, and with what.
    pub fn stats(&self) -> DemandStats {
        let state = self.shared.lock();
        let uses = state.cache.uses();
        let bytes_checked = self.check.as_ref().map_or(0, |(_, checker)| checker.bytes());
        DemandStats { bytes_checked, bytes_used: uses.taken, bytes_hit: uses.hits, ..state.stats.clone() }
    }
}

impl Drop for Experts {
    /// Returns when every read in flight has landed.
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.work.notify_all();
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
}

impl Feed for Shared {
    fn next_read(&self, wait_for_room: bool) -> Option<Read> {
        let mut state = self.lock();
        loop {
            if state.stopped || state.failure.is_some() {
                return None;
            }
            match state.cache.next_read() {
                None if wait_for_room => state = wait(&self.work, state),
                None => return None,
                Some(read) => {
                    self.recorder.read_started(Whose::Expert(read.token), read.file, read.offset);
                    return Some(read);
                }
            }
        }
    }

    fn landed(&self, drive: usize, read: Read, bytes: usize) {
        self.recorder.read_landed(Whose::Expert(read.token), read.file, read.offset, bytes as u64);
        let mut state = self.lock();
        state.stats.bytes_read += bytes as u64;
        state.stats.drives[drive].bytes_read += bytes as u64;
        state.stats.reads += 1;
        if state.cache.landed(read) {
            self.ready.notify_one();
        }
    }

    fn fail(&self, error: Error) {
        self.lock().failure.get_or_insert(error);
        self.ready.notify_all();
        self.work.notify_all();
    }

    fn started(&self, drive: usize, registered: bool) {
        self.lock().stats.drives[drive].registered = registered;
    }
}

/// The bytes of one tile, span by span; its memory may be used for others when it is dropped.
pub struct ExpertTile {
    shared: Arc<Shared>,
    /// `None` only while being dropped.
    region: Option<Arc<crate::disk::memory::Region>>,
    parts: Vec<Range<usize>>,
}

impl Index<usize> for ExpertTile {
    type Output = [u8];

    /// The bytes of one of the tile's spans.
    fn index(&self, span: usize) -> &[u8] {
        &self.region.as_ref().expect("is there until dropped")[self.parts[span].clone()]
    }
}

impl Drop for ExpertTile {
    fn drop(&mut self) {
        // First the share, then the lock: whoever looks for a block after this sees that nobody holds it.
        self.region = None;
        drop(self.shared.lock());
        self.shared.work.notify_all();
    }
}
