//! Ragged batches for the checks of rope.cu and attention.cu: rows of several sequences in one pass, and where their keys
//! and values lie in a cache that they share.

use super::Scalar;
use crate::params::Sequence;

/// Some sequences of one pass.
pub struct Ragged {
    pub sequences: Vec<Sequence>,
    /// Rows of the pass: of all sequences together.
    pub rows: usize,
    /// Rows of the cache: of all sequences together, and some before, between and after that belong to nobody.
    pub cache_rows: usize,
}

impl Ragged {
    /// One sequence for each `(start, rows)`; their caches lie in reverse order, with gaps and different capacities.
    pub fn new(shapes: &[(usize, usize)], kv_heads: usize) -> Ragged {
        let mut rows = 0;
        let mut cache_rows = 3;
        let mut sequences = Vec::new();
        for (i, &(start, new)) in shapes.iter().enumerate().rev() {
            let capacity = start + new + [2, 0, 5][i % 3];
            let cache_row = cache_rows as i64;
            let (start, new) = (start as i32, new as i32);
            sequences.push(Sequence { cache_row, capacity: capacity as i32, first_row: 0, rows: new, start });
            cache_rows += kv_heads * capacity + 1;
        }
        sequences.reverse();
        for sequence in &mut sequences {
            sequence.first_row = rows;
            rows += sequence.rows;
        }
        Ragged { sequences, rows: rows as usize, cache_rows }
    }

    /// The sequence of every row.
    pub fn row_sequence(&self) -> Vec<i32> {
        let of = |(i, sequence): (usize, &Sequence)| std::iter::repeat_n(i as i32, sequence.rows as usize);
        self.sequences.iter().enumerate().flat_map(of).collect()
    }
}

/// The row of the cache that holds a position, for one key head.
pub fn cache_row(sequence: &Sequence, kv_head: usize, position: usize) -> usize {
    sequence.cache_row as usize + kv_head * sequence.capacity as usize + position
}

impl Scalar for Sequence {
    fn bytes(self) -> impl Iterator<Item = u8> {
        let numbers = [self.capacity, self.first_row, self.rows, self.start];
        self.cache_row.to_le_bytes().into_iter().chain(numbers.into_iter().flat_map(i32::to_le_bytes))
    }
}
