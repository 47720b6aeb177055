//! The conveyor against misbehaving drives: short reads, interruptions, errors in mid pass, slow and reordered
//! completions, each injected between a real reader and the thread that drives it.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::io::Errno;
use tempfile::TempDir;

use super::worker::Wrap;
use super::*;
use crate::checkpoint::FileId;
use crate::disk::{DiskOptions, Landed, Read, Reader, Source};
use crate::error::Error;
use crate::plan::Tier;

pub(super) const KINDS: [ReaderKind; 3] = [ReaderKind::Uring, ReaderKind::Pread, ReaderKind::Buffered];

/// Files of noise with odd lengths, in the build directory: that is a real disk more often than the temporary directory.
pub(super) struct Fixture {
    _dir: TempDir,
    pub source: Source,
    bytes: Vec<Vec<u8>>,
}

impl Fixture {
    pub fn new(lens: &[usize]) -> Fixture {
        let dir = TempDir::new_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let (mut files, mut bytes) = (Vec::new(), Vec::new());
        for (i, &len) in lens.iter().enumerate() {
            let mut noise = vec![0; len];
            rng.fill_bytes(&mut noise);
            let path = dir.path().join(format!("{i}.bin"));
            std::fs::File::create(&path).unwrap().write_all(&noise).unwrap();
            files.push(path);
            bytes.push(noise);
        }
        Fixture { _dir: dir, source: Source { files, ..Source::default() }, bytes }
    }

    /// `count` tiles anywhere, of 1 byte to `longest`, every now and then reaching the very end of a file.
    fn tiles(&self, count: usize, longest: usize, resident: f64, rng: &mut ChaCha8Rng) -> Vec<TileRead> {
        let tile = |_| {
            let file = rng.random_range(0..self.bytes.len());
            let file_len = self.bytes[file].len();
            let len = rng.random_range(1..=longest.min(file_len));
            let last = file_len - len;
            let offset = if rng.random_bool(0.2) { last } else { rng.random_range(0..=last) };
            let span = Span { file: FileId(file as u32), offset: offset as u64, len: len as u64 };
            TileRead { span, tier: if rng.random_bool(resident) { Tier::Host } else { Tier::Disk } }
        };
        (0..count).map(tile).collect()
    }

    fn expected(&self, tile: TileRead) -> &[u8] {
        self.span(tile.span)
    }

    pub fn span(&self, span: Span) -> &[u8] {
        let Span { file, offset, len } = span;
        &self.bytes[file.0 as usize][offset as usize..][..len as usize]
    }
}

/// A consumer who has a tile that is to stay with it, and could not keep it, says so when the pass is given up: it comes again,
/// wherever in the pass that was, while the tiles that were kept do not.
#[test]
fn a_tile_given_back_unused_comes_again() {
    let fixture = Fixture::new(&[900_000]);
    let span = |i: u64| Span { file: FileId(0), offset: i * 70_001, len: 60_000 };
    let tiers = [Tier::Device, Tier::Disk, Tier::Device, Tier::Host, Tier::Device];
    let tiles: Vec<_> = (0..).zip(tiers).map(|(i, tier)| TileRead { span: span(i), tier }).collect();
    let stays = |index: usize| tiles[index].tier == Tier::Device;
    for unused in 0..2 * tiles.len() {
        let mut conveyor = Conveyor::start(&fixture.source, tiles.clone(), 4 << 20, &DiskOptions::default()).unwrap();
        let mut kept = vec![false; tiles.len()];
        for _ in 0..unused {
            let tile = conveyor.next().unwrap();
            kept[tile.index()] = stays(tile.index());
        }
        let tile = conveyor.next().unwrap();
        let again = tile.index();
        assert!(!kept[again]);
        tile.give_back_unused();
        conveyor.rewind().unwrap();
        for pass in 0..2 {
            for index in (0..tiles.len()).filter(|index| pass == 0 || !stays(*index)) {
                if kept[index] {
                    continue;
                }
                let tile = conveyor.next().unwrap();
                assert_eq!(tile.index(), index, "pass {pass}, tile {again} given back after {unused}");
                assert_eq!(*tile, *fixture.expected(tiles[index]));
            }
        }
    }
}

#[derive(Clone, Copy)]
pub(super) enum Fault {
    None,
    /// Only so many bytes come, though more could.
    Short(usize),
    Fails(Errno),
    Slow(Duration),
}

/// A reader whose completions come out of order, and damaged as `fault` says for each read.
struct Faulty<F> {
    inner: Box<dyn Reader>,
    fault: F,
    rng: ChaCha8Rng,
    held: Vec<Landed>,
    in_flight: usize,
}

impl<F: FnMut(&Read) -> Fault> Reader for Faulty<F> {
    fn depth(&self) -> usize {
        self.inner.depth()
    }

    fn submit(&mut self, read: Read) {
        self.in_flight += 1;
        self.inner.submit(read);
    }

    /// Waits until at least half of what is in flight is there, then lets go of some of it in random order.
    fn wait(&mut self, landed: &mut Vec<Landed>) -> io::Result<()> {
        while self.held.len() * 2 < self.in_flight {
            self.inner.wait(&mut self.held)?;
        }
        self.held.shuffle(&mut self.rng);
        let let_go = self.rng.random_range(1..=self.held.len());
        self.in_flight -= let_go;
        for mut one in self.held.drain(..let_go) {
            match (self.fault)(&one.read) {
                Fault::None => {}
                Fault::Slow(time) => std::thread::sleep(time),
                Fault::Fails(errno) => {
                    one.read.region[one.read.filled..].fill(0xEE);
                    one.result = Err(errno.into());
                }
                Fault::Short(most) => {
                    let bytes = one.result.unwrap().min(most);
                    one.read.region[one.read.filled + bytes..].fill(0xEE);
                    one.result = Ok(bytes);
                }
            }
            landed.push(one);
        }
        Ok(())
    }
}

/// Puts a [`Faulty`] in front of every reader, each with its own random numbers and a `fault` made from them.
pub(super) fn faulty<F: FnMut(&Read) -> Fault + 'static>(
    seed: u64,
    make: impl Fn(ChaCha8Rng) -> F + Send + Sync + 'static,
) -> Arc<Wrap> {
    let threads = AtomicU64::new(0);
    Arc::new(move |inner| {
        let rng = ChaCha8Rng::seed_from_u64(seed.wrapping_add(threads.fetch_add(1, Ordering::Relaxed)));
        let fault = make(rng.clone());
        Box::new(Faulty { inner, fault, rng, held: Vec::new(), in_flight: 0 })
    })
}

pub(super) fn small_chunks(kind: ReaderKind, depth: usize) -> DiskOptions {
    DiskOptions { reader: Some(kind), chunk_bytes: Some(64 << 10), depth: Some(depth), ..DiskOptions::default() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever passes in the drives, the tiles, the ring, the share of resident tiles and the consumer's changes of mind:
    /// every tile holds exactly its span's bytes.
    #[test]
    fn every_tile_is_right_whatever_drives_do(
        seed: u64,
        kind in prop::sample::select(&KINDS[..]),
        count in 1usize..24,
        depth in 1usize..9,
        extra_ring in 0usize..6 << 20,
        resident in prop::sample::select(&[0.0, 0.3, 1.0][..]),
        faults in 0.0f64..0.4,
    ) {
        let fixture = Fixture::new(&[3_000_001, 4096, 577, 1 << 20]);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let tiles = fixture.tiles(count, 1 << 20, resident, &mut rng);
        let ring = ring_floor(&tiles, 4096) + extra_ring;
        let wrap = faulty(seed, move |mut rng| move |_: &Read| match rng.random_bool(faults) {
            false => Fault::None,
            true => match rng.random_range(0..4) {
                0 => Fault::Short(rng.random_range(0..64 << 10)),
                1 => Fault::Fails(Errno::INTR),
                2 => Fault::Fails(Errno::AGAIN),
                _ => Fault::Slow(Duration::from_micros(rng.random_range(0..500))),
            },
        });
        let options = small_chunks(kind, depth);
        let mut conveyor = Conveyor::start_wrapped(&fixture.source, &tiles, ring, &options, wrap).unwrap();
        for _ in 0..4 {
            let stop = if rng.random_bool(0.5) { rng.random_range(0..=count) } else { count };
            for (i, &tile) in tiles[..stop].iter().enumerate() {
                let got = conveyor.next().unwrap();
                prop_assert!(*got == *fixture.expected(tile), "tile {} {:?}", i, tile);
            }
            conveyor.rewind().unwrap();
        }
    }

    /// However a pass is cut short, dropping the conveyor returns, with reads in flight or not.
    #[test]
    fn drop_returns_at_any_moment(seed: u64, kind in prop::sample::select(&KINDS[..]), taken in 0usize..20) {
        let fixture = Fixture::new(&[2_000_000]);
        let tiles = fixture.tiles(10, 1 << 20, 0.2, &mut ChaCha8Rng::seed_from_u64(seed));
        let wrap = faulty(seed, |_| |_: &Read| Fault::Slow(Duration::from_micros(200)));
        let mut conveyor =
            Conveyor::start_wrapped(&fixture.source, &tiles, 4 << 20, &small_chunks(kind, 6), wrap).unwrap();
        for &tile in tiles.iter().cycle().take(taken) {
            prop_assert!(*conveyor.next().unwrap() == *fixture.expected(tile));
        }
    }
}

/// An error of the drive at the n-th read reaches the consumer with file, offset and length, for good, and nothing hangs.
#[test]
fn error_in_mid_pass_names_file_and_offset() {
    let fixture = Fixture::new(&[3_000_000]);
    let tile = |i: u64| TileRead {
        span: Span { file: FileId(0), offset: i * 300_000, len: 300_000 },
        tier: if i == 3 { Tier::Host } else { Tier::Disk },
    };
    let tiles: Vec<_> = (0..10).map(tile).collect();
    for kind in KINDS {
        for n in [0, 1, 5, 17, 60, 100] {
            let count = AtomicU64::new(0);
            let failed_at = Arc::new(AtomicU64::new(u64::MAX));
            let (count, log) = (Arc::new(count), Arc::clone(&failed_at));
            let wrap = faulty(n, move |_| {
                let (count, log) = (Arc::clone(&count), Arc::clone(&log));
                move |read: &Read| match count.fetch_add(1, Ordering::Relaxed) == n {
                    true => {
                        log.store(read.offset, Ordering::Relaxed);
                        Fault::Fails(Errno::IO)
                    }
                    false => Fault::None,
                }
            });
            let options = small_chunks(kind, 8);
            let mut conveyor = Conveyor::start_wrapped(&fixture.source, &tiles, 2 << 20, &options, wrap).unwrap();
            let mut taken = tiles.iter().cycle();
            let error = loop {
                match conveyor.next() {
                    Ok(got) => assert!(*got == *fixture.expected(*taken.next().unwrap())),
                    Err(error) => break error,
                }
            };
            let Error::Read { path, offset, len, source } = &error else { panic!("{error}") };
            assert_eq!(path, &fixture.source.files[0]);
            assert_eq!(*offset, failed_at.load(Ordering::Relaxed));
            assert!((1..=64 << 10).contains(len));
            assert_eq!(Errno::from_io_error(source), Some(Errno::IO));
            assert_eq!(conveyor.next().err().unwrap().to_string(), error.to_string());
            assert_eq!(conveyor.rewind().unwrap_err().to_string(), error.to_string());
        }
    }
}

/// A drive that says "again" for ever is given up on.
#[test]
fn endless_eagain_becomes_an_error() {
    let fixture = Fixture::new(&[100_000]);
    let tiles = [TileRead { span: Span { file: FileId(0), offset: 5, len: 50_000 }, tier: Tier::Disk }];
    let wrap = faulty(1, |_| |_: &Read| Fault::Fails(Errno::AGAIN));
    let options = small_chunks(ReaderKind::Uring, 2);
    let mut conveyor = Conveyor::start_wrapped(&fixture.source, &tiles, 2 << 20, &options, wrap).unwrap();
    let Err(Error::Read { source, .. }) = conveyor.next() else { panic!("no error") };
    assert_eq!(Errno::from_io_error(&source), Some(Errno::AGAIN));
}

/// A panic on an I/O thread is an error for the consumer, not a hang.
#[test]
fn panic_of_a_reader_becomes_an_error() {
    let fixture = Fixture::new(&[1_000_000]);
    let tiles = [TileRead { span: Span { file: FileId(0), offset: 0, len: 500_000 }, tier: Tier::Disk }];
    for kind in KINDS {
        let wrap = faulty(1, |_| |_: &Read| panic!("injected"));
        let mut conveyor =
            Conveyor::start_wrapped(&fixture.source, &tiles, 2 << 20, &small_chunks(kind, 3), wrap).unwrap();
        assert!(matches!(conveyor.next(), Err(Error::Request(text)) if text.contains("panicked")));
    }
}

/// Reads run ahead into the next pass before the consumer has taken anything, and stop when the ring is full.
#[test]
fn drives_read_ahead_across_the_pass_boundary() {
    let fixture = Fixture::new(&[1 << 20]);
    let tile = |i: u64| TileRead { span: Span { file: FileId(0), offset: i << 18, len: 1 << 18 }, tier: Tier::Disk };
    let tiles: Vec<_> = (0..4).map(tile).collect();
    let options = small_chunks(ReaderKind::Uring, 4);
    let mut conveyor = Conveyor::start(&fixture.source, tiles.clone(), 2 << 20, &options).unwrap();
    // Three of four tiles: with reads issued one pass ahead of the consumer, tiles 0 to 2 of the next pass follow.
    for &tile in &tiles[..3] {
        assert!(*conveyor.next().unwrap() == *fixture.expected(tile));
    }
    let read_ahead = || {
        std::thread::sleep(Duration::from_millis(1));
        conveyor.stats().bytes_read == 7 << 18
    };
    assert!((0..20_000).any(|_| read_ahead()), "nothing is read ahead of the consumer");
    for &tile in tiles[3..].iter().chain(&tiles) {
        assert!(*conveyor.next().unwrap() == *fixture.expected(tile));
    }
}

/// Resident tiles are read once; the others once per pass.
#[test]
fn resident_tiles_are_read_once() {
    let fixture = Fixture::new(&[1 << 20]);
    let tile = |i: u64| TileRead {
        span: Span { file: FileId(0), offset: i << 17, len: 1 << 17 },
        tier: if i.is_multiple_of(2) { Tier::Host } else { Tier::Disk },
    };
    let tiles: Vec<_> = (0..8).map(tile).collect();
    for kind in KINDS {
        let options = small_chunks(kind, 4);
        let mut conveyor = Conveyor::start(&fixture.source, tiles.clone(), 2 << 20, &options).unwrap();
        for &tile in tiles.iter().cycle().take(8 * 5) {
            assert!(*conveyor.next().unwrap() == *fixture.expected(tile));
        }
        // Up to one more pass of streamed tiles may have been read ahead.
        let read = conveyor.stats().bytes_read;
        let (kept, streamed) = (4 << 17, 4 << 17);
        assert!((kept + 5 * streamed..=kept + 6 * streamed).contains(&read), "{read}");
    }
}
