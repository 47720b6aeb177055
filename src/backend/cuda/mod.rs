//! Runs a program's steps on an NVIDIA GPU. The thread that walks the program queues work and hardly ever waits: tiles are
//! copied on one stream ([`feed`], and of experts [`experts`]), kernels run on another ([`steps`]), and events order the two. Kernels are those of the
//! package layerstream-kernels, loaded and launched in [`card`] alone.
//!
//! All memory is taken when the backend is made: one allocation on the GPU, which the plan has laid out, and page-locked
//! memory for what travels: the conveyor's ring and tiles, the arrays of a pass, logits, and the KV cache where it does not
//! fit on the GPU.

mod card;
mod experts;
mod factors;
mod feed;
mod kv;
mod marks;
mod measure;
mod notes;
mod pool;
mod products;
mod ring;
mod staging;
mod states;
mod steps;
mod traps;
mod turning;
mod weights;

use std::sync::Arc;

use layerstream_kernels::driver::{Event, Memory, Stream};

use crate::backend::Backend;
use crate::backend::cpu::{Cpu, read_vectors};
use crate::disk::gather::Gather;
use crate::disk::memory::Mapping;
use crate::error::Result;
use crate::pass::Segment;
use crate::plan::device::Layout;
use crate::plan::{ExpertTile, Plan, Tile};
use crate::profile::Recorder;
use crate::program::{Buffer, Experts, Product, Program, Routing, Step};
use crate::stream::{self, Conveyor};

pub use card::Card;
pub use measure::measure;
pub use steps::unsupported;

use card::failed;
use experts::ExpertFeed;
use feed::Feed;
use kv::KvStream;
use marks::{Marks, What};
use notes::Batch;
use staging::{Registered, Staging};
use states::States;
use steps::Steps;
use traps::Trap;
use turning::Turning;

/// A GPU, with the memory of one plan. Fields are dropped in this order: what uses memory before the memory.
pub(crate) struct CudaBackend {
    feed: Feed,
    experts: ExpertFeed,
    steps: Steps,
    kv: KvStream,
    states: States,
    turning: Turning,
    compute: Stream,
    marks: Marks,
    recorder: Recorder,
    /// The last thing that a pass queues.
    done: Event,
    /// What a router chose is on the host.
    chosen: Event,
    /// Which tile of the pass comes next.
    tile: usize,
    batch: Batch,
    program: Arc<Program>,
    layout: Layout,
    context: usize,
    staging: Staging,
    /// The memory that tiles are read into.
    _registered: Vec<Registered>,
    memory: Memory,
    card: Arc<Card>,
}

impl CudaBackend {
    /// Takes all memory, page-locks `tiles_in`, which tiles are read into, and brings the small weights.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) for memory that is not there, a read of weights that fails, columns that are in
    /// no group.
    pub fn new(
        card: Arc<Card>,
        program: Arc<Program>,
        plan: &Plan,
        gather: &Gather,
        tiles_in: &[Arc<Mapping>],
        recorder: Recorder,
    ) -> Result<CudaBackend> {
        let gpu = &card.gpu;
        gpu.make_current().map_err(failed)?;
        factors::check_indexes(&program, gather)?;
        let planned = plan.gpu.as_ref().expect("a plan for a GPU");
        let layout = planned.layout.clone();
        let mut memory = Memory::new(gpu, planned.allocation()).map_err(failed)?;
        let base = memory.address();
        let vectors = read_vectors(&Cpu::new(Some(1))?, gather, &program.vectors)?;
        for (values, at) in vectors.iter().zip(&layout.vectors) {
            memory.upload(*at, bytemuck::cast_slice(values)).map_err(failed)?;
        }
        for step in &program.steps {
            if let Step::Attend { layer, attention, .. } = step
                && let (Some(slopes), Some(at)) = (&attention.slopes, layout.slopes[*layer])
            {
                memory.upload(at, bytemuck::cast_slice(slopes)).map_err(failed)?;
            }
        }
        let turning = Turning::new(gpu, &program, plan, &layout, &mut memory)?;
        let registered = tiles_in.iter().filter(|mapping| mapping.range().1 > 0);
        let registered = registered.map(|mapping| Registered::new(gpu, mapping)).collect::<Result<_>>()?;
        let compute = Stream::new(gpu).map_err(failed)?;
        let [copies, marks] = Marks::new(gpu, &compute, &recorder)?;
        let ring = base + layout.len() as u64;
        let feed = Feed::new(gpu, plan.tiles.clone(), ring, planned.ring, copies)?;
        let blocks = ring + (planned.ring + planned.tiles) as u64;
        Ok(CudaBackend {
            feed,
            experts: ExpertFeed::new(gpu, Arc::clone(&program), &plan.experts, blocks, planned.experts)?,
            steps: Steps::new(&program, plan, &layout, base),
            kv: KvStream::new(gpu, &program, plan, &layout, base)?,
            states: States::new(plan.sequences),
            turning,
            compute,
            marks,
            recorder,
            done: Event::untimed(gpu).map_err(failed)?,
            chosen: Event::untimed(gpu).map_err(failed)?,
            tile: 0,
            batch: Batch::default(),
            staging: Staging::new(gpu, &program, plan, &layout)?,
            _registered: registered,
            context: plan.context,
            program,
            layout,
            memory,
            card,
        })
    }
}

impl Backend for CudaBackend {
    fn begin(&mut self, segments: &[Segment]) -> Result<()> {
        self.card.gpu.make_current().map_err(failed)?;
        self.tile = 0;
        let notes = &self.layout.notes;
        self.batch = Batch::write(&self.program, notes, self.context, segments, self.staging.notes());
        self.states.begin(notes, segments, self.staging.notes());
        self.steps.begin();
        self.marks.begin(&self.compute, What::Begin)?;
        self.marks.end(&self.compute)?;
        self.kv.begin(segments, self.feed.copies())?;
        let to = self.memory.address() + self.layout.notes_at as u64;
        self.staging.upload_notes(&self.compute, to)?;
        self.turning.begin(&self.program, segments, &self.compute)
    }

    fn staging(&mut self) -> &mut [u8] {
        self.staging.embedding()
    }

    fn run(&mut self, step: &Step, _: &[Segment]) -> Result<()> {
        assert!(!matches!(step, Step::Attend { layer: 1, .. } if traps::set(Trap::PassPanics)), "a planted panic");
        self.read_marks()?;
        if let Step::Append { layer, .. } | Step::AppendShared { layer, .. } = step {
            self.kv.before_append(*layer, &self.compute, self.feed.copies())?;
        }
        self.marks.begin(&self.compute, What::Step(self.marks.step()))?;
        if let Step::Embed { .. } = step {
            let to = self.memory.address() + self.layout.embedding as u64;
            let bytes = self.batch.rows * self.program.embedding.row_bytes();
            self.staging.upload_embedding(&self.compute, to, bytes)?;
        }
        self.steps.run(&self.card, &self.compute, &self.program, &self.batch, step)?;
        match step {
            Step::Append { layer, .. } | Step::AppendShared { layer, .. } => {
                self.kv.after_append(*layer, &self.compute)?
            }
            Step::Attend { layer, .. } => self.kv.after_attend(*layer, &self.compute)?,
            _ => {}
        }
        self.marks.end(&self.compute)?;
        Ok(())
    }

    fn multiply(&mut self, product: &Product, tile: &Tile, conveyor: &mut Conveyor) -> Result<()> {
        self.read_marks()?;
        let on_gpu = self.feed.next(self.tile, &self.compute, conveyor)?;
        let (step, fetched) = (self.marks.step(), on_gpu.was_copied());
        self.marks.begin(&self.compute, What::Product { step, bytes: tile.span.len, fetched })?;
        self.steps.multiply(&self.card, &self.compute, &self.program, &self.batch, product, tile, on_gpu.address)?;
        self.marks.end(&self.compute)?;
        self.feed.used(&on_gpu, &self.compute)?;
        self.tile += 1;
        Ok(())
    }

    fn route(&mut self, logits: Buffer, routing: &Routing, conveyor: &mut Conveyor) -> Result<Vec<usize>> {
        self.read_marks()?;
        self.marks.begin(&self.compute, What::Step(self.marks.step()))?;
        let (ids, count) = self.steps.route(&self.card, &self.compute, &self.program, &self.batch, logits, routing)?;
        if count > 0 {
            self.staging.download_chosen(&self.compute, ids, count)?;
        }
        self.marks.end(&self.compute)?;
        self.compute.record(&self.chosen).map_err(failed)?;
        if !traps::set(Trap::ExpertsComeLate) {
            self.feed.copy_ahead(conveyor)?;
        }
        match () {
            () if traps::set(Trap::ChosenNotWaited) => {}
            () if traps::set(Trap::ExpertsComeLate) => self.chosen.synchronize().map_err(failed)?,
            // Copies end meanwhile, and each gives room to the drives.
            () => self.feed.wait_for(&self.chosen, conveyor)?,
        }
        self.steps.chose(self.staging.chosen(count), self.program.buffers[logits.0], routing.top_k)
    }

    fn request(&mut self, layer: usize, tiles: &[usize], feed: &mut stream::Experts) -> Result<()> {
        self.experts.request(layer, tiles, self.feed.copies(), feed)
    }

    fn expert(
        &mut self,
        step: &Experts,
        tile: &ExpertTile,
        feed: &mut stream::Experts,
        conveyor: &mut Conveyor,
    ) -> Result<()> {
        self.read_marks()?;
        let on_gpu = self.experts.next(&self.compute, feed, (&mut self.feed, conveyor))?;
        let what = What::Product { step: self.marks.step(), bytes: tile.bytes(), fetched: on_gpu.was_copied };
        self.marks.begin(&self.compute, what)?;
        self.steps.expert(&self.card, &self.compute, &self.program, &self.batch, step, tile, on_gpu.address)?;
        self.marks.end(&self.compute)?;
        self.experts.used(&on_gpu, &self.compute)
    }

    fn finish(&mut self, conveyor: &mut Conveyor) -> Result<()> {
        let logits = self.steps.wide(self.program.logits);
        let count = self.batch.selected * self.program.vocab;
        self.marks.begin(&self.compute, What::Logits)?;
        self.staging.download_logits(&self.compute, logits, count)?;
        self.marks.end(&self.compute)?;
        self.compute.record(&self.done).map_err(failed)?;
        if !traps::set(Trap::LogitsNotWaited) {
            self.feed.wait_for(&self.done, conveyor)?;
        }
        self.feed.copies().1.read()?;
        self.marks.read()?;
        self.states.keep();
        Ok(())
    }

    fn logits(&mut self) -> &mut [f32] {
        self.staging.logits(self.batch.selected * self.program.vocab)
    }

    fn abandon(&mut self, conveyor: &mut Conveyor) {
        // What is wrong with the device, the next pass finds: from then on every call says so.
        if !traps::set(Trap::StepsAbandoned) {
            let _ = self.compute.synchronize();
        }
        let _ = self.feed.abandon(conveyor);
        self.experts.abandon();
        self.turning.forget();
        self.feed.copies().1.forget();
        self.marks.forget();
        self.recorder.end_pass(None);
    }
}

impl CudaBackend {
    /// Reads when things ran, now and then.
    fn read_marks(&mut self) -> Result<()> {
        if self.marks.crowded() {
            self.feed.copies().1.read()?;
            self.marks.read()?;
        }
        Ok(())
    }
}

impl Drop for CudaBackend {
    /// Waits for what still uses the memory: something does when a pass ended in a panic.
    fn drop(&mut self) {
        let _ = self.card.gpu.make_current();
        if !traps::set(Trap::DropWhileStepsRun) {
            let _ = self.compute.synchronize();
        }
    }
}
