//! The layers of dense decoders: attention, MLP, head, from the description in `dense`.

use crate::error::Result;
use crate::program::{Activation, Attention, Buffer, KvShape, Matrix, Norm, Product, Program, RopeId, Step};

use super::builder::{Builder, NormStyle, Projection};
use super::delta::DeltaBuffers;
use super::dense::{Dense, Mlp, QkNorm, Qkv};
use super::latent::LatentBuffers;
use super::moe::MoeBuffers;

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
    /// The gates of queries.
    query_gate: Option<Buffer>,
    delta: Option<DeltaBuffers>,
    latent: Option<LatentBuffers>,
    moe: Option<MoeBuffers>,
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
    pub(super) fn dense(mut self, dense: Dense) -> Result<Program> {
        let names = dense.names;
        let root = self.root(names.root, &format!("{}.weight", names.embedding));
        let on = self.buffers(&dense);
        // Of what is tied, a file may have either.
        let (table, head) = (format!("{root}{}.weight", names.embedding), self.head_name(&dense));
        let table = if dense.tied && !self.has(&table) && self.has(&head) { head } else { table };
        let embedding = self.table(&table, dense.vocab, dense.hidden)?;
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
        let q = self.buffer(q_width);
        let (k, v, attended_width) = match dense.latent {
            Some(latent) => (q, q, dense.heads * latent.value),
            None => (self.buffer(kv_width), self.buffer(kv_width), q_width),
        };
        let packed = match names.qkv {
            Qkv::Grouped(_) => self.buffer(q_width + 2 * kv_width),
            Qkv::Separate(_) if dense.gated => self.buffer(2 * q_width),
            Qkv::Separate(_) | Qkv::Packed(_) => q,
        };
        let attended = self.buffer(attended_width);
        let all_sparse = dense.moe.as_ref().is_some_and(|sparse| !sparse.layers.contains(&false));
        let gate = if all_sparse { normed } else { self.buffer(dense.intermediate) };
        let up = match names.mlp {
            Mlp::Gated { .. } | Mlp::Packed(_) if !all_sparse => self.buffer(dense.intermediate),
            _ => gate,
        };
        let query_gate = dense.gated.then(|| self.buffer(q_width));
        let delta = dense.delta.as_ref().map(|delta| self.delta_buffers(delta));
        let latent = dense.latent.as_ref().map(|latent| self.latent_buffers(dense, latent));
        let moe = dense.moe.as_ref().map(|sparse| self.moe_buffers(&sparse.moe));
        Buffers {
            residual,
            normed,
            normed_for_mlp,
            packed,
            q,
            k,
            v,
            attended,
            gate,
            up,
            query_gate,
            delta,
            latent,
            moe,
        }
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
        if let (Some(delta), Some(buffers)) = (&dense.delta, &on.delta)
            && delta.layers[layer]
        {
            return self.delta(dense, delta, buffers, &flow.prefix, [input, on.residual]);
        }
        if let (Some(latent), Some(buffers)) = (&dense.latent, &on.latent) {
            self.latent_attention(dense, latent, buffers, &flow.prefix, [input, on.q, on.attended])?;
            return self.attention_output(flow, dense.heads * latent.value);
        }
        self.qkv(flow, input)?;
        for (name, heads, buffer) in [(names.q_norm, dense.heads, on.q), (names.k_norm, dense.kv_heads, on.k)] {
            self.qk_norm(flow, name, heads, buffer)?;
            let waits = buffer == on.k && dense.turn_cached_keys;
            if let Some(rope) = dense.layer_ropes[layer].filter(|_| !waits) {
                self.step(Step::Rope { buffer, rope: RopeId(rope), head_dim: dense.head_dim, start: 0 });
                if dense.qk_norm == QkNorm::Rotated {
                    let NormStyle { kind, eps, .. } = dense.norm;
                    let norm = Norm { kind, weight: None, bias: None, offset: 0.0, eps };
                    self.step(Step::HeadNorm { norm, buffer, head_dim: dense.head_dim });
                }
            }
        }
        let unrotated = dense.unrotated_scale.filter(|_| dense.layer_ropes[layer].is_none());
        if let Some(by) = dense.query_scale.or(unrotated) {
            self.step(Step::ScaleQueries { buffer: on.q, by });
        }
        let (heads, dim) = (dense.kv_heads, dense.head_dim);
        let cache = self.kv(KvShape { heads, key_dim: dim, value_dim: dim });
        self.step(Step::Append { layer: cache, keys: on.k, values: on.v });
        let sinks = dense.sinks.map(|name| self.vector(&flow.name(name), &[dense.heads])).transpose()?;
        let attention = Attention {
            window: dense.windows[layer],
            chunk: dense.chunks[layer],
            sinks,
            soft_cap: dense.soft_cap,
            slopes: dense.slopes.clone(),
            bias_factor: dense.bias_factor,
            turn_keys: dense.layer_ropes[layer].filter(|_| dense.turn_cached_keys).map(RopeId),
            ..Attention::new(dense.scale)
        };
        self.step(Step::Attend { layer: cache, queries: on.q, output: on.attended, attention });
        if let Some(gate) = on.query_gate {
            // In place of the gate: what a step reads beside it stays as it is.
            self.step(Step::Glu { activation: Activation::Sigmoid, gate, up: on.attended });
        }
        self.attention_output(flow, dense.q_width())
    }

    /// Adds what heads attended to, `width` numbers, to the residual stream.
    fn attention_output(&mut self, flow: &Flow, width: usize) -> Result<()> {
        let Flow { dense, on, .. } = *flow;
        let name = flow.name(dense.names.attention_output);
        let output = Projection::new(&name, dense.hidden, width, on.query_gate.unwrap_or(on.attended), on.residual);
        let output = Projection { bias: dense.output_bias, ..output };
        self.residual(flow, output, dense.names.attention_post_norm)
    }

    fn qkv(&mut self, flow: &Flow, input: Buffer) -> Result<()> {
        let Flow { dense, on, .. } = *flow;
        let (q_width, kv_width, cols) = (dense.q_width(), dense.kv_width(), dense.hidden);
        let all = q_width + 2 * kv_width;
        let bias = dense.qkv_bias;
        match dense.names.qkv {
            Qkv::Separate(names) => {
                let (queries, q_rows) = match on.query_gate {
                    Some(_) => (on.packed, 2 * q_width),
                    None => (on.q, q_width),
                };
                for (name, rows, output) in
                    [(names[0], q_rows, queries), (names[1], kv_width, on.k), (names[2], kv_width, on.v)]
                {
                    self.project(Projection { bias, ..Projection::new(&flow.name(name), rows, cols, input, output) })?;
                }
                if let Some(gate) = on.query_gate {
                    let (input, run) = (on.packed, dense.head_dim);
                    for (first, output) in [(0, on.q), (run, gate)] {
                        self.step(Step::Rearrange { input, output, first, run, stride: 2 * run });
                    }
                }
            }
            Qkv::Packed(name) => {
                let name = flow.name(name);
                self.project_parts(&name, cols, bias, input, &[on.q, on.k, on.v])?;
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
            QkNorm::None | QkNorm::Rotated => return Ok(()),
            QkNorm::Heads => (&[dim], dim),
            QkNorm::EachHead => (&[heads, dim], dim),
            QkNorm::Whole => (&[heads * dim], heads * dim),
        };
        let norm = self.norm(&flow.name(name), shape, dense.norm)?;
        self.step(Step::HeadNorm { norm, buffer, head_dim });
        Ok(())
    }

    fn mlp(&mut self, flow: &Flow, input: Buffer) -> Result<()> {
        let Flow { dense, on, layer, .. } = *flow;
        if let (Some(sparse), Some(buffers)) = (&dense.moe, &on.moe)
            && sparse.layers[layer]
        {
            return self.moe(sparse, buffers, &flow.prefix, input, on.residual);
        }
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
                self.project_parts(&name, cols, bias, input, &[on.gate, on.up])?;
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

    /// What the head is called, in a multimodal checkpoint or another.
    fn head_name(&self, dense: &Dense) -> String {
        let name = format!("{}.weight", dense.names.head);
        let inner = format!("language_model.{name}");
        if self.has(&inner) { inner } else { name }
    }

    fn head(&mut self, dense: &Dense, on: &Buffers, root: &str, embedding: &Matrix) -> Result<Buffer> {
        let (selected, normed) = (self.buffer(dense.hidden), self.buffer(dense.hidden));
        let logits = self.buffer(dense.vocab);
        self.step(Step::Select { input: on.residual, output: selected });
        let norm: Norm = self.norm(&format!("{root}{}", dense.names.final_norm), &[dense.hidden], dense.norm)?;
        self.step(Step::Norm { norm, input: selected, output: normed, add: false });
        // As transformers since its version 5: a head that is in the file counts, whatever the configuration says.
        let name = self.head_name(dense);
        let head = match dense.tied && !self.has(&name) {
            true => embedding.clone(),
            false => self.matrix(&name, dense.vocab, dense.hidden)?,
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
