//! Puts a program together: names buffers, takes tensors from the checkpoint and checks their shapes, and appends the
//! steps that pre-norm decoder families share. A family file says which of them it uses, and with what.

use crate::checkpoint::{Checkpoint, Dtype, Tensor};
use crate::error::{Error, Result};
use crate::program::{
    Activation, Attention, Buffer, KvShape, Matrix, MatrixId, Norm, NormKind, Product, Program, Rope, RopeId, Step,
    VectorId,
};

use super::Config;

/// What the dense decoder families (Llama and its descendants) have in common, as read from a configuration.
pub struct Dense {
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub max_positions: usize,
    pub norm_eps: f32,
    /// Biases on the query, key and value projections.
    pub qkv_bias: bool,
    /// A bias on the attention's output projection.
    pub output_bias: bool,
    /// Biases on the three MLP projections.
    pub mlp_bias: bool,
    /// RMSNorm over each query and key head before rotation.
    pub qk_norm: bool,
    /// The head is the embedding table.
    pub tied: bool,
    pub rope: Rope,
    /// The sliding window of each layer.
    pub windows: Vec<Option<usize>>,
}

/// What a family assumes where its configuration is silent.
pub struct Defaults {
    /// As many as heads, if none.
    pub kv_heads: Option<usize>,
    /// `hidden / heads`, if none.
    pub head_dim: Option<usize>,
    pub max_positions: usize,
}

impl Dense {
    /// Reads what every dense family has under the same keys; no biases, no windows, no q/k norm.
    pub fn read(config: &Config, defaults: Defaults) -> Result<Dense> {
        config.require("hidden_act", "silu")?;
        let (hidden, heads) = (config.size("hidden_size")?, config.count("num_attention_heads")?);
        let kv_heads = config.optional_size("num_key_value_heads")?.or(defaults.kv_heads).unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(config
                .problem(format!("`num_attention_heads` {heads} is no multiple of `num_key_value_heads` {kv_heads}")));
        }
        let head_dim = match config.optional_size("head_dim")?.or(defaults.head_dim) {
            Some(dim) => dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(config.problem(format!(
                    "`hidden_size` {hidden} is no multiple of `num_attention_heads` {heads}, and there is no `head_dim`"
                )));
            }
        };
        if head_dim > 256 {
            return Err(config.unsupported(format!("a head size of {head_dim} (up to 256 is)")));
        }
        let layers = config.count("num_hidden_layers")?;
        let max_positions = config.optional_size("max_position_embeddings")?.unwrap_or(defaults.max_positions);
        Ok(Dense {
            hidden,
            intermediate: config.size("intermediate_size")?,
            layers,
            heads,
            kv_heads,
            head_dim,
            vocab: config.size("vocab_size")?,
            max_positions,
            norm_eps: config.number("rms_norm_eps", 1e-6)? as f32,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            qk_norm: false,
            tied: config.flag("tie_word_embeddings", false)?,
            rope: config.rope(head_dim, max_positions)?,
            windows: vec![None; layers],
        })
    }
}

fn rms(weight: VectorId, eps: f32) -> Norm {
    Norm { kind: NormKind::Rms, weight: Some(weight), bias: None, offset: 0.0, eps }
}

pub struct Builder<'a> {
    checkpoint: &'a Checkpoint,
    family: &'static str,
    buffers: Vec<usize>,
    matrices: Vec<Matrix>,
    vectors: Vec<Tensor>,
    kv: Vec<KvShape>,
    steps: Vec<Step>,
}

/// The buffers of a dense decoder.
struct Buffers {
    residual: Buffer,
    normed: Buffer,
    q: Buffer,
    k: Buffer,
    v: Buffer,
    attended: Buffer,
    gate: Buffer,
    up: Buffer,
}

impl<'a> Builder<'a> {
    pub fn new(family: &'static str, checkpoint: &'a Checkpoint) -> Self {
        Builder {
            checkpoint,
            family,
            buffers: Vec::new(),
            matrices: Vec::new(),
            vectors: Vec::new(),
            kv: Vec::new(),
            steps: Vec::new(),
        }
    }

    /// The whole program of a dense decoder with the tensor names of Llama.
    pub fn dense(mut self, dense: Dense) -> Result<Program> {
        let (q_width, kv_width) = (dense.heads * dense.head_dim, dense.kv_heads * dense.head_dim);
        let buffers = Buffers {
            residual: self.buffer(dense.hidden),
            normed: self.buffer(dense.hidden),
            q: self.buffer(q_width),
            k: self.buffer(kv_width),
            v: self.buffer(kv_width),
            attended: self.buffer(q_width),
            gate: self.buffer(dense.intermediate),
            up: self.buffer(dense.intermediate),
        };
        let embedding = self.matrix("model.embed_tokens.weight", dense.vocab, dense.hidden)?;
        self.steps.push(Step::Embed { output: buffers.residual, scale: 1.0 });
        for layer in 0..dense.layers {
            self.attention(&dense, &buffers, layer)?;
            self.mlp(&dense, &buffers, layer)?;
        }
        let logits = self.head(&dense, &buffers, &embedding)?;
        Ok(Program {
            family: self.family,
            vocab: dense.vocab,
            max_positions: dense.max_positions,
            buffers: self.buffers,
            matrices: self.matrices,
            embedding,
            vectors: self.vectors,
            ropes: vec![dense.rope],
            kv: self.kv,
            steps: self.steps,
            logits,
        })
    }

    fn attention(&mut self, dense: &Dense, on: &Buffers, layer: usize) -> Result<()> {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let (q_width, kv_width) = (dense.heads * dense.head_dim, dense.kv_heads * dense.head_dim);
        self.norm(&name("input_layernorm.weight"), dense, on.residual, on.normed)?;
        for (part, rows, output) in [("q", q_width, on.q), ("k", kv_width, on.k), ("v", kv_width, on.v)] {
            let part = name(&format!("self_attn.{part}_proj"));
            self.linear(&part, rows, dense.hidden, dense.qkv_bias, on.normed, output)?;
        }
        for (part, buffer) in [("q", on.q), ("k", on.k)] {
            if dense.qk_norm {
                let weight = self.vector(&name(&format!("self_attn.{part}_norm.weight")), dense.head_dim)?;
                let norm = rms(weight, dense.norm_eps);
                self.steps.push(Step::HeadNorm { norm, buffer, head_dim: dense.head_dim });
            }
            self.steps.push(Step::Rope { buffer, rope: RopeId(0), head_dim: dense.head_dim, start: 0 });
        }
        self.kv.push(KvShape { heads: dense.kv_heads, key_dim: dense.head_dim, value_dim: dense.head_dim });
        self.steps.push(Step::Append { layer, keys: on.k, values: on.v });
        let plain = Attention::new(1.0 / (dense.head_dim as f32).sqrt());
        let attention = Attention { window: dense.windows[layer], ..plain };
        self.steps.push(Step::Attend { layer, queries: on.q, output: on.attended, attention });
        self.residual(&name("self_attn.o_proj"), dense.hidden, q_width, dense.output_bias, on.attended, on.residual)
    }

    fn mlp(&mut self, dense: &Dense, on: &Buffers, layer: usize) -> Result<()> {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let (hidden, inner, bias) = (dense.hidden, dense.intermediate, dense.mlp_bias);
        self.norm(&name("post_attention_layernorm.weight"), dense, on.residual, on.normed)?;
        self.linear(&name("mlp.gate_proj"), inner, hidden, bias, on.normed, on.gate)?;
        self.linear(&name("mlp.up_proj"), inner, hidden, bias, on.normed, on.up)?;
        self.steps.push(Step::Glu { activation: Activation::Silu, gate: on.gate, up: on.up });
        self.residual(&name("mlp.down_proj"), hidden, inner, bias, on.gate, on.residual)
    }

    fn head(&mut self, dense: &Dense, on: &Buffers, embedding: &Matrix) -> Result<Buffer> {
        let (selected, normed) = (self.buffer(dense.hidden), self.buffer(dense.hidden));
        let logits = self.buffer(dense.vocab);
        self.steps.push(Step::Select { input: on.residual, output: selected });
        self.norm("model.norm.weight", dense, selected, normed)?;
        let head = match dense.tied {
            true => embedding.clone(),
            false => self.matrix("lm_head.weight", dense.vocab, dense.hidden)?,
        };
        let matrix = self.stream(head);
        self.steps.push(Step::MatMul(Product::new(matrix, normed, logits)));
        Ok(logits)
    }

    fn buffer(&mut self, width: usize) -> Buffer {
        self.buffers.push(width);
        Buffer(self.buffers.len() - 1)
    }

    fn norm(&mut self, name: &str, dense: &Dense, input: Buffer, output: Buffer) -> Result<()> {
        let weight = self.vector(name, dense.hidden)?;
        self.steps.push(Step::Norm { norm: rms(weight, dense.norm_eps), input, output, add: false });
        Ok(())
    }

    fn linear(&mut self, name: &str, rows: usize, cols: usize, bias: bool, from: Buffer, to: Buffer) -> Result<()> {
        self.project(name, rows, cols, bias, from, to, false)
    }

    fn residual(&mut self, name: &str, rows: usize, cols: usize, bias: bool, from: Buffer, to: Buffer) -> Result<()> {
        self.project(name, rows, cols, bias, from, to, true)
    }

    #[allow(clippy::too_many_arguments)] // one line per projection in the families is worth it
    fn project(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
        bias: bool,
        input: Buffer,
        output: Buffer,
        add: bool,
    ) -> Result<()> {
        let matrix = self.matrix(&format!("{name}.weight"), rows, cols)?;
        let matrix = self.stream(matrix);
        let bias = bias.then(|| self.vector(&format!("{name}.bias"), rows)).transpose()?;
        self.steps.push(Step::MatMul(Product { bias, add, ..Product::new(matrix, input, output) }));
        Ok(())
    }

    fn stream(&mut self, matrix: Matrix) -> MatrixId {
        self.matrices.push(matrix);
        MatrixId(self.matrices.len() - 1)
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix> {
        let tensor = self.tensor(name, &[rows, cols])?;
        Ok(Matrix { tensor, first_row: 0, rows, cols })
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<VectorId> {
        let tensor = self.tensor(name, &[len])?;
        self.vectors.push(tensor);
        Ok(VectorId(self.vectors.len() - 1))
    }

    /// A tensor of the checkpoint, once its shape agrees with the configuration and its numbers can be multiplied.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.checkpoint.require(name)?;
        let path = self.checkpoint.file_path(tensor.span.file).to_path_buf();
        if tensor.shape != shape {
            let problem = format!("its shape is {:?}, but config.json makes it {shape:?}", tensor.shape);
            return Err(Error::Tensor { path, tensor: name.into(), problem });
        }
        if !matches!(tensor.dtype, Dtype::Bf16 | Dtype::F16 | Dtype::F32) {
            return Err(Error::Unsupported { path, what: format!("tensor `{name}` of type {}", tensor.dtype) });
        }
        Ok(tensor.clone())
    }
}
