// The product with a matrix that is stored as its transpose, a run of stored rows at a time: see TransposedParams.
//
// A thread has one output of some rows of activations, neighbours have neighbours: so a stored row is read in one piece.
// Activations wait in shared memory, those of all rows for one input side by side. All is float32, and a sum takes its inputs
// in order: instances for few and for many rows agree in bits, and so do all cuts into tiles.
#include "tile.cuh"

// --- naive twin: one thread an output --------------------------------------------------------------------------------

KERNEL(naive_gemm_transposed, TransposedParams, 128) {
    int j = blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y;
    if (j >= p.n) return;
    float sum = vector_at(p.bias, j, 0) + (p.add ? p.out[r * p.out_stride + j] : 0);
    for (int i = 0; i < p.k; i++) sum += p.x[r * p.x_stride + i] * load_element(p.w, (long long)i * p.n + j, p.dtype);
    p.out[r * p.out_stride + j] = sum;
}

// --- one thread an output of Rows rows -------------------------------------------------------------------------------

constexpr int THREADS = 128, DEPTH = 64, AT_ONCE = 4; // inputs in shared memory; weights that a thread loads ahead

template <int Rows> __device__ __forceinline__ void add_product(float (&sums)[Rows], float w, const float* xs) {
#pragma unroll
    for (int r = 0; r < Rows; r++) sums[r] = fmaf(w, xs[r], sums[r]);
}

template <int Rows> __device__ void gemm_transposed(const TransposedParams& p) {
    SHARED(float, xs, [DEPTH][Rows]);
    int j = blockIdx.x * THREADS + threadIdx.x, first = blockIdx.y * Rows;
    bool inside = within(j, p.n);
    // Threads beyond the last output load what another one needs, and store nothing.
    int column = clamped(j, p.n);
    float sums[Rows], bias = vector_at(p.bias, column, 0);
#pragma unroll
    for (int r = 0; r < Rows; r++) sums[r] = p.add ? bias + p.out[clamped(first + r, p.m) * p.out_stride + column] : bias;
    for (int k0 = 0; k0 < p.k; k0 += DEPTH) {
        for (int e = threadIdx.x; e < DEPTH * Rows; e += THREADS) {
            int r = first + e / DEPTH, i = k0 + e % DEPTH;
            xs[e % DEPTH][e / DEPTH] = within(r, p.m) && within(i, p.k) ? p.x[r * p.x_stride + i] : 0.0f;
        }
        __syncthreads();
        int depth = min(DEPTH, p.k - k0), whole = depth - depth % AT_ONCE;
        const long long at = (long long)k0 * p.n + column;
        for (int i = 0; i < whole; i += AT_ONCE) {
            float w[AT_ONCE];
#pragma unroll
            for (int d = 0; d < AT_ONCE; d++) w[d] = load_element(p.w, at + (long long)(i + d) * p.n, p.dtype);
#pragma unroll
            for (int d = 0; d < AT_ONCE; d++) add_product<Rows>(sums, w[d], xs[i + d]);
        }
        for (int i = whole; i < depth; i++)
            add_product<Rows>(sums, load_element(p.w, at + (long long)i * p.n, p.dtype), xs[i]);
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < Rows; r++)
        if (inside && within(first + r, p.m)) p.out[(first + r) * p.out_stride + j] = sums[r];
}

KERNEL(gemm_transposed_m8, TransposedParams, THREADS) { gemm_transposed<8>(p); }
KERNEL(gemm_transposed_m32, TransposedParams, THREADS) { gemm_transposed<32>(p); }
