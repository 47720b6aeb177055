//! What one pass carries: tokens of one or several sequences, laid out as rows one after the other.

use std::ops::Range;

/// Consecutive new tokens of one sequence, in one pass.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Which KV cache: below `Plan::sequences`.
    pub sequence: usize,
    /// Position of the first token; the cache already holds all before it.
    pub start: usize,
    pub tokens: &'a [u32],
    /// Tokens of the sequence when this call is done, later passes of the same prompt included. Only frequencies that
    /// depend on the length look at it.
    pub length: usize,
    /// Tokens of the prompt that the sequence began with: some frequencies are fixed by it.
    pub prompt: usize,
    pub logits: Wanted,
}

/// Which tokens of a segment get logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    None,
    Last,
    All,
}

impl Segment<'_> {
    /// The positions of the tokens.
    pub fn positions(&self) -> Range<usize> {
        self.start..self.start + self.tokens.len()
    }

    /// The tokens with logits, counted from the first of the segment.
    pub fn wanted(&self) -> Range<usize> {
        let n = self.tokens.len();
        match self.logits {
            Wanted::None => n..n,
            Wanted::Last => n - 1..n,
            Wanted::All => 0..n,
        }
    }
}

/// Each segment, and the rows of the pass that are its tokens.
pub fn with_rows<'a, 't>(segments: &'a [Segment<'t>]) -> impl Iterator<Item = (&'a Segment<'t>, Range<usize>)> {
    segments.iter().scan(0, |first, segment| {
        let rows = *first..*first + segment.tokens.len();
        *first = rows.end;
        Some((segment, rows))
    })
}
