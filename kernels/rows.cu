// Rows multiplied by a number each: see ScaleRowsParams.
#include "tile.cuh"

// --- naive twin: one thread an element -------------------------------------------------------------------------------

KERNEL(naive_scale_rows, ScaleRowsParams, 128) {
    int row = blockIdx.x, i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i < p.n) p.x[row * p.stride + i] *= p.factors[row];
}

// --- one thread four elements ----------------------------------------------------------------------------------------

KERNEL(scale_rows, ScaleRowsParams, 256) {
    long long row = blockIdx.x;
    int i = (blockIdx.y * 256 + threadIdx.x) * 4;
    bool aligned = rows_aligned(p.x, p.stride);
    float* x = p.x + row * p.stride;
    float factor = p.factors[row];
    float4 v = load4(x, i, p.n, aligned);
    store4(x, i, p.n, aligned, make_float4(v.x * factor, v.y * factor, v.z * factor, v.w * factor));
}
