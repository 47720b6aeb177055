//! What matrix products touch: the tile's weights and their scales, activations, and columns of the result.

use layerstream_kernels::params::{
    FactorParams, FactorRole, GemmParams, PrefillParams, RowLengthsParams, TransposedParams, Weights,
};

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
        "q4_1" => (32, 20),
        "q5_0" => (32, 22),
        "q5_1" => (32, 24),
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
    let scaled = !matches!(encoding, "f32" | "f16" | "bf16") && blocks(encoding).is_none();
    let bytes = match encoding {
        "f32" => n * k * 4,
        "f16" | "bf16" => n * k * 2,
        // Rows with all that lies in them: their scales may be there.
        _ if scaled => n * i64::from(w.row_bytes),
        _ => row_bytes(blocks(encoding), k) * n,
    };
    t.read("w.data", w.data, Rows::one(bytes));
    let (first_row, rows) = (w.first_row, n as i32);
    t.tile = Some(Tile { start: w.data as u64, bytes: bytes as u64, first_row, rows, k: k as i32 });
    // Lossless rows are all there is.
    if !scaled || encoding == "lossless" {
        return;
    }
    let (from, to) = (first >> w.row_shift, ((first + n - 1) >> w.row_shift) + 1);
    let (stride, across) = (i64::from(w.scale_stride), ((k - 1) >> w.column_shift) + 1);
    let mut factors = |what: &str, address: u64, bytes: i64, width: i64| {
        let rows = Rows { count: to - from, stride: stride * bytes, width };
        t.touch(what, address.wrapping_add_signed(from * stride * bytes), rows, false);
    };
    match encoding {
        // Codes, factors of 256 of them, and an offset.
        "nf4d" => factors("w.scale", w.scale as u64, 1, (across + 3) / 4 * 4 + ((across + 255) / 256 + 1) * 4),
        "mxfp4" => factors("w.scale", w.scale as u64, 1, across),
        _ => factors("w.scale", w.scale as u64, 4, across * 4),
    }
    if !w.zero.is_null() {
        factors("w.zero", w.zero as u64, 4, across * 4);
    }
    if !w.index.is_null() {
        t.read("w.index", w.index, Rows::one(k * 4));
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

pub fn transposed(kernel: &str, p: &TransposedParams, t: &mut Touch) {
    let (k, n, groups) = (i64::from(p.k), i64::from(p.n), Rows::packed(p.groups, p.n.into(), 4));
    let words = match kernel.trim_start_matches("gemm_transposed").trim_end_matches("_m8").trim_end_matches("_m32") {
        "_gptq4" | "_awq4" => Some(k * n / 8),
        "_gptq8" => Some(k * n / 4),
        _ => None,
    };
    match words {
        None => t.read("w", p.w, Rows::packed(p.k, n, size(p.dtype))),
        Some(words) => {
            t.read("w", p.w, Rows::one(words * 4));
            t.read("scale", p.scale, groups);
            t.read("zero", p.zero, groups);
            t.read_any("index", p.index, Rows::one(k * 4));
        }
    }
    t.read("x", p.x, Rows::of(p.m, p.x_stride, k, 4));
    t.vector("bias", &p.bias, 0, n);
    t.write("out", p.out, Rows::of(p.m, p.out_stride, n, 4));
}

/// All outputs, of which it writes some.
pub fn factors(p: &FactorParams, t: &mut Touch) {
    let bytes = match p.role {
        FactorRole::FACTOR_SCALES => size(p.dtype),
        FactorRole::FACTOR_CODED_SCALES | FactorRole::FACTOR_BYTE_ZEROS => 1,
        _ => 4,
    };
    t.read("in", p.in_, Rows::one(i64::from(p.count) * bytes));
    if p.role == FactorRole::FACTOR_CODED_SCALES && p.count > 0 {
        t.read("codebook", p.codebook, Rows::one(256 * 4));
        let (first, count, block) = (i64::from(p.first), i64::from(p.count), i64::from(p.block));
        let (from, to) = (first / block, (first + count - 1) / block + 1);
        let at = (p.block_scales as u64).wrapping_add_signed(from * 4);
        t.touch("block_scales", at, Rows::one((to - from) * 4), false);
    }
    t.write("out", p.out, Rows::packed(1, p.outputs.into(), 4));
}
