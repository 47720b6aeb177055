// Attention without tensor cores: for float32 caches, for head dims that are not multiples of 16, and for sm_75. Sixteen
// queries a block of 128 threads, tiles of 32 keys, everything float32 in shared memory.
#pragma once
#include "attention.cuh"

constexpr int SIMT_QUERIES = 16, SIMT_KEYS = 32;

// Shared memory of a block; launch/attention.rs computes its size with the same terms.
struct SimtShared {
    int stride;    // of a row; 4 above a multiple of 4, so that rows start in different banks
    float* q;      // [SIMT_QUERIES, stride]; at the end: the unnormalised values
    float* tile;   // [SIMT_KEYS, stride]: keys, then values
    float* weight; // [SIMT_QUERIES, SIMT_KEYS]
    float* rescale; // [SIMT_QUERIES]
    float* top;     // [SIMT_QUERIES]: at the end, the largest score
    float* sum;     // [SIMT_QUERIES]: at the end, the sum of the weights
    __device__ SimtShared(const AttentionParams& p, float* base) {
        stride = ceil_div(max(p.dim, p.v_dim), 4) * 4 + 4;
        q = base;
        tile = q + SIMT_QUERIES * stride;
        weight = tile + SIMT_KEYS * stride;
        rescale = weight + SIMT_QUERIES * SIMT_KEYS;
        top = rescale + SIMT_QUERIES;
        sum = top + SIMT_QUERIES;
    }
};

// row[i .. i + 4) of any dtype, zero at and beyond n. Where rows are aligned, n is a multiple of 4.
__device__ __forceinline__ float4 load_four(const void* p, long long row, int i, int n, Dtype dtype, bool aligned) {
    if (dtype == DTYPE_F32) return load4(static_cast<const float*>(p) + row, i, n, aligned);
    if (aligned) {
        uint2 raw = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(p) + row + i);
        float2 low = dtype == DTYPE_F16 ? unpack2(raw.x, __half()) : unpack2(raw.x, __nv_bfloat16());
        float2 high = dtype == DTYPE_F16 ? unpack2(raw.y, __half()) : unpack2(raw.y, __nv_bfloat16());
        return make_float4(low.x, low.y, high.x, high.y);
    }
    float v[4];
    for (int j = 0; j < 4; j++) v[j] = within(i + j, n) ? load_element(p, row + i + j, dtype) : 0;
    return make_float4(v[0], v[1], v[2], v[3]);
}

// The positions [first, first + SIMT_KEYS) of a cache to shared memory, zeroes from `end` on.
__device__ __forceinline__ void load_tile(const SimtShared& shared, const void* cache, long long position_0, int first,
                                          int end, int dim, Dtype dtype) {
    bool aligned = rows_aligned(static_cast<const float*>(cache), dim);
    int fours = ceil_div(dim, 4);
#pragma unroll 1
    for (int i = threadIdx.x; i < SIMT_KEYS * fours; i += 128) {
        int key = i / fours, column = i % fours * 4;
        float4 v = make_float4(0, 0, 0, 0);
        if (within(first + key, end)) v = load_four(cache, (position_0 + first + key) * dim, column, dim, dtype, aligned);
        *reinterpret_cast<float4*>(shared.tile + key * shared.stride + column) = v;
    }
}

// Adds a tile to the values of `Each` queries from `query` on, four columns a thread.
template <int Each>
__device__ __forceinline__ void add_values(float4 (&values)[8], const SimtShared& shared, int query, int column) {
#pragma unroll
    for (int i = 0; i < Each; i++) {
        float rescale = shared.rescale[query + i];
        values[i] = make_float4(values[i].x * rescale, values[i].y * rescale, values[i].z * rescale, values[i].w * rescale);
    }
#pragma unroll 2
    for (int key = 0; key < SIMT_KEYS; key++) {
        float4 v = *reinterpret_cast<const float4*>(shared.tile + key * shared.stride + column);
#pragma unroll
        for (int i = 0; i < Each; i++) {
            float weight = shared.weight[(query + i) * SIMT_KEYS + key];
            values[i].x = fmaf(weight, v.x, values[i].x);
            values[i].y = fmaf(weight, v.y, values[i].y);
            values[i].z = fmaf(weight, v.z, values[i].z);
            values[i].w = fmaf(weight, v.w, values[i].w);
        }
    }
}

// Attention of the sixteen queries from `first` on to the positions [begin, end). Leaves values, top and sum in `shared`,
// behind a barrier. Every thread of a block of 128 has to call it.
__device__ __forceinline__ void attend_simt(const SimtShared& shared, const AttentionParams& p, const Queries& queries,
                                            int first, int begin, int end) {
    long long position_0 = cache_row(queries.sequence, queries.kv_head, 0);
    int fours = ceil_div(p.dim, 4);
    bool aligned = rows_aligned(p.q, p.q_stride) && p.dim % 4 == 0;
#pragma unroll 1
    for (int i = threadIdx.x; i < SIMT_QUERIES * fours; i += 128) {
        int v = first + i / fours, column = i % fours * 4;
        float4 q = make_float4(0, 0, 0, 0);
        if (within(v, queries.count)) q = load4(queries.vector(p, v), column, p.dim, aligned);
        *reinterpret_cast<float4*>(shared.q + i / fours * shared.stride + column) = q;
    }

    // For scores, eight threads have a query, each every eighth key. For values, a thread has four columns of `each`.
    int query = threadIdx.x / 8, v = first + query;
    int high = queries.position(v) + 1, low = first_visible(p, high - 1);
    float slope = p.slopes ? p.slopes[queries.head(v)] : 0;
    float top = -INFINITY, sum = 0;
    int columns = p.v_dim <= 64 ? 16 : p.v_dim <= 128 ? 32 : 64, each = columns / 8;
    int first_value = threadIdx.x / columns * each, column = threadIdx.x % columns * 4;
    float4 values[8] = {};

    for (int tile = begin - begin % SIMT_KEYS; tile < end; tile += SIMT_KEYS) {
        __syncthreads(); // nobody reads the last tile any more
        load_tile(shared, p.keys, position_0, tile, end, p.dim, p.cache_dtype);
        __syncthreads();
        float4 products[4] = {};
#pragma unroll 1
        for (int c = 0; c < fours; c++) {
            float4 a = *reinterpret_cast<const float4*>(shared.q + query * shared.stride + c * 4);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int key = threadIdx.x % 8 + i * 8;
                float4 b = *reinterpret_cast<const float4*>(shared.tile + key * shared.stride + c * 4);
                products[i].x = fmaf(a.x, b.x, products[i].x);
                products[i].y = fmaf(a.y, b.y, products[i].y);
                products[i].z = fmaf(a.z, b.z, products[i].z);
                products[i].w = fmaf(a.w, b.w, products[i].w);
            }
        }
        float scores[4], new_top = top;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int key = tile + threadIdx.x % 8 + i * 8;
            bool visible = within(key, high) && !within(key, low);
            float product = (products[i].x + products[i].y) + (products[i].z + products[i].w);
            scores[i] = visible ? score(p, product, slope, key, high - 1) : -INFINITY;
            new_top = fmaxf(new_top, scores[i]);
        }
        for (int bit = 4; bit > 0; bit /= 2) new_top = fmaxf(new_top, __shfl_xor_sync(ALL_LANES, new_top, bit));
        float base = new_top == -INFINITY ? 0 : new_top; // so that weights of keys that are not seen are 0, not NaN
        float rescale = expf(top - base), tile_sum = 0;
        top = new_top;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float weight = expf(scores[i] - base);
            shared.weight[query * SIMT_KEYS + threadIdx.x % 8 + i * 8] = weight;
            tile_sum += weight;
        }
        sum = fmaf(sum, rescale, tile_sum);
        if (threadIdx.x % 8 == 0) shared.rescale[query] = rescale;
        __syncthreads(); // weights are there, and nobody reads the keys any more
        load_tile(shared, p.values, position_0, tile, end, p.v_dim, p.cache_dtype);
        __syncthreads();
        if (within(column, p.v_dim)) {
            if (each == 2) add_values<2>(values, shared, first_value, column);
            else if (each == 4) add_values<4>(values, shared, first_value, column);
            else add_values<8>(values, shared, first_value, column);
        }
    }
    for (int bit = 4; bit > 0; bit /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, bit);
    if (threadIdx.x % 8 == 0) {
        shared.top[query] = top;
        shared.sum[query] = sum;
    }
    // All threads have passed the last barrier of the loop: nobody reads q.
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (within(i, each) && within(column, p.v_dim))
            *reinterpret_cast<float4*>(shared.q + (first_value + i) * shared.stride + column) = values[i];
    __syncthreads();
}
