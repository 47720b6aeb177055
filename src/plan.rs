//! The plan: where every byte of the budget goes, and what a pass reads. A pure function of the program, the budget, the
//! context and the number of sequences, so that it can be printed before anything runs and tested on its own.
//!
//! Weights are cut into *tiles*, runs of whole rows. A pass uses every tile once, always in the same order: a cyclic
//! scan, of which a least-recently-used cache would keep nothing. So a fixed set of tiles stays in memory, as many as
//! fit, spread evenly over the pass: between two tiles that are already there, the disk brings the next.

pub mod device;
mod experts;
mod tiers;

pub use tiers::device_bytes;

use std::ops::Range;

use crate::checkpoint::Span;
use crate::disk::align::enclose;
use crate::error::{Error, Result};
use crate::program::{FactorRoom, Groups, Matrix, MatrixId, Program, Step};

pub use experts::{ExpertPlan, ExpertTile, span_bytes};

/// Memory beyond this does nothing for the ring: it covers what is in flight (64 MiB by default) and the pause between
/// two passes. More memory keeps more tiles instead.
const RING_TARGET: usize = 256 << 20;

/// Larger tiles gain nothing: at 8 MiB the cost of handing one over is already far below one percent of reading it.
const TILE_TARGET: usize = 8 << 20;

/// A ring holds at least this many of its tiles, so that one can be read while another is multiplied.
const RING_TILES: usize = 4;

/// The most tokens that one pass carries. Beyond it a prompt is compute-bound, and activations only cost memory.
const ROWS_TARGET: usize = 512;

/// Where a tile lives between passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// Read again in every pass.
    Disk,
    /// Read once, then kept in memory.
    Host,
    /// Read once, then kept in the memory of a GPU.
    Device,
}

/// A run of stored rows of one matrix, or of the factors that come before them.
#[derive(Clone, Debug, PartialEq)]
pub struct Tile {
    pub matrix: MatrixId,
    /// Which of the matrix's tensors of factors, if it is one.
    pub factors: Option<usize>,
    /// Stored rows, or elements of that tensor.
    pub rows: Range<usize>,
    pub span: Span,
    pub tier: Tier,
}

/// What the plan is made for.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The hard limit on memory, in bytes.
    pub ram: u64,
    /// The most tokens that one sequence may have, prompt and answer together.
    pub context: usize,
    /// Sequences that run together.
    pub sequences: usize,
    /// Whether logits are wanted at every position or only at the end of each sequence.
    pub all_logits: bool,
    /// What direct reads of these files are aligned to, in bytes.
    pub align: usize,
    /// Bytes that the backend needs beside the buffers of the program.
    pub scratch: usize,
    /// A GPU, if that is what computes.
    pub gpu: Option<GpuRequest>,
}

/// The GPU that a plan is made for.
#[derive(Clone, Copy, Debug)]
pub struct GpuRequest {
    /// The hard limit on its memory, in bytes.
    pub vram: u64,
    /// Bytes of it that are taken as soon as it is used: the driver's context and the kernels.
    pub context: u64,
}

/// Bytes of memory by purpose. Their sum is at most the budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Norms and biases.
    pub vectors: usize,
    pub kv: usize,
    /// Activations and logits.
    pub activations: usize,
    /// What the backend computes in.
    pub scratch: usize,
    pub ring: usize,
    /// Tiles that stay.
    pub host: usize,
    /// Tiles of experts, which stay as long as there is room.
    pub experts: usize,
}

impl Memory {
    pub fn total(&self) -> usize {
        self.vectors + self.kv + self.activations + self.scratch + self.ring + self.host + self.experts
    }
}

/// What a plan takes of a GPU's memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Gpu {
    /// The budget, in bytes.
    pub vram: u64,
    /// The smallest budget that would do, in bytes.
    pub floor: u64,
    /// Bytes that the driver's context and the kernels take.
    pub context: u64,
    /// Bytes that the driver takes, at most, for the tables in which the GPU looks up page-locked memory.
    pub tables: u64,
    /// Where everything but weights lies.
    pub layout: device::Layout,
    /// Bytes of the ring of tiles.
    pub ring: usize,
    /// Bytes of the tiles that stay.
    pub tiles: usize,
    /// Bytes for tiles of experts, which stay as long as there is room.
    pub experts: usize,
    /// Bytes of keys and values that a pass with one token brings along where they do not stay on the GPU, when the context
    /// of its sequence is full.
    pub kv_copied: u64,
}

impl Gpu {
    /// Bytes to be allocated: all but what the driver takes, in whole pages, which is what it gives.
    pub fn allocation(&self) -> usize {
        (self.layout.len() + self.ring + self.tiles + self.experts).next_multiple_of(PAGE)
    }

    pub fn total(&self) -> u64 {
        self.context + self.tables + self.allocation() as u64
    }
}

/// See the module's description.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In the order in which a pass uses them.
    pub tiles: Vec<Tile>,
    /// What passes use of experts.
    pub experts: ExpertPlan,
    /// The most tokens that one pass carries.
    pub rows: usize,
    /// The most rows of logits that one pass gives.
    pub logit_rows: usize,
    pub context: usize,
    pub sequences: usize,
    /// The budget, in bytes.
    pub ram: u64,
    /// The smallest budget that would do for this context and these sequences, in bytes.
    pub floor: u64,
    pub memory: Memory,
    /// What is taken of the GPU that computes, if one does.
    pub gpu: Option<Gpu>,
}

impl Plan {
    /// Divides the budget.
    ///
    /// # Errors
    /// [`Error::Budget`] if it is too small, naming the smallest that would do for this context.
    pub fn new(program: &Program, request: &Request) -> Result<Plan> {
        if let Some(gpu) = &request.gpu {
            return tiers::plan(program, request, gpu);
        }
        let floor = Split::new(program, request, request.sequences).floor();
        if floor > request.ram {
            return Err(too_small(request, floor));
        }
        let (split, left) = Split::largest(program, request);
        let working = experts::working(split.expert_floor, left, split.ring_floor) / PAGE * PAGE;
        let (tiles, ring, host) = place(program, left - working, request.align);
        let (experts, cache) = experts::place(program, left - ring - host, request.align);
        Ok(Plan {
            tiles,
            experts,
            rows: split.rows,
            logit_rows: split.logit_rows,
            context: request.context,
            sequences: request.sequences,
            ram: request.ram,
            floor,
            memory: Memory { ring, host, experts: cache, ..split.memory },
            gpu: None,
        })
    }

    /// Bytes that a pass with one token reads from disk once the tiles that stay have been read: of its experts the share
    /// for which there is no room.
    pub fn disk_bytes(&self) -> u64 {
        let streamed: u64 = self.tiles.iter().filter(|tile| tile.tier == Tier::Disk).map(|tile| tile.span.len).sum();
        streamed + self.absent(self.memory.experts + self.gpu.as_ref().map_or(0, |gpu| gpu.experts))
    }

    /// Bytes that a pass with one token, the last of its context, copies to the GPU once the tiles that stay there are there:
    /// weights, and keys and values that have no room there. None where no GPU computes.
    pub fn copied_bytes(&self) -> u64 {
        let Some(gpu) = &self.gpu else { return 0 };
        let streamed: u64 = self.tiles.iter().filter(|tile| tile.tier != Tier::Device).map(|tile| tile.span.len).sum();
        streamed + self.absent(gpu.experts) + gpu.kv_copied
    }

    /// Of the bytes of a token's experts, the share for which so much memory has no room.
    fn absent(&self, memory: usize) -> u64 {
        let kept = (memory as u64).min(self.experts.bytes);
        let absent = u128::from(self.experts.bytes - kept) * u128::from(self.experts.token_bytes);
        (absent / u128::from(self.experts.bytes.max(1))) as u64
    }

    /// Bytes of weights that every pass multiplies: all but those of experts.
    pub fn shared_bytes(&self) -> u64 {
        self.tiles.iter().map(|tile| tile.span.len).sum()
    }

    /// Bytes of weights that a pass with one token multiplies.
    pub fn pass_bytes(&self) -> u64 {
        self.shared_bytes() + self.experts.token_bytes
    }

    /// Seconds for a pass that carries one token: the slowest of reading, copying to the GPU (if there is one) and
    /// multiplying, since they overlap. Bandwidths are in bytes per second.
    pub fn seconds_per_pass(&self, disk: f64, copy: f64, multiply: f64) -> f64 {
        let (read, copied) = (self.disk_bytes() as f64 / disk, self.copied_bytes() as f64 / copy);
        read.max(copied).max(self.pass_bytes() as f64 / multiply)
    }
}

/// How the part of the budget that does not hold weights is divided, for a number of rows.
struct Split {
    rows: usize,
    logit_rows: usize,
    memory: Memory,
    /// The smallest ring that works.
    ring_floor: usize,
    /// The smallest memory for experts that works.
    expert_floor: usize,
}

impl Split {
    fn new(program: &Program, request: &Request, rows: usize) -> Split {
        let logit_rows = if request.all_logits { rows } else { request.sequences.min(rows) };
        let of = |bytes: usize| bytes.saturating_mul(size_of::<f32>());
        let selected: usize = program.selected_buffers().iter().map(|buffer| program.buffers[buffer.0]).sum();
        // A cosine and a sine for each pair that rotates; a factor for a step that scales rows.
        let angles: usize = program.ropes.iter().map(|rope| rope.rotary_dim()).sum();
        // A row's experts and what they count, by row and by expert: six numbers' room for each.
        let chosen = program.experts.iter().map(|layer| 6 * layer.top_k).max().unwrap_or(0);
        let per_row = program.buffers.iter().sum::<usize>() - selected + angles + 1 + chosen;
        let turned = program.turned_keys(request.context);
        let token_kv: usize = program.kv.iter().map(|shape| shape.token_bytes()).sum();
        // Each twice: as the last pass left it, and as this one will.
        let states = 2 * of(program.states.iter().sum());
        let memory = Memory {
            vectors: of(program.vectors.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum()),
            kv: token_kv.saturating_mul(request.context).saturating_add(states).saturating_mul(request.sequences),
            activations: of((per_row * rows + selected * logit_rows).saturating_add(turned))
                .saturating_add(program.embedding.row_bytes() * rows),
            scratch: request.scratch + experts::factor_bytes(program) + FactorRoom::of(program).bytes(),
            ring: 0,
            host: 0,
            experts: 0,
        };
        let row = program.matrices.iter().map(Matrix::row_bytes).max().unwrap_or(0);
        Split {
            rows,
            logit_rows,
            memory,
            ring_floor: RING_TILES * (row + 2 * request.align) + PAGE,
            expert_floor: experts::floor(program, request.align),
        }
    }

    fn floor(&self) -> u64 {
        (self.memory.total() as u64).saturating_add((self.ring_floor + self.expert_floor) as u64)
    }

    /// As many rows as a quarter of what is free carries: past a few hundred a prompt is bound by arithmetic.
    fn largest(program: &Program, request: &Request) -> (Split, usize) {
        let least = request.sequences;
        let mut rows = least.saturating_mul(request.context).min(ROWS_TARGET).max(least);
        loop {
            let split = Split::new(program, request, rows);
            let fixed = split.memory.total() as u64 - split.memory.activations as u64;
            let fits = split.memory.activations as u64 <= request.ram.saturating_sub(fixed) / 4;
            if rows == least || (fits && split.floor() <= request.ram) {
                let left = request.ram - split.memory.total() as u64;
                return (split, left as usize);
            }
            rows = rows.div_ceil(2).max(least);
        }
    }
}

/// Ring and resident memory come in pages of this many bytes, and so does memory of a GPU.
const PAGE: usize = 2 << 20;

/// Cuts every matrix into tiles and chooses which of them stay. Returns the tiles, the bytes of the ring, and the bytes
/// that the tiles which stay take.
fn place(program: &Program, left: usize, align: usize) -> (Vec<Tile>, usize, usize) {
    let left = left / PAGE * PAGE;
    let mut tiles = cut(program, TILE_TARGET);
    let all: usize = tiles.iter().map(|tile| enclose(tile.span, align).len).sum();
    if all <= left {
        tiles.iter_mut().for_each(|tile| tile.tier = Tier::Host);
        return (tiles, 0, all.next_multiple_of(PAGE));
    }
    let ring = left.min(RING_TARGET);
    tiles = cut(program, TILE_TARGET.min((ring / RING_TILES).saturating_sub(2 * align)));
    let host = keep(&mut tiles, Tier::Host, left - ring, |tile| enclose(tile.span, align).len);
    (tiles, ring, host.next_multiple_of(PAGE))
}

/// Tiles of at most `bytes` (but at least one row), of nearly equal size within a matrix.
fn cut(program: &Program, bytes: usize) -> Vec<Tile> {
    let used = program.steps.iter().filter_map(|step| match step {
        Step::MatMul(product) => Some(product.matrix),
        _ => None,
    });
    used.flat_map(|id| {
        let matrix = &program.matrices[id.0];
        let tile = move |factors, span, rows| Tile { matrix: id, factors, rows, span, tier: Tier::Disk };
        let factors = matrix.groups.iter().flat_map(move |groups| cut_factors(groups, bytes));
        let factors = factors.map(move |(part, span, elements)| tile(Some(part), span, elements));
        factors.chain(split(matrix, bytes).map(move |rows| tile(None, matrix.span(rows.clone()), rows)))
    })
    .collect()
}

/// Runs of at most `bytes` of every tensor of factors: which one, where they lie, which elements they are.
fn cut_factors(groups: &Groups, bytes: usize) -> impl Iterator<Item = (usize, Span, Range<usize>)> {
    groups.parts.iter().enumerate().flat_map(move |(index, part)| {
        let (all, most) = (part.elements(), (bytes / part.role.bytes()).max(1));
        let count = all.div_ceil(most);
        (0..count).map(move |i| {
            let elements = all * i / count..all * (i + 1) / count;
            (index, part.span(elements.clone()), elements)
        })
    })
}

/// The stored rows of each tile of a matrix.
fn split(matrix: &Matrix, bytes: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let most = (bytes / matrix.row_bytes()).max(1);
    let all = matrix.stored_rows();
    let count = all.div_ceil(most);
    (0..count).map(move |i| all * i / count..all * (i + 1) / count)
}

/// Marks tiles of [`Tier::Disk`] to stay somewhere else, at even distances, until `bytes` are used, of which each takes
/// `size`; returns how many are.
fn keep(tiles: &mut [Tile], tier: Tier, bytes: usize, size: impl Fn(&Tile) -> usize) -> usize {
    let total: usize = tiles.iter().filter(|tile| tile.tier == Tier::Disk).map(&size).sum();
    let share = bytes as f64 / total as f64;
    let (mut passed, mut used) = (0.0, 0);
    for tile in tiles.iter_mut().filter(|tile| tile.tier == Tier::Disk) {
        let size = size(tile);
        passed += size as f64 * share;
        // Behind the even share by at least half of this tile: keeping it brings us nearer.
        if used as f64 + size as f64 / 2.0 <= passed && used + size <= bytes {
            tile.tier = tier;
            used += size;
        }
    }
    used
}

fn too_small(request: &Request, floor: u64) -> Error {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    Error::Budget(format!(
        "a budget of {} MiB is too small: this model needs at least {} MiB for {} of {} tokens; give more, or a shorter \
         context",
        request.ram >> 20,
        mib(floor),
        match request.sequences {
            1 => "one sequence".to_string(),
            n => format!("{n} sequences"),
        },
        request.context,
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::checkpoint::{Dtype, FileId, Tensor};
    use crate::encoding::Encoding;
    use crate::program::{Buffer, KvShape, Part, Product, Role, Rope, RopeStyle};

    pub(super) const ALIGN: usize = 4096;

    pub(super) fn matrix(offset: u64, rows: usize, cols: usize) -> Matrix {
        let span = Span { file: FileId(0), offset, len: (rows * cols * 2) as u64 };
        let tensor = Tensor {
            name: format!("at {offset}"),
            dtype: Dtype::Bf16,
            shape: vec![rows, cols],
            span,
            transposed: false,
        };
        Matrix { tensor, first_row: 0, rows, cols, encoding: Encoding::Bf16, scales: None, groups: None }
    }

    /// A program that multiplies with matrices of these shapes, one after the other.
    pub(super) fn program(shapes: &[(usize, usize)]) -> Program {
        let mut offset = 1237;
        let place = |&(rows, cols): &(usize, usize)| {
            let matrix = matrix(offset, rows, cols);
            offset += matrix.bytes();
            matrix
        };
        let matrices: Vec<_> = shapes.iter().map(place).collect();
        let product = |i| Step::MatMul(Product::new(MatrixId(i), Buffer(0), Buffer(1)));
        let mut steps: Vec<_> = (0..shapes.len()).map(product).collect();
        steps.insert(shapes.len() - 1, Step::Select { input: Buffer(1), output: Buffer(2) });
        Program {
            family: "test",
            vocab: 100,
            max_positions: 4096,
            buffers: vec![64, 64, 64],
            embedding: matrix(0, 100, 64),
            matrices,
            experts: Vec::new(),
            vectors: Vec::new(),
            ropes: vec![Rope { style: RopeStyle::Half, inv_freq: vec![1.0; 8], attention_factor: 1.0, dynamic: None }],
            kv: vec![KvShape { heads: 2, key_dim: 16, value_dim: 16 }; 2],
            states: Vec::new(),
            steps,
            logits: Buffer(1),
        }
    }

    pub(super) fn request(ram: u64) -> Request {
        Request { ram, context: 100, sequences: 2, all_logits: false, align: ALIGN, scratch: 10_000, gpu: None }
    }

    pub(super) fn shapes() -> impl Strategy<Value = Vec<(usize, usize)>> {
        prop::collection::vec((1..4000usize, 1..3000usize), 2..30)
    }

    /// The floor that an error names, in bytes.
    pub(super) fn named_floor(error: &Error) -> u64 {
        let text = error.to_string();
        let mib = text.split("at least ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a floor");
        mib.parse::<u64>().expect("a number of MiB") << 20
    }

    /// Bytes in memory of the tiles of one tier: all of them, and the largest.
    fn slots(plan: &Plan, tier: Tier) -> (usize, usize) {
        let slots = plan.tiles.iter().filter(|tile| tile.tier == tier).map(|tile| enclose(tile.span, ALIGN).len);
        slots.fold((0, 0), |(sum, largest), slot| (sum + slot, largest.max(slot)))
    }

    proptest! {
        #[test]
        fn every_row_is_in_one_tile_and_in_order(shapes in shapes(), mib in 1..200u64) {
            let program = program(&shapes);
            let Ok(plan) = Plan::new(&program, &request(mib << 20)) else { return Ok(()) };
            let mut tiles = plan.tiles.iter();
            for (i, matrix) in program.matrices.iter().enumerate() {
                let mut row = 0;
                while row < matrix.rows {
                    let tile = tiles.next().expect("tiles for every matrix");
                    prop_assert_eq!((tile.matrix.0, tile.rows.start), (i, row));
                    let offset = matrix.tensor.span.offset + (row * matrix.row_bytes()) as u64;
                    prop_assert_eq!((tile.span.offset, tile.span.len), (offset, (tile.rows.len() * matrix.row_bytes()) as u64));
                    prop_assert!(!tile.rows.is_empty());
                    row = tile.rows.end;
                }
            }
            prop_assert!(tiles.next().is_none());
        }

        #[test]
        fn the_budget_holds_and_the_ring_works(shapes in shapes(), mib in 1..200u64) {
            let program = program(&shapes);
            let ram = mib << 20;
            match Plan::new(&program, &request(ram)) {
                Ok(plan) => {
                    prop_assert!(plan.memory.total() as u64 <= ram);
                    prop_assert!(slots(&plan, Tier::Host).0 <= plan.memory.host);
                    prop_assert!(slots(&plan, Tier::Disk).1 * RING_TILES <= plan.memory.ring);
                }
                Err(error) => {
                    let floor = named_floor(&error);
                    prop_assert!(floor > ram);
                    prop_assert!(Plan::new(&program, &request(floor)).is_ok(), "the named floor of {floor} is not enough");
                }
            }
        }

        #[test]
        fn tiles_that_stay_are_spread_evenly(shapes in shapes(), percent in 5..95u64) {
            let program = program(&shapes);
            let mut tiles = cut(&program, 1 << 20);
            let size = |tile: &Tile| enclose(tile.span, ALIGN).len;
            let total: usize = tiles.iter().map(size).sum();
            let largest = tiles.iter().map(size).max().unwrap();
            let bytes = (total as u64 * percent / 100) as usize;
            let used = keep(&mut tiles, Tier::Host, bytes, size);
            prop_assert!(used <= bytes && used + 2 * largest > bytes);
            let (mut passed, mut kept) = (0, 0);
            for tile in &tiles {
                passed += size(tile);
                kept += if tile.tier == Tier::Host { size(tile) } else { 0 };
                let even = passed as f64 * bytes as f64 / total as f64;
                prop_assert!((kept as f64 - even).abs() <= largest as f64, "{kept} of an even {even}");
            }
        }
    }

    #[test]
    fn factors_come_whole_before_their_matrix_and_have_room() {
        let mut program = program(&[(3000, 512), (300, 700)]);
        let scales = Tensor {
            span: Span { file: FileId(0), offset: 99_999_999, len: 3000 * 8 * 4 },
            ..matrix(0, 3000, 8).tensor
        };
        let role = Role::Scales { encoding: Encoding::F32, repeat: 1, divisor: 1.0 };
        let parts = vec![Part { role, tensor: scales }];
        program.matrices[0].groups = Some(Groups { parts, count: 3000 * 8, rows: 1, cols: 64 });
        let without = Plan::new(&self::program(&[(3000, 512), (300, 700)]), &request(1 << 30)).unwrap();
        let room = FactorRoom::of(&program).bytes();
        assert_eq!(room, 3000 * 8 * 4);
        for ram in [1 << 30, 3 << 20] {
            let plan = Plan::new(&program, &request(ram)).unwrap();
            let factors = plan.tiles.iter().take_while(|tile| tile.factors == Some(0));
            let end = factors.fold(0, |next, tile| {
                assert_eq!((tile.matrix.0, tile.rows.start), (0, next));
                assert_eq!(tile.span.offset, 99_999_999 + 4 * next as u64);
                assert_eq!(tile.span.len, 4 * tile.rows.len() as u64);
                tile.rows.end
            });
            assert_eq!(end, 3000 * 8);
            assert_eq!(
                plan.tiles.iter().filter(|tile| tile.factors.is_some()).map(|tile| tile.rows.len()).sum::<usize>(),
                end
            );
            assert_eq!(plan.memory.scratch, without.memory.scratch + room);
        }
    }

    #[test]
    fn with_enough_memory_everything_stays_and_nothing_is_read_again() {
        let plan = Plan::new(&program(&[(1000, 512), (300, 700)]), &request(1 << 30)).unwrap();
        assert_eq!((plan.disk_bytes(), plan.memory.ring), (0, 0));
        assert_eq!(plan.pass_bytes(), (1000 * 512 + 300 * 700) * 2);
    }

    #[test]
    fn a_pass_takes_as_long_as_the_slower_of_disk_and_arithmetic() {
        let plan = Plan::new(&program(&[(1000, 512), (300, 700)]), &request(1 << 30)).unwrap();
        // Nobody copies to a GPU, however slowly.
        assert_eq!((plan.copied_bytes(), plan.disk_bytes()), (0, 0));
        assert_eq!(plan.seconds_per_pass(1e9, 1.0, 1e6), plan.pass_bytes() as f64 / 1e6);
        let plan = Plan::new(&program(&[(30_000, 512), (300, 700)]), &request(12 << 20)).unwrap();
        assert!(plan.disk_bytes() > 0);
        assert_eq!(plan.seconds_per_pass(1e3, 1.0, 1e9), plan.disk_bytes() as f64 / 1e3);
    }
}
