// The CUDA device language for a CPU: what a kernel of this folder may use, and nothing more.
//
// A block's threads are fibers of one OS thread, switched only where a real thread could wait: at barriers and at warp
// collectives. shim.cpp owns the scheduler and chooses, per launch, which fiber goes on (see Schedule), so that code
// which relies on luck meets a schedule without it. Shared memory is poisoned with NaN before every block, and a copy
// begun by cp.async lands either at once or not before it is waited for. Whatever a GPU would leave undefined (a
// misaligned 16-byte access, a shuffle from a lane that is not there, threads at different barriers, a write past
// shared memory, an access outside every buffer) fails the launch with a message instead.
//
// Included before the kernel's own file, outside of the anonymous namespace that host/kernel.cpp wraps round it.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define KERNELS_HOST 1
#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) alignas(n)
#define NOINLINE __attribute__((noinline))

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace shim {

// --- what shim.cpp provides ------------------------------------------------------------------------------------------

struct Warp; // what its lanes have published, and what comes back
using Collective = void (*)(Warp&, uint32_t lanes);
struct Warp {
    uint32_t arrived = 0;
    alignas(16) unsigned char in[32][64], out[32][64];
    template <class T> const T& input(int lane) const { return *reinterpret_cast<const T*>(in[lane]); }
    template <class T> T& output(int lane) { return *reinterpret_cast<T*>(out[lane]); }
};

struct Position { dim3 grid, block, block_index, thread; int lane; };
extern __thread Position* here; // of the fiber that runs

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
unsigned char* wait_for_warp(uint32_t mask, Collective what, const void* input, size_t bytes);
void wait_for_block(int line);
unsigned char* dynamic_shared();
unsigned char* static_shared(const void* tag, size_t bytes);
uint32_t shared_address(const void* p);
unsigned char* shared_pointer(uint32_t address, size_t bytes);
void copy_issue(void* shared, const void* global, int bytes, int valid);
void copy_commit();
void copy_wait(int groups_left);

struct Kernel {
    const char* name;
    int arch; // the value of __CUDA_ARCH__ it was compiled with
    int max_threads;
    size_t params_bytes;
    void (*run)(const void* params);
};
struct Registration { explicit Registration(const Kernel&); };

// --- warp collectives ------------------------------------------------------------------------------------------------

// Publishes `input` and sleeps until every lane of `mask` that still runs has arrived at the same collective; `what`
// then runs once, on all of them.
template <class Out, class In> Out collective(uint32_t mask, Collective what, const In& input) {
    static_assert(sizeof(In) <= 64 && sizeof(Out) <= 64, "a lane publishes at most 64 bytes");
    Out out;
    memcpy(&out, wait_for_warp(mask, what, &input, sizeof(In)), sizeof(Out));
    return out;
}

template <class T> struct Shuffle { T value; int source; };
template <class T> void shuffle(Warp& w, uint32_t lanes) {
    for (int i = 0; i < 32; i++) {
        if (!(lanes >> i & 1)) continue;
        int source = w.input<Shuffle<T>>(i).source;
        if (!(lanes >> source & 1)) fail("lane %d shuffles from lane %d, which takes no part", i, source);
        w.output<T>(i) = w.input<Shuffle<T>>(source).value;
    }
}
template <class T> T shuffle_from(uint32_t mask, T value, int source) {
    return collective<T>(mask, shuffle<T>, Shuffle<T>{value, source});
}
inline void nothing(Warp&, uint32_t) {}
inline void ballot(Warp& w, uint32_t lanes) {
    uint32_t votes = 0;
    for (int i = 0; i < 32; i++) if ((lanes >> i & 1) && w.input<int>(i)) votes |= 1u << i;
    for (int i = 0; i < 32; i++) w.output<uint32_t>(i) = votes;
}

// --- tensor cores ----------------------------------------------------------------------------------------------------

// ldmatrix: `Count` 8x8 matrices of 16-bit elements. Lane 8j+r gives the address of row r of matrix j.
template <int Count, bool Transposed> void load_matrices(Warp& w, uint32_t lanes) {
    if (lanes != 0xffffffffu) fail("ldmatrix needs all 32 lanes, has %08x", lanes);
    for (int j = 0; j < Count; j++) {
        const uint16_t* rows[8];
        for (int r = 0; r < 8; r++) {
            uint32_t address = w.input<uint32_t>(j * 8 + r);
            if (address & 15) fail("ldmatrix: row address %x is not a multiple of 16", address);
            rows[r] = reinterpret_cast<const uint16_t*>(shared_pointer(address, 16));
        }
        for (int lane = 0; lane < 32; lane++) {
            uint32_t pair = 0;
            for (int c = 0; c < 2; c++) {
                int row = Transposed ? lane % 4 * 2 + c : lane / 4, column = Transposed ? lane / 4 : lane % 4 * 2 + c;
                pair |= uint32_t(rows[row][column]) << (16 * c);
            }
            w.output<uint32_t[Count]>(lane)[j] = pair;
        }
    }
}

// mma.sync m16n8kK with a row-major A and a column-major B of 16-bit elements, float32 accumulators.
template <int K> struct MmaInput { uint32_t a[K / 4], b[K / 8]; float c[4]; };
template <int K, class Element> void multiply(Warp& w, uint32_t lanes) {
    if (lanes != 0xffffffffu) fail("mma needs all 32 lanes, has %08x", lanes);
    float a[16][K], b[K][8];
    auto half_of = [](uint32_t pair, int high) { return float(Element::from_bits(uint16_t(high ? pair >> 16 : pair))); };
    for (int lane = 0; lane < 32; lane++) {
        const auto& in = w.input<MmaInput<K>>(lane);
        int group = lane / 4, pair = lane % 4 * 2;
        for (int c = 0; c < 2; c++) {
            for (int i = 0; i < K / 4; i++) a[group + i % 2 * 8][pair + c + i / 2 * 8] = half_of(in.a[i], c);
            for (int i = 0; i < K / 8; i++) b[pair + c + i * 8][group] = half_of(in.b[i], c);
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        const auto& in = w.input<MmaInput<K>>(lane);
        for (int i = 0; i < 4; i++) {
            int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            float sum = in.c[i];
            for (int k = 0; k < K; k++) sum += a[row][k] * b[k][column];
            w.output<float[4]>(lane)[i] = sum;
        }
    }
}

} // namespace shim

// --- the language ----------------------------------------------------------------------------------------------------

#define threadIdx (shim::here->thread)
#define blockIdx (shim::here->block_index)
#define blockDim (shim::here->block)
#define gridDim (shim::here->grid)
constexpr int warpSize = 32;

// The same three macros exist for nvcc (ptx.cuh), where they are a plain __global__ function, extern __shared__ and
// __shared__.
#define KERNEL(name, Params, threads)                                                                                  \
    static void name(const Params& p);                                                                                 \
    static const shim::Registration name##_registration(shim::Kernel{                                                  \
        #name, __CUDA_ARCH__, threads, sizeof(Params), [](const void* p) { name(*static_cast<const Params*>(p)); }});  \
    static void name(const Params& p)
#define DYN_SMEM(type, name) type* name = reinterpret_cast<type*>(shim::dynamic_shared())
#define SHARED(type, name, extent)                                                                                     \
    typedef type name##_array extent;                                                                                  \
    static const char name##_tag = 0;                                                                                  \
    auto& name = *reinterpret_cast<name##_array*>(shim::static_shared(&name##_tag, sizeof(name##_array)))

inline void __syncthreads(int line = __builtin_LINE()) { shim::wait_for_block(line); }
inline void __syncwarp(uint32_t mask = 0xffffffffu) { shim::collective<char>(mask, shim::nothing, char(0)); }

namespace shim {
// The lane `to`, unless it lies outside of the segment of `width` lanes, in which the value stays as it is.
inline int within_segment(int to, int width) {
    int lane = here->lane;
    return (to & ~(width - 1)) == (lane & ~(width - 1)) ? to : lane;
}
} // namespace shim
template <class T> T __shfl_sync(uint32_t mask, T value, int source, int width = 32) {
    return shim::shuffle_from(mask, value, (shim::here->lane & ~(width - 1)) | (source & (width - 1)));
}
template <class T> T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32) {
    return shim::shuffle_from(mask, value, shim::within_segment(shim::here->lane ^ bits, width));
}
template <class T> T __shfl_down_sync(uint32_t mask, T value, int by, int width = 32) {
    return shim::shuffle_from(mask, value, shim::within_segment(shim::here->lane + by, width));
}
template <class T> T __shfl_up_sync(uint32_t mask, T value, int by, int width = 32) {
    return shim::shuffle_from(mask, value, shim::within_segment(shim::here->lane - by, width));
}
inline uint32_t __ballot_sync(uint32_t mask, int vote) { return shim::collective<uint32_t>(mask, shim::ballot, vote); }
inline int __any_sync(uint32_t mask, int vote) { return __ballot_sync(mask, vote) != 0; }
inline int __all_sync(uint32_t mask, int vote) { return __ballot_sync(mask, !vote) == 0; }

using std::isinf;
using std::isnan;
using std::max;
using std::min;
inline int __popc(uint32_t v) { return __builtin_popcount(v); }
inline int __ffs(uint32_t v) { return __builtin_ffs(int(v)); }
inline int __clz(uint32_t v) { return v ? __builtin_clz(v) : 32; }
inline float __expf(float x) { return expf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
    uint64_t both = uint64_t(high) << 32 | low;
    uint32_t r = 0;
    for (int i = 0; i < 4; i++) r |= uint32_t(both >> (selector >> (4 * i) & 7) * 8 & 0xff) << (8 * i);
    return r;
}
inline float __uint_as_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
inline uint32_t __float_as_uint(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
inline float __int_as_float(int u) { return __uint_as_float(uint32_t(u)); }
inline int __float_as_int(float f) { return int(__float_as_uint(f)); }
inline unsigned long long __double_as_longlong(double d) { unsigned long long u; memcpy(&u, &d, 8); return u; }

struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float f) {
        uint32_t u = __float_as_uint(f);
        bits = uint16_t((u & 0x7fffffffu) > 0x7f800000u ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16);
    }
    operator float() const { return __uint_as_float(uint32_t(bits) << 16); }
    static __nv_bfloat16 from_bits(uint16_t bits) { __nv_bfloat16 v; v.bits = bits; return v; }
};
struct __half {
    _Float16 value;
    __half() = default;
    __half(float f) : value(_Float16(f)) {}
    operator float() const { return float(value); }
    static __half from_bits(uint16_t bits) { __half v; memcpy(&v.value, &bits, 2); return v; }
};
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
struct alignas(4) __half2 { __half x, y; };
using half = __half;
using half2 = __half2;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;
inline float __bfloat162float(__nv_bfloat16 v) { return v; }
inline float __half2float(__half v) { return v; }
inline __nv_bfloat16 __float2bfloat16(float f) { return f; }
inline __half __float2half(float f) { return f; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
