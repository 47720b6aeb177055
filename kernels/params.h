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
