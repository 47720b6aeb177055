// What prefill and decode share: which queries a block has, what they see, and how a product becomes a score.
//
// The queries of a sequence that share a key head are numbered row by row, and within a row by head: with `group` heads to
// a key head, number v is row v / group and head v % group of the group. A tile is a run of such numbers, so that K and V
// are loaded once for all heads of the group.
//
// Keys are taken in tiles that begin at multiples of a constant, whatever a query's window, chunk or neighbours. A tile
// that a query sees nothing of leaves its numbers as they are, bit for bit (weights of 0, a rescaling by 1). So the bits of
// a row depend on what it sees alone.
#pragma once
#include "cache.cuh"

constexpr float LOG2_E = 1.4426950408889634f;

// The first position that a row at `position` sees.
__device__ __forceinline__ int first_visible(const AttentionParams& p, int position) {
    return p.window ? max(0, position - p.window + 1) : 0;
}

struct Queries {
    Sequence sequence;
    int index;   // of the sequence
    int kv_head;
    int group;   // query heads to a key head
    int count;

    __device__ Queries(const AttentionParams& p, int index, int kv_head)
        : sequence(p.sequences[index]), index(index), kv_head(kv_head), group(p.heads / p.kv_heads) {
        count = sequence.rows * group;
    }
    __device__ int row(int v) const { return v / group; }                      // of the sequence
    __device__ int head(int v) const { return kv_head * group + v % group; }
    __device__ int position(int v) const { return sequence.start + v / group; }
    __device__ const float* vector(const AttentionParams& p, int v) const {
        return p.q + (sequence.first_row + row(v)) * p.q_stride + (long long)head(v) * p.dim;
    }
    // The positions that any of the queries [first, first + n) sees: [begin, end).
    __device__ int begin(const AttentionParams& p, int first) const { return first_visible(p, position(first)); }
    __device__ int end(int first, int n) const { return position(min(first + n, count) - 1) + 1; }
};

__device__ __forceinline__ float bf16_rounded(float v) {
    return __bfloat162float(__float2bfloat16(v));
}

// What ALiBi gives to a key, rounded as Falcon's code does.
__device__ __forceinline__ float rounded_bias(float slope, int position) {
    return bf16_rounded(slope * bf16_rounded(float(position)));
}

// The score, in natural units, of a query at `position` for a key (at the same one at most).
__device__ __forceinline__ float score(const AttentionParams& p, float product, float slope, int key, int position) {
    float s = product * p.scale;
    if (p.soft_cap) s = p.soft_cap * tanhf(s / p.soft_cap);
    if (p.bias_factor) return fmaf(p.bias_factor, rounded_bias(slope, key) - rounded_bias(slope, position), s);
    return fmaf(slope, key - position, s);
}

// --- results ---------------------------------------------------------------------------------------------------------

// The sum of the weights e^(score - top), `top` being the largest score, and of what a sink weighs.
__device__ __forceinline__ float with_sink(const AttentionParams& p, int head, float top, float sum) {
    return p.sinks.data ? sum + expf(vector_at(p.sinks, head, 0) - top) : sum;
}

__device__ __forceinline__ void store_out(const AttentionParams& p, int row, int head, int column, float v) {
    store_element(p.out, row * p.out_stride + (long long)head * p.v_dim + column, p.out_dtype, v);
}

// Decode computes a row in splits of this many positions. A constant: the order of additions hangs on it.
constexpr int SPLIT_KEYS = 256;

// Where the splits of a row and head lie in the workspace: v_dim unnormalised values for each split of each row and head of
// each sequence, and after all of them (top, sum) for each.
struct Partials {
    float *values, *stats; // of split 0
    __device__ Partials(const AttentionParams& p, int sequence, int row, int head) {
        long long splits = ceil_div(p.most_keys, SPLIT_KEYS), rows = (long long)p.most_rows * p.heads;
        long long first = (sequence * rows + (long long)row * p.heads + head) * splits;
        values = p.workspace + first * p.v_dim;
        stats = p.workspace + p.sequence_count * rows * splits * p.v_dim + 2 * first;
    }
};
