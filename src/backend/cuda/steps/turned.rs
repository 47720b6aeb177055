//! Attention over keys that the cache holds unrotated: before it looks at them, all of its sequences' are turned into a place of
//! their own, by the angles that [`turning`](crate::backend::cuda::turning) brings.

use layerstream_kernels::params::{ConvertParams, Dtype, RopeParams, Sequence};

use super::{Queue, Steps, kernel_dtype};
use crate::backend::cuda::notes::Batch;
use crate::error::Result;
use crate::plan::device::kv_dtype;
use crate::program::{KvShape, Program, RopeId, RopeStyle};

impl Steps {
    /// Turns the keys of a layer; returns the address of a cache that has them.
    pub(super) fn turn(
        &self,
        queue: &Queue,
        program: &Program,
        batch: &Batch,
        layer: usize,
        rope: RopeId,
    ) -> Result<u64> {
        let (turned, context) = (&self.layout.turned, self.context);
        let (KvShape { heads, key_dim, .. }, dtype) = (program.kv[layer], kv_dtype(program));
        let place = turned.ropes.iter().find(|(other, _)| *other == rope);
        let angles = self.at(turned.angles + place.expect("all rotations of cached keys have a place").1);
        let rope = &program.ropes[rope.0];
        let table = context * rope.rotary_dim() / 2 * size_of::<f32>();
        for &(sequence, positions) in &batch.sequences {
            let keys = (sequence * heads * context * key_dim * dtype.size()) as u64;
            let wide = self.at(turned.wide);
            queue.convert(&ConvertParams {
                in_: (self.at(self.layout.kv[layer][0]) + keys) as *const _,
                ids: std::ptr::null(),
                out: wide as *mut _,
                in_stride: (context * key_dim) as i64,
                out_stride: (positions * key_dim) as i64,
                rows: heads as i32,
                cols: (positions * key_dim) as i32,
                in_dtype: kernel_dtype(dtype),
                out_dtype: Dtype::DTYPE_F32,
                scale: 1.0,
            })?;
            let cos = angles + (2 * sequence * table) as u64;
            // An append of all positions, without values.
            queue.rope(&RopeParams {
                k: wide as *const f32,
                v: wide as *const f32,
                k_stride: key_dim as i64,
                k_head_stride: (positions * key_dim) as i32,
                cos: cos as *const f32,
                sin: (cos + table as u64) as *const f32,
                keys: (self.at(turned.keys) + keys) as *mut _,
                sequences: self.at(turned.piece) as *const Sequence,
                row_sequence: self.at(turned.owners) as *const i32,
                rows: positions as i32,
                kv_heads: heads as i32,
                dim: key_dim as i32,
                rotary_dim: rope.rotary_dim() as i32,
                interleaved: i32::from(rope.style == RopeStyle::Interleaved),
                cache_dtype: kernel_dtype(dtype),
                ..RopeParams::default()
            })?;
        }
        Ok(self.at(turned.keys))
    }
}
