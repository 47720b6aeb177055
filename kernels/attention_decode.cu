// Attention of few rows a sequence, for which reading the cache is what takes time: see AttentionParams. A block has
// sixteen queries that share a key head and one split of the keys; a second kernel puts the splits together. (Dao et al.
// 2023, "Flash-Decoding"; but splits have a fixed length, so that the bits of a row do not depend on how many there are.)
//
// The naive twin is naive_attention, in attention_prefill.cu.
#include "attention_mma.cuh"
#include "attention_simt.cuh"

constexpr int DECODE_QUERIES = 16;

// The block's queries and the part of its split that they see. Nothing to do: begin >= end.
struct Split {
    Queries queries;
    int first, begin, end;
    __device__ explicit Split(const AttentionParams& p) : queries(p, blockIdx.z % p.sequence_count, blockIdx.y) {
        first = blockIdx.z / p.sequence_count * DECODE_QUERIES;
        if (!within(first, queries.count)) {
            begin = end = 0;
            return;
        }
        int split = blockIdx.x * SPLIT_KEYS;
        begin = max(split, queries.begin(p, first));
        end = min(split + SPLIT_KEYS, queries.end(first, DECODE_QUERIES));
    }
};

// Writes the block's sixteen rows of unnormalised values to the workspace.
__device__ __forceinline__ void store_partials(const AttentionParams& p, const Split& split, const float* values, int stride,
                                               const float* top, const float* sum) {
    for (int i = threadIdx.x; i < DECODE_QUERIES * p.v_dim; i += 128) {
        int query = i / p.v_dim, column = i % p.v_dim, v = split.first + query;
        if (!within(v, split.queries.count)) break;
        Partials partials(p, split.queries.index, split.queries.row(v), split.queries.head(v));
        partials.values[(long long)blockIdx.x * p.v_dim + column] = values[query * stride + column];
        if (column == 0) {
            partials.stats[2 * blockIdx.x] = top[query];
            partials.stats[2 * blockIdx.x + 1] = sum[query];
        }
    }
}

__device__ __forceinline__ void decode_simt(const AttentionParams& p, float* memory) {
    Split split(p);
    if (!within(split.begin, split.end)) return; // nothing to do
    SimtShared shared(p, memory);
    attend_simt(shared, p, split.queries, split.first, split.begin, split.end);
    store_partials(p, split, shared.q, shared.stride, shared.top, shared.sum);
}

// The four warps have the same queries and each a quarter of the keys of every tile.
// dim and v_dim are multiples of 16 up to Dim; caches lie on 16 bytes.
template <class Element, int Dim> __device__ __forceinline__ void decode(const AttentionParams& p, float* memory) {
#if HAS_MMA_K16
    Element* shared = reinterpret_cast<Element*>(memory);
    SHARED(float, tops, [4][16]);
    SHARED(float, sums, [4][16]);
    Split split(p);
    if (!within(split.begin, split.end)) return;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Sixteen<Dim> sixteen;
    attend<Element, Dim, 64, 16>(sixteen, p, split.queries, split.first, split.begin, split.end, warp * 16, shared);

    // Together: what each warp has, relative to the largest score of all, added warp after warp.
    if (lane % 4 == 0) {
        for (int half = 0; half < 2; half++) {
            tops[warp][lane / 4 + half * 8] = sixteen.top[half];
            sums[warp][lane / 4 + half * 8] = sixteen.sum[half];
        }
    }
    __syncthreads();
    float* values = memory; // [16][Dim]
    float top[2], rescale[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int query = lane / 4 + half * 8;
        top[half] = fmaxf(fmaxf(tops[0][query], tops[1][query]), fmaxf(tops[2][query], tops[3][query]));
        rescale[half] = sixteen.top[half] == -INFINITY ? 0 : expf(sixteen.top[half] - top[half]);
    }
    for (int turn = 0; turn < 4; turn++) {
        if (turn == warp) {
#pragma unroll
            for (int i = 0; i < Dim / 8; i++) {
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    int at = (lane / 4 + c / 2 * 8) * Dim + i * 8 + lane % 4 * 2 + c % 2;
                    float v = sixteen.values[i][c] * rescale[c / 2];
                    values[at] = turn == 0 ? v : values[at] + v;
                }
            }
        }
        __syncthreads();
    }
    // One thread a query: its sum, and the largest score in the place of warp 0's.
    if (threadIdx.x < DECODE_QUERIES) {
        int query = threadIdx.x;
        float largest = fmaxf(fmaxf(tops[0][query], tops[1][query]), fmaxf(tops[2][query], tops[3][query])), sum = 0;
        for (int i = 0; i < 4; i++)
            if (tops[i][query] != -INFINITY) sum = fmaf(sums[i][query], expf(tops[i][query] - largest), sum);
        tops[0][query] = largest;
        sums[0][query] = sum;
    }
    __syncthreads();
    store_partials(p, split, values, Dim, tops[0], sums[0]);
#else
    decode_simt(p, memory);
#endif
}

KERNEL(attention_decode_bf16_128, AttentionParams, 128) {
    DYN_SMEM(float, memory);
    decode<__nv_bfloat16, 128>(p, memory);
}
KERNEL(attention_decode_bf16_256, AttentionParams, 128) {
    DYN_SMEM(float, memory);
    decode<__nv_bfloat16, 256>(p, memory);
}
KERNEL(attention_decode_f16_128, AttentionParams, 128) {
    DYN_SMEM(float, memory);
    decode<__half, 128>(p, memory);
}
KERNEL(attention_decode_f16_256, AttentionParams, 128) {
    DYN_SMEM(float, memory);
    decode<__half, 256>(p, memory);
}
KERNEL(attention_decode_simt, AttentionParams, 128) {
    DYN_SMEM(float, memory);
    decode_simt(p, memory);
}

// Adds the splits of one row and head: warp w those number w, w + 8, … of the ones it sees, then the warps in turn.
KERNEL(attention_combine, AttentionParams, 256) {
    SHARED(float, partial, [8][256]);
    SHARED(float, sums, [8]);
    int row = blockIdx.x, head = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Sequence sequence = p.sequences[blockIdx.z];
    if (!within(row, sequence.rows)) return;
    int position = sequence.start + row;
    int first = first_visible(p, position) / SPLIT_KEYS, end = position / SPLIT_KEYS + 1;
    Partials partials(p, blockIdx.z, row, head);

    float top = -INFINITY;
    for (int split = first + lane; split < end; split += 32) top = fmaxf(top, partials.stats[2 * split]);
    top = warp_max(top);
    bool aligned = rows_aligned(partials.values, p.v_dim);
    float4 values[2] = {};
    float sum = 0;
    for (int split = first + warp; split < end; split += 8) {
        float weight = expf(partials.stats[2 * split] - top);
        sum = fmaf(partials.stats[2 * split + 1], weight, sum);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float4 v = load4(partials.values + (long long)split * p.v_dim, lane * 4 + i * 128, p.v_dim, aligned);
            values[i].x = fmaf(weight, v.x, values[i].x);
            values[i].y = fmaf(weight, v.y, values[i].y);
            values[i].z = fmaf(weight, v.z, values[i].z);
            values[i].w = fmaf(weight, v.w, values[i].w);
        }
    }
    for (int i = 0; i < 2; i++) store4(partial[warp], lane * 4 + i * 128, 256, true, values[i]);
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
    sum = 0;
    for (int i = 0; i < 8; i++) sum += sums[i];
    sum = with_sink(p, head, top, sum);
    int column = threadIdx.x;
    if (!within(column, p.v_dim)) return;
    float value = 0;
    for (int i = 0; i < 8; i++) value += partial[i][column];
    store_out(p, sequence.first_row + row, head, column, value / sum);
}
