// SPDX-License-Identifier: Apache-2.0
// One kernel per primitive, on raw operands: `kernel=` names it. Compiled for the host and for a
// device, whose outputs must agree.
#include "common/device_launch.cuh"
#include "emulator/driver.h"

namespace {

using namespace fused_inception;
using device::Swizzle;

struct PrimitiveParams {
  const void* first;
  const void* second;
  const void* third;
  void* output;
  int32_t count;
  device::TensorMap map;  // of `first`
};

template <typename T>
__device__ const T* in(const void* pointer) {
  return static_cast<const T*>(pointer);
}
template <typename T>
__device__ T* out(void* pointer) {
  return static_cast<T*>(pointer);
}

// first: matrices [kMatrices][8][8]; second: per lane, the row of all that it addresses;
// output[lane][kMatrices].
template <int kMatrices, bool kTransposed>
__global__ void ldmatrix_kernel(const __grid_constant__ PrimitiveParams p) {
  auto* shared = device::dynamic_smem<uint16_t>();
  const int lane = device::thread_index();
  for (int i = lane; i < 64 * kMatrices; i += 32)
    shared[i] = in<uint16_t>(p.first)[i];
  device::block_sync();
  uint32_t r[kMatrices];
  const uint32_t address = device::smem_u32(shared + 8 * in<int32_t>(p.second)[lane]);
  if constexpr (kTransposed) {
    device::ldmatrix_transposed(r, address);
  } else {
    device::ldmatrix(r, address);
  }
  for (int j = 0; j < kMatrices; ++j)
    out<uint32_t>(p.output)[lane * kMatrices + j] = r[j];
}

// first: registers [lane][kMatrices]; second: per lane, the row of all that it addresses;
// output: the rows, [8 kMatrices][8].
template <int kMatrices, bool kTransposed>
__global__ void stmatrix_kernel(const __grid_constant__ PrimitiveParams p) {
  if constexpr (device::kHasWgmma) {
    auto* shared = device::dynamic_smem<uint16_t>();
    const int lane = device::thread_index();
    uint32_t r[kMatrices];
    for (int j = 0; j < kMatrices; ++j)
      r[j] = in<uint32_t>(p.first)[lane * kMatrices + j];
    const uint32_t address = device::smem_u32(shared + 8 * in<int32_t>(p.second)[lane]);
    if constexpr (kTransposed) {
      device::stmatrix_transposed(address, r);
    } else {
      device::stmatrix(address, r);
    }
    device::block_sync();
    for (int i = lane; i < 64 * kMatrices; i += 32)
      out<uint16_t>(p.output)[i] = shared[i];
  } else {
    device::trap();
  }
}

// first: 8 pieces of 512 bytes, copied whole by one thread into a ring of two and read by the other
// warp, which turns each around.
__global__ void bulk_copy_kernel(const __grid_constant__ PrimitiveParams p) {
  if constexpr (device::kHasWgmma) {
    struct Storage {
      device::Chunk ring[2][32];
      uint64_t full[2], empty[2];
    };
    auto& s = *device::dynamic_smem<Storage>();
    const int warp = device::thread_index() / 32, lane = device::thread_index() % 32;
    constexpr int kPieces = 8;
    if (device::thread_index() == 0) {
      for (int i = 0; i < 2; ++i) {
        device::mbarrier_init(device::smem_u32(&s.full[i]), 1);
        device::mbarrier_init(device::smem_u32(&s.empty[i]), 1);
      }
      device::mbarrier_init_fence();
    }
    device::block_sync();
    for (int i = 0; i < kPieces; ++i) {
      const uint32_t full = device::smem_u32(&s.full[i % 2]);
      const uint32_t empty = device::smem_u32(&s.empty[i % 2]);
      if (warp == 0 && lane == 0) {
        device::mbarrier_wait(empty, (i / 2 + 1) % 2);
        device::mbarrier_arrive_expect_tx(full, 512);
        device::bulk_copy(
            device::smem_u32(s.ring[i % 2]), in<device::Chunk>(p.first) + 32 * i, 512, full);
      } else if (warp == 1) {
        device::mbarrier_wait(full, i / 2 % 2);
        out<device::Chunk>(p.output)[32 * i + lane] = s.ring[i % 2][31 - lane];
        // The next copy overwrites through the async proxy what this thread has read.
        device::fence_proxy_async();
        device::warp_sync();
        if (lane == 0) device::mbarrier_arrive(empty);
      }
    }
  } else {
    device::trap();
  }
}

// first: a[k / 8][rows][8]; second: b[k / 8][rows][8]; third: rows of a and b in memory, the first
// row of each that counts, K, and how many rows on the next eight of a are; output: a b^T,
// [64][kColumns], one group of products in flight while the next is issued.
template <typename element_t, int kColumns>
__global__ void __launch_bounds__(128) wgmma_kernel(const __grid_constant__ PrimitiveParams p) {
  if constexpr (device::kHasWgmma) {
    const int* numbers = in<int32_t>(p.third);
    const int rows_a = numbers[0], rows_b = numbers[1], k = numbers[4];
    const auto line_a = static_cast<uint32_t>(16 * numbers[5]);
    auto* a = device::dynamic_smem<device::Chunk>();
    device::Chunk* b = a + rows_a * (k / 8);
    const int thread = device::thread_index();
    for (int i = thread; i < rows_a * (k / 8); i += 128)
      a[i] = in<device::Chunk>(p.first)[i];
    for (int i = thread; i < rows_b * (k / 8); i += 128)
      b[i] = in<device::Chunk>(p.second)[i];
    device::fence_proxy_async();
    device::block_sync();
    float d[kColumns / 2];
    device::wgmma_fence(d);
    for (int i = 0; i < k / 16; ++i) {
      const uint32_t start_a = device::smem_u32(a + 2 * i * rows_a + numbers[2]);
      const uint32_t start_b = device::smem_u32(b + 2 * i * rows_b + numbers[3]);
      device::wgmma_m64k16<element_t>(
          d,
          device::matrix_descriptor(start_a, static_cast<uint32_t>(16 * rows_a), line_a),
          device::matrix_descriptor(start_b, static_cast<uint32_t>(16 * rows_b), 128),
          i > 0);
      device::wgmma_commit();
      device::wgmma_wait<1>();
    }
    device::wgmma_finish(d);
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) {
      const int row = device::wgmma_row(thread, i), column = device::wgmma_column(thread, i);
      out<float>(p.output)[row * kColumns + column] = d[i];
    }
  } else {
    device::trap();
  }
}

// The same with operands that are stored in spans of the swizzle already: [k / span][row][span],
// 64 rows of a and kColumns of b. third: K.
template <typename element_t, Swizzle kSwizzle>
__global__ void __launch_bounds__(128)
    wgmma_swizzled_kernel(const __grid_constant__ PrimitiveParams p) {
  if constexpr (device::kHasWgmma) {
    constexpr int kColumns = 80, kSpan = static_cast<int>(kSwizzle);
    const int k = in<int32_t>(p.third)[0], pieces = k / 8;
    auto* a = device::dynamic_smem<device::Chunk>();
    device::Chunk* b = a + 64 * pieces;
    const int thread = device::thread_index();
    for (int i = thread; i < 64 * pieces; i += 128)
      a[i] = in<device::Chunk>(p.first)[i];
    for (int i = thread; i < kColumns * pieces; i += 128)
      b[i] = in<device::Chunk>(p.second)[i];
    device::fence_proxy_async();
    device::block_sync();
    float d[kColumns / 2];
    device::wgmma_fence(d);
    for (int i = 0; i < k / 16; ++i) {
      const auto span = static_cast<uint32_t>(32 * i / kSpan);
      const auto inside = static_cast<uint32_t>(32 * i % kSpan);
      device::wgmma_m64k16<element_t>(
          d,
          device::swizzled_descriptor<kSwizzle>(device::smem_u32(a) + span * 64 * kSpan + inside,
                                                8 * kSpan),
          device::swizzled_descriptor<kSwizzle>(
              device::smem_u32(b) + span * kColumns * kSpan + inside, 8 * kSpan),
          i > 0);
    }
    device::wgmma_commit();
    device::wgmma_finish(d);
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) {
      const int row = device::wgmma_row(thread, i), column = device::wgmma_column(thread, i);
      out<float>(p.output)[row * kColumns + column] = d[i];
    }
  } else {
    device::trap();
  }
}

// second: where the box begins; output: the box as it lies in shared memory, `count` bytes.
__global__ void tensor_copy_kernel(const __grid_constant__ PrimitiveParams p) {
  if constexpr (device::kHasWgmma) {
    const int bytes = in<int32_t>(p.third)[0];
    auto* box = device::dynamic_smem<device::Chunk>();
    const uint32_t full = device::smem_u32(box) + static_cast<uint32_t>(bytes);
    const int thread = device::thread_index();
    if (thread == 0) {
      device::mbarrier_init(full, 1);
      device::mbarrier_init_fence();
    }
    device::block_sync();
    if (thread == 0) {
      const int32_t* start = in<int32_t>(p.second);
      device::mbarrier_arrive_expect_tx(full, bytes);
      device::tensor_copy(device::smem_u32(box), p.map, start[0], start[1], start[2], full);
    }
    device::mbarrier_wait(full, 0);
    for (int i = thread; i < bytes / 16; i += p.count)
      out<device::Chunk>(p.output)[i] = box[i];
  } else {
    device::trap();
  }
}

// A cluster: every thread gives a number to the block before its own, which fetches it, and one to
// the block after its own, which gets it; output: [block][thread][rank, fetched, got].
__global__ void remote_memory_kernel(const __grid_constant__ PrimitiveParams p) {
  if constexpr (device::kHasWgmma) {
    auto* shared = device::dynamic_smem<uint32_t>();
    const int thread = device::thread_index(), rank = device::cluster_rank();
    const int blocks = in<int32_t>(p.second)[0];
    const int i = device::block_index() * p.count + thread;
    const uint32_t value = in<uint32_t>(p.first)[i];
    shared[thread] = value;
    device::cluster_arrive();
    device::cluster_wait();
    const uint32_t here = device::smem_u32(shared + thread);
    const uint32_t fetched = device::remote_load(device::map_rank(here, (rank + 1) % blocks));
    device::remote_store(device::map_rank(here + 4 * p.count, (rank + 1) % blocks), ~value);
    device::cluster_arrive();
    device::cluster_wait();
    out<uint32_t>(p.output)[3 * i] = static_cast<uint32_t>(rank);
    out<uint32_t>(p.output)[3 * i + 1] = fetched;
    out<uint32_t>(p.output)[3 * i + 2] = shared[p.count + thread];
  } else {
    device::trap();
  }
}

enum class Way { kBulk, kTensor };

// first: [cluster][4 pieces][32 chunks]. Every block copies its quarter of each piece of its
// cluster to all four blocks of it, into a ring of two; output: [block][4 pieces][32 chunks].
template <Way kWay>
__global__ void multicast_kernel(const __grid_constant__ PrimitiveParams p) {
  if constexpr (device::kHasWgmma) {
    constexpr int kPieces = 4, kBlocks = 4, kPart = 8;
    struct Storage {
      alignas(128) device::Chunk ring[2][kBlocks * kPart];
      uint64_t full[2], empty[2];
    };
    auto& s = *device::dynamic_smem<Storage>();
    const int warp = device::thread_index() / 32, lane = device::thread_index() % 32;
    const int rank = device::cluster_rank();
    if (device::thread_index() == 0) {
      for (int i = 0; i < 2; ++i) {
        device::mbarrier_init(device::smem_u32(&s.full[i]), 1);
        device::mbarrier_init(device::smem_u32(&s.empty[i]), kBlocks);
      }
      device::mbarrier_init_fence();
    }
    device::cluster_arrive();
    device::cluster_wait();
    for (int i = 0; i < kPieces; ++i) {
      const uint32_t full = device::smem_u32(&s.full[i % 2]);
      const uint32_t empty = device::smem_u32(&s.empty[i % 2]);
      if (warp == 0 && lane == 0) {
        device::mbarrier_wait(empty, (i / 2 + 1) % 2);
        device::mbarrier_arrive_expect_tx(full, kBlocks * kPart * 16);
        const uint32_t target = device::smem_u32(&s.ring[i % 2][kPart * rank]);
        const int piece = kPieces * (device::block_index() / kBlocks) + i;
        const int chunk = kBlocks * kPart * piece + kPart * rank;
        if constexpr (kWay == Way::kBulk) {
          device::bulk_copy_multicast(
              target, in<device::Chunk>(p.first) + chunk, kPart * 16, full, 15);
        } else {
          device::tensor_copy_multicast(target, p.map, 0, kPart * rank, piece, full, 15);
        }
      } else if (warp == 1) {
        device::mbarrier_wait(full, i / 2 % 2);
        out<device::Chunk>(p.output)[(kPieces * device::block_index() + i) * 32 + lane] =
            s.ring[i % 2][lane];
        device::fence_proxy_async();
        device::warp_sync();
        if (lane < kBlocks) device::mbarrier_arrive_remote(device::map_rank(empty, lane));
      }
    }
    device::cluster_arrive();
    device::cluster_wait();
  } else {
    device::trap();
  }
}

// first: [block][4 pieces][32 chunks]. Every block stores its pieces and pushes each to the next
// block of its cluster of two or four, which reads it; output: [block][4 pieces][32 chunks].
__global__ void bulk_push_kernel(const __grid_constant__ PrimitiveParams p) {
  if constexpr (device::kHasWgmma) {
    constexpr int kPieces = 4;
    struct Storage {
      device::Chunk leaving[32], coming[32];
      uint64_t full, empty;
    };
    auto& s = *device::dynamic_smem<Storage>();
    const int warp = device::thread_index() / 32, lane = device::thread_index() % 32;
    const int blocks = in<int32_t>(p.second)[0], rank = device::cluster_rank();
    const uint32_t full = device::smem_u32(&s.full), empty = device::smem_u32(&s.empty);
    if (device::thread_index() == 0) {
      device::mbarrier_init(full, 1);
      device::mbarrier_init(empty, 1);
      device::mbarrier_init_fence();
    }
    device::cluster_arrive();
    device::cluster_wait();
    for (int i = 0; i < kPieces; ++i) {
      const int chunk = (kPieces * device::block_index() + i) * 32 + lane;
      if (warp == 0) {
        // The next block has read the piece before, so that it has arrived as well.
        device::mbarrier_wait(empty, (i + 1) % 2);
        s.leaving[lane] = in<device::Chunk>(p.first)[chunk];
        device::fence_proxy_async();
        device::warp_sync();
        if (lane == 0) {
          const int next = (rank + 1) % blocks;
          device::bulk_push(device::map_rank(device::smem_u32(s.coming), next),
                            device::smem_u32(s.leaving),
                            512,
                            device::map_rank(full, next));
        }
      } else if (warp == 1) {
        if (lane == 0) device::mbarrier_arrive_expect_tx(full, 512);
        device::mbarrier_wait(full, i % 2);
        out<device::Chunk>(p.output)[chunk] = s.coming[lane];
        device::fence_proxy_async();
        device::warp_sync();
        if (lane == 0)
          device::mbarrier_arrive_remote(device::map_rank(empty, (rank + blocks - 1) % blocks));
      }
    }
    device::cluster_arrive();
    device::cluster_wait();
  } else {
    device::trap();
  }
}

// One warpgroup hands registers to the other; both copy.
__global__ void __launch_bounds__(256, 1)
    registers_kernel(const __grid_constant__ PrimitiveParams p) {
  if constexpr (device::kHasWgmma) {
    const int thread = device::thread_index();
    if (thread < 128) {
      device::release_registers<40>();
      out<int32_t>(p.output)[thread] = in<int32_t>(p.first)[thread];
    } else {
      device::claim_registers<240>();
      out<int32_t>(p.output)[thread] = in<int32_t>(p.first)[thread];
    }
  } else {
    device::trap();
  }
}

// Every thread of every block writes the size of the grid.
__global__ void grid_size_kernel(const __grid_constant__ PrimitiveParams p) {
  const int i = device::block_index() * p.count + device::thread_index();
  out<int32_t>(p.output)[i] = device::grid_size();
}

// first: a[lane][4]; second: b[lane][2]; third: c[lane][4]; output: a b + c, [lane][4].
template <typename element_t>
__global__ void mma_kernel(const __grid_constant__ PrimitiveParams p) {
  const int lane = device::thread_index();
  uint32_t a[4], b[2];
  float d[4];
  for (int i = 0; i < 4; ++i)
    a[i] = in<uint32_t>(p.first)[4 * lane + i];
  for (int i = 0; i < 2; ++i)
    b[i] = in<uint32_t>(p.second)[2 * lane + i];
  for (int i = 0; i < 4; ++i)
    d[i] = in<float>(p.third)[4 * lane + i];
  device::mma_m16n8k16<element_t>(d, a, b);
  for (int i = 0; i < 4; ++i)
    out<float>(p.output)[4 * lane + i] = d[i];
}

// first: chunks of 16 bytes; second: how many of them each thread copies; every thread reads what
// its neighbour copied.
__global__ void cp_async_kernel(const __grid_constant__ PrimitiveParams p) {
  auto* shared = device::dynamic_smem<device::Chunk>();
  const int thread = device::thread_index();
  device::cp_async_16(device::smem_u32(shared + thread),
                      in<device::Chunk>(p.first) + thread,
                      in<int32_t>(p.second)[thread]);
  device::cp_async_commit();
  device::cp_async_wait<0>();
  device::block_sync();
  out<device::Chunk>(p.output)[thread] = shared[(thread + 1) % p.count];
}

// The same with one group a chunk: a thread copies `count` chunks and reads each as early as the
// wait for its group allows.
__global__ void cp_async_groups_kernel(const __grid_constant__ PrimitiveParams p) {
  auto* shared = device::dynamic_smem<device::Chunk>();
  const int thread = device::thread_index();
  for (int i = 0; i < 4; ++i) {
    const int chunk = 4 * thread + i;
    device::cp_async_16(device::smem_u32(shared + chunk), in<device::Chunk>(p.first) + chunk, 16);
    device::cp_async_commit();
  }
  device::cp_async_wait<3>();
  out<device::Chunk>(p.output)[4 * thread] = shared[4 * thread];
  device::cp_async_wait<1>();
  out<device::Chunk>(p.output)[4 * thread + 1] = shared[4 * thread + 1];
  out<device::Chunk>(p.output)[4 * thread + 2] = shared[4 * thread + 2];
  device::cp_async_wait<0>();
  out<device::Chunk>(p.output)[4 * thread + 3] = shared[4 * thread + 3];
}

// Turns the order of `count` numbers around.
__global__ void block_sync_kernel(const __grid_constant__ PrimitiveParams p) {
  auto* shared = device::dynamic_smem<int32_t>();
  const int thread = device::thread_index();
  shared[thread] = in<int32_t>(p.first)[thread];
  device::block_sync();
  out<int32_t>(p.output)[thread] = shared[p.count - 1 - thread];
}

// Turns the order within each warp around.
__global__ void warp_sync_kernel(const __grid_constant__ PrimitiveParams p) {
  auto* shared = device::dynamic_smem<int32_t>();
  const int thread = device::thread_index();
  shared[thread] = in<int32_t>(p.first)[thread];
  device::warp_sync();
  out<int32_t>(p.output)[thread] = shared[thread ^ 31];
}

// Warp 0 fills a slot for warp 1, four times; neither passes the barriers of the other two warps.
__global__ void named_barrier_kernel(const __grid_constant__ PrimitiveParams p) {
  constexpr int kFull = 1, kEmpty = 2, kOthers = 3;
  auto* shared = device::dynamic_smem<int32_t>();
  const int warp = device::thread_index() / 32, lane = device::thread_index() % 32;
  if (warp == 0) {
    for (int i = 0; i < 4; ++i) {
      if (i > 0) device::named_barrier_sync(kEmpty, 64);
      shared[lane] = in<int32_t>(p.first)[32 * i + lane];
      device::named_barrier_arrive(kFull, 64);
    }
  } else if (warp == 1) {
    for (int i = 0; i < 4; ++i) {
      device::named_barrier_sync(kFull, 64);
      out<int32_t>(p.output)[32 * i + lane] = shared[31 - lane];
      if (i < 3) device::named_barrier_arrive(kEmpty, 64);
    }
  } else {
    device::named_barrier_sync(kOthers, 64);
  }
}

// first: floats; output: each rounded to the element type, in pairs.
template <typename element_t>
__global__ void pack2_kernel(const __grid_constant__ PrimitiveParams p) {
  const int i = device::block_index() * 32 + device::thread_index();
  const float* value = in<float>(p.first);
  out<uint32_t>(p.output)[i] = device::pack2<element_t>(value[2 * i], value[2 * i + 1]);
}

// first: elements; output: their values.
template <typename element_t>
__global__ void to_float_kernel(const __grid_constant__ PrimitiveParams p) {
  const int i = device::block_index() * 32 + device::thread_index();
  out<float>(p.output)[i] = device::to_float<element_t>(in<uint16_t>(p.first)[i]);
}

// relu of each float.
__global__ void relu_kernel(const __grid_constant__ PrimitiveParams p) {
  const int i = device::block_index() * 32 + device::thread_index();
  out<float>(p.output)[i] = device::relu(in<float>(p.first)[i]);
}

using Kernel = void (*)(PrimitiveParams);

Kernel kernel_of(const std::string& name) {
  if (name == "ldmatrix_x1") return ldmatrix_kernel<1, false>;
  if (name == "ldmatrix_x2") return ldmatrix_kernel<2, false>;
  if (name == "ldmatrix_x4") return ldmatrix_kernel<4, false>;
  if (name == "ldmatrix_x1_transposed") return ldmatrix_kernel<1, true>;
  if (name == "ldmatrix_x2_transposed") return ldmatrix_kernel<2, true>;
  if (name == "ldmatrix_x4_transposed") return ldmatrix_kernel<4, true>;
  if (name == "stmatrix_x1") return stmatrix_kernel<1, false>;
  if (name == "stmatrix_x2") return stmatrix_kernel<2, false>;
  if (name == "stmatrix_x4") return stmatrix_kernel<4, false>;
  if (name == "stmatrix_x1_transposed") return stmatrix_kernel<1, true>;
  if (name == "stmatrix_x2_transposed") return stmatrix_kernel<2, true>;
  if (name == "stmatrix_x4_transposed") return stmatrix_kernel<4, true>;
  if (name == "bulk_copy") return bulk_copy_kernel;
  if (name == "wgmma_float16_32") return wgmma_kernel<Float16, 32>;
  if (name == "wgmma_bfloat16_32") return wgmma_kernel<BFloat16, 32>;
  if (name == "wgmma_float16_64") return wgmma_kernel<Float16, 64>;
  if (name == "wgmma_bfloat16_64") return wgmma_kernel<BFloat16, 64>;
  if (name == "wgmma_float16_128") return wgmma_kernel<Float16, 128>;
  if (name == "wgmma_bfloat16_128") return wgmma_kernel<BFloat16, 128>;
  if (name == "wgmma_float16_192") return wgmma_kernel<Float16, 192>;
  if (name == "wgmma_bfloat16_192") return wgmma_kernel<BFloat16, 192>;
  if (name == "wgmma_float16_80") return wgmma_kernel<Float16, 80>;
  if (name == "wgmma_float16_48") return wgmma_kernel<Float16, 48>;
  if (name == "wgmma_bfloat16_48") return wgmma_kernel<BFloat16, 48>;
  if (name == "wgmma_float16_96") return wgmma_kernel<Float16, 96>;
  if (name == "wgmma_bfloat16_96") return wgmma_kernel<BFloat16, 96>;
  if (name == "wgmma_float16_160") return wgmma_kernel<Float16, 160>;
  if (name == "wgmma_bfloat16_80") return wgmma_kernel<BFloat16, 80>;
  if (name == "wgmma_bfloat16_160") return wgmma_kernel<BFloat16, 160>;
  if (name == "wgmma_swizzled_float16_32") return wgmma_swizzled_kernel<Float16, Swizzle::k32>;
  if (name == "wgmma_swizzled_float16_64") return wgmma_swizzled_kernel<Float16, Swizzle::k64>;
  if (name == "wgmma_swizzled_float16_128") return wgmma_swizzled_kernel<Float16, Swizzle::k128>;
  if (name == "wgmma_swizzled_bfloat16_64") return wgmma_swizzled_kernel<BFloat16, Swizzle::k64>;
  if (name == "tensor_copy") return tensor_copy_kernel;
  if (name == "remote_memory") return remote_memory_kernel;
  if (name == "bulk_copy_multicast") return multicast_kernel<Way::kBulk>;
  if (name == "tensor_copy_multicast") return multicast_kernel<Way::kTensor>;
  if (name == "bulk_push") return bulk_push_kernel;
  if (name == "registers") return registers_kernel;
  if (name == "grid_size") return grid_size_kernel;
  if (name == "mma_float16") return mma_kernel<Float16>;
  if (name == "mma_bfloat16") return mma_kernel<BFloat16>;
  if (name == "cp_async") return cp_async_kernel;
  if (name == "cp_async_groups") return cp_async_groups_kernel;
  if (name == "block_sync") return block_sync_kernel;
  if (name == "warp_sync") return warp_sync_kernel;
  if (name == "named_barrier") return named_barrier_kernel;
  if (name == "pack2_float16") return pack2_kernel<Float16>;
  if (name == "pack2_bfloat16") return pack2_kernel<BFloat16>;
  if (name == "to_float_float16") return to_float_kernel<Float16>;
  if (name == "to_float_bfloat16") return to_float_kernel<BFloat16>;
  if (name == "relu") return relu_kernel;
  driver::die("no kernel " + name);
}

}  // namespace

int main(int argc, char** argv) {
  const driver::Arguments arguments(argc, argv);
  driver::configure(arguments);
  const auto operand = [&](const char* name) -> const void* {
    const std::string path = arguments.text(name, "");
    return path.empty() ? nullptr : driver::Buffer::read(name, path).get();
  };
  PrimitiveParams params = {};
  params.first = operand("first");
  params.second = operand("second");
  params.third = operand("third");
  const driver::Buffer output(
      "output", static_cast<size_t>(arguments.number("output_bytes")), driver::Access::kWrite);
  params.output = output.get();
  const int threads = static_cast<int>(arguments.number("threads"));
  params.count = threads;
  if (arguments.number("box0", 0) != 0) {
    const auto number = [&](const char* key) { return static_cast<int>(arguments.number(key)); };
    const int64_t sizes[3] = {number("size0"), number("size1"), number("size2")};
    const int64_t strides[2] = {number("stride1"), number("stride2")};
    const int box[3] = {number("box0"), number("box1"), number("box2")};
    const auto swizzle = static_cast<Swizzle>(arguments.number("swizzle", 0));
    if (device::make_tensor_map(params.map, params.first, sizes, strides, box, swizzle) !=
        device::kSuccess) {
      std::printf("refused\n");
      return 1;
    }
  }
  device::launch(kernel_of(arguments.text("kernel")),
                 arguments.number("blocks", 1),
                 threads,
                 static_cast<int>(arguments.number("shared_bytes", 0)),
                 nullptr,
                 params,
                 static_cast<int>(arguments.number("cluster", 1)));
  const int result = driver::report();
  output.save(arguments.text("output"));
  return result;
}
