// Sums of rows, and rows times the sigmoid of one number each: see GatedAddParams.
//
// A thread has four elements, a block a piece of a row.
#include "tile.cuh"

// --- naive twin: one thread an element -------------------------------------------------------------------------------

KERNEL(naive_gated_add, GatedAddParams, 128) {
    int row = blockIdx.x, i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= p.n) return;
    float y = p.x[row * p.stride + i];
    if (p.gate) y *= 1 / (1 + expf(-p.gate[row * p.gate_stride]));
    if (p.add) y += p.add[row * p.out_stride + i];
    p.out[row * p.out_stride + i] = y;
}

// --- four elements a thread ------------------------------------------------------------------------------------------

KERNEL(gated_add, GatedAddParams, 256) {
    long long row = blockIdx.x;
    int i = (blockIdx.y * 256 + threadIdx.x) * 4;
    bool aligned = rows_aligned(p.x, p.stride);
    bool out_aligned = rows_aligned(p.out, p.out_stride) && rows_aligned(p.add, 0);
    float gate = p.gate ? 1 / (1 + expf(-p.gate[row * p.gate_stride])) : 1;
    float4 x = load4(p.x + row * p.stride, i, p.n, aligned);
    float4 add = p.add ? load4(p.add + row * p.out_stride, i, p.n, out_aligned) : make_float4(0, 0, 0, 0);
    float4 y = make_float4(fmaf(x.x, gate, add.x), fmaf(x.y, gate, add.y), fmaf(x.z, gate, add.z), fmaf(x.w, gate, add.w));
    store4(p.out + row * p.out_stride, i, p.n, out_aligned, y);
}
