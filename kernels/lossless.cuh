// The decoder of packed bfloat16 (docs/packing.md, "lossless"). It offers what dequant.cuh says, and numbers to the last bit.
//
// A row is two exponents, a count of escapes for each 256 numbers, the escapes, and at its end blocks of 64 numbers: codes of
// three bits, then bytes with a sign and a mantissa. Where a chunk's escapes are follows from the count and from how many
// codes are zero between there and the chunk; each lane counts these for itself, 32 codes at a time. Chunks are those of
// bfloat16, so that a product adds in the same order, and has the bits that it has with the original.
#pragma once
#include "dequant.cuh"

struct Lossless {
    using Operand = __nv_bfloat16;
    using OperandTable = NoTable;
    using ValueTable = NoTable;
    using LoadedScale = float;
    static constexpr int CHUNK = 8;
    static constexpr bool SCALED = false, DECODED = true;
    static constexpr int RUN = 256, BLOCK = 64, CODE_BYTES = BLOCK * 3 / 8, BLOCK_BYTES = CODE_BYTES + BLOCK;

    struct Chunk {
        uint2 numbers;     // bytes
        uint32_t codes;    // 24 bits
        uint32_t coded;    // the exponents of codes 1 and 2, a byte each
        uint32_t escapes[2]; // as many bytes as there could be
    };
    static __device__ bool blocks_hold_steps(const Weights&) { return true; }
    static __device__ float load_scale(const Weights&, int, int, int) { return 1; }
    static __device__ float scale(float loaded, const NoTable&) { return loaded; }

    // Bytes of a row before its blocks.
    static __device__ __forceinline__ int beside(const Weights& w, int k) { return w.row_bytes - ceil_div(k, BLOCK) * BLOCK_BYTES; }
    // Escape number `n` of a row. In a damaged one, counts may be anything: the escapes then begin where the blocks do.
    static __device__ __forceinline__ const unsigned char* escape(const Weights& w, int k, int row, int n) {
        return row_bytes(w, row) + clamped(2 + 2 * ceil_div(k, RUN) + n, beside(w, k) + 1);
    }
    static __device__ __forceinline__ const unsigned char* block(const Weights& w, int k, int row, int i) {
        return row_bytes(w, row) + beside(w, k) + i / BLOCK * BLOCK_BYTES;
    }
    // Escapes of the row before the run that number i is in.
    static __device__ __forceinline__ int before_run(const Weights& w, int row, int i) {
        return load_half(row_bytes(w, row) + 2 + i / RUN * 2);
    }

    // --- one number, eight codes after another -----------------------------------------------------------------------

    // A call: where many are inlined beside each other, registers do not suffice.
    static __device__ NOINLINE float at(const Weights& w, int k, int row, int i) {
        const unsigned char* exponents = row_bytes(w, row);
        int n = before_run(w, row, i);
        uint32_t codes = 0;
        for (int j = i / RUN * RUN; j <= i; j += 8) {
            const unsigned char* three = block(w, k, row, j) + j % BLOCK / 8 * 3;
            codes = three[0] | three[1] << 8 | three[2] << 16;
            uint32_t before = j + 8 <= i ? 0xffffffu : (1u << 3 * (i - j)) - 1;
            n += __popc(~(codes | codes >> 1 | codes >> 2) & 0x249249u & before);
        }
        uint32_t code = codes >> 3 * (i % 8) & 7, number = block(w, k, row, i)[CODE_BYTES + i % BLOCK];
        uint32_t exponent = code == 0 ? *escape(w, k, row, n) : code == 1 ? exponents[0] : exponents[1] + code - 2;
        return __uint_as_float((number & 0x80) << 24 | exponent << 23 | (number & 0x7f) << 16);
    }

    // --- eight numbers -----------------------------------------------------------------------------------------------

    // The codes of a block.
    struct Codes {
        uint2 q[3];

        __device__ __forceinline__ void load(const unsigned char* block) {
#pragma unroll
            for (int j = 0; j < 3; j++) q[j] = load8(block + 8 * j);
        }
        // Which of 32 codes are zero. Code n begins at bit 3 n of 96; its own bit is the one at that place in its word, and as 3 does
        // not divide 32, no two have the same.
        static __device__ __forceinline__ uint32_t zeros(uint32_t a, uint32_t b, uint32_t c) {
            uint32_t x = a | (a >> 1 | b << 31) | (a >> 2 | b << 30);
            uint32_t y = b | (b >> 1 | c << 31) | (b >> 2 | c << 30);
            uint32_t z = c | c >> 1 | c >> 2;
            return ~((x & 0x49249249u) | (y & 0x92492492u) | (z & 0x24924924u));
        }
        // The bits of the first so many eights of codes of those 32: all from 4 on, none up to 0.
        static __device__ __forceinline__ uint32_t first(int eights) {
            return (eights > 0 ? 0x00249249u : 0) | (eights > 1 ? 0x49002492u : 0) | (eights > 2 ? 0x92490024u : 0) |
                   (eights > 3 ? 0x24924900u : 0);
        }
        // How many of the first so many eights of codes are zero.
        __device__ __forceinline__ int escapes(int eights) const {
            return __popc(zeros(q[0].x, q[0].y, q[1].x) & first(eights)) + __popc(zeros(q[1].y, q[2].x, q[2].y) & first(eights - 4));
        }
        // Those of one eight, from the lowest bits up.
        __device__ __forceinline__ uint32_t eight(int n) const {
            uint32_t a = n < 4 ? q[0].x : q[1].y, b = n < 4 ? q[0].y : q[2].x, c = n < 4 ? q[1].x : q[2].y;
            int j = n % 4; // they begin at byte 0, 3, 6 or 9 of these
            return __byte_perm(j < 2 ? a : j == 2 ? b : c, j < 2 ? b : c, 0x3210 + 0x1111 * (3 * j % 4)) & 0xffffffu;
        }
    };

    // What fills the last block of a row are no numbers: beyond k there are zeros.
    static __device__ __forceinline__ Chunk load(const Weights& w, int k, int row, int i) {
        Chunk c = {};
        if (!within(i, k)) return c;
        const unsigned char* block = Lossless::block(w, k, row, i);
        int earlier = i % RUN / BLOCK, eight = i % BLOCK / 8; // blocks of the run, eights of the block
        Codes codes, others[RUN / BLOCK - 1];
        codes.load(block);
#pragma unroll
        for (int b = 0; b < RUN / BLOCK - 1; b++)
            if (b < earlier) others[b].load(block - (b + 1) * BLOCK_BYTES);
        c.numbers = load8_once(block + CODE_BYTES + eight * 8);
        c.coded = load_half(row_bytes(w, row));
        int n = before_run(w, row, i) + codes.escapes(eight);
#pragma unroll
        for (int b = 0; b < RUN / BLOCK - 1; b++)
            if (b < earlier) n += others[b].escapes(8);
        c.codes = codes.eight(eight);
        // Eight bytes from anywhere; what may be read before and behind them is in the row.
        const unsigned char* escapes = escape(w, k, row, n);
        int odd = reinterpret_cast<uintptr_t>(escapes) % 4;
        uint32_t words[3] = {load_word(escapes - odd), load_word(escapes - odd + 4), load_word(escapes - odd + 8)};
#pragma unroll
        for (int j = 0; j < 2; j++) c.escapes[j] = __byte_perm(words[j], words[j + 1], 0x3210 + 0x1111 * odd);
        return c;
    }
    // All eight at once: codes in four bits each are what __byte_perm takes to look up exponents.
    static __device__ __forceinline__ void operands(const Chunk& c, const NoTable&, uint32_t (&o)[CHUNK / 2]) {
        uint32_t codes = (c.codes & 0xfffu) | (c.codes & 0xfff000u) << 4;
        codes = (codes & 0x003f003fu) | (codes & 0x0fc00fc0u) << 2;
        codes = (codes & 0x07070707u) | (codes & 0x38383838u) << 1;
        uint32_t escaped = ~(codes | codes >> 1 | codes >> 2) & 0x11111111u;
        uint32_t rank = escaped * 0x11111110u; // how many of those before it are
        // Of codes 0 to 3, and of 4 to 7.
        uint32_t low = __byte_perm(c.coded, 0, 0x1104) + 0x01000000u, high = __byte_perm(c.coded, 0, 0x1111) + 0x05040302u;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint32_t escapes = __byte_perm(c.escapes[0], c.escapes[1], rank >> 16 * h);
            uint32_t exponents = __byte_perm(low, high, codes >> 16 * h) | (escapes & __byte_perm(0xff00u, 0, escaped >> 16 * h));
            uint32_t numbers = h == 0 ? c.numbers.x : c.numbers.y;
#pragma unroll
            for (int j = 0; j < 2; j++) {
                uint32_t pair = __byte_perm(numbers, exponents, j == 0 ? 0x5140 : 0x7362); // number, exponent, number, exponent
                o[2 * h + j] = (pair & 0xff00ff00u) >> 1 | (pair & 0x007f007fu) | (pair & 0x00800080u) << 8;
            }
        }
    }
    static __device__ __forceinline__ void values(const Chunk& c, const NoTable& none, float (&v)[CHUNK]) {
        uint32_t o[CHUNK / 2];
        operands(c, none, o);
#pragma unroll
        for (int j = 0; j < CHUNK / 2; j++) {
            float2 pair = unpack2(o[j], Operand());
            v[2 * j] = pair.x, v[2 * j + 1] = pair.y;
        }
    }
};
