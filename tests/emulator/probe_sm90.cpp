// SPDX-License-Identifier: Apache-2.0
// What the kernel on wgmma could do otherwise, each way by itself: filters brought to shared memory
// by cp.async, by tensor copies with rows of 16 and of 64 bytes, by bulk copies of packed filters
// and by multicast; products with filters or with pixels as rows. `way=` names one.
//
// On a device it prints how long a launch takes; in the emulator, that the ways do the same.
#include "common/device_launch.cuh"
#include "emulator/driver.h"

#include <algorithm>

namespace {

using namespace fused_inception;
using device::Swizzle;

constexpr int kFilters = 192, kStep = 32, kStages = 8;
constexpr int kSlotBytes = kFilters * kStep * 2;
constexpr int kReaders = 128;

struct ProbeParams {
  const uint16_t* weight;  // [kFilters][channels]
  const uint16_t* packed;  // [channels / 32][4][kFilters][8]
  device::TensorMap map;   // of weight
  uint32_t* output;        // a word a thread: all that it has read, by exclusive or
  int32_t channels;
  int32_t repeats;
};

enum class Way { kCpAsync, kRows16, kRows64, kPacked, kMulticast };

// Of a slot: patterns of the swizzle begin on it, and for cp.async, which would meet banks twice,
// eights of channels are a row further apart.
constexpr int kSlotChunks = 832;
static_assert(kSlotChunks >= 4 * (kFilters + 1) && kSlotChunks * 16 % 512 == 0);

struct Storage {
  alignas(1024) device::Chunk ring[kStages][kSlotChunks];
  uint64_t full[kStages], empty[kStages];
};
// Four warps read what another warpgroup loads.
template <Way kWay>
__global__ void __launch_bounds__(256) load_kernel(const __grid_constant__ ProbeParams p) {
  if constexpr (device::kHasWgmma) {
    constexpr bool kCopies = kWay == Way::kCpAsync;
    constexpr int kBlocks = kWay == Way::kMulticast ? 2 : 1, kLoaders = 64;
    constexpr int kPitch = kCopies ? kFilters + 1 : kFilters;
    auto& s = *device::dynamic_smem<Storage>();
    const int thread = device::thread_index();
    const int rank = kBlocks > 1 ? device::cluster_rank() : 0;
    if (thread == 0) {
      for (int i = 0; i < kStages; ++i) {
        device::mbarrier_init(device::smem_u32(&s.full[i]), kCopies ? kLoaders : 1);
        device::mbarrier_init(device::smem_u32(&s.empty[i]), 4 * kBlocks);
      }
      device::mbarrier_init_fence();
    }
    if constexpr (kBlocks > 1) {
      device::cluster_arrive();
      device::cluster_wait();
    } else {
      device::block_sync();
    }
    const int steps = p.channels / kStep * p.repeats;
    if (thread < kReaders) {
      uint32_t read = 0;
      for (int step = 0; step < steps; ++step) {
        const int slot = step % kStages;
        device::mbarrier_wait(device::smem_u32(&s.full[slot]), step / kStages % 2);
        for (int i = thread; i < 4 * kFilters; i += kReaders) {
          const device::Chunk chunk = s.ring[slot][i / kFilters * kPitch + i % kFilters];
          read ^= chunk.words[0] ^ chunk.words[1] ^ chunk.words[2] ^ chunk.words[3];
        }
        device::fence_proxy_async();
        device::warp_sync();
        const uint32_t empty = device::smem_u32(&s.empty[slot]);
        if constexpr (kBlocks > 1) {
          if (thread % 32 < kBlocks)
            device::mbarrier_arrive_remote(device::map_rank(empty, thread % 32));
        } else {
          if (thread % 32 == 0) device::mbarrier_arrive(empty);
        }
      }
      p.output[device::block_index() * kReaders + thread] = read;
    } else if (thread < kReaders + (kCopies ? kLoaders : 1)) {
      const int loader = thread - kReaders;
      for (int step = 0; step < steps; ++step) {
        const int slot = step % kStages, k = step * kStep % p.channels;
        const uint32_t full = device::smem_u32(&s.full[slot]);
        const uint32_t target = device::smem_u32(s.ring[slot]);
        device::mbarrier_wait(device::smem_u32(&s.empty[slot]), (step / kStages + 1) % 2);
        if constexpr (kCopies) {
          for (int row = loader / 4; row < kFilters; row += kLoaders / 4) {
            const int chunk = loader % 4;
            device::cp_async_16(device::smem_u32(&s.ring[slot][chunk * kPitch + row]),
                                p.weight + row * p.channels + k + 8 * chunk,
                                16);
          }
          device::cp_async_commit();
          // One step stays in flight, as in a ring that is read behind it.
          if (step > 0) {
            device::cp_async_wait<1>();
            device::fence_proxy_async();
            device::mbarrier_arrive(device::smem_u32(&s.full[(step - 1) % kStages]));
          }
        } else {
          device::mbarrier_arrive_expect_tx(full, kSlotBytes);
          if constexpr (kWay == Way::kRows16) {
            device::tensor_copy(target, p.map, 0, 0, k / 8, full);
          } else if constexpr (kWay == Way::kRows64) {
            device::tensor_copy(target, p.map, k, 0, 0, full);
          } else if constexpr (kWay == Way::kPacked) {
            device::bulk_copy(target, p.packed + k * kFilters, kSlotBytes, full);
          } else {
            const int row = kFilters / 2 * rank;
            device::tensor_copy_multicast(
                target + static_cast<uint32_t>(64 * row), p.map, k, 0, row, full, 3);
          }
        }
      }
      if constexpr (kCopies) {
        device::cp_async_wait<0>();
        device::fence_proxy_async();
        device::mbarrier_arrive(device::smem_u32(&s.full[(steps - 1) % kStages]));
      }
    }
    if constexpr (kBlocks > 1) {
      device::cluster_arrive();
      device::cluster_wait();
    }
  } else {
    device::trap();
  }
}

enum class Rows { kFilters, kPixels };

// Three warpgroups, 64 rows each by 160 columns: rows swizzled and columns shifted, or the other
// way round. Both operands are zero.
template <Rows kRows>
__global__ void __launch_bounds__(384) product_kernel(const __grid_constant__ ProbeParams p) {
  if constexpr (device::kHasWgmma) {
    constexpr int kColumns = 160, kPixels = 272;  // of the shifted operand, more than a shift needs
    constexpr bool kSwizzledRows = kRows == Rows::kFilters;
    auto* swizzled = device::dynamic_smem<device::Chunk>();  // [kFilters][4]
    device::Chunk* shifted = swizzled + 4 * kFilters;        // [4][kPixels]
    const int thread = device::thread_index(), warpgroup = thread / device::kWarpgroupSize;
    for (int i = thread; i < 4 * (kFilters + kPixels); i += 384)
      swizzled[i] = {};
    device::fence_proxy_async();
    device::block_sync();
    float d[kColumns / 2];
    for (int i = 0; i < kColumns / 2; ++i)
      d[i] = 0.0f;
    const int row = 64 * warpgroup;
    for (int step = 0; step < p.channels / kStep * p.repeats; ++step) {
      device::wgmma_fence(d);
      for (int k16 = 0; k16 < 2; ++k16) {
        const int first = kSwizzledRows ? row : 0, shift = step % 5 * 17 % 48;
        const int pixel = (kSwizzledRows ? 0 : row) + shift;
        const uint64_t a = device::swizzled_descriptor<Swizzle::k64>(
            device::smem_u32(swizzled + 4 * first) + static_cast<uint32_t>(32 * k16), 512);
        const uint64_t b = device::matrix_descriptor(
            device::smem_u32(shifted + 2 * k16 * kPixels + pixel), 16 * kPixels, 128);
        device::wgmma_m64k16<Float16>(d, kSwizzledRows ? a : b, kSwizzledRows ? b : a, true);
      }
      device::wgmma_commit();
      device::wgmma_wait<1>();
    }
    device::wgmma_finish(d);
    uint32_t read = 0;
    for (int i = 0; i < kColumns / 2; ++i)
      read |= d[i] != 0.0f;
    p.output[device::block_index() * 384 + thread] = read;
  } else {
    device::trap();
  }
}

struct Probe {
  void (*kernel)(ProbeParams);
  int threads;
  int outputs;  // of a block
  int64_t shared_bytes;
  int cluster;
};

Probe probe_of(const std::string& name) {
  const auto load = [](void (*kernel)(ProbeParams), int cluster = 1) {
    return Probe{kernel, 256, kReaders, sizeof(Storage), cluster};
  };
  if (name == "cp_async") return load(load_kernel<Way::kCpAsync>);
  if (name == "rows_of_16") return load(load_kernel<Way::kRows16>);
  if (name == "rows_of_64") return load(load_kernel<Way::kRows64>);
  if (name == "packed") return load(load_kernel<Way::kPacked>);
  if (name == "multicast") return load(load_kernel<Way::kMulticast>, 2);
  constexpr int64_t kBytes = 4 * 16 * (kFilters + 272);
  if (name == "filters_as_rows") return {product_kernel<Rows::kFilters>, 384, 384, kBytes, 1};
  if (name == "pixels_as_rows") return {product_kernel<Rows::kPixels>, 384, 384, kBytes, 1};
  driver::die("no way " + name);
}

}  // namespace

int main(int argc, char** argv) {
  const driver::Arguments arguments(argc, argv);
  driver::configure(arguments);
  const std::string way = arguments.text("way");
  const Probe probe = probe_of(way);
  ProbeParams params = {};
  params.channels = static_cast<int32_t>(arguments.number("channels"));
  params.repeats = static_cast<int32_t>(arguments.number("repeats"));
  const auto operand = [&](const char* name) {
    return static_cast<const uint16_t*>(driver::Buffer::read(name, arguments.text(name)).get());
  };
  params.weight = operand("weight");
  params.packed = operand("packed");
  const int64_t pitch = 2 * params.channels;
  const device::Status made = way == "rows_of_16"
                                  ? device::make_tensor_map(params.map,
                                                            params.weight,
                                                            {8, kFilters, params.channels / 8},
                                                            {pitch, 16},
                                                            {8, kFilters, kStep / 8},
                                                            Swizzle::kNone)
                                  : device::make_tensor_map(params.map,
                                                            params.weight,
                                                            {params.channels, 1, kFilters},
                                                            {pitch, pitch},
                                                            {kStep, 1, kFilters / probe.cluster},
                                                            Swizzle::k64);
  if (made != device::kSuccess) driver::die("no tensor map");
  const int blocks = std::max(1, device::multiprocessors() / 2) * 2;
  const driver::Buffer output(
      "output", static_cast<size_t>(4 * blocks * probe.outputs), driver::Access::kWrite);
  params.output = static_cast<uint32_t*>(output.get());
  const auto launch = [&] {
    device::launch(probe.kernel,
                   blocks,
                   probe.threads,
                   static_cast<int>(probe.shared_bytes),
                   nullptr,
                   params,
                   probe.cluster);
  };
  launch();
#ifdef __CUDACC__
  cudaEvent_t start, end;
  driver::check(cudaEventCreate(&start));
  driver::check(cudaEventCreate(&end));
  constexpr int kLaunches = 20;
  driver::check(cudaEventRecord(start));
  for (int i = 0; i < kLaunches; ++i)
    launch();
  driver::check(cudaEventRecord(end));
  driver::check(cudaEventSynchronize(end));
  float milliseconds = 0;
  driver::check(cudaEventElapsedTime(&milliseconds, start, end));
  std::printf("nanoseconds %.0f\n", milliseconds / kLaunches * 1e6);
#endif
  std::printf("blocks %d\n", blocks);
  const int result = driver::report();
  output.save(arguments.text("output"));
  return result;
}
