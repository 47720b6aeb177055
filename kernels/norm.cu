// RMSNorm and LayerNorm, with what surrounds them in one pass over memory: see NormParams.
//
// A row belongs to a block (matrices of rows) or to a warp (the _heads kernels: rows of 32 to 256 elements, such as q and
// k heads). Every thread reads back only elements that it has written itself, so `sum` and `out` may be in place.
#include "tile.cuh"

// --- naive twin: one thread a row ------------------------------------------------------------------------------------

__device__ __forceinline__ long long row_start(const NormParams& p, int row, long long stride) {
    return row / p.heads * stride + (long long)(row % p.heads) * p.dim;
}

template <bool Centred> __device__ void naive_norm(const NormParams& p) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= p.rows) return;
    long long in = row_start(p, row, p.stride), out = row_start(p, row, p.out_stride);
    float mean = 0, square = 0;
    for (int i = 0; i < p.dim; i++) mean += p.x[in + i] + (p.add ? p.add[in + i] : 0);
    mean = Centred ? mean / p.dim : 0;
    for (int i = 0; i < p.dim; i++) {
        float h = p.x[in + i] + (p.add ? p.add[in + i] : 0) - mean;
        square += h * h;
    }
    float scale = 1 / sqrtf(square / p.dim + p.eps);
    for (int i = 0; i < p.dim; i++) {
        float h = p.x[in + i] + (p.add ? p.add[in + i] : 0);
        if (p.sum) p.sum[in + i] = h;
        float y = (h - mean) * scale * (vector_at(p.gain, i, 1) + p.gain_offset) + vector_at(p.bias, i, 0);
        store_element(p.out, out + i, p.out_dtype, y + (p.residual ? p.residual[in + i] : 0));
    }
}
KERNEL(naive_rms_norm, NormParams, 128) { naive_norm<false>(p); }
KERNEL(naive_layer_norm, NormParams, 128) { naive_norm<true>(p); }

// --- one row by a group of threads -----------------------------------------------------------------------------------

struct ByBlock {
    static __device__ int rank() { return threadIdx.x; }
    static __device__ int size() { return 256; } // of every launch; blockDim.x costs a register, which sm_120 then spills
    static __device__ int row() { return blockIdx.x; }
    static __device__ float sum(float v) { return block_sum(v); }
};
struct ByWarp {
    static __device__ int rank() { return threadIdx.x % 32; }
    static __device__ int size() { return 32; }
    static __device__ int row() { return blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; }
    static __device__ float sum(float v) { return warp_sum(v); }
};

__device__ __forceinline__ float4 plus(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

template <bool Centred, class Group> __device__ void norm(const NormParams& p) {
    int row = Group::row(), step = Group::size() * 4;
    if (!within(row, p.rows)) return;
    long long in = row_start(p, row, p.stride), out = row_start(p, row, p.out_stride);
    // One test for all: a null pointer is aligned.
    bool heads_aligned = p.heads == 1 || p.dim % 4 == 0;
    bool aligned = rows_aligned(p.x, p.stride) && rows_aligned(p.add, 0) && rows_aligned(p.sum, 0) &&
                   rows_aligned(p.residual, 0) && heads_aligned;
    bool out_aligned = p.out_dtype == DTYPE_F32 && rows_aligned(static_cast<float*>(p.out), p.out_stride) && heads_aligned;

    float total = 0;
    for (int i = Group::rank() * 4; i < p.dim; i += step) {
        float4 h = load4(p.x + in, i, p.dim, aligned);
        if (p.add) h = plus(h, load4(p.add + in, i, p.dim, aligned));
        if (p.sum) store4(p.sum + in, i, p.dim, aligned, h);
        total += Centred ? (h.x + h.y) + (h.z + h.w) : (h.x * h.x + h.y * h.y) + (h.z * h.z + h.w * h.w);
    }
    total = Group::sum(total);

    // From here on x + add is read back from `sum` where it was stored, for `sum` may have replaced x or add.
    const float* x = p.sum ? p.sum : p.x;
    const float* add = p.sum ? nullptr : p.add;
    float mean = 0;
    if (Centred) {
        mean = total / p.dim;
        total = 0;
        for (int i = Group::rank() * 4; i < p.dim; i += step) {
            float4 h = load4(x + in, i, p.dim, aligned);
            if (add) h = plus(h, load4(add + in, i, p.dim, aligned));
            float d[4] = {h.x - mean, h.y - mean, h.z - mean, h.w - mean};
            for (int j = 0; j < 4; j++)
                if (within(i + j, p.dim)) total += d[j] * d[j];
        }
        total = Group::sum(total);
    }
    float scale = rsqrtf(total / p.dim + p.eps);

    for (int i = Group::rank() * 4; i < p.dim; i += step) {
        float4 h = load4(x + in, i, p.dim, aligned);
        if (add) h = plus(h, load4(add + in, i, p.dim, aligned));
        float4 r = p.residual ? load4(p.residual + in, i, p.dim, aligned) : make_float4(0, 0, 0, 0);
        float y[4] = {h.x, h.y, h.z, h.w}, rest[4] = {r.x, r.y, r.z, r.w};
        for (int j = 0; j < 4; j++) {
            if (!within(i + j, p.dim)) break;
            float gain = vector_at(p.gain, i + j, 1) + p.gain_offset;
            y[j] = (y[j] - mean) * scale * gain + vector_at(p.bias, i + j, 0) + rest[j];
            if (!out_aligned) store_element(p.out, out + i + j, p.out_dtype, y[j]);
        }
        if (out_aligned) store4(static_cast<float*>(p.out) + out, i, p.dim, true, make_float4(y[0], y[1], y[2], y[3]));
    }
}

KERNEL(rms_norm, NormParams, 256) { norm<false, ByBlock>(p); }
KERNEL(rms_norm_heads, NormParams, 256) { norm<false, ByWarp>(p); }
KERNEL(layer_norm, NormParams, 256) { norm<true, ByBlock>(p); }
KERNEL(layer_norm_heads, NormParams, 256) { norm<true, ByWarp>(p); }
