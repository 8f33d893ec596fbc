// SPDX-License-Identifier: Apache-2.0
// The primitives of csrc/common/device.cuh for a host compiler: declarations and one-line forwards.
//
// Every primitive is a call into another translation unit, so that no compiler keeps a value in a
// register across the switch to another thread. See csrc/common/device_ptx.cuh for what each does.
#pragma once

#include "common/element.h"

#include <cstdint>
#include <source_location>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

namespace emulator {

// Where a primitive is called: the mutation run skips calls by it.
using Site = std::source_location;

enum class Element { kFloat16, kBFloat16 };

template <typename element_t>
constexpr Element element();
template <>
constexpr Element element<fused_inception::Float16>() {
  return Element::kFloat16;
}
template <>
constexpr Element element<fused_inception::BFloat16>() {
  return Element::kBFloat16;
}

void* dynamic_smem();
void named_barrier(int id, int threads, bool waits, const Site& site);
void cp_async_wait(int pending, const Site& site);
void ldmatrix(uint32_t* r, int matrices, bool transposed, uint32_t address, const Site& site);
void stmatrix(const uint32_t* r, int matrices, bool transposed, uint32_t address, const Site& site);
void wgmma_fence(const Site& site);
void wgmma_wait(int pending, const Site& site);
void wgmma_m64k16(Element element,
                  float* d,
                  int registers,
                  uint64_t a,
                  uint64_t b,
                  bool accumulate,
                  const Site& site);
void set_registers(int registers, const Site& site);
void mma_m16n8k16(
    Element element, float* d, const uint32_t* a, const uint32_t* b, const Site& site);
uint32_t pack2(Element element, float low, float high);
float to_float(Element element, uint16_t bits);

}  // namespace emulator

namespace fused_inception::device {

using emulator::Site;

// A tensor of three dimensions of 16-bit elements, the first contiguous, and a box of it; see
// make_tensor_map.
struct TensorMap {
  const void* base;
  int64_t sizes[3];
  int64_t strides[2];  // bytes, of the second and third dimension
  int box[3];
  int swizzle;  // bytes
  bool made;
};

// The emulator has every primitive of every architecture.
constexpr bool kHasWgmma = true;

int thread_index();
int block_index();
int grid_size();

template <typename T>
inline T* dynamic_smem() {
  return static_cast<T*>(emulator::dynamic_smem());
}
uint32_t smem_u32(const void* pointer);

void block_sync(Site site = Site::current());
void warp_sync(Site site = Site::current());
inline void named_barrier_sync(int id, int threads, Site site = Site::current()) {
  emulator::named_barrier(id, threads, true, site);
}
inline void named_barrier_arrive(int id, int threads, Site site = Site::current()) {
  emulator::named_barrier(id, threads, false, site);
}

void mbarrier_init(uint32_t barrier, int arrivals, Site site = Site::current());
void mbarrier_init_fence(Site site = Site::current());
void mbarrier_arrive(uint32_t barrier, Site site = Site::current());
void mbarrier_arrive_expect_tx(uint32_t barrier, int bytes, Site site = Site::current());
void mbarrier_wait(uint32_t barrier, int parity, Site site = Site::current());
void fence_proxy_async(Site site = Site::current());
void bulk_copy(uint32_t destination,
               const void* source,
               int bytes,
               uint32_t barrier,
               Site site = Site::current());

void bulk_copy_multicast(uint32_t destination,
                         const void* source,
                         int bytes,
                         uint32_t barrier,
                         uint16_t blocks,
                         Site site = Site::current());
void tensor_copy(uint32_t destination,
                 const TensorMap& map,
                 int x,
                 int y,
                 int z,
                 uint32_t barrier,
                 Site site = Site::current());
void tensor_copy_multicast(uint32_t destination,
                           const TensorMap& map,
                           int x,
                           int y,
                           int z,
                           uint32_t barrier,
                           uint16_t blocks,
                           Site site = Site::current());

int cluster_rank();
uint32_t map_rank(uint32_t address, int rank);
void cluster_arrive(Site site = Site::current());
void cluster_wait(Site site = Site::current());
void mbarrier_arrive_remote(uint32_t barrier, Site site = Site::current());
uint32_t remote_load(uint32_t address, Site site = Site::current());
void remote_store(uint32_t address, uint32_t value, Site site = Site::current());
void bulk_push(uint32_t destination,
               uint32_t source,
               int bytes,
               uint32_t barrier,
               Site site = Site::current());

void cp_async_16(uint32_t destination, const void* source, int bytes, Site site = Site::current());
void cp_async_commit(Site site = Site::current());
template <int kPending>
inline void cp_async_wait(Site site = Site::current()) {
  emulator::cp_async_wait(kPending, site);
}

template <int kMatrices>
inline void ldmatrix(uint32_t (&r)[kMatrices], uint32_t address, Site site = Site::current()) {
  emulator::ldmatrix(r, kMatrices, false, address, site);
}
template <int kMatrices>
inline void ldmatrix_transposed(uint32_t (&r)[kMatrices],
                                uint32_t address,
                                Site site = Site::current()) {
  emulator::ldmatrix(r, kMatrices, true, address, site);
}

template <int kMatrices>
inline void stmatrix(uint32_t address,
                     const uint32_t (&r)[kMatrices],
                     Site site = Site::current()) {
  emulator::stmatrix(r, kMatrices, false, address, site);
}
template <int kMatrices>
inline void stmatrix_transposed(uint32_t address,
                                const uint32_t (&r)[kMatrices],
                                Site site = Site::current()) {
  emulator::stmatrix(r, kMatrices, true, address, site);
}

template <int kRegisters>
inline void wgmma_fence(float (&)[kRegisters], Site site = Site::current()) {
  emulator::wgmma_fence(site);
}
void wgmma_commit(Site site = Site::current());
template <int kPending>
inline void wgmma_wait(Site site = Site::current()) {
  emulator::wgmma_wait(kPending, site);
}
template <int kRegisters>
inline void wgmma_finish(float (&)[kRegisters], Site site = Site::current()) {
  emulator::wgmma_wait(0, site);
}
template <typename element_t, int kRegisters>
inline void wgmma_m64k16(float (&d)[kRegisters],
                         uint64_t descriptor_a,
                         uint64_t descriptor_b,
                         bool accumulate,
                         Site site = Site::current()) {
  emulator::wgmma_m64k16(
      emulator::element<element_t>(), d, kRegisters, descriptor_a, descriptor_b, accumulate, site);
}

template <int kRegisters>
inline void release_registers(Site site = Site::current()) {
  emulator::set_registers(kRegisters, site);
}
template <int kRegisters>
inline void claim_registers(Site site = Site::current()) {
  emulator::set_registers(kRegisters, site);
}
void trap();

template <typename element_t>
inline void mma_m16n8k16(float (&d)[4],
                         const uint32_t (&a)[4],
                         const uint32_t (&b)[2],
                         Site site = Site::current()) {
  emulator::mma_m16n8k16(emulator::element<element_t>(), d, a, b, site);
}

template <typename element_t>
inline uint32_t pack2(float low, float high) {
  return emulator::pack2(emulator::element<element_t>(), low, high);
}
template <typename element_t>
inline float to_float(uint16_t bits) {
  return emulator::to_float(emulator::element<element_t>(), bits);
}

}  // namespace fused_inception::device
