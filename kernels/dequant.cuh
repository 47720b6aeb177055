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
// Unscaled operands are exact for int8 and fp8, and one rounding away for nf4. SCALED says whether there are scales, DECODED
// whether operands are something else than the bytes that were loaded. gguf.cuh has the decoders of GGUF's blocks.
#pragma once
#include "tile.cuh"

// Four lanes of a warp take a chunk each: a step is what they cover.
template <class E> constexpr int STEP = 4 * E::CHUNK;

// Whether rows of k elements are decoded by whole steps. A property of the weight, so that bits do not depend on where a
// tile happens to lie; rows of other lengths go through `at`, element by element.
template <class E> __device__ __forceinline__ bool whole_steps(const Weights& w, int k) {
    return k % STEP<E> == 0 && E::blocks_hold_steps(w);
}

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

// --- eight bits and a scale ------------------------------------------------------------------------------------------

// What int8 and fp8 have in common: `Format` makes a number of byte j of a word, and knows where scales are.
template <class Format> struct Bytes {
    using Operand = __nv_bfloat16;
    using OperandTable = NoTable;
    using ValueTable = NoTable;
    using Chunk = uint4;
    using LoadedScale = float;
    static constexpr int CHUNK = 16;
    static constexpr bool SCALED = true, DECODED = true;
    static __device__ bool blocks_hold_steps(const Weights& w) { return Format::blocks_hold_steps(w); }
    static __device__ float load_scale(const Weights& w, int k, int row, int i) { return Format::scale(w, k, row, i); }
    static __device__ float scale(float loaded, const NoTable&) { return loaded; }
    static __device__ float at(const Weights& w, int k, int row, int i) {
        uint32_t byte = static_cast<const unsigned char*>(w.data)[(long long)row * k + i];
        return Format::number(byte, 0) * Format::scale(w, k, row, i);
    }
    static __device__ Chunk load(const Weights& w, int k, int row, int i) {
        return load16_once(static_cast<const unsigned char*>(w.data) + (long long)row * k + i);
    }
    static __device__ void values(Chunk c, const NoTable&, float (&v)[CHUNK]) {
        uint32_t words[4] = {c.x, c.y, c.z, c.w};
        for (int j = 0; j < CHUNK; j++) v[j] = Format::number(words[j / 4], j % 4);
    }
    static __device__ void operands(Chunk c, const NoTable& none, uint32_t (&o)[CHUNK / 2]) {
        float v[CHUNK];
        values(c, none, v);
        for (int j = 0; j < CHUNK / 2; j++) o[j] = pack2(v[2 * j], v[2 * j + 1], Operand());
    }
};

struct Int8Format {
    static __device__ bool blocks_hold_steps(const Weights& w) { return w.block_shift < 0 || w.block_shift >= 6; }
    static __device__ float scale(const Weights& w, int k, int row, int i) {
        long long index = w.first_row + row;
        if (w.block_shift >= 0) index = (index * k + i) >> w.block_shift;
        return static_cast<const float*>(w.scale)[index];
    }
    // The byte becomes the mantissa of 2^23 + 128 + q: conversions from integers are slower than this.
    static __device__ float number(uint32_t word, int j) {
        return __uint_as_float(__byte_perm(word ^ 0x80808080u, 0x4b000000u, 0x7540 + j)) - 8388736.0f;
    }
};
struct Fp8Format {
    static __device__ bool blocks_hold_steps(const Weights& w) { return w.column_shift >= 6; }
    static __device__ float scale(const Weights& w, int k, int row, int i) {
        long long columns = ((k - 1) >> w.column_shift) + 1;
        return static_cast<const float*>(w.scale)[((w.first_row + row) >> w.row_shift) * columns + (i >> w.column_shift)];
    }
    // Sign, exponent and mantissa move to their places in a float32; 2^120 makes up for the exponents' biases.
    static __device__ float number(uint32_t word, int j) {
        uint32_t top = word << (24 - 8 * j);
        return __uint_as_float((top & 0x80000000u) | (top >> 4 & 0x07f00000u)) * 1.329227995784915872903807060280344576e36f;
    }
};
using Int8 = Bytes<Int8Format>;
using Fp8 = Bytes<Fp8Format>;

// --- four bits, a table and a scale ----------------------------------------------------------------------------------

// The quantiles of a normal distribution that QLoRA (Dettmers et al., 2023) defines, as bitsandbytes has them.
__constant__ float NF4_TABLE[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f,
    -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

struct Nf4 {
    using Operand = __nv_bfloat16;
    using Chunk = uint2;
    static constexpr int CHUNK = 16;
    static constexpr bool SCALED = true, DECODED = true;

    // A scale, or when nested its code and the scale of that.
    struct LoadedScale {
        uint32_t code;
        float outer;
    };
    struct ScaleTable {
        const float* map; // null: not nested
        float offset;
        __device__ __forceinline__ void fill(const Weights& w) {
            SHARED(float, codes, [256]);
            if (w.nested_map)
                for (int e = threadIdx.x; e < 256; e += blockDim.x) codes[e] = w.nested_map[e];
            map = w.nested_map ? codes : nullptr;
            offset = w.nested_offset;
        }
    };
    // Both numbers of a byte at once. Four copies, used by a quarter of the lanes each, halve the bank conflicts.
    struct OperandTable : ScaleTable {
        static constexpr int COPIES = 4;
        const uint32_t* pairs;
        __device__ __forceinline__ void fill(const Weights& w) {
            SHARED(uint32_t, table, [256 * COPIES]);
            for (int e = threadIdx.x; e < 256 * COPIES; e += blockDim.x) {
                int byte = e / COPIES;
                table[e] = pack2(NF4_TABLE[byte >> 4], NF4_TABLE[byte & 15], Operand());
            }
            ScaleTable::fill(w);
            __syncthreads();
            pairs = table;
        }
        __device__ __forceinline__ uint32_t operator[](uint32_t byte) const {
            return pairs[byte * COPIES + threadIdx.x % COPIES];
        }
    };
    // One copy a lane: no conflicts.
    struct ValueTable : ScaleTable {
        const float* numbers;
        __device__ __forceinline__ void fill(const Weights& w) {
            SHARED(float, table, [16 * 32]);
            for (int e = threadIdx.x; e < 16 * 32; e += blockDim.x) table[e] = NF4_TABLE[e / 32];
            ScaleTable::fill(w);
            __syncthreads();
            numbers = table;
        }
        __device__ __forceinline__ float operator[](uint32_t q) const { return numbers[q * 32 + threadIdx.x % 32]; }
    };

    static __device__ bool blocks_hold_steps(const Weights& w) { return w.block_shift >= 6; }
    static __device__ LoadedScale load_scale(const Weights& w, int k, int row, int i) {
        long long block = ((long long)(w.first_row + row) * k + i) >> w.block_shift;
        if (!w.nested_map) return {__float_as_uint(static_cast<const float*>(w.scale)[block]), 0};
        return {static_cast<const unsigned char*>(w.scale)[block], w.nested_scale[block / 256]};
    }
    static __device__ float scale(LoadedScale loaded, const ScaleTable& table) {
        return table.map ? fmaf(table.map[loaded.code], loaded.outer, table.offset) : __uint_as_float(loaded.code);
    }
    static __device__ float at(const Weights& w, int k, int row, int i) {
        long long first = (long long)w.first_row * k, index = first + (long long)row * k + i;
        uint32_t byte = static_cast<const unsigned char*>(w.data)[index / 2 - first / 2];
        return NF4_TABLE[index % 2 ? byte & 15 : byte >> 4] * scale(load_scale(w, k, row, i), {w.nested_map, w.nested_offset});
    }
    static __device__ Chunk load(const Weights& w, int k, int row, int i) {
        return load8_once(static_cast<const unsigned char*>(w.data) + ((long long)row * k + i) / 2);
    }
    static __device__ void operands(Chunk c, const OperandTable& table, uint32_t (&o)[CHUNK / 2]) {
        uint32_t words[2] = {c.x, c.y};
        for (int j = 0; j < CHUNK / 2; j++) o[j] = table[words[j / 4] >> (j % 4 * 8) & 0xff];
    }
    static __device__ void values(Chunk c, const ValueTable& table, float (&v)[CHUNK]) {
        uint32_t words[2] = {c.x, c.y};
        for (int j = 0; j < CHUNK; j++) v[j] = table[words[j / 8] >> (j % 8 / 2 * 8 + (j % 2 ? 0 : 4)) & 15];
    }
};

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
    static __device__ uint32_t exponent(const Weights& w, int k, int row, int i) {
        return static_cast<const unsigned char*>(w.scale)[(long long)(w.first_row + row) * (k / 32) + i / 32];
    }
    // 2^(exponent - 127), whose least is below the normal numbers.
    static __device__ float power(uint32_t exponent) { return __uint_as_float(exponent > 0 ? exponent << 23 : 1u << 22); }
    // Sign, exponent and mantissa of number j of a word move to their places in a float32; 2^126 makes up for the biases.
    static __device__ float number(uint32_t word, int j) {
        uint32_t top = word << (28 - 4 * j);
        return __uint_as_float((top & 0x80000000u) | (top >> 6 & 0x01c00000u)) * 8.50705917302346158658436518579420528640e37f;
    }
    static __device__ float at(const Weights& w, int k, int row, int i) {
        uint32_t byte = static_cast<const unsigned char*>(w.data)[((long long)row * k + i) / 2];
        return number(byte, i % 2) * power(exponent(w, k, row, i));
    }
    static __device__ Chunk load(const Weights& w, int k, int row, int i) {
        const unsigned char* numbers = static_cast<const unsigned char*>(w.data) + ((long long)row * k + i) / 2;
        return {load8_once(numbers), exponent(w, k, row, i)};
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
