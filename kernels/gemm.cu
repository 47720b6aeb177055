// Matrix multiply for decode and verification: up to 64 rows of activations by a tile of weights in any encoding.
// See GemmParams. (Longer prompts go through another file.)
//
// Memory bound: each weight is read once, so all is arranged round that. A block has 8 warps and 16 or 32 rows of weights;
// its warps take the steps of k in turn, and what they get is added in the order of the warps. Weights are the 16-row
// operand of the mma and go from global memory to registers: a lane loads a chunk of consecutive elements of a row,
// where the mma wants pairs from all over. A dot product does not care about the order of k, so the activations are
// permuted in the same way: a lane loads the consecutive elements at the same place. They are small, and wanted once by a
// block, so they come through the L1 cache; a copy in shared memory would be read once as well.
//
// The order of all additions follows from k and the encoding: a row of activations gives the same bits alone and among 63.
#include "dequant.cuh"

constexpr int WARPS = 8;

__device__ __forceinline__ float epilogue(const GemmParams& p, float sum, int r, int j) {
    int column = p.w.first_row + j;
    if (p.bias.data) sum += load_element(p.bias.data, column, p.bias.dtype);
    if (p.residual) sum += p.residual[r * p.out_stride + column];
    return sum;
}
__device__ __forceinline__ void store_result(const GemmParams& p, float sum, int r, int j) {
    p.out[r * p.out_stride + p.w.first_row + j] = epilogue(p, sum, r, j);
}

// --- naive twin: one thread an output, operands rounded as the fast kernel's are ---------------------------------------

template <class E> __device__ void naive_gemm(const GemmParams& p) {
    using Operand = typename E::Operand;
    int j = blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y;
    if (j >= p.n) return;
    const Operand* x = static_cast<const Operand*>(p.x) + r * p.x_stride;
    float sum = 0;
    for (int i = 0; i < p.k; i++) sum += float(x[i]) * float(Operand(E::at(p.w, p.k, j, i)));
    store_result(p, sum, r, j);
}

// --- operands --------------------------------------------------------------------------------------------------------

// Elements [i, i + 8) of a row of activations, zero where there are none.
template <class T> __device__ __forceinline__ uint4 activations8(const GemmParams& p, int r, int i, bool whole) {
    uint4 v = make_uint4(0, 0, 0, 0);
    if (!within(r, p.m)) return v;
    const T* x = static_cast<const T*>(p.x) + r * p.x_stride + i;
    if (whole) return load16(x);
    uint32_t o[4];
    for (int j = 0; j < 4; j++) {
        float low = within(i + 2 * j, p.k) ? float(x[2 * j]) : 0.0f, high = within(i + 2 * j + 1, p.k) ? float(x[2 * j + 1]) : 0.0f;
        o[j] = pack2(low, high, T());
    }
    return make_uint4(o[0], o[1], o[2], o[3]);
}

// --- tensor cores ----------------------------------------------------------------------------------------------------

#if HAS_MMA_K16

// The chunks and scales of one step for the two rows of a lane in each of `Tiles` groups of 16 rows.
template <class E, int Tiles> struct Step {
    typename E::Chunk chunk[Tiles][2];
    float scale[Tiles][2];
};

template <class E, int Tiles>
__device__ __forceinline__ void load_step(const GemmParams& p, int first, int k0, Step<E, Tiles>& step) {
    int group = threadIdx.x % 32 / 4, i = k0 + threadIdx.x % 4 * E::CHUNK;
    for (int tile = 0; tile < Tiles; tile++)
        for (int h = 0; h < 2; h++) {
            int row = first + tile * 16 + h * 8 + group;
            step.chunk[tile][h] = {};
            step.scale[tile][h] = 0;
            if (!within(row, p.n)) continue;
            step.chunk[tile][h] = E::load(p.w, p.k, row, i);
            if (E::SCALED) step.scale[tile][h] = E::scale(p.w, p.k, row, k0);
        }
}

// sums += one step of 16 * Tiles rows by all activations. `a` holds the lane's operands of its two rows in each tile.
template <class E, int Tiles, int Columns>
__device__ __forceinline__ void multiply_step(const GemmParams& p, int k0, bool whole, const uint32_t (&a)[Tiles][2][E::CHUNK / 2],
                                              const float (&scale)[Tiles][2], float (&sums)[Columns][Tiles][4]) {
    using Operand = typename E::Operand;
    int group = threadIdx.x % 32 / 4, i = k0 + threadIdx.x % 4 * E::CHUNK;
#pragma unroll
    for (int c = 0; c < Columns; c++) {
        if (c > 0 && !within(c * 8, p.m)) break;
        float part[Tiles][4];
        for (int tile = 0; tile < Tiles; tile++)
            for (int e = 0; e < 4; e++) part[tile][e] = E::SCALED ? 0 : sums[c][tile][e];
#pragma unroll
        for (int s = 0; s < E::CHUNK / 8; s++) {
            uint4 x = activations8<Operand>(p, c * 8 + group, i + s * 8, whole);
            for (int tile = 0; tile < Tiles; tile++) {
                const uint32_t(&low)[E::CHUNK / 2] = a[tile][0], (&high)[E::CHUNK / 2] = a[tile][1];
                mma(part[tile], {low[4 * s], high[4 * s], low[4 * s + 1], high[4 * s + 1]}, {x.x, x.y}, Operand());
                mma(part[tile], {low[4 * s + 2], high[4 * s + 2], low[4 * s + 3], high[4 * s + 3]}, {x.z, x.w}, Operand());
            }
        }
        for (int tile = 0; tile < Tiles; tile++)
            for (int e = 0; e < 4; e++)
                sums[c][tile][e] = E::SCALED ? fmaf(scale[tile][e / 2], part[tile][e], sums[c][tile][e]) : part[tile][e];
    }
}

// Columns: how many groups of 8 activation rows there may be. Tiles: groups of 16 weight rows, so that many activations
// are loaded for more weights.
template <class E, int Columns, int Tiles> __device__ void gemm(const GemmParams& p) {
    constexpr int ROWS = 16 * Tiles, DEPTH = 64 / (Tiles * int(sizeof(typename E::Chunk))); // 128 bytes of weights in flight a lane
    SHARED(float, partial, [WARPS][8][ROWS + 4]);
    typename E::OperandTable table;
    table.fill();

    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, first = blockIdx.x * ROWS;
    float sums[Columns][Tiles][4] = {};
    uint32_t a[Tiles][2][E::CHUNK / 2];
    if (whole_steps<E>(p.w, p.k)) {
        for (int k0 = warp * STEP<E>; k0 < p.k; k0 += DEPTH * WARPS * STEP<E>) {
            Step<E, Tiles> steps[DEPTH];
#pragma unroll
            for (int d = 0; d < DEPTH; d++)
                if (within(k0 + d * WARPS * STEP<E>, p.k)) load_step<E, Tiles>(p, first, k0 + d * WARPS * STEP<E>, steps[d]);
#pragma unroll
            for (int d = 0; d < DEPTH; d++) {
                if (!within(k0 + d * WARPS * STEP<E>, p.k)) break;
                for (int tile = 0; tile < Tiles; tile++)
                    for (int h = 0; h < 2; h++) E::operands(steps[d].chunk[tile][h], table, a[tile][h]);
                multiply_step<E, Tiles, Columns>(p, k0 + d * WARPS * STEP<E>, true, a, steps[d].scale, sums);
            }
        }
    } else {
        // Rows that do not divide into steps: element by element, the scale in the operand.
        float one[Tiles][2];
        for (int tile = 0; tile < Tiles; tile++) one[tile][0] = one[tile][1] = 1;
        for (int k0 = warp * STEP<E>; k0 < p.k; k0 += WARPS * STEP<E>) {
            for (int tile = 0; tile < Tiles; tile++)
                for (int h = 0; h < 2; h++) {
                    int row = first + tile * 16 + h * 8 + group, i = k0 + lane % 4 * E::CHUNK;
                    for (int e = 0; e < E::CHUNK / 2; e++) {
                        float v[2];
                        for (int c = 0; c < 2; c++)
                            v[c] = within(row, p.n) && within(i + 2 * e + c, p.k) ? E::at(p.w, p.k, row, i + 2 * e + c) : 0.0f;
                        a[tile][h][e] = pack2(v[0], v[1], typename E::Operand());
                    }
                }
            multiply_step<E, Tiles, Columns>(p, k0, false, a, one, sums);
        }
    }

#pragma unroll
    for (int c = 0; c < Columns; c++) {
        if (c > 0 && !within(c * 8, p.m)) break;
        for (int tile = 0; tile < Tiles; tile++)
            for (int e = 0; e < 4; e++) partial[warp][lane % 4 * 2 + e % 2][tile * 16 + group + e / 2 * 8] = sums[c][tile][e];
        __syncthreads();
        for (int o = threadIdx.x; o < 8 * ROWS; o += WARPS * 32) {
            int r = c * 8 + o / ROWS, j = first + o % ROWS;
            float sum = 0;
            for (int w = 0; w < WARPS; w++) sum += partial[w][o / ROWS][o % ROWS];
            if (within(r, p.m) && within(j, p.n)) store_result(p, sum, r, j);
        }
        __syncthreads();
    }
}

#endif

// --- without tensor cores: the twin for sm_75, and float32 everywhere --------------------------------------------------

// `Count` consecutive activations in float32, by 16-byte loads.
template <int Count> __device__ __forceinline__ void load_row(const float* x, float (&v)[Count]) {
    for (int e = 0; e < Count; e += 4) {
        uint4 c = load16(x + e);
        v[e] = __uint_as_float(c.x), v[e + 1] = __uint_as_float(c.y);
        v[e + 2] = __uint_as_float(c.z), v[e + 3] = __uint_as_float(c.w);
    }
}
template <class T, int Count> __device__ __forceinline__ void load_row(const T* x, float (&v)[Count]) {
    for (int e = 0; e < Count; e += 8) {
        uint4 c = load16(x + e);
        uint32_t words[4] = {c.x, c.y, c.z, c.w};
        for (int j = 0; j < 4; j++) {
            float2 pair = unpack2(words[j], T());
            v[e + 2 * j] = pair.x, v[e + 2 * j + 1] = pair.y;
        }
    }
}

// A warp takes one row of weights at a time, its lanes take chunks of it in turn; activations in groups of 8, for each of
// which the row is read again.
template <class E, int Rows> __device__ void simt_gemm(const GemmParams& p) {
    using Operand = typename E::Operand;
    typename E::ValueTable table;
    table.fill();
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    bool whole = whole_steps<E>(p.w, p.k);
    for (int j = blockIdx.x * Rows + warp; j < min(p.n, (int(blockIdx.x) + 1) * Rows); j += WARPS) {
        for (int r0 = 0; r0 < p.m; r0 += 8) {
            float sums[8] = {};
            for (int i = lane * E::CHUNK; i < p.k; i += 32 * E::CHUNK) {
                float v[E::CHUNK], scale = 1;
                if (whole) {
                    E::values(E::load(p.w, p.k, j, i), table, v);
                    if (E::SCALED) scale = E::scale(p.w, p.k, j, i);
                } else {
                    for (int e = 0; e < E::CHUNK; e++) v[e] = within(i + e, p.k) ? E::at(p.w, p.k, j, i + e) : 0.0f;
                }
#pragma unroll
                for (int r = 0; r < 8; r++) {
                    if (!within(r0 + r, p.m)) break;
                    const Operand* x = static_cast<const Operand*>(p.x) + (r0 + r) * p.x_stride + i;
                    float activations[E::CHUNK], part = 0;
                    if (whole) {
                        load_row(x, activations);
                    } else {
                        for (int e = 0; e < E::CHUNK; e++) activations[e] = within(i + e, p.k) ? float(x[e]) : 0.0f;
                    }
                    for (int e = 0; e < E::CHUNK; e++) part = fmaf(v[e], activations[e], part);
                    sums[r] = fmaf(scale, part, sums[r]);
                }
            }
#pragma unroll
            for (int r = 0; r < 8; r++) {
                float sum = warp_sum(sums[r]);
                if (lane == 0 && within(r0 + r, p.m)) store_result(p, sum, r0 + r, j);
            }
        }
    }
}

// --- entry points ----------------------------------------------------------------------------------------------------

#if HAS_MMA_K16
#define GEMM(encoding, E)                                                                                              \
    KERNEL(naive_gemm_##encoding, GemmParams, 256) { naive_gemm<E>(p); }                                               \
    KERNEL(gemm_##encoding##_m8, GemmParams, 256) { gemm<E, 1, 1>(p); }                                                \
    KERNEL(gemm_##encoding##_m64, GemmParams, 256) { gemm<E, 8, 2>(p); }
#else
#define GEMM(encoding, E)                                                                                              \
    KERNEL(naive_gemm_##encoding, GemmParams, 256) { naive_gemm<E>(p); }                                               \
    KERNEL(gemm_##encoding##_m8, GemmParams, 256) { simt_gemm<E, 16>(p); }                                             \
    KERNEL(gemm_##encoding##_m64, GemmParams, 256) { simt_gemm<E, 32>(p); }
#endif
GEMM(f16, F16)
GEMM(bf16, Bf16)
GEMM(int8, Int8)
GEMM(fp8, Fp8)
GEMM(nf4, Nf4)
KERNEL(naive_gemm_f32, GemmParams, 256) { naive_gemm<F32>(p); }
KERNEL(gemm_f32_m8, GemmParams, 256) { simt_gemm<F32, 16>(p); }
KERNEL(gemm_f32_m64, GemmParams, 256) { simt_gemm<F32, 32>(p); }
