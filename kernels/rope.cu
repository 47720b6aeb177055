// Rotary position embedding (Su et al. 2021, arXiv:2104.09864) of queries and keys, and the append of keys and values to
// the cache, in one pass over memory: see RopeParams.
//
// The angles come as tables of cosines and sines, a row for each token: the CPU makes them in float64, once a pass for all
// layers, and every way of scaling them is its business alone.
#include "cache.cuh"

// --- naive twin: one thread a head of a row --------------------------------------------------------------------------

KERNEL(naive_rope, RopeParams, 128) {
    int heads = p.q_heads + 2 * p.kv_heads, item = blockIdx.x * blockDim.x + threadIdx.x;
    if (item >= p.rows * heads) return;
    int row = item / heads, head = item % heads, pairs = p.rotary_dim / 2;
    bool query = head < p.q_heads, key = !query && head < p.q_heads + p.kv_heads;
    if (!query) head = (head - p.q_heads) % p.kv_heads;
    Sequence s = query ? Sequence{} : p.sequences[p.row_sequence[row]];
    long long to = cache_row(s, head, s.start + row - s.first_row);
    if (!query && !key) {
        for (int i = 0; i < p.v_dim; i++)
            store_element(p.values, to * p.v_dim + i, p.cache_dtype, p.v[row * p.v_stride + head * p.v_head_stride + i]);
        return;
    }
    const float* in = query ? p.q + row * p.q_stride + head * p.dim : p.k + row * p.k_stride + head * p.k_head_stride;
    for (int i = 0; key && i < p.dim; i++)
        if (i < p.rotary_start || i >= p.rotary_start + p.rotary_dim) store_element(p.keys, to * p.dim + i, p.cache_dtype, in[i]);
    in = key && p.k_shared ? p.k_shared + row * p.k_shared_stride : in + p.rotary_start;
    void* out = query ? static_cast<void*>(p.q) : p.keys;
    long long at = (query ? row * p.q_stride + head * p.dim : to * p.dim) + p.rotary_start;
    Dtype dtype = query ? DTYPE_F32 : p.cache_dtype;
#pragma unroll 1
    for (int i = 0; i < pairs; i++) {
        int first = p.interleaved ? 2 * i : i, second = p.interleaved ? 2 * i + 1 : i + pairs;
        float c = p.cos ? p.cos[row * pairs + i] : 1, s = p.cos ? p.sin[row * pairs + i] : 0;
        float a = in[first], b = in[second];
        store_element(out, at + first, dtype, a * c - b * s);
        store_element(out, at + second, dtype, b * c + a * s);
    }
}

// --- one warp a head of a row ----------------------------------------------------------------------------------------

// Turns one head: reads the pairs from `in`, writes them at out[at]. `in` and `out` may be the same memory. What has
// turned already turns by nothing.
__device__ __forceinline__ void turn(const RopeParams& p, int row, const float* in, void* out, long long at, Dtype dtype) {
    int pairs = p.rotary_dim / 2;
    for (int i = threadIdx.x % 32; i < pairs; i += 32) {
        int first = p.interleaved ? 2 * i : i, second = p.interleaved ? 2 * i + 1 : i + pairs;
        float c = 1, s = 0;
        if (p.cos) {
            c = p.cos[(long long)row * pairs + i];
            s = p.sin[(long long)row * pairs + i];
        }
        float a = in[first], b = in[second];
        store_element(out, at + first, dtype, fmaf(a, c, -(b * s)));
        store_element(out, at + second, dtype, fmaf(b, c, a * s));
    }
}

KERNEL(rope, RopeParams, 256) {
    int heads = p.q_heads + 2 * p.kv_heads, lane = threadIdx.x % 32;
    long long item = (long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (!within(item, (long long)p.rows * heads)) return;
    int row = int(item / heads), head = int(item % heads);
    if (head < p.q_heads) {
        long long at = row * p.q_stride + (long long)head * p.dim + p.rotary_start;
        turn(p, row, p.q + at, p.q, at, DTYPE_F32);
        return;
    }
    bool key = head < p.q_heads + p.kv_heads;
    head -= key ? p.q_heads : p.q_heads + p.kv_heads;
    Sequence sequence = p.sequences[p.row_sequence[row]];
    long long to = cache_row(sequence, head, sequence.start + row - sequence.first_row);
    if (!key) {
        const float* in = p.v + row * p.v_stride + (long long)head * p.v_head_stride;
        for (int i = lane; i < p.v_dim; i += 32) store_element(p.values, to * p.v_dim + i, p.cache_dtype, in[i]);
        return;
    }
    const float* in = p.k + row * p.k_stride + (long long)head * p.k_head_stride;
    for (int i = lane; i < p.dim; i += 32) {
        bool turns = !within(i, p.rotary_start) && within(i, p.rotary_start + p.rotary_dim);
        if (!turns) store_element(p.keys, to * p.dim + i, p.cache_dtype, in[i]);
    }
    const float* turning = p.k_shared ? p.k_shared + row * p.k_shared_stride : in + p.rotary_start;
    turn(p, row, turning, p.keys, to * p.dim + p.rotary_start, p.cache_dtype);
}
