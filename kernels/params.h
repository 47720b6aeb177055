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

/* What a gated MLP does between its two products. */
enum Gate {
    GATE_SILU,      /* SwiGLU: silu(gate) * up */
    GATE_GELU_TANH, /* GeGLU with the tanh approximation */
    GATE_GELU_ERF,  /* GeGLU */
    GATE_CLAMPED    /* gpt-oss: g * sigmoid(alpha * g) * (u + 1), g = min(gate, limit), u = clamp(up, -limit, limit) */
};

/* glu (mlp.cu): out[r][i] = activation(gate[r][i]) * up[r][i]
 *
 * In a packed [gate | up], up = gate + dim. Without `up`, `gate` has rows of pairs: 2i is the gate, 2i + 1 the other.
 * `out` may be `gate` where dtypes and layouts agree and nothing is interleaved. */
struct GluParams {
    const float *gate;
    const float *up;     /* optional; laid out as gate */
    void *out;           /* [rows, dim] */
    long long stride;    /* of gate and up */
    long long out_stride;
    int rows, dim;
    enum Dtype out_dtype;
    enum Gate kind;
    float alpha, limit;  /* GATE_CLAMPED; limit above 0 */
};

/* How router logits become the scores of experts. */
enum Scores { SCORES_SOFTMAX, SCORES_SIGMOID };

/* route (moe.cu): the top_k experts of each row and what each of them counts.
 *
 *   score = softmax or sigmoid of logits;   choice = score + correction
 *
 * Experts stand in `groups` groups of consecutive ones. Only those in the top_groups best groups are open, and of these
 * the top_k with the largest `choice` are taken; among equals (groups, experts) the lower number goes first. A group is
 * as good as the sum of its group_best largest choices: 1 in DeepSeek V2, 2 in V3. NaN counts as -infinity.
 *
 *   weight = score * scale,   renormalised: score / (sum of the scores taken + 1e-20) * scale
 *
 * Softmax and renormalised is also what takes the softmax over the chosen logits alone (gpt-oss, Mixtral). */
struct RouteParams {
    const float *logits;      /* [rows, experts] */
    struct Vector correction; /* [experts]; optional: 0; decides who is taken, not the weight */
    int *ids;                 /* [rows, top_k], rising in each row */
    float *weights;           /* [rows, top_k], in the order of ids */
    long long logits_stride;
    int rows;
    int experts;              /* at most 1024 */
    int top_k;                /* at most the experts of top_groups groups */
    int groups;               /* divides experts, at most 32; 1: no groups */
    int top_groups;           /* 1 to groups */
    int group_best;           /* 1 or 2, at most experts / groups */
    enum Scores scores;
    int renormalise;
    float scale;
};

/* expert_lists (moe.cu): the rows that each expert gets. Sorting the (row, expert) pairs of `ids` by expert, then row,
 * gives each pair its place; expert e has the places [bounds[e], bounds[e + 1]). */
struct ExpertListsParams {
    const int *ids; /* [rows, top_k], each below experts */
    int *row_ids;   /* [rows * top_k], by place: the row; what `convert` takes as ids to gather rows of activations */
    int *places;    /* [rows, top_k] */
    int *bounds;    /* [experts + 1] */
    int rows, top_k, experts;
};

/* sum_experts (moe.cu): out[r] = add[r] + sum over the row's experts e in [first_expert, end_expert) of weight * y[place].
 *
 * Experts are added in the order of ids, one after the other, so that a few experts after a few others, in place, give
 * the same bits as all at once. */
struct SumExpertsParams {
    const float *y;       /* [places, dim]: what the experts made; address of place 0, whether that row is there or not */
    const int *ids;       /* [rows, top_k] */
    const int *places;    /* [rows, top_k] */
    const float *weights; /* [rows, top_k] */
    const float *add;     /* optional; laid out as out; may be out */
    float *out;           /* [rows, dim] */
    long long y_stride, out_stride;
    int rows, top_k, dim;
    int first_expert, end_expert;
};

/* soft_cap (sample.cu): out = cap * tanh(x / cap), which keeps logits within (-cap, cap). `out` may be `x`. */
struct SoftCapParams {
    const float *x; /* [rows, n] */
    float *out;
    long long stride, out_stride;
    int rows, n;
    float cap;      /* above 0 */
};

/* How many logits a block of top_k and argmax has: each row makes ceil(n / TOP_K_PIECE) pieces. */
#define TOP_K_PIECE 2048

/* top_k_pieces then top_k; argmax_pieces then argmax, with k = 1 (sample.cu): the k largest of each row, largest first,
 * and where they are; among equals the first. NaN counts as -infinity, -0 as 0. */
struct TopKParams {
    const float *logits;       /* [rows, n] */
    unsigned long long *parts; /* [rows, pieces, k]: from the first kernel to the second */
    float *values;             /* [rows, k]; optional */
    int *ids;                  /* [rows, k] */
    long long stride;          /* of logits */
    int rows, n;
    int k;                     /* at most n and TOP_K_PIECE / 2 */
};
