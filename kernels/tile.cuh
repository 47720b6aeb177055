// What most kernels share: dtypes chosen at run time, groups of four elements, bounds tests, reductions in a fixed order.
#pragma once
#include "ptx.cuh"

constexpr unsigned ALL_LANES = 0xffffffffu;

// Every bounds test is written with this, so that `make kernel-mutants` can find it, delete it, and see whether a test
// notices.
__device__ __forceinline__ bool within(long long index, long long count) { return index < count; }

// The index itself, or the last one there is: for loads whose results are thrown away beyond the end. (Also found and deleted.)
__device__ __forceinline__ int clamped(int index, int count) { return min(index, count - 1); }

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// --- elements whose dtype is known only at run time ------------------------------------------------------------------
// A switch that the whole grid takes the same way costs nothing beside a load, and saves a template instance.

__device__ __forceinline__ float load_element(const void* p, long long i, Dtype dtype) {
    switch (dtype) {
    case DTYPE_F16: return __half2float(static_cast<const __half*>(p)[i]);
    case DTYPE_BF16: return __bfloat162float(static_cast<const __nv_bfloat16*>(p)[i]);
    default: return static_cast<const float*>(p)[i];
    }
}
__device__ __forceinline__ void store_element(void* p, long long i, Dtype dtype, float v) {
    switch (dtype) {
    case DTYPE_F16: static_cast<__half*>(p)[i] = __float2half(v); break;
    case DTYPE_BF16: static_cast<__nv_bfloat16*>(p)[i] = __float2bfloat16(v); break;
    default: static_cast<float*>(p)[i] = v;
    }
}
// Element i of an optional vector.
__device__ __forceinline__ float vector_at(const Vector& v, int i, float otherwise) {
    return v.data ? load_element(v.data, i, v.dtype) : otherwise;
}

// Two 16-bit operands of an mma in one register, `low` at the lower k.
__device__ __forceinline__ uint32_t pack2(float low, float high, __nv_bfloat16) {
    __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t*>(&v);
}
__device__ __forceinline__ uint32_t pack2(float low, float high, __half) {
    __half2 v = __floats2half2_rn(low, high);
    return *reinterpret_cast<uint32_t*>(&v);
}
__device__ __forceinline__ float2 unpack2(uint32_t v, __nv_bfloat16) {
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&v));
}
__device__ __forceinline__ float2 unpack2(uint32_t v, __half) {
    return __half22float2(*reinterpret_cast<const __half2*>(&v));
}

// --- four consecutive float32 ----------------------------------------------------------------------------------------

// Whether rows that start at p, and every `stride` elements after it, may be read 16 bytes at a time.
__device__ __forceinline__ bool rows_aligned(const float* p, long long stride) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride % 4 == 0;
}
// row[i .. i + 4), zero at and beyond n. Plain loads: the kernel may write the same memory.
__device__ __forceinline__ float4 load4(const float* row, int i, int n, bool aligned) {
    if (aligned && within(i + 3, n)) return *reinterpret_cast<const float4*>(row + i);
    float4 v = make_float4(0, 0, 0, 0);
    if (within(i, n)) v.x = row[i];
    if (within(i + 1, n)) v.y = row[i + 1];
    if (within(i + 2, n)) v.z = row[i + 2];
    if (within(i + 3, n)) v.w = row[i + 3];
    return v;
}
__device__ __forceinline__ void store4(float* row, int i, int n, bool aligned, float4 v) {
    if (aligned && within(i + 3, n)) {
        *reinterpret_cast<float4*>(row + i) = v;
        return;
    }
    if (within(i, n)) row[i] = v.x;
    if (within(i + 1, n)) row[i + 1] = v.y;
    if (within(i + 2, n)) row[i + 2] = v.z;
    if (within(i + 3, n)) row[i + 3] = v.w;
}

// --- reductions ------------------------------------------------------------------------------------------------------
// The order of the additions depends on the number of threads alone, so the same row gives the same bits wherever and
// beside whatever it is computed.

// The sum over a warp, in every lane.
__device__ __forceinline__ float warp_sum(float v) {
    for (int bit = 16; bit > 0; bit /= 2) v += __shfl_xor_sync(ALL_LANES, v, bit);
    return v;
}
__device__ __forceinline__ float warp_max(float v) {
    for (int bit = 16; bit > 0; bit /= 2) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, bit));
    return v;
}
// The sum over a block of whole warps, in every thread. Every thread of the block has to call it.
__device__ inline float block_sum(float v) {
    SHARED(float, partial, [32]);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    v = warp_sum(v);
    if (lane == 0) partial[warp] = v;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < warps; i++) sum += partial[i];
    __syncthreads(); // the next call writes `partial` again
    return sum;
}

// --- shared memory ---------------------------------------------------------------------------------------------------

// Where the 16-byte piece `piece` of row `row` lies, in pieces from the start of the row, in a tile whose rows are 8
// pieces (128 bytes: all banks): the pieces of eight consecutive rows at the same place fall into different banks, so
// that ldmatrix, which reads a column of pieces, has no conflicts.
__device__ __forceinline__ int swizzle(int row, int piece) { return piece ^ (row & 7); }
