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

/* Some consecutive rows of a pass that are new tokens of one sequence, and where its keys and values lie. The cache of a
 * layer is two arrays (keys: rows of dim; values: rows of v_dim) that all sequences share; a sequence has the rows
 * [cache_row, cache_row + kv_heads * capacity) of both: [kv_heads, capacity]. */
struct Sequence {
    long long cache_row;
    int capacity;
    int first_row; /* of the pass */
    int rows;      /* of the pass; not 0 */
    int start;     /* position of the first of them; all positions before it are in the cache */
};

/* rope (rope.cu): turns q in place, and appends turned keys and plain values to the cache.
 *
 * Of each head, the elements [rotary_start, rotary_start + rotary_dim) turn in pairs: i and i + rotary_dim / 2, or with
 * `interleaved` 2i and 2i + 1. Whatever makes the angles (scaling, positions, an attention factor) is in the tables. */
struct RopeParams {
    float *q;                         /* [rows, q_heads, dim] */
    const float *k;                   /* [rows, kv_heads, dim] */
    const float *v;                   /* [rows, kv_heads, v_dim] */
    const float *k_shared;            /* [rows, rotary_dim]; optional: the elements that turn, for all key heads (MLA) */
    const float *cos;                 /* [rows, rotary_dim / 2]; null, as sin then is: the elements have turned already */
    const float *sin;                 /* [rows, rotary_dim / 2] */
    void *keys;                       /* cache, rows of dim */
    void *values;                     /* cache, rows of v_dim */
    const struct Sequence *sequences;
    const int *row_sequence;          /* [rows]: which of `sequences` a row belongs to */
    long long q_stride, k_stride, v_stride, k_shared_stride; /* from row to row */
    int k_head_stride, v_head_stride; /* from head to head: dim and v_dim where nothing lies between */
    int rows;
    int q_heads;                      /* 0: q stays as it is */
    int kv_heads;                     /* 0: nothing is appended */
    int dim, v_dim;
    int rotary_start, rotary_dim;     /* rotary_dim is even; 0: nothing turns */
    int interleaved;
    enum Dtype cache_dtype;
};

/* convert (convert.cu): out[r] = scale * in[rows of in picked by ids]. Embedding lookup, a choice of rows, a change of
 * dtype. `in` and `out` are different memory. convert_q8_0 and so on: the same of rows of GGUF's blocks, 16-byte aligned,
 * without in_stride and in_dtype; convert_lossless: of packed rows, in_stride bytes from one to the next. */
struct ConvertParams {
    const void *in;            /* [any, cols] */
    const int *ids;            /* [rows]: row of `in`; optional: r itself */
    void *out;                 /* [rows, cols] */
    long long in_stride, out_stride;
    int rows, cols;
    enum Dtype in_dtype, out_dtype;
    float scale;
};

/* attention_prefill_*, attention_decode_*, attention_combine (attention_prefill.cu, attention_decode.cu).
 *
 *   out[row, head] = softmax(scores) . values,   score[j] = cap(q[row, head] . keys[j] * scale) + slope * (j - i)
 *
 * or, with a bias_factor, + bias_factor * (bias[j] - bias[i]), bias[j] = bf16(slope * bf16(j)),
 *
 * over the positions i - window < j <= i that a row at position i sees. heads / kv_heads consecutive query heads share a
 * key head. The keys and values of the rows themselves are in the cache already. */
struct AttentionParams {
    const float *q;                   /* [rows of the pass, heads, dim] */
    const void *keys;                 /* cache, rows of dim */
    const void *values;               /* cache, rows of v_dim */
    void *out;                        /* [rows of the pass, heads, v_dim] */
    const struct Sequence *sequences; /* [sequence_count]: only their rows are computed */
    struct Vector sinks;              /* [heads]; optional: a score that takes its share of the softmax and has no value */
    const float *slopes;              /* [heads]; optional: ALiBi */
    float *workspace;                 /* decode and the naive twin; launch::attention says how large */
    long long q_stride, out_stride;   /* from row to row */
    int sequence_count;
    int heads, kv_heads, dim, v_dim;  /* dims at most 256 */
    int window;                       /* positions that a row sees, its own included; 0: all */
    int most_rows, most_keys;         /* largest `rows` and largest `start + rows` of the sequences */
    enum Dtype cache_dtype, out_dtype;
    float scale;                      /* above 0 */
    float soft_cap;                   /* cap(x) = soft_cap * tanh(x / soft_cap); 0: cap(x) = x */
    float bias_factor;                /* of slopes that are bfloat16; 0: biases are not rounded */
};

/* A run of rows (a tile) of a weight matrix [all rows, k], in the checkpoint's own bytes, row-major. Which encoding it is
 * goes with the name of the kernel (dequant.cuh):
 *
 *   f32 f16 bf16  the numbers
 *   q8_0 … q6_k   GGUF's blocks of 32 or 256 numbers, of which rows are made (gguf.cuh)
 *   fp8           e4m3, w = q * scale (0x7f reads as 480, not as NaN)
 *   int8          w = q * scale, q signed
 *   int8z         w = (q - zero) * scale
 *   offset8       the same, q a byte less 128
 *   offset4       the same, q four bits less 8, two in a byte, the first in the low half
 *   nf4 fp4       w = table[q] * scale, two in a byte, the first in the high half
 *   nf4d          as nf4, scale = map[u8] * factor + offset (struct Nf4d); column_shift is 6
 *   lossless      bfloat16 with exponents in three bits (lossless.cuh); of what follows it has row_bytes
 *   mxfp4         w = E2M1[q] * 2^(scale - 127), scale a u8; two in a byte, the first in the low half; k is a multiple of 32
 *
 * The scale and the zero of the number in row r of the whole matrix and column i have the index
 * (r >> row_shift) * scale_stride + (i >> column_shift), whichever rows the tile has; with an index (int8z, offset8, offset4),
 * + index[i] instead, and rows go element by element. Whoever holds only a part of them passes
 * the address where the first one would be: so scales may lie in the rows themselves, behind the codes. */
struct Weights {
    const void *data;   /* of the tile's first row; 16-byte aligned */
    const void *scale;  /* f32; nf4d and mxfp4: u8 */
    const float *zero;  /* optional: 0 */
    const int *index;   /* [k]; optional: blocks are runs of columns */
    int first_row;      /* of the tile in the whole matrix */
    int row_bytes;      /* from one row to the next, for encodings with scales; a multiple of 16 where k is one of 64, and of lossless always */
    int scale_stride;   /* from the scales of one row of blocks to those of the next, in elements */
    int row_shift, column_shift; /* log2 of a block's sides; 7, 7 for DeepSeek; 0, 31 a row; 31, 31 for all */
};

/* gemm_* (gemm.cu): rows first_row .. first_row + n of a product, for m rows of activations; c = first_row + j:
 *
 *   out[r][c] = scale * ((sum over i of x[r][i] * w[j][i]) / lengths[c] + bias[c]) + residual[r][c]
 *
 * `out` and `residual` point to column 0 of the whole product. `residual` may be `out`. */
struct GemmParams {
    struct Weights w;
    const void *x; /* [m, k]: f32 for f32 weights, f16 for f16, else bf16; 16-byte aligned */
    float *out;
    const float *residual;  /* optional; laid out as out */
    struct Vector bias;     /* optional; [all rows] */
    const float *lengths;   /* optional; [all rows]: what row_lengths made */
    long long x_stride;     /* a multiple of 8 */
    long long out_stride;
    int m, n, k;
    float scale;            /* 0: 1 */
};

/* row_lengths_* (lengths.cu): the Euclidean length of each row of a tile, or 1e-12 if that is more. */
struct RowLengthsParams {
    struct Weights w;
    float *lengths; /* [all rows]; those of the tile are written */
    int n, k;
};

/* gemm_transposed_* (transposed.cu): what some stored rows of a matrix that is stored as its transpose add to a product. They
 * have the weights of k inputs for all n outputs: row i those of input i, or words of 32 bits (gptq4, gptq8, awq4).
 *
 *   out[r][j] = before + y[r][0] * w[0][j] + y[r][1] * w[1][j] + ...,   y = factor * x
 *   before = factor * bias[j], with `add` plus out[r][j]
 *
 * from left to right, one fused multiply-add after another: the bits of a product do not depend on where it is cut.
 *
 *   gptq4 gptq8   word [i / 8][j], or [i / 4][j]: the codes of 8, or 4, inputs, lowest bits first
 *   awq4          word [i][j / 8]: the codes of outputs 0, 2, 4, 6, 1, 3, 5, 7, lowest bits first
 *
 * w[i][j] = (code - zero[g][j]) * scale[g][j], g the group of input i. */
struct TransposedParams {
    const void *w;      /* of `dtype`, or words */
    const float *x;     /* [m, k]: the activations that belong to these stored rows */
    float *out;         /* [m, n] */
    struct Vector bias; /* optional; [n] */
    const float *scale; /* words: [groups, n] */
    const float *zero;  /* words: [groups, n] */
    const int *index;   /* words; optional; [k]: the groups of these inputs, below `groups` */
    long long x_stride, out_stride;
    int m, n, k;        /* words of inputs, or of outputs, are whole */
    int first_input;    /* of these rows in the whole matrix; for groups without an index: */
    int group_size;     /* input i of the matrix is in group i / group_size */
    int groups;
    int add;
    float factor;       /* 0: 1 */
    enum Dtype dtype;
};

/* What factors are stored as (factors.cu). */
enum FactorRole {
    FACTOR_WORDS,        /* 32 bits, as they are */
    FACTOR_SCALES,       /* numbers of `dtype`, to be divided by `divisor` */
    FACTOR_CODED_SCALES, /* bytes: codebook[byte] * block_scales[element / block] + offset */
    FACTOR_BYTE_ZEROS,   /* signed bytes */
    FACTOR_ROW_ZEROS,    /* words with codes of `bits` bits, less half of what they can be, of consecutive ones of `rows` rows, lowest
                          * bits first: for all groups of the first rows, then of the next */
    FACTOR_GPTQ_ZEROS,   /* words with codes of `bits` bits, one output after the other, lowest bits first; plus `more`, of that width */
    FACTOR_AWQ_ZEROS     /* words with codes of four bits, of outputs 0, 2, 4, 6, 1, 3, 5, 7, lowest bits first */
};

/* factors (factors.cu): some elements of a tensor of factors become the numbers that products take. */
struct FactorParams {
    const void *in;            /* [count] */
    void *out;                 /* [outputs], float32 (words: as they are); what other elements are for stays as it is */
    const float *codebook;     /* coded scales: [256] */
    const float *block_scales; /* coded scales */
    int first, count;          /* of the elements, in the tensor */
    int outputs;
    int repeat;                /* scales, coded scales, zeros of bytes and of rows: outputs that an element is for */
    int block;
    int rows, bits, more;
    float divisor, offset;
    enum FactorRole role;
    enum Dtype dtype;
};

/* gemm_prefill_* (gemm_prefill.cu): the same product for any number of rows, which may be gathered and may be rounded. */
struct PrefillParams {
    struct GemmParams product;
    const int *gather; /* optional; [m]: row r of the product takes row gather[r] of x, as an expert's rows lie */
    void *out16;       /* optional; laid out as product.out: takes the result instead of it, rounded to out16_dtype */
    enum Dtype out16_dtype;
};

/* What a gated MLP does between its two products. */
enum Gate {
    GATE_SILU,      /* SwiGLU: silu(gate) * up */
    GATE_GELU_TANH, /* GeGLU with the tanh approximation */
    GATE_GELU_ERF,  /* GeGLU */
    GATE_RELU,      /* max(gate, 0) * up */
    GATE_SIGMOID,   /* sigmoid(gate) * up */
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

/* activate (mlp.cu): out[r][i] = activation(x[r][i]), that of a gate without what it is multiplied by. `out` may be `x` where
 * dtypes and strides agree. */
struct ActivateParams {
    const float *x; /* [rows, dim] */
    void *out;      /* [rows, dim] */
    long long stride, out_stride;
    int rows, dim;
    enum Dtype out_dtype;
    enum Gate kind; /* not GATE_CLAMPED */
};

/* scale_rows (rows.cu): x[r] *= factors[r], in place. */
struct ScaleRowsParams {
    float *x;             /* [rows, n] */
    const float *factors; /* [rows] */
    long long stride;
    int rows, n;
};

/* gated_add (gated_add.cu): out[r][i] = x[r][i] * sigmoid(gate[r]) + add[r][i]
 *
 * A sum of two rows, a row times the gate of a token, or both. `out` may be `x` or `add`. */
struct GatedAddParams {
    const float *x;    /* [rows, n] */
    const float *gate; /* [rows], gate_stride apart; optional: x as it is */
    const float *add;  /* optional; laid out as out */
    float *out;        /* [rows, n] */
    long long stride, gate_stride, out_stride;
    int rows, n;
};

/* Some consecutive rows of a pass that are tokens of one sequence, for layers that keep a state of it. */
struct Stretch {
    int first_row; /* of the pass */
    int rows;      /* of the pass; not 0 */
    int from;      /* number of the state that the tokens before have left; negative: a state of zeroes */
    int to;        /* number of the state that these leave; not `from` */
};

/* convolve (recurrent.cu): a causal convolution of each channel over the tokens of each stretch, in place,
 *
 *   x[t][c] = sum over j of weight[c][j] * x[t - taps + 1 + j][c]
 *
 * The state is the taps - 1 rows before the first. */
struct ConvolveParams {
    float *x;                         /* [rows of the pass, channels] */
    const float *weight;              /* [channels, taps] */
    float *states;                    /* [any, taps - 1, channels] */
    const struct Stretch *stretches;  /* [stretch_count]: only their rows are computed */
    long long stride;
    int stretch_count;
    int channels, taps;
};

/* delta_rule_* (recurrent.cu): the gated delta rule (Yang et al. 2024, arXiv:2412.06464), token by token for each head,
 *
 *   S = g * S;   S += k (x) (b * (v - S k));   out = S q
 *   g = exp(-exp(log_decay) * softplus(decay + decay_bias)),   b = sigmoid(write)
 *
 * where q and k have been divided by their lengths, and q also by sqrt(key_dim). A row of `mixed` is the queries of
 * key_heads heads, their keys, and the values of value_heads heads; value_heads / key_heads consecutive ones share a key
 * head. */
struct DeltaRuleParams {
    const float *mixed;               /* [rows of the pass, 2 * key_heads * key_dim + value_heads * value_dim] */
    const float *decay;               /* [rows of the pass, value_heads] */
    const float *write;               /* [rows of the pass, value_heads] */
    const float *log_decay;           /* [value_heads] */
    const float *decay_bias;          /* [value_heads] */
    float *states;                    /* [any, value_heads, value_dim, key_dim] */
    float *out;                       /* [rows of the pass, value_heads, value_dim] */
    const struct Stretch *stretches;  /* [stretch_count]: only their rows are computed */
    long long mixed_stride, decay_stride, write_stride, out_stride;
    int stretch_count;
    int key_heads, value_heads;
    int key_dim;                      /* at most 256 */
    int value_dim;
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
    const int *ids;       /* [rows, top_k], each below experts */
    const float *weights; /* [rows, top_k] */
    int *row_ids;         /* [rows * top_k], by place: the row; what `convert` takes as ids to gather rows of activations */
    float *row_weights;   /* [rows * top_k], by place: the weight; what `scale_rows` takes as factors */
    int *places;          /* [rows, top_k] */
    int *bounds;          /* [experts + 1] */
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
    const float *weights; /* [rows, top_k]; optional: 1 */
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

/* peak_copy, peak_read, peak_mma (peak.cu): what a card can do at best, which other kernels are measured against. */
struct PeakParams {
    const void *in;  /* peak_copy, peak_read: `bytes` bytes; 16-byte aligned */
    void *out;       /* peak_copy: `bytes` bytes, 16-byte aligned; else: a float32 a thread of the grid */
    long long bytes; /* a multiple of 16 */
    int rounds;      /* peak_mma: how often each warp does PEAK_CHAINS multiplies */
};

/* Multiplies that a warp of peak_mma has in flight. */
#define PEAK_CHAINS 8
