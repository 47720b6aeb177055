// One decoder per encoding of weights: from the checkpoint's bytes to numbers. The formats are described at `struct Weights`
// in params.h.
//
// A decoder offers
//   at(w, k, row, i)      element i of the tile's row `row`, exactly as the encoding defines it, in float32
//   load(w, k, row, i)    the CHUNK consecutive elements from i on, undecoded; i is a multiple of CHUNK
//   operands(chunk, ...)  those as pairs of the multiply's 16-bit operand type, without the scale
//   values(chunk, ...)    those as float32, without the scale
//   load_scale(w, k, row, i)  what the scale of the STEP from i on is made of: loads only, so that many can be in flight
//   scale(loaded, ...)    that scale
// All but `at` are for rows of whole steps only (`whole_steps`): STEP elements then share one scale and are aligned.
// Unscaled operands are exact for integers and fp8, and one rounding away for nf4 and fp4. SCALED says whether there are scales, DECODED
// whether operands are something else than the bytes that were loaded. gguf.cuh has the decoders of GGUF's blocks, lossless.cuh
// that of packed bfloat16.
#pragma once
#include "tile.cuh"

// Four lanes of a warp take a chunk each: a step is what they cover.
template <class E> constexpr int STEP = 4 * E::CHUNK;

// Whether rows of k elements are decoded by whole steps. A property of the weight, so that bits do not depend on where a
// tile happens to lie; rows of other lengths go through `at`, element by element.
template <class E> __device__ __forceinline__ bool whole_steps(const Weights& w, int k) {
    return k % STEP<E> == 0 && E::blocks_hold_steps(w);
}

__device__ __forceinline__ uint32_t load_word(const void* p) { return *static_cast<const uint32_t*>(p); }
__device__ __forceinline__ uint32_t load_half(const void* p) { return *static_cast<const uint16_t*>(p); }

// What a product is multiplied by.
__device__ __forceinline__ float scale_of(const GemmParams& p) { return p.scale == 0 ? 1 : p.scale; }

// The tables that a decoder keeps in shared memory: none, for most. `fill` is called by all threads of the block.
struct NoTable {
    __device__ __forceinline__ void fill(const Weights&) {}
};

// --- numbers as they are ---------------------------------------------------------------------------------------------

struct F32 {
    using Operand = float;
    using OperandTable = NoTable;
    using ValueTable = NoTable;
    using Chunk = uint4;
    using LoadedScale = float;
    static constexpr int CHUNK = 4;
    static constexpr bool SCALED = false, DECODED = false;
    static __device__ bool blocks_hold_steps(const Weights&) { return true; }
    static __device__ float at(const Weights& w, int k, int row, int i) {
        return static_cast<const float*>(w.data)[(long long)row * k + i];
    }
    static __device__ Chunk load(const Weights& w, int k, int row, int i) {
        return load16_once(static_cast<const float*>(w.data) + (long long)row * k + i);
    }
    static __device__ float load_scale(const Weights&, int, int, int) { return 1; }
    static __device__ float scale(float loaded, const NoTable&) { return loaded; }
    static __device__ void values(Chunk c, const NoTable&, float (&v)[CHUNK]) {
        uint32_t words[4] = {c.x, c.y, c.z, c.w};
        for (int j = 0; j < 4; j++) v[j] = __uint_as_float(words[j]);
    }
};

template <class T> struct Half {
    using Operand = T;
    using OperandTable = NoTable;
    using ValueTable = NoTable;
    using Chunk = uint4;
    using LoadedScale = float;
    static constexpr int CHUNK = 8;
    static constexpr bool SCALED = false, DECODED = false;
    static __device__ bool blocks_hold_steps(const Weights&) { return true; }
    static __device__ float at(const Weights& w, int k, int row, int i) {
        return static_cast<const T*>(w.data)[(long long)row * k + i];
    }
    static __device__ Chunk load(const Weights& w, int k, int row, int i) {
        return load16_once(static_cast<const T*>(w.data) + (long long)row * k + i);
    }
    static __device__ float load_scale(const Weights&, int, int, int) { return 1; }
    static __device__ float scale(float loaded, const NoTable&) { return loaded; }
    static __device__ void operands(Chunk c, const NoTable&, uint32_t (&o)[CHUNK / 2]) {
        o[0] = c.x, o[1] = c.y, o[2] = c.z, o[3] = c.w;
    }
    static __device__ void values(Chunk c, const NoTable&, float (&v)[CHUNK]) {
        uint32_t words[4] = {c.x, c.y, c.z, c.w};
        for (int j = 0; j < 4; j++) {
            float2 pair = unpack2(words[j], T());
            v[2 * j] = pair.x, v[2 * j + 1] = pair.y;
        }
    }
};
using F16 = Half<__half>;
using Bf16 = Half<__nv_bfloat16>;

// --- numbers with factors --------------------------------------------------------------------------------------------

// Where the factors of element i of the tile's row `row` are.
__device__ __forceinline__ long long factor_index(const Weights& w, int row, int i) {
    return (long long)((w.first_row + row) >> w.row_shift) * w.scale_stride + (i >> w.column_shift);
}
__device__ __forceinline__ const unsigned char* row_bytes(const Weights& w, int row) {
    return static_cast<const unsigned char*>(w.data) + (long long)row * w.row_bytes;
}

// What decoders of codes with scales have in common. `Codes` makes numbers of codes:
//   number(w, row, i)     of one
//   load(w, row, i)       CHUNK of them, undecoded
//   values, operands      of those
template <class Codes> struct Scaled {
    using Operand = __nv_bfloat16;
    using OperandTable = typename Codes::OperandTable;
    using ValueTable = typename Codes::ValueTable;
    using Chunk = typename Codes::Chunk;
    using LoadedScale = float;
    static constexpr int CHUNK = 16;
    static constexpr bool SCALED = true, DECODED = true;
    static __device__ bool blocks_hold_steps(const Weights& w) { return w.column_shift >= 6; }
    static __device__ float load_scale(const Weights& w, int, int row, int i) {
        return static_cast<const float*>(w.scale)[factor_index(w, row, i)];
    }
    template <class Table> static __device__ float scale(float loaded, const Table&) { return loaded; }
    static __device__ float at(const Weights& w, int k, int row, int i) {
        return Codes::number(w, row, i) * load_scale(w, k, row, i);
    }
    static __device__ Chunk load(const Weights& w, int, int row, int i) { return Codes::load(w, row, i); }
    static __device__ void values(const Chunk& c, const ValueTable& table, float (&v)[CHUNK]) { Codes::values(c, table, v); }
    static __device__ void operands(const Chunk& c, const OperandTable& table, uint32_t (&o)[CHUNK / 2]) {
        Codes::operands(c, table, o);
    }
};

// Rounds once what is not exact, which integers of eight bits are.
__device__ __forceinline__ void pack_values(const float (&v)[16], uint32_t (&o)[8]) {
#pragma unroll
    for (int j = 0; j < 8; j++) o[j] = pack2(v[2 * j], v[2 * j + 1], __nv_bfloat16());
}

// --- eight bits ------------------------------------------------------------------------------------------------------

// Codes of a byte each: `Format` makes a number of byte j of a word.
template <class Format> struct Bytes {
    using OperandTable = NoTable;
    using ValueTable = NoTable;
    using Chunk = uint4;
    static __device__ float number(const Weights& w, int row, int i) { return Format::number(row_bytes(w, row)[i], 0); }
    static __device__ Chunk load(const Weights& w, int row, int i) { return load16_once(row_bytes(w, row) + i); }
    static __device__ void values(Chunk c, const NoTable&, float (&v)[16]) {
        uint32_t words[4] = {c.x, c.y, c.z, c.w};
#pragma unroll
        for (int j = 0; j < 16; j++) v[j] = Format::number(words[j / 4], j % 4);
    }
    static __device__ void operands(Chunk c, const NoTable& none, uint32_t (&o)[8]) {
        float v[16];
        values(c, none, v);
        pack_values(v, o);
    }
};

// A byte less 128; signed bytes are that with their upper bits flipped.
template <uint32_t FLIP> struct ByteFormat {
    // The byte becomes the mantissa of 2^23 + byte: conversions from integers are slower than this.
    static __device__ float number(uint32_t word, int j) {
        return __uint_as_float(__byte_perm(word ^ FLIP, 0x4b000000u, 0x7540 + j)) - 8388736.0f;
    }
};
using Int8Format = ByteFormat<0x80808080u>;
using Offset8Format = ByteFormat<0>;
struct Fp8Format {
    // Sign, exponent and mantissa move to their places in a float32; 2^120 makes up for the exponents' biases.
    static __device__ float number(uint32_t word, int j) {
        uint32_t top = word << (24 - 8 * j);
        return __uint_as_float((top & 0x80000000u) | (top >> 4 & 0x07f00000u)) * 1.329227995784915872903807060280344576e36f;
    }
};
using Int8 = Scaled<Bytes<Int8Format>>;
using Fp8 = Scaled<Bytes<Fp8Format>>;

// --- four bits and a table -------------------------------------------------------------------------------------------

// The quantiles of a normal distribution that QLoRA (Dettmers et al., 2023) defines, as bitsandbytes has them.
__constant__ float NF4_TABLE[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f,
    -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

// bitsandbytes' FP4: twelfths of 0, 1/16, 8, 12, 4, 6, 2 and 3, then these again, negative.
__constant__ float FP4_TABLE[16] = {0.0f,  0.0625f / 12,  8.0f / 12,  1.0f,  4.0f / 12,  0.5f,  2.0f / 12,  0.25f,
                                    -0.0f, -0.0625f / 12, -8.0f / 12, -1.0f, -4.0f / 12, -0.5f, -2.0f / 12, -0.25f};

struct Nf4Numbers {
    static __device__ __forceinline__ float number(uint32_t q) { return NF4_TABLE[q]; }
};
struct Fp4Numbers {
    static __device__ __forceinline__ float number(uint32_t q) { return FP4_TABLE[q]; }
};

// Indices into a table, two in a byte, the first in its upper half.
template <class Numbers> struct Nibbles {
    using Chunk = uint2;
    // Both numbers of a byte at once. Four copies, used by a quarter of the lanes each, halve the bank conflicts.
    struct OperandTable {
        static constexpr int COPIES = 4;
        const uint32_t* pairs;
        __device__ __forceinline__ void fill(const Weights&) {
            SHARED(uint32_t, table, [256 * COPIES]);
            for (int e = threadIdx.x; e < 256 * COPIES; e += blockDim.x) {
                int byte = e / COPIES;
                table[e] = pack2(Numbers::number(byte >> 4), Numbers::number(byte & 15), __nv_bfloat16());
            }
            __syncthreads();
            pairs = table;
        }
        __device__ __forceinline__ uint32_t operator[](uint32_t byte) const {
            return pairs[byte * COPIES + threadIdx.x % COPIES];
        }
    };
    // One copy a lane: no conflicts.
    struct ValueTable {
        const float* numbers;
        __device__ __forceinline__ void fill(const Weights&) {
            SHARED(float, table, [16 * 32]);
            for (int e = threadIdx.x; e < 16 * 32; e += blockDim.x) table[e] = Numbers::number(e / 32);
            __syncthreads();
            numbers = table;
        }
        __device__ __forceinline__ float operator[](uint32_t q) const { return numbers[q * 32 + threadIdx.x % 32]; }
    };

    static __device__ float number(const Weights& w, int row, int i) {
        uint32_t byte = row_bytes(w, row)[i / 2];
        return Numbers::number(i % 2 ? byte & 15 : byte >> 4);
    }
    static __device__ Chunk load(const Weights& w, int row, int i) { return load8_once(row_bytes(w, row) + i / 2); }
    static __device__ void operands(Chunk c, const OperandTable& table, uint32_t (&o)[8]) {
        uint32_t words[2] = {c.x, c.y};
#pragma unroll
        for (int j = 0; j < 8; j++) o[j] = table[words[j / 4] >> (j % 4 * 8) & 0xff];
    }
    static __device__ void values(Chunk c, const ValueTable& table, float (&v)[16]) {
        uint32_t words[2] = {c.x, c.y};
#pragma unroll
        for (int j = 0; j < 16; j++) v[j] = table[words[j / 8] >> (j % 8 / 2 * 8 + (j % 2 ? 0 : 4)) & 15];
    }
};
using Nf4 = Scaled<Nibbles<Nf4Numbers>>;
using Fp4 = Scaled<Nibbles<Fp4Numbers>>;

// --- four bits, a table, and scales in bytes ---------------------------------------------------------------------------

// What the codes 128 to 254 of a scale stand for; 255 is one, 127 zero, and below it are these again, negative: the signed
// dynamic map of bitsandbytes (Dettmers et al., 2022, arXiv:2110.02861), halfway between points that divide each power of ten
// evenly.
__constant__ float SCALE_MAP[127] = {
    5.5000004e-7f, 3.2500002e-6f, 7.75e-6f, 2.1249998e-5f, 4.375e-5f, 6.625e-5f, 8.875e-5f, 0.00015625001f,
    0.00026875004f, 0.00038125002f, 0.00049375003f, 0.0006062501f, 0.00071875006f, 0.00083125f, 0.0009437501f,
    0.0012812499f, 0.00184375f, 0.00240625f, 0.00296875f, 0.0035312497f, 0.00409375f, 0.0046562497f, 0.0052187503f,
    0.00578125f, 0.00634375f, 0.00690625f, 0.00746875f, 0.00803125f, 0.00859375f, 0.009156249f, 0.00971875f, 0.01140625f,
    0.01421875f, 0.01703125f, 0.019843752f, 0.02265625f, 0.02546875f, 0.028281251f, 0.03109375f, 0.03390625f,
    0.036718752f, 0.03953125f, 0.042343747f, 0.04515625f, 0.04796875f, 0.05078125f, 0.05359375f, 0.05640625f,
    0.059218753f, 0.06203125f, 0.06484375f, 0.067656256f, 0.070468746f, 0.07328125f, 0.07609375f, 0.07890625f,
    0.08171876f, 0.08453125f, 0.08734375f, 0.09015625f, 0.092968754f, 0.09578126f, 0.09859375f, 0.107031256f, 0.12109375f,
    0.13515624f, 0.14921875f, 0.16328125f, 0.17734376f, 0.19140625f, 0.20546874f, 0.21953125f, 0.23359375f, 0.24765624f,
    0.26171875f, 0.27578127f, 0.28984374f, 0.30390626f, 0.31796873f, 0.33203125f, 0.34609374f, 0.36015624f, 0.37421876f,
    0.38828123f, 0.40234375f, 0.41640624f, 0.43046874f, 0.44453126f, 0.45859373f, 0.47265625f, 0.4867187f, 0.50078124f,
    0.5148437f, 0.5289062f, 0.54296875f, 0.5570313f, 0.5710938f, 0.58515626f, 0.5992187f, 0.61328125f, 0.6273438f,
    0.6414063f, 0.65546876f, 0.6695312f, 0.68359375f, 0.6976563f, 0.7117188f, 0.72578126f, 0.7398437f, 0.75390625f,
    0.7679688f, 0.78203124f, 0.79609376f, 0.8101562f, 0.82421875f, 0.8382813f, 0.85234374f, 0.86640626f, 0.8804687f,
    0.89453125f, 0.9085938f, 0.92265624f, 0.93671876f, 0.9507812f, 0.96484375f, 0.9789063f, 0.99296874f};
__device__ __forceinline__ float scale_number(int code) {
    if (code == 255) return 1;
    if (code == 127) return 0;
    return code > 127 ? SCALE_MAP[code - 128] : -SCALE_MAP[126 - code];
}

// As Nf4, of rows that bring along, behind their scales' codes (and zeros up to a multiple of 4), a factor for each 256 of
// these and one offset.
struct Nf4d : Scaled<Nibbles<Nf4Numbers>> {
    struct LoadedScale {
        uint32_t code;
        float factor, offset;
    };
    struct ScaleTable {
        const float* map;
        __device__ __forceinline__ void fill() {
            SHARED(float, numbers, [256]);
            for (int e = threadIdx.x; e < 256; e += blockDim.x) numbers[e] = scale_number(e);
            __syncthreads();
            map = numbers;
        }
    };
    struct OperandTable : Nibbles<Nf4Numbers>::OperandTable {
        ScaleTable scales;
        __device__ __forceinline__ void fill(const Weights& w) {
            Nibbles<Nf4Numbers>::OperandTable::fill(w);
            scales.fill();
        }
    };
    struct ValueTable : Nibbles<Nf4Numbers>::ValueTable {
        ScaleTable scales;
        __device__ __forceinline__ void fill(const Weights& w) {
            Nibbles<Nf4Numbers>::ValueTable::fill(w);
            scales.fill();
        }
    };
    static __device__ LoadedScale load_scale(const Weights& w, int k, int row, int i) {
        int count = ceil_div(k, 64), block = i / 64;
        const unsigned char* codes = static_cast<const unsigned char*>(w.scale) + factor_index(w, row, 0);
        const float* factors = reinterpret_cast<const float*>(codes + ceil_div(count, 4) * 4);
        return {codes[block], factors[block / 256], factors[ceil_div(count, 256)]};
    }
    template <class Table> static __device__ float scale(const LoadedScale& loaded, const Table& table) {
        return fmaf(table.scales.map[loaded.code], loaded.factor, loaded.offset);
    }
    // A call: where many are inlined beside each other, registers do not suffice (sm_100 and sm_120).
    static __device__ NOINLINE float at(const Weights& w, int k, int row, int i) {
        LoadedScale loaded = load_scale(w, k, row, i);
        return Nibbles<Nf4Numbers>::number(w, row, i) * fmaf(scale_number(loaded.code), loaded.factor, loaded.offset);
    }
};

// --- integers less a zero ----------------------------------------------------------------------------------------------

// The number of an unsigned byte of a word: it becomes the mantissa of 2^23 + byte.
__device__ __forceinline__ float byte_number(uint32_t word, int j) {
    return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7540 + j)) - 8388608.0f;
}

// Numbers of four bits less 8, two in a byte, the first in its lower half.
struct LowNibbles {
    using Chunk = uint2;
    static __device__ float number(const Weights& w, int row, int i) {
        return int(row_bytes(w, row)[i / 2] >> i % 2 * 4 & 15) - 8;
    }
    static __device__ Chunk load(const Weights& w, int row, int i) { return load8_once(row_bytes(w, row) + i / 2); }
    static __device__ void values(Chunk c, const NoTable&, float (&v)[16]) {
        uint32_t words[2] = {c.x, c.y};
#pragma unroll
        for (int j = 0; j < 16; j++) v[j] = byte_number(words[j / 8] >> j % 2 * 4 & 0x0f0f0f0fu, j % 8 / 2) - 8;
    }
};

// Codes with, or without, a zero for each block, which a chunk brings along. What is left of eight bits is exact in bfloat16.
template <class Codes> struct LessZero {
    using OperandTable = NoTable;
    using ValueTable = NoTable;
    struct Chunk {
        typename Codes::Chunk codes;
        float zero;
    };
    static __device__ float zero(const Weights& w, int row, int i) { return w.zero ? w.zero[factor_index(w, row, i)] : 0; }
    static __device__ Chunk load(const Weights& w, int row, int i) { return {Codes::load(w, row, i), zero(w, row, i)}; }
    static __device__ void values(const Chunk& c, const NoTable& none, float (&v)[16]) {
        Codes::values(c.codes, none, v);
#pragma unroll
        for (int j = 0; j < 16; j++) v[j] -= c.zero;
    }
    static __device__ void operands(const Chunk& c, const NoTable& none, uint32_t (&o)[8]) {
        float v[16];
        values(c, none, v);
        pack_values(v, o);
    }
};

// These with scales. Where columns are in blocks in any order, no step has one scale: rows go element by element.
template <class Codes> struct Integers : Scaled<LessZero<Codes>> {
    static __device__ bool blocks_hold_steps(const Weights& w) {
        return !w.index && Scaled<LessZero<Codes>>::blocks_hold_steps(w);
    }
    static __device__ float at(const Weights& w, int, int row, int i) {
        long long block = w.index ? factor_index(w, row, 0) + w.index[i] : factor_index(w, row, i);
        float zero = w.zero ? w.zero[block] : 0;
        return (Codes::number(w, row, i) - zero) * static_cast<const float*>(w.scale)[block];
    }
};
using Int8Zero = Integers<Bytes<Int8Format>>;
using Offset8 = Integers<Bytes<Offset8Format>>;
using Offset4 = Integers<LowNibbles>;

// --- four bits and an exponent ---------------------------------------------------------------------------------------

// MXFP4 (Open Compute Project, Microscaling Formats 1.0): E2M1, two in a byte, the first in the low half; 32 of a row share an
// exponent of eight bits. A power of two moves no bit of a mantissa, so bfloat16 operands hold it exactly: lanes load a chunk
// with its own exponent, and steps have no scale.
struct Mxfp4 {
    using Operand = __nv_bfloat16;
    using OperandTable = NoTable;
    using ValueTable = NoTable;
    using LoadedScale = float;
    static constexpr int CHUNK = 16;
    static constexpr bool SCALED = false, DECODED = true;

    struct Chunk {
        uint2 numbers;
        uint32_t exponent;
    };
    static __device__ bool blocks_hold_steps(const Weights&) { return true; }
    static __device__ float load_scale(const Weights&, int, int, int) { return 1; }
    static __device__ float scale(float loaded, const NoTable&) { return loaded; }
    static __device__ uint32_t exponent(const Weights& w, int row, int i) {
        return static_cast<const unsigned char*>(w.scale)[factor_index(w, row, i)];
    }
    // 2^(exponent - 127), whose least is below the normal numbers.
    static __device__ float power(uint32_t exponent) { return __uint_as_float(exponent > 0 ? exponent << 23 : 1u << 22); }
    // Sign, exponent and mantissa of number j of a word move to their places in a float32; 2^126 makes up for the biases.
    static __device__ float number(uint32_t word, int j) {
        uint32_t top = word << (28 - 4 * j);
        return __uint_as_float((top & 0x80000000u) | (top >> 6 & 0x01c00000u)) * 8.50705917302346158658436518579420528640e37f;
    }
    static __device__ float at(const Weights& w, int k, int row, int i) {
        return number(row_bytes(w, row)[i / 2], i % 2) * power(exponent(w, row, i));
    }
    static __device__ Chunk load(const Weights& w, int k, int row, int i) {
        return {load8_once(row_bytes(w, row) + i / 2), exponent(w, row, i)};
    }
    static __device__ void values(Chunk c, const NoTable&, float (&v)[CHUNK]) {
        uint32_t words[2] = {c.numbers.x, c.numbers.y};
        float power = Mxfp4::power(c.exponent);
        for (int j = 0; j < CHUNK; j++) v[j] = number(words[j / 8], j % 8) * power;
    }
    static __device__ void operands(Chunk c, const NoTable& none, uint32_t (&o)[CHUNK / 2]) {
        float v[CHUNK];
        values(c, none, v);
        for (int j = 0; j < CHUNK / 2; j++) o[j] = pack2(v[2 * j], v[2 * j + 1], Operand());
    }
};
