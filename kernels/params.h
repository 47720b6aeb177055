/* The arguments of every kernel: one plain struct each, passed by value as the kernel's only parameter.
 *
 * bindgen reads this file for the Rust side (layerstream_kernels::params), so there is one definition of every layout.
 * Plain C without headers: int, float, long long, pointers. Pointers are device addresses. Zero means "not there" for
 * every optional pointer, so a struct that starts as all zeroes is a kernel without extras. Strides count elements.
 * Shapes are written outermost first, row-major. */
#pragma once

/* How the numbers of a vector or of activations are stored. */
enum Dtype { DTYPE_F32, DTYPE_F16, DTYPE_BF16 };

/* A small vector of parameters (norm gains, biases) in the checkpoint's own dtype; data may be null. */
struct Vector {
    const void *data;
    enum Dtype dtype;
};

/* rms_norm, rms_norm_heads, layer_norm, layer_norm_heads (norm.cu).
 *
 *   h = x + add;  sum = h;  out = residual + gain' * normalise(h) + bias,   gain' = gain + gain_offset
 *
 * Row r lies at (r / heads) * stride + (r % heads) * dim: heads = 1 for a matrix of rows, more for the q or k heads
 * inside of a packed projection. `out` may be `x`, and `sum` may be `x` or `add`. */
struct NormParams {
    const float *x;
    const float *add;      /* optional; laid out as x */
    float *sum;            /* optional; where x + add goes; laid out as x */
    const float *residual; /* optional; laid out as x; added after the norm */
    void *out;
    struct Vector gain;    /* [dim]; optional: 1 */
    struct Vector bias;    /* [dim]; optional: 0 */
    long long stride;      /* of x, add, sum and residual, elements */
    long long out_stride;
    int rows, heads, dim;
    enum Dtype out_dtype;
    float eps;
    float gain_offset;     /* 1 for Gemma, whose checkpoints hold gain - 1; else 0 */
};

/* A run of rows (a tile) of a weight matrix [all rows, k], in the checkpoint's own bytes, row-major. Which encoding it is
 * goes with the name of the kernel (dequant.cuh):
 *
 *   f32 f16 bf16  the numbers
 *   int8          w = q * scale[block], q signed
 *   nf4           w = NF4[q] * scale[block]; two in a byte, the first in the high half; q and blocks run over the flattened
 *                 matrix. Nested: scale[block] = nested_map[u8] * nested_scale[block / 256] + nested_offset
 *   fp8           e4m3, w = q * scale[row >> row_shift][i >> column_shift] (0x7f reads as 480, not as NaN)
 *
 * Scales are indexed as for the whole matrix, whichever rows the tile has. Whoever holds only a part of them passes the
 * address where the first one would be. */
struct Weights {
    const void *data;  /* of the tile's first row (nf4: the byte that holds its first element); 16-byte aligned */
    const void *scale; /* f32; nf4 nested: u8 */
    const float *nested_scale;
    const float *nested_map; /* [256]; null: not nested */
    float nested_offset;
    int first_row;   /* of the tile in the whole matrix */
    int block_shift; /* int8, nf4: log2 of the elements in a block, at least 5; int8: -1 is one scale a row */
    int row_shift, column_shift; /* fp8: log2 of a block's sides; 7, 7 for DeepSeek; 0, 31 a row; 31, 31 for all */
};

/* gemm_* (gemm.cu): rows first_row .. first_row + n of a product, for m rows of activations,
 *
 *   out[r][first_row + j] = sum over i of x[r][i] * w[j][i] + bias[first_row + j] + residual[r][first_row + j]
 *
 * `out` and `residual` point to column 0 of the whole product. `residual` may be `out`. */
struct GemmParams {
    struct Weights w;
    const void *x; /* [m, k]: f32 for f32 weights, f16 for f16, else bf16; 16-byte aligned */
    float *out;
    const float *residual;  /* optional; laid out as out */
    struct Vector bias;     /* optional; [all rows] */
    long long x_stride;     /* a multiple of 8 */
    long long out_stride;
    int m, n, k;
};

/* gemm_prefill_* (gemm_prefill.cu): the same product for any number of rows, which may be gathered and may be rounded. */
struct PrefillParams {
    struct GemmParams product;
    const int *gather; /* optional; [m]: row r of the product takes row gather[r] of x, as an expert's rows lie */
    void *out16;       /* optional; laid out as product.out: takes the result instead of it, rounded to out16_dtype */
    enum Dtype out16_dtype;
};
