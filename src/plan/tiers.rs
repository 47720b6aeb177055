//! The plan for a GPU: two budgets, and tiles that live in its memory, in page-locked memory of the host, or on disk.
//!
//! What a pass reads from disk is copied to the GPU as well; what stays in memory is only copied; what stays on the GPU is
//! neither. Each of the two fixed sets is spread evenly over the pass, so that disk, copies and arithmetic are busy
//! together.

use super::device::{self, Layout, Size};
use super::{
    Gpu, GpuRequest, Memory, PAGE, Plan, RING_TARGET, RING_TILES, ROWS_TARGET, Request, TILE_TARGET, Tier, Tile, cut,
    experts, keep, too_small,
};
use crate::disk::align::enclose;
use crate::error::{Error, Result};
use crate::program::{ExpertLayer, Matrix, Program};

/// A larger ring on the GPU does nothing: it covers the pause between two passes, at the speed of copies.
const DEVICE_RING_TARGET: usize = 128 << 20;

/// The part of what is left for weights that a ring has at most, if that is enough for one: the rest stays.
const RING_SHARE: usize = 4;

/// A GPU sees page-locked memory in pages of 4 KiB or larger ones. Each has an entry of 8 bytes in tables that lie in the
/// GPU's own memory (NVIDIA, "Pascal MMU Format Changes"; newer ones have entries of that size as well): a byte for so many.
const LOCKED_PER_TABLE_BYTE: u64 = 512;

/// The part of a GPU's memory that those tables have at most: with more of them, memory that would hold weights is lost to
/// looking up memory that holds weights.
const TABLES_SHARE: u64 = 8;

/// Bytes that a tile takes on the GPU.
pub fn device_bytes(tile: &Tile) -> usize {
    (tile.span.len as usize).next_multiple_of(device::ALIGN)
}

/// Divides both budgets.
pub(super) fn plan(program: &Program, request: &Request, gpu: &GpuRequest) -> Result<Plan> {
    let least = Split::new(program, request, gpu, request.sequences);
    // Whoever gives so little has the KV cache in memory.
    let smallest = Split::with(program, request, gpu, request.sequences, false);
    let floor = smallest.vram_floor();
    if floor > gpu.vram {
        return Err(vram_too_small(request, gpu, &smallest));
    }
    let ram_floor = least.ram_floor();
    if ram_floor > request.ram {
        return Err(too_small(request, ram_floor));
    }
    let split = Split::largest(program, request, gpu);
    let pages = (gpu.vram - gpu.context - split.tables()) as usize / PAGE * PAGE;
    let vram = pages - split.layout.len();
    let ram = (split.ram - split.memory.total() as u64) as usize;
    let [on_gpu, in_memory] = split.expert_floors;
    let working_vram = experts::working(on_gpu, vram, split.ring_floor) / device::ALIGN * device::ALIGN;
    let working = experts::working(in_memory, ram, split.memory_ring_floor) / PAGE * PAGE;
    let placed = place(program, vram - working_vram, ram - working, request.align);
    let Placed { tiles, memory_ring, host, ring, device } = placed;
    let (ram_left, vram_left) = (ram - memory_ring - host, vram - ring - device);
    let (experts, cache, blocks) = experts::place_on_gpu(program, ram_left, vram_left, request.align);
    Ok(Plan {
        tiles,
        experts,
        rows: split.size.rows,
        logit_rows: split.size.logit_rows,
        context: request.context,
        sequences: request.sequences,
        ram: request.ram,
        floor: ram_floor,
        memory: Memory { ring: memory_ring, host, experts: cache, ..split.memory },
        gpu: Some(Gpu {
            vram: gpu.vram,
            floor,
            context: gpu.context,
            tables: split.tables(),
            layout: split.layout,
            ring,
            tiles: device,
            experts: blocks,
            kv_copied: split.kv_copied,
        }),
    })
}

/// How both budgets are divided up to the weights, for a number of rows.
struct Split {
    size: Size,
    context: u64,
    layout: Layout,
    /// Bytes of keys and values that a token brings along at the end of its context.
    kv_copied: u64,
    /// Of the budget of the host's memory, what may be used. All of it may become page-locked.
    ram: u64,
    memory: Memory,
    /// The smallest rings that work.
    ring_floor: usize,
    memory_ring_floor: usize,
    /// The smallest memory for experts that works, on the GPU and of the host.
    expert_floors: [usize; 2],
}

impl Split {
    /// Keeps keys and values on the GPU if there is room for them.
    fn new(program: &Program, request: &Request, gpu: &GpuRequest, rows: usize) -> Split {
        let split = Split::with(program, request, gpu, rows, true);
        if split.vram_floor() <= gpu.vram { split } else { Split::with(program, request, gpu, rows, false) }
    }

    fn with(program: &Program, request: &Request, gpu: &GpuRequest, rows: usize, kv_resident: bool) -> Split {
        let logit_rows = if request.all_logits { rows } else { request.sequences.min(rows) };
        let size = Size { rows, logit_rows, context: request.context, sequences: request.sequences };
        // A layer that leaves takes turns in two places, one of which it could have had.
        let kv_resident = kv_resident || program.kv.len() < 2;
        let layout = Layout::new(program, size, kv_resident);
        let dtype = device::kv_dtype(program);
        let kv = |size: Size| match kv_resident {
            true => 0,
            false => program.kv.iter().flat_map(|shape| device::kv_bytes(*shape, size, dtype)).sum::<usize>(),
        };
        let kv_copied = kv(Size { sequences: 1, ..size }) as u64;
        let staging = layout.notes.len
            + device::chosen_bytes(program, rows)
            + rows * program.embedding.row_bytes()
            + logit_rows * program.buffers[program.logits.0] * size_of::<f32>();
        let memory = Memory {
            kv: kv(size).next_multiple_of(PAGE) + layout.turned.angles_len.next_multiple_of(PAGE),
            activations: staging.next_multiple_of(PAGE),
            scratch: request.scratch,
            ..Memory::default()
        };
        let row = program.matrices.iter().map(Matrix::row_bytes).max().unwrap_or(0);
        let ring_floor = (RING_TILES * (row + device::ALIGN)).next_multiple_of(device::ALIGN);
        let memory_ring_floor = RING_TILES * (row + 2 * request.align) + PAGE;
        let expert_floors = [experts::device_floor(program), experts::floor(program, request.align)];
        let mut split = Split {
            size,
            context: gpu.context,
            layout,
            kv_copied,
            ram: request.ram,
            memory,
            ring_floor,
            memory_ring_floor,
            expert_floors,
        };
        split.ram = request.ram.min(split.useful_ram(weights(program))).min(split.ram_for(gpu.vram));
        split
    }

    /// Room for rings and for every weight once: what alignment adds to a tile is less than the tile, but for those of tiny
    /// models.
    fn useful_ram(&self, weights: u64) -> u64 {
        let rings = self.memory.total() + self.memory_ring_floor.max(RING_TARGET) + self.expert_floors[1] + PAGE;
        (rings as u64).saturating_add(2 * weights)
    }

    /// What may be page-locked for the tables to be no large part of the GPU's memory, but enough to work: all that the smallest
    /// tables have entries for.
    fn ram_for(&self, vram: u64) -> u64 {
        let spare = vram.saturating_sub(self.context).saturating_sub(self.least_allocation());
        let tables = spare.min(vram / TABLES_SHARE) / PAGE as u64 * PAGE as u64;
        tables.max(table_bytes(self.ram_floor())).saturating_mul(LOCKED_PER_TABLE_BYTE)
    }

    fn least_allocation(&self) -> u64 {
        (self.layout.len() + self.ring_floor + self.expert_floors[0]).next_multiple_of(PAGE) as u64
    }

    /// What the driver takes where as little as works is page-locked.
    fn driver_floor(&self) -> u64 {
        self.context + table_bytes(self.ram_floor())
    }

    fn vram_floor(&self) -> u64 {
        self.driver_floor().saturating_add(self.least_allocation())
    }

    fn tables(&self) -> u64 {
        table_bytes(self.ram)
    }

    fn ram_floor(&self) -> u64 {
        (self.memory.total() as u64).saturating_add((self.memory_ring_floor + self.expert_floors[1]) as u64)
    }

    /// As many rows as a quarter of either budget carries.
    fn largest(program: &Program, request: &Request, gpu: &GpuRequest) -> Split {
        let least = request.sequences;
        let mut rows = least.saturating_mul(request.context).min(ROWS_TARGET).max(least);
        loop {
            let split = Split::new(program, request, gpu, rows);
            let quarter = |budget: u64, part: usize| part as u64 <= budget / 4;
            let free = gpu.vram.saturating_sub(split.context + split.tables() + split.layout.kv_len as u64);
            let fits = quarter(free, split.layout.fixed) && quarter(request.ram, split.memory.activations);
            let works = split.vram_floor() <= gpu.vram && split.ram_floor() <= request.ram;
            if rows == least || (fits && works) {
                return split;
            }
            rows = rows.div_ceil(2).max(least);
        }
    }
}

/// Bytes of page tables for so much page-locked memory. A driver takes memory for them in whole pages.
fn table_bytes(locked: u64) -> u64 {
    locked.div_ceil(LOCKED_PER_TABLE_BYTE).next_multiple_of(PAGE as u64)
}

/// Bytes of all weights that are streamed, with their factors.
fn weights(program: &Program) -> u64 {
    let shared: u64 = cut(program, usize::MAX).iter().map(|tile| tile.span.len).sum();
    shared + program.experts.iter().map(ExpertLayer::bytes).sum::<u64>()
}

/// Tiles with their tiers, and the bytes that these take.
struct Placed {
    tiles: Vec<Tile>,
    memory_ring: usize,
    host: usize,
    ring: usize,
    device: usize,
}

/// Cuts every matrix into tiles and chooses which of them stay on the GPU, of which `vram` bytes are left, and which in
/// memory, of which there are `ram`.
fn place(program: &Program, vram: usize, ram: usize, align: usize) -> Placed {
    let ram = ram / PAGE * PAGE;
    let row = program.matrices.iter().map(Matrix::row_bytes).max().unwrap_or(0);
    let least = (RING_TILES * (row + 2 * align)).next_multiple_of(PAGE);
    let memory_ring = (ram / RING_SHARE / PAGE * PAGE).clamp(least, RING_TARGET.max(least));
    let most = TILE_TARGET.min((memory_ring / RING_TILES).saturating_sub(2 * align));
    let mut tiles = cut(program, most);
    let all: usize = tiles.iter().map(device_bytes).sum();
    if all <= vram {
        tiles.iter_mut().for_each(|tile| tile.tier = Tier::Device);
        return Placed { tiles, memory_ring, host: 0, ring: 0, device: all };
    }
    let least = (RING_TILES * (row + device::ALIGN)).next_multiple_of(device::ALIGN);
    let ring = (vram / RING_SHARE / device::ALIGN * device::ALIGN).clamp(least, DEVICE_RING_TARGET.max(least));
    tiles = cut(program, most.min((ring / RING_TILES).saturating_sub(device::ALIGN)));
    let device = keep(&mut tiles, Tier::Device, vram - ring, device_bytes);
    let size = |tile: &Tile| enclose(tile.span, align).len;
    let rest: usize = tiles.iter().filter(|tile| tile.tier == Tier::Disk).map(size).sum();
    // What stays on the GPU comes through the ring once.
    let memory_ring = if device == 0 && rest <= ram { 0 } else { memory_ring };
    let host = keep(&mut tiles, Tier::Host, ram - memory_ring, size);
    Placed { tiles, memory_ring, host: host.next_multiple_of(PAGE), ring, device }
}

fn vram_too_small(request: &Request, gpu: &GpuRequest, smallest: &Split) -> Error {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    Error::Budget(format!(
        "a budget of {} MiB of GPU memory is too small: this model needs at least {} MiB for {} × {} tokens, {} MiB of them \
         for the driver; give more (--vram), or a shorter context",
        gpu.vram >> 20,
        mib(smallest.vram_floor()),
        request.sequences,
        request.context,
        mib(smallest.driver_floor()),
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{program, request, shapes};
    use super::*;

    const CONTEXT: u64 = 3_000_000;

    fn on_gpu(ram: u64, vram: u64) -> Request {
        Request { scratch: 0, gpu: Some(GpuRequest { vram, context: CONTEXT }), ..request(ram) }
    }

    /// The floor that an error names, in bytes.
    fn named_floor(error: &Error) -> u64 {
        let text = error.to_string();
        let mib = text.split("at least ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a floor");
        mib.parse::<u64>().expect("a number of MiB") << 20
    }

    fn bytes_in(plan: &Plan, tier: Tier, size: impl Fn(&Tile) -> usize) -> usize {
        plan.tiles.iter().filter(|tile| tile.tier == tier).map(size).sum()
    }

    proptest! {
        #[test]
        fn both_budgets_hold_and_both_rings_work(shapes in shapes(), ram in 1..200u64, vram in 1..200u64) {
            let program = program(&shapes);
            let (ram, vram) = (ram << 20, vram << 20);
            match Plan::new(&program, &on_gpu(ram, vram)) {
                Ok(plan) => {
                    let gpu = plan.gpu.as_ref().unwrap();
                    prop_assert!(plan.memory.total() as u64 <= ram);
                    prop_assert!(gpu.total() <= vram && gpu.total() >= CONTEXT + gpu.layout.len() as u64);
                    prop_assert!(gpu.tables >= table_bytes(plan.memory.total() as u64));
                    let in_memory = |tile: &Tile| enclose(tile.span, request(0).align).len;
                    prop_assert!(bytes_in(&plan, Tier::Host, in_memory) <= plan.memory.host);
                    prop_assert_eq!(bytes_in(&plan, Tier::Device, device_bytes), gpu.tiles);
                    for tile in &plan.tiles {
                        if tile.tier != Tier::Device {
                            prop_assert!(device_bytes(tile) * RING_TILES <= gpu.ring);
                        }
                        if tile.tier != Tier::Host {
                            prop_assert!(in_memory(tile) * RING_TILES <= plan.memory.ring);
                        }
                    }
                }
                Err(error) => {
                    let floor = named_floor(&error);
                    let (ram, vram) = if error.to_string().contains("GPU") { (ram, floor) } else { (floor, vram) };
                    match Plan::new(&program, &on_gpu(ram, vram)) {
                        Ok(_) => {}
                        // The other budget may be too small as well.
                        Err(other) => prop_assert_ne!(other.to_string().contains("GPU"), error.to_string().contains("GPU")),
                    }
                }
            }
        }

        #[test]
        fn every_row_is_in_one_tile_and_in_order(shapes in shapes(), ram in 20..200u64, vram in 20..200u64) {
            let program = program(&shapes);
            let Ok(plan) = Plan::new(&program, &on_gpu(ram << 20, vram << 20)) else { return Ok(()) };
            let mut tiles = plan.tiles.iter();
            for (i, matrix) in program.matrices.iter().enumerate() {
                let mut row = 0;
                while row < matrix.rows {
                    let tile = tiles.next().expect("tiles for every matrix");
                    prop_assert_eq!((tile.matrix.0, tile.rows.start), (i, row));
                    row = tile.rows.end;
                }
            }
            prop_assert!(tiles.next().is_none());
        }

        /// Of what has passed, each tier has its even share, but for a few tiles.
        #[test]
        fn both_sets_that_stay_are_spread_evenly(shapes in shapes(), ram in 24..80u64, vram in 16..60u64) {
            let program = program(&shapes);
            let Ok(plan) = Plan::new(&program, &on_gpu(ram << 20, vram << 20)) else { return Ok(()) };
            let largest = plan.tiles.iter().map(device_bytes).max().unwrap() as f64;
            let all: usize = plan.tiles.iter().map(device_bytes).sum();
            for tier in [Tier::Device, Tier::Host] {
                let share = bytes_in(&plan, tier, device_bytes) as f64 / all as f64;
                let (mut passed, mut kept) = (0.0, 0.0);
                for tile in &plan.tiles {
                    let size = device_bytes(tile) as f64;
                    passed += size;
                    kept += if tile.tier == tier { size } else { 0.0 };
                    // Sizes in memory, which the set in memory is chosen by, are a little larger than those on the GPU.
                    let slack = 6.0 * (largest + 2.0 * 4096.0) + 0.05 * all as f64;
                    prop_assert!((kept - passed * share).abs() <= slack, "{tier:?}: {kept} of {}", passed * share);
                }
            }
        }
    }

    #[test]
    fn a_model_that_fits_is_on_the_gpu_and_copies_nothing() {
        let plan = Plan::new(&program(&[(1000, 512), (300, 700)]), &on_gpu(64 << 20, 64 << 20)).unwrap();
        assert_eq!((plan.copied_bytes(), plan.disk_bytes(), plan.gpu.as_ref().unwrap().ring), (0, 0, 0));
        assert_eq!(plan.seconds_per_pass(1.0, 1.0, 1e6), plan.pass_bytes() as f64 / 1e6);
    }

    #[test]
    fn tables_are_those_of_memory_that_is_used() {
        let program = program(&[(1000, 512), (300, 700)]);
        // A budget of more than the model needs takes nothing from the GPU.
        for ram in [20 << 20, 1 << 40] {
            let plan = Plan::new(&program, &on_gpu(ram, 1 << 30)).unwrap();
            assert_eq!(plan.gpu.unwrap().tables, 2 << 20);
        }
        // Keys and values that leave the GPU take some on it.
        let mut many = program.clone();
        many.kv = vec![program.kv[0]; 100];
        let request = Request { context: 400_000, ..on_gpu(1 << 40, 300 << 20) };
        let plan = Plan::new(&many, &request).unwrap();
        let (locked, gpu) = (plan.memory.total() as u64, plan.gpu.unwrap());
        assert!(
            !gpu.layout.kv_resident && gpu.tables >= locked / 512 && gpu.tables < locked / 512 + (4 << 20),
            "{locked}"
        );
        // Of a model that is much larger than the GPU no more stays in memory than the GPU can look up.
        let huge = self::program(&[(1 << 20, 1 << 19)]);
        let plan = Plan::new(&huge, &on_gpu(1 << 40, 64 << 20)).unwrap();
        assert_eq!(plan.gpu.unwrap().tables, 8 << 20);
        assert!(
            plan.memory.total() <= 512 * (8 << 20) && plan.memory.total() > 511 * (8 << 20),
            "{}",
            plan.memory.total()
        );
    }

    #[test]
    fn keys_and_values_leave_the_gpu_when_it_is_small() {
        let program = program(&[(1000, 512), (300, 700)]);
        let request = |vram: u64| Request { context: 40_000, ..on_gpu(1 << 30, vram) };
        let roomy = Plan::new(&program, &request(200 << 20)).unwrap();
        assert!(roomy.gpu.unwrap().layout.kv_resident && roomy.memory.kv == 0);
        let mut program = program;
        program.kv = vec![program.kv[0]; 12];
        let tight = Plan::new(&program, &request(56 << 20)).unwrap();
        assert!(!tight.gpu.as_ref().unwrap().layout.kv_resident);
        assert!(tight.memory.kv >= 12 * 2 * 2 * 16 * 2 * 2 * 40_000, "{}", tight.memory.kv);
        // They come along with a token: those of its own sequence, not those of the other one.
        let token_kv: usize = program.kv.iter().map(|shape| shape.heads * (shape.key_dim + shape.value_dim)).sum();
        let weights: usize = bytes_in(&tight, Tier::Host, |tile| tile.span.len as usize)
            + bytes_in(&tight, Tier::Disk, |tile| tile.span.len as usize);
        let copied = weights + 40_000 * token_kv * device::kv_dtype(&program).size();
        assert_eq!((tight.sequences, tight.copied_bytes()), (2, copied as u64));
        assert_eq!(tight.seconds_per_pass(f64::INFINITY, 1e3, 1e15), copied as f64 / 1e3);
    }
}
