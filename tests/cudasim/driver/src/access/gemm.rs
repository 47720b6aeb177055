//! What matrix products touch: the tile's weights and their scales, activations, and columns of the result.

use layerstream_kernels::params::{GemmParams, PrefillParams, RowLengthsParams, TransposedParams, Weights};

use super::{Rows, Tile, Touch, size};

/// The encoding in a kernel's name: `gemm_bf16_m8`, `gemm_prefill_nf4_simt`, `row_lengths_f32`.
fn encoding(kernel: &str) -> &str {
    let name = kernel.trim_start_matches("gemm_").trim_start_matches("prefill_").trim_start_matches("row_lengths_");
    match name.strip_prefix('q') {
        // `q4_k`: with one underscore.
        Some(_) => &name[..4],
        None => name.split('_').next().unwrap_or(name),
    }
}

/// Numbers and bytes of one of GGUF's blocks.
pub fn blocks(encoding: &str) -> Option<(i64, i64)> {
    Some(match encoding {
        "q8_0" => (32, 34),
        "q4_0" => (32, 18),
        "q4_k" => (256, 144),
        "q5_k" => (256, 176),
        "q6_k" => (256, 210),
        _ => return None,
    })
}

/// Bytes of a row of so many numbers.
pub fn row_bytes(blocks: Option<(i64, i64)>, k: i64) -> i64 {
    blocks.map_or(0, |(numbers, bytes)| k / numbers * bytes)
}

fn weights(encoding: &str, w: &Weights, n: i32, k: i32, t: &mut Touch) {
    let (n, k, first) = (i64::from(n), i64::from(k), i64::from(w.first_row));
    if n <= 0 || k <= 0 {
        return;
    }
    // In elements of the whole matrix.
    let (begin, end) = (first * k, (first + n) * k);
    let bytes = match encoding {
        "f32" => n * k * 4,
        "f16" | "bf16" => n * k * 2,
        "nf4" => (end + 1) / 2 - begin / 2,
        "mxfp4" => n * k / 2,
        _ if blocks(encoding).is_some() => row_bytes(blocks(encoding), k) * n,
        _ => n * k,
    };
    t.read("w.data", w.data, Rows::one(bytes));
    let (first_row, rows) = (w.first_row, n as i32);
    t.tile = Some(Tile { start: w.data as u64, bytes: bytes as u64, first_row, rows, k: k as i32 });
    let mut scales = |from: i64, to: i64, bytes: i64| {
        t.touch("w.scale", (w.scale as u64).wrapping_add_signed(from * bytes), Rows::one((to - from) * bytes), false);
    };
    match encoding {
        "int8" if w.block_shift < 0 => scales(first, first + n, 4),
        "mxfp4" => scales(begin / 32, end / 32, 1),
        "int8" => scales(begin >> w.block_shift, ((end - 1) >> w.block_shift) + 1, 4),
        "fp8" => {
            let columns = ((k - 1) >> w.column_shift) + 1;
            scales((first >> w.row_shift) * columns, (((first + n - 1) >> w.row_shift) + 1) * columns, 4);
        }
        "nf4" => {
            let (from, to) = (begin >> w.block_shift, ((end - 1) >> w.block_shift) + 1);
            scales(from, to, if w.nested_map.is_null() { 4 } else { 1 });
            if !w.nested_map.is_null() {
                let (from, to) = (from / 256, (to - 1) / 256 + 1);
                let nested = (w.nested_scale as u64).wrapping_add_signed(from * 4);
                t.touch("w.nested_scale", nested, Rows::one((to - from) * 4), false);
                t.read("w.nested_map", w.nested_map, Rows::one(256 * 4));
            }
        }
        _ => {}
    }
}

/// All but activations and result.
fn product(encoding: &str, p: &GemmParams, t: &mut Touch) {
    weights(encoding, &p.w, p.n, p.k, t);
    t.vector("bias", &p.bias, p.w.first_row.into(), p.n.into());
    if !p.lengths.is_null() {
        let first = (p.lengths as u64).wrapping_add_signed(i64::from(p.w.first_row) * 4);
        t.touch("lengths", first, Rows::packed(p.n, 1, 4), false);
    }
    if !p.residual.is_null() {
        columns("residual", p.residual as u64, 4, false, p, t);
    }
}

fn columns(what: &str, address: u64, bytes: i64, write: bool, p: &GemmParams, t: &mut Touch) {
    let first = if address == 0 { 0 } else { address.wrapping_add_signed(i64::from(p.w.first_row) * bytes) };
    t.touch(what, first, Rows::of(p.m, p.out_stride, p.n.into(), bytes), write);
}

fn activation_bytes(encoding: &str) -> i64 {
    if encoding == "f32" { 4 } else { 2 }
}

pub fn decode(kernel: &str, p: &GemmParams, t: &mut Touch) {
    let encoding = encoding(kernel);
    product(encoding, p, t);
    t.read("x", p.x, Rows::of(p.m, p.x_stride, p.k.into(), activation_bytes(encoding)));
    columns("out", p.out as u64, 4, true, p, t);
}

pub fn prefill(kernel: &str, params: &PrefillParams, t: &mut Touch) {
    let (encoding, p) = (encoding(kernel), &params.product);
    product(encoding, p, t);
    let bytes = activation_bytes(encoding);
    if params.gather.is_null() {
        t.read("x", p.x, Rows::of(p.m, p.x_stride, p.k.into(), bytes));
    } else {
        for id in t.fetch("gather", params.gather, p.m.into()) {
            let row = (p.x as u64).wrapping_add_signed(i64::from(id) * p.x_stride * bytes);
            t.touch("x", row, Rows::one(i64::from(p.k) * bytes), false);
        }
    }
    if params.out16.is_null() {
        columns("out", p.out as u64, 4, true, p, t);
    } else {
        columns("out16", params.out16 as u64, size(params.out16_dtype), true, p, t);
    }
}

pub fn lengths(kernel: &str, p: &RowLengthsParams, t: &mut Touch) {
    weights(encoding(kernel), &p.w, p.n, p.k, t);
    // No product: what it reads is read again by one.
    t.tile = None;
    let first = (p.lengths as u64).wrapping_add_signed(i64::from(p.w.first_row) * 4);
    t.touch("lengths", first, Rows::packed(p.n, 1, 4), true);
}

pub fn transposed(p: &TransposedParams, t: &mut Touch) {
    t.read("w", p.w, Rows::packed(p.k, p.n.into(), size(p.dtype)));
    t.read("x", p.x, Rows::of(p.m, p.x_stride, p.k.into(), 4));
    t.vector("bias", &p.bias, 0, p.n.into());
    t.write("out", p.out, Rows::of(p.m, p.out_stride, p.n.into(), 4));
}
