//! The layers of dense decoders: attention, MLP, head, from the description in `dense`.

use crate::error::Result;
use crate::program::{Attention, Buffer, KvShape, Matrix, Norm, Product, Program, RopeId, Step};

use super::builder::{Builder, Projection};
use super::dense::{Dense, Mlp, QkNorm, Qkv};

/// The buffers of a dense decoder. Only those are made that its steps use.
struct Buffers {
    residual: Buffer,
    normed: Buffer,
    /// What the MLP of a parallel layer reads.
    normed_for_mlp: Buffer,
    /// Queries, keys and values of a projection that is multiplied whole.
    packed: Buffer,
    q: Buffer,
    k: Buffer,
    v: Buffer,
    attended: Buffer,
    gate: Buffer,
    up: Buffer,
}

/// Where a layer's two halves read from and write to.
struct Flow<'a> {
    dense: &'a Dense,
    on: &'a Buffers,
    /// `model.layers.7.`
    prefix: String,
    layer: usize,
}

impl Flow<'_> {
    fn name(&self, part: &str) -> String {
        format!("{}{part}", self.prefix)
    }
}

impl Builder<'_> {
    /// The whole program of a dense decoder.
    pub fn dense(mut self, dense: Dense) -> Result<Program> {
        let names = dense.names;
        let root = self.root(names.root, &format!("{}.weight", names.embedding));
        let on = self.buffers(&dense);
        let embedding = self.table(&format!("{root}{}.weight", names.embedding), dense.vocab, dense.hidden)?;
        for rope in &dense.ropes {
            self.rope(rope.clone());
        }
        self.step(Step::Embed { output: on.residual, scale: dense.embedding_scale });
        for layer in 0..dense.layers {
            let prefix = format!("{root}{}.{layer}.", names.layers);
            self.layer(&Flow { dense: &dense, on: &on, prefix, layer })?;
        }
        let logits = self.head(&dense, &on, &root, &embedding)?;
        Ok(self.finish(dense.vocab, dense.max_positions, embedding, logits))
    }

    fn buffers(&mut self, dense: &Dense) -> Buffers {
        let (q_width, kv_width, names) = (dense.q_width(), dense.kv_width(), dense.names);
        let (residual, normed) = (self.buffer(dense.hidden), self.buffer(dense.hidden));
        let normed_for_mlp = match dense.parallel && names.mlp_norm.is_some() {
            true => self.buffer(dense.hidden),
            false => normed,
        };
        let (q, k, v) = (self.buffer(q_width), self.buffer(kv_width), self.buffer(kv_width));
        let packed = match names.qkv {
            Qkv::Grouped(_) => self.buffer(q_width + 2 * kv_width),
            Qkv::Separate(_) | Qkv::Packed(_) => q,
        };
        let attended = self.buffer(q_width);
        let gate = self.buffer(dense.intermediate);
        let up = match names.mlp {
            Mlp::Gated { .. } | Mlp::Packed(_) => self.buffer(dense.intermediate),
            Mlp::Plain(_) => gate,
        };
        Buffers { residual, normed, normed_for_mlp, packed, q, k, v, attended, gate, up }
    }

    fn layer(&mut self, flow: &Flow) -> Result<()> {
        let Flow { dense, on, .. } = *flow;
        let names = dense.names;
        let attention_input = self.normalised(flow, names.attention_norm, on.normed)?;
        if dense.parallel {
            let mlp_input = match names.mlp_norm {
                Some(_) => self.normalised(flow, names.mlp_norm, on.normed_for_mlp)?,
                None => attention_input,
            };
            self.attention(flow, attention_input)?;
            self.mlp(flow, mlp_input)
        } else {
            self.attention(flow, attention_input)?;
            let mlp_input = self.normalised(flow, names.mlp_norm, on.normed)?;
            self.mlp(flow, mlp_input)
        }
    }

    /// The residual stream through a norm of this layer, or itself where there is none.
    fn normalised(&mut self, flow: &Flow, name: Option<&str>, output: Buffer) -> Result<Buffer> {
        let Flow { dense, on, .. } = *flow;
        let Some(name) = name else { return Ok(on.residual) };
        let norm = self.norm(&flow.name(name), &[dense.hidden], dense.norm)?;
        self.step(Step::Norm { norm, input: on.residual, output, add: false });
        Ok(output)
    }

    fn attention(&mut self, flow: &Flow, input: Buffer) -> Result<()> {
        let Flow { dense, on, layer, .. } = *flow;
        let names = dense.names;
        self.qkv(flow, input)?;
        for (name, heads, buffer) in [(names.q_norm, dense.heads, on.q), (names.k_norm, dense.kv_heads, on.k)] {
            self.qk_norm(flow, name, heads, buffer)?;
            let waits = buffer == on.k && dense.turn_cached_keys;
            if let Some(rope) = dense.layer_ropes[layer].filter(|_| !waits) {
                self.step(Step::Rope { buffer, rope: RopeId(rope), head_dim: dense.head_dim, start: 0 });
            }
        }
        if let Some(by) = dense.query_scale {
            self.step(Step::ScaleQueries { buffer: on.q, by });
        }
        let (heads, dim) = (dense.kv_heads, dense.head_dim);
        let cache = self.kv(KvShape { heads, key_dim: dim, value_dim: dim });
        self.step(Step::Append { layer: cache, keys: on.k, values: on.v });
        let attention = Attention {
            window: dense.windows[layer],
            soft_cap: dense.soft_cap,
            slopes: dense.slopes.clone(),
            turn_keys: dense.layer_ropes[layer].filter(|_| dense.turn_cached_keys).map(RopeId),
            ..Attention::new(dense.scale)
        };
        self.step(Step::Attend { layer: cache, queries: on.q, output: on.attended, attention });
        let name = flow.name(names.attention_output);
        let output = Projection {
            bias: dense.output_bias,
            ..Projection::new(&name, dense.hidden, dense.q_width(), on.attended, on.residual)
        };
        self.residual(flow, output, names.attention_post_norm)
    }

    fn qkv(&mut self, flow: &Flow, input: Buffer) -> Result<()> {
        let Flow { dense, on, .. } = *flow;
        let (q_width, kv_width, cols) = (dense.q_width(), dense.kv_width(), dense.hidden);
        let all = q_width + 2 * kv_width;
        let bias = dense.qkv_bias;
        match dense.names.qkv {
            Qkv::Separate(names) => {
                for (name, rows, output) in
                    [(names[0], q_width, on.q), (names[1], kv_width, on.k), (names[2], kv_width, on.v)]
                {
                    self.project(Projection { bias, ..Projection::new(&flow.name(name), rows, cols, input, output) })?;
                }
            }
            Qkv::Packed(name) => {
                let name = flow.name(name);
                let (k, v) = (q_width, q_width + kv_width);
                for (part, output) in [(0..k, on.q), (k..v, on.k), (v..all, on.v)] {
                    self.project(Projection { part, bias, ..Projection::new(&name, all, cols, input, output) })?;
                }
            }
            Qkv::Grouped(name) => {
                let name = flow.name(name);
                self.project(Projection { bias, ..Projection::new(&name, all, cols, input, on.packed) })?;
                let dim = dense.head_dim;
                let queries = q_width / dense.kv_heads;
                let stride = queries + 2 * dim;
                for (first, run, output) in [(0, queries, on.q), (queries, dim, on.k), (queries + dim, dim, on.v)] {
                    self.step(Step::Rearrange { input: on.packed, output, first, run, stride });
                }
            }
        }
        Ok(())
    }

    fn qk_norm(&mut self, flow: &Flow, name: &str, heads: usize, buffer: Buffer) -> Result<()> {
        let dense = flow.dense;
        let dim = dense.head_dim;
        let (shape, head_dim): (&[usize], usize) = match dense.qk_norm {
            QkNorm::None => return Ok(()),
            QkNorm::Heads => (&[dim], dim),
            QkNorm::EachHead => (&[heads, dim], dim),
            QkNorm::Whole => (&[heads * dim], heads * dim),
        };
        let norm = self.norm(&flow.name(name), shape, dense.norm)?;
        self.step(Step::HeadNorm { norm, buffer, head_dim });
        Ok(())
    }

    fn mlp(&mut self, flow: &Flow, input: Buffer) -> Result<()> {
        let Flow { dense, on, .. } = *flow;
        let (inner, cols, bias, activation) = (dense.intermediate, dense.hidden, dense.mlp_bias, dense.activation);
        match dense.names.mlp {
            Mlp::Gated { gate, up } => {
                for (name, output) in [(gate, on.gate), (up, on.up)] {
                    self.project(Projection { bias, ..Projection::new(&flow.name(name), inner, cols, input, output) })?;
                }
                self.step(Step::Glu { activation, gate: on.gate, up: on.up });
            }
            Mlp::Packed(name) => {
                let name = flow.name(name);
                for (part, output) in [(0..inner, on.gate), (inner..2 * inner, on.up)] {
                    self.project(Projection { part, bias, ..Projection::new(&name, 2 * inner, cols, input, output) })?;
                }
                self.step(Step::Glu { activation, gate: on.gate, up: on.up });
            }
            Mlp::Plain(name) => {
                self.project(Projection { bias, ..Projection::new(&flow.name(name), inner, cols, input, on.gate) })?;
                self.step(Step::Activate { activation, buffer: on.gate });
            }
        }
        let name = flow.name(dense.names.mlp_output);
        let output = Projection { bias, ..Projection::new(&name, dense.hidden, inner, on.gate, on.residual) };
        self.residual(flow, output, dense.names.mlp_post_norm)
    }

    /// Adds a projection to the residual stream, through a norm where there is one.
    fn residual(&mut self, flow: &Flow, projection: Projection, post_norm: Option<&str>) -> Result<()> {
        let Flow { dense, on, .. } = *flow;
        let projection = Projection { scale: dense.residual_scale, ..projection };
        let Some(name) = post_norm else { return self.project(Projection { add: true, ..projection }) };
        self.project(Projection { output: on.normed, ..projection })?;
        let norm = self.norm(&flow.name(name), &[dense.hidden], dense.norm)?;
        self.step(Step::Norm { norm, input: on.normed, output: on.residual, add: true });
        Ok(())
    }

    fn head(&mut self, dense: &Dense, on: &Buffers, root: &str, embedding: &Matrix) -> Result<Buffer> {
        let (selected, normed) = (self.buffer(dense.hidden), self.buffer(dense.hidden));
        let logits = self.buffer(dense.vocab);
        self.step(Step::Select { input: on.residual, output: selected });
        let norm: Norm = self.norm(&format!("{root}{}", dense.names.final_norm), &[dense.hidden], dense.norm)?;
        self.step(Step::Norm { norm, input: selected, output: normed, add: false });
        let head = match dense.tied {
            true => embedding.clone(),
            false => {
                let name = format!("{}.weight", dense.names.head);
                let inner = format!("language_model.{name}");
                let name = if self.has(&inner) { inner } else { name };
                self.matrix(&name, dense.vocab, dense.hidden)?
            }
        };
        let matrix = self.stream(head);
        let (scale, normalise_rows) = (dense.logit_scale, dense.normalise_head);
        self.multiply(Product { scale, normalise_rows, ..Product::new(matrix, normed, logits) })?;
        if let Some(cap) = dense.logit_cap {
            self.step(Step::SoftCap { buffer: logits, cap });
        }
        Ok(logits)
    }
}
