// Factors of a matrix, as checkpoints have them, become the float32 scales and zeros that its products take: see FactorParams.
//
// There is one of them for some dozens of weights, and they are small beside these: so a thread has a stored element, and
// writes all that it is for.
#include "tile.cuh"

__device__ __forceinline__ uint32_t word_at(const FactorParams& p, int e) { return static_cast<const uint32_t*>(p.in)[e]; }
// The place of an output's code in a word of AWQ.
__device__ __forceinline__ int awq_shift(int j) { return j % 8 / 2 * 4 + j % 2 * 16; }

// --- naive twin: one thread an output, which looks for its element ---------------------------------------------------

KERNEL(naive_factors, FactorParams, 128) {
    int o = blockIdx.x * blockDim.x + threadIdx.x;
    if (o >= p.outputs) return;
    int per_word = p.bits ? 32 / p.bits : 1, element = o, shift = 0, mask = p.bits ? (1 << p.bits) - 1 : 0;
    int across = p.rows ? p.outputs / p.repeat / p.rows : 1;
    switch (p.role) {
    case FACTOR_WORDS: break;
    case FACTOR_SCALES:
    case FACTOR_CODED_SCALES:
    case FACTOR_BYTE_ZEROS: element = o / p.repeat; break;
    case FACTOR_ROW_ZEROS: {
        int row = o / p.repeat / across;
        element = row / per_word * across + o / p.repeat % across;
        shift = row % per_word * p.bits;
        break;
    }
    case FACTOR_GPTQ_ZEROS: element = o / per_word, shift = o % per_word * p.bits; break;
    case FACTOR_AWQ_ZEROS: element = o / 8, shift = awq_shift(o); break;
    }
    int e = element - p.first;
    if (e < 0 || e >= p.count) return;
    float* out = static_cast<float*>(p.out) + o;
    switch (p.role) {
    case FACTOR_WORDS: *static_cast<uint32_t*>(static_cast<void*>(out)) = word_at(p, e); break;
    case FACTOR_SCALES: *out = load_element(p.in, e, p.dtype) / p.divisor; break;
    case FACTOR_CODED_SCALES: {
        int code = static_cast<const unsigned char*>(p.in)[e];
        *out = p.codebook[code] * p.block_scales[element / p.block] + p.offset;
        break;
    }
    case FACTOR_BYTE_ZEROS: *out = static_cast<const signed char*>(p.in)[e]; break;
    case FACTOR_ROW_ZEROS: *out = int(word_at(p, e) >> shift & mask) - (mask + 1) / 2; break;
    case FACTOR_GPTQ_ZEROS: *out = ((word_at(p, e) >> shift) + p.more) & mask; break;
    case FACTOR_AWQ_ZEROS: *out = word_at(p, e) >> shift & 15; break;
    }
}

// --- one thread an element -------------------------------------------------------------------------------------------

// What element number `element`, or a part of it, is for.
__device__ __forceinline__ void fill(const FactorParams& p, int element, float value) {
    float* out = static_cast<float*>(p.out);
    for (int r = 0; r < p.repeat; r++) {
        int o = element * p.repeat + r;
        if (within(o, p.outputs)) out[o] = value;
    }
}

KERNEL(factors, FactorParams, 256) {
    int e = blockIdx.x * 256 + threadIdx.x, element = p.first + e;
    if (!within(e, p.count)) return;
    float* out = static_cast<float*>(p.out);
    switch (p.role) {
    case FACTOR_WORDS: static_cast<uint32_t*>(p.out)[element] = word_at(p, e); break;
    case FACTOR_SCALES: fill(p, element, load_element(p.in, e, p.dtype) / p.divisor); break;
    case FACTOR_CODED_SCALES: {
        int code = static_cast<const unsigned char*>(p.in)[e];
        fill(p, element, fmaf(p.codebook[code], p.block_scales[element / p.block], p.offset));
        break;
    }
    case FACTOR_BYTE_ZEROS: fill(p, element, static_cast<const signed char*>(p.in)[e]); break;
    case FACTOR_ROW_ZEROS: {
        int across = p.outputs / p.repeat / p.rows, per_word = 32 / p.bits, middle = 1 << (p.bits - 1);
        uint32_t word = word_at(p, e);
        for (int i = 0; i < per_word; i++) {
            int row = element / across * per_word + i, code = word >> i * p.bits & (2 * middle - 1);
            fill(p, row * across + element % across, code - middle); // which leaves out rows beyond the last one
        }
        break;
    }
    case FACTOR_GPTQ_ZEROS: {
        uint32_t word = word_at(p, e), per_word = 32 / p.bits, mask = (1u << p.bits) - 1;
        for (int i = 0; i < per_word; i++) out[element * per_word + i] = float((word >> i * p.bits) + p.more & mask);
        break;
    }
    case FACTOR_AWQ_ZEROS: {
        uint32_t word = word_at(p, e);
        for (int i = 0; i < 8; i++) out[element * 8 + i] = float(word >> awq_shift(i) & 15);
        break;
    }
    }
}
