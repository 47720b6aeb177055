//! Multi-head latent attention (DeepSeek-AI, 2024, arXiv:2405.04434): keys and values of all heads come from one short
//! vector for each token, and the part of a key that is rotated is the same for all heads.
//!
//! The cache holds keys and values as heads use them, not the short vector. The short one would be smaller, but to attend
//! over it the projections have to be folded into queries and outputs, head by head, with keys of 576 dimensions that no
//! attention kernel here has; and every product and every kernel would be one that only this attention needs.

use crate::error::Result;
use crate::program::{Attention, Buffer, KvShape, RopeId, Step};

use super::Config;
use super::builder::{Builder, NormStyle, Projection};
use super::dense::Dense;

/// The sizes of latent attention.
#[derive(Clone, Copy)]
pub struct Latent {
    /// Of the short vector that queries come from; none if they come from the token itself.
    pub query_rank: Option<usize>,
    /// Of the one for keys and values.
    pub rank: usize,
    /// Dimensions of a key of which every head has its own, and those that turn.
    pub own: usize,
    pub rotary: usize,
    pub value: usize,
    /// Biases on the projections from the token, and on that of the output.
    pub bias: bool,
}

/// The buffers of latent attention.
pub struct LatentBuffers {
    query: Option<Buffer>,
    latent: Buffer,
    rotary: Buffer,
    /// For each head its own part of the key, then its value.
    packed: Buffer,
}

/// Both norms of short vectors have this, whatever the configuration says.
const EPS: f32 = 1e-6;

impl Latent {
    pub fn read(config: &Config) -> Result<Latent> {
        Ok(Latent {
            query_rank: config.optional_size("q_lora_rank")?,
            rank: config.size("kv_lora_rank")?,
            own: config.count("qk_nope_head_dim")?,
            rotary: config.count("qk_rope_head_dim")?,
            value: config.count("v_head_dim")?,
            bias: config.flag("attention_bias", false)?,
        })
    }
}

impl Builder<'_> {
    pub(super) fn latent_buffers(&mut self, dense: &Dense, latent: &Latent) -> LatentBuffers {
        LatentBuffers {
            query: latent.query_rank.map(|rank| self.buffer(rank)),
            latent: self.buffer(latent.rank),
            rotary: self.buffer(latent.rotary),
            packed: self.buffer(dense.heads * (latent.own + latent.value)),
        }
    }

    /// `output` becomes what all heads attended to, `[heads, value]`, before the output's projection.
    pub(super) fn latent_attention(
        &mut self,
        dense: &Dense,
        latent: &Latent,
        on: &LatentBuffers,
        prefix: &str,
        [input, queries, output]: [Buffer; 3],
    ) -> Result<()> {
        let Latent { rank, own, rotary, value, bias, .. } = *latent;
        let (hidden, heads, dim) = (dense.hidden, dense.heads, own + rotary);
        let name = |part: &str| format!("{prefix}self_attn.{part}");
        match latent.query_rank.zip(on.query) {
            None => self.project(Projection::new(&name("q_proj"), heads * dim, hidden, input, queries))?,
            Some((rank, short)) => {
                let down = name("q_a_proj");
                self.project(Projection { bias, ..Projection::new(&down, rank, hidden, input, short) })?;
                self.short_norm(&name("q_a_layernorm"), rank, dense.norm, short)?;
                self.project(Projection::new(&name("q_b_proj"), heads * dim, rank, short, queries))?;
            }
        }
        let down = name("kv_a_proj_with_mqa");
        self.project_parts(&down, hidden, bias, input, &[on.latent, on.rotary])?;
        self.short_norm(&name("kv_a_layernorm"), rank, dense.norm, on.latent)?;
        self.project(Projection::new(&name("kv_b_proj"), heads * (own + value), rank, on.latent, on.packed))?;
        let rope = RopeId(0);
        self.step(Step::Rope { buffer: queries, rope, head_dim: dim, start: own });
        self.step(Step::Rope { buffer: on.rotary, rope, head_dim: rotary, start: 0 });
        let layer = self.kv(KvShape { heads, key_dim: dim, value_dim: value });
        self.step(Step::AppendShared { layer, packed: on.packed, shared: on.rotary });
        self.step(Step::Attend { layer, queries, output, attention: Attention::new(dense.scale) });
        Ok(())
    }

    fn short_norm(&mut self, name: &str, rank: usize, style: NormStyle, buffer: Buffer) -> Result<()> {
        let norm = self.norm(name, &[rank], NormStyle { eps: EPS, ..style })?;
        self.step(Step::HeadNorm { norm, buffer, head_dim: rank });
        Ok(())
    }
}
