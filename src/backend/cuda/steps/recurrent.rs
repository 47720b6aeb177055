//! Steps of layers that keep a state of each sequence: the convolution over tokens, and the gated delta rule.

use layerstream_kernels::launch::recurrent;
use layerstream_kernels::params::{ConvolveParams, DeltaRuleParams, Stretch};

use super::{Queue, Steps};
use crate::backend::cuda::notes::Batch;
use crate::error::Result;
use crate::program::{Convolution, DeltaRule, Program, StateId, VectorId};

/// What has no kernel of a layer with the delta rule.
pub fn unsupported(rule: &DeltaRule) -> Option<String> {
    let most = recurrent::MAX_KEY_DIM;
    (rule.key_dim > most)
        .then(|| format!("a gated delta rule with keys of {} dimensions (at most {most})", rule.key_dim))
}

impl Steps {
    fn states(&self, state: StateId) -> *mut f32 {
        self.at(self.layout.states[state.0]) as *mut f32
    }

    fn stretches(&self) -> *const Stretch {
        self.note(self.layout.notes.stretches.expect("there are states")) as *const Stretch
    }

    fn numbers(&self, vector: VectorId) -> *const f32 {
        self.vector(Some(vector)).data as *const f32
    }

    pub(super) fn convolve(
        &mut self,
        queue: &Queue,
        program: &Program,
        batch: &Batch,
        convolution: &Convolution,
    ) -> Result<()> {
        let Convolution { state, buffer, weight, taps } = *convolution;
        let params = ConvolveParams {
            x: self.changed(buffer) as *mut f32,
            weight: self.numbers(weight),
            states: self.states(state),
            stretches: self.stretches(),
            stride: self.stride(buffer),
            stretch_count: batch.sequences.len() as i32,
            channels: program.buffers[buffer.0] as i32,
            taps: taps as i32,
        };
        queue.launch(&recurrent::convolve(&params), &params)
    }

    pub(super) fn delta_rule(&mut self, queue: &Queue, batch: &Batch, rule: &DeltaRule) -> Result<()> {
        let DeltaRule { state, key_heads, value_heads, key_dim, value_dim, mixed, decay, write, .. } = *rule;
        let params = DeltaRuleParams {
            mixed: self.wide(mixed) as *const f32,
            decay: self.wide(decay) as *const f32,
            write: self.wide(write) as *const f32,
            log_decay: self.numbers(rule.log_decay),
            decay_bias: self.numbers(rule.decay_bias),
            states: self.states(state),
            out: self.changed(rule.output) as *mut f32,
            stretches: self.stretches(),
            mixed_stride: self.stride(mixed),
            decay_stride: self.stride(decay),
            write_stride: self.stride(write),
            out_stride: self.stride(rule.output),
            stretch_count: batch.sequences.len() as i32,
            key_heads: key_heads as i32,
            value_heads: value_heads as i32,
            key_dim: key_dim as i32,
            value_dim: value_dim as i32,
        };
        queue.launch(&recurrent::delta_rule(&params), &params)
    }
}
