//! The engine walks the program: step by step, tile by tile, from token ids to logits. What computes is a backend; all
//! memory is taken when it is made, from the plan; a pass allocates nothing that grows with the model.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::backend::cpu::{Cpu, CpuBackend};
#[cfg(feature = "cuda")]
use crate::backend::cuda::CudaBackend;
use crate::backend::{Backend, Processor};
use crate::disk::gather::Gather;
use crate::disk::{DiskOptions, Source};
use crate::error::{Error, Result};
use crate::pass::Segment;
use crate::plan::{ExpertTile, Plan};
use crate::profile::Recorder;
use crate::program::{self, Product, Program, Step};
use crate::stream::{Conveyor, DemandStats, DemandTile, Experts, StreamStats, TileRead};

/// Asks a running pass to stop; clones share the request. The pass ends with [`Error::Interrupted`] before its next
/// tile, and the engine is ready for another.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Asks to stop.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether someone asked.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Takes the request back, so that passes run again.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    fn check(&self) -> Result<()> {
        if self.is_set() { Err(Error::Interrupted) } else { Ok(()) }
    }
}

/// How far a running pass is; clones share the counts. They are for showing, so each is read on its own.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    passes: AtomicU64,
    bytes: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// Passes that were begun so far.
    pub fn passes(&self) -> u64 {
        self.0.passes.load(Ordering::Relaxed)
    }

    /// Bytes of weights that this pass has used so far.
    pub fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Bytes of weights that a pass uses, as far as is known: experts are added when they are chosen.
    pub fn total(&self) -> u64 {
        self.0.total.load(Ordering::Relaxed)
    }

    fn begin(&self, total: u64) {
        self.0.bytes.store(0, Ordering::Relaxed);
        self.0.total.store(total, Ordering::Relaxed);
        self.0.passes.fetch_add(1, Ordering::Relaxed);
    }

    fn add(&self, bytes: u64) {
        self.0.total.fetch_add(bytes, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Runs passes of one model in the memory of one plan.
pub struct Engine {
    program: Arc<Program>,
    plan: Plan,
    backend: Box<dyn Backend>,
    conveyor: Conveyor,
    /// Where the model has experts.
    experts: Option<Experts>,
    /// The experts that the latest router chose.
    chosen: Vec<usize>,
    gather: Gather,
    stop: StopFlag,
    progress: Progress,
    passes: u64,
    processor: Processor,
    /// By the driver's count, when all memory had been taken.
    vram_taken: Option<u64>,
    recorder: Recorder,
}

impl Engine {
    /// Takes all memory, reads the small weights, and starts to read the first tiles.
    ///
    /// # Errors
    /// Files that cannot be read, memory that is not there, threads that cannot be started.
    pub fn new(
        source: &Source,
        program: Program,
        plan: Plan,
        disk: &DiskOptions,
        processor: Processor,
        threads: Option<usize>,
        recorder: Recorder,
    ) -> Result<Self> {
        recorder.describe(&program, &plan);
        let gather = Gather::open(source)?;
        let program = Arc::new(program);
        let reads = plan.tiles.iter().map(|tile| TileRead { span: tile.span, tier: tile.tier });
        let conveyor = Conveyor::start_recorded(source, reads.collect(), plan.memory.ring, disk, recorder.clone())?;
        let taken = conveyor.stats();
        assert!(taken.ring_bytes + taken.resident_bytes <= plan.memory.ring + plan.memory.host, "the plan counts all");
        let experts = match plan.experts.tiles.is_empty() {
            true => None,
            false => Some(stream_experts(source, &plan, disk, &taken, recorder.clone())?),
        };
        let backend: Box<dyn Backend> = match &processor {
            Processor::Cpu { .. } => {
                let cpu = Cpu::new(threads)?;
                Box::new(CpuBackend::new(cpu, Arc::clone(&program), &plan, &gather, recorder.clone())?)
            }
            #[cfg(feature = "cuda")]
            Processor::Cuda { card, .. } => {
                let (card, program) = (Arc::clone(card), Arc::clone(&program));
                let memory = conveyor.memory().iter().chain(experts.as_ref().map(Experts::memory));
                let memory: Vec<_> = memory.cloned().collect();
                Box::new(CudaBackend::new(card, program, &plan, &gather, &memory, recorder.clone())?)
            }
        };
        // The plan counts what it allocates, what the context took at first, and the page tables of what is page-locked. What
        // the driver takes beside that only the driver knows.
        let vram_taken = processor.vram_taken();
        if let (Some(taken), Some(gpu)) = (vram_taken, &plan.gpu)
            && taken > gpu.vram
        {
            let (mib, over) = (gpu.vram >> 20, (taken - gpu.vram).div_ceil(1 << 20));
            tracing::warn!(
                "the GPU has {over} MiB more of this process, or of others since, than the budget of {mib} MiB: give less \
                 (--vram)"
            );
        }
        Ok(Engine {
            program,
            plan,
            backend,
            conveyor,
            experts,
            chosen: Vec::new(),
            gather,
            processor,
            vram_taken,
            stop: StopFlag::default(),
            progress: Progress::default(),
            passes: 0,
            recorder,
        })
    }

    pub fn program(&self) -> &Program {
        &self.program
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How many of its first tokens a sequence need not be fed, whose cache holds `cached` tokens, the first `prompt` of them
    /// computed as tokens of a prompt, and with which it has `common` tokens in common: none where the rotation of a key
    /// depends on how long the sequence was to become; where layers keep a state, which cannot go back, all or none; and on a
    /// GPU, where a generated token has other bits than the same token of a prompt, only what was part of a prompt.
    pub fn reusable(&self, cached: usize, prompt: usize, common: usize) -> usize {
        let common = if matches!(self.processor, Processor::Cpu { .. }) { common } else { common.min(prompt) };
        let goes_back = self.program.states.is_empty() || cached == common;
        if self.program.rotation_depends_on_length() || !goes_back { 0 } else { common }
    }

    /// What computes.
    pub fn processor(&self) -> &Processor {
        &self.processor
    }

    /// Bytes of the GPU's memory that were in use because of this process when all had been taken ([`Processor::vram_taken`]).
    pub fn vram_taken(&self) -> Option<u64> {
        self.vram_taken
    }

    /// The flag that ends a running pass early.
    pub fn stop_flag(&self) -> &StopFlag {
        &self.stop
    }

    /// How far the running pass is.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Passes that were completed.
    pub fn passes(&self) -> u64 {
        self.passes
    }

    /// What the conveyor has read and waited for so far.
    pub fn stream_stats(&self) -> StreamStats {
        self.conveyor.stats()
    }

    /// The same of experts, if the model has any.
    pub fn expert_stats(&self) -> Option<DemandStats> {
        self.experts.as_ref().map(Experts::stats)
    }

    /// One pass over all weights. Returns the logits, `[rows, vocab]`, of the tokens that the segments want, in order;
    /// they may be changed in place.
    ///
    /// # Errors
    /// A read that failed, [`Error::Interrupted`], or a request beyond the plan. After an error the next pass starts
    /// afresh; the KV cache holds what earlier passes put there.
    pub fn forward(&mut self, segments: &[Segment]) -> Result<&mut [f32]> {
        self.check(segments)?;
        self.progress.begin(self.plan.shared_bytes());
        if let Err(error) = self.walk(segments).and_then(|()| self.backend.finish(&mut self.conveyor)) {
            self.backend.abandon(&mut self.conveyor);
            if let Some(experts) = &mut self.experts {
                // As with the conveyor: a failure is there for the next pass to find.
                let _ = experts.cancel();
            }
            return Err(error);
        }
        self.passes += 1;
        Ok(self.backend.logits())
    }

    fn check(&self, segments: &[Segment]) -> Result<()> {
        let request = |problem: String| Err(Error::Request(problem));
        for segment in segments {
            if let Some(id) = segment.tokens.iter().find(|id| **id as usize >= self.program.embedding.rows) {
                let vocab = self.program.embedding.rows;
                return request(format!("token id {id} is outside the model's vocabulary of {vocab}"));
            }
            if segment.positions().end > self.plan.context {
                let (found, context) = (segment.positions().end, self.plan.context);
                return request(format!("{found} tokens do not fit a context of {context}"));
            }
            assert!(!segment.tokens.is_empty() && segment.sequence < self.plan.sequences);
        }
        assert!(segments.iter().map(|s| s.tokens.len()).sum::<usize>() <= self.plan.rows);
        assert!(segments.iter().map(|s| s.wanted().len()).sum::<usize>() <= self.plan.logit_rows);
        Ok(())
    }

    /// Runs every step.
    fn walk(&mut self, segments: &[Segment]) -> Result<()> {
        let program = Arc::clone(&self.program);
        self.backend.begin(segments)?;
        let mut tile = 0;
        for (index, step) in program.steps.iter().enumerate() {
            self.recorder.enter(index);
            match step {
                Step::MatMul(product) => tile = self.multiply(product, tile)?,
                Step::Route { layer, logits, routing } => {
                    self.chosen = self.backend.route(*logits, routing, &mut self.conveyor)?;
                    self.request(*layer)?;
                }
                Step::Experts(experts) => self.run_experts(experts)?,
                Step::Embed { .. } => {
                    self.read_embedding(&program, segments)?;
                    self.backend.run(step, segments)?;
                }
                _ => self.backend.run(step, segments)?,
            }
        }
        Ok(())
    }

    /// Reads the embedding rows of all tokens, at once.
    fn read_embedding(&mut self, program: &Program, segments: &[Segment]) -> Result<()> {
        let row = program.embedding.row_bytes();
        let ids = segments.iter().flat_map(|segment| segment.tokens);
        let mut reads: Vec<_> = ids
            .zip(self.backend.staging().chunks_exact_mut(row))
            .map(|(id, to)| {
                let id = *id as usize;
                (program.embedding.span(id..id + 1), to)
            })
            .collect();
        self.gather.read_at(&mut reads)
    }

    /// Multiplies with every tile of one matrix, from tile number `tile` of the pass on; returns the next one's.
    fn multiply(&mut self, product: &Product, mut tile: usize) -> Result<usize> {
        while let Some(planned) = self.plan.tiles.get(tile).filter(|planned| planned.matrix == product.matrix) {
            self.stop.check()?;
            self.backend.multiply(product, planned, &mut self.conveyor)?;
            self.progress.advance(planned.span.len);
            tile += 1;
        }
        Ok(tile)
    }

    /// Asks for the tiles of the experts that were chosen, all at once.
    fn request(&mut self, layer: usize) -> Result<()> {
        let (plan, chosen) = (&self.plan.experts, &self.chosen);
        let tiles: Vec<usize> = chosen.iter().flat_map(|expert| plan.of(layer, *expert)).collect();
        self.progress.add(tiles.iter().map(|tile| plan.tiles[*tile].bytes()).sum());
        let feed = self.experts.as_mut().expect("a program with routers has experts");
        self.backend.request(layer, &tiles, feed)
    }

    /// Multiplies with them, expert by expert.
    fn run_experts(&mut self, step: &program::Experts) -> Result<()> {
        let feed = self.experts.as_mut().expect("a program with routers has experts");
        for tile in self.chosen.iter().flat_map(|expert| self.plan.experts.of(step.layer, *expert)) {
            self.stop.check()?;
            let tile = &self.plan.experts.tiles[tile];
            self.backend.expert(step, tile, feed, &mut self.conveyor)?;
            self.progress.advance(tile.bytes());
        }
        Ok(())
    }
}

/// Experts are read as the conveyor reads, with what was measured for it.
fn stream_experts(
    source: &Source,
    plan: &Plan,
    disk: &DiskOptions,
    conveyor: &StreamStats,
    recorder: Recorder,
) -> Result<Experts> {
    let tile = |tile: &ExpertTile| DemandTile { spans: tile.spans.clone(), layer: tile.layer, expert: tile.expert };
    let tiles: Vec<_> = plan.experts.tiles.iter().map(tile).collect();
    let (chunk_bytes, depth) = (Some(conveyor.chunk_bytes), conveyor.drives.first().map(|drive| drive.depth));
    let options = DiskOptions { chunk_bytes, depth, ..*disk };
    let experts = Experts::start_recorded(source, &tiles, plan.memory.experts, &options, recorder)?;
    assert!(experts.stats().memory_bytes <= plan.memory.experts, "the plan counts all");
    Ok(experts)
}
