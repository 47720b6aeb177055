// The Euclidean lengths of rows of weights, for heads whose rows are divided by them: see RowLengthsParams.
//
// A warp has a row, so the order of additions is that of k, wherever the matrix is cut into tiles. What is read here is what
// the multiply reads next.
#include "gguf.cuh"
#include "lossless.cuh"

// --- naive twin: one thread a row ------------------------------------------------------------------------------------

template <class E> __device__ void naive_row_lengths(const RowLengthsParams& p) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= p.n) return;
    float square = 0;
    for (int i = 0; i < p.k; i++) square += E::at(p.w, p.k, row, i) * E::at(p.w, p.k, row, i);
    float length = sqrtf(square);
    p.lengths[p.w.first_row + row] = length > 1e-12f ? length : 1e-12f;
}

// --- one warp a row --------------------------------------------------------------------------------------------------

template <class E> __device__ void row_lengths(const RowLengthsParams& p) {
    int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (!within(row, p.n)) return;
    float square = 0;
    for (int i = lane; i < p.k; i += 32) {
        float w = E::at(p.w, p.k, row, i);
        square = fmaf(w, w, square);
    }
    square = warp_sum(square);
    // Written so that NaN stays NaN, which fmaxf would hide.
    float length = sqrtf(square);
    if (lane == 0) p.lengths[p.w.first_row + row] = length < 1e-12f ? 1e-12f : length;
}

#define ROW_LENGTHS(encoding, E)                                                                                       \
    KERNEL(naive_row_lengths_##encoding, RowLengthsParams, 128) { naive_row_lengths<E>(p); }                           \
    KERNEL(row_lengths_##encoding, RowLengthsParams, 256) { row_lengths<E>(p); }
ROW_LENGTHS(f32, F32)
ROW_LENGTHS(f16, F16)
ROW_LENGTHS(bf16, Bf16)
ROW_LENGTHS(int8, Int8)
ROW_LENGTHS(fp8, Fp8)
ROW_LENGTHS(nf4, Nf4)
ROW_LENGTHS(nf4d, Nf4d)
ROW_LENGTHS(lossless, Lossless)
ROW_LENGTHS(fp4, Fp4)
ROW_LENGTHS(int8z, Int8Zero)
ROW_LENGTHS(offset8, Offset8)
ROW_LENGTHS(offset4, Offset4)
ROW_LENGTHS(mxfp4, Mxfp4)
ROW_LENGTHS(q8_0, Q8_0)
ROW_LENGTHS(q4_0, Q4_0)
ROW_LENGTHS(q4_1, Q4_1)
ROW_LENGTHS(q5_0, Q5_0)
ROW_LENGTHS(q5_1, Q5_1)
ROW_LENGTHS(q4_k, Q4K)
ROW_LENGTHS(q5_k, Q5K)
ROW_LENGTHS(q6_k, Q6K)
