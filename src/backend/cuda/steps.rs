//! Steps as launches: one match over the steps, and what they need of buffers. Everything is queued on one stream, so that
//! each step sees what those before it wrote.
//!
//! Buffers are float32, and what products read is rounded to the 16 bits that they multiply: by the step that makes it,
//! where nobody else reads it, else by a conversion before the product.

use layerstream_kernels::driver::Stream;
use layerstream_kernels::launch::gemm::MAX_DECODE_ROWS;
use layerstream_kernels::launch::norm::Norm as NormKernel;
use layerstream_kernels::launch::{attention, convert, gemm, gemm_prefill, mlp, norm, rope, sample};
use layerstream_kernels::params::{
    AttentionParams, ConvertParams, Dtype, Gate, GemmParams, GluParams, NormParams, PrefillParams, RopeParams,
    Sequence, SoftCapParams, Vector, Weights,
};

use super::card::Card;
use super::notes::{Batch, Phase, Run};
use crate::checkpoint;
use crate::encoding::Encoding;
use crate::error::Result;
use crate::plan::Tile;
use crate::plan::device::{Cut, Layout, Room, cuts, kv_dtype, operand};
use crate::program::{
    Activation, Attention, Buffer, KvShape, Matrix, Norm, NormKind, Product, Program, RopeStyle, Step, VectorId,
};

/// What of a program has no kernel: to be asked before anything runs. Here a new step gets its line first.
pub fn unsupported(program: &Program) -> Option<String> {
    let product = |product: &Product| {
        let matrix = &program.matrices[product.matrix.0];
        match weights(matrix) {
            None => Some(format!("{} weights stored like `{}`", matrix.encoding, matrix.tensor.name)),
            Some(_) if product.scale != 1.0 && product.bias.is_some() => Some("a scaled product with a bias".into()),
            Some(_) if product.normalise_rows => Some("an output head with normalised rows".into()),
            Some(_) => None,
        }
    };
    let step = |step: &Step| match step {
        Step::MatMul(p) => product(p),
        Step::Glu { activation, .. } => gate(*activation).is_none().then(|| format!("the activation {activation:?}")),
        Step::Activate { activation, .. } => Some(format!("the activation {activation:?} of an MLP without gate")),
        Step::Route { .. } | Step::Experts(_) | Step::GateRows { .. } | Step::Add { .. } => Some("experts".into()),
        Step::AppendShared { .. } => Some("latent attention".into()),
        Step::Convolve(_) | Step::DeltaRule(_) | Step::Join { .. } => Some("the gated delta rule".into()),
        Step::ScaleQueries { .. } => Some("queries that are scaled by their position".into()),
        Step::Attend { layer, .. } => {
            let KvShape { key_dim, value_dim, .. } = program.kv[*layer];
            (key_dim.max(value_dim) > 256).then(|| format!("heads of {} dimensions", key_dim.max(value_dim)))
        }
        _ => None,
    };
    let embedding = float(program.embedding.encoding).is_none();
    let embedding = embedding.then(|| format!("an embedding of {} numbers", program.embedding.encoding));
    embedding.or_else(|| program.steps.iter().find_map(step))
}

/// How kernels call the encoding of a matrix, and what they have to know of its blocks; `None` where no kernel reads it.
/// A new encoding gets its line here.
fn weights(matrix: &Matrix) -> Option<(gemm::Encoding, Weights)> {
    if matrix.tensor.transposed {
        return None;
    }
    let plain = |encoding| Some((encoding, Weights::default()));
    match (matrix.encoding, matrix.scales) {
        (Encoding::F32, None) => plain(gemm::Encoding::F32),
        (Encoding::F16, None) => plain(gemm::Encoding::F16),
        (Encoding::Bf16, None) => plain(gemm::Encoding::Bf16),
        (Encoding::F8E4M3, Some(scales)) => {
            let row_shift = shift(scales.row_block, matrix.rows)?;
            let column_shift = shift(scales.col_block, matrix.cols)?;
            Some((gemm::Encoding::Fp8, Weights { row_shift, column_shift, ..Weights::default() }))
        }
        _ => None,
    }
}

/// log2 of the length of blocks, of which `len` numbers may be one.
fn shift(block: usize, len: usize) -> Option<i32> {
    if block >= len { Some(31) } else { block.is_power_of_two().then(|| block.trailing_zeros() as i32) }
}

fn float(encoding: Encoding) -> Option<Dtype> {
    match encoding {
        Encoding::F32 => Some(Dtype::DTYPE_F32),
        Encoding::F16 => Some(Dtype::DTYPE_F16),
        Encoding::Bf16 => Some(Dtype::DTYPE_BF16),
        _ => None,
    }
}

/// A type of operands as kernels call it.
fn kernel_dtype(dtype: checkpoint::Dtype) -> Dtype {
    match dtype {
        checkpoint::Dtype::F32 => Dtype::DTYPE_F32,
        checkpoint::Dtype::F16 => Dtype::DTYPE_F16,
        _ => Dtype::DTYPE_BF16,
    }
}

fn gate(activation: Activation) -> Option<Gate> {
    match activation {
        Activation::Silu => Some(Gate::GATE_SILU),
        Activation::Gelu => Some(Gate::GATE_GELU_ERF),
        Activation::GeluTanh => Some(Gate::GATE_GELU_TANH),
        Activation::Relu | Activation::Sigmoid => None,
    }
}

/// What a buffer's operands are at the moment: of which type, and multiplied by what.
type Operands = (checkpoint::Dtype, u32);

/// Addresses of everything that steps use.
pub struct Steps {
    /// Of the GPU's memory.
    base: u64,
    layout: Layout,
    cuts: Vec<Cut>,
    /// For each buffer, what its operands were made as since it was last written.
    operands: Vec<Option<Operands>>,
    /// Rows that attention over few queries has room for.
    sequences: usize,
    /// Whether rows are those with logits: after [`Step::Select`].
    selected: bool,
}

impl Steps {
    pub fn new(program: &Program, layout: &Layout, sequences: usize, base: u64) -> Steps {
        let operands = vec![None; program.buffers.len()];
        Steps { base, layout: layout.clone(), cuts: cuts(program), operands, sequences, selected: false }
    }

    /// Begins a pass.
    pub fn begin(&mut self) {
        self.selected = false;
        self.operands.fill(None);
    }

    /// The float32 of a buffer.
    pub fn wide(&self, buffer: Buffer) -> u64 {
        self.at(self.room(buffer).wide.expect("the plan gives float32 to whatever steps read or write as such"))
    }

    fn at(&self, offset: usize) -> u64 {
        self.base + offset as u64
    }

    fn note(&self, offset: usize) -> u64 {
        self.at(self.layout.notes_at + offset)
    }

    fn room(&self, buffer: Buffer) -> &Room {
        &self.layout.buffers[buffer.0]
    }

    fn stride(&self, buffer: Buffer) -> i64 {
        self.room(buffer).stride as i64
    }

    fn vector(&self, id: Option<VectorId>) -> Vector {
        match id {
            Some(id) => Vector { data: self.at(self.layout.vectors[id.0]) as *const _, dtype: Dtype::DTYPE_F32 },
            None => Vector::default(),
        }
    }

    /// Where a step writes a buffer, which then has no other form: the operands if that is all that is read.
    fn output(&mut self, buffer: Buffer) -> (u64, Dtype) {
        match self.room(buffer).direct {
            Some(dtype) => {
                self.operands[buffer.0] = Some((dtype, 1f32.to_bits()));
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
    fn changed(&mut self, buffer: Buffer) -> u64 {
        self.operands[buffer.0] = None;
        self.wide(buffer)
    }

    fn rows<'a>(&self, batch: &'a Batch) -> (usize, &'a [Run]) {
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
                queue.convert(&ConvertParams {
                    in_: self.at(self.layout.embedding) as *const _,
                    ids: std::ptr::null(),
                    out: self.changed(*output) as *mut _,
                    in_stride: table.cols as i64,
                    out_stride: self.stride(*output),
                    rows: rows as i32,
                    cols: table.cols as i32,
                    in_dtype: float(table.encoding).expect("programs are checked before they run"),
                    out_dtype: Dtype::DTYPE_F32,
                    scale: *scale,
                })
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
            Step::MatMul(_) => unreachable!("products come tile by tile"),
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
                let KvShape { heads, key_dim, value_dim } = program.kv[*layer];
                let cut = self.cut(Cut { heads, chunk: None });
                let [k_cache, v_cache] = self.layout.kv[*layer].map(|at| self.at(at));
                queue.rope(&RopeParams {
                    k: self.wide(*keys) as *const f32,
                    v: self.wide(*values) as *const f32,
                    k_stride: self.stride(*keys),
                    v_stride: self.stride(*values),
                    k_head_stride: key_dim as i32,
                    v_head_stride: value_dim as i32,
                    keys: k_cache as *mut _,
                    values: v_cache as *mut _,
                    sequences: self.note(self.layout.notes.sequences[cut]) as *const Sequence,
                    row_sequence: self.note(self.layout.notes.row_sequence) as *const i32,
                    rows: rows as i32,
                    kv_heads: heads as i32,
                    dim: key_dim as i32,
                    v_dim: value_dim as i32,
                    cache_dtype: kernel_dtype(kv_dtype(program)),
                    ..RopeParams::default()
                })
            }
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
                    kind: gate(*activation).expect("programs are checked before they run"),
                    alpha: 0.0,
                    limit: 0.0,
                };
                queue.launch(&mlp::glu(&params), &params)
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
            Step::ScaleQueries { .. }
            | Step::Activate { .. }
            | Step::Route { .. }
            | Step::Experts(_)
            | Step::GateRows { .. }
            | Step::Add { .. }
            | Step::AppendShared { .. }
            | Step::Convolve(_)
            | Step::DeltaRule(_)
            | Step::Join { .. } => unreachable!("programs are checked before they run"),
        }
    }

    /// Queues the products of a tile, which is at `address`: each phase's rows with its own kernels.
    #[expect(clippy::too_many_arguments, reason = "all of what a product is")]
    pub fn multiply(
        &mut self,
        card: &Card,
        stream: &Stream,
        program: &Program,
        batch: &Batch,
        product: &Product,
        tile: &Tile,
        address: u64,
    ) -> Result<()> {
        let (rows, runs) = self.rows(batch);
        if rows == 0 {
            return Ok(());
        }
        let queue = Queue { card, stream };
        let matrix = &program.matrices[product.matrix.0];
        let (x, x_bytes) = self.operand(&queue, program, product, rows)?;
        let (encoding, blocks) = weights(matrix).expect("programs are checked before they run");
        let scale = matrix.scales.map_or(0, |scales| self.at(self.layout.vectors[scales.vector.0]));
        let (x_stride, out_stride) = (self.stride(product.input), self.stride(product.output));
        let out = (self.changed(product.output) + 4 * product.first as u64) as *mut f32;
        let gemm = GemmParams {
            w: Weights {
                data: address as *const _,
                scale: scale as *const _,
                first_row: tile.rows.start as i32,
                ..blocks
            },
            x: x as *const _,
            out,
            residual: if product.add { out } else { std::ptr::null() },
            bias: self.vector(product.bias),
            x_stride,
            out_stride,
            m: rows as i32,
            n: tile.rows.len() as i32,
            k: matrix.cols as i32,
        };
        queue.product(encoding, &gemm, x_bytes, runs)
    }

    /// The input of a product as its operands, made if need be: address, and bytes of an element.
    fn operand(&mut self, queue: &Queue, program: &Program, product: &Product, rows: usize) -> Result<(u64, u64)> {
        let dtype = operand(&program.matrices[product.matrix.0]);
        let buffer = product.input;
        if dtype == checkpoint::Dtype::F32 && product.scale == 1.0 {
            return Ok((self.wide(buffer), 4));
        }
        let as_wanted = (dtype, product.scale.to_bits());
        let at = self.at(self.room(buffer).operand.expect("the plan gives operands to what products read"));
        if self.operands[buffer.0] != Some(as_wanted) {
            queue.convert(&ConvertParams {
                in_: self.wide(buffer) as *const _,
                ids: std::ptr::null(),
                out: at as *mut _,
                in_stride: self.stride(buffer),
                out_stride: self.stride(buffer),
                rows: rows as i32,
                cols: program.buffers[buffer.0] as i32,
                in_dtype: Dtype::DTYPE_F32,
                out_dtype: kernel_dtype(dtype),
                scale: product.scale,
            })?;
            self.operands[buffer.0] = Some(as_wanted);
        }
        Ok((at, dtype.size() as u64))
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
        let [keys, values] = self.layout.kv[layer].map(|at| self.at(at) as *const _);
        let (out, out_dtype) = self.output(output);
        let pieces = &batch.pieces[cut];
        let sequences = self.note(self.layout.notes.sequences[cut]);
        let some = |first: usize, count: usize, most_rows: usize, most_keys: usize| AttentionParams {
            q: self.wide(queries) as *const f32,
            keys,
            values,
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
struct Queue<'a> {
    card: &'a Card,
    stream: &'a Stream,
}

impl Queue<'_> {
    fn launch<P: Copy>(&self, launch: &layerstream_kernels::launch::Launch, params: &P) -> Result<()> {
        // SAFETY: the parameters of this kernel, as its function in `launch` takes them. Their addresses are places in the
        // GPU's memory that the plan has laid out for them in the sizes of a pass, which the engine has checked, and a tile
        // that stays where it is until it is reported as used. One stream orders all that touches them.
        unsafe { self.card.launch(self.stream, launch, params) }
    }

    /// A product, which `all` describes from its first row on, with numbers of `x_bytes` to multiply: each phase's rows with
    /// its own kernels.
    fn product(&self, encoding: gemm::Encoding, all: &GemmParams, x_bytes: u64, runs: &[Run]) -> Result<()> {
        let (x, out) = (all.x as u64, all.out as u64);
        for run in runs {
            let at_once = if run.phase == Phase::Answer { MAX_DECODE_ROWS } else { run.rows.len() };
            for first in run.rows.clone().step_by(at_once) {
                let out = (out + 4 * (first as i64 * all.out_stride) as u64) as *mut f32;
                let gemm = GemmParams {
                    x: (x + (first as i64 * all.x_stride) as u64 * x_bytes) as *const _,
                    out,
                    residual: if all.residual.is_null() { all.residual } else { out },
                    m: at_once.min(run.rows.end - first) as i32,
                    ..*all
                };
                match run.phase {
                    Phase::Answer => self.launch(&gemm::decode(encoding, &gemm), &gemm)?,
                    Phase::Prompt => {
                        let params = PrefillParams {
                            product: gemm,
                            gather: std::ptr::null(),
                            out16: std::ptr::null_mut(),
                            out16_dtype: Dtype::DTYPE_F32,
                        };
                        self.launch(&gemm_prefill::prefill(encoding, &params), &params)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn convert(&self, params: &ConvertParams) -> Result<()> {
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
