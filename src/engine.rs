//! The engine walks the program: it waits for a tile, multiplies, gives the tile back, and so on to the logits. All
//! memory is taken when it is made, from the plan; a pass allocates nothing that grows with the model.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::backend::cpu::{self, Attention, Columns, Cpu, Float, Heads, Mode, RmsNorm, RopeStyle, Sequence};
use crate::checkpoint::Tensor;
use crate::disk::gather::Gather;
use crate::disk::{DiskOptions, Source};
use crate::error::{Error, Result};
use crate::kv::KvCache;
use crate::plan::{Plan, Tier};
use crate::program::{Buffer, KvShape, Program, Step};
use crate::stream::{Conveyor, StreamStats, TileRead};

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

    /// Bytes of weights that a pass uses.
    pub fn total(&self) -> u64 {
        self.0.total.load(Ordering::Relaxed)
    }

    fn begin(&self, total: u64) {
        self.0.bytes.store(0, Ordering::Relaxed);
        self.0.total.store(total, Ordering::Relaxed);
        self.0.passes.fetch_add(1, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Consecutive new tokens of one sequence, in one pass.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Which KV cache: below [`Plan::sequences`].
    pub sequence: usize,
    /// Position of the first token; the cache already holds all before it.
    pub start: usize,
    pub tokens: &'a [u32],
    /// Tokens of the sequence when this call is done, later passes of the same prompt included. Only frequencies that
    /// depend on the length look at it.
    pub length: usize,
    pub logits: Wanted,
}

/// Which tokens of a segment get logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    None,
    Last,
    All,
}

impl Segment<'_> {
    fn positions(&self) -> Range<usize> {
        self.start..self.start + self.tokens.len()
    }

    fn wanted(&self) -> Range<usize> {
        let n = self.tokens.len();
        match self.logits {
            Wanted::None => n..n,
            Wanted::Last => n - 1..n,
            Wanted::All => 0..n,
        }
    }
}

/// Runs passes of one model in the memory of one plan.
pub struct Engine {
    program: Arc<Program>,
    plan: Plan,
    cpu: Cpu,
    conveyor: Conveyor,
    gather: Gather,
    /// Norms and biases, in the order of [`Program::vectors`].
    vectors: Vec<Vec<f32>>,
    /// In the order of [`Program::buffers`].
    buffers: Vec<Vec<f32>>,
    kv: KvCache,
    rotation: Rotation,
    /// Embedding rows as they lie on disk, before they become float32.
    staging: Vec<u8>,
    stop: StopFlag,
    progress: Progress,
    passes: u64,
}

impl Engine {
    /// Takes all memory, reads the small weights, and starts to read the first tiles.
    pub fn new(source: &Source, program: Program, plan: Plan, disk: &DiskOptions, cpu: Cpu) -> Result<Self> {
        let gather = Gather::open(source)?;
        let vectors = read_vectors(&cpu, &gather, &program.vectors)?;
        let reads = plan.tiles.iter().map(|tile| TileRead { span: tile.span, resident: tile.tier == Tier::Host });
        let conveyor = Conveyor::start(source, reads.collect(), plan.memory.ring, disk)?;
        let taken = conveyor.stats();
        assert!(taken.ring_bytes + taken.resident_bytes <= plan.memory.ring + plan.memory.host, "the plan counts all");
        let after_select = program.selected_buffers();
        let rows = |buffer| if after_select.contains(&Buffer(buffer)) { plan.logit_rows } else { plan.rows };
        Ok(Engine {
            buffers: program.buffers.iter().enumerate().map(|(i, width)| vec![0.0; width * rows(i)]).collect(),
            kv: KvCache::new(&program.kv, plan.context, plan.sequences),
            rotation: Rotation::new(program.rope.inv_freq.len(), plan.rows),
            staging: vec![0; program.embedding.row_bytes() * plan.rows],
            program: Arc::new(program),
            vectors,
            plan,
            cpu,
            conveyor,
            gather,
            stop: StopFlag::default(),
            progress: Progress::default(),
            passes: 0,
        })
    }

    pub fn program(&self) -> &Program {
        &self.program
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Whether what an earlier call left in a KV cache serves a later one that begins with the same tokens: not where
    /// the rotation of a key depends on how long the sequence was to become.
    pub fn reuses_prefixes(&self) -> bool {
        self.program.rope.dynamic.is_none()
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

    /// One pass over all weights. Returns the logits, `[rows, vocab]`, of the tokens that the segments want, in order;
    /// they may be changed in place.
    ///
    /// # Errors
    /// A read that failed, [`Error::Interrupted`], or a request beyond the plan. After an error the next pass starts
    /// afresh; the KV cache holds what earlier passes put there.
    pub fn forward(&mut self, segments: &[Segment]) -> Result<&mut [f32]> {
        self.check(segments)?;
        self.progress.begin(self.plan.pass_bytes());
        match self.walk(segments) {
            Ok(rows) => {
                self.passes += 1;
                let logits = self.program.logits.0;
                Ok(&mut self.buffers[logits][..rows * self.program.vocab])
            }
            Err(error) => {
                // A conveyor that cannot go on says so again at the next pass; this error is the first cause.
                let _ = self.conveyor.rewind();
                Err(error)
            }
        }
    }

    fn check(&self, segments: &[Segment]) -> Result<()> {
        let request = |problem: String| Err(Error::Request(problem));
        for segment in segments {
            if let Some(id) = segment.tokens.iter().find(|id| **id as usize >= self.program.embedding.rows) {
                let vocab = self.program.embedding.rows;
                return request(format!("token id {id} is outside the model's vocabulary of {vocab}"));
            }
            if segment.positions().end > self.kv.context() {
                let (found, context) = (segment.positions().end, self.kv.context());
                return request(format!("{found} tokens do not fit a context of {context}"));
            }
            assert!(!segment.tokens.is_empty() && segment.sequence < self.plan.sequences);
        }
        assert!(segments.iter().map(|s| s.tokens.len()).sum::<usize>() <= self.plan.rows);
        assert!(segments.iter().map(|s| s.wanted().len()).sum::<usize>() <= self.plan.logit_rows);
        Ok(())
    }

    /// Runs every step; returns how many rows of logits there are.
    fn walk(&mut self, segments: &[Segment]) -> Result<usize> {
        let program = Arc::clone(&self.program);
        self.rotation.fill(&program, segments);
        let mut rows = segments.iter().map(|segment| segment.tokens.len()).sum();
        let mut tile = 0;
        for step in &program.steps {
            match *step {
                Step::Embed { output } => self.embed(&program, segments, output)?,
                Step::RmsNorm { weight, eps, input, output } => {
                    let len = rows * program.buffers[input.0];
                    let norm = RmsNorm { weight: &self.vectors[weight.0], eps, unit_offset: false };
                    let [x, out] = pair(&mut self.buffers, input, output);
                    self.cpu.rms_norm(&x[..len], norm, &mut out[..len]);
                }
                Step::HeadNorm { weight, eps, buffer, head_dim } => {
                    let heads = heads(&program, buffer, head_dim);
                    let norm = RmsNorm { weight: &self.vectors[weight.0], eps, unit_offset: false };
                    self.cpu.head_norm(&mut self.buffers[buffer.0][..rows * heads.stride], heads, norm);
                }
                Step::MatMul { .. } => tile = self.matmul(&program, step, rows, tile)?,
                Step::Rope { buffer, head_dim } => {
                    let heads = heads(&program, buffer, head_dim);
                    self.cpu.rope(
                        &mut self.buffers[buffer.0][..rows * heads.stride],
                        heads,
                        self.rotation.tables(rows),
                    );
                }
                Step::Append { layer, keys, values } => self.append(segments, layer, keys, values),
                Step::Attend { layer, queries, output, scale, window } => {
                    let kv = self.kv.shape(layer);
                    let q_stride = program.buffers[queries.0];
                    let (heads, kv_heads, head_dim) = (q_stride / kv.head_dim, kv.kv_heads, kv.head_dim);
                    let shape = Attention { heads, kv_heads, head_dim, q_stride, scale, window };
                    self.attend(segments, layer, queries, output, shape);
                }
                Step::SwiGlu { gate, up } => {
                    let len = rows * program.buffers[gate.0];
                    let [gate, up] = pair(&mut self.buffers, gate, up);
                    self.cpu.silu_mul(&mut gate[..len], &up[..len]);
                }
                Step::Select { input, output } => rows = self.select(&program, segments, input, output),
            }
        }
        Ok(rows)
    }

    /// Reads the embedding rows of all tokens, at once, and widens them.
    fn embed(&mut self, program: &Program, segments: &[Segment], output: Buffer) -> Result<()> {
        let table = &program.embedding;
        let row = table.row_bytes();
        let ids = segments.iter().flat_map(|segment| segment.tokens);
        let mut reads: Vec<_> = ids
            .zip(self.staging.chunks_exact_mut(row))
            .map(|(id, to)| {
                let mut span = table.tensor.span;
                span.offset += *id as u64 * row as u64;
                span.len = row as u64;
                (span, to)
            })
            .collect();
        self.gather.read_at(&mut reads)?;
        let count = reads.len();
        let out = &mut self.buffers[output.0][..count * table.cols];
        self.cpu.widen(&self.staging[..count * row], float(&table.tensor), out);
        Ok(())
    }

    /// Multiplies with every tile of one matrix, from tile number `tile` of the pass on; returns the next one's.
    fn matmul(&mut self, program: &Program, step: &Step, rows: usize, mut tile: usize) -> Result<usize> {
        let Step::MatMul { matrix, bias, input, output, add } = *step else { unreachable!("called for products only") };
        let weight = &program.matrices[matrix.0];
        let bias = bias.map(|bias| self.vectors[bias.0].as_slice());
        let [x, out] = pair(&mut self.buffers, input, output);
        while let Some(planned) = self.plan.tiles.get(tile).filter(|planned| planned.matrix == matrix) {
            self.stop.check()?;
            let bytes = self.conveyor.next()?;
            if rows > 0 {
                let w = cpu::Tile { bytes: &bytes, float: float(&weight.tensor), k: weight.cols };
                let bias = bias.map(|bias| &bias[planned.rows.clone()]);
                let out = &mut out[..rows * weight.rows];
                let columns = Columns { data: out, stride: weight.rows, first: planned.rows.start };
                let mode = if add { Mode::Add } else { Mode::Store };
                self.cpu.matmul(w, &x[..rows * weight.cols], bias, columns, mode);
            }
            self.progress.advance(planned.span.len);
            tile += 1;
        }
        Ok(tile)
    }

    fn append(&mut self, segments: &[Segment], layer: usize, keys: Buffer, values: Buffer) {
        let KvShape { kv_heads, head_dim } = self.kv.shape(layer);
        let stride = kv_heads * head_dim;
        for (segment, rows) in with_rows(segments) {
            let (k, v) = self.kv.get_mut(layer, segment.sequence);
            for (new, cache) in [(keys, k), (values, v)] {
                let new = &self.buffers[new.0][rows.start * stride..rows.end * stride];
                cpu::append(new, stride, kv_heads, head_dim, segment.start, cache);
            }
        }
    }

    fn attend(&mut self, segments: &[Segment], layer: usize, queries: Buffer, output: Buffer, shape: Attention) {
        let sequence = |(segment, rows): (&Segment, Range<usize>)| {
            let (keys, values) = self.kv.get(layer, segment.sequence);
            Sequence { rows, start: segment.start, keys, values }
        };
        let sequences: Vec<_> = with_rows(segments).map(sequence).collect();
        let [q, out] = pair(&mut self.buffers, queries, output);
        self.cpu.attention(q, &sequences, shape, out);
    }

    fn select(&mut self, program: &Program, segments: &[Segment], input: Buffer, output: Buffer) -> usize {
        let width = program.buffers[input.0];
        let [x, out] = pair(&mut self.buffers, input, output);
        let mut kept = 0;
        for (segment, rows) in with_rows(segments) {
            let wanted = segment.wanted();
            let from = (rows.start + wanted.start) * width..(rows.start + wanted.end) * width;
            out[kept * width..(kept + wanted.len()) * width].copy_from_slice(&x[from]);
            kept += wanted.len();
        }
        kept
    }
}

/// Each segment, and the rows of the pass that are its tokens.
fn with_rows<'a, 't>(segments: &'a [Segment<'t>]) -> impl Iterator<Item = (&'a Segment<'t>, Range<usize>)> {
    segments.iter().scan(0, |first, segment| {
        let rows = *first..*first + segment.tokens.len();
        *first = rows.end;
        Some((segment, rows))
    })
}

/// A buffer seen as heads side by side.
fn heads(program: &Program, buffer: Buffer, dim: usize) -> Heads {
    let stride = program.buffers[buffer.0];
    Heads { count: stride / dim, dim, stride }
}

/// The element type of weights, which the family has checked.
fn float(tensor: &Tensor) -> Float {
    Float::from_dtype(tensor.dtype).expect("families take only types that can be multiplied")
}

/// Two different buffers, both to be used at once.
fn pair(buffers: &mut [Vec<f32>], a: Buffer, b: Buffer) -> [&mut Vec<f32>; 2] {
    buffers.get_disjoint_mut([a.0, b.0]).expect("a step reads and writes different buffers")
}

/// Cosines and sines for the tokens of a pass, each `[rows, pairs]`.
struct Rotation {
    pairs: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotation {
    fn new(pairs: usize, rows: usize) -> Rotation {
        Rotation { pairs, cos: vec![0.0; pairs * rows], sin: vec![0.0; pairs * rows] }
    }

    /// The angle is a product in float32, as in the reference implementation; its functions are exact.
    fn fill(&mut self, program: &Program, segments: &[Segment]) {
        let mut rows = self.cos.chunks_exact_mut(self.pairs).zip(self.sin.chunks_exact_mut(self.pairs));
        for segment in segments {
            let inv_freq = program.rope.inv_freq(segment.length);
            for (position, (cos, sin)) in segment.positions().zip(&mut rows) {
                for ((cos, sin), freq) in cos.iter_mut().zip(sin).zip(inv_freq.iter()) {
                    let angle = (position as f32 * freq) as f64;
                    *cos = angle.cos() as f32 * program.rope.attention_factor;
                    *sin = angle.sin() as f32 * program.rope.attention_factor;
                }
            }
        }
    }

    fn tables(&self, rows: usize) -> cpu::Rope<'_> {
        let len = rows * self.pairs;
        let (cos, sin) = (&self.cos[..len], &self.sin[..len]);
        cpu::Rope { cos, sin, rotary_dim: 2 * self.pairs, style: RopeStyle::Half }
    }
}

/// Norms and biases as float32.
fn read_vectors(cpu: &Cpu, gather: &Gather, tensors: &[Tensor]) -> Result<Vec<Vec<f32>>> {
    let mut bytes: Vec<_> = tensors.iter().map(|tensor| vec![0; tensor.span.len as usize]).collect();
    let mut reads: Vec<_> = tensors.iter().zip(&mut bytes).map(|(t, to)| (t.span, to.as_mut_slice())).collect();
    gather.read_at(&mut reads)?;
    let widen = |(tensor, bytes): (&Tensor, Vec<u8>)| {
        let mut values = vec![0.0; bytes.len() / tensor.dtype.size()];
        cpu.widen(&bytes, float(tensor), &mut values);
        values
    };
    Ok(tensors.iter().zip(bytes).map(widen).collect())
}
