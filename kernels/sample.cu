// From logits to candidates: the soft cap, the largest logit, the k largest. See SoftCapParams and TopKParams.
//
// Blocks reduce pieces of a row to their k best, and one block per row reduces those. Ranks (rank.cuh) have one order, so
// it does not matter how a row is cut up and who compares what with what.
#include "rank.cuh"

// --- naive twins -----------------------------------------------------------------------------------------------------

KERNEL(naive_soft_cap, SoftCapParams, 128) {
    int row = blockIdx.x, i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i < p.n) p.out[row * p.out_stride + i] = p.cap * tanhf(p.x[row * p.stride + i] / p.cap);
}

KERNEL(naive_top_k, TopKParams, 32) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= p.rows) return;
    const float* logits = p.logits + row * p.stride;
    int* ids = p.ids + (long long)row * p.k;
    for (int n = 0; n < p.k; n++) {
        int best = -1;
        float largest = 0;
        for (int i = 0; i < p.n; i++) {
            bool taken = false;
            for (int j = 0; j < n; j++) taken = taken || ids[j] == i;
            float v = isnan(logits[i]) ? -INFINITY : logits[i];
            if (!taken && (best < 0 || v > largest)) best = i, largest = v;
        }
        ids[n] = best;
        if (p.values) p.values[(long long)row * p.k + n] = largest;
    }
}

// --- soft cap: four elements a thread --------------------------------------------------------------------------------

KERNEL(soft_cap, SoftCapParams, 256) {
    long long row = blockIdx.x;
    int i = (blockIdx.y * 256 + threadIdx.x) * 4;
    float4 v = load4(p.x + row * p.stride, i, p.n, rows_aligned(p.x, p.stride));
    v = make_float4(tanhf(v.x / p.cap), tanhf(v.y / p.cap), tanhf(v.z / p.cap), tanhf(v.w / p.cap));
    v = make_float4(p.cap * v.x, p.cap * v.y, p.cap * v.z, p.cap * v.w);
    store4(p.out + row * p.out_stride, i, p.n, rows_aligned(p.out, p.out_stride), v);
}

// --- the best of many ranks, by a block ------------------------------------------------------------------------------

constexpr int TOP_K_THREADS = 256;

// What a block chooses from: `count` ranks.
struct Logits {
    const float* first;
    int index, count; // of the first in its row
    __device__ Rank operator[](int i) const { return rank_of(first[i], index + i); }
};
struct Parts {
    const Rank* first;
    int count;
    __device__ Rank operator[](int i) const { return first[i]; }
};

template <class Source> __device__ Rank best_of(const Source& source) {
    Rank best = 0;
    for (int i = threadIdx.x; within(i, source.count); i += TOP_K_THREADS) {
        Rank rank = source[i];
        best = rank > best ? rank : best;
    }
    return block_best(best);
}

// Puts TOP_K_PIECE ranks in falling order: Batcher's bitonic sort.
__device__ inline void sort_falling(Rank* ranks) {
    for (int run = 2; run <= TOP_K_PIECE; run *= 2) {
        for (int apart = run / 2; apart > 0; apart /= 2) {
            __syncthreads();
            for (int pair = threadIdx.x; pair < TOP_K_PIECE / 2; pair += TOP_K_THREADS) {
                int low = pair / apart * apart * 2 + pair % apart, high = low + apart;
                bool falling = (low & run) == 0;
                Rank a = ranks[low], b = ranks[high];
                if ((a < b) == falling) ranks[low] = b, ranks[high] = a;
            }
        }
    }
    __syncthreads();
}

// Leaves the best of all in ranks[0], ranks[1], …, of which the first k are right; 0 where there are fewer.
template <class Source> __device__ void best_k_of(const Source& source, int k, Rank* ranks) {
    for (int next = 0, kept = 0; next < source.count; kept = k) {
        for (int i = kept + threadIdx.x; i < TOP_K_PIECE; i += TOP_K_THREADS) {
            int from = next + i - kept;
            ranks[i] = within(from, source.count) ? source[from] : 0;
        }
        next += TOP_K_PIECE - kept;
        sort_falling(ranks);
    }
}

// --- a piece, then a row ---------------------------------------------------------------------------------------------

__device__ __forceinline__ Logits piece_of_row(const TopKParams& p) {
    int first = blockIdx.y * TOP_K_PIECE;
    return {p.logits + blockIdx.x * p.stride + first, first, min(TOP_K_PIECE, p.n - first)};
}
__device__ __forceinline__ Rank* parts_of_row(const TopKParams& p) {
    return p.parts + (long long)blockIdx.x * ceil_div(p.n, TOP_K_PIECE) * p.k;
}
__device__ __forceinline__ void store_candidate(const TopKParams& p, int i, Rank rank) {
    long long at = (long long)blockIdx.x * p.k + i;
    p.ids[at] = rank_index(rank);
    if (p.values) p.values[at] = rank_value(rank);
}

KERNEL(argmax_pieces, TopKParams, TOP_K_THREADS) {
    Rank best = best_of(piece_of_row(p));
    if (threadIdx.x == 0) parts_of_row(p)[blockIdx.y] = best;
}
KERNEL(argmax, TopKParams, TOP_K_THREADS) {
    Rank best = best_of(Parts{parts_of_row(p), ceil_div(p.n, TOP_K_PIECE)});
    if (threadIdx.x == 0) store_candidate(p, 0, best);
}

KERNEL(top_k_pieces, TopKParams, TOP_K_THREADS) {
    SHARED(Rank, ranks, [TOP_K_PIECE]);
    best_k_of(piece_of_row(p), p.k, ranks);
    Rank* parts = parts_of_row(p) + (long long)blockIdx.y * p.k;
    for (int i = threadIdx.x; within(i, p.k); i += TOP_K_THREADS) parts[i] = ranks[i];
}
KERNEL(top_k, TopKParams, TOP_K_THREADS) {
    SHARED(Rank, ranks, [TOP_K_PIECE]);
    best_k_of(Parts{parts_of_row(p), ceil_div(p.n, TOP_K_PIECE) * p.k}, p.k, ranks);
    for (int i = threadIdx.x; within(i, p.k); i += TOP_K_THREADS) store_candidate(p, i, ranks[i]);
}
