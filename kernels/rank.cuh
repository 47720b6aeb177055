// Order as one integer: which of some numbers are the largest, and where they stand, by plain comparisons.
#pragma once
#include "tile.cuh"

// A rank is larger the larger the number and, among equals, the smaller the index; no two elements share one, so a choice
// of the largest ranks has one answer in whatever order it is made. NaN counts as -infinity, -0 equals 0. 0 is no element's
// rank; NO_LIMIT is above them all.
using Rank = unsigned long long;
constexpr Rank NO_LIMIT = ~0ull;

__device__ __forceinline__ Rank rank_of(float v, int index) {
    v = isnan(v) ? -INFINITY : v + 0.0f; // -0 + 0 is 0
    uint32_t bits = __float_as_uint(v);
    uint32_t ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
    return Rank(ordered) << 32 | ~uint32_t(index);
}
__device__ __forceinline__ int rank_index(Rank rank) { return int(~uint32_t(rank)); }
__device__ __forceinline__ float rank_value(Rank rank) {
    uint32_t ordered = uint32_t(rank >> 32);
    return __uint_as_float(ordered >> 31 ? ordered & 0x7fffffffu : ~ordered);
}

// The largest over a warp, in every lane.
__device__ __forceinline__ Rank warp_best(Rank rank) {
    for (int bit = 16; bit > 0; bit /= 2) {
        Rank other = __shfl_xor_sync(ALL_LANES, rank, bit);
        rank = other > rank ? other : rank;
    }
    return rank;
}
// The largest over a block of whole warps, in every thread. Every thread of the block has to call it, once.
__device__ inline Rank block_best(Rank rank) {
    SHARED(Rank, best, [32]);
    int warps = blockDim.x / 32;
    rank = warp_best(rank);
    if (threadIdx.x % 32 == 0) best[threadIdx.x / 32] = rank;
    __syncthreads();
    for (int i = 0; i < warps; i++) rank = best[i] > rank ? best[i] : rank;
    return rank;
}
