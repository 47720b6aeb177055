//! How fast drives would feed a conveyor: measured by one that reads the tiles of a plan, and that nobody waits for.

use std::time::{Duration, Instant};

use super::{Conveyor, TileRead, ring_floor};
use crate::checkpoint::Span;
use crate::disk::{DEFAULT_CHUNK, DEFAULT_DEPTH, DiskOptions, Geometry, Source};
use crate::error::Result;
use crate::plan::Tier;

/// Bytes of the ring where the plan has none, since all tiles stay in memory: twice what is in flight.
const RING: usize = 2 * DEFAULT_CHUNK * DEFAULT_DEPTH;

/// Measures how fast a [`Conveyor`] of these tiles would be fed through a ring of `ring_bytes` (0: of a size of its own), in
/// bytes per second, with the chunk size and depth that it chooses. Tiles are given back at once, and none stays.
///
/// Takes `time`, what choosing takes, and what is still in flight then.
///
/// # Errors
/// As [`Conveyor::start`] and [`Conveyor::next`].
pub fn measure(
    source: &Source,
    tiles: impl Iterator<Item = Span>,
    ring_bytes: usize,
    options: &DiskOptions,
    time: Duration,
) -> Result<f64> {
    let tiles: Vec<_> = tiles.map(|span| TileRead { span, tier: Tier::Disk }).collect();
    let wanted = if ring_bytes == 0 { RING } else { ring_bytes };
    let ring = wanted.max(ring_floor(&tiles, Geometry::of(source)?.align));
    let mut conveyor = Conveyor::start(source, tiles, ring, options)?;
    // When the first tile is there, all reads that fit are in flight.
    drop(conveyor.next()?);
    let (start, before) = (Instant::now(), conveyor.stats().bytes_read);
    loop {
        drop(conveyor.next()?);
        let elapsed = start.elapsed();
        let bytes = conveyor.stats().bytes_read - before;
        if elapsed >= time && bytes > 0 {
            return Ok(bytes as f64 / elapsed.as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Fixture;
    use super::*;
    use crate::checkpoint::FileId;
    use crate::error::Error;

    fn spans(count: u64, len: u64) -> impl Iterator<Item = Span> {
        (0..count).map(move |i| Span { file: FileId(0), offset: i * len, len })
    }

    /// Rings of all sizes, also smaller than a tile, and none at all.
    #[test]
    fn any_ring_has_a_speed() {
        let fixture = Fixture::new(&[1 << 20]);
        for ring in [0, 1, 100_000, 1 << 30] {
            let (tiles, options) = (spans(8, 1 << 17), DiskOptions::default());
            let speed = measure(&fixture.source, tiles, ring, &options, Duration::from_millis(20));
            assert!(speed.unwrap() > 1e6, "a ring of {ring}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let fixture = Fixture::new(&[1000]);
        let error = measure(&fixture.source, spans(2, 1000), 0, &DiskOptions::default(), Duration::ZERO).unwrap_err();
        assert!(matches!(error, Error::Checkpoint { .. }), "{error}");
    }
}
