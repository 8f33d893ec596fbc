// SPDX-License-Identifier: Apache-2.0
// The primitives of device.cuh in PTX; include that file instead. Section numbers are those of the
// PTX ISA 9.0.
#pragma once

#include <cstdint>

namespace fused_inception::device {

// Where a thread stands. Grids and blocks have one dimension.

__device__ __forceinline__ int thread_index() {
  return static_cast<int>(threadIdx.x);
}
__device__ __forceinline__ int block_index() {
  return static_cast<int>(blockIdx.x);
}

// Shared memory.

// The block's dynamic shared memory.
template <typename T>
__device__ __forceinline__ T* dynamic_smem() {
  extern __shared__ __align__(1024) unsigned char dynamic_smem_bytes[];
  return reinterpret_cast<T*>(dynamic_smem_bytes);
}

// The 32-bit address of shared memory that the primitives take.
__device__ __forceinline__ uint32_t smem_u32(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Barriers. All are aligned: whole warps call them, converged.

__device__ __forceinline__ void block_sync() {
  __syncthreads();
}

__device__ __forceinline__ void warp_sync() {
  __syncwarp();
}

// Waits until `threads` threads, a multiple of 32, have come to barrier `id` (1..15) by either of
// these two; only this one waits.
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Asynchronous copies from global to shared memory (9.7.9.25.3).

// Copies `bytes` (0..16) bytes through L2 and writes zeros up to 16. Both addresses are multiples
// of 16, also where nothing is read.
__device__ __forceinline__ void cp_async_16(uint32_t destination, const void* source, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination),
               "l"(__cvta_generic_to_global(source)),
               "r"(bytes)
               : "memory");
}

// Closes the group of this thread's copies since the last call; the group may be empty.
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most the newest kPending groups of this thread are in flight. Only this thread
// sees what they wrote; a barrier must follow before others read it.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// 8x8 matrices of 16-bit elements from shared memory into fragments (9.7.14.5.15).

// Loads kMatrices (1, 2 or 4) matrices. Lane 8j + r gives the address of row r of matrix j, a
// multiple of 16. Register j of a lane receives elements 2q and 2q + 1 of row g of matrix j, where
// g = lane / 4 and q = lane % 4.
template <int kMatrices>
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[kMatrices], uint32_t address) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4, "ldmatrix loads 1, 2 or 4");
  if constexpr (kMatrices == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(address)
                 : "memory");
  } else if constexpr (kMatrices == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  }
}

// The same with every matrix transposed: register j receives elements g of rows 2q and 2q + 1.
template <int kMatrices>
__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&r)[kMatrices], uint32_t address) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4, "ldmatrix loads 1, 2 or 4");
  if constexpr (kMatrices == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(address)
                 : "memory");
  } else if constexpr (kMatrices == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  }
}

// Matrix products (9.7.14.5.8).

// d += a b with a 16x16, b 16x8 and d 16x8. With g = lane / 4, q = lane % 4, low half e = 0 first:
//   a[r]: row g + 8 (r & 1), column 2q + e + 8 (r >> 1)
//   b[r]: row 2q + e + 8 r, column g
//   d[i]: row g + 8 (i >> 1), column 2q + (i & 1)
template <typename element_t>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4],
                                             const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]);

template <>
__device__ __forceinline__ void mma_m16n8k16<Float16>(float (&d)[4],
                                                      const uint32_t (&a)[4],
                                                      const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ __forceinline__ void mma_m16n8k16<BFloat16>(float (&d)[4],
                                                       const uint32_t (&a)[4],
                                                       const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Conversions.

// Two floats rounded to nearest even, `low` in the lower half.
template <typename element_t>
__device__ __forceinline__ uint32_t pack2(float low, float high);

template <>
__device__ __forceinline__ uint32_t pack2<Float16>(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

template <>
__device__ __forceinline__ uint32_t pack2<BFloat16>(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// The value of one element.
template <typename element_t>
__device__ __forceinline__ float to_float(uint16_t bits);

template <>
__device__ __forceinline__ float to_float<Float16>(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

template <>
__device__ __forceinline__ float to_float<BFloat16>(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

}  // namespace fused_inception::device
