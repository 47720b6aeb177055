// Layers that keep a state of each sequence instead of keys and values: the convolution of channels over tokens, and the
// gated delta rule. See ConvolveParams and DeltaRuleParams.
//
// Tokens come one after the other, with the same additions in the same order whichever pass they are in, so where a sequence
// is cut does not show. What runs side by side are channels, and the columns of a state, which do not know of each other.
#include "tile.cuh"

// --- naive twins: one thread a channel, or a column of a state -------------------------------------------------------

// What a channel was `back` tokens before the stretch; 1 is the last.
__device__ __forceinline__ float earlier(const ConvolveParams& p, const Stretch& s, int back, int channel) {
    return s.from < 0 ? 0 : p.states[((long long)(s.from + 1) * (p.taps - 1) - back) * p.channels + channel];
}

// What a channel is at a token of the stretch, or before it.
__device__ __forceinline__ float token_at(const ConvolveParams& p, const Stretch& s, int token, int channel) {
    return token < 0 ? earlier(p, s, -token, channel) : p.x[(s.first_row + token) * p.stride + channel];
}

// Leaves the last rows of state and stretch together, as they are before the convolution.
__device__ __forceinline__ void keep_last(const ConvolveParams& p, const Stretch& s, int channel) {
    for (int back = 1; back < p.taps; back++)
        p.states[((long long)(s.to + 1) * (p.taps - 1) - back) * p.channels + channel] = token_at(p, s, s.rows - back, channel);
}

KERNEL(naive_convolve, ConvolveParams, 64) {
    int channel = blockIdx.x * blockDim.x + threadIdx.x;
    if (channel >= p.channels) return;
    Stretch s = p.stretches[blockIdx.y];
    keep_last(p, s, channel);
    // From the last token on, so that those before it are still what they were.
    for (int token = s.rows - 1; token >= 0; token--) {
        float sum = 0;
        for (int j = 0; j < p.taps; j++)
            sum += p.weight[(long long)channel * p.taps + j] * token_at(p, s, token - p.taps + 1 + j, channel);
        p.x[(s.first_row + token) * p.stride + channel] = sum;
    }
}

// Added to the square of a length before queries and keys are divided by it.
constexpr float LENGTH_EPS = 1e-6f;

// What the state is multiplied by, and how much of the difference is written.
__device__ __forceinline__ float2 gates(const DeltaRuleParams& p, long long row, int head) {
    float x = p.decay[row * p.decay_stride + head] + p.decay_bias[head];
    float softplus = x > 20 ? x : log1pf(expf(x));
    return make_float2(expf(-expf(p.log_decay[head]) * softplus), 1 / (1 + expf(-p.write[row * p.write_stride + head])));
}

// Where the queries of a head are in a row; its keys are behind all queries, the values behind all keys.
__device__ __forceinline__ const float* query_of(const DeltaRuleParams& p, long long row, int head) {
    return p.mixed + row * p.mixed_stride + (long long)(head / (p.value_heads / p.key_heads)) * p.key_dim;
}

KERNEL(naive_delta_rule, DeltaRuleParams, 64) {
    int item = blockIdx.x * blockDim.x + threadIdx.x;
    if (item >= p.value_heads * p.value_dim) return;
    int head = item / p.value_dim, keys = p.key_heads * p.key_dim;
    Stretch s = p.stretches[blockIdx.y];
    long long size = (long long)p.value_heads * p.value_dim * p.key_dim, column = (long long)item * p.key_dim;
    float* state = p.states + s.to * size + column;
    for (int i = 0; i < p.key_dim; i++) state[i] = s.from < 0 ? 0 : p.states[s.from * size + column + i];
    for (int token = 0; token < s.rows; token++) {
        long long row = s.first_row + token;
        const float *q = query_of(p, row, head), *k = q + keys;
        float value = p.mixed[row * p.mixed_stride + 2 * keys + item];
        float q_square = 0, k_square = 0, kept = 0, sum = 0;
        for (int i = 0; i < p.key_dim; i++) {
            q_square += q[i] * q[i];
            k_square += k[i] * k[i];
        }
        float q_scale = 1 / sqrtf(q_square + LENGTH_EPS) / sqrtf(p.key_dim), k_scale = 1 / sqrtf(k_square + LENGTH_EPS);
        float2 g = gates(p, row, head);
        for (int i = 0; i < p.key_dim; i++) {
            state[i] *= g.x;
            kept += state[i] * (k[i] * k_scale);
        }
        for (int i = 0; i < p.key_dim; i++) {
            state[i] += k[i] * k_scale * (g.y * (value - kept));
            sum += state[i] * (q[i] * q_scale);
        }
        p.out[row * p.out_stride + item] = sum;
    }
}

// --- one thread a channel, eight tokens at once ----------------------------------------------------------------------

// Tokens whose sums a thread has in registers: they are loaded together, since no load waits for a store.
constexpr int TOKENS = 8;

KERNEL(convolve, ConvolveParams, 64) {
    int channel = blockIdx.x * 64 + threadIdx.x;
    if (!within(channel, p.channels)) return;
    Stretch s = p.stretches[blockIdx.y];
    keep_last(p, s, channel);
    const float* weight = p.weight + (long long)channel * p.taps;
    // From the last tokens on, so that those before them are still what they were.
    for (int end = s.rows; end > 0; end -= TOKENS) {
        float sums[TOKENS] = {};
        for (int j = 0; j < p.taps; j++) {
            float w = weight[j];
#pragma unroll
            for (int i = 0; i < TOKENS; i++) {
                int token = end - TOKENS + i;
                if (!within(token, 0)) sums[i] = fmaf(w, token_at(p, s, token - p.taps + 1 + j, channel), sums[i]);
            }
        }
#pragma unroll
        for (int i = 0; i < TOKENS; i++) {
            int token = end - TOKENS + i;
            if (!within(token, 0)) p.x[(s.first_row + token) * p.stride + channel] = sums[i];
        }
    }
}

// --- a warp four columns of a state, in registers --------------------------------------------------------------------

// Columns of a state that a warp has, and warps of a block (launch::recurrent has both).
constexpr int COLUMNS = 4, WARPS = 4;

// One number in each lane for every 32 of n, zero beyond: number lane + 32 j in v[j].
template <int PER_LANE> __device__ __forceinline__ void load_lanes(float (&v)[PER_LANE], const float* p, int n) {
#pragma unroll
    for (int j = 0; j < PER_LANE; j++) {
        int i = threadIdx.x % 32 + 32 * j;
        v[j] = within(i, n) ? p[i] : 0;
    }
}

template <int PER_LANE> __device__ __forceinline__ float dot(const float (&a)[PER_LANE], const float (&b)[PER_LANE]) {
    float sum = 0;
#pragma unroll
    for (int j = 0; j < PER_LANE; j++) sum = fmaf(a[j], b[j], sum);
    return warp_sum(sum);
}

// v * scale / |v|
template <int PER_LANE> __device__ __forceinline__ void make_unit(float (&v)[PER_LANE], float scale) {
    float factor = scale * rsqrtf(dot(v, v) + LENGTH_EPS);
#pragma unroll
    for (int j = 0; j < PER_LANE; j++) v[j] *= factor;
}

template <int PER_LANE> __device__ void delta_rule(const DeltaRuleParams& p) {
    int lane = threadIdx.x % 32, head = blockIdx.x, first = (blockIdx.y * WARPS + threadIdx.x / 32) * COLUMNS;
    Stretch s = p.stretches[blockIdx.z];
    long long heads_columns = (long long)p.value_heads * p.value_dim, at = (long long)head * p.value_dim + first;
    int keys = p.key_heads * p.key_dim;
    float q_scale = rsqrtf(p.key_dim);
    float state[COLUMNS][PER_LANE] = {};
#pragma unroll
    for (int c = 0; c < COLUMNS; c++)
        if (s.from >= 0 && within(first + c, p.value_dim))
            load_lanes(state[c], p.states + (s.from * heads_columns + at + c) * p.key_dim, p.key_dim);

    for (int token = 0; token < s.rows; token++) {
        long long row = s.first_row + token;
        const float* query = query_of(p, row, head);
        const float* values = p.mixed + row * p.mixed_stride + 2 * keys + at;
        float q[PER_LANE], k[PER_LANE];
        load_lanes(q, query, p.key_dim);
        load_lanes(k, query + keys, p.key_dim);
        make_unit(q, q_scale);
        make_unit(k, 1);
        float2 g = gates(p, row, head);
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            float value = within(first + c, p.value_dim) ? values[c] : 0;
#pragma unroll
            for (int j = 0; j < PER_LANE; j++) state[c][j] *= g.x;
            float change = g.y * (value - dot(state[c], k));
#pragma unroll
            for (int j = 0; j < PER_LANE; j++) state[c][j] = fmaf(k[j], change, state[c][j]);
            float sum = dot(state[c], q);
            if (lane == 0 && within(first + c, p.value_dim)) p.out[row * p.out_stride + at + c] = sum;
        }
    }

#pragma unroll
    for (int c = 0; c < COLUMNS; c++)
#pragma unroll
        for (int j = 0; j < PER_LANE; j++) {
            int i = lane + 32 * j;
            if (within(first + c, p.value_dim) && within(i, p.key_dim))
                p.states[(s.to * heads_columns + at + c) * p.key_dim + i] = state[c][j];
        }
}

KERNEL(delta_rule_128, DeltaRuleParams, 128) { delta_rule<4>(p); }
KERNEL(delta_rule_256, DeltaRuleParams, 128) { delta_rule<8>(p); }
