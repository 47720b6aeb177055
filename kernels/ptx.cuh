// Every line of inline PTX, each in a function that has a plain C++ twin for the host build; and the four macros
// (KERNEL, DYN_SMEM, SHARED, NOINLINE) that let one source serve nvcc and g++. Nothing outside of this file says asm.
#pragma once
#ifndef KERNELS_HOST
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// A kernel's entry point: its only parameter is one struct of params.h, `p` in the body, at most `threads` per block. One
// block an SM is all that is asked for: otherwise ptxas guesses how many are wanted, and spills to fit its guess.
#define KERNEL(name, Params, threads)                                                                                  \
    extern "C" __global__ void __launch_bounds__(threads, 1) name(const __grid_constant__ Params p)
// The dynamic shared memory of the launch, as an array of `type`. One per kernel; 16-byte aligned.
#define DYN_SMEM(type, name)                                                                                           \
    extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];                                            \
    type* name = reinterpret_cast<type*>(dynamic_shared_memory)
// Static shared memory: SHARED(float, partial, [8][16]);
#define SHARED(type, name, extent) __shared__ __align__(16) type name extent
// A function that is called, never copied into its caller.
#define NOINLINE __noinline__
#endif

#include "params.h"

// What the target can do. nvcc's host pass has no __CUDA_ARCH__ and discards what it reads.
#ifdef __CUDA_ARCH__
#define ARCH __CUDA_ARCH__
#else
#define ARCH 0
#endif
#define HAS_MMA_K16 (ARCH >= 800)  // mma m16n8k16 of bfloat16 and float16
#define HAS_CP_ASYNC (ARCH >= 800) // elsewhere cp_async16 is a load and a store, and waiting does nothing

// --- global memory ---------------------------------------------------------------------------------------------------

#ifdef KERNELS_HOST
inline void require_aligned(const void* p, unsigned bytes) {
    if (reinterpret_cast<uintptr_t>(p) % bytes) shim::fail("address %p is not a multiple of %u", p, bytes);
}
#endif

// 16 bytes that nothing writes while the kernel runs and that other threads will want too: cached.
__device__ __forceinline__ uint4 load16(const void* p) {
    uint4 v;
#ifdef KERNELS_HOST
    require_aligned(p, 16);
    memcpy(&v, p, 16);
#else
    asm("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
#endif
    return v;
}
// The same of 8 bytes.
__device__ __forceinline__ uint2 load8(const void* p) {
    uint2 v;
#ifdef KERNELS_HOST
    require_aligned(p, 8);
    memcpy(&v, p, 8);
#else
    asm("ld.global.nc.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
#endif
    return v;
}

// 8 or 16 bytes that are read once, such as weights: they leave the L1 cache to others.
__device__ __forceinline__ uint2 load8_once(const void* p) {
    uint2 v;
#ifdef KERNELS_HOST
    require_aligned(p, 8);
    memcpy(&v, p, 8);
#else
    asm("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
#endif
    return v;
}
__device__ __forceinline__ uint4 load16_once(const void* p) {
    uint4 v;
#ifdef KERNELS_HOST
    require_aligned(p, 16);
    memcpy(&v, p, 16);
#else
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
#endif
    return v;
}

// --- copies from global to shared memory -----------------------------------------------------------------------------

// The 32-bit address that ldmatrix and cp.async take.
__device__ __forceinline__ uint32_t shared_address(const void* p) {
#ifdef KERNELS_HOST
    return shim::shared_address(p);
#else
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
#endif
}

// Begins a copy of 16 bytes, of which the first `valid` come from `global` and the others are zero. Both addresses are
// multiples of 16 (`global` even when nothing is read from it). The destination is undefined until cp_async_wait; it is
// seen by other threads only after a barrier as well.
__device__ __forceinline__ void cp_async16(void* shared, const void* global, int valid = 16) {
#if !HAS_CP_ASYNC
    uint4 v = make_uint4(0, 0, 0, 0);
    if (valid == 16) {
        v = load16(global);
    } else {
        for (int i = 0; i < valid; i++) reinterpret_cast<unsigned char*>(&v)[i] = static_cast<const unsigned char*>(global)[i];
    }
    *static_cast<uint4*>(shared) = v;
#elif defined(KERNELS_HOST)
    shim::copy_issue(shared, global, 16, valid);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(valid)
                 : "memory");
#endif
}

// Closes the group of copies that this thread has begun since the last commit.
__device__ __forceinline__ void cp_async_commit() {
#if !HAS_CP_ASYNC
#elif defined(KERNELS_HOST)
    shim::copy_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `Left` of this thread's groups, the newest, are still in flight.
template <int Left> __device__ __forceinline__ void cp_async_wait() {
#if !HAS_CP_ASYNC
#elif defined(KERNELS_HOST)
    shim::copy_wait(Left);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
#endif
}

// --- arithmetic ------------------------------------------------------------------------------------------------------

// 2^x in one instruction, to about 2^-22 of itself; 0 for x below -126.
__device__ __forceinline__ float exp2_approximate(float x) {
#ifdef KERNELS_HOST
    return x < -126 ? 0 : exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// --- tensor cores ----------------------------------------------------------------------------------------------------

// Four 8x8 matrices of 16-bit elements from shared memory. Lane 8j+r passes the address of row r of matrix j (16 bytes,
// 16-byte aligned) and receives in r[j] the elements (lane / 4, lane % 4 * 2) and the next one in that row of matrix j;
// with _trans the same of each matrix transposed.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
#ifdef KERNELS_HOST
    struct Out { uint32_t r[4]; };
    Out out = shim::collective<Out>(0xffffffffu, shim::load_matrices<4, false>, shared_address(row));
    for (int j = 0; j < 4; j++) r[j] = out.r[j];
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
#ifdef KERNELS_HOST
    struct Out { uint32_t r[4]; };
    Out out = shim::collective<Out>(0xffffffffu, shim::load_matrices<4, true>, shared_address(row));
    for (int j = 0; j < 4; j++) r[j] = out.r[j];
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

// d += A B over 16 of k: A is 16 x 16 row-major, B is 16 x 8 column-major, d is 16 x 8 of float32. With g = lane / 4 and
// t = lane % 4, a lane holds (two 16-bit elements a register, the lower k in the lower half)
//   a[0] = A[g][2t, 2t+1]    a[1] = A[g+8][2t, 2t+1]    a[2] = A[g][2t+8, 2t+9]    a[3] = A[g+8][2t+8, 2t+9]
//   b[0] = B[2t, 2t+1][g]    b[1] = B[2t+8, 2t+9][g]
//   d[0], d[1] = D[g][2t, 2t+1]    d[2], d[3] = D[g+8][2t, 2t+1]
#if HAS_MMA_K16
#ifdef KERNELS_HOST
template <class Element> inline void host_mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    struct Out { float d[4]; };
    shim::MmaInput<16> in = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {d[0], d[1], d[2], d[3]}};
    Out out = shim::collective<Out>(0xffffffffu, shim::multiply<16, Element>, in);
    for (int i = 0; i < 4; i++) d[i] = out.d[i];
}
#endif
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16) {
#ifdef KERNELS_HOST
    host_mma<__nv_bfloat16>(d, a, b);
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half) {
#ifdef KERNELS_HOST
    host_mma<__half>(d, a, b);
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
#endif
