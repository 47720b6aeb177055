// What an MLP does between its products: with a gate SwiGLU, GeGLU, gpt-oss's clamped kind and others, without one the
// activation alone. See GluParams and ActivateParams.
//
// A thread has four elements, a block a piece of a row.
#include "tile.cuh"

// --- naive twin: one thread an element, the formulas as they are published ---------------------------------------------

__device__ __forceinline__ float naive_activation(Gate kind, float x) {
    switch (kind) {
    case GATE_GELU_TANH: {
        float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x); // sqrt(2 / pi)
        return 0.5f * x * (1 + tanhf(inner));
    }
    case GATE_GELU_ERF: return 0.5f * x * (1 + erff(x * 0.7071067811865476f));
    case GATE_RELU: return x < 0 ? 0 : x;
    case GATE_SIGMOID: return 1 / (1 + expf(-x));
    default: return x * (1 / (1 + expf(-x)));
    }
}

__device__ __forceinline__ float naive_gate(const GluParams& p, float gate, float up) {
    if (p.kind != GATE_CLAMPED) return naive_activation(p.kind, gate) * up;
    float g = gate > p.limit ? p.limit : gate;
    float u = up > p.limit ? p.limit : up < -p.limit ? -p.limit : up;
    return g * (1 / (1 + expf(-p.alpha * g))) * (u + 1);
}

KERNEL(naive_glu, GluParams, 128) {
    int row = blockIdx.x, i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= p.dim) return;
    const float* in = p.gate + row * p.stride;
    float gate = p.up ? in[i] : in[2 * i], up = p.up ? p.up[row * p.stride + i] : in[2 * i + 1];
    store_element(p.out, row * p.out_stride + i, p.out_dtype, naive_gate(p, gate, up));
}

KERNEL(naive_activate, ActivateParams, 128) {
    int row = blockIdx.x, i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= p.dim) return;
    store_element(p.out, row * p.out_stride + i, p.out_dtype, naive_activation(p.kind, p.x[row * p.stride + i]));
}

// --- four elements a thread ------------------------------------------------------------------------------------------

// x * sigmoid(z). Nearly every gate is one: the tanh of GELU's approximation, (1 + tanh u) / 2 = sigmoid(2u), as well,
// without the cancellation that 1 + tanh(u) has for negative u. NaN stays NaN.
__device__ __forceinline__ float times_sigmoid(float x, float z) { return x / (1 + expf(-z)); }

__device__ __forceinline__ float activated(Gate kind, float x) {
    switch (kind) {
    case GATE_GELU_TANH: return times_sigmoid(x, 1.5957691216057308f * (x + 0.044715f * x * x * x)); // 2 sqrt(2 / pi)
    case GATE_GELU_ERF: return 0.5f * x * erfcf(x * -0.7071067811865476f);
    case GATE_RELU: return x < 0 ? 0 : x; // so that NaN stays NaN, which fmaxf would hide
    case GATE_SIGMOID: return times_sigmoid(1, x);
    default: return times_sigmoid(x, x);
    }
}

__device__ __forceinline__ float gated(const GluParams& p, float gate, float up) {
    if (p.kind != GATE_CLAMPED) return activated(p.kind, gate) * up;
    // As above.
    float g = gate > p.limit ? p.limit : gate;
    float u = up > p.limit ? p.limit : up < -p.limit ? -p.limit : up;
    return times_sigmoid(g, p.alpha * g) * (u + 1);
}

// Whether rows of any dtype may be written four elements at a time.
__device__ __forceinline__ bool fours_aligned(const void* out, long long stride, Dtype dtype) {
    return reinterpret_cast<uintptr_t>(out) % (dtype == DTYPE_F32 ? 16 : 8) == 0 && stride % 4 == 0;
}

// out[at + i .. at + i + 4) of a row of n in any dtype.
__device__ __forceinline__ void store4_as(void* out, long long at, int i, int n, Dtype dtype, bool aligned, float4 v) {
    float values[4] = {v.x, v.y, v.z, v.w};
    if (!aligned || !within(i + 3, n)) {
        for (int j = 0; j < 4; j++)
            if (within(i + j, n)) store_element(out, at + i + j, dtype, values[j]);
    } else if (dtype == DTYPE_F32) {
        *reinterpret_cast<float4*>(static_cast<float*>(out) + at + i) = v;
    } else {
        uint2 halves = dtype == DTYPE_F16 ? make_uint2(pack2(v.x, v.y, __half()), pack2(v.z, v.w, __half()))
                                          : make_uint2(pack2(v.x, v.y, __nv_bfloat16()), pack2(v.z, v.w, __nv_bfloat16()));
        *reinterpret_cast<uint2*>(static_cast<uint16_t*>(out) + at + i) = halves;
    }
}

KERNEL(glu, GluParams, 256) {
    long long row = blockIdx.x;
    int i = (blockIdx.y * 256 + threadIdx.x) * 4;
    const float* in = p.gate + row * p.stride;
    bool aligned = rows_aligned(p.gate, p.stride) && rows_aligned(p.up, 0);
    float4 gate, up;
    if (p.up) {
        gate = load4(in, i, p.dim, aligned);
        up = load4(p.up + row * p.stride, i, p.dim, aligned);
    } else {
        float4 low = load4(in, 2 * i, 2 * p.dim, aligned), high = load4(in, 2 * i + 4, 2 * p.dim, aligned);
        gate = make_float4(low.x, low.z, high.x, high.z);
        up = make_float4(low.y, low.w, high.y, high.w);
    }
    float4 out = make_float4(gated(p, gate.x, up.x), gated(p, gate.y, up.y), gated(p, gate.z, up.z), gated(p, gate.w, up.w));
    store4_as(p.out, row * p.out_stride, i, p.dim, p.out_dtype, fours_aligned(p.out, p.out_stride, p.out_dtype), out);
}

KERNEL(activate, ActivateParams, 256) {
    long long row = blockIdx.x;
    int i = (blockIdx.y * 256 + threadIdx.x) * 4;
    float4 x = load4(p.x + row * p.stride, i, p.dim, rows_aligned(p.x, p.stride));
    x = make_float4(activated(p.kind, x.x), activated(p.kind, x.y), activated(p.kind, x.z), activated(p.kind, x.w));
    store4_as(p.out, row * p.out_stride, i, p.dim, p.out_dtype, fours_aligned(p.out, p.out_stride, p.out_dtype), x);
}
