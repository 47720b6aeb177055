//! Mixtures of experts: a router gives every token a few of many small MLPs. Which, is known only inside a pass, so their
//! matrices are no part of [`Program::matrices`](super::Program::matrices): a pass reads those that its tokens chose.

use std::ops::Range;

use super::{Activation, Buffer, Matrix, VectorId};
use crate::checkpoint::{Span, Tensor};

/// The experts of one layer.
#[derive(Clone, Debug)]
pub struct ExpertLayer {
    pub experts: Vec<Expert>,
    /// Experts that a token has.
    pub top_k: usize,
}

/// The matrices of one expert, in the order in which they are used: gate, up and down, or gate and up as one, and down.
#[derive(Clone, Debug)]
pub struct Expert {
    pub matrices: Vec<Matrix>,
    /// Of matrices in MXFP4, their exponents.
    pub exponents: Vec<Exponents>,
}

/// One byte for each 32 numbers of a matrix, row after row: what 2 is raised to, plus 127.
#[derive(Clone, Debug)]
pub struct Exponents {
    pub tensor: Tensor,
    /// The row of the tensor that belongs to row 0 of the matrix.
    pub first_row: usize,
    pub row_bytes: usize,
}

impl Exponents {
    /// Where those of some rows lie.
    pub fn span(&self, rows: Range<usize>) -> Span {
        let row = self.row_bytes as u64;
        let Span { file, offset, .. } = self.tensor.span;
        Span { file, offset: offset + (self.first_row + rows.start) as u64 * row, len: rows.len() as u64 * row }
    }
}

impl Expert {
    /// What is read for some stored rows of one of its matrices: the rows, their exponents if they have any, and with the
    /// first rows all factors of the matrix.
    pub fn spans(&self, matrix: usize, rows: Range<usize>) -> Vec<Span> {
        let weights = &self.matrices[matrix];
        let exponents = self.exponents.get(matrix).map(|exponents| exponents.span(rows.clone()));
        let groups = weights.groups.as_ref().filter(|_| rows.start == 0);
        let factors = groups.into_iter().flat_map(|groups| &groups.parts).map(|part| part.tensor.span);
        std::iter::once(weights.span(rows)).chain(exponents).chain(factors).collect()
    }

    /// Bytes of all its matrices, with what belongs to them.
    fn bytes(&self) -> u64 {
        let matrices = self.matrices.iter().enumerate();
        let spans = matrices.flat_map(|(m, matrix)| self.spans(m, 0..matrix.stored_rows()));
        spans.map(|span| span.len).sum()
    }
}

impl ExpertLayer {
    /// Bytes of the experts of one token, on average over experts.
    pub fn token_bytes(&self) -> u64 {
        self.bytes() / self.experts.len() as u64 * self.top_k as u64
    }

    /// Bytes of all experts on disk.
    pub fn bytes(&self) -> u64 {
        self.experts.iter().map(Expert::bytes).sum()
    }
}

/// How a router's logits become experts and what each of them counts.
///
/// A score is the softmax or the sigmoid of a logit; a choice is the score plus its correction. Experts stand in `groups`
/// groups of consecutive ones; a group is as good as the sum of its `group_best` largest choices. Of the experts in the
/// `top_groups` best groups, those `top_k` with the largest choice are taken; among equals the lower number goes first.
/// An expert then counts as much as its score, times `scale`; with `renormalise`, scores are divided by the sum of those
/// taken first.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    pub scores: Scores,
    /// One number an expert. It decides who is taken, not how much that counts.
    pub correction: Option<VectorId>,
    pub groups: usize,
    pub top_groups: usize,
    pub group_best: usize,
    pub top_k: usize,
    pub renormalise: bool,
    pub scale: f32,
}

impl Routing {
    /// The `top_k` largest of a softmax: no groups, no correction, nothing renormalised.
    pub fn softmax(top_k: usize) -> Routing {
        Routing {
            scores: Scores::Softmax,
            correction: None,
            groups: 1,
            top_groups: 1,
            group_best: 1,
            top_k,
            renormalise: false,
            scale: 1.0,
        }
    }
}

/// See [`Routing`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scores {
    Softmax,
    Sigmoid,
}

/// Runs the experts that the router chose: for every token, `output += Σ weight · down(gated(gate(x), up(x)))`, in the order
/// of the experts' numbers. The buffers named beside input and output hold one expert's rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    /// Index into [`Program::experts`](super::Program::experts).
    pub layer: usize,
    pub input: Buffer,
    pub output: Buffer,
    /// The rows of `input` that chose the expert.
    pub gathered: Buffer,
    /// Gate and up as one product leaves them, where they are one matrix.
    pub packed: Option<(Buffer, Packing)>,
    pub gate: Buffer,
    pub up: Buffer,
    /// What an expert made.
    pub made: Buffer,
    /// For each matrix of an expert, all experts' biases one after the other.
    pub biases: Vec<Option<VectorId>>,
    pub gating: Gating,
    pub weigh: Weigh,
}

/// Where gate and up are in a row of their common product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// First all of the gate, then all of up.
    Halves,
    /// In turn, the gate first.
    Pairs,
}

/// What becomes of gate and up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gating {
    /// `activation(gate) · up`
    Plain(Activation),
    /// `g · sigmoid(alpha · g) · (u + 1)` with `g = min(gate, limit)` and `u = up` within ±`limit` (gpt-oss).
    Clamped { alpha: f32, limit: f32 },
}

/// Where the router's weight goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weigh {
    /// Each token's row is multiplied before the expert gets it (Llama 4).
    Input,
    Output,
}
