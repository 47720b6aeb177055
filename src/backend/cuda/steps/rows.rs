//! Steps that lay rows side by side, add them, and multiply them by a gate.

use layerstream_kernels::launch::gated_add::gated_add;
use layerstream_kernels::params::{ConvertParams, Dtype, GatedAddParams};

use super::{Queue, Steps};
use crate::error::Result;
use crate::program::{Buffer, Program};

impl Steps {
    pub(super) fn join(
        &mut self,
        queue: &Queue,
        program: &Program,
        parts: &[Buffer],
        output: Buffer,
        rows: usize,
    ) -> Result<()> {
        let mut to = self.changed(output);
        parts.iter().try_for_each(|part| {
            let cols = program.buffers[part.0];
            let params = ConvertParams {
                in_: self.wide(*part) as *const _,
                ids: std::ptr::null(),
                out: to as *mut _,
                in_stride: self.stride(*part),
                out_stride: self.stride(output),
                rows: rows as i32,
                cols: cols as i32,
                in_dtype: Dtype::DTYPE_F32,
                out_dtype: Dtype::DTYPE_F32,
                scale: 1.0,
            };
            to += 4 * cols as u64;
            queue.convert(&params)
        })
    }

    pub(super) fn add(
        &mut self,
        queue: &Queue,
        program: &Program,
        input: Buffer,
        output: Buffer,
        rows: usize,
    ) -> Result<()> {
        let out = self.changed(output);
        let params = GatedAddParams {
            x: self.wide(input) as *const f32,
            gate: std::ptr::null(),
            add: out as *const f32,
            out: out as *mut f32,
            stride: self.stride(input),
            gate_stride: 0,
            out_stride: self.stride(output),
            rows: rows as i32,
            n: program.buffers[output.0] as i32,
        };
        queue.launch(&gated_add(&params), &params)
    }

    pub(super) fn gate_rows(
        &mut self,
        queue: &Queue,
        program: &Program,
        gate: Buffer,
        buffer: Buffer,
        rows: usize,
    ) -> Result<()> {
        let x = self.changed(buffer);
        let params = GatedAddParams {
            x: x as *const f32,
            gate: self.wide(gate) as *const f32,
            add: std::ptr::null(),
            out: x as *mut f32,
            stride: self.stride(buffer),
            gate_stride: self.stride(gate),
            out_stride: self.stride(buffer),
            rows: rows as i32,
            n: program.buffers[buffer.0] as i32,
        };
        queue.launch(&gated_add(&params), &params)
    }
}
