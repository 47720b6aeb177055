//! What is remembered of sequences: keys and values of every token so far, for every attention layer, and the states of
//! layers that keep one of fixed size instead. One allocation per layer, at start, in its final size.

use std::ops::Range;

use crate::program::KvShape;

/// Float32 keys and values. Within a layer: `[sequence, head, position, dim]`, so that the positions that one head reads
/// lie side by side.
pub struct KvCache {
    layers: Vec<Layer>,
    context: usize,
}

struct Layer {
    shape: KvShape,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl KvCache {
    /// Room for `sequences` of at most `context` tokens.
    pub fn new(shapes: &[KvShape], context: usize, sequences: usize) -> KvCache {
        let room = |shape: &KvShape, dim| prefaulted(sequences * shape.heads * context * dim);
        let layer = |shape: &KvShape| Layer {
            shape: *shape,
            keys: room(shape, shape.key_dim),
            values: room(shape, shape.value_dim),
        };
        KvCache { layers: shapes.iter().map(layer).collect(), context }
    }

    pub fn shape(&self, layer: usize) -> KvShape {
        self.layers[layer].shape
    }

    /// Keys and values of one sequence, each `[heads, context, dim]`.
    pub fn get(&self, layer: usize, sequence: usize) -> (&[f32], &[f32]) {
        let layer = &self.layers[layer];
        let (keys, values) = layer.ranges(sequence, self.context);
        (&layer.keys[keys], &layer.values[values])
    }

    /// The same, to append to.
    pub fn get_mut(&mut self, layer: usize, sequence: usize) -> (&mut [f32], &mut [f32]) {
        let layer = &mut self.layers[layer];
        let (keys, values) = layer.ranges(sequence, self.context);
        (&mut layer.keys[keys], &mut layer.values[values])
    }
}

impl Layer {
    fn ranges(&self, sequence: usize, context: usize) -> (Range<usize>, Range<usize>) {
        let range = |dim| {
            let len = self.shape.heads * context * dim;
            sequence * len..(sequence + 1) * len
        };
        (range(self.shape.key_dim), range(self.shape.value_dim))
    }
}

/// The states of layers that keep one of fixed size instead of keys and values. There are two of each: a pass reads what
/// the last completed one left and writes the other, so that a pass that is cut short leaves no trace.
pub struct States {
    /// Of each layer: `[2, sequences, numbers]`.
    layers: Vec<Vec<f32>>,
    sequences: usize,
    /// Which of the two is the current one of each sequence.
    current: Vec<usize>,
}

impl States {
    /// Room for `sequences` with so many numbers in each layer.
    pub fn new(numbers: &[usize], sequences: usize) -> States {
        let layers = numbers.iter().map(|numbers| prefaulted(2 * sequences * numbers)).collect();
        States { layers, sequences, current: vec![0; sequences] }
    }

    /// The state that this pass will leave behind, as the last one left it, or zero for a sequence that begins.
    pub fn next(&mut self, layer: usize, sequence: usize, begins: bool) -> &mut [f32] {
        let numbers = self.layers[layer].len() / 2 / self.sequences;
        let (first, second) = self.layers[layer].split_at_mut(numbers * self.sequences);
        let range = sequence * numbers..(sequence + 1) * numbers;
        let (old, new) = match self.current[sequence] {
            0 => (&first[range.clone()], &mut second[range]),
            _ => (&second[range.clone()], &mut first[range]),
        };
        if begins {
            new.fill(0.0)
        } else {
            new.copy_from_slice(old)
        }
        new
    }

    /// The pass is complete: what it left is current.
    pub fn keep(&mut self, sequence: usize) {
        self.current[sequence] = 1 - self.current[sequence];
    }
}

/// Zeros in pages that are really there: memory is taken now or not at all, and does not grow with the answer.
fn prefaulted(len: usize) -> Vec<f32> {
    const PAGE: usize = 4096 / size_of::<f32>();
    let mut values = vec![0.0; len];
    values.iter_mut().step_by(PAGE).for_each(|value| {
        std::hint::black_box(&mut *value);
        *value = 0.0;
        std::hint::black_box(value);
    });
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_what_the_last_completed_pass_left() {
        let mut states = States::new(&[3, 2], 2);
        states.next(0, 1, true).copy_from_slice(&[1.0, 2.0, 3.0]);
        states.next(1, 1, true).copy_from_slice(&[4.0, 5.0]);
        // Cut short, and done again.
        assert_eq!(states.next(0, 1, true), [0.0; 3]);
        states.next(0, 1, true).fill(7.0);
        states.next(1, 1, true).fill(8.0);
        states.keep(1);
        for _ in 0..2 {
            let next = states.next(0, 1, false);
            assert_eq!(next, [7.0; 3], "a pass that is cut short leaves no trace");
            next.fill(9.0);
        }
        assert_eq!(states.next(1, 1, false), [8.0; 2]);
        states.keep(1);
        assert_eq!(states.next(0, 1, false), [9.0; 3]);
        // Nobody else saw any of it, and who begins again begins with zeros.
        assert_eq!(states.next(0, 0, true), [0.0; 3]);
        assert_eq!(states.next(0, 1, true), [0.0; 3]);
    }
}
