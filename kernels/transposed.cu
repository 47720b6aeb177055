// The product with a matrix that is stored as its transpose, a run of stored rows at a time: see TransposedParams.
//
// A thread has one output of some rows of activations, neighbours have neighbours: so a stored row is read in one piece.
// Activations wait in shared memory, those of all rows for one input side by side. All is float32, and a sum takes its inputs
// in order: instances for few and for many rows agree in bits, and so do all cuts into tiles.
#include "dequant.cuh"

// What is stored: numbers, or words with the codes of INPUTS inputs of an output.
struct Numbers {
    using Word = float;
    static constexpr int INPUTS = 1;
    static constexpr bool GROUPED = false;
    static __device__ Word load(const TransposedParams& p, int row, int column) {
        return load_element(p.w, (long long)row * p.n + column, p.dtype);
    }
    static __device__ float number(Word word, int, int) { return word; }
};
template <int BITS> struct Gptq {
    using Word = uint32_t;
    static constexpr int INPUTS = 32 / BITS;
    static constexpr bool GROUPED = true;
    static __device__ Word load(const TransposedParams& p, int row, int column) {
        return static_cast<const uint32_t*>(p.w)[(long long)row * p.n + column];
    }
    static __device__ float number(Word word, int input, int) {
        return byte_number(word >> BITS * input & ((1u << BITS) - 1), 0);
    }
};
struct Awq {
    using Word = uint32_t;
    static constexpr int INPUTS = 1;
    static constexpr bool GROUPED = true;
    static __device__ Word load(const TransposedParams& p, int row, int column) {
        return static_cast<const uint32_t*>(p.w)[(long long)row * (p.n / 8) + column / 8];
    }
    static __device__ float number(Word word, int, int column) {
        return byte_number(word >> (column % 8 / 2 * 4 + column % 2 * 16) & 15, 0);
    }
};

__device__ __forceinline__ float factor_of(const TransposedParams& p) { return p.factor == 0 ? 1 : p.factor; }
__device__ __forceinline__ int group_of(const TransposedParams& p, int i) {
    return p.index ? p.index[i] : (p.first_input + i) / p.group_size;
}

// --- naive twin: one thread an output --------------------------------------------------------------------------------

template <class W> __device__ void naive_gemm_transposed(const TransposedParams& p) {
    int j = blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y;
    if (j >= p.n) return;
    float sum = factor_of(p) * vector_at(p.bias, j, 0) + (p.add ? p.out[r * p.out_stride + j] : 0);
    for (int i = 0; i < p.k; i++) {
        float w = W::number(W::load(p, i / W::INPUTS, j), i % W::INPUTS, j);
        if (W::GROUPED) {
            long long at = (long long)group_of(p, i) * p.n + j;
            w = (w - p.zero[at]) * p.scale[at];
        }
        sum += factor_of(p) * p.x[r * p.x_stride + i] * w;
    }
    p.out[r * p.out_stride + j] = sum;
}

// --- one thread an output of Rows rows -------------------------------------------------------------------------------

constexpr int THREADS = 128, DEPTH = 64, AT_ONCE = 4; // inputs in shared memory; words that a thread loads ahead

// Makes weights of codes, for inputs in order: factors are loaded when the group is another one, for all threads at once.
template <class W> struct Weight {
    int group = -1;
    float scale, zero;

    __device__ __forceinline__ float operator()(const TransposedParams& p, float number, int g, int column) {
        if (!W::GROUPED) return number;
        if (g != group) {
            long long at = (long long)g * p.n + column;
            scale = p.scale[at], zero = p.zero[at], group = g;
        }
        return (number - zero) * scale;
    }
};

template <int Rows> __device__ __forceinline__ void add_product(float (&sums)[Rows], float w, const float* xs) {
#pragma unroll
    for (int r = 0; r < Rows; r++) sums[r] = fmaf(w, xs[r], sums[r]);
}

template <class W, int Rows> __device__ void gemm_transposed(const TransposedParams& p) {
    SHARED(float, xs, [DEPTH][Rows]);
    SHARED(int, groups, [DEPTH]);
    int j = blockIdx.x * THREADS + threadIdx.x, first = blockIdx.y * Rows;
    bool inside = within(j, p.n);
    // Threads beyond the last output load what another one needs, and store nothing.
    int column = clamped(j, p.n);
    float sums[Rows], bias = factor_of(p) * vector_at(p.bias, column, 0);
#pragma unroll
    for (int r = 0; r < Rows; r++) sums[r] = p.add ? bias + p.out[clamped(first + r, p.m) * p.out_stride + column] : bias;
    Weight<W> weight;
    for (int k0 = 0; k0 < p.k; k0 += DEPTH) {
        for (int e = threadIdx.x; e < DEPTH * Rows; e += THREADS) {
            int r = first + e / DEPTH, i = k0 + e % DEPTH;
            xs[e % DEPTH][e / DEPTH] = within(r, p.m) && within(i, p.k) ? factor_of(p) * p.x[r * p.x_stride + i] : 0.0f;
        }
        if (W::GROUPED && within(threadIdx.x, DEPTH)) groups[threadIdx.x] = group_of(p, clamped(k0 + threadIdx.x, p.k));
        __syncthreads();
        int depth = min(DEPTH, p.k - k0), i = 0;
        for (; i + AT_ONCE * W::INPUTS <= depth; i += AT_ONCE * W::INPUTS) {
            typename W::Word words[AT_ONCE];
#pragma unroll
            for (int d = 0; d < AT_ONCE; d++) words[d] = W::load(p, (k0 + i) / W::INPUTS + d, column);
#pragma unroll
            for (int d = 0; d < AT_ONCE * W::INPUTS; d++) {
                float number = W::number(words[d / W::INPUTS], d % W::INPUTS, column);
                add_product<Rows>(sums, weight(p, number, groups[i + d], column), xs[i + d]);
            }
        }
        for (; i < depth; i++) {
            float number = W::number(W::load(p, (k0 + i) / W::INPUTS, column), i % W::INPUTS, column);
            add_product<Rows>(sums, weight(p, number, groups[i], column), xs[i]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < Rows; r++)
        if (inside && within(first + r, p.m)) p.out[(first + r) * p.out_stride + j] = sums[r];
}

#define GEMM_TRANSPOSED(ending, W)                                                                                     \
    KERNEL(naive_gemm_transposed##ending, TransposedParams, 128) { naive_gemm_transposed<W>(p); }                      \
    KERNEL(gemm_transposed##ending##_m8, TransposedParams, THREADS) { gemm_transposed<W, 8>(p); }                      \
    KERNEL(gemm_transposed##ending##_m32, TransposedParams, THREADS) { gemm_transposed<W, 32>(p); }
GEMM_TRANSPOSED(, Numbers)
GEMM_TRANSPOSED(_gptq4, Gptq<4>)
GEMM_TRANSPOSED(_gptq8, Gptq<8>)
GEMM_TRANSPOSED(_awq4, Awq)
