// Attention on tensor cores, for keys and values of 16 bits: sixteen queries a warp, whose products, weights and values
// never leave its registers (Dao 2023, arXiv:2307.08691). The accumulators of Q K^T are, converted, the operand of P V.
#pragma once
#include "attention.cuh"
#if HAS_MMA_K16

// What a warp knows of its queries. A lane has parts of two: those of lane / 4 and of lane / 4 + 8.
template <int Dim> struct Sixteen {
    float values[Dim / 8][4]; // unnormalised: columns 8i + lane % 4 * 2 and the next one, of both queries
    float top[2];             // the largest score
    float sum[2];             // of the weights e^(score - top)
};

// Copies the rows [first, first + Rows) of a cache to shared memory, zeroes from `end` on. `from` is position 0.
template <int Dim, int Rows, class Element>
__device__ __forceinline__ void load_tile(Element* to, const Element* from, int first, int end, int dim) {
    for (int i = threadIdx.x; i < Rows * (Dim / 8); i += 128) {
        int row = i / (Dim / 8), piece = i % (Dim / 8);
        if (!within(piece * 8, dim)) continue;
        int valid = within(first + row, end) ? 16 : 0;
        cp_async16(to + row * Dim + swizzle(row, piece) * 8, from + (long long)(first + row) * dim + piece * 8, valid);
    }
}

// Four 8x8 matrices of a tile in shared memory: rows [row, row + 16) of pieces `piece` and `piece + 1`, in the order that
// makes r[0..2] and r[2..4] the operands of two products: two runs of eight keys (plain), of eight columns (transposed).
template <int Dim, class Element>
__device__ __forceinline__ void key_operands(uint32_t (&r)[4], const Element* tile, int row, int piece) {
    int lane = threadIdx.x % 32, at = row + lane / 16 * 8 + lane % 8;
    ldmatrix_x4(r, tile + at * Dim + swizzle(at, piece + lane / 8 % 2) * 8);
}
template <int Dim, class Element>
__device__ __forceinline__ void value_operands(uint32_t (&r)[4], const Element* tile, int row, int piece) {
    int lane = threadIdx.x % 32, at = row + lane % 16;
    ldmatrix_x4_trans(r, tile + at * Dim + swizzle(at, piece + lane / 16) * 8);
}

// Attention of the sixteen queries from `first` on to the positions [begin, end). The four warps of the block share tiles of
// `Keys` keys; each takes those from `own` on, `OwnKeys` of them. `shared`: Keys rows of keys, then of values.
// dim and v_dim are multiples of 16 and at most Dim. Every thread of the block has to call it, with the same range.
template <class Element, int Dim, int Keys, int OwnKeys>
__device__ __forceinline__ void attend(Sixteen<Dim>& s, const AttentionParams& p, const Queries& queries, int first,
                                       int begin, int end, int own, Element* shared) {
    Element *keys = shared, *values = shared + Keys * Dim;
    long long position_0 = cache_row(queries.sequence, queries.kv_head, 0);
    const Element* all_keys = static_cast<const Element*>(p.keys) + position_0 * p.dim;
    const Element* all_values = static_cast<const Element*>(p.values) + position_0 * p.v_dim;
    int lane = threadIdx.x % 32, pair = lane % 4 * 2;

    begin -= begin % Keys;
    load_tile<Dim, Keys>(keys, all_keys, begin, end, p.dim);
    cp_async_commit();
    load_tile<Dim, Keys>(values, all_values, begin, end, p.v_dim);
    cp_async_commit();

    // Queries beyond the last are zeroes, and their results stored nowhere.
    uint32_t q[Dim / 16][4];
    int high[2]; // where the positions that each sees end
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int v = first + lane / 4 + half * 8;
        bool there = within(v, queries.count);
        const float* vector = there ? queries.vector(p, v) : nullptr;
        high[half] = queries.position(v) + 1;
#pragma unroll
        for (int k = 0; k < Dim / 16; k++) {
#pragma unroll
            for (int part = 0; part < 2; part++) {
                int column = k * 16 + part * 8 + pair;
                bool load = there && within(column, p.dim);
                q[k][part * 2 + half] = load ? pack2(vector[column], vector[column + 1], Element()) : 0;
            }
        }
        s.top[half] = -INFINITY; // in the loop, scores count in powers of 2
        s.sum[half] = 0;
    }
#pragma unroll
    for (int i = 0; i < Dim / 2; i++) s.values[i / 4][i % 4] = 0;

    // Where nothing but the scale stands between product and exponential, one multiplication does for both.
    bool plain = !p.soft_cap && !p.slopes;
    float factor = plain ? p.scale * LOG2_E : LOG2_E;
    // Between these, every query of the warp sees every key.
    int all_from = first_visible(p, queries.position(min(first + 15, queries.count - 1)));
    int all_to = queries.position(first) + 1;

    for (int tile = begin; tile < end; tile += Keys) {
        // Keys and values each have one place. Whoever is not being read is on its way: two barriers more than with the
        // waits merged, and twice the bytes in flight.
        cp_async_wait<1>();
        __syncthreads(); // the keys are there
        float scores[OwnKeys / 8][4] = {};
#pragma unroll
        for (int k = 0; k < Dim / 16; k++) {
            if (!within(k * 16, p.dim)) break;
#pragma unroll
            for (int n = 0; n < OwnKeys / 16; n++) {
                uint32_t b[4];
                key_operands<Dim>(b, keys, own + n * 16, k * 2);
                mma(scores[n * 2], q[k], {b[0], b[1]}, Element());
                mma(scores[n * 2 + 1], q[k], {b[2], b[3]}, Element());
            }
        }
        __syncthreads(); // nobody reads these keys any more
        if (within(tile + Keys, end)) load_tile<Dim, Keys>(keys, all_keys, tile + Keys, end, p.dim);
        cp_async_commit();

        int key = tile + own + pair; // of scores[0][0] and scores[0][2]
        if (!plain) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float slope = p.slopes ? p.slopes[queries.head(first + lane / 4 + half * 8)] : 0;
#pragma unroll
                for (int i = 0; i < OwnKeys / 4; i++) {
                    float& x = scores[i / 2][half * 2 + i % 2];
                    x = score(p, x, slope, key + i / 2 * 8 + i % 2, high[half] - 1);
                }
            }
        }
        bool all_seen = within(all_from - 1, tile) && within(tile + Keys - 1, all_to);
        if (!all_seen) {
#pragma unroll
            for (int i = 0; i < OwnKeys / 2; i++) {
                int half = i % 4 / 2, at = key + i / 4 * 8 + i % 2;
                bool visible = within(at, high[half]) && !within(at, first_visible(p, high[half] - 1));
                if (!visible) scores[i / 4][i % 4] = -INFINITY;
            }
        }

#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = -INFINITY;
#pragma unroll
            for (int n = 0; n < OwnKeys / 8; n++) top = fmaxf(top, fmaxf(scores[n][half * 2], scores[n][half * 2 + 1]));
            top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
            top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
            top = fmaxf(s.top[half], top * factor);
            float base = top == -INFINITY ? 0 : top; // so that weights of keys that are not seen are 0, not NaN
            float rescale = exp2_approximate(s.top[half] - base);
            s.top[half] = top;
            float sum = 0;
#pragma unroll
            for (int n = 0; n < OwnKeys / 8; n++) {
#pragma unroll
                for (int c = half * 2; c < half * 2 + 2; c++) {
                    scores[n][c] = exp2_approximate(fmaf(scores[n][c], factor, -base));
                    sum += scores[n][c];
                }
            }
            s.sum[half] = fmaf(s.sum[half], rescale, sum);
#pragma unroll
            for (int i = 0; i < Dim / 8; i++) {
                s.values[i][half * 2] *= rescale;
                s.values[i][half * 2 + 1] *= rescale;
            }
        }

        cp_async_wait<1>();
        __syncthreads(); // the values are there
#pragma unroll
        for (int k = 0; k < OwnKeys / 16; k++) {
            const float (&left)[4] = scores[k * 2], (&right)[4] = scores[k * 2 + 1];
            uint32_t weights[4] = {pack2(left[0], left[1], Element()), pack2(left[2], left[3], Element()),
                                   pack2(right[0], right[1], Element()), pack2(right[2], right[3], Element())};
#pragma unroll
            for (int n = 0; n < Dim / 16; n++) {
                if (!within(n * 16, p.v_dim)) break;
                uint32_t b[4];
                value_operands<Dim>(b, values, own + k * 16, n * 2);
                mma(s.values[n * 2], weights, {b[0], b[1]}, Element());
                mma(s.values[n * 2 + 1], weights, {b[2], b[3]}, Element());
            }
        }
        __syncthreads(); // nobody reads these values any more
        if (within(tile + Keys, end)) load_tile<Dim, Keys>(values, all_values, tile + Keys, end, p.v_dim);
        cp_async_commit();
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        s.top[half] /= LOG2_E;
        s.sum[half] += __shfl_xor_sync(ALL_LANES, s.sum[half], 1);
        s.sum[half] += __shfl_xor_sync(ALL_LANES, s.sum[half], 2);
    }
}
#endif
