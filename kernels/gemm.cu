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
#include "gguf.cuh"
#include "lossless.cuh"

constexpr int WARPS = 8;

__device__ __forceinline__ float epilogue(const GemmParams& p, float sum, int r, int j) {
    int column = p.w.first_row + j;
    if (p.lengths) sum /= p.lengths[column];
    if (p.bias.data) sum += load_element(p.bias.data, column, p.bias.dtype);
    return fmaf(scale_of(p), sum, p.residual ? p.residual[r * p.out_stride + column] : 0.0f);
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

// --- tensor cores ----------------------------------------------------------------------------------------------------

#if HAS_MMA_K16

// A lane's activations for one step: CHUNK consecutive elements of the row `lane / 4` of a group of 8.
template <class E> struct Activations {
    uint4 v[E::CHUNK / 8];
};
template <class E>
__device__ __forceinline__ Activations<E> load_activations(const GemmParams& p, int column, int k0, bool whole) {
    using Operand = typename E::Operand;
    int r = column * 8 + threadIdx.x % 32 / 4, i = k0 + threadIdx.x % 4 * E::CHUNK;
    Activations<E> a = {};
    if (!within(r, p.m) || !within(k0, p.k)) return a;
    const Operand* x = static_cast<const Operand*>(p.x) + r * p.x_stride + i;
#pragma unroll
    for (int s = 0; s < E::CHUNK / 8; s++) {
        if (whole) {
            a.v[s] = load16(x + s * 8);
            continue;
        }
        uint32_t pairs[4];
        for (int j = 0; j < 4; j++) {
            int e = s * 8 + j * 2;
            float low = within(i + e, p.k) ? float(x[e]) : 0.0f, high = within(i + e + 1, p.k) ? float(x[e + 1]) : 0.0f;
            pairs[j] = pack2(low, high, Operand());
        }
        a.v[s] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
    return a;
}

// sums += one step of 16 * Tiles rows by all activations. `w` holds the lane's operands of its two rows in each tile; `x`
// its activations of the first group of 8, and afterwards those of the step at next_k0: they are loaded one step ahead.
template <class E, int Tiles, int Columns>
__device__ __forceinline__ void multiply_step(const GemmParams& p, int k0, int next_k0, bool whole,
                                              const uint32_t (&w)[Tiles][2][E::CHUNK / 2], const float (&scale)[Tiles][2],
                                              Activations<E>& x, float (&sums)[Columns][Tiles][4]) {
    using Operand = typename E::Operand;
    Activations<E> next = load_activations<E>(p, 0, next_k0, whole);
#pragma unroll
    for (int c = 0; c < Columns; c++) {
        if (c > 0) {
            if (!within(c * 8, p.m)) break;
            x = load_activations<E>(p, c, k0, whole);
        }
        float part[Tiles][4];
#pragma unroll
        for (int tile = 0; tile < Tiles; tile++)
#pragma unroll
            for (int e = 0; e < 4; e++) part[tile][e] = E::SCALED ? 0 : sums[c][tile][e];
#pragma unroll
#pragma unroll
        for (int s = 0; s < E::CHUNK / 8; s++)
#pragma unroll
            for (int tile = 0; tile < Tiles; tile++) {
                const uint32_t(&low)[E::CHUNK / 2] = w[tile][0], (&high)[E::CHUNK / 2] = w[tile][1];
                mma(part[tile], {low[4 * s], high[4 * s], low[4 * s + 1], high[4 * s + 1]}, {x.v[s].x, x.v[s].y}, Operand());
                mma(part[tile], {low[4 * s + 2], high[4 * s + 2], low[4 * s + 3], high[4 * s + 3]}, {x.v[s].z, x.v[s].w}, Operand());
            }
#pragma unroll
        for (int tile = 0; tile < Tiles; tile++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                sums[c][tile][e] = E::SCALED ? fmaf(scale[tile][e / 2], part[tile][e], sums[c][tile][e]) : part[tile][e];
    }
    x = next;
}

// Rows of whole steps. A lane begins the loads of DEPTH steps, 128 bytes of weights, before it multiplies the first.
template <class E, int Tiles, int Columns>
__device__ __forceinline__ void multiply_whole(const GemmParams& p, int first, const typename E::OperandTable& table,
                                               float (&sums)[Columns][Tiles][4]) {
    constexpr int BYTES = Tiles * int(sizeof(typename E::Chunk)), DEPTH = BYTES < 64 ? 64 / BYTES : 1, STRIDE = WARPS * STEP<E>;
    int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, piece = threadIdx.x % 4 * E::CHUNK;
    Activations<E> x = load_activations<E>(p, 0, warp * STEP<E>, true);
    for (int k0 = warp * STEP<E>; k0 < p.k; k0 += DEPTH * STRIDE) {
        typename E::Chunk chunks[DEPTH][Tiles][2];
        typename E::LoadedScale scales[DEPTH][Tiles][2];
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            if (!within(k0 + d * STRIDE, p.k)) break;
#pragma unroll
            for (int tile = 0; tile < Tiles; tile++)
#pragma unroll
                for (int h = 0; h < 2; h++)
                    chunks[d][tile][h] = E::load(p.w, p.k, clamped(first + tile * 16 + h * 8 + group, p.n), k0 + d * STRIDE + piece);
        }
#pragma unroll
        for (int d = 0; d < DEPTH && E::SCALED; d++) {
            if (!within(k0 + d * STRIDE, p.k)) break;
#pragma unroll
            for (int tile = 0; tile < Tiles; tile++)
#pragma unroll
                for (int h = 0; h < 2; h++)
                    scales[d][tile][h] = E::load_scale(p.w, p.k, clamped(first + tile * 16 + h * 8 + group, p.n), k0 + d * STRIDE);
        }
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            if (!within(k0 + d * STRIDE, p.k)) break;
            uint32_t w[Tiles][2][E::CHUNK / 2];
            float scale[Tiles][2] = {};
#pragma unroll
            for (int tile = 0; tile < Tiles; tile++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    E::operands(chunks[d][tile][h], table, w[tile][h]);
                    if (E::SCALED) scale[tile][h] = E::scale(scales[d][tile][h], table);
                }
            multiply_step<E, Tiles, Columns>(p, k0 + d * STRIDE, k0 + (d + 1) * STRIDE, true, w, scale, x, sums);
        }
    }
}

// Rows that do not divide into steps: element by element, the scale in the operand.
template <class E, int Tiles, int Columns>
__device__ __forceinline__ void multiply_ragged(const GemmParams& p, int first, float (&sums)[Columns][Tiles][4]) {
    constexpr int STRIDE = WARPS * STEP<E>;
    int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, piece = threadIdx.x % 4 * E::CHUNK;
    float scale[Tiles][2];
#pragma unroll
    for (int tile = 0; tile < Tiles; tile++) scale[tile][0] = scale[tile][1] = 1;
    Activations<E> x = load_activations<E>(p, 0, warp * STEP<E>, false);
    for (int k0 = warp * STEP<E>; k0 < p.k; k0 += STRIDE) {
        uint32_t w[Tiles][2][E::CHUNK / 2];
#pragma unroll
        for (int tile = 0; tile < Tiles; tile++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int row = clamped(first + tile * 16 + h * 8 + group, p.n), i = k0 + piece;
#pragma unroll
                for (int e = 0; e < E::CHUNK; e += 2) {
                    float low = within(i + e, p.k) ? E::at(p.w, p.k, row, i + e) : 0.0f;
                    float high = within(i + e + 1, p.k) ? E::at(p.w, p.k, row, i + e + 1) : 0.0f;
                    w[tile][h][e / 2] = pack2(low, high, typename E::Operand());
                }
            }
        multiply_step<E, Tiles, Columns>(p, k0, k0 + STRIDE, false, w, scale, x, sums);
    }
}

// Columns: how many groups of 8 activation rows there may be. Tiles: groups of 16 weight rows, so that many activations
// are loaded for more weights.
template <class E, int Columns, int Tiles> __device__ void gemm(const GemmParams& p) {
    constexpr int ROWS = 16 * Tiles;
    SHARED(float, partial, [WARPS][8][ROWS + 4]);
    typename E::OperandTable table;
    table.fill(p.w);

    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, first = blockIdx.x * ROWS;
    float sums[Columns][Tiles][4] = {};
    if (whole_steps<E>(p.w, p.k)) {
        multiply_whole<E, Tiles, Columns>(p, first, table, sums);
    } else {
        multiply_ragged<E, Tiles, Columns>(p, first, sums);
    }

#pragma unroll
    for (int c = 0; c < Columns; c++) {
        if (c > 0 && !within(c * 8, p.m)) break;
#pragma unroll
        for (int tile = 0; tile < Tiles; tile++)
#pragma unroll
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

// The products of CHUNK weights with a group of up to 8 rows of activations, from row r0 on.
template <class E>
__device__ __forceinline__ void multiply_chunk(const GemmParams& p, int r0, int i, bool whole, const float (&w)[E::CHUNK],
                                               float scale, float (&sums)[8]) {
#pragma unroll
    for (int r = 0; r < 8; r++) {
        if (!within(r0 + r, p.m)) break;
        const auto* x = static_cast<const typename E::Operand*>(p.x) + (r0 + r) * p.x_stride + i;
        float v[E::CHUNK], part = 0;
        if (whole) {
            load_row(x, v);
        } else {
            for (int e = 0; e < E::CHUNK; e++) v[e] = within(i + e, p.k) ? float(x[e]) : 0.0f;
        }
        for (int e = 0; e < E::CHUNK; e++) part = fmaf(w[e], v[e], part);
        sums[r] = fmaf(scale, part, sums[r]);
    }
}

// A warp takes one row of weights at a time, its lanes take chunks of it in turn, two of which are loaded before the
// first is used; activations in groups of 8, for each of which the row is read again.
template <class E, int Rows> __device__ void simt_gemm(const GemmParams& p) {
    constexpr int DEPTH = 2, STRIDE = 32 * E::CHUNK;
    typename E::ValueTable table;
    table.fill(p.w);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    bool whole = whole_steps<E>(p.w, p.k);
    for (int j = blockIdx.x * Rows + warp; j < min(p.n, (int(blockIdx.x) + 1) * Rows); j += WARPS) {
        for (int r0 = 0; r0 < p.m; r0 += 8) {
            float sums[8] = {};
            for (int i0 = lane * E::CHUNK; i0 < p.k && whole; i0 += DEPTH * STRIDE) {
                typename E::Chunk chunks[DEPTH];
                typename E::LoadedScale scales[DEPTH];
#pragma unroll
                for (int d = 0; d < DEPTH; d++)
                    if (within(i0 + d * STRIDE, p.k)) {
                        chunks[d] = E::load(p.w, p.k, j, i0 + d * STRIDE);
                        scales[d] = E::load_scale(p.w, p.k, j, i0 + d * STRIDE);
                    }
#pragma unroll
                for (int d = 0; d < DEPTH; d++) {
                    if (!within(i0 + d * STRIDE, p.k)) break;
                    float w[E::CHUNK];
                    E::values(chunks[d], table, w);
                    multiply_chunk<E>(p, r0, i0 + d * STRIDE, true, w, E::scale(scales[d], table), sums);
                }
            }
            for (int i = lane * E::CHUNK; i < p.k && !whole; i += STRIDE) {
                float w[E::CHUNK];
                for (int e = 0; e < E::CHUNK; e++) w[e] = within(i + e, p.k) ? E::at(p.w, p.k, j, i + e) : 0.0f;
                multiply_chunk<E>(p, r0, i, false, w, 1, sums);
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
GEMM(nf4d, Nf4d)
GEMM(lossless, Lossless)
GEMM(fp4, Fp4)
GEMM(int8z, Int8Zero)
GEMM(offset8, Offset8)
GEMM(offset4, Offset4)
GEMM(mxfp4, Mxfp4)
GEMM(q8_0, Q8_0)
GEMM(q4_0, Q4_0)
GEMM(q4_1, Q4_1)
GEMM(q5_0, Q5_0)
GEMM(q5_1, Q5_1)
GEMM(q4_k, Q4K)
GEMM(q5_k, Q5K)
GEMM(q6_k, Q6K)
KERNEL(naive_gemm_f32, GemmParams, 256) { naive_gemm<F32>(p); }
KERNEL(gemm_f32_m8, GemmParams, 256) { simt_gemm<F32, 16>(p); }
KERNEL(gemm_f32_m64, GemmParams, 256) { simt_gemm<F32, 32>(p); }
