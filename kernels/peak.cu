// What a card can do at best, by the means that the kernels have too: copying memory, and mma on registers. Other kernels
// are measured against these. They are no part of any model and have no naive twins: their results are exact.
#include "tile.cuh"

constexpr int THREADS = 256;

__device__ __forceinline__ long long first_piece() { return (blockIdx.x * (long long)THREADS + threadIdx.x) * 16; }
__device__ __forceinline__ long long piece_step() { return gridDim.x * (long long)THREADS * 16; }

// out = in, 16 bytes at a time.
KERNEL(peak_copy, PeakParams, THREADS) {
    for (long long i = first_piece(); i < p.bytes; i += piece_step())
        *reinterpret_cast<uint4*>(static_cast<char*>(p.out) + i) = load16_once(static_cast<const char*>(p.in) + i);
}

// Reads `in`; out[thread] is the exclusive or of the words it read. Fills the L2 cache with what nobody else wants, and
// unlike a memset leaves nothing to be written back while the next kernel runs.
KERNEL(peak_read, PeakParams, THREADS) {
    uint32_t all = 0;
    for (long long i = first_piece(); i < p.bytes; i += piece_step()) {
        uint4 v = load16(static_cast<const char*>(p.in) + i);
        all ^= v.x ^ v.y ^ v.z ^ v.w;
    }
    static_cast<uint32_t*>(p.out)[blockIdx.x * THREADS + threadIdx.x] = all;
}

// Every warp multiplies the same two bfloat16 matrices over and over, in independent chains: A[g][k] = (g + k) % 5 - 2 and
// B[k][g] = (2 k + g) % 7 - 3. out[thread] is the sum of what the lane holds of all chains, rounds * PEAK_CHAINS * (its four
// elements of A B). Without tensor cores: as many multiply-adds, of which a lane does its share, all adding 1.
KERNEL(peak_mma, PeakParams, THREADS) {
    float sums[PEAK_CHAINS][4] = {};
#if HAS_MMA_K16
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    auto a_at = [](int row, int k) { return float((row + k) % 5 - 2); };
    auto b_at = [](int k, int column) { return float((2 * k + column) % 7 - 3); };
    uint32_t a[4], b[2];
    for (int i = 0; i < 4; i++) {
        int row = g + i % 2 * 8, k = 2 * t + i / 2 * 8;
        a[i] = pack2(a_at(row, k), a_at(row, k + 1), __nv_bfloat16());
    }
    for (int i = 0; i < 2; i++) b[i] = pack2(b_at(2 * t + 8 * i, g), b_at(2 * t + 8 * i + 1, g), __nv_bfloat16());
    for (int round = 0; round < p.rounds; round++) {
#pragma unroll
        for (int c = 0; c < PEAK_CHAINS; c++) mma(sums[c], a, b, __nv_bfloat16());
    }
#else
    // 16 * 8 * 16 multiply-adds an mma, 32 lanes: 64 each, 16 for each of its four sums.
    float one = p.rounds > 0 ? 1.0f : 0.0f; // not known to the compiler
    for (int round = 0; round < p.rounds; round++) {
#pragma unroll
        for (int c = 0; c < PEAK_CHAINS * 4 * 16; c++) sums[c / 4 % PEAK_CHAINS][c % 4] = fmaf(one, one, sums[c / 4 % PEAK_CHAINS][c % 4]);
    }
#endif
    float sum = 0;
    for (int c = 0; c < PEAK_CHAINS; c++)
        for (int e = 0; e < 4; e++) sum += sums[c][e];
    static_cast<float*>(p.out)[blockIdx.x * THREADS + threadIdx.x] = sum;
}
