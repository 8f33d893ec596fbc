// SPDX-License-Identifier: Apache-2.0
// The primitives of device.cuh in PTX; include that file instead. Section numbers are those of the
// PTX ISA 9.0.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace fused_inception::device {

// Whether this is compiled for sm_90a, which alone has wgmma and setmaxnreg.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool kHasWgmma = true;
#else
constexpr bool kHasWgmma = false;
#endif

// Where a thread stands. Grids and blocks have one dimension.

__device__ __forceinline__ int thread_index() {
  return static_cast<int>(threadIdx.x);
}
__device__ __forceinline__ int block_index() {
  return static_cast<int>(blockIdx.x);
}
__device__ __forceinline__ int grid_size() {
  return static_cast<int>(gridDim.x);
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

// Barriers in shared memory (9.7.13.15): 8 bytes, on a multiple of 8. A phase is complete when all
// arrivals have come and all expected bytes have; phases count from 0. sm_90.

// One thread initialises, then makes it known by mbarrier_init_fence, then a block barrier follows.
__device__ __forceinline__ void mbarrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and lets the phase wait for `bytes` bytes of bulk copies as well.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Waits while the phase under way has the parity `parity`: for a fresh barrier 0 waits for the
// first phase, 1 does not wait.
__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred complete;\n"
      "wait:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 complete, [%0], %1;\n"
      "@complete bra done;\n"
      "bra wait;\n"
      "done:\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Makes what this thread has written to shared memory by stores, stmatrix or cp.async (after its
// wait) visible to wgmma and bulk copies; a barrier must follow (9.7.13.4). sm_90.
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Copies `bytes` bytes to shared memory; their arrival counts for the phase under way of `barrier`.
// Both addresses and the size are multiples of 16 (9.7.9.25.4.1). sm_90.
__device__ __forceinline__ void bulk_copy(uint32_t destination,
                                          const void* source,
                                          int bytes,
                                          uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(destination),
      "l"(__cvta_generic_to_global(source)),
      "r"(bytes),
      "r"(barrier)
      : "memory");
}

// The same to several blocks of the cluster, those whose ranks are bits of `blocks`: to the same
// place of each, counting for the mbarrier at the same place of each.
__device__ __forceinline__ void bulk_copy_multicast(
    uint32_t destination, const void* source, int bytes, uint32_t barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1], %2, [%3], %4;" ::"r"(destination),
      "l"(__cvta_generic_to_global(source)),
      "r"(bytes),
      "r"(barrier),
      "h"(blocks)
      : "memory");
}

// A tensor of three dimensions in global memory and a box of it (5.5), made on the host by
// make_tensor_map. Kernels have it in their parameters, which are __grid_constant__.
using TensorMap = CUtensorMap;

// Copies the box that begins at the element (x, y, z), x innermost, to shared memory on a multiple
// of 128 bytes, or of eight spans where it has a swizzle. What is outside of the tensor becomes
// zero, and counts in bytes as what is inside (9.7.9.25.5.2). sm_90.
__device__ __forceinline__ void tensor_copy(
    uint32_t destination, const TensorMap& map, int x, int y, int z, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(destination),
      "l"(&map),
      "r"(x),
      "r"(y),
      "r"(z),
      "r"(barrier)
      : "memory");
}

// The same to several blocks of the cluster, as bulk_copy_multicast does.
__device__ __forceinline__ void tensor_copy_multicast(uint32_t destination,
                                                      const TensorMap& map,
                                                      int x,
                                                      int y,
                                                      int z,
                                                      uint32_t barrier,
                                                      uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(destination),
      "l"(&map),
      "r"(x),
      "r"(y),
      "r"(z),
      "r"(barrier),
      "h"(blocks)
      : "memory");
}

// Clusters: neighbouring blocks that run together and reach each other's shared memory. sm_90.
//
// A block's memory may be touched by others once all have waited for the cluster's barrier, and
// until it ends; so a last barrier stands at the end.

// The block's number in its cluster; 0 without one.
__device__ __forceinline__ int cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

// The address of the same place in the block of rank `rank`, for the functions below only
// (9.7.9.22).
__device__ __forceinline__ uint32_t map_rank(uint32_t address, int rank) {
  uint32_t mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}

// The barrier of all threads of the cluster (9.7.13.3), in two halves. Whole warps call them; lanes
// that come early wait for the others of their warp. What a thread did before it arrives is visible
// to whoever has waited.
__device__ __forceinline__ void cluster_arrive() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  __syncwarp();
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Arrives at an mbarrier of the cluster. It says that operations of the async proxy are done, such
// as products that a wait has covered. Plain stores it does not hand to another block: that is
// what cluster_arrive is for, and a release at the scope of the cluster, which costs a fence of
// the whole device, is left out here.
__device__ __forceinline__ void mbarrier_arrive_remote(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Four bytes of another block's shared memory; a barrier of the cluster stands between these and
// that block's own accesses.
__device__ __forceinline__ uint32_t remote_load(uint32_t address) {
  uint32_t value;
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}
__device__ __forceinline__ void remote_store(uint32_t address, uint32_t value) {
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

// Copies `bytes` bytes of this block's shared memory to that of another; their arrival counts for
// `barrier`, which is the other's as well. All as for bulk_copy; the source must be visible to the
// async proxy, and stays as it is until the other block knows of the arrival.
__device__ __forceinline__ void bulk_push(uint32_t destination,
                                          uint32_t source,
                                          int bytes,
                                          uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes "
      "[%0], [%1], %2, [%3];" ::"r"(destination),
      "r"(source),
      "r"(bytes),
      "r"(barrier)
      : "memory");
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

// 8x8 matrices of 16-bit elements from fragments into shared memory (9.7.14.5.16): what ldmatrix
// loads, stored. sm_90.
template <int kMatrices>
__device__ __forceinline__ void stmatrix(uint32_t address, const uint32_t (&r)[kMatrices]) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4, "stmatrix stores 1, 2 or 4");
  if constexpr (kMatrices == 1) {
    asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(address), "r"(r[0])
                 : "memory");
  } else if constexpr (kMatrices == 2) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(address),
                 "r"(r[0]),
                 "r"(r[1])
                 : "memory");
  } else {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                 "r"(r[0]),
                 "r"(r[1]),
                 "r"(r[2]),
                 "r"(r[3])
                 : "memory");
  }
}

// The same with every matrix transposed: register j gives elements g of rows 2q and 2q + 1.
template <int kMatrices>
__device__ __forceinline__ void stmatrix_transposed(uint32_t address,
                                                    const uint32_t (&r)[kMatrices]) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4, "stmatrix stores 1, 2 or 4");
  if constexpr (kMatrices == 1) {
    asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(address),
                 "r"(r[0])
                 : "memory");
  } else if constexpr (kMatrices == 2) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address),
                 "r"(r[0]),
                 "r"(r[1])
                 : "memory");
  } else {
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
        "r"(r[0]),
        "r"(r[1]),
        "r"(r[2]),
        "r"(r[3])
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

// Matrix products of a warpgroup on operands in shared memory (9.7.15). sm_90a.
//
// Four warps, the first a multiple of four, issue together: wgmma_fence, any number of products on
// the same accumulators, wgmma_commit. The accumulators must not be touched from the first product
// to a wait that covers the last.

// The accumulators that the next product uses are as this thread's code has left them.
template <int kRegisters>
__device__ __forceinline__ void wgmma_fence(float (&d)[kRegisters]) {
#pragma unroll
  for (int i = 0; i < kRegisters; ++i)
    asm volatile("" : "+f"(d[i])::"memory");
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Closes the group of products since the last call.
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most the newest kPending groups are in flight. What the others have read from
// shared memory may be overwritten.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  static_assert(kPending >= 0 && kPending <= 7, "takes 0 to 7 groups");
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Waits for all groups; `d` may be read.
template <int kRegisters>
__device__ __forceinline__ void wgmma_finish(float (&d)[kRegisters]) {
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < kRegisters; ++i)
    asm volatile("" : "+f"(d[i])::"memory");
}

// d = a b, or d += a b where `accumulate`: a 64x16, b 16xN and d 64xN with N = 2 kRegisters; a and
// b by their descriptors, K-major. Register i of lane 4g + q of warp w: row 16w + g + 8 (i / 2 %
// 2), column 8 (i / 4) + 2q + i % 2.
template <typename element_t, int kRegisters>
struct Wgmma;

#define FUSED_INCEPTION_WGMMA_OF(element_t, type, n, r, b, p)                                 \
  template <>                                                                                 \
  struct Wgmma<element_t, n / 2> {                                                            \
    __device__ __forceinline__ static void issue(float (&d)[n / 2],                           \
                                                 uint64_t descriptor_a,                       \
                                                 uint64_t descriptor_b,                       \
                                                 bool accumulate) {                           \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" p                                     \
                   ", 0;\n"                                                                   \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type            \
                   " {" FUSED_INCEPTION_REGISTERS_##r "}, %" #r ", %" b ", p, 1, 1, 0, 0;\n}" \
                   : FUSED_INCEPTION_OPERANDS_##r(0)                                          \
                   : "l"(descriptor_a), "l"(descriptor_b), "r"(static_cast<int>(accumulate))  \
                   : "memory");                                                               \
    }                                                                                         \
  };

// Both element types; sums in r registers, followed by the operands a, b and p.
#define FUSED_INCEPTION_WGMMA(n, r, b, p)              \
  FUSED_INCEPTION_WGMMA_OF(Float16, "f16", n, r, b, p) \
  FUSED_INCEPTION_WGMMA_OF(BFloat16, "bf16", n, r, b, p)

#define FUSED_INCEPTION_OPERANDS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define FUSED_INCEPTION_OPERANDS_8(i) \
  FUSED_INCEPTION_OPERANDS_4(i), FUSED_INCEPTION_OPERANDS_4(i + 4)
#define FUSED_INCEPTION_OPERANDS_16(i) \
  FUSED_INCEPTION_OPERANDS_8(i), FUSED_INCEPTION_OPERANDS_8(i + 8)
#define FUSED_INCEPTION_OPERANDS_24(i) \
  FUSED_INCEPTION_OPERANDS_16(i), FUSED_INCEPTION_OPERANDS_8(i + 16)
#define FUSED_INCEPTION_OPERANDS_32(i) \
  FUSED_INCEPTION_OPERANDS_24(i), FUSED_INCEPTION_OPERANDS_8(i + 24)
#define FUSED_INCEPTION_OPERANDS_40(i) \
  FUSED_INCEPTION_OPERANDS_32(i), FUSED_INCEPTION_OPERANDS_8(i + 32)
#define FUSED_INCEPTION_OPERANDS_48(i) \
  FUSED_INCEPTION_OPERANDS_40(i), FUSED_INCEPTION_OPERANDS_8(i + 40)
#define FUSED_INCEPTION_OPERANDS_64(i) \
  FUSED_INCEPTION_OPERANDS_32(i), FUSED_INCEPTION_OPERANDS_32(i + 32)
#define FUSED_INCEPTION_OPERANDS_80(i) \
  FUSED_INCEPTION_OPERANDS_40(i), FUSED_INCEPTION_OPERANDS_40(i + 40)
#define FUSED_INCEPTION_OPERANDS_96(i) \
  FUSED_INCEPTION_OPERANDS_48(i), FUSED_INCEPTION_OPERANDS_48(i + 48)
#define FUSED_INCEPTION_REGISTERS_16         \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, " \
  "%10, %11, %12, %13, %14, %15"
#define FUSED_INCEPTION_REGISTERS_24 \
  FUSED_INCEPTION_REGISTERS_16       \
  ", "                               \
  "%16, %17, %18, %19, %20, %21, %22, %23"
#define FUSED_INCEPTION_REGISTERS_32 \
  FUSED_INCEPTION_REGISTERS_24       \
  ", "                               \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define FUSED_INCEPTION_REGISTERS_40 \
  FUSED_INCEPTION_REGISTERS_32       \
  ", "                               \
  "%32, %33, %34, %35, %36, %37, %38, %39"
#define FUSED_INCEPTION_REGISTERS_48 \
  FUSED_INCEPTION_REGISTERS_40       \
  ", "                               \
  "%40, %41, %42, %43, %44, %45, %46, %47"
#define FUSED_INCEPTION_REGISTERS_64                   \
  FUSED_INCEPTION_REGISTERS_48                         \
  ", "                                                 \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, " \
  "%58, %59, %60, %61, %62, %63"
#define FUSED_INCEPTION_REGISTERS_80                   \
  FUSED_INCEPTION_REGISTERS_64                         \
  ", "                                                 \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, " \
  "%74, %75, %76, %77, %78, %79"
#define FUSED_INCEPTION_REGISTERS_96                   \
  FUSED_INCEPTION_REGISTERS_80                         \
  ", "                                                 \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, " \
  "%90, %91, %92, %93, %94, %95"

FUSED_INCEPTION_WGMMA(32, 16, "17", "18")
FUSED_INCEPTION_WGMMA(48, 24, "25", "26")
FUSED_INCEPTION_WGMMA(64, 32, "33", "34")
FUSED_INCEPTION_WGMMA(80, 40, "41", "42")
FUSED_INCEPTION_WGMMA(96, 48, "49", "50")
FUSED_INCEPTION_WGMMA(128, 64, "65", "66")
FUSED_INCEPTION_WGMMA(160, 80, "81", "82")
FUSED_INCEPTION_WGMMA(192, 96, "97", "98")

#undef FUSED_INCEPTION_WGMMA
#undef FUSED_INCEPTION_WGMMA_OF
#undef FUSED_INCEPTION_OPERANDS_4
#undef FUSED_INCEPTION_OPERANDS_8
#undef FUSED_INCEPTION_OPERANDS_16
#undef FUSED_INCEPTION_OPERANDS_24
#undef FUSED_INCEPTION_OPERANDS_32
#undef FUSED_INCEPTION_OPERANDS_40
#undef FUSED_INCEPTION_OPERANDS_48
#undef FUSED_INCEPTION_OPERANDS_64
#undef FUSED_INCEPTION_OPERANDS_80
#undef FUSED_INCEPTION_OPERANDS_96
#undef FUSED_INCEPTION_REGISTERS_16
#undef FUSED_INCEPTION_REGISTERS_24
#undef FUSED_INCEPTION_REGISTERS_32
#undef FUSED_INCEPTION_REGISTERS_40
#undef FUSED_INCEPTION_REGISTERS_48
#undef FUSED_INCEPTION_REGISTERS_64
#undef FUSED_INCEPTION_REGISTERS_80
#undef FUSED_INCEPTION_REGISTERS_96

template <typename element_t, int kRegisters>
__device__ __forceinline__ void wgmma_m64k16(float (&d)[kRegisters],
                                             uint64_t descriptor_a,
                                             uint64_t descriptor_b,
                                             bool accumulate) {
  Wgmma<element_t, kRegisters>::issue(d, descriptor_a, descriptor_b, accumulate);
}

// Registers of every thread of this warpgroup from here on, a multiple of 8 (9.7.19.5): fewer are
// handed back to the block, more are waited for. sm_90a.
template <int kRegisters>
__device__ __forceinline__ void release_registers() {
  static_assert(kRegisters >= 24 && kRegisters <= 256 && kRegisters % 8 == 0, "takes 24 to 256");
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void claim_registers() {
  static_assert(kRegisters >= 24 && kRegisters <= 256 && kRegisters % 8 == 0, "takes 24 to 256");
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Ends the launch with an error: for code that this architecture does not have.
__device__ __forceinline__ void trap() {
  asm volatile("trap;");
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
