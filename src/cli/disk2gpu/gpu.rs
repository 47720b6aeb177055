//! To the GPU: copies alone, and the conveyor whose tiles are copied as they arrive, while later ones are being read.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use layerstream_kernels::driver::{self, Event, Memory};

use crate::disk::memory::{Mapping, Region};
use crate::engine::StopFlag;
use crate::error::{Error, Result};
use crate::stream::Tile;
use crate::stream::upload::{Upload, Uploads};

use super::args::Device;
use super::machine::text;
use super::read::{Belt, How, of_belt};
use super::report::{GpuFacts, Pcie, Stage};
use super::sample::{Facts, Sample, Watch};
use super::work::{Piece, Work};

/// The most copies that are queued at once, and places for them on the GPU.
const PLACES: usize = 16;
/// How long to wait for a tile before looking whether a copy is done, whose place in the ring the drive could use.
const PATIENCE: Duration = Duration::from_micros(200);

/// A GPU.
pub struct Gpu(driver::Gpu);

/// Opens the GPU, or says why it is not measured, whatever keeps it from being used; an error where one was asked for by number.
pub fn open(device: Device) -> Result<std::result::Result<Gpu, String>> {
    let number = match device {
        Device::Cpu => return Ok(Err("--device cpu".into())),
        Device::Auto => 0,
        Device::Cuda(number) => number,
    };
    match driver::Gpu::open(number) {
        Ok(gpu) => Ok(Ok(Gpu(gpu))),
        Err(e) if device == Device::Auto => Ok(Err(e.to_string())),
        Err(e) => Err(Error::Request(format!("--device cuda:{number}: {e}"))),
    }
}

/// What the driver refused.
fn refused(e: driver::Error) -> Error {
    Error::Request(e.to_string())
}

impl Gpu {
    pub fn facts(&self) -> Result<GpuFacts> {
        let (major, minor) = self.0.driver_version().map_err(refused)?;
        Ok(GpuFacts {
            name: self.0.name().map_err(refused)?,
            driver: format!("{major}.{minor}"),
            sm: self.0.arch().map_err(refused)?,
            memory_bytes: self.0.memory().map_err(refused)?.1 as u64,
            pcie: self.0.pci_address().ok().map(pcie),
        })
    }

    /// One run of a stage that ends on the GPU.
    pub fn run(&self, stage: Stage, work: &Work, how: &How, stop: &StopFlag) -> Result<Sample> {
        match stage {
            Stage::Pageable => self.pageable(work, how, stop),
            Stage::DiskGpu => self.overlapped(work, how, stop),
            _ => self.pinned(work, how, stop),
        }
    }

    fn events(&self, pairs: usize) -> Result<Vec<[Event; 2]>> {
        let pair = || Ok([Event::new(&self.0)?, Event::new(&self.0)?]);
        (0..pairs).map(|_| pair().map_err(refused)).collect()
    }

    /// Copies from page-locked memory, queued ahead of the GPU.
    fn pinned(&self, work: &Work, how: &How, stop: &StopFlag) -> Result<Sample> {
        let start = Instant::now();
        let pieces = work.pieces(how.chunk);
        let places = pieces.len().min(PLACES);
        let mut memory = Mapping::map(places * how.chunk, true)?;
        pattern(&mut memory);
        let mapping = Arc::clone(memory.mapping());
        let facts =
            Facts { in_flight: places, memory: mapping.range().1, huge: mapping.huge_bytes(), ..Facts::default() };
        let uploads = Uploads::new(&self.0, places * how.chunk, std::slice::from_ref(&mapping)).map_err(refused)?;
        let mut events = self.events(places)?;
        let mut idle: VecDeque<Region> = (0..places).map(|_| memory.split_to(how.chunk)).collect();
        let mut queue: VecDeque<(usize, Upload<Region>)> = VecDeque::new();
        let (mut latencies, mut intact) = (Vec::with_capacity(pieces.len()), true);
        let init = start.elapsed();
        let watch = Watch::start();
        // A region goes to the place of its own number, round and round.
        for number in 0..pieces.len() + places {
            super::check(stop)?;
            if queue.len() == places || number >= pieces.len() {
                let Some((place, upload)) = queue.pop_front() else { break };
                let (region, pair) = upload.wait().map_err(refused)?;
                latencies.push(pair[1].seconds_since(&pair[0]).map_err(refused)?);
                if how.sums {
                    intact &= uploads.fetch(place * how.chunk, how.chunk).map_err(refused)? == *region;
                }
                idle.push_back(region);
                events.push(pair);
            }
            if number < pieces.len() {
                let region = idle.pop_front().expect("fewer are queued than there are");
                let place = number % places;
                let pair = events.pop().expect("as above");
                queue.push_back((place, uploads.start(place * how.chunk, region, pair).map_err(refused)?));
            }
        }
        Ok(Sample {
            bytes: (pieces.len() * how.chunk) as u64,
            seconds: watch.until(Instant::now()),
            cpu_seconds: watch.cpu_seconds(),
            init_seconds: init.as_secs_f64(),
            latencies,
            intact: how.sums.then_some(intact),
            facts: Facts { locked: uploads.locked_bytes(), ..facts },
            ..Sample::default()
        })
    }

    /// Copies from ordinary memory, each waited for.
    fn pageable(&self, work: &Work, how: &How, stop: &StopFlag) -> Result<Sample> {
        let start = Instant::now();
        let pieces = work.pieces(how.chunk).len();
        let mut bytes = vec![0; how.chunk];
        pattern(&mut bytes);
        let mut memory = Memory::new(&self.0, how.chunk).map_err(refused)?;
        let mut latencies = Vec::with_capacity(pieces);
        let init = start.elapsed();
        let watch = Watch::start();
        for _ in 0..pieces {
            super::check(stop)?;
            let since = Instant::now();
            memory.upload(0, &bytes).map_err(refused)?;
            latencies.push(since.elapsed().as_secs_f64());
        }
        let (seconds, cpu_seconds) = (watch.until(Instant::now()), watch.cpu_seconds());
        let intact = match how.sums {
            true => Some(memory.download(0, how.chunk).map_err(refused)? == bytes),
            false => None,
        };
        Ok(Sample {
            bytes: (pieces * how.chunk) as u64,
            seconds,
            cpu_seconds,
            init_seconds: init.as_secs_f64(),
            latencies,
            intact,
            facts: Facts { in_flight: 1, memory: how.chunk, ..Facts::default() },
            ..Sample::default()
        })
    }

    /// Everything at once: the ring is page-locked, and each tile is copied as it arrives.
    fn overlapped(&self, work: &Work, how: &How, stop: &StopFlag) -> Result<Sample> {
        let start = Instant::now();
        let pieces = work.pieces(how.chunk);
        let mut belt = Belt::new(work, how, &pieces, false)?;
        // Half of the ring at most is held by copies, so that the drives have the other half.
        let fit = belt.conveyor.stats().ring_bytes / how.chunk / 2;
        let places = fit.clamp(1, PLACES);
        let [ring, _] = belt.conveyor.memory();
        let uploads = Uploads::new(&self.0, places * how.chunk, std::slice::from_ref(ring)).map_err(refused)?;
        let events = self.events(places)?;
        let init = start.elapsed();
        let watch = belt.start(how, stop)?;
        let mut copying =
            Copying { belt, uploads, events, queue: VecDeque::new(), sums: Vec::new(), pieces: &pieces, how };
        for number in 0..pieces.len() {
            let tile = loop {
                super::check(stop)?;
                copying.reap(places - 1)?;
                if let Some(tile) = copying.belt.conveyor.next_within(PATIENCE)? {
                    break tile;
                }
            };
            copying.start(number, number % places * how.chunk, tile)?;
        }
        copying.reap(0)?;
        let Copying { belt, uploads, sums, .. } = copying;
        let sample = Sample {
            bytes: work.total(),
            seconds: watch.until(Instant::now()),
            cpu_seconds: watch.cpu_seconds(),
            init_seconds: init.as_secs_f64(),
            sums: how.sums.then_some(sums),
            ..Sample::default()
        };
        let mut sample = of_belt(sample, &belt, how);
        sample.facts.locked = uploads.locked_bytes();
        Ok(sample)
    }
}

/// The way from disk to the GPU, in mid run. Copies end, and give their tiles back, before the conveyor does.
struct Copying<'a> {
    /// Piece, place and copy, in order.
    queue: VecDeque<(usize, usize, Upload<Tile>)>,
    uploads: Uploads,
    events: Vec<[Event; 2]>,
    belt: Belt,
    sums: Vec<u32>,
    pieces: &'a [Piece],
    how: &'a How,
}

impl Copying<'_> {
    fn start(&mut self, piece: usize, place: usize, tile: Tile) -> Result<()> {
        let pair = self.events.pop().expect("no more copies than pairs of events");
        self.queue.push_back((piece, place, self.uploads.start(place, tile, pair).map_err(refused)?));
        Ok(())
    }

    /// Gives back the tiles whose copies are done, and waits for more until at most `most` are queued.
    fn reap(&mut self, most: usize) -> Result<()> {
        while let Some((.., front)) = self.queue.front() {
            if self.queue.len() <= most && !front.happened().map_err(refused)? {
                return Ok(());
            }
            let (piece, place, upload) = self.queue.pop_front().expect("there is a front");
            let (tile, pair) = upload.wait().map_err(refused)?;
            let Piece { file, offset, .. } = self.pieces[piece];
            self.belt.log.done(file, offset);
            if self.how.sums {
                let arrived = self.uploads.fetch(place, tile.len()).map_err(refused)?;
                self.sums.push(crc32fast::hash(&arrived));
            }
            self.events.push(pair);
        }
        Ok(())
    }
}

/// Bytes that differ from place to place.
fn pattern(bytes: &mut [u8]) {
    let mut word = 1u64;
    for chunk in bytes.chunks_mut(8) {
        word = word.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
}

/// What the system says of the GPU's place on the bus.
fn pcie(address: String) -> Pcie {
    let place = Path::new("/sys/bus/pci/devices").join(&address);
    let read = |name: &str| text(place.join(name));
    Pcie {
        speed: read("current_link_speed"),
        width: read("current_link_width"),
        max_speed: read("max_link_speed"),
        max_width: read("max_link_width"),
        numa_node: read("numa_node").and_then(|node| node.parse().ok()),
        address,
    }
}
