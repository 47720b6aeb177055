// Kernels with faults to order, for kernels/tests/host.rs: the host build has to notice each of them. Compiled for the host
// only. `fault` is 0 for none, else one of the numbers below, which the test knows by the same names.
#include "../tile.cuh"

struct SelftestParams {
    const __nv_bfloat16* x; // pipeline: [tiles, 64, 64]
    float* out;             // pipeline: [64, 8]
    int tiles;              // pipeline; misuse: elements in out
    int fault;
};

// --- what only some schedules show -----------------------------------------------------------------------------------

enum { NO_WAIT = 1, NO_BARRIER_AFTER_WAIT, NO_BARRIER_BEFORE_REUSE, WAITS_FOR_TOO_FEW, NO_BARRIER_IN_REDUCTION };

__device__ float weight(int k, int n) { return float((k * 3 + n * 5) % 7 - 3); }

// Sum over tiles of x[tile] * W, W[64, 8] a formula: two stages of cp.async, swizzle, ldmatrix, mma, then a sum through
// shared memory. Small integers, so the result is exact.
KERNEL(selftest_pipeline, SelftestParams, 128) {
#if HAS_MMA_K16
    DYN_SMEM(uint4, stages); // [2][64 rows][8 pieces]
    SHARED(float, sums, [64][8]);
    int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    auto issue = [&](int tile) {
        for (int e = thread; e < 64 * 8; e += 128) {
            int row = e / 8, piece = e % 8;
            cp_async16(&stages[tile % 2 * 512 + row * 8 + swizzle(row, piece)], p.x + tile * 4096 + row * 64 + piece * 8);
        }
    };
    float d[4] = {};
    issue(0);
    cp_async_commit();
    for (int tile = 0; tile < p.tiles; tile++) {
        if (tile + 1 < p.tiles) issue(tile + 1);
        cp_async_commit();
        if (p.fault == WAITS_FOR_TOO_FEW) {
            cp_async_wait<2>();
        } else if (p.fault != NO_WAIT) {
            cp_async_wait<1>();
        }
        if (p.fault != NO_BARRIER_AFTER_WAIT) __syncthreads();
        for (int k = 0; k < 64; k += 16) {
            int row = warp * 16 + lane % 16, piece = k / 8 + lane / 16;
            uint32_t a[4];
            ldmatrix_x4(a, &stages[tile % 2 * 512 + row * 8 + swizzle(row, piece)]);
            int n = lane / 4, i = k + lane % 4 * 2;
            mma(d, a,
                {pack2(weight(i, n), weight(i + 1, n), __nv_bfloat16()), pack2(weight(i + 8, n), weight(i + 9, n), __nv_bfloat16())},
                __nv_bfloat16());
        }
        if (p.fault != NO_BARRIER_BEFORE_REUSE) __syncthreads();
    }
    cp_async_wait<0>();
    for (int e = 0; e < 4; e++) sums[warp * 16 + lane / 4 + e / 2 * 8][lane % 4 * 2 + e % 2] = d[e];
    if (p.fault != NO_BARRIER_IN_REDUCTION) __syncthreads();
    // Another warp's rows.
    for (int e = 0; e < 4; e++) {
        int at = (thread * 4 + e + 128) % 512;
        p.out[at] = sums[at / 8][at % 8];
    }
#endif
}

// --- what every schedule shows ---------------------------------------------------------------------------------------

enum {
    READS_BEYOND = 100,
    WRITES_BEYOND,
    WRITES_BEFORE,
    WRITES_BEYOND_DYNAMIC,
    WRITES_BEYOND_STATIC,
    TOO_MUCH_STATIC,
    DIFFERENT_BARRIERS,
    HALF_A_WARP,
    DIFFERENT_COLLECTIVES,
    ABSENT_LANE,
    NOT_IN_MASK,
    MISALIGNED_LOAD,
    MISALIGNED_MATRIX,
    GLOBAL_AS_SHARED,
    COPY_IN_FLIGHT,
    ENDLESS_RECURSION,
    NULL_POINTER,
};

__device__ __attribute__((noinline)) int recurse(volatile int* n) {
    volatile int here[64];
    here[0] = *n + 1;
    return recurse(here) + here[0];
}

KERNEL(selftest_misuse, SelftestParams, 64) {
    DYN_SMEM(unsigned char, bytes); // 64 bytes
    SHARED(float, array, [16]);
    int thread = threadIdx.x;
    uint32_t r[4];
    if (thread < p.tiles) p.out[thread] = 1;
    switch (p.fault) {
    case READS_BEYOND: p.out[0] = p.out[(p.tiles + 3) / 4 * 4]; break;
    case WRITES_BEYOND: p.out[p.tiles] = 0; break;
    case WRITES_BEFORE: p.out[-1] = 0; break;
    case WRITES_BEYOND_DYNAMIC: bytes[64] = 0; break;
    case WRITES_BEYOND_STATIC: array[thread] = 0; break;
    case TOO_MUCH_STATIC: {
        SHARED(float, large, [12289]);
        large[0] = 0;
        break;
    }
    case DIFFERENT_BARRIERS:
        if (thread < 32) {
            __syncthreads();
        } else {
            __syncthreads();
        }
        break;
    case HALF_A_WARP:
        if (thread % 32 < 16) warp_sum(1);
        else __syncthreads();
        break;
    case DIFFERENT_COLLECTIVES:
        if (thread % 32 < 16) __shfl_sync(ALL_LANES, 1, 0);
        else __ballot_sync(ALL_LANES, 1);
        break;
    case ABSENT_LANE:
        if (thread % 32 < 16) __shfl_sync(0xffffu, 1, 20);
        break;
    case NOT_IN_MASK: __syncwarp(1u); break;
    case MISALIGNED_LOAD: load16(reinterpret_cast<const char*>(p.out) + 4); break;
    case MISALIGNED_MATRIX: ldmatrix_x4(r, bytes + 8); break;
    case GLOBAL_AS_SHARED: ldmatrix_x4(r, p.out); break;
    case COPY_IN_FLIGHT:
        cp_async16(bytes, p.out);
        cp_async_commit();
        break;
    case ENDLESS_RECURSION: p.out[0] = float(recurse(&thread)); break;
    case NULL_POINTER: p.out[0] = *static_cast<const volatile float*>(nullptr); break;
    }
}
