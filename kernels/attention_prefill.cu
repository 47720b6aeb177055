// Attention of many rows a sequence: see AttentionParams. A block has 64 queries that share a key head (attention.cuh says
// which) and walks over all keys that they see.
#include "attention_mma.cuh"
#include "attention_simt.cuh"

// --- naive twin, of decode too: one thread a head of a row -----------------------------------------------------------

// The operands of a product are rounded to the cache's dtype, as tensor cores need them.
__device__ __forceinline__ float rounded(float v, Dtype dtype) {
    return dtype == DTYPE_F16 ? __half2float(__float2half(v)) : dtype == DTYPE_BF16 ? __bfloat162float(__float2bfloat16(v)) : v;
}

KERNEL(naive_attention, AttentionParams, 64) {
    int item = blockIdx.x * blockDim.x + threadIdx.x, row = item / p.heads, head = item % p.heads;
    Sequence s = p.sequences[blockIdx.y];
    if (row >= s.rows) return;
    int position = s.start + row;
    long long position_0 = cache_row(s, head / (p.heads / p.kv_heads), 0);
    const float* q = p.q + (s.first_row + row) * p.q_stride + head * p.dim;
    float* weights = p.workspace + (((long long)blockIdx.y * p.most_rows + row) * p.heads + head) * p.most_keys;
    float sink = vector_at(p.sinks, head, 0), top = p.sinks.data ? sink : -INFINITY;
    int first = first_visible(p, position);
    for (int j = first; j <= position; j++) {
        float product = 0;
        for (int i = 0; i < p.dim; i++)
            product += rounded(q[i], p.cache_dtype) * load_element(p.keys, (position_0 + j) * p.dim + i, p.cache_dtype);
        weights[j] = score(p, product, p.slopes ? p.slopes[head] : 0, j, position);
        top = fmaxf(top, weights[j]);
    }
    float sum = p.sinks.data ? expf(sink - top) : 0;
    for (int j = first; j <= position; j++) {
        weights[j] = expf(weights[j] - top);
        sum += weights[j];
    }
    for (int i = 0; i < p.v_dim; i++) {
        float value = 0;
        for (int j = first; j <= position; j++)
            value += rounded(weights[j], p.cache_dtype) * load_element(p.values, (position_0 + j) * p.v_dim + i, p.cache_dtype);
        store_out(p, s.first_row + row, head, i, value / sum);
    }
}

// --- 64 queries a block ----------------------------------------------------------------------------------------------

constexpr int TILE_QUERIES = 64;

// The block's first query. The last ones see most: they begin first.
__device__ __forceinline__ int first_query() { return (gridDim.x - 1 - blockIdx.x) * TILE_QUERIES; }

__device__ __forceinline__ void prefill_simt(const AttentionParams& p, float* memory) {
    Queries queries(p, blockIdx.z, blockIdx.y);
    SimtShared shared(p, memory);
    for (int first = first_query(); first < first_query() + TILE_QUERIES; first += SIMT_QUERIES) {
        if (!within(first, queries.count)) return;
        attend_simt(shared, p, queries, first, queries.begin(p, first), queries.end(first, SIMT_QUERIES));
        for (int i = threadIdx.x; i < SIMT_QUERIES * p.v_dim; i += 128) {
            int query = i / p.v_dim, column = i % p.v_dim, v = first + query;
            if (!within(v, queries.count)) break;
            float sum = with_sink(p, queries.head(v), shared.top[query], shared.sum[query]);
            float value = shared.q[query * shared.stride + column];
            store_out(p, queries.sequence.first_row + queries.row(v), queries.head(v), column, value / sum);
        }
        __syncthreads(); // the next sixteen queries take the place of these values
    }
}

// dim and v_dim are multiples of 16 up to Dim; caches lie on 16 bytes.
template <class Element, int Dim, int Keys> __device__ __forceinline__ void prefill(const AttentionParams& p, float* memory) {
#if HAS_MMA_K16
    Element* shared = reinterpret_cast<Element*>(memory);
    Queries queries(p, blockIdx.z, blockIdx.y);
    if (!within(first_query(), queries.count)) return;
    int lane = threadIdx.x % 32, first = first_query() + threadIdx.x / 32 * 16;
    Sixteen<Dim> sixteen;
    int begin = queries.begin(p, first_query()), end = queries.end(first_query(), TILE_QUERIES);
    attend<Element, Dim, Keys, Keys>(sixteen, p, queries, first, begin, end, 0, shared);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int v = first + lane / 4 + half * 8;
        if (!within(v, queries.count)) continue;
        int row = queries.sequence.first_row + queries.row(v), head = queries.head(v);
        float scale = 1 / with_sink(p, head, sixteen.top[half], sixteen.sum[half]);
#pragma unroll
        for (int i = 0; i < Dim / 8; i++) {
            int column = i * 8 + lane % 4 * 2;
            if (!within(column, p.v_dim)) break;
            store_out(p, row, head, column, sixteen.values[i][half * 2] * scale);
            store_out(p, row, head, column + 1, sixteen.values[i][half * 2 + 1] * scale);
        }
    }
#else
    prefill_simt(p, memory);
#endif
}

KERNEL(attention_prefill_bf16_128, AttentionParams, 128) {
    DYN_SMEM(float, memory);
    prefill<__nv_bfloat16, 128, 64>(p, memory);
}
KERNEL(attention_prefill_bf16_256, AttentionParams, 128) {
    DYN_SMEM(float, memory);
    prefill<__nv_bfloat16, 256, 32>(p, memory);
}
KERNEL(attention_prefill_f16_128, AttentionParams, 128) {
    DYN_SMEM(float, memory);
    prefill<__half, 128, 64>(p, memory);
}
KERNEL(attention_prefill_f16_256, AttentionParams, 128) {
    DYN_SMEM(float, memory);
    prefill<__half, 256, 32>(p, memory);
}
KERNEL(attention_prefill_simt, AttentionParams, 128) {
    DYN_SMEM(float, memory);
    prefill_simt(p, memory);
}
