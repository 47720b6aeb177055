// Rows picked by number, from one dtype, from blocks of GGUF or from packed bfloat16 to another, scaled on the way: see
// ConvertParams.
//
// A thread has eight elements: 16 bytes of a 16-bit row, two times 16 of a float32 one. Of GGUF's blocks it has sixteen.
#include "gguf.cuh"
#include "lossless.cuh"

// --- naive twin: one thread an element -------------------------------------------------------------------------------

KERNEL(naive_convert, ConvertParams, 128) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (long long)p.rows * p.cols) return;
    long long row = i / p.cols, column = i % p.cols, from = p.ids ? p.ids[row] : row;
    float v = load_element(p.in, from * p.in_stride + column, p.in_dtype);
    store_element(p.out, row * p.out_stride + column, p.out_dtype, v * p.scale);
}

// --- one thread eight elements ---------------------------------------------------------------------------------------

__device__ __forceinline__ bool rows_aligned(const void* p, long long stride, Dtype dtype) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride * (dtype == DTYPE_F32 ? 4 : 2) % 16 == 0;
}

__device__ __forceinline__ void load8(float (&v)[8], const void* p, long long at, Dtype dtype) {
    if (dtype == DTYPE_F32) {
        const float* in = static_cast<const float*>(p) + at;
        uint4 low = load16(in), high = load16(in + 4);
        unsigned bits[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        for (int i = 0; i < 8; i++) v[i] = __uint_as_float(bits[i]);
        return;
    }
    uint4 raw = load16(static_cast<const uint16_t*>(p) + at);
    unsigned bits[4] = {raw.x, raw.y, raw.z, raw.w};
    for (int i = 0; i < 4; i++) {
        float2 two = dtype == DTYPE_F16 ? unpack2(bits[i], __half()) : unpack2(bits[i], __nv_bfloat16());
        v[2 * i] = two.x;
        v[2 * i + 1] = two.y;
    }
}

__device__ __forceinline__ void store8(void* p, long long at, Dtype dtype, const float (&v)[8]) {
    if (dtype == DTYPE_F32) {
        float4* out = reinterpret_cast<float4*>(static_cast<float*>(p) + at);
        out[0] = make_float4(v[0], v[1], v[2], v[3]);
        out[1] = make_float4(v[4], v[5], v[6], v[7]);
        return;
    }
    unsigned bits[4];
    for (int i = 0; i < 4; i++)
        bits[i] = dtype == DTYPE_F16 ? pack2(v[2 * i], v[2 * i + 1], __half()) : pack2(v[2 * i], v[2 * i + 1], __nv_bfloat16());
    *reinterpret_cast<uint4*>(static_cast<uint16_t*>(p) + at) = make_uint4(bits[0], bits[1], bits[2], bits[3]);
}

KERNEL(convert, ConvertParams, 256) {
    int eights = ceil_div(p.cols, 8);
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (!within(i, (long long)p.rows * eights)) return;
    int row = int(i / eights), column = int(i % eights) * 8;
    long long from = (p.ids ? p.ids[row] : row) * p.in_stride + column, to = row * p.out_stride + column;
    float v[8];
    bool whole = within(column + 7, p.cols);
    if (whole && rows_aligned(p.in, p.in_stride, p.in_dtype)) {
        load8(v, p.in, from, p.in_dtype);
    } else {
        for (int j = 0; j < 8; j++) v[j] = within(column + j, p.cols) ? load_element(p.in, from + j, p.in_dtype) : 0;
    }
    for (int j = 0; j < 8; j++) v[j] *= p.scale;
    if (whole && rows_aligned(p.out, p.out_stride, p.out_dtype)) {
        store8(p.out, to, p.out_dtype, v);
    } else {
        for (int j = 0; j < 8; j++)
            if (within(column + j, p.cols)) store_element(p.out, to + j, p.out_dtype, v[j]);
    }
}

// --- rows in blocks --------------------------------------------------------------------------------------------------

__device__ __forceinline__ Weights table_of(const ConvertParams& p) {
    Weights table = {};
    table.data = p.in;
    table.row_bytes = int(p.in_stride);
    return table;
}

template <class E> __device__ void naive_convert_blocks(const ConvertParams& p) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (long long)p.rows * p.cols) return;
    int row = int(i / p.cols), column = int(i % p.cols);
    float v = E::at(table_of(p), p.cols, p.ids ? p.ids[row] : row, column);
    store_element(p.out, row * p.out_stride + column, p.out_dtype, v * p.scale);
}

template <class E> __device__ void convert_blocks(const ConvertParams& p) {
    int chunks = ceil_div(p.cols, E::CHUNK);
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (!within(i, (long long)p.rows * chunks)) return;
    int row = int(i / chunks), column = int(i % chunks) * E::CHUNK;
    float v[E::CHUNK];
    E::values(E::load(table_of(p), p.cols, p.ids ? p.ids[row] : row, column), NoTable(), v);
    for (int j = 0; j < E::CHUNK; j++)
        if (within(column + j, p.cols)) store_element(p.out, row * p.out_stride + column + j, p.out_dtype, v[j] * p.scale);
}

#define CONVERT_BLOCKS(encoding, E)                                                                                    \
    KERNEL(naive_convert_##encoding, ConvertParams, 128) { naive_convert_blocks<E>(p); }                               \
    KERNEL(convert_##encoding, ConvertParams, 256) { convert_blocks<E>(p); }
CONVERT_BLOCKS(q8_0, Q8_0)
CONVERT_BLOCKS(q4_0, Q4_0)
CONVERT_BLOCKS(q4_1, Q4_1)
CONVERT_BLOCKS(q5_0, Q5_0)
CONVERT_BLOCKS(q5_1, Q5_1)
CONVERT_BLOCKS(q4_k, Q4K)
CONVERT_BLOCKS(q5_k, Q5K)
CONVERT_BLOCKS(q6_k, Q6K)
CONVERT_BLOCKS(lossless, Lossless)
