// Where a sequence's keys and values lie: see struct Sequence in params.h.
#pragma once
#include "tile.cuh"

// The row of the cache that holds a position, for one key head.
__device__ __forceinline__ long long cache_row(const Sequence& sequence, int kv_head, int position) {
    return sequence.cache_row + (long long)kv_head * sequence.capacity + position;
}
