//! The program: one forward pass as a flat list of steps. A family builds it from a configuration and a checkpoint;
//! the plan cuts its matrices into tiles; the engine walks its steps. It says *what* is computed and knows nothing of
//! where the weights are, how they arrive, or what computes.
//!
//! Activations live in *buffers*, row-major `[tokens, width]` in float32. Rows are the tokens of one pass, possibly of
//! several sequences. A step reads and writes different buffers, unless it says "in place".

mod check;
mod groups;
mod moe;
mod recurrent;
mod rope;

use std::collections::BTreeMap;
use std::ops::Range;

use crate::checkpoint::{Span, Tensor};
use crate::encoding::Encoding;

pub use groups::{FactorRoom, Groups, Part, Role};
pub use moe::{Expert, ExpertLayer, Experts, Exponents, Gating, Packing, Routing, Scores, Weigh};
pub use recurrent::{Convolution, DeltaRule, StateId};
pub use rope::{Dynamic, Rope, RopeId, RopeStyle, inv_freq};

/// A forward pass of one model.
#[derive(Clone, Debug)]
pub struct Program {
    /// The family that built it, as `layerstream inspect` prints it.
    pub family: &'static str,
    /// Rows of the output head: logits per token.
    pub vocab: usize,
    /// The longest sequence the model was made for (`max_position_embeddings`).
    pub max_positions: usize,
    /// Width of each buffer, in float32 values per row, indexed by [`Buffer`].
    pub buffers: Vec<usize>,
    /// Weights that are streamed, indexed by [`MatrixId`], in the order in which the steps use them.
    pub matrices: Vec<Matrix>,
    /// Weights of which a pass streams only what its tokens are routed to, by layer, in the order in which the steps use
    /// them.
    pub experts: Vec<ExpertLayer>,
    /// The embedding table, of which a pass reads only the rows of its tokens.
    pub embedding: Matrix,
    /// Small weights (norms, biases) that stay in memory as float32, indexed by [`VectorId`]. Where a step needs only a
    /// run of the tensor in the file, span and shape are those of the run.
    pub vectors: Vec<Tensor>,
    /// Rotary frequencies, indexed by [`RopeId`].
    pub ropes: Vec<Rope>,
    /// What the KV cache holds for each attention layer.
    pub kv: Vec<KvShape>,
    /// Float32 numbers that a sequence has in the state of each layer that keeps one, indexed by [`StateId`].
    pub states: Vec<usize>,
    /// What to do, in order.
    pub steps: Vec<Step>,
    /// The buffer that holds the logits after the last step.
    pub logits: Buffer,
}

impl Program {
    /// Bytes of the matrices in each encoding, with their factors; experts included.
    pub fn encodings(&self) -> BTreeMap<&'static str, u64> {
        let experts = self.experts.iter().flat_map(|layer| &layer.experts).flat_map(|expert| &expert.matrices);
        let mut bytes = BTreeMap::new();
        for matrix in self.matrices.iter().chain(experts) {
            *bytes.entry(matrix.encoding.name()).or_default() += matrix.bytes() + matrix.factor_bytes();
        }
        bytes
    }

    /// The buffers that only rows with logits reach: those written by [`Step::Select`] and after it.
    pub fn selected_buffers(&self) -> Vec<Buffer> {
        let after = self.steps.iter().skip_while(|step| !matches!(step, Step::Select { .. }));
        let mut outputs: Vec<Buffer> = Vec::new();
        for output in after.filter_map(Step::output) {
            if !outputs.contains(&output) {
                outputs.push(output);
            }
        }
        outputs
    }

    /// Float32 values for the keys of one sequence of `context` tokens, and for cosines and sines, where a step turns keys
    /// that are in the cache.
    pub fn turned_keys(&self, context: usize) -> usize {
        let needs = self.steps.iter().filter_map(|step| match step {
            Step::Attend { layer, attention: Attention { turn_keys: Some(rope), .. }, .. } => {
                let shape = self.kv[*layer];
                Some(context.saturating_mul(shape.heads * shape.key_dim + self.ropes[rope.0].rotary_dim()))
            }
            _ => None,
        });
        needs.max().unwrap_or(0)
    }

    /// Lengths that a sequence cannot grow beyond without being computed again from its beginning.
    pub fn restarts(&self) -> impl Iterator<Item = usize> {
        self.ropes.iter().filter_map(|rope| match rope.dynamic {
            Some(Dynamic::Long { original, .. }) => Some(original),
            _ => None,
        })
    }

    /// Whether a rotation of this program depends on the length of the sequence, so that keys in a cache serve only the
    /// sequence that they were made for.
    pub fn rotation_depends_on_length(&self) -> bool {
        self.ropes.iter().any(|rope| rope.dynamic.is_some())
    }
}

/// A `[rows, cols]` weight matrix as it lies in the checkpoint; a row maps an input to one output value. It is a run of
/// whole rows of its tensor: all of them, or one part of a packed projection. What lies there are runs of bytes of equal
/// length, the stored rows: its rows, or its columns where the tensor is transposed.
#[derive(Clone, Debug)]
pub struct Matrix {
    pub tensor: Tensor,
    /// The row of the tensor that is row 0 of the matrix.
    pub first_row: usize,
    pub rows: usize,
    pub cols: usize,
    pub encoding: Encoding,
    /// For an encoding that is not complete: factors that stay in memory,
    pub scales: Option<Scales>,
    /// or factors that are streamed.
    pub groups: Option<Groups>,
}

/// The factors of a matrix: its number at (r, c) is what is stored there, decoded, times the factor of its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scales {
    /// One factor for each block of `row_block` × `col_block` numbers, row-major; blocks at the edges may be smaller.
    pub vector: VectorId,
    pub row_block: usize,
    /// A power of two of at least 16, or at least the number of columns.
    pub col_block: usize,
}

impl Matrix {
    /// How many rows are stored, which is what tiles are cut from.
    pub fn stored_rows(&self) -> usize {
        if self.tensor.transposed { self.cols / self.encoding.inputs() } else { self.rows }
    }

    /// Numbers in a stored row (of a single input, where one holds several).
    pub fn stored_cols(&self) -> usize {
        if self.tensor.transposed { self.rows } else { self.cols }
    }

    /// Bytes of one stored row on disk.
    pub fn row_bytes(&self) -> usize {
        self.encoding.bytes(self.stored_cols())
    }

    /// Bytes of the whole matrix on disk.
    pub fn bytes(&self) -> u64 {
        self.stored_rows() as u64 * self.row_bytes() as u64
    }

    /// Bytes of the factors that are streamed before it.
    pub fn factor_bytes(&self) -> u64 {
        self.groups.iter().flat_map(|groups| &groups.parts).map(|part| part.tensor.span.len).sum()
    }

    /// Where some of its stored rows lie.
    pub fn span(&self, rows: Range<usize>) -> Span {
        let row = self.row_bytes() as u64;
        let Span { file, offset, .. } = self.tensor.span;
        Span { file, offset: offset + (self.first_row + rows.start) as u64 * row, len: rows.len() as u64 * row }
    }
}

/// Index into [`Program::buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer(pub usize);

/// Index into [`Program::matrices`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixId(pub usize);

/// Index into [`Program::vectors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorId(pub usize);

/// One operation of the forward pass. `layer` counts attention layers, and indexes [`Program::kv`].
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// `output[t] = scale · embedding[token t]`
    Embed { output: Buffer, scale: f32 },
    /// `output = norm(input)` over whole rows, or with `add`, `output += norm(input)`.
    Norm { norm: Norm, input: Buffer, output: Buffer, add: bool },
    /// Normalises each head of `head_dim` values, in place. The norm's vectors have `head_dim` values for all heads, or as
    /// many as the buffer is wide: each head its own.
    HeadNorm { norm: Norm, buffer: Buffer, head_dim: usize },
    /// Multiplies by a streamed matrix.
    MatMul(Product),
    /// Picks parts of packed projections whose rows are interleaved: a row of `output` is made of runs of `run` values;
    /// run i comes from `first + i · stride` of the input's row.
    Rearrange { input: Buffer, output: Buffer, first: usize, run: usize, stride: usize },
    /// Lays rows side by side: a row of `output` is the same row of each part, one after the other.
    Join { parts: Vec<Buffer>, output: Buffer },
    /// Rotates each head of `head_dim` values by its token's position, in place: dimensions `start` to
    /// `start + rope.rotary_dim()`; the others stay.
    Rope { buffer: Buffer, rope: RopeId, head_dim: usize, start: usize },
    /// Multiplies each row by a factor that depends on its token's position, in place.
    ScaleQueries { buffer: Buffer, by: QueryScale },
    /// Appends keys and values to the KV cache of `layer`.
    Append { layer: usize, keys: Buffer, values: Buffer },
    /// The same where keys share the end: the first values of each key, then its value, lie side by side in `packed`, for
    /// one head after the other, and `shared` has the last values of every head's key.
    AppendShared { layer: usize, packed: Buffer, shared: Buffer },
    /// Causal attention of `queries` over the KV cache of `layer`. Consecutive query heads share a key head.
    Attend { layer: usize, queries: Buffer, output: Buffer, attention: Attention },
    /// A convolution over the tokens of each sequence.
    Convolve(Convolution),
    /// The gated delta rule over the tokens of each sequence.
    DeltaRule(DeltaRule),
    /// Chooses experts for every token from a router's logits. `layer` is an index into [`Program::experts`].
    Route { layer: usize, logits: Buffer, routing: Routing },
    /// Runs the experts that the latest router chose.
    Experts(Experts),
    /// Multiplies each row of `buffer` by the sigmoid of the one number in the same row of `gate`, in place.
    GateRows { gate: Buffer, buffer: Buffer },
    /// `output += input`
    Add { input: Buffer, output: Buffer },
    /// `gate = activation(gate) · up`, in place.
    Glu { activation: Activation, gate: Buffer, up: Buffer },
    /// `buffer = activation(buffer)`, in place.
    Activate { activation: Activation, buffer: Buffer },
    /// `buffer = cap · tanh(buffer / cap)`, in place.
    SoftCap { buffer: Buffer, cap: f32 },
    /// Keeps the rows whose logits the caller asked for; the steps after it work on those alone.
    Select { input: Buffer, output: Buffer },
}

impl Step {
    /// The buffer that it writes.
    pub fn output(&self) -> Option<Buffer> {
        match self {
            Step::Append { .. } | Step::AppendShared { .. } | Step::Route { .. } => None,
            Step::Experts(experts) => Some(experts.output),
            Step::Convolve(convolution) => Some(convolution.buffer),
            Step::DeltaRule(rule) => Some(rule.output),
            Step::MatMul(product) => Some(product.output),
            Step::Embed { output, .. }
            | Step::Norm { output, .. }
            | Step::Rearrange { output, .. }
            | Step::Join { output, .. }
            | Step::Attend { output, .. }
            | Step::Add { output, .. }
            | Step::Select { output, .. } => Some(*output),
            Step::HeadNorm { buffer, .. }
            | Step::Rope { buffer, .. }
            | Step::ScaleQueries { buffer, .. }
            | Step::GateRows { buffer, .. }
            | Step::Activate { buffer, .. }
            | Step::SoftCap { buffer, .. }
            | Step::Glu { gate: buffer, .. } => Some(*buffer),
        }
    }
}

/// A norm over `n` values: `normalised · (weight + offset) + bias`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    pub kind: NormKind,
    /// Nothing: a factor of 1.
    pub weight: Option<VectorId>,
    pub bias: Option<VectorId>,
    /// What the checkpoint leaves out of its weights: 1 in Gemma, else 0.
    pub offset: f32,
    pub eps: f32,
}

/// What "normalised" means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `x / √(mean(x²) + ε)`
    Rms,
    /// `(x − mean(x)) / √(variance(x) + ε)`
    Layer,
}

/// `output[.., first..] (+)= scale · (input · matrixᵀ + bias)`
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    pub matrix: MatrixId,
    pub bias: Option<VectorId>,
    pub input: Buffer,
    pub output: Buffer,
    /// The column of `output` where row 0 of the matrix goes.
    pub first: usize,
    /// Adds to what is in `output` (the residual stream) instead of replacing it.
    pub add: bool,
    pub scale: f32,
    /// Divides each row of the matrix by its Euclidean length first (Baichuan 2's head).
    pub normalise_rows: bool,
}

impl Product {
    /// `output = input · matrixᵀ`
    pub fn new(matrix: MatrixId, input: Buffer, output: Buffer) -> Product {
        Product { matrix, bias: None, input, output, first: 0, add: false, scale: 1.0, normalise_rows: false }
    }
}

/// What attention does with queries, keys and values: `softmax(score) · values` with
/// `score[j] = cap(scale · query · key[j]) + slope · (j − position)`, or with a bias factor `+ factor · (bias[j] − bias[position])`,
/// `bias[j] = bf16(slope · bf16(j))`.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    pub scale: f32,
    /// A token at position p sees positions j with p − window < j ≤ p.
    pub window: Option<usize>,
    /// A token sees only its own chunk of so many positions, the first of which is divisible by it (Llama 4).
    pub chunk: Option<usize>,
    /// `cap(x) = soft_cap · tanh(x / soft_cap)` (Gemma 2).
    pub soft_cap: Option<f32>,
    /// For each query head a score that takes its share of the softmax and has no value (gpt-oss).
    pub sinks: Option<VectorId>,
    /// For each query head its slope (ALiBi: Press et al., 2021, arXiv:2108.12409).
    pub slopes: Option<Vec<f32>>,
    /// Slopes are bfloat16, and so is what they give to a key; it counts so many times (Falcon).
    pub bias_factor: Option<f32>,
    /// The cache holds keys that were not rotated: whenever they are looked at, all of them are turned from dimension 0 on,
    /// each by its position, with the frequencies of that moment (InternLM).
    pub turn_keys: Option<RopeId>,
}

impl Attention {
    /// Every token sees all before it.
    pub fn new(scale: f32) -> Attention {
        Attention {
            scale,
            window: None,
            chunk: None,
            soft_cap: None,
            sinks: None,
            slopes: None,
            bias_factor: None,
            turn_keys: None,
        }
    }
}

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e⁻ˣ)`
    Silu,
    /// `x · Φ(x)` with the normal distribution Φ.
    Gelu,
    /// The same, with Φ approximated by a tanh: `x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`.
    GeluTanh,
    /// `max(x, 0)`
    Relu,
    /// `1 / (1 + e⁻ˣ)`
    Sigmoid,
}

/// How a query depends on its position p (from 0), beside its rotation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum QueryScale {
    /// `log(p + 1) / log(length)` from position `length` on, 1 before it (Qwen v1).
    LogN { length: usize },
    /// `1 + scale · ln(1 + ⌊(p + 1) / floor⌋)` (Llama 4).
    Temperature { scale: f64, floor: f64 },
}

impl QueryScale {
    /// The factor at a position.
    pub fn at(self, position: usize) -> f32 {
        let tokens = (position + 1) as f64;
        match self {
            QueryScale::LogN { length } => (tokens.ln() / (length as f64).ln()).max(1.0) as f32,
            QueryScale::Temperature { scale, floor } => (1.0 + scale * (tokens / floor).floor().ln_1p()) as f32,
        }
    }
}

/// What one attention layer keeps per token: `heads` keys of `key_dim` and as many values of `value_dim` float32 values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    pub heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
}

impl KvShape {
    /// Bytes per token: keys and values.
    pub fn token_bytes(self) -> usize {
        self.heads * (self.key_dim + self.value_dim) * size_of::<f32>()
    }
}
