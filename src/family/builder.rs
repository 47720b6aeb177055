//! Puts a program together: names buffers, takes tensors from the checkpoint and checks their shapes, and appends steps.
//! What a decoder layer is made of is in `blocks`; which of it a family uses, in the family's own file. Users of the library
//! write families with the same builder (`examples/family.rs`).

use std::collections::BTreeMap;
use std::ops::Range;

use crate::checkpoint::{Checkpoint, Dtype, Tensor};
use crate::encoding::{Encoding, Packed};
use crate::error::{Error, Result};
use crate::program::{
    Buffer, ExpertLayer, Groups, KvShape, Matrix, MatrixId, Norm, NormKind, Part, Product, Program, Role, Rope, RopeId,
    Scales, StateId, Step, VectorId,
};

use super::quantization::Quantization;

/// What every norm of a family has in common.
#[derive(Clone, Copy, Debug)]
pub struct NormStyle {
    pub kind: NormKind,
    pub eps: f32,
    /// What the checkpoint leaves out of its weights.
    pub offset: f32,
    /// Norms have a bias beside their weight.
    pub bias: bool,
}

/// One projection: `output (+)= scale · (input · weightᵀ + bias)`, with the rows `part` of the tensor `name`.weight,
/// `[all, cols]`.
pub struct Projection<'n> {
    pub name: &'n str,
    pub all: usize,
    pub part: Range<usize>,
    pub cols: usize,
    pub bias: bool,
    pub input: Buffer,
    pub output: Buffer,
    pub add: bool,
    pub scale: f32,
}

impl<'n> Projection<'n> {
    /// `output = input · weightᵀ`, all `rows` of it.
    pub fn new(name: &'n str, rows: usize, cols: usize, input: Buffer, output: Buffer) -> Projection<'n> {
        Projection { name, all: rows, part: 0..rows, cols, bias: false, input, output, add: false, scale: 1.0 }
    }
}

/// Makes a [`Program`]: buffers, then tensors and steps in the order in which they are used, then [`finish`](Builder::finish).
/// A tensor that is missing, or of another shape than the one asked for, is an error that says so.
///
/// ```
/// use layerstream::family::{Builder, Config, Family};
/// use layerstream::program::{Product, Program, Step};
/// use layerstream::{Model, Options, Result};
///
/// // The smallest model there is: the logits of a token are its embedding times the table of embeddings.
/// fn build(config: &Config, mut builder: Builder) -> Result<Program> {
///     let (hidden, vocab) = (config.size("hidden_size")?, config.size("vocab_size")?);
///     let [residual, selected, logits] = [hidden, hidden, vocab].map(|width| builder.buffer(width));
///     let embedding = builder.table("model.embed_tokens.weight", vocab, hidden)?;
///     builder.step(Step::Embed { output: residual, scale: 1.0 });
///     builder.step(Step::Select { input: residual, output: selected });
///     let head = builder.stream(embedding.clone());
///     builder.multiply(Product::new(head, selected, logits))?;
///     Ok(builder.finish(vocab, config.size("max_position_embeddings")?, embedding, logits))
/// }
///
/// // In the place of the family that the model has.
/// let bigram = Family { name: "bigram", architectures: &["LlamaForCausalLM"], special: "no layers", build };
/// let options = Options { ram: Some(32 << 20), families: vec![bigram], ..Options::default() };
/// let model = Model::open("demo", &options)?;
/// assert_eq!(model.program().family, "bigram");
/// # Ok::<(), layerstream::Error>(())
/// ```
pub struct Builder<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) quantization: Quantization,
    family: &'static str,
    buffers: Vec<usize>,
    matrices: Vec<Matrix>,
    vectors: Vec<Tensor>,
    ropes: Vec<Rope>,
    kv: Vec<KvShape>,
    states: Vec<usize>,
    pub(super) experts: Vec<ExpertLayer>,
    steps: Vec<Step>,
    /// By width, what packed projections make that are multiplied whole.
    packed: BTreeMap<usize, Buffer>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(family: &'static str, checkpoint: &'a Checkpoint, quantization: Quantization) -> Self {
        Builder {
            checkpoint,
            quantization,
            family,
            buffers: Vec::new(),
            matrices: Vec::new(),
            vectors: Vec::new(),
            ropes: Vec::new(),
            kv: Vec::new(),
            states: Vec::new(),
            experts: Vec::new(),
            steps: Vec::new(),
            packed: BTreeMap::new(),
        }
    }

    /// The program, when all steps are there: `vocab` logits for each token are in the buffer `logits` after the last of them,
    /// for the rows that [`Step::Select`] has kept; `max_positions` is the longest sequence that the model was made for.
    pub fn finish(self, vocab: usize, max_positions: usize, embedding: Matrix, logits: Buffer) -> Program {
        Program {
            family: self.family,
            vocab,
            max_positions,
            buffers: self.buffers,
            matrices: self.matrices,
            experts: self.experts,
            embedding,
            vectors: self.vectors,
            ropes: self.ropes,
            kv: self.kv,
            states: self.states,
            steps: self.steps,
            logits,
        }
    }

    /// Whether the checkpoint has a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.checkpoint.require(name).is_ok()
    }

    /// Where names begin: the first of the family's own root, the same inside of a multimodal model (in the older and the
    /// newer spelling), and no root at all, under which there is a tensor `name`. The family's own if there is none.
    pub fn root(&self, root: &str, name: &str) -> String {
        let inner = root.strip_prefix("model.").unwrap_or(root);
        let places =
            [root.into(), format!("language_model.{root}"), format!("model.language_model.{inner}"), "".into()];
        let found = places.iter().find(|place: &&String| self.has(&format!("{place}{name}")));
        found.unwrap_or(&places[0]).clone()
    }

    /// A buffer of so many float32 values for each token.
    pub fn buffer(&mut self, width: usize) -> Buffer {
        self.buffers.push(width);
        Buffer(self.buffers.len() - 1)
    }

    /// Rotary frequencies, for [`Step::Rope`].
    pub fn rope(&mut self, rope: Rope) -> RopeId {
        self.ropes.push(rope);
        RopeId(self.ropes.len() - 1)
    }

    /// An attention layer's part of the KV cache; returns its number.
    pub fn kv(&mut self, shape: KvShape) -> usize {
        self.kv.push(shape);
        self.kv.len() - 1
    }

    /// A state of so many numbers for each sequence.
    pub fn state(&mut self, numbers: usize) -> StateId {
        self.states.push(numbers);
        StateId(self.states.len() - 1)
    }

    /// Appends a step. Products with matrices are appended by [`project`](Builder::project) and
    /// [`multiply`](Builder::multiply).
    pub fn step(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// The norm `name`.weight, and `name`.bias where the style has one, over `shape`.
    pub fn norm(&mut self, name: &str, shape: &[usize], style: NormStyle) -> Result<Norm> {
        let NormStyle { kind, eps, offset, bias } = style;
        let weight = Some(self.vector(&format!("{name}.weight"), shape)?);
        let bias = bias.then(|| self.vector(&format!("{name}.bias"), shape)).transpose()?;
        Ok(Norm { kind, weight, bias, offset, eps })
    }

    /// Appends a projection.
    pub fn project(&mut self, p: Projection) -> Result<()> {
        let matrix = self.part_of_matrix(&format!("{}.weight", p.name), p.all, p.part.clone(), p.cols)?;
        let matrix = self.stream(matrix);
        let bias = p.bias.then(|| self.part_of_vector(&format!("{}.bias", p.name), p.all, p.part)).transpose()?;
        self.multiply(Product { bias, add: p.add, scale: p.scale, ..Product::new(matrix, p.input, p.output) })
    }

    /// Appends the parts of a packed projection, whose rows lie one after the other, each to a buffer that is as wide as it
    /// has rows. Where it is stored as its transpose, in which its rows are columns, it is multiplied whole.
    pub(super) fn project_parts(
        &mut self,
        name: &str,
        cols: usize,
        bias: bool,
        input: Buffer,
        outputs: &[Buffer],
    ) -> Result<()> {
        let widths: Vec<usize> = outputs.iter().map(|output| self.buffers[output.0]).collect();
        let (all, mut first) = (widths.iter().sum(), 0);
        let packed = self.lies_in_columns(name).then(|| self.packed(all));
        if let Some(packed) = packed {
            self.project(Projection { bias, ..Projection::new(name, all, cols, input, packed) })?;
        }
        for (&output, width) in outputs.iter().zip(widths) {
            let part = first..first + width;
            match packed {
                Some(input) => self.step(Step::Rearrange { input, output, first, run: width, stride: all }),
                None => self.project(Projection { part, bias, ..Projection::new(name, all, cols, input, output) })?,
            }
            first += width;
        }
        Ok(())
    }

    /// The buffer of this width for what is divided at once.
    fn packed(&mut self, width: usize) -> Buffer {
        if let Some(buffer) = self.packed.get(&width) {
            return *buffer;
        }
        let buffer = self.buffer(width);
        self.packed.insert(width, buffer);
        buffer
    }

    /// Appends a product with a matrix that is streamed.
    pub fn multiply(&mut self, product: Product) -> Result<()> {
        let tensor = &self.matrices[product.matrix.0].tensor;
        let grouped = self.matrices[product.matrix.0].groups.is_some();
        if tensor.transposed && (product.scale != 1.0 && !grouped || product.normalise_rows) {
            return Err(self.unsupported(tensor, "with its rows and columns swapped, whose product is scaled"));
        }
        self.step(Step::MatMul(product));
        Ok(())
    }

    /// A matrix that will be streamed, in this place of the order.
    pub fn stream(&mut self, matrix: Matrix) -> MatrixId {
        self.matrices.push(matrix);
        MatrixId(self.matrices.len() - 1)
    }

    /// A whole tensor as a matrix.
    pub fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix> {
        self.part_of_matrix(name, rows, 0..rows, cols)
    }

    /// Some rows of a tensor that has `all`.
    fn part_of_matrix(&mut self, name: &str, all: usize, part: Range<usize>, cols: usize) -> Result<Matrix> {
        if let Some(matrix) = self.quantized(name, all, &part, cols)? {
            return Ok(self.keep_few(matrix));
        }
        let (tensor, encoding) = self.tensor(name, &[all, cols])?;
        if tensor.transposed && part.len() != all {
            return Err(self.unsupported(&tensor, "with its rows and columns swapped, of which a part is needed"));
        }
        let scales = match encoding.is_complete() {
            true => None,
            false => Some(self.scales(&tensor)?),
        };
        Ok(Matrix { tensor, first_row: part.start, rows: part.len(), cols, encoding, scales, groups: None })
    }

    /// The factors of a matrix whose numbers need them.
    fn scales(&mut self, of: &Tensor) -> Result<Scales> {
        let Quantization::Factors { suffix, .. } = &self.quantization else {
            return Err(self
                .unsupported(of, &format!("of type {}, which the `quantization_config` does not explain,", of.dtype)));
        };
        // What AutoFP8 made has factors of whole matrices, under the other name.
        let named = [*suffix, "_scale"].map(|suffix| self.checkpoint.get(&format!("{}{suffix}", of.name)));
        let tensor = match named.into_iter().flatten().next() {
            Some(tensor) => tensor.clone(),
            None => self.checkpoint.require(&format!("{}{suffix}", of.name))?.clone(),
        };
        let (rows, cols) = (of.shape[0], of.shape[1]);
        let Some((row_block, col_block)) = self.quantization.block(rows, cols, &tensor.shape) else {
            let path = self.checkpoint.file_path(tensor.span.file).to_path_buf();
            let problem = format!(
                "its shape is {:?}, which does not divide the {:?} of the weights as the `quantization_config` says",
                tensor.shape, of.shape
            );
            return Err(Error::Tensor { path, tensor: tensor.name, problem });
        };
        if !matches!(tensor.dtype, Dtype::Bf16 | Dtype::F16 | Dtype::F32) || tensor.transposed {
            return Err(self.unsupported(&tensor, &format!("of type {} as factors", tensor.dtype)));
        }
        self.vectors.push(tensor);
        Ok(Scales { vector: VectorId(self.vectors.len() - 1), row_block, col_block })
    }

    /// Factors that are no more than one for each row stay in memory.
    fn keep_few(&mut self, matrix: Matrix) -> Matrix {
        let Some(Groups { parts, rows, cols, .. }) = &matrix.groups else { return matrix };
        let [Part { role: Role::Scales { repeat: 1, divisor: 1.0, .. }, tensor }] = parts.as_slice() else {
            return matrix;
        };
        if matrix.tensor.transposed || *cols < matrix.cols {
            return matrix;
        }
        self.vectors.push(tensor.clone());
        let vector = VectorId(self.vectors.len() - 1);
        let scales = Some(Scales { vector, row_block: *rows, col_block: *cols });
        Matrix { scales, groups: None, ..matrix }
    }

    /// A matrix of which single rows are read, so that each must lie in one piece and stand for itself: the embeddings.
    pub fn table(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix> {
        let matrix = self.matrix(name, rows, cols)?;
        let rounded = matches!(matrix.encoding, Encoding::Packed(Packed::Int8 { .. } | Packed::Nf4 { .. }));
        let quantized = matrix.scales.is_some() || matrix.groups.is_some() || rounded;
        if matrix.tensor.transposed || quantized {
            let how = if matrix.tensor.transposed { "with its rows and columns swapped" } else { "quantized" };
            return Err(self.unsupported(&matrix.tensor, how));
        }
        Ok(matrix)
    }

    /// A small tensor of this shape, which stays in memory.
    pub fn vector(&mut self, name: &str, shape: &[usize]) -> Result<VectorId> {
        let tensor = self.small(name, shape)?;
        self.vectors.push(tensor);
        Ok(VectorId(self.vectors.len() - 1))
    }

    /// A tensor whose numbers stand for themselves.
    fn small(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let (tensor, encoding) = self.tensor(name, shape)?;
        match encoding.is_complete() && !matches!(encoding, Encoding::Packed(_)) {
            true => Ok(tensor),
            false => Err(self.unsupported(&tensor, &format!("of type {}", tensor.dtype))),
        }
    }

    /// Some elements of a vector that has `all`.
    fn part_of_vector(&mut self, name: &str, all: usize, part: Range<usize>) -> Result<VectorId> {
        let mut tensor = self.small(name, &[all])?;
        let element = tensor.dtype.size() as u64;
        tensor.span.offset += part.start as u64 * element;
        tensor.span.len = part.len() as u64 * element;
        tensor.shape = vec![part.len()];
        self.vectors.push(tensor);
        Ok(VectorId(self.vectors.len() - 1))
    }

    /// A tensor of the checkpoint, once its shape agrees with the configuration and its numbers can be decoded.
    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<(Tensor, Encoding)> {
        let tensor = self.shaped(name, shape)?;
        match Encoding::of(tensor.dtype) {
            Some(encoding) => Ok((tensor.clone(), encoding)),
            None => Err(self.unsupported(tensor, &format!("of type {}", tensor.dtype))),
        }
    }

    /// A tensor of the checkpoint, once its shape agrees with the configuration.
    pub(super) fn shaped(&self, name: &str, shape: &[usize]) -> Result<&'a Tensor> {
        let tensor = self.checkpoint.require(name)?;
        if tensor.shape != shape {
            let path = self.checkpoint.file_path(tensor.span.file).to_path_buf();
            let problem = format!("its shape is {:?}, but config.json makes it {shape:?}", tensor.shape);
            return Err(Error::Tensor { path, tensor: name.into(), problem });
        }
        Ok(tensor)
    }

    pub(super) fn unsupported(&self, tensor: &Tensor, how: &str) -> Error {
        let path = self.checkpoint.file_path(tensor.span.file).to_path_buf();
        Error::Unsupported { path, what: format!("tensor `{}` {how}", tensor.name) }
    }
}
