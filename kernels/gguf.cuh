// Decoders for the blocks of GGUF: 32 or 256 numbers of a few bits with scales among them, as llama.cpp defines them
// (`block_q8_0` and its neighbours in ggml-common.h). They offer what dequant.cuh says.
//
// A chunk brings the scales it needs along, and is decoded whole: operands are one rounding of number times scale (less the
// minimum). Blocks of 34, 18, 22 and 210 bytes begin at any even address, those of 20 and 24 on 4 bytes, those of 144 and 176
// on 16, for tiles do and rows are whole blocks. Runs that share bytes, one in their lower and one in their upper bits, load them twice; the second
// time they come from a cache.
#pragma once
#include "dequant.cuh"

// --- bytes and bits --------------------------------------------------------------------------------------------------

// 16 bytes from an even address, as loads that are legal: four words from the multiple of 4 at or before it, and the last two
// bytes. What is read before them is in the tile: the first of its bytes is on 16 bytes.
struct Unaligned16 {
    uint32_t raw[4], last, selector;

    __device__ __forceinline__ void load(const unsigned char* p) {
        uint32_t odd = reinterpret_cast<uintptr_t>(p) % 4;
#pragma unroll
        for (int j = 0; j < 4; j++) raw[j] = load_word(p - odd + 4 * j);
        last = load_half(p + 14);
        selector = odd ? 0x5432 : 0x3210;
    }
    __device__ __forceinline__ uint32_t word(int j) const { return __byte_perm(raw[j], j < 3 ? raw[j + 1] : last, selector); }
};

__device__ __forceinline__ void load_words(uint32_t (&words)[4], const void* p) {
    uint4 v = load16(p);
    words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
}

// What they all have in common. `Format` has blocks of NUMBERS numbers in BYTES bytes; its chunk is a sixteenth of a block or
// half of one.
template <class Format> struct Blocks {
    using Operand = __nv_bfloat16;
    using OperandTable = NoTable;
    using ValueTable = NoTable;
    using Chunk = typename Format::Chunk;
    using LoadedScale = float;
    static constexpr int CHUNK = 16;
    static constexpr bool SCALED = false, DECODED = true;
    static __device__ bool blocks_hold_steps(const Weights&) { return true; }
    static __device__ float load_scale(const Weights&, int, int, int) { return 1; }
    static __device__ float scale(float loaded, const NoTable&) { return loaded; }

    static __device__ const unsigned char* block(const Weights& w, int k, int row, int i) {
        long long index = (long long)row * (k / Format::NUMBERS) + i / Format::NUMBERS;
        return static_cast<const unsigned char*>(w.data) + index * Format::BYTES;
    }
    static __device__ float at(const Weights& w, int k, int row, int i) {
        return Format::number(block(w, k, row, i), i % Format::NUMBERS);
    }
    static __device__ Chunk load(const Weights& w, int k, int row, int i) {
        return Format::load(block(w, k, row, i), i % Format::NUMBERS / CHUNK);
    }
    static __device__ void values(const Chunk& c, const NoTable&, float (&v)[CHUNK]) { Format::values(c, v); }
    static __device__ void operands(const Chunk& c, const NoTable&, uint32_t (&o)[CHUNK / 2]) {
        float v[CHUNK];
        Format::values(c, v);
#pragma unroll
        for (int j = 0; j < CHUNK / 2; j++) o[j] = pack2(v[2 * j], v[2 * j + 1], Operand());
    }
};

__device__ __forceinline__ float half_at(const unsigned char* p) { return unpack2(load_half(p), __half()).x; }

// --- 32 numbers and a scale ------------------------------------------------------------------------------------------

// A float16 and 32 signed bytes.
struct Q8_0Format {
    static constexpr int NUMBERS = 32, BYTES = 34;
    struct Chunk {
        Unaligned16 bytes;
        uint32_t scale;
    };
    static __device__ float number(const unsigned char* block, int i) {
        return half_at(block) * static_cast<signed char>(block[2 + i]);
    }
    static __device__ Chunk load(const unsigned char* block, int part) {
        Chunk c;
        c.bytes.load(block + 2 + part * 16);
        c.scale = load_half(block);
        return c;
    }
    static __device__ void values(const Chunk& c, float (&v)[16]) {
        float scale = unpack2(c.scale, __half()).x;
#pragma unroll
        for (int j = 0; j < 16; j++) v[j] = Int8Format::number(c.bytes.word(j / 4), j % 4) * scale;
    }
};

// A float16 and 32 numbers of four bits, less 8: the first sixteen in the lower halves of the bytes.
struct Q4_0Format {
    static constexpr int NUMBERS = 32, BYTES = 18;
    struct Chunk {
        Unaligned16 bytes;
        uint32_t scale;
        int shift;
    };
    static __device__ float number(const unsigned char* block, int i) {
        return half_at(block) * (int(block[2 + i % 16] >> i / 16 * 4 & 15) - 8);
    }
    static __device__ Chunk load(const unsigned char* block, int part) {
        Chunk c;
        c.bytes.load(block + 2);
        c.scale = load_half(block);
        c.shift = part * 4;
        return c;
    }
    static __device__ void values(const Chunk& c, float (&v)[16]) {
        float scale = unpack2(c.scale, __half()).x;
#pragma unroll
        for (int j = 0; j < 16; j++) v[j] = (byte_number(c.bytes.word(j / 4) >> c.shift & 0x0f0f0f0fu, j % 4) - 8) * scale;
    }
};

// As Q4_0, but with a float16 behind the scale that is added in place of the 8 that are taken away.
struct Q4_1Format {
    static constexpr int NUMBERS = 32, BYTES = 20;
    struct Chunk {
        Unaligned16 bytes;
        uint32_t factors;
        int shift;
    };
    static __device__ float number(const unsigned char* block, int i) {
        return fmaf(block[4 + i % 16] >> i / 16 * 4 & 15, half_at(block), half_at(block + 2));
    }
    static __device__ Chunk load(const unsigned char* block, int part) {
        Chunk c;
        c.bytes.load(block + 4);
        c.factors = load_word(block);
        c.shift = part * 4;
        return c;
    }
    static __device__ void values(const Chunk& c, float (&v)[16]) {
        float2 by = unpack2(c.factors, __half());
#pragma unroll
        for (int j = 0; j < 16; j++) {
            v[j] = fmaf(byte_number(c.bytes.word(j / 4) >> c.shift & 0x0f0f0f0fu, j % 4), by.x, by.y);
        }
    }
};

// Of 32 numbers of five bits, a word with the fifth bits, bit i for number i, and the others as in Q4_0.
struct FiveBits {
    Unaligned16 low;
    uint32_t high;
    int shift;

    static __device__ __forceinline__ int number(const unsigned char* numbers, int i) {
        return (numbers[4 + i % 16] >> i / 16 * 4 & 15) | (numbers[i / 8] >> i % 8 & 1) << 4;
    }
    // The sixteen of a part, from an even address.
    __device__ __forceinline__ void load(const unsigned char* numbers, int part) {
        low.load(numbers + 4);
        high = load_half(numbers + 2 * part);
        shift = part * 4;
    }
    // Numbers 4 j to 4 j + 3, a byte each: the product has bit i of four at bit 8 i, and elsewhere.
    __device__ __forceinline__ uint32_t word(int j) const {
        return (low.word(j) >> shift & 0x0f0f0f0fu) | ((high >> 4 * j & 15) * 0x00204081u & 0x01010101u) << 4;
    }
};

// A float16 and 32 numbers of five bits, less 16.
struct Q5_0Format {
    static constexpr int NUMBERS = 32, BYTES = 22;
    struct Chunk {
        FiveBits numbers;
        uint32_t scale;
    };
    static __device__ float number(const unsigned char* block, int i) {
        return half_at(block) * (FiveBits::number(block + 2, i) - 16);
    }
    static __device__ Chunk load(const unsigned char* block, int part) {
        Chunk c;
        c.numbers.load(block + 2, part);
        c.scale = load_half(block);
        return c;
    }
    static __device__ void values(const Chunk& c, float (&v)[16]) {
        float scale = unpack2(c.scale, __half()).x;
#pragma unroll
        for (int j = 0; j < 16; j++) v[j] = (byte_number(c.numbers.word(j / 4), j % 4) - 16) * scale;
    }
};

// As Q5_0, but with a float16 behind the scale that is added in place of the 16 that are taken away.
struct Q5_1Format {
    static constexpr int NUMBERS = 32, BYTES = 24;
    struct Chunk {
        FiveBits numbers;
        uint32_t factors;
    };
    static __device__ float number(const unsigned char* block, int i) {
        return fmaf(FiveBits::number(block + 4, i), half_at(block), half_at(block + 2));
    }
    static __device__ Chunk load(const unsigned char* block, int part) {
        Chunk c;
        c.numbers.load(block + 4, part);
        c.factors = load_word(block);
        return c;
    }
    static __device__ void values(const Chunk& c, float (&v)[16]) {
        float2 by = unpack2(c.factors, __half());
#pragma unroll
        for (int j = 0; j < 16; j++) v[j] = fmaf(byte_number(c.numbers.word(j / 4), j % 4), by.x, by.y);
    }
};

// --- 256 numbers in eight runs of 32, each with a scale and a minimum --------------------------------------------------

// The first 16 bytes of a block: a float16 for the scales, one for the minima, and eight of each in six bits: those of runs 0
// to 3 are the lower bits of bytes 0 to 3 and 4 to 7; the upper two bits of these go on top of four bits each of bytes 8 to
// 11, the lower for scales and the upper for minima of runs 4 to 7.
struct RunScales {
    uint32_t words[4];
    int run;

    __device__ __forceinline__ void load(const unsigned char* block, int r) {
        load_words(words, block);
        run = r;
    }
    // Scale and minimum of the run.
    __device__ __forceinline__ float2 decode() const {
        int shift = run % 4 * 8;
        uint32_t a = words[1] >> shift & 255, b = words[2] >> shift & 255, c = words[3] >> shift & 255;
        uint32_t scale = run < 4 ? a & 63 : (c & 15) | a >> 6 << 4, minimum = run < 4 ? b & 63 : c >> 4 | b >> 6 << 4;
        float2 factors = unpack2(words[0], __half());
        return make_float2(factors.x * byte_number(scale, 0), factors.y * byte_number(minimum, 0));
    }
};

// The same for one number, byte by byte.
__device__ __forceinline__ float scaled_number(const unsigned char* block, int run, int q) {
    const unsigned char* packed = block + 4;
    int scale = run < 4 ? packed[run] & 63 : (packed[run + 4] & 15) | packed[run - 4] >> 6 << 4;
    int minimum = run < 4 ? packed[run + 4] & 63 : packed[run + 4] >> 4 | packed[run] >> 6 << 4;
    return fmaf(q, half_at(block) * scale, -(half_at(block + 2) * minimum));
}

// Four bits a number; runs two by two, one in the lower and one in the upper halves of 32 bytes.
struct Q4KFormat {
    static constexpr int NUMBERS = 256, BYTES = 144;
    struct Chunk {
        RunScales scales;
        uint32_t bits[4];
    };
    static __device__ float number(const unsigned char* block, int i) {
        int run = i / 32;
        return scaled_number(block, run, block[16 + run / 2 * 32 + i % 32] >> run % 2 * 4 & 15);
    }
    static __device__ Chunk load(const unsigned char* block, int part) {
        Chunk c;
        c.scales.load(block, part / 2);
        load_words(c.bits, block + 16 + part / 4 * 32 + part % 2 * 16);
        return c;
    }
    static __device__ void values(const Chunk& c, float (&v)[16]) {
        float2 by = c.scales.decode();
        int shift = c.scales.run % 2 * 4;
#pragma unroll
        for (int j = 0; j < 16; j++) v[j] = fmaf(byte_number(c.bits[j / 4] >> shift & 0x0f0f0f0fu, j % 4), by.x, -by.y);
    }
};

// As Q4_K, with a fifth bit for each number: bit `run` of 32 bytes before the others.
struct Q5KFormat {
    static constexpr int NUMBERS = 256, BYTES = 176;
    struct Chunk {
        RunScales scales;
        uint32_t high[4], low[4];
    };
    static __device__ float number(const unsigned char* block, int i) {
        int run = i / 32, low = block[48 + run / 2 * 32 + i % 32] >> run % 2 * 4 & 15;
        return scaled_number(block, run, low | (block[16 + i % 32] >> run & 1) << 4);
    }
    static __device__ Chunk load(const unsigned char* block, int part) {
        Chunk c;
        c.scales.load(block, part / 2);
        load_words(c.high, block + 16 + part % 2 * 16);
        load_words(c.low, block + 48 + part / 4 * 32 + part % 2 * 16);
        return c;
    }
    static __device__ void values(const Chunk& c, float (&v)[16]) {
        float2 by = c.scales.decode();
        int run = c.scales.run;
#pragma unroll
        for (int j = 0; j < 16; j++) {
            uint32_t q = (c.low[j / 4] >> run % 2 * 4 & 0x0f0f0f0fu) | (c.high[j / 4] >> run & 0x01010101u) << 4;
            v[j] = fmaf(byte_number(q, j % 4), by.x, -by.y);
        }
    }
};

// --- 256 numbers of six bits, less 32, in sixteen runs of 16 with a scale each -----------------------------------------

// The lower four bits: of each 128 numbers, 64 in the lower halves of 64 bytes, then 64 in the upper. The upper two: of each
// 128, four times 32, from the lowest bits of 32 bytes up. Then a signed byte for each run, and a float16 for all of them.
struct Q6KFormat {
    static constexpr int NUMBERS = 256, BYTES = 210;
    struct Chunk {
        Unaligned16 low, high;
        int scale, quarter;
        uint32_t factor;
    };
    static __device__ float number(const unsigned char* block, int i) {
        int half = i / 128, quarter = i % 128 / 32, j = i % 32;
        int low = block[half * 64 + quarter % 2 * 32 + j] >> quarter / 2 * 4 & 15;
        int high = block[128 + half * 32 + j] >> quarter * 2 & 3;
        return half_at(block + 208) * static_cast<signed char>(block[192 + i / 16]) * ((low | high << 4) - 32);
    }
    static __device__ Chunk load(const unsigned char* block, int part) {
        int half = part / 8, quarter = part % 8 / 2, at = part % 2 * 16;
        Chunk c;
        c.low.load(block + half * 64 + quarter % 2 * 32 + at);
        c.high.load(block + 128 + half * 32 + at);
        c.scale = static_cast<signed char>(block[192 + part]);
        c.quarter = quarter;
        c.factor = load_half(block + 208);
        return c;
    }
    static __device__ void values(const Chunk& c, float (&v)[16]) {
        float scale = unpack2(c.factor, __half()).x * c.scale;
#pragma unroll
        for (int j = 0; j < 16; j++) {
            uint32_t low = c.low.word(j / 4) >> c.quarter / 2 * 4 & 0x0f0f0f0fu;
            uint32_t high = c.high.word(j / 4) >> c.quarter * 2 & 0x03030303u;
            v[j] = (byte_number(low | high << 4, j % 4) - 32) * scale;
        }
    }
};

using Q8_0 = Blocks<Q8_0Format>;
using Q4_0 = Blocks<Q4_0Format>;
using Q4_1 = Blocks<Q4_1Format>;
using Q5_0 = Blocks<Q5_0Format>;
using Q5_1 = Blocks<Q5_1Format>;
using Q4K = Blocks<Q4KFormat>;
using Q5K = Blocks<Q5KFormat>;
using Q6K = Blocks<Q6KFormat>;
