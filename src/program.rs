//! The program: one forward pass as a flat list of steps. A family builds it from a configuration and a checkpoint;
//! the plan cuts its matrices into tiles; the engine walks its steps. It says *what* is computed and knows nothing of
//! where the weights are, how they arrive, or what computes.
//!
//! Activations live in *buffers*, row-major `[tokens, width]` in float32. Rows are the tokens of one pass, possibly of
//! several sequences.

use crate::checkpoint::Tensor;
use crate::encoding::Encoding;

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
    /// The embedding table, of which a pass reads only the rows of its tokens.
    pub embedding: Matrix,
    /// Small weights (norms, biases) that stay in memory as float32, indexed by [`VectorId`].
    pub vectors: Vec<Tensor>,
    /// Rotary frequencies.
    pub rope: Rope,
    /// What the KV cache holds for each attention layer.
    pub kv: Vec<KvShape>,
    /// What to do, in order.
    pub steps: Vec<Step>,
    /// The buffer that holds the logits after the last step.
    pub logits: Buffer,
}

impl Program {
    /// The buffers that only rows with logits reach: those written by [`Step::Select`] and after it.
    pub fn selected_buffers(&self) -> Vec<Buffer> {
        let after = self.steps.iter().skip_while(|step| !matches!(step, Step::Select { .. }));
        let mut outputs: Vec<Buffer> = after
            .filter_map(|step| match step {
                Step::Select { output, .. } | Step::RmsNorm { output, .. } => Some(*output),
                Step::MatMul(product) => Some(product.output),
                _ => None,
            })
            .collect();
        outputs.dedup();
        outputs
    }
}

/// A `[rows, cols]` weight matrix as it lies in the checkpoint; a row maps an input to one output value. What
/// lies there are runs of bytes of equal length, the stored rows: its rows, or its columns where the tensor is transposed.
#[derive(Clone, Debug)]
pub struct Matrix {
    pub tensor: Tensor,
    pub rows: usize,
    pub cols: usize,
    pub encoding: Encoding,
    /// For an encoding that is not complete.
    pub scales: Option<Scales>,
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
        if self.tensor.transposed { self.cols } else { self.rows }
    }

    /// Numbers in a stored row.
    pub fn stored_cols(&self) -> usize {
        if self.tensor.transposed { self.rows } else { self.cols }
    }

    /// Bytes of one stored row on disk.
    pub fn row_bytes(&self) -> usize {
        self.encoding.bytes(self.stored_cols())
    }

    /// Bytes of the whole matrix on disk.
    pub fn bytes(&self) -> u64 {
        self.tensor.span.len
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
    /// `output[t] = embedding[token t]`
    Embed { output: Buffer },
    /// `output = input / rms(input) * weight`, over whole rows.
    RmsNorm { weight: VectorId, eps: f32, input: Buffer, output: Buffer },
    /// The same over each head of `head_dim` values, in place.
    HeadNorm { weight: VectorId, eps: f32, buffer: Buffer, head_dim: usize },
    /// Multiplies by a streamed matrix.
    MatMul(Product),
    /// Rotates each head by its token's position, in place.
    Rope { buffer: Buffer, head_dim: usize },
    /// Appends keys and values to the KV cache of `layer`.
    Append { layer: usize, keys: Buffer, values: Buffer },
    /// Causal attention of `queries` over the KV cache of `layer`. With a `window` w, a token at position p sees
    /// positions j with p − w < j ≤ p.
    Attend { layer: usize, queries: Buffer, output: Buffer, scale: f32, window: Option<usize> },
    /// `gate = silu(gate) · up`, in place.
    SwiGlu { gate: Buffer, up: Buffer },
    /// Keeps the rows whose logits the caller asked for; the steps after it work on those alone.
    Select { input: Buffer, output: Buffer },
}

/// `output (+)= input · matrixᵀ + bias`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    pub matrix: MatrixId,
    pub bias: Option<VectorId>,
    pub input: Buffer,
    pub output: Buffer,
    /// Adds to what is in `output` (the residual stream) instead of replacing it.
    pub add: bool,
}

/// What one attention layer keeps per token: `kv_heads` keys and as many values of `head_dim` float32 values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl KvShape {
    /// Bytes per token: keys and values.
    pub fn token_bytes(self) -> usize {
        2 * self.kv_heads * self.head_dim * size_of::<f32>()
    }
}

/// Which dimensions of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// i and i + head_dim/2, as in the checkpoints of Hugging Face.
    Half,
    /// 2i and 2i + 1, as in the llama files of llama.cpp.
    Interleaved,
}

/// Rotary position embedding (Su et al., 2021, arXiv:2104.09864): pair `i` of a head turns by `position · inv_freq[i]`; the
/// cosines and sines are scaled by `attention_factor` (YaRN).
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub style: RopeStyle,
    /// Radians per position for each pair, `head_dim / 2` values.
    pub inv_freq: Vec<f32>,
    pub attention_factor: f32,
    /// Frequencies that depend on the length of the sequence.
    pub dynamic: Option<DynamicNtk>,
}

/// Dynamic NTK scaling: past `original` positions the base grows with the sequence. The length that counts is that of
/// the whole sequence at the call that rotates; keys that are already in the cache keep their old rotation, as in the
/// reference implementation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DynamicNtk {
    pub base: f64,
    pub factor: f64,
    pub original: usize,
    /// Dimensions that rotate.
    pub dim: usize,
}

impl Rope {
    /// The frequencies for a sequence that will be `length` tokens long when this call is done.
    pub fn inv_freq(&self, length: usize) -> std::borrow::Cow<'_, [f32]> {
        match self.dynamic {
            Some(ntk) if length > ntk.original => ntk.inv_freq(length).into(),
            _ => self.inv_freq.as_slice().into(),
        }
    }
}

impl DynamicNtk {
    fn inv_freq(&self, length: usize) -> Vec<f32> {
        let stretch = self.factor * length as f64 / self.original as f64 - (self.factor - 1.0);
        let base = self.base * stretch.powf(self.dim as f64 / (self.dim as f64 - 2.0));
        inv_freq(base, self.dim)
    }
}

/// Plain rotary frequencies: `base^(−2i/dim)` for `i` in `0..dim/2`.
pub fn inv_freq(base: f64, dim: usize) -> Vec<f32> {
    (0..dim / 2).map(|i| base.powf(-2.0 * i as f64 / dim as f64) as f32).collect()
}
