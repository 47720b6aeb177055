//! The plan for a GPU: two budgets, and tiles that live in its memory, in page-locked memory of the host, or on disk.
//!
//! What a pass reads from disk is copied to the GPU as well; what stays in memory is only copied; what stays on the GPU is
//! neither. Each of the two fixed sets is spread evenly over the pass, so that disk, copies and arithmetic are busy
//! together.

use super::device::{self, Layout, Size};
use super::{
    ExpertPlan, Gpu, GpuRequest, Memory, PAGE, Plan, RING_TARGET, RING_TILES, ROWS_TARGET, Request, TILE_TARGET, Tier,
    Tile, cut, keep, too_small,
};
use crate::disk::align::enclose;
use crate::error::{Error, Result};
use crate::program::{Matrix, Program};

/// A larger ring on the GPU does nothing: it covers the pause between two passes, at the speed of copies.
const DEVICE_RING_TARGET: usize = 128 << 20;

/// Bytes that a tile takes on the GPU.
pub fn device_bytes(tile: &Tile) -> usize {
    (tile.span.len as usize).next_multiple_of(device::ALIGN)
}

/// Divides both budgets.
pub(super) fn plan(program: &Program, request: &Request, gpu: &GpuRequest) -> Result<Plan> {
    let least = Split::new(program, request, gpu, request.sequences);
    // Whoever gives so little has the KV cache in memory.
    let floor = Split::with(program, request, gpu, request.sequences, false).vram_floor();
    if floor > gpu.vram {
        return Err(vram_too_small(request, gpu, floor));
    }
    let ram_floor = least.ram_floor();
    if ram_floor > request.ram {
        return Err(too_small(request, ram_floor));
    }
    let split = Split::largest(program, request, gpu);
    let vram = (gpu.vram - split.vram_fixed()) as usize;
    let ram = (request.ram - split.memory.total() as u64) as usize;
    let Placed { tiles, memory_ring, host, ring, device } = place(program, vram, ram, request.align);
    Ok(Plan {
        tiles,
        // Programs with experts are for the processor so far.
        experts: ExpertPlan::default(),
        rows: split.size.rows,
        logit_rows: split.size.logit_rows,
        context: request.context,
        sequences: request.sequences,
        ram: request.ram,
        floor: ram_floor,
        memory: Memory { ring: memory_ring, host, ..split.memory },
        gpu: Some(Gpu { vram: gpu.vram, floor, context: gpu.context, layout: split.layout, ring, tiles: device }),
    })
}

/// How both budgets are divided up to the weights, for a number of rows.
struct Split {
    size: Size,
    context: u64,
    layout: Layout,
    /// Of the host.
    memory: Memory,
    /// The smallest rings that work.
    ring_floor: usize,
    memory_ring_floor: usize,
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
        let layout = Layout::new(program, size, kv_resident);
        let dtype = device::kv_dtype(program);
        let kv = match kv_resident {
            true => 0,
            false => program.kv.iter().flat_map(|shape| device::kv_bytes(*shape, size, dtype)).sum::<usize>(),
        };
        let staging = layout.notes.len
            + rows * program.embedding.row_bytes()
            + logit_rows * program.buffers[program.logits.0] * size_of::<f32>();
        let memory = Memory {
            kv: kv.next_multiple_of(PAGE),
            activations: staging.next_multiple_of(PAGE),
            scratch: request.scratch,
            ..Memory::default()
        };
        let row = program.matrices.iter().map(Matrix::row_bytes).max().unwrap_or(0);
        let ring_floor = RING_TILES * (row + device::ALIGN);
        let memory_ring_floor = RING_TILES * (row + 2 * request.align) + PAGE;
        Split { size, context: gpu.context, layout, memory, ring_floor, memory_ring_floor }
    }

    fn vram_fixed(&self) -> u64 {
        self.context.saturating_add(self.layout.len() as u64)
    }

    fn vram_floor(&self) -> u64 {
        self.vram_fixed().saturating_add(self.ring_floor as u64)
    }

    fn ram_floor(&self) -> u64 {
        (self.memory.total() as u64).saturating_add(self.memory_ring_floor as u64)
    }

    /// As many rows as a quarter of either budget carries.
    fn largest(program: &Program, request: &Request, gpu: &GpuRequest) -> Split {
        let least = request.sequences;
        let mut rows = least.saturating_mul(request.context).min(ROWS_TARGET).max(least);
        loop {
            let split = Split::new(program, request, gpu, rows);
            let quarter = |budget: u64, part: usize| part as u64 <= budget / 4;
            let free = gpu.vram.saturating_sub(split.context + split.layout.kv_len as u64);
            let fits = quarter(free, split.layout.fixed) && quarter(request.ram, split.memory.activations);
            let works = split.vram_floor() <= gpu.vram && split.ram_floor() <= request.ram;
            if rows == least || (fits && works) {
                return split;
            }
            rows = rows.div_ceil(2).max(least);
        }
    }
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
    let memory_ring = ram.min(RING_TARGET);
    let most = TILE_TARGET.min((memory_ring / RING_TILES).saturating_sub(2 * align));
    let mut tiles = cut(program, most);
    let all: usize = tiles.iter().map(device_bytes).sum();
    if all <= vram {
        tiles.iter_mut().for_each(|tile| tile.tier = Tier::Device);
        return Placed { tiles, memory_ring, host: 0, ring: 0, device: all };
    }
    let ring = vram.min(DEVICE_RING_TARGET) / device::ALIGN * device::ALIGN;
    tiles = cut(program, most.min((ring / RING_TILES).saturating_sub(device::ALIGN)));
    let device = keep(&mut tiles, Tier::Device, vram - ring, device_bytes);
    let size = |tile: &Tile| enclose(tile.span, align).len;
    let rest: usize = tiles.iter().filter(|tile| tile.tier == Tier::Disk).map(size).sum();
    // What stays on the GPU comes through the ring once.
    let memory_ring = if device == 0 && rest <= ram { 0 } else { memory_ring };
    let host = keep(&mut tiles, Tier::Host, ram - memory_ring, size);
    Placed { tiles, memory_ring, host: host.next_multiple_of(PAGE), ring, device }
}

fn vram_too_small(request: &Request, gpu: &GpuRequest, floor: u64) -> Error {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    Error::Budget(format!(
        "a budget of {} MiB of GPU memory is too small: this model needs at least {} MiB for {} × {} tokens, {} MiB of them \
         for the driver; give more (--vram), or a shorter context",
        gpu.vram >> 20,
        mib(floor),
        request.sequences,
        request.context,
        mib(gpu.context),
    ))
}
