// Matrix multiply for prefill: any number of rows of activations by a tile of weights in any encoding. See PrefillParams.
//
// Compute bound, so all is arranged round the tensor cores. A block of 4 warps makes 128 x 128 outputs, a warp 64 x 64 of
// them, over slices of 64 of k. Two stages of shared memory hold a slice each of activations and of weights: 16-bit numbers
// are copied there by cp.async; all others are loaded into registers a slice earlier, decoded between the multiplies, and
// rounded once, as number times scale. The order of all additions is that of k: a row gives the same bits wherever and
// beside whatever it is computed.
//
// Rows that do not divide into steps of their encoding (whole_steps; src/launch/gemm_prefill.rs sees to that), float32, and
// sm_75 go without tensor cores, in float32.
#include "gguf.cuh"
#include "lossless.cuh"

constexpr int THREADS = 128, TILE = 128, PIECES = 8; // PIECES of 8 16-bit numbers are a row of a slice
constexpr int SLICE = 8 * PIECES;
constexpr int GROUP = 16; // tiles of activations that are multiplied by one tile of weights before the next: both stay in L2

__device__ __forceinline__ int source_row(const PrefillParams& p, int r) { return p.gather ? p.gather[r] : r; }

// --- naive twin: one thread an output, operands rounded as the fast kernel's are ---------------------------------------

template <class E> __device__ void naive_gemm_prefill(const PrefillParams& prefill) {
    using Operand = typename E::Operand;
    const GemmParams& p = prefill.product;
    int j = blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y, column = p.w.first_row + j;
    if (j >= p.n) return;
    const Operand* x = static_cast<const Operand*>(p.x) + source_row(prefill, r) * p.x_stride;
    float sum = 0;
    for (int i = 0; i < p.k; i++) sum += float(x[i]) * float(Operand(E::at(p.w, p.k, j, i)));
    long long at = r * p.out_stride + column;
    if (p.lengths) sum /= p.lengths[column];
    sum = (sum + vector_at(p.bias, column, 0)) * scale_of(p);
    if (p.residual) sum += p.residual[at];
    if (prefill.out16) {
        store_element(prefill.out16, at, prefill.out16_dtype, sum);
    } else {
        p.out[at] = sum;
    }
}

// --- blocks and results ----------------------------------------------------------------------------------------------

// The first row (x) and the first column (y) of the block's outputs.
__device__ __forceinline__ int2 tile_of_block(const GemmParams& p) {
    int down = ceil_div(p.m, TILE), across = ceil_div(p.n, TILE);
    int first = blockIdx.x / (GROUP * across) * GROUP, rest = blockIdx.x % (GROUP * across), rows = min(GROUP, down - first);
    return make_int2((first + rest % rows) * TILE, rest / rows * TILE);
}

// Where sums wait to be stored, so that a warp stores whole lines: rows of TILE floats, permuted so that neither the writing
// of fragments nor the reading of rows has bank conflicts.
__device__ __forceinline__ int staged(int row, int column) { return row * TILE + (column ^ (row & 3) * 8); }

// row[i .. i + 4) of 16-bit numbers, nothing at and beyond n.
__device__ __forceinline__ void store4_16bit(void* out, long long row, int i, int n, Dtype dtype, float4 v) {
    unsigned short* to = static_cast<unsigned short*>(out) + row + i;
    if (reinterpret_cast<uintptr_t>(to) % 8 == 0 && within(i + 3, n)) {
        bool half = dtype == DTYPE_F16;
        *reinterpret_cast<uint2*>(to) = make_uint2(half ? pack2(v.x, v.y, __half()) : pack2(v.x, v.y, __nv_bfloat16()),
                                                   half ? pack2(v.z, v.w, __half()) : pack2(v.z, v.w, __nv_bfloat16()));
        return;
    }
    float values[4] = {v.x, v.y, v.z, v.w};
    for (int c = 0; c < 4; c++)
        if (within(i + c, n)) store_element(to, c, dtype, values[c]);
}

// Stores `rows` rows of staged sums, of which the first is row `first` of the product, with what is to be added.
__device__ __forceinline__ void store_rows(const PrefillParams& prefill, const float* sums, int first, int rows, int first_column) {
    const GemmParams& p = prefill.product;
    int column = threadIdx.x % (TILE / 4) * 4, j = first_column + column;
    float bias[4], length[4], scale = scale_of(p);
    for (int c = 0; c < 4; c++) {
        bool inside = within(j + c, p.n);
        bias[c] = inside ? vector_at(p.bias, p.w.first_row + j + c, 0) : 0.0f;
        length[c] = inside && p.lengths ? p.lengths[p.w.first_row + j + c] : 1.0f;
    }
    bool aligned = rows_aligned(p.out + p.w.first_row, p.out_stride);
    bool residual_aligned = rows_aligned(p.residual + p.w.first_row, p.out_stride);
    for (int row = threadIdx.x / (TILE / 4); row < rows; row += THREADS / (TILE / 4)) {
        if (!within(first + row, p.m)) break;
        float4 v = *reinterpret_cast<const float4*>(&sums[staged(row, column)]);
        if (p.lengths) v = make_float4(v.x / length[0], v.y / length[1], v.z / length[2], v.w / length[3]);
        v = make_float4(v.x + bias[0], v.y + bias[1], v.z + bias[2], v.w + bias[3]);
        v = make_float4(v.x * scale, v.y * scale, v.z * scale, v.w * scale);
        long long at = (first + row) * p.out_stride + p.w.first_row;
        if (p.residual) {
            float4 before = load4(p.residual + at, j, p.n, residual_aligned);
            v = make_float4(v.x + before.x, v.y + before.y, v.z + before.z, v.w + before.w);
        }
        if (prefill.out16) {
            store4_16bit(prefill.out16, at, j, p.n, prefill.out16_dtype, v);
        } else {
            store4(p.out + at, j, p.n, aligned, v);
        }
    }
}

// --- tensor cores ----------------------------------------------------------------------------------------------------

#if HAS_MMA_K16

constexpr int STAGE = TILE * PIECES; // in pieces
constexpr int COPIES = STAGE / THREADS;

// Begins to copy the slice from k0 on of 128 `rows` of 16-bit numbers, zero at and beyond k. A thread copies the same piece of
// every sixteenth row.
__device__ __forceinline__ void copy_slice(uint4* stage, const void* data, uint32_t row_bytes, const int* rows, int k0, int k) {
    int piece = threadIdx.x % PIECES, i = k0 + piece * 8, bytes = within(i, k) ? 16 : 0;
    const char* from = static_cast<const char*>(data) + (long long)i * 2;
#pragma unroll
    for (int c = 0; c < COPIES; c++) {
        int row = threadIdx.x / PIECES + c * (THREADS / PIECES);
        cp_async16(&stage[row * PIECES + swizzle(row, piece)], from + uint64_t(uint32_t(rows[row])) * row_bytes, bytes);
    }
}

// A thread's part of an undecoded slice: 16 numbers, a chunk or two, in each of the rows thread / 4, 32 + thread / 4, … Part c of
// slice s is the thread's part 4 s + c, and is loaded AHEAD parts before it is decoded: as many as there are registers for.
constexpr int PARTS = 4;
template <class E> struct Undecoded {
    static constexpr int NUMBERS = TILE * SLICE / THREADS / PARTS, CHUNKS = NUMBERS / E::CHUNK;
    static_assert(SLICE % STEP<E> == 0 && CHUNKS * E::CHUNK == NUMBERS, "a slice is whole steps, a part whole chunks");
    static_assert(!E::SCALED || STEP<E> == SLICE, "a slice has one scale");
    static constexpr int AHEAD = sizeof(typename E::Chunk) <= 16 ? 4 : 1;
    typename E::Chunk chunk[AHEAD][CHUNKS];
    typename E::LoadedScale scale[AHEAD];

    __device__ __forceinline__ void load(const GemmParams& p, const int* rows, int k0, int c) {
        int row = rows[c * (TILE / PARTS) + threadIdx.x / 4];
#pragma unroll
        for (int j = 0; j < CHUNKS; j++)
            chunk[c % AHEAD][j] = E::load(p.w, p.k, row, k0 + threadIdx.x % 4 * NUMBERS + j * E::CHUNK);
        scale[c % AHEAD] = E::load_scale(p.w, p.k, row, k0);
    }
    __device__ __forceinline__ void decode(uint4* stage, const typename E::ValueTable& table, int c) const {
        int row = c * (TILE / PARTS) + threadIdx.x / 4, piece = threadIdx.x % 4 * (NUMBERS / 8);
        uint32_t o[CHUNKS][E::CHUNK / 2];
#pragma unroll
        for (int j = 0; j < CHUNKS; j++) {
            if constexpr (E::SCALED) {
                float v[E::CHUNK], s = E::scale(scale[c % AHEAD], table);
                E::values(chunk[c % AHEAD][j], table, v);
                for (int i = 0; i < E::CHUNK / 2; i++) o[j][i] = pack2(v[2 * i] * s, v[2 * i + 1] * s, typename E::Operand());
            } else {
                E::operands(chunk[c % AHEAD][j], table, o[j]);
            }
        }
#pragma unroll
        for (int h = 0; h < NUMBERS / 8; h++) {
            const uint32_t* eight = &o[h * 8 / E::CHUNK][h * 8 % E::CHUNK / 2];
            stage[row * PIECES + swizzle(row, piece + h)] = make_uint4(eight[0], eight[1], eight[2], eight[3]);
        }
    }
};
// Nothing, where slices are copied.
struct Copied {
    static constexpr int AHEAD = PARTS;
    __device__ __forceinline__ void load(const GemmParams&, const int*, int, int) {}
    template <class Table> __device__ __forceinline__ void decode(uint4*, const Table&, int) const {}
};
template <class E, bool Decoded> struct AheadOf { using Type = Copied; };
template <class E> struct AheadOf<E, true> { using Type = Undecoded<E>; };

// A warp's operands, 16 of k at a time: 64 rows of activations, 64 rows of weights. The next ones are loaded during a
// multiply, those of activations over the ones that are done with.
struct Operands {
    uint32_t x[4][4], w[2][4][4];

    __device__ __forceinline__ void load_x(const uint4* xs, int s, int i) {
        int lane = threadIdx.x % 32, row = threadIdx.x / 64 * 64 + lane % 16, piece = 2 * s + lane / 16;
        ldmatrix_x4(x[i], &xs[(row + i * 16) * PIECES + swizzle(row, piece)]);
    }
    __device__ __forceinline__ void load_w(const uint4* ws, int s) {
        int lane = threadIdx.x % 32, row = threadIdx.x / 32 % 2 * 64 + lane / 16 * 8 + lane % 8, piece = 2 * s + lane / 8 % 2;
#pragma unroll
        for (int i = 0; i < 4; i++) ldmatrix_x4(w[s % 2][i], &ws[(row + i * 16) * PIECES + swizzle(row, piece)]);
    }
    // Adds the product of step s of a slice, and loads step `next_s` of `xs` and `ws`.
    template <class T>
    __device__ __forceinline__ void multiply(float (&sums)[4][8][4], int s, const uint4* xs, const uint4* ws, int next_s, T) {
        load_w(ws, next_s);
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const uint32_t(&pair)[4] = w[s % 2][j / 2];
                mma(sums[i][j], x[i], {pair[j % 2 * 2], pair[j % 2 * 2 + 1]}, T());
            }
            load_x(xs, next_s, i);
        }
    }
};

template <class E> __device__ void tensor_gemm(const PrefillParams& prefill) {
    using Operand = typename E::Operand;
    const GemmParams& p = prefill.product;
    DYN_SMEM(uint4, memory); // [2 stages][activations, weights][128 rows][8 pieces]
    typename E::ValueTable table;
    table.fill(p.w);

    int2 first = tile_of_block(p);
    // By way of a shuffle, so that the compiler sees that lanes do not part ways over it.
    int warp = __shfl_sync(ALL_LANES, int(threadIdx.x / 32), 0), slices = ceil_div(p.k, SLICE);
    bool active = within(first.x + warp / 2 * 64, p.m) && within(first.y + warp % 2 * 64, p.n);
    // The rows of x and of weights that the block multiplies; beyond the last one that one again, for results that nobody
    // stores. In shared memory because what the compiler would derive from them early takes too many registers.
    SHARED(int, x_rows, [TILE]);
    SHARED(int, w_rows, [TILE]);
    x_rows[threadIdx.x] = source_row(prefill, clamped(first.x + threadIdx.x, p.m));
    w_rows[threadIdx.x] = clamped(first.y + threadIdx.x, p.n);
    __syncthreads();
    auto x_stage = [&](int slice) { return memory + slice % 2 * 2 * STAGE; };
    auto w_stage = [&](int slice) { return memory + slice % 2 * 2 * STAGE + STAGE; };
    auto copy = [&](int slice) {
        if (within(slice, slices)) {
            copy_slice(x_stage(slice), p.x, uint32_t(p.x_stride) * 2, x_rows, slice * SLICE, p.k);
            if (!E::DECODED) copy_slice(w_stage(slice), p.w.data, uint32_t(p.k) * 2, w_rows, slice * SLICE, p.k);
        }
        cp_async_commit();
    };
    using Ahead = typename AheadOf<E, E::DECODED>::Type;
    Ahead ahead;
    // Part c of a slice from registers to its stage; the one AHEAD after it takes its place. (The last slice is decoded once
    // more than it is used.)
    auto refill = [&](int slice, int c) {
        ahead.decode(w_stage(slice), table, c);
        int next = c + Ahead::AHEAD;
        ahead.load(p, w_rows, clamped(slice + next / PARTS, slices) * SLICE, next % PARTS);
    };

    copy(0);
    copy(1);
    for (int c = 0; c < Ahead::AHEAD; c++) ahead.load(p, w_rows, 0, c);
    for (int c = 0; c < PARTS; c++) refill(0, c);
    refill(1, 0);
    cp_async_wait<1>();
    __syncthreads();
    float sums[4][8][4] = {};
    Operands operands;
    if (active) {
        operands.load_w(w_stage(0), 0);
        for (int i = 0; i < 4; i++) operands.load_x(x_stage(0), 0, i);
    }
    for (int slice = 0; slice < slices; slice++) {
#pragma unroll
        for (int s = 0; s < 4; s++) {
            int next = slice + (s + 1) / 4;
            if (s == 3) {
                // The next slice is there for all to see; and all have taken from this one's stage what they need.
                cp_async_wait<0>();
                __syncthreads();
                copy(slice + 2);
            }
            if (active) {
                operands.multiply(sums, s, x_stage(next), w_stage(next), (s + 1) % 4, Operand());
                refill(next + 1, (s + 1) % 4);
            } else {
                refill(next + 1, (s + 1) % 4);
            }
        }
    }

    __syncthreads();
    float* results = reinterpret_cast<float*>(memory);
    int lane = threadIdx.x % 32, row = warp / 2 * 64 + lane / 4, column = warp % 2 * 64 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                *reinterpret_cast<float2*>(&results[staged(row + i * 16 + h * 8, column + j * 8)]) =
                    make_float2(sums[i][j][2 * h], sums[i][j][2 * h + 1]);
    __syncthreads();
    store_rows(prefill, results, first.x, TILE, first.y);
}

#endif

// --- without tensor cores --------------------------------------------------------------------------------------------

constexpr int DEPTH = 8, ROW = TILE + 4; // a slice of k, and the floats from one k to the next: rows lie side by side

// A thread makes 16 x 8 outputs: rows 32 q + 4 (thread / 16) + 0 … 3, columns 64 q + 4 (thread % 16) + 0 … 3.
template <class E> __device__ void simt_gemm(const PrefillParams& prefill) {
    using Operand = typename E::Operand;
    const GemmParams& p = prefill.product;
    DYN_SMEM(float, memory); // [2 stages][activations, weights][8 of k][128 rows and a gap]
    int2 first = tile_of_block(p);
    int i = threadIdx.x % DEPTH, row = threadIdx.x / DEPTH, down = threadIdx.x / 16 * 4, across = threadIdx.x % 16 * 4;

    // What this thread fetches of a slice: element i of every sixteenth row.
    constexpr int ROWS = THREADS / DEPTH;
    float x[DEPTH], w[DEPTH];
    auto fetch = [&](int k0) {
#pragma unroll
        for (int c = 0; c < DEPTH; c++) {
            int r = first.x + row + c * ROWS, j = first.y + row + c * ROWS;
            bool inside = within(k0 + i, p.k);
            x[c] = inside && within(r, p.m)
                       ? float(static_cast<const Operand*>(p.x)[source_row(prefill, r) * p.x_stride + k0 + i]) : 0.0f;
            w[c] = inside && within(j, p.n) ? E::at(p.w, p.k, j, k0 + i) : 0.0f;
        }
    };
    auto put = [&](int stage) {
        float* xs = memory + stage * 2 * DEPTH * ROW + i * ROW + row;
#pragma unroll
        for (int c = 0; c < DEPTH; c++) xs[c * ROWS] = x[c], xs[DEPTH * ROW + c * ROWS] = w[c];
    };

    float sums[4][4][8] = {};
    fetch(0);
    put(0);
    __syncthreads();
    int stage = 0;
    for (int k0 = 0; k0 < p.k; k0 += DEPTH, stage ^= 1) {
        fetch(k0 + DEPTH);
        const float* xs = memory + stage * 2 * DEPTH * ROW + down;
        const float* ws = memory + stage * 2 * DEPTH * ROW + DEPTH * ROW + across;
#pragma unroll 4
        for (int k = 0; k < DEPTH; k++) {
            float4 low = *reinterpret_cast<const float4*>(ws + k * ROW), high = *reinterpret_cast<const float4*>(ws + k * ROW + 64);
            float b[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
            for (int q = 0; q < 4; q++) {
                float4 v = *reinterpret_cast<const float4*>(xs + k * ROW + q * 32);
                float a[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                for (int h = 0; h < 4; h++)
#pragma unroll
                    for (int c = 0; c < 8; c++) sums[q][h][c] = fmaf(a[h], b[c], sums[q][h][c]);
            }
        }
        put(stage ^ 1);
        __syncthreads();
    }

#pragma unroll
    for (int q = 0; q < 4; q++) {
#pragma unroll
        for (int h = 0; h < 4; h++) {
            const float* v = sums[q][h];
            *reinterpret_cast<float4*>(&memory[staged(down + h, across)]) = make_float4(v[0], v[1], v[2], v[3]);
            *reinterpret_cast<float4*>(&memory[staged(down + h, across + 64)]) = make_float4(v[4], v[5], v[6], v[7]);
        }
        __syncthreads();
        store_rows(prefill, memory, first.x + q * 32, 32, first.y);
        __syncthreads();
    }
}

// --- entry points ----------------------------------------------------------------------------------------------------

// Kernels of their own: in one with the tensor cores', the compiler runs out of registers for both.
#if HAS_MMA_K16
#define TENSOR_GEMM tensor_gemm
#else
#define TENSOR_GEMM simt_gemm
#endif
#define GEMM_PREFILL(encoding, E)                                                                                      \
    KERNEL(naive_gemm_prefill_##encoding, PrefillParams, 256) { naive_gemm_prefill<E>(p); }                            \
    KERNEL(gemm_prefill_##encoding##_simt, PrefillParams, THREADS) { simt_gemm<E>(p); }
#define GEMM_PREFILL_TENSOR(encoding, E)                                                                               \
    GEMM_PREFILL(encoding, E)                                                                                          \
    KERNEL(gemm_prefill_##encoding, PrefillParams, THREADS) { TENSOR_GEMM<E>(p); }
GEMM_PREFILL(f32, F32)
GEMM_PREFILL_TENSOR(f16, F16)
GEMM_PREFILL_TENSOR(bf16, Bf16)
GEMM_PREFILL_TENSOR(int8, Int8)
GEMM_PREFILL_TENSOR(fp8, Fp8)
GEMM_PREFILL_TENSOR(nf4, Nf4)
GEMM_PREFILL_TENSOR(nf4d, Nf4d)
GEMM_PREFILL_TENSOR(lossless, Lossless)
GEMM_PREFILL_TENSOR(fp4, Fp4)
GEMM_PREFILL_TENSOR(int8z, Int8Zero)
GEMM_PREFILL_TENSOR(offset8, Offset8)
GEMM_PREFILL_TENSOR(offset4, Offset4)
GEMM_PREFILL_TENSOR(mxfp4, Mxfp4)
GEMM_PREFILL_TENSOR(q8_0, Q8_0)
GEMM_PREFILL_TENSOR(q4_0, Q4_0)
GEMM_PREFILL_TENSOR(q4_1, Q4_1)
GEMM_PREFILL_TENSOR(q5_0, Q5_0)
GEMM_PREFILL_TENSOR(q5_1, Q5_1)
GEMM_PREFILL_TENSOR(q4_k, Q4K)
GEMM_PREFILL_TENSOR(q5_k, Q5K)
GEMM_PREFILL_TENSOR(q6_k, Q6K)
