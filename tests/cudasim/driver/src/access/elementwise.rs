//! What the kernels that work row by row touch: norms, conversions, the middle of an MLP, and those that measure.

use layerstream_kernels::launch::{Launch, peak};
use layerstream_kernels::params::{
    ActivateParams, ConvertParams, GatedAddParams, GluParams, NormParams, PeakParams, ScaleRowsParams,
};

use super::gemm::{blocks, row_bytes};
use super::{Rows, Touch, size};

pub fn norm(p: &NormParams, t: &mut Touch) {
    let heads = p.heads.max(1);
    let (whole, rest) = (p.rows / heads, p.rows % heads);
    // Heads of one row lie side by side; the last row may have some of them only.
    let mut all = |address: u64, stride: i64, bytes: i64, write: bool, what: &str| {
        if address == 0 && !matches!(what, "x" | "out") {
            return;
        }
        let row = i64::from(heads) * i64::from(p.dim);
        t.touch(what, address, Rows::of(whole, stride, row, bytes), write);
        if rest > 0 {
            let last = address.wrapping_add_signed(i64::from(whole) * stride * bytes);
            t.touch(what, last, Rows::one(i64::from(rest) * i64::from(p.dim) * bytes), write);
        }
    };
    all(p.x as u64, p.stride, 4, false, "x");
    all(p.add as u64, p.stride, 4, false, "add");
    all(p.residual as u64, p.stride, 4, false, "residual");
    all(p.sum as u64, p.stride, 4, true, "sum");
    all(p.out as u64, p.out_stride, size(p.out_dtype), true, "out");
    t.vector("gain", &p.gain, 0, p.dim.into());
    t.vector("bias", &p.bias, 0, p.dim.into());
}

pub fn convert(p: &ConvertParams, t: &mut Touch) {
    let (cols, bytes) = (i64::from(p.cols), size(p.in_dtype));
    if p.ids.is_null() {
        t.read("in", p.in_, Rows::of(p.rows, p.in_stride, cols, bytes));
    } else {
        for id in t.fetch("ids", p.ids, p.rows.into()) {
            let row = (p.in_ as u64).wrapping_add_signed(i64::from(id) * p.in_stride * bytes);
            t.touch("in", row, Rows::one(cols * bytes), false);
        }
    }
    t.write("out", p.out, Rows::of(p.rows, p.out_stride, cols, size(p.out_dtype)));
}

/// Rows of GGUF's blocks, or packed ones, one after the other.
pub fn convert_blocks(kernel: &str, p: &ConvertParams, t: &mut Touch) {
    let cols = i64::from(p.cols);
    let bytes = match kernel.trim_start_matches("convert_") {
        "lossless" => p.in_stride,
        encoding => row_bytes(blocks(encoding), cols),
    };
    if p.ids.is_null() {
        t.read("in", p.in_, Rows::one(i64::from(p.rows) * bytes));
    } else {
        for id in t.fetch("ids", p.ids, p.rows.into()) {
            let row = (p.in_ as u64).wrapping_add_signed(i64::from(id) * bytes);
            t.touch("in", row, Rows::one(bytes), false);
        }
    }
    t.write("out", p.out, Rows::of(p.rows, p.out_stride, cols, size(p.out_dtype)));
}

pub fn glu(p: &GluParams, t: &mut Touch) {
    let dim = i64::from(p.dim);
    if p.up.is_null() {
        t.read("gate", p.gate, Rows::of(p.rows, p.stride, 2 * dim, 4));
    } else {
        t.read("gate", p.gate, Rows::of(p.rows, p.stride, dim, 4));
        t.read("up", p.up, Rows::of(p.rows, p.stride, dim, 4));
    }
    t.write("out", p.out, Rows::of(p.rows, p.out_stride, dim, size(p.out_dtype)));
}

pub fn activate(p: &ActivateParams, t: &mut Touch) {
    let dim = i64::from(p.dim);
    t.read("x", p.x, Rows::of(p.rows, p.stride, dim, 4));
    t.write("out", p.out, Rows::of(p.rows, p.out_stride, dim, size(p.out_dtype)));
}

pub fn scale_rows(p: &ScaleRowsParams, t: &mut Touch) {
    t.read("factors", p.factors, Rows::packed(p.rows, 1, 4));
    t.write("x", p.x, Rows::of(p.rows, p.stride, p.n.into(), 4));
}

pub fn gated_add(p: &GatedAddParams, t: &mut Touch) {
    let n = i64::from(p.n);
    t.read("x", p.x, Rows::of(p.rows, p.stride, n, 4));
    t.read_any("gate", p.gate, Rows::of(p.rows, p.gate_stride, 1, 4));
    t.read_any("add", p.add, Rows::of(p.rows, p.out_stride, n, 4));
    t.write("out", p.out, Rows::of(p.rows, p.out_stride, n, 4));
}

pub fn peak(launch: &Launch, p: &PeakParams, t: &mut Touch) {
    if launch.kernel != "peak_mma" {
        t.read("in", p.in_, Rows::one(p.bytes));
    }
    let floats = i64::from(launch.grid[0]) * peak::THREADS as i64;
    t.write("out", p.out, Rows::one(if launch.kernel == "peak_copy" { p.bytes } else { floats * 4 }));
}
