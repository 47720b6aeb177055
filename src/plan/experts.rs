//! The experts' part of the plan: how their matrices are cut, and the memory that holds their tiles.
//!
//! Memory goes to the weights that every pass uses first: a byte of them that stays saves a byte of every pass, a byte of
//! an expert only where a token is routed to it. What is left, nearly all of a large budget, is the experts' cache.

use std::ops::Range;

use super::{PAGE, RING_TILES, TILE_TARGET, device};
use crate::checkpoint::Span;
use crate::disk::align::enclose;
use crate::program::{Expert, Matrix, Program};

/// What the experts get before the other weights get more than they need to be streamed: enough that a drive has all that
/// it can use in flight.
const WORKING_TARGET: usize = 256 << 20;

/// How the experts of a program are streamed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExpertPlan {
    /// By layer, expert, matrix and rows.
    pub tiles: Vec<ExpertTile>,
    /// Which of them are an expert's, by layer and expert.
    ranges: Vec<Vec<Range<usize>>>,
    /// Bytes that the experts of one token have, in all layers, on average over experts.
    pub token_bytes: u64,
    /// Bytes of all experts.
    pub bytes: u64,
}

/// A run of stored rows of one matrix of one expert.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertTile {
    /// Index into [`Program::experts`].
    pub layer: usize,
    pub expert: usize,
    /// Which of the expert's matrices.
    pub matrix: usize,
    pub rows: Range<usize>,
    /// What is read: the rows, after them their exponents if they have any, and with a matrix's first rows its factors.
    pub spans: Vec<Span>,
}

impl ExpertPlan {
    /// Cuts every matrix of every expert into tiles of at most `bytes` (but at least one row), of nearly equal size.
    pub(super) fn cut(program: &Program, bytes: usize) -> ExpertPlan {
        let mut plan = ExpertPlan::default();
        for (layer, experts) in program.experts.iter().enumerate() {
            let mut ranges = Vec::with_capacity(experts.experts.len());
            for (expert, matrices) in experts.experts.iter().enumerate() {
                let first = plan.tiles.len();
                for (matrix, weights) in matrices.matrices.iter().enumerate() {
                    let tile = |rows: Range<usize>| {
                        let spans = matrices.spans(matrix, rows.clone());
                        ExpertTile { layer, expert, matrix, rows, spans }
                    };
                    plan.tiles.extend(super::split(weights, bytes).map(tile));
                }
                ranges.push(first..plan.tiles.len());
            }
            plan.ranges.push(ranges);
            plan.bytes += experts.bytes();
            plan.token_bytes += experts.token_bytes();
        }
        plan
    }

    /// The tiles of an expert.
    pub fn of(&self, layer: usize, expert: usize) -> Range<usize> {
        self.ranges[layer][expert].clone()
    }

    /// Bytes that one block of memory has, which holds any tile.
    fn block(&self, align: usize) -> usize {
        let len = |tile: &ExpertTile| tile.spans.iter().map(|span| enclose(*span, align).len).sum();
        self.tiles.iter().map(len).max().unwrap_or(0)
    }

    /// Bytes that one block of a GPU's memory has, which holds any tile.
    pub fn device_block(&self) -> usize {
        let len = |tile: &ExpertTile| tile.spans.iter().map(|span| span_bytes(span.len)).sum();
        self.tiles.iter().map(len).max().unwrap_or(0)
    }
}

/// Bytes that a span takes on a GPU.
pub fn span_bytes(len: u64) -> usize {
    (len as usize).next_multiple_of(device::ALIGN)
}

impl ExpertTile {
    /// How many tensors of factors come with it, for the whole matrix: its last spans.
    pub fn factors(&self, matrix: &Matrix) -> usize {
        matrix.groups.as_ref().filter(|_| self.rows.start == 0).map_or(0, |groups| groups.parts.len())
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.spans.iter().map(|span| span.len).sum()
    }
}

/// The smallest memory for experts that works: as many of their smallest tiles as a ring has.
pub(super) fn floor(program: &Program, align: usize) -> usize {
    largest_row(program, 2 * align).map_or(0, |tile| RING_TILES * tile + PAGE)
}

/// The same of a GPU's memory.
pub(super) fn device_floor(program: &Program) -> usize {
    largest_row(program, device::ALIGN).map_or(0, |tile| RING_TILES * tile.next_multiple_of(device::ALIGN))
}

/// Bytes of the largest tile of one row, with so many more for every span.
fn largest_row(program: &Program, more: usize) -> Option<usize> {
    let spans = |expert: &Expert, matrix: usize| {
        expert.spans(matrix, 0..1).iter().map(|span| span.len as usize + more).sum::<usize>()
    };
    let experts = program.experts.iter().flat_map(|layer| &layer.experts);
    experts.flat_map(|expert| (0..expert.matrices.len()).map(move |matrix| spans(expert, matrix))).max()
}

/// Bytes of memory in which the exponents of a tile become factors.
pub(super) fn factor_bytes(program: &Program) -> usize {
    let experts = program.experts.iter().flat_map(|layer| &layer.experts);
    let row = |expert: &Expert| expert.exponents.iter().map(|exponents| exponents.row_bytes).max();
    match experts.filter_map(row).max() {
        // Sixteen bytes of numbers to each.
        Some(row) => (TILE_TARGET / 16).max(row) * size_of::<f32>(),
        None => 0,
    }
}

/// What experts, whose memory is at least `floor`, get before the other weights get more than `others`, of `left` bytes.
pub(super) fn working(floor: usize, left: usize, others: usize) -> usize {
    if floor == 0 {
        return 0;
    }
    (left / 2).min(WORKING_TARGET).max(floor).min(left.saturating_sub(others))
}

/// Cuts the experts for `left` bytes of memory; also the bytes that are taken of them.
pub(super) fn place(program: &Program, left: usize, align: usize) -> (ExpertPlan, usize) {
    if program.experts.is_empty() {
        return (ExpertPlan::default(), 0);
    }
    let left = left / PAGE * PAGE;
    let plan = ExpertPlan::cut(program, target(program, left, 2 * align));
    let all = plan.block(align).saturating_mul(plan.tiles.len()).next_multiple_of(PAGE);
    (plan, left.min(all))
}

/// The same with a GPU, which has `vram` bytes for them: also the bytes that are taken of it. What fits there needs no other
/// place, but for its way there.
pub(super) fn place_on_gpu(program: &Program, left: usize, vram: usize, align: usize) -> (ExpertPlan, usize, usize) {
    if program.experts.is_empty() {
        return (ExpertPlan::default(), 0, 0);
    }
    let left = left / PAGE * PAGE;
    let plan = ExpertPlan::cut(program, target(program, left, 2 * align).min(target(program, vram, device::ALIGN)));
    let (block, device_block, count) = (plan.block(align), plan.device_block(), plan.tiles.len());
    let blocks = (vram / device_block).min(count);
    let wanted = block.saturating_mul(count - blocks).max(WORKING_TARGET).max(RING_TILES * block);
    let host = left.min(wanted.min(block.saturating_mul(count)).next_multiple_of(PAGE));
    (plan, host, blocks * device_block)
}

/// The most bytes of rows that a tile may have for so much memory, which takes so many more for a span.
fn target(program: &Program, memory: usize, more: usize) -> usize {
    let experts = program.experts.iter().flat_map(|layer| &layer.experts).flat_map(|expert| &expert.matrices);
    let groups = experts.filter_map(|matrix| matrix.groups.as_ref());
    let factors =
        groups.map(|groups| groups.parts.iter().map(|part| part.tensor.span.len as usize + more).sum::<usize>());
    let beside = 2 * more + factors.max().unwrap_or(0);
    // Exponents are a sixteenth of their rows, and a span of their own.
    TILE_TARGET.min((memory / RING_TILES).saturating_sub(beside) / 17 * 16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{ALIGN, matrix, named_floor, program, request};
    use super::*;
    use crate::encoding::Encoding;
    use crate::plan::{GpuRequest, Plan, Request};
    use crate::program::{Expert, ExpertLayer, Exponents, Groups, Part, Role};

    /// What a matrix of an expert has beside its rows.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Beside {
        Nothing,
        Exponents,
        Factors,
    }

    /// Any of these.
    fn beside() -> impl Strategy<Value = Beside> {
        prop_oneof![Just(Beside::Nothing), Just(Beside::Exponents), Just(Beside::Factors)]
    }

    /// A dense program with layers of `experts` experts, of which each has matrices of these shapes.
    fn sparse(shapes: &[(usize, usize)], layers: usize, experts: usize, beside: Beside) -> Program {
        let mut program = program(&[(300, 200), (500, 100)]);
        let mut offset = 10_000_001;
        let mut expert = || {
            let mut expert = Expert { matrices: Vec::new(), exponents: Vec::new() };
            for &(rows, cols) in shapes {
                expert.matrices.push(matrix(offset, rows, cols));
                offset += expert.matrices.last().unwrap().bytes();
                let factors = matrix(offset, rows, cols.div_ceil(32));
                match beside {
                    Beside::Nothing => {}
                    Beside::Exponents => {
                        let tensor = factors.tensor;
                        expert.exponents.push(Exponents { tensor, first_row: 0, row_bytes: cols.div_ceil(32) });
                        offset += (rows * cols.div_ceil(32)) as u64;
                    }
                    Beside::Factors => {
                        let role = Role::Scales { encoding: Encoding::Bf16, repeat: 1, divisor: 1.0 };
                        offset += factors.bytes();
                        let parts = vec![Part { role, tensor: factors.tensor }];
                        let count = rows * cols.div_ceil(32);
                        let groups = Groups { parts, count, rows: 1, cols: 32 };
                        expert.matrices.last_mut().unwrap().groups = Some(groups);
                    }
                }
            }
            expert
        };
        let layer = |_| ExpertLayer { experts: (0..experts).map(|_| expert()).collect(), top_k: experts.div_ceil(4) };
        program.experts = (0..layers).map(layer).collect();
        program
    }

    proptest! {
        /// With a GPU as well: both budgets hold, both memories have as many tiles as a ring at least, and floors are true.
        #[test]
        fn experts_fit_a_gpu(
            shapes in prop::collection::vec((1..1500usize, 1..1500usize), 2..4),
            experts in 1..9usize,
            beside in beside(),
            ram in 1..100u64,
            vram in 1..100u64,
        ) {
            let program = sparse(&shapes, 2, experts, beside);
            let context = 3_000_000;
            let on_gpu = |ram: u64, vram: u64| Request {
                scratch: 0,
                gpu: Some(GpuRequest { vram, context }),
                ..request(ram)
            };
            let plan = match Plan::new(&program, &on_gpu(ram << 20, vram << 20)) {
                Ok(plan) => plan,
                Err(error) => {
                    let (floor, of_gpu) = (named_floor(&error), error.to_string().contains("GPU"));
                    let (ram, vram) = if of_gpu { (1 << 30, floor) } else { (floor, 1 << 30) };
                    prop_assert!(Plan::new(&program, &on_gpu(ram, vram)).is_ok(), "the named floor of {floor} is not enough");
                    return Ok(());
                }
            };
            let (all, gpu) = (&plan.experts, plan.gpu.as_ref().unwrap());
            prop_assert!(plan.memory.total() as u64 <= ram << 20 && gpu.total() <= vram << 20);
            let least = all.tiles.len().min(RING_TILES);
            prop_assert!(plan.memory.experts >= all.block(ALIGN) * least, "{}", plan.memory.experts);
            prop_assert!(gpu.experts >= all.device_block() * least, "{}", gpu.experts);
        }

        /// Every row of every expert is in one tile, in order; blocks of one size hold any of them, four at least; parts
        /// sum to at most the budget; and the floor that a refusal names is enough.
        #[test]
        fn experts_fit_their_memory(
            shapes in prop::collection::vec((1..1500usize, 1..1500usize), 2..4),
            layers in 1..4usize,
            experts in 1..9usize,
            beside in beside(),
            mib in 1..100u64,
        ) {
            let program = sparse(&shapes, layers, experts, beside);
            let plan = match Plan::new(&program, &request(mib << 20)) {
                Ok(plan) => plan,
                Err(error) => {
                    let floor = named_floor(&error);
                    prop_assert!(floor > mib << 20);
                    prop_assert!(Plan::new(&program, &request(floor)).is_ok(), "the named floor of {floor} is not enough");
                    return Ok(());
                }
            };
            prop_assert!(plan.memory.total() as u64 <= mib << 20);
            let (all, block) = (&plan.experts, plan.experts.block(ALIGN));
            prop_assert!(plan.memory.experts >= block * all.tiles.len().min(RING_TILES), "{}", plan.memory.experts);
            for layer in 0..layers {
                for expert in 0..experts {
                    let mut tiles = all.tiles[all.of(layer, expert)].iter();
                    for (m, matrix) in program.experts[layer].experts[expert].matrices.iter().enumerate() {
                        let mut row = 0;
                        while row < matrix.rows {
                            let tile = tiles.next().expect("tiles for every matrix");
                            prop_assert_eq!((tile.layer, tile.expert, tile.matrix, tile.rows.start), (layer, expert, m, row));
                            prop_assert_eq!(tile.spans[0], matrix.span(tile.rows.clone()));
                            let more = beside == Beside::Exponents || beside == Beside::Factors && row == 0;
                            prop_assert_eq!(tile.spans.len(), 1 + usize::from(more));
                            row = tile.rows.end;
                        }
                    }
                    prop_assert!(tiles.next().is_none());
                }
            }
        }
    }

    #[test]
    fn weights_of_every_pass_come_first_and_experts_get_the_rest() {
        let program = sparse(&[(1000, 500), (1000, 500), (500, 1000)], 4, 8, Beside::Nothing);
        let plan = Plan::new(&program, &request(64 << 20)).unwrap();
        assert!(plan.tiles.iter().all(|tile| tile.tier == super::super::Tier::Host));
        assert!(plan.memory.experts > 48 << 20, "{}", plan.memory.experts);
        assert_eq!((plan.experts.bytes, plan.experts.token_bytes), (4 * 8 * 3_000_000, 4 * 2 * 3_000_000));
        let kept = plan.memory.experts as f64 / plan.experts.bytes as f64;
        let expected = plan.experts.token_bytes as f64 * (1.0 - kept);
        assert!((plan.disk_bytes() as f64 / expected - 1.0).abs() < 1e-3);
        // With room for all there is nothing to read.
        assert_eq!(Plan::new(&program, &request(1 << 30)).unwrap().disk_bytes(), 0);
    }
}
