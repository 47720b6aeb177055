//! Mixtures of experts as launches: a router's choice; and for each expert the rows that chose it, gathered, through its
//! matrices tile by tile, and added to where they belong. Experts come in the order of their numbers, so each row's sum is in that
//! order too, whoever shares the pass.

use layerstream_kernels::driver::Stream;
use layerstream_kernels::launch::{mlp, moe, rows};
use layerstream_kernels::params::{
    ConvertParams, Dtype, ExpertListsParams, Gate, GluParams, RouteParams, ScaleRowsParams, Scores as ScoreKind,
    SumExpertsParams, Vector,
};

use super::{Queue, Steps, gate};
use crate::backend::cuda::card::Card;
use crate::backend::cuda::notes::{Batch, Run, extend};
use crate::backend::cuda::products::{self, TileProduct};
use crate::error::{Error, Result};
use crate::plan::{ExpertTile, span_bytes};
use crate::program::{Buffer, Expert, Experts, Gating, Packing, Program, Routing, Scores, Weigh};

/// What of a choice of experts has no kernel.
pub fn unsupported_routing(routing: &Routing) -> Option<String> {
    let Routing { groups, group_best, .. } = *routing;
    let in_groups = chosen_groups(routing) != [1; 3];
    (in_groups && (groups > 32 || group_best > 2))
        .then(|| format!("experts in {groups} groups that are judged by their best {group_best}"))
}

/// What of experts has no kernel.
pub fn unsupported_experts(program: &Program, step: &Experts) -> Option<String> {
    let mut matrices = program.experts[step.layer].experts.iter().flat_map(|expert| &expert.matrices);
    matrices.find_map(products::unsupported)
}

/// Groups, those that are open, and how many choices they are judged by: where all are open there might as well be one.
fn chosen_groups(routing: &Routing) -> [usize; 3] {
    match routing.top_groups == routing.groups {
        true => [1; 3],
        false => [routing.groups, routing.top_groups, routing.group_best],
    }
}

/// Who chose whom: the rows of each expert, rising.
#[derive(Default)]
pub struct Chosen {
    top_k: usize,
    /// Expert e has the places from `bounds[e]` to `bounds[e + 1]`.
    bounds: Vec<usize>,
    rows: Vec<usize>,
    /// The places of the expert that is running, counted from its first, in runs of one phase.
    runs: Vec<Run>,
}

impl Chosen {
    /// Learns each row's experts.
    ///
    /// # Errors
    /// [`Error::Device`] for an expert that there is not.
    fn learn(&mut self, ids: &[i32], experts: usize, top_k: usize) -> Result<()> {
        self.top_k = top_k;
        self.bounds.clear();
        self.bounds.resize(experts + 1, 0);
        for id in ids {
            match usize::try_from(*id).ok().filter(|id| *id < experts) {
                Some(id) => self.bounds[id + 1] += 1,
                None => return Err(Error::Device(format!("the GPU chose expert {id} of {experts}; start again"))),
            }
        }
        (0..experts).for_each(|e| self.bounds[e + 1] += self.bounds[e]);
        let mut next = self.bounds.clone();
        self.rows.clear();
        self.rows.resize(ids.len(), 0);
        for (pair, id) in ids.iter().enumerate() {
            let place = &mut next[*id as usize];
            self.rows[*place] = pair / top_k;
            *place += 1;
        }
        Ok(())
    }

    /// The experts with at least one row, rising.
    fn experts(&self) -> Vec<usize> {
        (0..self.bounds.len() - 1).filter(|e| self.bounds[*e] < self.bounds[e + 1]).collect()
    }

    /// How many rows an expert has.
    fn count(&self, expert: usize) -> usize {
        self.bounds[expert + 1] - self.bounds[expert]
    }

    /// Cuts an expert's rows into runs of one phase.
    fn begin(&mut self, expert: usize, of_pass: &[Run]) {
        self.runs.clear();
        for (place, row) in self.rows[self.bounds[expert]..self.bounds[expert + 1]].iter().enumerate() {
            let run = of_pass.partition_point(|run| run.rows.end <= *row);
            extend(&mut self.runs, place, of_pass[run].phase);
        }
    }
}

impl Steps {
    /// Queues the choice of experts for every row. Returns where their numbers will be, and how many there are.
    pub fn route(
        &mut self,
        card: &Card,
        stream: &Stream,
        program: &Program,
        batch: &Batch,
        logits: Buffer,
        routing: &Routing,
    ) -> Result<(u64, usize)> {
        let (queue, rows) = (Queue { card, stream }, self.rows(batch).0);
        let chosen = self.layout.chosen;
        if rows == 0 {
            return Ok((0, 0));
        }
        let (ids, top_k, experts) = (self.at(chosen.ids), routing.top_k as i32, program.buffers[logits.0] as i32);
        let [groups, top_groups, group_best] = chosen_groups(routing).map(|n| n as i32);
        let params = RouteParams {
            logits: self.wide(logits) as *const f32,
            correction: self.vector(routing.correction),
            ids: ids as *mut i32,
            weights: self.at(chosen.weights) as *mut f32,
            logits_stride: self.stride(logits),
            rows: rows as i32,
            experts,
            top_k,
            groups,
            top_groups,
            group_best,
            scores: match routing.scores {
                Scores::Softmax => ScoreKind::SCORES_SOFTMAX,
                Scores::Sigmoid => ScoreKind::SCORES_SIGMOID,
            },
            renormalise: i32::from(routing.renormalise),
            scale: routing.scale,
        };
        queue.launch(&moe::route(&params), &params)?;
        let params = ExpertListsParams {
            ids: ids as *const i32,
            weights: self.at(chosen.weights) as *const f32,
            row_ids: self.at(chosen.row_ids) as *mut i32,
            row_weights: self.at(chosen.row_weights) as *mut f32,
            places: self.at(chosen.places) as *mut i32,
            bounds: self.at(chosen.bounds) as *mut i32,
            rows: rows as i32,
            top_k,
            experts,
        };
        queue.launch(&moe::expert_lists(&params), &params)?;
        Ok((ids, rows * routing.top_k))
    }

    /// Learns what was chosen, each row's experts of so many; returns those that any row has, rising.
    ///
    /// # Errors
    /// [`Error::Device`] for an expert that there is not.
    pub fn chose(&mut self, ids: &[i32], experts: usize, top_k: usize) -> Result<Vec<usize>> {
        self.chosen.learn(ids, experts, top_k)?;
        Ok(self.chosen.experts())
    }

    /// Queues what the next tile of an expert, which is at `address`, makes possible.
    #[expect(clippy::too_many_arguments, reason = "all of what a tile of an expert is")]
    pub fn expert(
        &mut self,
        card: &Card,
        stream: &Stream,
        program: &Program,
        batch: &Batch,
        step: &Experts,
        tile: &ExpertTile,
        address: u64,
    ) -> Result<()> {
        let queue = Queue { card, stream };
        let Expert { matrices, exponents } = &program.experts[step.layer].experts[tile.expert];
        let (begins, ends) = (tile.rows.start == 0, tile.rows.end == matrices[tile.matrix].stored_rows());
        let left = matrices.len() - tile.matrix;
        let (from, to) = match (left, step.packed) {
            (1, _) => (step.gate, step.made),
            (_, Some((packed, _))) => (step.gathered, packed),
            (3, None) => (step.gathered, step.gate),
            _ => (step.gathered, step.up),
        };
        if tile.matrix == 0 && begins {
            self.chosen.begin(tile.expert, self.rows(batch).1);
            self.gather_rows(&queue, program, step, tile.expert)?;
        }
        let matrix = &matrices[tile.matrix];
        let mut bias = self.vector(step.biases.get(tile.matrix).copied().flatten());
        if !bias.data.is_null() {
            bias = Vector { data: (bias.data as u64 + (4 * tile.expert * matrix.rows) as u64) as *const _, ..bias };
        }
        // Whatever else was copied lies behind the rows: either exponents or factors.
        let behind = address + span_bytes(tile.spans[0].len) as u64;
        let mut factors = behind;
        for (part, span) in tile.spans[1..].iter().enumerate().take(tile.factors(matrix)) {
            let elements = 0..matrix.groups.as_ref().map_or(0, |groups| groups.parts[part].elements());
            self.take_factors(&queue, matrix, part, &elements, factors)?;
            factors += span_bytes(span.len) as u64;
        }
        let what = TileProduct {
            matrix,
            stored: &tile.rows,
            address,
            exponents: exponents.get(tile.matrix).map(|_| behind),
            input: from,
            output: to,
            first: 0,
            add: false,
            bias,
            scale: 1.0,
            normalise_rows: false,
        };
        let runs = std::mem::take(&mut self.chosen.runs);
        self.multiply_tile(&queue, program, &what, self.chosen.count(tile.expert), &runs)?;
        self.chosen.runs = runs;
        if ends && left == 2 {
            self.gate_expert(&queue, program, step, tile.expert)?;
        }
        if ends && left == 1 {
            self.add_expert(&queue, program, batch, step, tile.expert)?;
        }
        Ok(())
    }

    /// The rows that chose an expert, side by side.
    fn gather_rows(&mut self, queue: &Queue, program: &Program, step: &Experts, expert: usize) -> Result<()> {
        let first = 4 * self.chosen.bounds[expert] as u64;
        let ids = self.at(self.layout.chosen.row_ids) + first;
        let (from, (out, out_dtype)) = (self.wide(step.input), self.output(step.gathered));
        queue.convert(&ConvertParams {
            in_: from as *const _,
            ids: ids as *const i32,
            out: out as *mut _,
            in_stride: self.stride(step.input),
            out_stride: self.stride(step.gathered),
            rows: self.chosen.count(expert) as i32,
            cols: program.buffers[step.input.0] as i32,
            in_dtype: Dtype::DTYPE_F32,
            out_dtype,
            scale: 1.0,
        })?;
        if step.weigh == Weigh::Output {
            return Ok(());
        }
        let factors = self.at(self.layout.chosen.row_weights) + first;
        let params = ScaleRowsParams {
            x: self.changed(step.gathered) as *mut f32,
            factors: factors as *const f32,
            stride: self.stride(step.gathered),
            rows: self.chosen.count(expert) as i32,
            n: program.buffers[step.gathered.0] as i32,
        };
        queue.launch(&rows::scale_rows(&params), &params)
    }

    /// What becomes of gate and up.
    fn gate_expert(&mut self, queue: &Queue, program: &Program, step: &Experts, expert: usize) -> Result<()> {
        let dim = program.buffers[step.gate.0];
        let (x, up, stride) = match step.packed {
            None => (self.wide(step.gate), self.wide(step.up), self.stride(step.gate)),
            Some((packed, packing)) => {
                let x = self.wide(packed);
                let up = if packing == Packing::Halves { x + 4 * dim as u64 } else { 0 };
                (x, up, self.stride(packed))
            }
        };
        let (kind, alpha, limit) = match step.gating {
            Gating::Plain(activation) => (gate(activation), 0.0, 0.0),
            Gating::Clamped { alpha, limit } => (Gate::GATE_CLAMPED, alpha, limit),
        };
        let (out, out_dtype) = self.output(step.gate);
        let params = GluParams {
            gate: x as *const f32,
            up: up as *const f32,
            out: out as *mut _,
            stride,
            out_stride: self.stride(step.gate),
            rows: self.chosen.count(expert) as i32,
            dim: dim as i32,
            out_dtype,
            kind,
            alpha,
            limit,
        };
        queue.launch(&mlp::glu(&params), &params)
    }

    /// Adds what an expert made to the rows that chose it.
    fn add_expert(
        &mut self,
        queue: &Queue,
        program: &Program,
        batch: &Batch,
        step: &Experts,
        expert: usize,
    ) -> Result<()> {
        let chosen = self.layout.chosen;
        let (out, y_stride) = (self.changed(step.output), self.stride(step.made));
        // Of all places, only this expert's are there.
        let before = (4 * self.chosen.bounds[expert]) as u64 * y_stride as u64;
        let params = SumExpertsParams {
            y: self.wide(step.made).wrapping_sub(before) as *const f32,
            ids: self.at(chosen.ids) as *const i32,
            places: self.at(chosen.places) as *const i32,
            // Where inputs have been weighted, outputs are not.
            weights: if step.weigh == Weigh::Output { self.at(chosen.weights) } else { 0 } as *const f32,
            add: out as *const f32,
            out: out as *mut f32,
            y_stride,
            out_stride: self.stride(step.output),
            rows: self.rows(batch).0 as i32,
            top_k: self.chosen.top_k as i32,
            dim: program.buffers[step.output.0] as i32,
            first_expert: expert as i32,
            end_expert: expert as i32 + 1,
        };
        queue.launch(&moe::sum_experts(&params), &params)
    }
}
