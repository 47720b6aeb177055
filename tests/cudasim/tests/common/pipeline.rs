//! A small pipeline in the shape of the real one: tiles go from page-locked slots through a copy stream into places on the
//! card, a second stream computes on them, and events keep the two apart. Each of its waits can be left out.

use layerstream_kernels::launch::{Launch, peak};
use layerstream_kernels::params::PeakParams;

use super::driver as cu;

pub const TILE: usize = 8192;
const TILES: usize = 12;
const SLOTS: usize = 3;
const PLACES: usize = 2;

/// What the program forgets to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgets {
    Nothing,
    /// Compute waits until its tile has arrived.
    Arrival,
    /// A copy waits until the tile that was in its place has been computed on.
    Release,
    /// The host waits for the copy from a slot before it fills the slot again.
    Slot,
    /// The host waits for the result before it reads it.
    Result,
    /// The download waits for the last computation.
    Last,
}

/// The byte that fills a tile.
fn pattern(tile: usize) -> u8 {
    (tile * 7 + 3) as u8
}

fn copy_kernel(function: cu::Function, from: u64, to: u64, stream: cu::Stream) -> cu::Result<()> {
    let params = PeakParams { in_: from as *const _, out: to as *mut _, bytes: TILE as i64, rounds: 0 };
    cu::launch(function, &peak::peak("peak_copy", 2), &params, stream)
}

/// Sends all tiles through, collecting them in one long result. Returns what the host reads of it.
pub fn run(forgets: Forgets) -> cu::Result<Vec<u8>> {
    let (copy, compute) = (cu::stream()?, cu::stream()?);
    let module = cu::load(&layerstream_cudasim::FATBIN)?;
    let function = cu::function(module, "peak_copy")?;
    let slots: Vec<&mut [u8]> = (0..SLOTS).map(|_| cu::host(TILE)).collect::<Result<_, _>>()?;
    let result = cu::host(TILE * TILES)?;
    let places: Vec<u64> = (0..PLACES).map(|_| cu::alloc(TILE)).collect::<Result<_, _>>()?;
    let collected = cu::alloc(TILE * TILES)?;
    let events = |count: usize| (0..count).map(|_| cu::event()).collect::<Result<Vec<_>, _>>();
    let (sent, arrived, released) = (events(SLOTS)?, events(PLACES)?, events(PLACES)?);
    let last = cu::event()?;

    let mut slots = slots;
    for tile in 0..TILES {
        let (slot, place) = (tile % SLOTS, tile % PLACES);
        if tile >= SLOTS && forgets != Forgets::Slot {
            // As the real one does: asks until it is told yes.
            while let Err(code) = cu::query_event(sent[slot]) {
                assert_eq!(code, 600, "not ready");
            }
        }
        slots[slot].fill(pattern(tile));
        if tile >= PLACES && forgets != Forgets::Release {
            cu::wait(copy, released[place])?;
        }
        cu::upload_async(places[place], slots[slot], copy)?;
        cu::record(sent[slot], copy)?;
        cu::record(arrived[place], copy)?;
        if forgets != Forgets::Arrival {
            cu::wait(compute, arrived[place])?;
        }
        copy_kernel(function, places[place], collected + (tile * TILE) as u64, compute)?;
        cu::record(released[place], compute)?;
    }
    cu::record(last, compute)?;
    if forgets != Forgets::Last {
        cu::wait(copy, last)?;
    }
    cu::download_async(result, collected, copy)?;
    if forgets != Forgets::Result {
        cu::synchronize(copy)?;
    }
    let read = result.to_vec();

    cu::synchronize_all()?;
    for slot in slots {
        cu::free_host(slot)?;
    }
    cu::free_host(result)?;
    for place in places.into_iter().chain([collected]) {
        cu::free(place)?;
    }
    for event in sent.into_iter().chain(arrived).chain(released).chain([last]) {
        cu::destroy_event(event)?;
    }
    cu::unload(module)?;
    cu::destroy_stream(copy)?;
    cu::destroy_stream(compute)?;
    Ok(read)
}

/// What the result should be.
pub fn expected() -> Vec<u8> {
    (0..TILES).flat_map(|tile| [pattern(tile); TILE]).collect()
}

/// A launch that copies `len` bytes.
pub fn copying(from: u64, to: u64, len: usize) -> (Launch, PeakParams) {
    (peak::peak("peak_copy", 1), PeakParams { in_: from as *const _, out: to as *mut _, bytes: len as i64, rounds: 0 })
}
