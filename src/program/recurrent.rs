//! Layers that keep a state of fixed size in the place of keys and values: short convolutions, and the gated delta rule
//! (Yang et al., 2024, arXiv:2412.06464).

use super::{Buffer, VectorId};

/// Index into [`Program::states`](super::Program::states): how many numbers a sequence has there. They are 0 before its
/// first token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateId(pub usize);

/// A causal convolution of each channel by itself, in place:
/// `buffer[t, c] = Σⱼ weight[c, j] · buffer[t − taps + 1 + j, c]`. The state is the `taps − 1` rows before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Convolution {
    pub state: StateId,
    pub buffer: Buffer,
    /// `[channels, taps]`
    pub weight: VectorId,
    pub taps: usize,
}

/// The gated delta rule. For each value head with its state S `[key_dim, value_dim]`, and token by token:
///
///   S = e^g · S;  S += k ⊗ (β · (v − Sᵀk));  output = Sᵀq
///
/// with `g = −e^log_decay · softplus(decay + decay_bias)` and `β = sigmoid(write)`; q and k have been divided by their
/// lengths, q also by `√key_dim`. Consecutive value heads share a key head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaRule {
    pub state: StateId,
    pub key_heads: usize,
    pub value_heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    /// Queries and keys of the key heads, then values of the value heads.
    pub mixed: Buffer,
    /// One number for each value head.
    pub decay: Buffer,
    pub write: Buffer,
    pub log_decay: VectorId,
    pub decay_bias: VectorId,
    /// `[value_heads, value_dim]`
    pub output: Buffer,
}
