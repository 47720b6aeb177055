//! Runs a program's steps on the processor. Tiles are multiplied where they lie in the conveyor's memory.

use std::ops::Range;
use std::sync::Arc;

use super::factors::FactorTables;
use super::recurrent::{self, Delta};
use super::rotation::{Rotation, TurnedKeys};
use super::route::Chosen;
use super::{Attention, Columns, Cpu, Finish, GroupedTile, Heads, Inputs, Mode, Norm, Runs, Scales, Sequence};
use crate::backend::Backend;
use crate::checkpoint::Tensor;
use crate::disk::gather::Gather;
use crate::encoding::Encoding;
use crate::error::Result;
use crate::kv::{KvCache, States};
use crate::pass::{Segment, with_rows};
use crate::plan::{ExpertTile, Plan, Tile};
use crate::profile::Recorder;
use crate::program::{
    self, Buffer, Convolution, DeltaRule, Experts, KvShape, Matrix, Product, Program, Routing, Step, VectorId,
};
use crate::stream::{self, Conveyor};

/// The processor, with the memory of one plan.
pub(crate) struct CpuBackend {
    pub(super) program: Arc<Program>,
    pub(super) cpu: Cpu,
    /// Norms and biases, in the order of [`Program::vectors`].
    pub(super) vectors: Vec<Vec<f32>>,
    /// In the order of [`Program::buffers`].
    pub(super) buffers: Vec<Vec<f32>>,
    /// What the latest router chose.
    pub(super) chosen: Chosen,
    /// The factors of the latest tile that came with exponents.
    pub(super) factors_of_tile: Vec<f32>,
    /// The factors of the matrix whose turn it is, where they are streamed.
    pub(super) tables: FactorTables,
    kv: KvCache,
    states: States,
    /// The sequences of the pass.
    running: Vec<usize>,
    /// In the order of [`Program::ropes`].
    rotations: Vec<Rotation>,
    turned: TurnedKeys,
    /// A number for each row, where a step scales rows.
    factors: Vec<f32>,
    /// Embedding rows as they lie on disk, before they become float32.
    staging: Vec<u8>,
    /// Rows that the steps work on at the moment: all of the pass, or after [`Step::Select`] those with logits.
    pub(super) rows: usize,
    recorder: Recorder,
}

impl CpuBackend {
    /// Takes all memory and reads the small weights.
    ///
    /// # Errors
    /// A read of weights that fails.
    pub fn new(
        cpu: Cpu,
        program: Arc<Program>,
        plan: &Plan,
        gather: &Gather,
        recorder: Recorder,
    ) -> Result<CpuBackend> {
        let after_select = program.selected_buffers();
        let rows = |buffer| if after_select.contains(&Buffer(buffer)) { plan.logit_rows } else { plan.rows };
        Ok(CpuBackend {
            vectors: read_vectors(&cpu, gather, &program.vectors)?,
            buffers: program.buffers.iter().enumerate().map(|(i, width)| vec![0.0; width * rows(i)]).collect(),
            chosen: Chosen::default(),
            factors_of_tile: Vec::new(),
            tables: FactorTables::new(&program),
            kv: KvCache::new(&program.kv, plan.context, plan.sequences),
            states: States::new(&program.states, plan.sequences),
            running: Vec::with_capacity(plan.sequences),
            rotations: program.ropes.iter().map(|rope| Rotation::new(rope.rotary_dim() / 2, plan.rows)).collect(),
            turned: TurnedKeys::new(program.turned_keys(plan.context)),
            factors: Vec::with_capacity(plan.rows),
            staging: vec![0; program.embedding.row_bytes() * plan.rows],
            rows: 0,
            recorder,
            program,
            cpu,
        })
    }
}

impl Backend for CpuBackend {
    fn begin(&mut self, segments: &[Segment]) -> Result<()> {
        self.recorder.begin_pass(self.recorder.now());
        for (rotation, rope) in self.rotations.iter_mut().zip(&self.program.ropes) {
            rotation.fill(rope, segments);
        }
        self.turned.forget_angles();
        self.rows = segments.iter().map(|segment| segment.tokens.len()).sum();
        self.running.clear();
        self.running.extend(segments.iter().map(|segment| segment.sequence));
        Ok(())
    }

    fn staging(&mut self) -> &mut [u8] {
        &mut self.staging
    }

    fn run(&mut self, step: &Step, segments: &[Segment]) -> Result<()> {
        let since = self.recorder.now();
        let program = Arc::clone(&self.program);
        let rows = self.rows;
        match *step {
            Step::Embed { output, scale } => {
                let table = &program.embedding;
                let out = &mut self.buffers[output.0][..rows * table.cols];
                let tokens = self.staging.chunks_exact(table.row_bytes()).zip(out.chunks_exact_mut(table.cols));
                tokens.for_each(|(row, out)| self.cpu.widen(row, table.encoding, out));
                if scale != 1.0 {
                    out.iter_mut().for_each(|x| *x *= scale);
                }
            }
            Step::Norm { norm, input, output, add } => {
                let width = program.buffers[input.0];
                let norm = with_vectors(&self.vectors, norm);
                let [x, out] = pair(&mut self.buffers, input, output);
                self.cpu.norm(&x[..rows * width], width, norm, &mut out[..rows * width], mode(add));
            }
            Step::HeadNorm { norm, buffer, head_dim } => {
                let heads = heads(&program, buffer, head_dim);
                let norm = with_vectors(&self.vectors, norm);
                self.cpu.head_norm(&mut self.buffers[buffer.0][..rows * heads.stride], heads, norm);
            }
            Step::MatMul(_) | Step::Experts(_) => unreachable!("products come tile by tile"),
            Step::Route { .. } => unreachable!("the engine has to know what was chosen"),
            Step::Rearrange { input, output, first, run, stride } => {
                let (x_width, width) = (program.buffers[input.0], program.buffers[output.0]);
                let [x, out] = pair(&mut self.buffers, input, output);
                let runs = Runs { first, run, stride };
                self.cpu.rearrange(&x[..rows * x_width], x_width, runs, &mut out[..rows * width], width);
            }
            Step::Rope { buffer, rope, head_dim, start } => {
                let heads = heads(&program, buffer, head_dim);
                let x = &mut self.buffers[buffer.0][..rows * heads.stride];
                let (cos, sin) = self.rotations[rope.0].tables(rows);
                let rope = &program.ropes[rope.0];
                let (rotary_dim, style) = (rope.rotary_dim(), rope.style);
                self.cpu.rope(x, heads, super::Rope { cos, sin, start, rotary_dim, style });
            }
            Step::ScaleQueries { buffer, by } => {
                let width = program.buffers[buffer.0];
                self.factors.clear();
                self.factors.extend(segments.iter().flat_map(|segment| segment.positions()).map(|p| by.at(p)));
                self.cpu.scale_rows(&mut self.buffers[buffer.0][..rows * width], width, &self.factors);
            }
            Step::Join { ref parts, output } => self.join(parts, output),
            Step::Convolve(convolution) => self.convolve(segments, convolution),
            Step::DeltaRule(rule) => self.delta_rule(segments, rule),
            Step::Append { layer, keys, values } => self.append(segments, layer, keys, values),
            Step::AppendShared { layer, packed, shared } => self.append_shared(segments, layer, packed, shared),
            Step::Attend { layer, queries, output, ref attention } => {
                self.attend(&program, segments, layer, queries, output, attention);
            }
            Step::GateRows { gate, buffer } => {
                let width = program.buffers[buffer.0];
                let [gate, x] = pair(&mut self.buffers, gate, buffer);
                self.factors.clear();
                self.factors.extend(gate[..rows].iter().map(|gate| 1.0 / (1.0 + (-gate).exp())));
                self.cpu.scale_rows(&mut x[..rows * width], width, &self.factors);
            }
            Step::Add { input, output } => {
                let len = rows * program.buffers[output.0];
                let [x, out] = pair(&mut self.buffers, input, output);
                out[..len].iter_mut().zip(&x[..len]).for_each(|(out, x)| *out += x);
            }
            Step::Glu { activation, gate, up } => {
                let len = rows * program.buffers[gate.0];
                let [gate, up] = pair(&mut self.buffers, gate, up);
                self.cpu.glu(activation, &mut gate[..len], &up[..len]);
            }
            Step::Activate { activation, buffer } => {
                let len = rows * program.buffers[buffer.0];
                self.cpu.activate(activation, &mut self.buffers[buffer.0][..len]);
            }
            Step::SoftCap { buffer, cap } => {
                let len = rows * program.buffers[buffer.0];
                self.cpu.soft_cap(&mut self.buffers[buffer.0][..len], cap);
            }
            Step::Select { input, output } => self.rows = self.select(&program, segments, input, output),
        }
        self.recorder.ran(since, 0);
        Ok(())
    }

    fn multiply(&mut self, product: &Product, tile: &Tile, feed: &mut Conveyor) -> Result<()> {
        let bytes = feed.next()?;
        let since = self.recorder.now();
        let weight = &self.program.matrices[product.matrix.0];
        if let Some(part) = tile.factors {
            self.tables.take(&self.cpu, weight, part, &tile.rows, &bytes)?;
        } else if self.rows > 0 {
            let [x, out] = pair(&mut self.buffers, product.input, product.output);
            let finish = Finish {
                bias: product.bias.map(|bias| self.vectors[bias.0].as_slice()),
                scale: product.scale,
                normalise_rows: product.normalise_rows,
                mode: mode(product.add),
            };
            let stride = self.program.buffers[product.output.0];
            let (x, data) = (&x[..self.rows * weight.cols], &mut out[..self.rows * stride]);
            let columns = Columns { data, stride, first: product.first };
            match &weight.groups {
                Some(_) if weight.tensor.transposed => {
                    multiply_grouped(&mut self.cpu, weight, &tile.rows, &bytes, &self.tables, x, columns, finish);
                }
                _ => {
                    let scales = scales(&self.vectors, &self.tables, weight, tile.rows.start);
                    multiply(&mut self.cpu, weight, &tile.rows, &bytes, scales, x, columns, finish);
                }
            }
        }
        self.recorder.ran(since, tile.span.len);
        Ok(())
    }

    fn route(&mut self, logits: Buffer, routing: &Routing, _feed: &mut Conveyor) -> Result<Vec<usize>> {
        let since = self.recorder.now();
        let chosen = self.choose(logits, routing);
        self.recorder.ran(since, 0);
        Ok(chosen)
    }

    fn expert(
        &mut self,
        step: &Experts,
        tile: &ExpertTile,
        feed: &mut stream::Experts,
        _: &mut Conveyor,
    ) -> Result<()> {
        let bytes = feed.next()?;
        let since = self.recorder.now();
        self.apply_expert(step, tile, &bytes)?;
        self.recorder.ran(since, tile.bytes());
        Ok(())
    }

    fn finish(&mut self, _feed: &mut Conveyor) -> Result<()> {
        self.running.iter().for_each(|sequence| self.states.keep(*sequence));
        self.recorder.end_pass(Some(self.recorder.now()));
        Ok(())
    }

    fn logits(&mut self) -> &mut [f32] {
        &mut self.buffers[self.program.logits.0][..self.rows * self.program.vocab]
    }

    fn abandon(&mut self, feed: &mut Conveyor) {
        self.recorder.end_pass(None);
        // A conveyor that cannot go on says so again at the next pass.
        let _ = feed.rewind();
    }
}

impl CpuBackend {
    fn append(&mut self, segments: &[Segment], layer: usize, keys: Buffer, values: Buffer) {
        let KvShape { heads, key_dim, value_dim } = self.kv.shape(layer);
        for (segment, rows) in with_rows(segments) {
            let (k, v) = self.kv.get_mut(layer, segment.sequence);
            for (new, dim, cache) in [(keys, key_dim, k), (values, value_dim, v)] {
                let stride = heads * dim;
                let new = &self.buffers[new.0][rows.start * stride..rows.end * stride];
                super::append(new, stride, heads, dim, segment.start, cache);
            }
        }
    }

    fn append_shared(&mut self, segments: &[Segment], layer: usize, packed: Buffer, shared: Buffer) {
        let KvShape { heads, key_dim, value_dim } = self.kv.shape(layer);
        let (width, shared_dim) = (self.program.buffers[packed.0], self.program.buffers[shared.0]);
        let own = key_dim - shared_dim;
        for (segment, rows) in with_rows(segments) {
            let (keys, values) = self.kv.get_mut(layer, segment.sequence);
            let capacity = keys.len() / (heads * key_dim);
            for (row, position) in rows.zip(segment.positions()) {
                let shared = &self.buffers[shared.0][row * shared_dim..(row + 1) * shared_dim];
                let packed = &self.buffers[packed.0][row * width..(row + 1) * width];
                for (head, packed) in packed.chunks_exact(own + value_dim).enumerate() {
                    let at = head * capacity + position;
                    let key = &mut keys[at * key_dim..(at + 1) * key_dim];
                    key[..own].copy_from_slice(&packed[..own]);
                    key[own..].copy_from_slice(shared);
                    values[at * value_dim..(at + 1) * value_dim].copy_from_slice(&packed[own..]);
                }
            }
        }
    }

    fn join(&mut self, parts: &[Buffer], output: Buffer) {
        let width = self.program.buffers[output.0];
        let mut first = 0;
        for part in parts {
            let part_width = self.program.buffers[part.0];
            let [x, out] = pair(&mut self.buffers, *part, output);
            for (x, out) in x.chunks_exact(part_width).zip(out.chunks_exact_mut(width)).take(self.rows) {
                out[first..first + part_width].copy_from_slice(x);
            }
            first += part_width;
        }
    }

    fn convolve(&mut self, segments: &[Segment], convolution: Convolution) {
        let Convolution { state, buffer, weight, .. } = convolution;
        let channels = self.program.buffers[buffer.0];
        for (segment, rows) in with_rows(segments) {
            let state = self.states.next(state.0, segment.sequence, segment.start == 0);
            let x = &mut self.buffers[buffer.0][rows.start * channels..rows.end * channels];
            recurrent::convolve(x, channels, &self.vectors[weight.0], state);
        }
    }

    fn delta_rule(&mut self, segments: &[Segment], rule: DeltaRule) {
        let DeltaRule { key_heads, value_heads, key_dim, value_dim, mixed, decay, write, output, .. } = rule;
        let [mixed, decay, write, out] =
            self.buffers.get_disjoint_mut([mixed.0, decay.0, write.0, output.0]).expect("different buffers");
        let (log_decay, decay_bias) = (&self.vectors[rule.log_decay.0], &self.vectors[rule.decay_bias.0]);
        let inputs = Delta { key_heads, value_heads, key_dim, value_dim, mixed, decay, write, log_decay, decay_bias };
        for (segment, rows) in with_rows(segments) {
            let state = self.states.next(rule.state.0, segment.sequence, segment.start == 0);
            self.cpu.delta(inputs, rows, state, out);
        }
    }

    fn attend(
        &mut self,
        program: &Program,
        segments: &[Segment],
        layer: usize,
        queries: Buffer,
        output: Buffer,
        attention: &program::Attention,
    ) {
        let KvShape { heads: kv_heads, key_dim, value_dim } = self.kv.shape(layer);
        let q_stride = program.buffers[queries.0];
        let shape = Attention {
            heads: q_stride / key_dim,
            kv_heads,
            key_dim,
            value_dim,
            q_stride,
            scale: attention.scale,
            window: attention.window,
            chunk: attention.chunk,
            soft_cap: attention.soft_cap,
            sinks: attention.sinks.map(|sinks| self.vectors[sinks.0].as_slice()),
            slopes: attention.slopes.as_deref(),
            bias_factor: attention.bias_factor,
        };
        let [q, out] = pair(&mut self.buffers, queries, output);
        if let Some(rope) = attention.turn_keys {
            for (segment, rows) in with_rows(segments) {
                let (keys, values) = self.kv.get(layer, segment.sequence);
                let heads = Heads { count: kv_heads, dim: key_dim, stride: key_dim };
                let keys = self.turned.turn(&mut self.cpu, &program.ropes[rope.0], segment, heads, keys);
                let sequence = Sequence { rows, start: segment.start, keys, values };
                self.cpu.attention(q, &[sequence], shape, out);
            }
            return;
        }
        let sequence = |(segment, rows): (&Segment, Range<usize>)| {
            let (keys, values) = self.kv.get(layer, segment.sequence);
            Sequence { rows, start: segment.start, keys, values }
        };
        let sequences: Vec<_> = with_rows(segments).map(sequence).collect();
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

/// A buffer seen as heads side by side.
fn heads(program: &Program, buffer: Buffer, dim: usize) -> Heads {
    let stride = program.buffers[buffer.0];
    Heads { count: stride / dim, dim, stride }
}

/// The factors of a matrix, which are among the small weights or have just been streamed, for a tile that begins with this
/// stored row.
pub(super) fn scales<'a>(
    vectors: &'a [Vec<f32>],
    tables: &'a FactorTables,
    weight: &Matrix,
    first: usize,
) -> Option<Scales<'a>> {
    let first_row = weight.first_row + first;
    if let Some(groups) = &weight.groups {
        let zeros = if groups.have_zeros() { groups.count } else { 0 };
        let (values, zeros) = (&tables.scales[..groups.count], &tables.zeros[..zeros]);
        let index = &tables.index[..if groups.in_any_order() { weight.cols } else { 0 }];
        return Some(Scales { values, zeros, row_block: groups.rows, col_block: groups.cols, index, first_row });
    }
    weight.scales.map(|program::Scales { vector, row_block, col_block }| Scales {
        values: &vectors[vector.0],
        zeros: &[],
        row_block,
        col_block,
        index: &[],
        first_row,
    })
}

/// `out = finish(x · weightᵀ)` as far as some stored rows, of which these are the bytes, contribute. `out` and the bias are
/// for the whole product.
#[expect(clippy::too_many_arguments, reason = "all of what a product is")]
pub(super) fn multiply(
    cpu: &mut Cpu,
    weight: &Matrix,
    rows: &Range<usize>,
    bytes: &[u8],
    scales: Option<Scales<'_>>,
    x: &[f32],
    out: Columns<'_>,
    finish: Finish<'_>,
) {
    let w = super::Tile { bytes, encoding: weight.encoding, k: weight.stored_cols(), scales };
    if weight.tensor.transposed {
        let x = Inputs { data: x, stride: weight.cols, first: rows.start };
        cpu.matmul_transposed(w, x, out, begun(finish, rows.start));
    } else {
        let bias = finish.bias.map(|bias| &bias[rows.clone()]);
        let out = Columns { first: out.first + rows.start, ..out };
        cpu.matmul(w, x, out, Finish { bias, ..finish });
    }
}

/// The same with factors for groups of inputs.
#[expect(clippy::too_many_arguments, reason = "all of what a product is")]
pub(super) fn multiply_grouped(
    cpu: &mut Cpu,
    weight: &Matrix,
    rows: &Range<usize>,
    bytes: &[u8],
    tables: &FactorTables,
    x: &[f32],
    out: Columns<'_>,
    finish: Finish<'_>,
) {
    let Matrix { encoding, rows: outputs, cols, .. } = *weight;
    let count = weight.groups.as_ref().map_or(0, |groups| groups.count);
    let inputs = rows.start * encoding.inputs()..rows.end * encoding.inputs();
    let x = Inputs { data: x, stride: cols, first: inputs.start };
    let (scales, zeros, index) = (&tables.scales[..count], &tables.zeros[..count], &tables.index[inputs]);
    let w = GroupedTile { bytes, encoding, outputs, scales, zeros, index };
    cpu.matmul_grouped(w, x, out, begun(finish, rows.start));
}

/// What is left to do for a tile of a transposed matrix that begins with this stored row: the first one begins every sum.
fn begun(finish: Finish<'_>, first: usize) -> Finish<'_> {
    if first == 0 { finish } else { Finish { bias: None, mode: Mode::Add, ..finish } }
}

/// The norm with its vectors.
fn with_vectors(vectors: &[Vec<f32>], norm: program::Norm) -> Norm<'_> {
    let vector = |id: Option<VectorId>| id.map(|id| vectors[id.0].as_slice());
    let program::Norm { kind, weight, bias, offset, eps } = norm;
    Norm { kind, weight: vector(weight), bias: vector(bias), offset, eps }
}

fn mode(add: bool) -> Mode {
    if add { Mode::Add } else { Mode::Store }
}

/// Two different buffers, both to be used at once.
pub(super) fn pair(buffers: &mut [Vec<f32>], a: Buffer, b: Buffer) -> [&mut Vec<f32>; 2] {
    buffers.get_disjoint_mut([a.0, b.0]).expect("a step reads and writes different buffers")
}

/// Norms and biases as float32.
pub(crate) fn read_vectors(cpu: &Cpu, gather: &Gather, tensors: &[Tensor]) -> Result<Vec<Vec<f32>>> {
    let mut bytes: Vec<_> = tensors.iter().map(|tensor| vec![0; tensor.span.len as usize]).collect();
    let mut reads: Vec<_> = tensors.iter().zip(&mut bytes).map(|(t, to)| (t.span, to.as_mut_slice())).collect();
    gather.read_at(&mut reads)?;
    let widen = |(tensor, bytes): (&Tensor, Vec<u8>)| {
        let encoding = Encoding::of(tensor.dtype).expect("families take only types that can be decoded");
        let mut values = vec![0.0; tensor.shape.iter().product()];
        cpu.widen(&bytes, encoding, &mut values);
        values
    };
    Ok(tensors.iter().zip(bytes).map(widen).collect())
}
