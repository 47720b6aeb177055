//! Tiles on demand: right bytes whatever drives do and whatever was asked for, failures that end a call and not the
//! process, and a cache that keeps what is worth keeping.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::io::Errno;

use super::cache::Cache;
use super::tests::{Fault, Fixture, KINDS, faulty, small_chunks};
use super::*;
use crate::checkpoint::FileId;
use crate::disk::memory::Mapping;
use crate::disk::{DiskOptions, Read};
use crate::error::Error;

fn span(file: u32, offset: u64, len: u64) -> Span {
    Span { file: FileId(file), offset, len }
}

/// `layers × experts × tiles` tiles anywhere in the second file, each with a few bytes of the first.
fn tiles(layers: usize, experts: usize, each: usize, rng: &mut ChaCha8Rng) -> Vec<DemandTile> {
    let mut tile = |layer, expert| {
        let len = rng.random_range(1..=200_000);
        let offset = if rng.random_bool(0.1) { 1_000_001 - len } else { rng.random_range(0..=1_000_001 - len) };
        let small = rng.random_range(1..=577);
        let spans = match rng.random_bool(0.5) {
            true => vec![span(1, offset, len)],
            false => vec![span(1, offset, len), span(0, 577 - small, small)],
        };
        DemandTile { spans, layer, expert }
    };
    let places = (0..layers).flat_map(|layer| (0..experts).map(move |expert| (layer, expert)));
    places.flat_map(|place| std::iter::repeat_n(place, each)).map(|(layer, expert)| tile(layer, expert)).collect()
}

/// Checks the tile that comes next.
fn take(experts: &mut Experts, fixture: &Fixture, wanted: &DemandTile) -> ExpertTile {
    let tile = experts.next().unwrap();
    for (i, span) in wanted.spans.iter().enumerate() {
        assert!(tile[i] == *fixture.span(*span), "span {i} of {wanted:?}");
    }
    tile
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever passes in the drives, the memory, the requests, the tiles held and the consumer's changes of mind: every
    /// tile holds exactly its spans' bytes.
    #[test]
    fn every_tile_is_right_whatever_drives_do(
        seed: u64,
        kind in prop::sample::select(&KINDS[..]),
        depth in 1usize..9,
        blocks in 2usize..20,
        faults in 0.0f64..0.4,
    ) {
        let fixture = Fixture::new(&[577, 1_000_001]);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (layers, experts, each) = (3, 4, 2);
        let tiles = tiles(layers, experts, each, &mut rng);
        let wrap = faulty(seed, move |mut rng| move |_: &Read| match rng.random_bool(faults) {
            false => Fault::None,
            true => match rng.random_range(0..4) {
                0 => Fault::Short(rng.random_range(0..64 << 10)),
                1 => Fault::Fails(Errno::INTR),
                2 => Fault::Fails(Errno::AGAIN),
                _ => Fault::Slow(Duration::from_micros(rng.random_range(0..500))),
            },
        });
        let bytes = blocks * block_bytes(&tiles, 4096);
        let mut stream =
            Experts::start_wrapped(&fixture.source, &tiles, bytes, &small_chunks(kind, depth), &wrap).unwrap();
        for pass in 0..4 {
            for layer in 0..layers {
                let mut chosen: Vec<_> = (layer * experts * each..(layer + 1) * experts * each).collect();
                chosen.shuffle(&mut rng);
                chosen.truncate(rng.random_range(0..=chosen.len()));
                stream.request(layer, chosen.iter().copied());
                let stop = if pass == 2 { rng.random_range(0..=chosen.len()) } else { chosen.len() };
                let mut held = std::collections::VecDeque::new();
                for &tile in &chosen[..stop] {
                    held.push_back(take(&mut stream, &fixture, &tiles[tile]));
                    if held.len() == stream.stats().blocks.min(4) - 1 {
                        held.pop_front();
                    }
                }
                if stop < chosen.len() {
                    stream.cancel().unwrap();
                }
            }
        }
        let stats = stream.stats();
        prop_assert!(stats.bytes_hit <= stats.bytes_used);
        prop_assert_eq!(stats.memory_bytes, bytes.min(block_bytes(&tiles, 4096) * tiles.len()).next_multiple_of(2 << 20));
    }

    /// However a request is left, dropping everything returns, with reads in flight or not, tiles held or not.
    #[test]
    fn drop_returns_at_any_moment(seed: u64, kind in prop::sample::select(&KINDS[..]), taken in 0usize..8) {
        let fixture = Fixture::new(&[577, 1_000_001]);
        let tiles = tiles(1, 4, 2, &mut ChaCha8Rng::seed_from_u64(seed));
        let wrap = faulty(seed, |_| |_: &Read| Fault::Slow(Duration::from_micros(200)));
        let bytes = 8 * block_bytes(&tiles, 4096);
        let mut stream =
            Experts::start_wrapped(&fixture.source, &tiles, bytes, &small_chunks(kind, 6), &wrap).unwrap();
        stream.request(0, 0..8);
        let held: Vec<_> = tiles[..taken].iter().map(|tile| take(&mut stream, &fixture, tile)).collect();
        drop(stream);
        for (tile, wanted) in held.iter().zip(&tiles) {
            prop_assert!(tile[0] == *fixture.span(wanted.spans[0]));
        }
    }
}

/// An error of the drive reaches the consumer with file and offset, for good, and nothing hangs.
#[test]
fn a_failed_read_names_file_and_offset() {
    let fixture = Fixture::new(&[3_000_000]);
    let tile = |i: u64| DemandTile { spans: vec![span(0, i * 300_000, 300_000)], layer: 0, expert: i as usize };
    let tiles: Vec<_> = (0..10).map(tile).collect();
    for kind in KINDS {
        for n in [0, 3, 20] {
            let (count, failed_at) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(u64::MAX)));
            let log = Arc::clone(&failed_at);
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
            let mut stream =
                Experts::start_wrapped(&fixture.source, &tiles, 2 << 20, &small_chunks(kind, 8), &wrap).unwrap();
            stream.request(0, 0..10);
            let error = (0..10).find_map(|_| stream.next().err()).expect("one read fails");
            let Error::Read { path, offset, .. } = &error else { panic!("{error}") };
            assert_eq!((path, *offset), (&fixture.source.files[0], failed_at.load(Ordering::Relaxed)));
            assert_eq!(stream.next().err().unwrap().to_string(), error.to_string());
            assert_eq!(stream.cancel().unwrap_err().to_string(), error.to_string());
        }
    }
}

#[test]
fn a_panic_of_a_reader_becomes_an_error() {
    let fixture = Fixture::new(&[1_000_000]);
    let tiles = [DemandTile { spans: vec![span(0, 0, 500_000)], layer: 0, expert: 0 }];
    for kind in KINDS {
        let wrap = faulty(1, |_| |_: &Read| panic!("injected"));
        let mut stream =
            Experts::start_wrapped(&fixture.source, &tiles, 4 << 20, &small_chunks(kind, 3), &wrap).unwrap();
        stream.request(0, [0]);
        assert!(matches!(stream.next(), Err(Error::Request(text)) if text.contains("panicked")));
    }
}

/// All missing tiles of a request are read before the first is taken, and what is in memory is not read again.
#[test]
fn a_request_is_read_at_once_and_kept() {
    let fixture = Fixture::new(&[1 << 20]);
    let tile = |i: u64| DemandTile { spans: vec![span(0, i << 16, 1 << 16)], layer: 0, expert: i as usize };
    let tiles: Vec<_> = (0..16).map(tile).collect();
    for kind in KINDS {
        let mut stream = Experts::start(&fixture.source, &tiles, 16 << 16, &small_chunks(kind, 4)).unwrap();
        let read = |stream: &Experts, bytes: u64| {
            let all = (0..20_000).any(|_| {
                std::thread::sleep(Duration::from_millis(1));
                stream.stats().bytes_read == bytes
            });
            assert!(all, "{} of {bytes} bytes were read", stream.stats().bytes_read);
        };
        stream.request(0, [3, 4, 9, 12]);
        read(&stream, 4 << 16);
        for i in [3, 4, 9, 12] {
            drop(take(&mut stream, &fixture, &tiles[i]));
        }
        stream.request(0, [4, 5, 12]);
        for i in [4, 5, 12] {
            drop(take(&mut stream, &fixture, &tiles[i]));
        }
        read(&stream, 5 << 16);
        let stats = stream.stats();
        assert_eq!((stats.bytes_used, stats.bytes_hit), (7 << 16, 2 << 16));
        // Registering the memory would bring every page of it into being before the first read.
        assert!(stats.drives.iter().all(|drive| !drive.registered));
    }
}

#[test]
fn too_little_memory_and_wrong_spans_are_refused() {
    let fixture = Fixture::new(&[6 << 20]);
    let tile = |offset| DemandTile { spans: vec![span(0, offset, 3 << 20)], layer: 0, expert: 0 };
    let start = |tiles: &[DemandTile], bytes| {
        Experts::start(&fixture.source, tiles, bytes, &DiskOptions::default()).err().unwrap().to_string()
    };
    assert!(start(&[tile(0), tile(1), tile(2)], 4 << 20).contains("at least"));
    assert!(start(&[tile(4 << 20)], 8 << 20).contains("too short"));
    assert!(start(&[], 8 << 20).contains("no tiles"));
}

/// Runs requests of `pick` for every layer in turn through a cache of `blocks`, without drives; returns the hit rate once
/// it is warm.
fn hit_rate(layers: usize, experts: usize, blocks: usize, mut pick: impl FnMut(usize) -> Vec<usize>) -> f64 {
    const TILE: u64 = 4096;
    let tiles: Vec<_> = (0..layers * experts)
        .map(|i| DemandTile { spans: vec![span(0, i as u64 * TILE, TILE)], layer: i / experts, expert: i % experts })
        .collect();
    let memory = Mapping::map(blocks * TILE as usize, false).unwrap().split_to(blocks * TILE as usize);
    let mut cache = Cache::new(&tiles, memory, TILE as usize, TILE as usize, 4096);
    let (passes, mut warm) = (400, super::cache::Uses::default());
    for pass in 0..passes {
        if pass == passes / 2 {
            warm = cache.uses();
        }
        for layer in 0..layers {
            let chosen = pick(layer);
            cache.request(layer, chosen.iter().map(|expert| layer * experts + expert));
            for _ in chosen {
                while let Some(read) = cache.next_read() {
                    cache.landed(read);
                }
                cache.take().expect("read a moment ago");
            }
        }
    }
    let uses = cache.uses();
    (uses.hits - warm.hits) as f64 / (uses.taken - warm.taken) as f64
}

/// `count` different experts, each drawn with its weight.
fn draw(weights: &[f64], count: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut keys: Vec<_> = weights.iter().map(|w| rng.random::<f64>().ln() / w).enumerate().collect();
    keys.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut chosen: Vec<_> = keys[..count].iter().map(|key| key.0).collect();
    chosen.sort_unstable();
    chosen
}

/// A pass touches far more than the cache holds: it keeps as large a share of evenly used experts as it can hold, where
/// the least recently used would have no hits at all.
#[test]
fn evenly_used_experts_hit_as_often_as_they_fit() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (blocks, experts, top_k) in [(24, 8, 2), (64, 8, 2), (128, 8, 2), (200, 64, 8)] {
        let layers = 32;
        let share = blocks as f64 / (layers * experts) as f64;
        let rate = hit_rate(layers, experts, blocks, |_| draw(&vec![1.0; experts], top_k, &mut rng));
        assert!(rate > 0.85 * share, "{blocks} blocks for {experts} experts: {rate} where {share} fit");
    }
}

/// Hot experts stay: nearly as many hits as the best fixed choice of tiles would have.
#[test]
fn hot_experts_stay() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let (layers, experts, top_k) = (16, 32, 4);
    let weights: Vec<f64> = (0..experts).map(|e| 1.0 / (1.0 + e as f64).powf(1.5)).collect();
    // Each layer has other favourites.
    let mut pick = |layer: usize| -> Vec<usize> {
        let mut chosen: Vec<_> = draw(&weights, top_k, &mut rng).iter().map(|e| (e + layer * 5) % experts).collect();
        chosen.sort_unstable();
        chosen
    };
    let mut counts: HashMap<(usize, usize), usize> = HashMap::new();
    for _ in 0..500 {
        for layer in 0..layers {
            pick(layer).into_iter().for_each(|expert| *counts.entry((layer, expert)).or_default() += 1);
        }
    }
    let mut sorted: Vec<_> = counts.values().copied().collect();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    let blocks = 100;
    let best = sorted[..blocks].iter().sum::<usize>() as f64 / sorted.iter().sum::<usize>() as f64;
    let rate = hit_rate(layers, experts, blocks, pick);
    assert!(rate > 0.9 * best, "{rate} where the best fixed choice has {best}");
}
