//! Steps as launches: one match over the steps, and what they need of buffers. Everything is queued on one stream, so that
//! each step sees what those before it wrote.
//!
//! Buffers are float32, and what products read is rounded to the 16 bits that they multiply: by the step that makes it,
//! where nobody else reads it, else by a conversion before the product.

mod experts;
mod recurrent;
mod rows;
mod turned;

use layerstream_kernels::driver::Stream;
use layerstream_kernels::launch::norm::Norm as NormKernel;
use layerstream_kernels::launch::{attention, convert, mlp, norm, rope, rows as row_kernels, sample};
use layerstream_kernels::params::{
    ActivateParams, AttentionParams, ConvertParams, Dtype, Gate, GluParams, NormParams, RopeParams, ScaleRowsParams,
    Sequence, SoftCapParams, Vector,
};

use super::card::Card;
use super::notes::{Batch, Run};
use super::products;
use super::weights;
use crate::checkpoint;
use crate::encoding::Encoding;
use crate::error::Result;
use crate::plan::Plan;
use crate::plan::device::{Cut, Layout, Room, cuts, kv_dtype};
use crate::program::{Activation, Attention, Buffer, KvShape, Norm, NormKind, Program, RopeStyle, Step, VectorId};

/// What of a program has no kernel: to be asked before anything runs. Here a new step gets its line first.
pub fn unsupported(program: &Program) -> Option<String> {
    let step = |step: &Step| match step {
        Step::MatMul(product) => products::unsupported(&program.matrices[product.matrix.0]),
        Step::Route { routing, .. } => experts::unsupported_routing(routing),
        Step::Experts(step) => experts::unsupported_experts(program, step),
        Step::DeltaRule(rule) => recurrent::unsupported(rule),
        Step::Attend { layer, .. } => {
            let KvShape { key_dim, value_dim, .. } = program.kv[*layer];
            (key_dim.max(value_dim) > 256).then(|| format!("heads of {} dimensions", key_dim.max(value_dim)))
        }
        _ => None,
    };
    let table = program.embedding.encoding;
    let embedding = float(table).is_none() && weights::of_rows(table).is_none();
    let embedding = embedding.then(|| format!("an embedding of {} numbers", program.embedding.encoding));
    embedding.or_else(|| program.steps.iter().find_map(step))
}

pub(super) fn float(encoding: Encoding) -> Option<Dtype> {
    match encoding {
        Encoding::F32 => Some(Dtype::DTYPE_F32),
        Encoding::F16 => Some(Dtype::DTYPE_F16),
        Encoding::Bf16 => Some(Dtype::DTYPE_BF16),
        _ => None,
    }
}

/// A type of operands as kernels call it.
pub(super) fn kernel_dtype(dtype: checkpoint::Dtype) -> Dtype {
    match dtype {
        checkpoint::Dtype::F32 => Dtype::DTYPE_F32,
        checkpoint::Dtype::F16 => Dtype::DTYPE_F16,
        _ => Dtype::DTYPE_BF16,
    }
}

fn gate(activation: Activation) -> Gate {
    match activation {
        Activation::Silu => Gate::GATE_SILU,
        Activation::Gelu => Gate::GATE_GELU_ERF,
        Activation::GeluTanh => Gate::GATE_GELU_TANH,
        Activation::Relu => Gate::GATE_RELU,
        Activation::Sigmoid => Gate::GATE_SIGMOID,
    }
}

/// Addresses of everything that steps use.
pub struct Steps {
    /// Of the GPU's memory.
    base: u64,
    pub(super) layout: Layout,
    cuts: Vec<Cut>,
    /// For each buffer, the type of the operands that were made of it since it was last written.
    pub(super) operands: Vec<Option<checkpoint::Dtype>>,
    /// Rows that attention over few queries has room for.
    sequences: usize,
    /// Positions that the cache of a sequence has room for.
    context: usize,
    /// Whether rows are those with logits: after [`Step::Select`].
    selected: bool,
    /// What the latest router chose.
    chosen: experts::Chosen,
    /// Steps of this kind that the pass has had.
    scaled_queries: usize,
}

impl Steps {
    pub fn new(program: &Program, plan: &Plan, layout: &Layout, base: u64) -> Steps {
        let operands = vec![None; program.buffers.len()];
        Steps {
            base,
            layout: layout.clone(),
            cuts: cuts(program),
            operands,
            sequences: plan.sequences,
            context: plan.context,
            selected: false,
            chosen: experts::Chosen::default(),
            scaled_queries: 0,
        }
    }

    /// Begins a pass.
    pub fn begin(&mut self) {
        (self.selected, self.scaled_queries) = (false, 0);
        self.operands.fill(None);
    }

    /// The float32 of a buffer.
    pub fn wide(&self, buffer: Buffer) -> u64 {
        self.at(self.room(buffer).wide.expect("the plan gives float32 to whatever steps read or write as such"))
    }

    pub(super) fn at(&self, offset: usize) -> u64 {
        self.base + offset as u64
    }

    fn note(&self, offset: usize) -> u64 {
        self.at(self.layout.notes_at + offset)
    }

    pub(super) fn room(&self, buffer: Buffer) -> &Room {
        &self.layout.buffers[buffer.0]
    }

    pub(super) fn stride(&self, buffer: Buffer) -> i64 {
        self.room(buffer).stride as i64
    }

    pub(super) fn vector(&self, id: Option<VectorId>) -> Vector {
        match id {
            Some(id) => Vector { data: self.at(self.layout.vectors[id.0]) as *const _, dtype: Dtype::DTYPE_F32 },
            None => Vector::default(),
        }
    }

    /// Where a step writes a buffer, which then has no other form: the operands if that is all that is read.
    fn output(&mut self, buffer: Buffer) -> (u64, Dtype) {
        match self.room(buffer).direct {
            Some(dtype) => {
                self.operands[buffer.0] = Some(dtype);
                let at = self.room(buffer).operand.expect("what is written directly has a place");
                (self.at(at), kernel_dtype(dtype))
            }
            None => {
                self.operands[buffer.0] = None;
                (self.wide(buffer), Dtype::DTYPE_F32)
            }
        }
    }

    /// Float32 that a step is about to change.
    pub(super) fn changed(&mut self, buffer: Buffer) -> u64 {
        self.operands[buffer.0] = None;
        self.wide(buffer)
    }

    pub(super) fn rows<'a>(&self, batch: &'a Batch) -> (usize, &'a [Run]) {
        if self.selected { (batch.selected, &batch.selected_runs) } else { (batch.rows, &batch.runs) }
    }

    /// Queues a step that needs no streamed weights.
    pub fn run(&mut self, card: &Card, stream: &Stream, program: &Program, batch: &Batch, step: &Step) -> Result<()> {
        let rows = self.rows(batch).0;
        if rows == 0 {
            return Ok(());
        }
        let queue = Queue { card, stream };
        match step {
            Step::Embed { output, scale } => {
                let table = &program.embedding;
                // Of packed rows in bytes.
                let in_stride = match table.encoding {
                    Encoding::Packed(_) => table.row_bytes(),
                    _ => table.cols,
                } as i64;
                let params = ConvertParams {
                    in_: self.at(self.layout.embedding) as *const _,
                    ids: std::ptr::null(),
                    out: self.changed(*output) as *mut _,
                    in_stride,
                    out_stride: self.stride(*output),
                    rows: rows as i32,
                    cols: table.cols as i32,
                    in_dtype: float(table.encoding).unwrap_or(Dtype::DTYPE_F32),
                    out_dtype: Dtype::DTYPE_F32,
                    scale: *scale,
                };
                match weights::of_rows(table.encoding) {
                    Some(encoding) => queue.launch(&convert::convert_blocks(encoding, &params), &params),
                    None => queue.convert(&params),
                }
            }
            Step::Norm { norm, input, output, add } => {
                let residual = if *add { self.wide(*output) } else { 0 };
                let (x, stride) = (self.wide(*input), self.stride(*input));
                let (out, out_dtype) =
                    if *add { (self.changed(*output), Dtype::DTYPE_F32) } else { self.output(*output) };
                let params = NormParams {
                    residual: residual as *const f32,
                    out: out as *mut _,
                    out_stride: self.stride(*output),
                    out_dtype,
                    ..self.norm(norm, x, stride, rows, program.buffers[input.0])
                };
                queue.norm(norm.kind, &params)
            }
            Step::HeadNorm { norm, buffer, head_dim } => {
                self.head_norm(&queue, program, norm, *buffer, *head_dim, rows)
            }
            Step::MatMul(_) | Step::Experts(_) => unreachable!("products come tile by tile"),
            Step::Route { .. } => unreachable!("the engine has to know what was chosen"),
            Step::Rearrange { input, output, first, run, stride } => {
                let (from, to) = (self.wide(*input), self.changed(*output));
                (0..program.buffers[output.0] / run).try_for_each(|i| {
                    queue.convert(&ConvertParams {
                        in_: (from + 4 * (first + i * stride) as u64) as *const _,
                        ids: std::ptr::null(),
                        out: (to + 4 * (i * run) as u64) as *mut _,
                        in_stride: self.stride(*input),
                        out_stride: self.stride(*output),
                        rows: rows as i32,
                        cols: *run as i32,
                        in_dtype: Dtype::DTYPE_F32,
                        out_dtype: Dtype::DTYPE_F32,
                        scale: 1.0,
                    })
                })
            }
            Step::Rope { buffer, rope: id, head_dim, start } => {
                let rope = &program.ropes[id.0];
                let [cos, sin] = self.layout.notes.angles[id.0].map(|at| self.note(at) as *const f32);
                queue.rope(&RopeParams {
                    q: self.changed(*buffer) as *mut f32,
                    q_stride: self.stride(*buffer),
                    q_heads: (program.buffers[buffer.0] / head_dim) as i32,
                    dim: *head_dim as i32,
                    v_dim: *head_dim as i32,
                    cos,
                    sin,
                    rotary_start: *start as i32,
                    rotary_dim: rope.rotary_dim() as i32,
                    interleaved: i32::from(rope.style == RopeStyle::Interleaved),
                    rows: rows as i32,
                    ..RopeParams::default()
                })
            }
            Step::Append { layer, keys, values } => {
                let KvShape { key_dim, value_dim, .. } = program.kv[*layer];
                queue.rope(&RopeParams {
                    k: self.wide(*keys) as *const f32,
                    v: self.wide(*values) as *const f32,
                    k_stride: self.stride(*keys),
                    v_stride: self.stride(*values),
                    k_head_stride: key_dim as i32,
                    v_head_stride: value_dim as i32,
                    ..self.append(program, *layer, rows)
                })
            }
            Step::AppendShared { layer, packed, shared } => {
                let shape = program.kv[*layer];
                let own = shape.key_dim - program.buffers[shared.0];
                let packed_values = self.wide(*packed) + 4 * own as u64;
                queue.rope(&RopeParams {
                    k: self.wide(*packed) as *const f32,
                    v: packed_values as *const f32,
                    k_stride: self.stride(*packed),
                    v_stride: self.stride(*packed),
                    k_head_stride: (own + shape.value_dim) as i32,
                    v_head_stride: (own + shape.value_dim) as i32,
                    // Which have turned already.
                    k_shared: self.wide(*shared) as *const f32,
                    k_shared_stride: self.stride(*shared),
                    rotary_start: own as i32,
                    rotary_dim: program.buffers[shared.0] as i32,
                    ..self.append(program, *layer, rows)
                })
            }
            Step::Join { parts, output } => self.join(&queue, program, parts, *output, rows),
            Step::Add { input, output } => self.add(&queue, program, *input, *output, rows),
            Step::GateRows { gate, buffer } => self.gate_rows(&queue, program, *gate, *buffer, rows),
            Step::Convolve(convolution) => self.convolve(&queue, program, batch, convolution),
            Step::DeltaRule(rule) => self.delta_rule(&queue, batch, rule),
            Step::Attend { layer, queries, output, attention } => {
                self.attend(&queue, program, batch, *layer, *queries, *output, attention)
            }
            Step::Glu { activation, gate: g, up } => {
                let (x, up) = (self.wide(*g), self.wide(*up));
                let (out, out_dtype) = self.output(*g);
                let params = GluParams {
                    gate: x as *const f32,
                    up: up as *const f32,
                    out: out as *mut _,
                    stride: self.stride(*g),
                    out_stride: self.stride(*g),
                    rows: rows as i32,
                    dim: program.buffers[g.0] as i32,
                    out_dtype,
                    kind: gate(*activation),
                    alpha: 0.0,
                    limit: 0.0,
                };
                queue.launch(&mlp::glu(&params), &params)
            }
            Step::Activate { activation, buffer } => {
                let x = self.wide(*buffer);
                let (out, out_dtype) = self.output(*buffer);
                let params = ActivateParams {
                    x: x as *const f32,
                    out: out as *mut _,
                    stride: self.stride(*buffer),
                    out_stride: self.stride(*buffer),
                    rows: rows as i32,
                    dim: program.buffers[buffer.0] as i32,
                    out_dtype,
                    kind: gate(*activation),
                };
                queue.launch(&mlp::activate(&params), &params)
            }
            Step::ScaleQueries { buffer, .. } => {
                let factors = self.note(self.layout.notes.factors[self.scaled_queries]);
                self.scaled_queries += 1;
                let params = ScaleRowsParams {
                    x: self.changed(*buffer) as *mut f32,
                    factors: factors as *const f32,
                    stride: self.stride(*buffer),
                    rows: rows as i32,
                    n: program.buffers[buffer.0] as i32,
                };
                queue.launch(&row_kernels::scale_rows(&params), &params)
            }
            Step::SoftCap { buffer, cap } => {
                let x = self.changed(*buffer);
                let params = SoftCapParams {
                    x: x as *const f32,
                    out: x as *mut f32,
                    stride: self.stride(*buffer),
                    out_stride: self.stride(*buffer),
                    rows: rows as i32,
                    n: program.buffers[buffer.0] as i32,
                    cap: *cap,
                };
                queue.launch(&sample::soft_cap(&params), &params)
            }
            Step::Select { input, output } => {
                self.selected = true;
                if batch.selected == 0 {
                    return Ok(());
                }
                queue.convert(&ConvertParams {
                    in_: self.wide(*input) as *const _,
                    ids: self.note(self.layout.notes.selected) as *const i32,
                    out: self.changed(*output) as *mut _,
                    in_stride: self.stride(*input),
                    out_stride: self.stride(*output),
                    rows: batch.selected as i32,
                    cols: program.buffers[input.0] as i32,
                    in_dtype: Dtype::DTYPE_F32,
                    out_dtype: Dtype::DTYPE_F32,
                    scale: 1.0,
                })
            }
        }
    }

    fn norm(&self, norm: &Norm, x: u64, stride: i64, rows: usize, dim: usize) -> NormParams {
        NormParams {
            x: x as *const f32,
            add: std::ptr::null(),
            sum: std::ptr::null_mut(),
            residual: std::ptr::null(),
            out: x as *mut _,
            gain: self.vector(norm.weight),
            bias: self.vector(norm.bias),
            stride,
            out_stride: stride,
            rows: rows as i32,
            heads: 1,
            dim: dim as i32,
            out_dtype: Dtype::DTYPE_F32,
            eps: norm.eps,
            gain_offset: norm.offset,
        }
    }

    fn head_norm(
        &mut self,
        queue: &Queue,
        program: &Program,
        norm: &Norm,
        buffer: Buffer,
        dim: usize,
        rows: usize,
    ) -> Result<()> {
        let (x, stride) = (self.changed(buffer), self.stride(buffer));
        let heads = program.buffers[buffer.0] / dim;
        let len = |id: Option<VectorId>| id.map_or(0, |id| program.vectors[id.0].shape.iter().product::<usize>());
        if len(norm.weight).max(len(norm.bias)) <= dim {
            let params = self.norm(norm, x, stride, rows * heads, dim);
            return queue.norm(norm.kind, &NormParams { heads: heads as i32, ..params });
        }
        // Each head has its own vectors, so each is normalised as if there was no other.
        let part = |mut vector: Vector, head: usize| {
            if !vector.data.is_null() {
                vector.data = (vector.data as u64 + (4 * head * dim) as u64) as *const _;
            }
            vector
        };
        (0..heads).try_for_each(|head| {
            let params = self.norm(norm, x + 4 * (head * dim) as u64, stride, rows, dim);
            let (gain, bias) = (part(params.gain, head), part(params.bias, head));
            queue.norm(norm.kind, &NormParams { gain, bias, ..params })
        })
    }

    /// An append to a layer's cache, without what is appended.
    fn append(&self, program: &Program, layer: usize, rows: usize) -> RopeParams {
        let KvShape { heads, key_dim, value_dim } = program.kv[layer];
        let cut = self.cut(Cut { heads, chunk: None });
        let [keys, values] = self.layout.kv[layer].map(|at| self.at(at) as *mut _);
        RopeParams {
            keys,
            values,
            sequences: self.note(self.layout.notes.sequences[cut]) as *const Sequence,
            row_sequence: self.note(self.layout.notes.row_sequence) as *const i32,
            rows: rows as i32,
            kv_heads: heads as i32,
            dim: key_dim as i32,
            v_dim: value_dim as i32,
            cache_dtype: kernel_dtype(kv_dtype(program)),
            ..RopeParams::default()
        }
    }

    fn cut(&self, cut: Cut) -> usize {
        self.cuts.iter().position(|other| *other == cut).expect("all cuts of the program are listed")
    }

    #[expect(clippy::too_many_arguments, reason = "all of what attention is")]
    fn attend(
        &mut self,
        queue: &Queue,
        program: &Program,
        batch: &Batch,
        layer: usize,
        queries: Buffer,
        output: Buffer,
        attention: &Attention,
    ) -> Result<()> {
        let KvShape { heads: kv_heads, key_dim, value_dim } = program.kv[layer];
        let cut = self.cut(Cut { heads: kv_heads, chunk: attention.chunk });
        let [cached, values] = self.layout.kv[layer].map(|at| self.at(at));
        let keys = match attention.turn_keys {
            Some(rope) => self.turn(queue, program, batch, layer, rope)?,
            None => cached,
        };
        let (out, out_dtype) = self.output(output);
        let pieces = &batch.pieces[cut];
        let sequences = self.note(self.layout.notes.sequences[cut]);
        let some = |first: usize, count: usize, most_rows: usize, most_keys: usize| AttentionParams {
            q: self.wide(queries) as *const f32,
            keys: keys as *const _,
            values: values as *const _,
            out: out as *mut _,
            sequences: (sequences + (first * size_of::<Sequence>()) as u64) as *const Sequence,
            sinks: self.vector(attention.sinks),
            slopes: self.layout.slopes[layer].map_or(0, |at| self.at(at)) as *const f32,
            workspace: self.at(self.layout.workspace) as *mut f32,
            q_stride: self.stride(queries),
            out_stride: self.stride(output),
            sequence_count: count as i32,
            heads: (program.buffers[queries.0] / key_dim) as i32,
            kv_heads: kv_heads as i32,
            dim: key_dim as i32,
            v_dim: value_dim as i32,
            window: attention.window.unwrap_or(0) as i32,
            most_rows: most_rows as i32,
            most_keys: most_keys as i32,
            cache_dtype: kernel_dtype(kv_dtype(program)),
            out_dtype,
            scale: attention.scale,
            soft_cap: attention.soft_cap.unwrap_or(0.0),
            bias_factor: attention.bias_factor.unwrap_or(0.0),
        };
        if pieces.prompts > 0 {
            let params = some(0, pieces.prompts, pieces.most_rows, pieces.prompt_keys);
            queue.launch(&attention::prefill(&params), &params)?;
        }
        // The workspace is for a row of each sequence.
        for first in (0..pieces.answers).step_by(self.sequences) {
            let count = self.sequences.min(pieces.answers - first);
            let params = some(pieces.prompts + first, count, 1, pieces.answer_keys);
            for launch in attention::decode(&params) {
                queue.launch(&launch, &params)?;
            }
        }
        Ok(())
    }
}

/// Where launches go.
pub(super) struct Queue<'a> {
    pub card: &'a Card,
    pub stream: &'a Stream,
}

impl Queue<'_> {
    pub fn launch<P: Copy>(&self, launch: &layerstream_kernels::launch::Launch, params: &P) -> Result<()> {
        // SAFETY: the parameters of this kernel, as its function in `launch` takes them. Their addresses are places in the
        // GPU's memory that the plan has laid out for them in the sizes of a pass, which the engine has checked, and a tile
        // that stays where it is until it is reported as used. One stream orders all that touches them.
        unsafe { self.card.launch(self.stream, launch, params) }
    }

    pub fn convert(&self, params: &ConvertParams) -> Result<()> {
        self.launch(&convert::convert(params), params)
    }

    fn norm(&self, kind: NormKind, params: &NormParams) -> Result<()> {
        let kind = match kind {
            NormKind::Rms => NormKernel::Rms,
            NormKind::Layer => NormKernel::Layer,
        };
        self.launch(&norm::norm(kind, params), params)
    }

    fn rope(&self, params: &RopeParams) -> Result<()> {
        self.launch(&rope::rope(params), params)
    }
}
