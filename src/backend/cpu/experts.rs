//! Mixtures of experts on the processor: the rows that chose an expert are gathered, go through its matrices tile by tile
//! as these arrive, and are added to where they belong. Experts come in the order of their numbers, so each row's sum is
//! in that order too.

use std::sync::Arc;

use super::route::Chosen;
use super::run::{CpuBackend, multiply, multiply_grouped, pair, scales};
use super::{Columns, Cpu, Finish, Scales, mxfp4};
use crate::error::Result;
use crate::plan::ExpertTile;
use crate::program::{Buffer, Expert, Experts, Gating, Packing, Routing, Weigh};
use crate::stream;

impl CpuBackend {
    /// Lets every row choose; returns the experts that were chosen by any, rising.
    pub(super) fn choose(&mut self, logits: Buffer, routing: &Routing) -> Vec<usize> {
        let experts = self.program.buffers[logits.0];
        let correction = routing.correction.map(|id| self.vectors[id.0].as_slice());
        self.chosen.choose(&self.buffers[logits.0][..self.rows * experts], experts, correction, routing);
        self.chosen.experts().collect()
    }

    /// Does what the next tile of an expert makes possible.
    ///
    /// # Errors
    /// A column that is in no group.
    pub(super) fn apply_expert(&mut self, step: &Experts, tile: &ExpertTile, bytes: &stream::ExpertTile) -> Result<()> {
        let program = Arc::clone(&self.program);
        let Expert { matrices, exponents } = &program.experts[step.layer].experts[tile.expert];
        let matrix = &matrices[tile.matrix];
        // With exponents, there are no factors.
        let exponents = exponents.get(tile.matrix).map(|_| &bytes[1]);
        for part in 0..tile.factors(matrix) {
            let elements = 0..matrix.groups.as_ref().map_or(0, |groups| groups.parts[part].elements());
            self.tables.take(&self.cpu, matrix, part, &elements, &bytes[1 + part])?;
        }
        let (begins, ends) = (tile.rows.start == 0, tile.rows.end == matrix.stored_rows());
        let width = |buffer: Buffer| program.buffers[buffer.0];
        let left = matrices.len() - tile.matrix;
        let (from, to) = match (left, step.packed) {
            (1, _) => (step.gate, step.made),
            (_, Some((packed, _))) => (step.gathered, packed),
            (3, None) => (step.gathered, step.gate),
            _ => (step.gathered, step.up),
        };
        if tile.matrix == 0 && begins {
            let [input, gathered] = pair(&mut self.buffers, step.input, step.gathered);
            gather(&self.chosen, tile.expert, input, gathered, width(step.input), step.weigh);
        }
        let scales = match exponents {
            None => scales(&self.vectors, &self.tables, matrix, tile.rows.start),
            Some(exponents) => {
                mxfp4::factors(exponents, &mut self.factors_of_tile);
                let values = &self.factors_of_tile;
                Some(Scales { values, zeros: &[], row_block: 1, col_block: 32, index: &[], first_row: 0 })
            }
        };
        let rows = self.chosen.of(tile.expert).0.len();
        let bias = step.biases.get(tile.matrix).copied().flatten();
        let bias = bias.map(|id| &self.vectors[id.0][tile.expert * matrix.rows..(tile.expert + 1) * matrix.rows]);
        let [x, out] = pair(&mut self.buffers, from, to);
        let (x, out) = (&x[..rows * matrix.cols], &mut out[..rows * matrix.rows]);
        let out = Columns { data: out, stride: matrix.rows, first: 0 };
        let finish = Finish { bias, ..Finish::default() };
        match matrix.groups {
            Some(_) if matrix.tensor.transposed => {
                multiply_grouped(&mut self.cpu, matrix, &tile.rows, &bytes[0], &self.tables, x, out, finish);
            }
            _ => multiply(&mut self.cpu, matrix, &tile.rows, &bytes[0], scales, x, out, finish),
        }
        if ends && left == 2 {
            if let Some((packed, packing)) = step.packed {
                self.unpack(packed, packing, step.gate, 0, rows);
                self.unpack(packed, packing, step.up, 1, rows);
            }
            let len = rows * width(step.gate);
            let [gate, up] = pair(&mut self.buffers, step.gate, step.up);
            gated(&mut self.cpu, step.gating, &mut gate[..len], &up[..len]);
        }
        if ends && left == 1 {
            let [made, output] = pair(&mut self.buffers, step.made, step.output);
            add(&self.chosen, tile.expert, made, output, width(step.output), step.weigh);
        }
        Ok(())
    }

    /// Takes the gate (`part` 0) or up (1) out of what their common product made.
    fn unpack(&mut self, packed: Buffer, packing: Packing, to: Buffer, part: usize, rows: usize) {
        let width = self.program.buffers[to.0];
        let [packed, out] = pair(&mut self.buffers, packed, to);
        for (packed, out) in packed.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)).take(rows) {
            match packing {
                Packing::Halves => out.copy_from_slice(&packed[part * width..(part + 1) * width]),
                Packing::Pairs => {
                    out.iter_mut().zip(packed.as_chunks::<2>().0).for_each(|(out, pair)| *out = pair[part])
                }
            }
        }
    }
}

fn gated(cpu: &mut Cpu, gating: Gating, gate: &mut [f32], up: &[f32]) {
    match gating {
        Gating::Plain(activation) => cpu.glu(activation, gate, up),
        Gating::Clamped { alpha, limit } => cpu.clamped_glu(alpha, limit, gate, up),
    }
}

/// Copies the rows that chose an expert.
fn gather(chosen: &Chosen, expert: usize, input: &[f32], gathered: &mut [f32], width: usize, weigh: Weigh) {
    let (rows, weights) = chosen.of(expert);
    for ((row, weight), to) in rows.iter().zip(weights).zip(gathered.chunks_exact_mut(width)) {
        let from = &input[row * width..(row + 1) * width];
        match weigh {
            Weigh::Output => to.copy_from_slice(from),
            Weigh::Input => to.iter_mut().zip(from).for_each(|(to, from)| *to = weight * from),
        }
    }
}

/// Adds what an expert made to the rows that chose it.
fn add(chosen: &Chosen, expert: usize, made: &[f32], output: &mut [f32], width: usize, weigh: Weigh) {
    let (rows, weights) = chosen.of(expert);
    for ((row, weight), made) in rows.iter().zip(weights).zip(made.chunks_exact(width)) {
        let output = &mut output[row * width..(row + 1) * width];
        match weigh {
            Weigh::Output => output.iter_mut().zip(made).for_each(|(out, made)| *out += weight * made),
            Weigh::Input => output.iter_mut().zip(made).for_each(|(out, made)| *out += made),
        }
    }
}
