// SPDX-License-Identifier: Apache-2.0
// A `1xn -> mx1` (or `nx1 -> 1xm`) pair of convolutions on wgmma, nothing recomputed at the seam.
// With the lines, shifts and letters of params.h:
//
//   mid[cross, line, k] = act_mid(bias1[k] + sum over t, c of x[cross + s, line, c] w1[k, t, c])
//   y[cross, line, f]   = act(bias2[f] + sum over t, k of mid[cross, line + u, k] w2[f, t, k])
//
// Both are products filters x pixels: M are 64 filters a warpgroup, N the pixels of a band, K the
// channels, with taps outside and blocks of 32 channels inside, 16 of them a wgmma. An element's
// sum depends on that order alone, not on the band, so the band may be chosen by the batch.
//
// A band is up to `lines` whole lines of one image. Operands lie in shared memory as [C /
// 8][pixel][8] without a swizzle, where a start address 16 d bytes on is the same operand from
// pixel d on, and any d will do. Each factor's input has the axis of its taps as the slow one, so a
// tap is such a shift:
//   input  [cross][line], with taps1 / 2 lines on either side: a tap is line_size pixels;
//   mid    [line][cross], with taps2 / 2 rows of zeros at either end: a tap is `lines` pixels.
// The first factor's epilogue changes the order on the way: stmatrix takes an address per pixel.
// The tile has more columns than the band has pixels; the last columns multiply whatever follows
// (zeros, or what such columns have left in mid), and their results go to rows of mid that no pixel
// reads. Nobody reads another column, so that is harmless even where it is not finite.
//
// One block a multiprocessor, persistent over bands: two or three warpgroups that compute (one
// where a cluster shares a band) and one that loads, of which a single thread streams filters
// through a ring of steps and three warps load the input band. The next band's input is loaded
// while the second factor of this one runs.
//
// Clusters, in one of two ways (configuration.h):
//   multicast  Blocks have a band each and go through the same filters in the same order. Each
//              loads its part of a step's filters for all, and a slot of the ring is free when the
//              warps of all have read it. For many bands: each block reads 1 / c of the filters
//              from L2.
//   split      Blocks compute a share of the filters, of both factors, of the same band. After the
//              first factor each pushes its channels of the mid band, which are contiguous, to the
//              others by bulk copies through distributed shared memory, counted by an mbarrier of
//              the receiver; another says when all have read what they hold. For few bands: a block
//              reads 1 / c of the filters, and c times as many multiprocessors read.
//
// Filters arrive by tensor copies in boxes of 32 channels of one tap: rows of 64 bytes, swizzled by
// 64, which wgmma reads by its descriptor. They are never shifted, so the swizzle is safe there;
// the pixels, which are shifted by any number of rows, stay without one. Filters past the last and
// channels past the last come as zeros. What was weighed against that:
//   Packed filters and bulk copies: 12 KB in a row instead of 192 rows of 64 bytes. Packing in a
//   call is a launch of its own that moves 2 MB, where a call of up to 32 images should take 3 to
//   13 us; packing once needs a place beside the weights that a plain call of the op does not have.
//   Boxes with rows of 16 bytes, which need no swizzle: 768 rows a step of 480 clocks.
//   The 128-byte swizzle, steps of 64 channels: a slot of 24 KB, of which the memory beside 160
//   pixels of 192 channels holds one and a half; and 160 channels are two and a half steps.
//   cp.async, 16 bytes a thread: 64 threads, their registers and waits, and the tags of L1 (8 an
//   instruction, 192 clocks a step); it remains for the input, a tenth of what a block reads, which
//   needs rows of 16 bytes.
// tests/emulator/probe_sm90.cpp times each of them on a device.
//
// Arithmetic, for 17x17, 192 channels, 7 taps, 153 of 160 pixels, 192 filters: a step of 32
// channels is two wgmmas a warpgroup of 80 clocks each, 480 clocks for three; it loads 12 KB of
// filters, 26 bytes a clock of about 35 that L2 gives a multiprocessor (3,942 a clock for 114 of
// them, arXiv 2501.12084), by multicast to two 13. Operands from shared memory: 7 KB in 80 clocks,
// 90 of 128 bytes a clock. Bound by the matrix units, 90 % of whose columns are pixels (289 of 320
// an image). One image alone: nine bands of 48 pixels, 8 blocks each with 24 filters of 64 rows: 84
// steps of 48 clocks, and 177 KB from L2, 5,200 clocks; 11 KB of mid come from the others, 800
// clocks at 14 bytes a clock (arXiv 2402.13499). Alone a block would read 1.1 MB, 31,000 clocks.
// docs/cuda_factorized_conv2d.md has the table. Nothing here has been timed, and nothing here has
// run on a device.
//
// Pixels as rows of the product, filters as columns: columns come in eights, so 160 filters waste
// nothing, where rows in 64s waste a sixth; but then pixels come in 64s: 192 rows hold nine lines
// of 17 (80 % of them pixels), 128 hold six (80 %), against 90 % of 160 columns. 160 filters come
// to 80 % against 75 %, 192 filters to 80 % against 90 %. A 160-channel pair with 192 filters
// behind it gains nothing, one with 160 a sixteenth: not built. What 128 filters waste in a tile of
// 192 is nothing: a warpgroup without filters leaves the matrix units to the others.
//
// Shared memory with 192 channels: input 101 KB, mid 83 KB, ring 37 KB, 6 KB to leave by.
// Registers: a launch of 512 threads gives each 128, of which the accumulators are 80; setmaxnreg
// moves some of the loaders' over (144 and 80), without which ptxas spilled 24 bytes. With 384
// threads 208 and 80. A wgmma_fence in every step keeps ptxas from serializing the products (its
// notes C7519, C7520). Skipping the products of an idle warpgroup by a branch around the loop
// instead of one inside of it spilled 36 bytes, and 2.5 KB with accumulators of its own.
//
// Range: filters in any number (tiles of 64 to 192, one after the other), channels padded to 32 in
// shared memory, taps odd, lines of up to 160 pixels, as long as the bands fit (sm90_band).
#pragma once

#include "common/device.cuh"
#include "factorized_conv2d/configuration.h"
#include "factorized_conv2d/params.h"

namespace fused_inception {

// Traits.

template <int kConfiguration>
struct Sm90Traits {
  static constexpr Sm90Configuration kRow = kSm90Configurations[kConfiguration];
  static constexpr int kPixels = kRow.pixels;
  static constexpr int kFilters = kRow.filters();
  static constexpr int kStages = kRow.stages;
  static constexpr int kSplit = kRow.split;
  static constexpr int kMulticast = kRow.multicast;
  static constexpr int kCluster = kRow.cluster();
  static constexpr int kThreads = kRow.threads();
  static constexpr int kConsumerThreads = device::kWarpgroupSize * kRow.consumers;
  static constexpr int kConsumerWarps = kConsumerThreads / device::kWarpSize;
  static constexpr int kRegisters = kPixels / 2;
  // Of the warpgroup that loads one thread issues the copies of filters, three warps those of the
  // input.
  static constexpr int kLoaders = 96;
  // Of a thread, once the warpgroups have shared out what the launch gave to each alike. With one
  // warpgroup that computes there is enough for all.
  static constexpr bool kSharesRegisters = kRow.consumers > 1;
  static constexpr int kLoaderRegisters = 80;
  static constexpr int kConsumerRegisters = kRow.consumers == 3 ? 144 : 208;

  FUSED_INCEPTION_HOST_DEVICE static constexpr int part(int stored) {
    return sm90_part(stored, kSplit);
  }
  FUSED_INCEPTION_HOST_DEVICE static constexpr int copy_rows(int stored) {
    return sm90_copy_rows(stored, kFilters, kSplit, kMulticast);
  }

  static_assert(kStages >= 3, "a step in use, one complete and one on its way");
  static_assert(!kSharesRegisters || kLoaderRegisters + kRow.consumers * kConsumerRegisters <=
                                         (kRow.consumers + 1) * (65536 / kThreads / 8 * 8),
                "claim_registers would wait for ever");
  static_assert(kPixels % 16 == 0, "the epilogue takes 16 pixels at a time");
  static_assert(kSplit == 1 || kMulticast == 1, "the rank is a share of a band, or a band");
};

struct Sm90Params {
  FactorizedConv2dParams problem;
  // [filters][taps][channels], in boxes of kBlockK channels of one tap of copy_rows filters.
  device::TensorMap filters1;
  device::TensorMap filters2;
};

// The ring, then what the warps' results leave by, then barriers; input and mid follow, whose sizes
// depend on the problem. A step of the ring is a row of 64 bytes a filter, swizzled.
template <typename Traits>
struct alignas(128) Sm90SharedStorage {
  device::Chunk ring[Traits::kStages][Traits::kFilters][kBlockK / 8];
  device::Chunk leaving[Traits::kConsumerWarps][32];
  uint64_t full[Traits::kStages];  // copies: a step is there
  uint64_t
      empty[Traits::kStages];  // warps that compute: all blocks that a copy reaches have read it
  uint64_t input_full;         // loaders of the input
  uint64_t input_empty;
  uint64_t mid_full;   // pushes: the other blocks' shares of the mid band are there
  uint64_t mid_empty;  // warps that compute: all blocks have read theirs
};

// Device helpers.

// Where a ring of mbarriers stands: a slot, and the parity of its phase.
template <int kSlots>
struct RingPosition {
  int slot = 0;
  int parity = 0;

  __device__ __forceinline__ void advance() {
    ++slot;
    if (slot == kSlots) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// One factor as the loaders and the warps of one block that compute both count it.
struct Sm90Factor {
  const device::TensorMap& map;
  const uint16_t* bias;
  int32_t filters;
  int32_t first;  // of the block's filters, some of which may be past the last real one
  int32_t end;
  int32_t part;  // filters of every block but the last ones
  int32_t rows;  // filters that a copy brings
  int32_t taps;
  int32_t channels;
  bool relu;
};

template <typename Traits>
__device__ __forceinline__ Sm90Factor sm90_factor(const device::TensorMap& map,
                                                  const void* bias,
                                                  int32_t filters,
                                                  int32_t stored,
                                                  int32_t taps,
                                                  int32_t channels,
                                                  bool relu,
                                                  int rank) {
  const int32_t part = Traits::part(stored);
  const int32_t first = Traits::kSplit > 1 ? part * rank : 0;
  return {map,
          static_cast<const uint16_t*>(bias),
          filters,
          first,
          first + part < stored ? first + part : stored,
          part,
          Traits::copy_rows(stored),
          taps,
          channels,
          relu};
}

template <typename Traits>
__device__ __forceinline__ Sm90Factor first_factor(const Sm90Params& params, int rank) {
  const FactorizedConv2dParams& p = params.problem;
  return sm90_factor<Traits>(params.filters1,
                             p.bias1,
                             p.filters1,
                             round_up(p.c_mid, kBlockK),
                             p.taps1,
                             p.c_in,
                             p.mid_relu,
                             rank);
}
template <typename Traits>
__device__ __forceinline__ Sm90Factor second_factor(const Sm90Params& params, int rank) {
  const FactorizedConv2dParams& p = params.problem;
  return sm90_factor<Traits>(
      params.filters2, p.bias2, p.filters2, p.c_out, p.taps2, p.c_mid, p.relu, rank);
}

// The thread that streams filters.
template <typename Traits>
struct FilterStream {
  Sm90SharedStorage<Traits>& storage;
  int rank;
  RingPosition<Traits::kStages> next = {};

  // All steps of a factor, tile after tile of the block's filters.
  __device__ __forceinline__ void load(const Sm90Factor& factor) {
    for (int32_t tile = 0; tile < factor.part; tile += Traits::kFilters) {
      for (int tap = 0; tap < factor.taps; ++tap) {
        for (int32_t k = 0; k < factor.channels; k += kBlockK)
          step(factor, factor.first + tile, tap, k);
      }
    }
  }

 private:
  __device__ __forceinline__ void step(const Sm90Factor& factor, int32_t f, int tap, int32_t k) {
    // A fresh ring is empty: the parity of the phase before the first.
    device::mbarrier_wait(device::smem_u32(&storage.empty[next.slot]), next.parity ^ 1);
    const uint32_t full = device::smem_u32(&storage.full[next.slot]);
    device::mbarrier_arrive_expect_tx(full, Traits::kMulticast * factor.rows * kBlockK * 2);
    if constexpr (Traits::kMulticast == 1) {
      device::tensor_copy(device::smem_u32(storage.ring[next.slot]), factor.map, k, tap, f, full);
    } else {
      // Copies of the other blocks may arrive before this one expects them: then the count of bytes
      // is below zero meanwhile, and the phase waits for this thread.
      const int row = factor.rows * rank;
      device::tensor_copy_multicast(device::smem_u32(storage.ring[next.slot][row]),
                                    factor.map,
                                    k,
                                    tap,
                                    f + row,
                                    full,
                                    (1 << Traits::kMulticast) - 1);
    }
    next.advance();
  }
};

// A band: lines [first_line, first_line + lines) of an image, some of which may be past its end.
struct Sm90Position {
  int64_t image;
  int32_t first_line;
  bool exists;  // the last cluster may have more blocks than there are bands left
};

__device__ __forceinline__ Sm90Position band_position(const FactorizedConv2dParams& params,
                                                      int32_t bands_per_image,
                                                      int32_t lines,
                                                      int32_t band) {
  const int32_t image = band / bands_per_image;
  return {params.first_image + image, band % bands_per_image * lines, image < params.num_images};
}

// The input of a band, by kLoaders threads, zero outside of the map and past the last channel.
template <typename Traits>
__device__ __forceinline__ void load_input(device::Chunk* input,
                                           const FactorizedConv2dParams& params,
                                           const Sm90Band& shape,
                                           const Sm90Position& position,
                                           int thread) {
  const int chunks = round_up(params.c_in, kBlockK) / 8;
  const uint16_t* source = static_cast<const uint16_t*>(params.input);
  const int64_t image = position.image * params.input_stride.image;
  const int32_t first = position.first_line - params.taps1 / 2;
  const int32_t end = (shape.lines + params.taps1 - 1) * params.line_size;
  // Neighbouring threads copy neighbouring channels; the odd pitch keeps them in distinct banks.
#pragma unroll 2  // registers
  for (int i = thread; i < shape.input_rows * chunks; i += Traits::kLoaders) {
    const int row = i / chunks, chunk = i % chunks;
    const int32_t cross = first + row / params.line_size, line = row % params.line_size;
    const bool real = position.exists && row < end && cross >= 0 && cross < params.cross_size &&
                      8 * chunk < params.c_in;
    const int64_t element = real ? image + cross * params.input_stride.cross +
                                       line * params.input_stride.line + 8 * chunk
                                 : 0;
    device::cp_async_16(
        device::smem_u32(input + chunk * shape.input_pitch + row), source + element, real ? 16 : 0);
  }
}

// What a warpgroup that computes knows of itself.
template <typename Traits>
struct Consumer {
  int thread;  // of the warpgroup
  int warp;    // of the warpgroup
  int lane;
  int warpgroup;
  RingPosition<Traits::kStages> position;

  __device__ __forceinline__ Consumer()
      : thread(device::thread_index() % device::kWarpgroupSize),
        warp(thread / device::kWarpSize),
        lane(thread % device::kWarpSize),
        warpgroup(device::thread_index() / device::kWarpgroupSize) {}

  // The warp arrives once, at the same mbarrier of every block of the cluster or at its own.
  template <bool kEverywhere>
  __device__ __forceinline__ void arrive(uint64_t* mbarrier) const {
    const uint32_t address = device::smem_u32(mbarrier);
    if constexpr (kEverywhere) {
      if (lane < Traits::kCluster) device::mbarrier_arrive_remote(device::map_rank(address, lane));
    } else {
      if (lane == 0) device::mbarrier_arrive(address);
    }
  }
};

// d = sum over taps and channels of weight[f + 64 warpgroup + m, tap, c] pixels[n + tap shift, c]:
// [C / 8][pitch][8] at `pixels`, `shift` pixels a tap. A warpgroup whose filters are all past the
// block's last leaves the matrix units to the others.
template <typename Traits, typename input_t>
__device__ __forceinline__ void sm90_product(float (&d)[Traits::kRegisters],
                                             Sm90SharedStorage<Traits>& storage,
                                             Consumer<Traits>& consumer,
                                             const Sm90Factor& factor,
                                             int32_t f,
                                             uint32_t pixels,
                                             int pitch,
                                             int shift) {
  constexpr uint32_t kRowBytes = kBlockK * 2;
  constexpr bool kShared = Traits::kMulticast > 1;
  const uint32_t pixel_stride = static_cast<uint32_t>(16 * pitch);
  const int steps = factor.taps * ((factor.channels + kBlockK - 1) / kBlockK);
  const bool computes = f + 64 * consumer.warpgroup < factor.end;
#pragma unroll
  for (int i = 0; i < Traits::kRegisters; ++i)
    d[i] = 0.0f;
  int tap = 0;
  int32_t k = 0;
  int last_slot = 0;
  for (int step = 0; step < steps; ++step) {
    const int slot = consumer.position.slot;
    device::mbarrier_wait(device::smem_u32(&storage.full[slot]), consumer.position.parity);
    const uint32_t filters = device::smem_u32(storage.ring[slot]) +
                             static_cast<uint32_t>(64 * consumer.warpgroup) * kRowBytes;
    const uint32_t start = pixels + static_cast<uint32_t>(16 * shift * tap) +
                           static_cast<uint32_t>(k / 8) * pixel_stride;
    if (computes) {
      // Only the first step needs it, but ptxas serializes the products of a loop without it.
      device::wgmma_fence(d);
#pragma unroll
      for (int k16 = 0; k16 < kBlockK / 16; ++k16) {
        device::wgmma_m64k16<input_t>(
            d,
            device::swizzled_descriptor<device::Swizzle::k64>(filters + 32 * k16, 8 * kRowBytes),
            device::matrix_descriptor(start + 2 * k16 * pixel_stride, pixel_stride, 128),
            true);
      }
      device::wgmma_commit();
    }
    // The products of the step before have read their slot.
    device::wgmma_wait<1>();
    if (step > 0) consumer.template arrive<kShared>(&storage.empty[last_slot]);
    last_slot = slot;
    consumer.position.advance();
    k += kBlockK;
    if (k >= factor.channels) {
      k = 0;
      ++tap;
    }
  }
  device::wgmma_finish(d);
  consumer.template arrive<kShared>(&storage.empty[last_slot]);
}

// Bias and activation of 16 filters and 16 pixels of the warp's tile, from column 8 j on, as the
// four matrices of a stmatrix_transposed: (filters 0-7, pixels 0-7), (8-15, 0-7), (0-7, 8-15),
// (8-15, 8-15).
template <typename Traits, typename input_t>
__device__ __forceinline__ void sm90_finish(uint32_t (&r)[4],
                                            const float (&d)[Traits::kRegisters],
                                            int j,
                                            const float (&bias)[2],
                                            const bool (&real)[2],
                                            bool relu) {
#pragma unroll
  for (int matrix = 0; matrix < 4; ++matrix) {
    const int half = matrix % 2;
    float value[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      value[e] = d[4 * (j + matrix / 2) + 2 * half + e] + bias[half];
      if (relu) value[e] = device::relu(value[e]);
      // An infinite pixel times the zeros of no filter is NaN.
      if (!real[half]) value[e] = 0.0f;
    }
    r[matrix] = device::pack2<input_t>(value[0], value[1]);
  }
}

// One warp sends the block's share of the mid band, chunks [first, end) of `chunks`, to the other
// blocks, and says what it expects of them: `bytes` bytes a chunk from `mid` on.
template <typename Traits>
__device__ __forceinline__ void exchange_mid(Sm90SharedStorage<Traits>& storage,
                                             device::Chunk* mid,
                                             int pitch,
                                             int first,
                                             int end,
                                             int chunks,
                                             int bytes,
                                             int rank) {
  constexpr int kPeers = Traits::kSplit - 1;
  const int lane = device::thread_index() % device::kWarpSize;
  const uint32_t full = device::smem_u32(&storage.mid_full);
  const int mine = end > first ? end - first : 0;
  if (lane == 0) device::mbarrier_arrive_expect_tx(full, (chunks - mine) * bytes);
  for (int i = lane; i < mine * kPeers; i += device::kWarpSize) {
    const int peer = (rank + 1 + i % kPeers) % Traits::kSplit;
    const uint32_t source = device::smem_u32(mid + (first + i / kPeers) * pitch);
    device::bulk_push(device::map_rank(source, peer), source, bytes, device::map_rank(full, peer));
  }
}

// Kernel.

template <int kConfiguration, typename input_t>
__global__ void __launch_bounds__(Sm90Traits<kConfiguration>::kThreads, 1)
    factorized_conv2d_sm90_kernel(const __grid_constant__ Sm90Params params) {
  if constexpr (device::kHasWgmma) {
    using Traits = Sm90Traits<kConfiguration>;
    constexpr int kComputing = 1;  // a named barrier
    constexpr bool kExchanges = Traits::kSplit > 1;
    const FactorizedConv2dParams& problem = params.problem;
    auto& storage = *device::dynamic_smem<Sm90SharedStorage<Traits>>();
    const Sm90Band shape = sm90_band(Traits::kPixels, problem);
    const int32_t bands_per_image = (problem.cross_size + shape.lines - 1) / shape.lines;
    const int32_t bands = problem.num_images * bands_per_image;
    const int mid_chunks = round_up(problem.c_mid, kBlockK) / 8;
    device::Chunk* const input = reinterpret_cast<device::Chunk*>(&storage + 1);
    device::Chunk* const mid = input + shape.input_pitch * (round_up(problem.c_in, kBlockK) / 8);
    const int32_t halo = problem.taps2 / 2 * shape.lines;  // pixels of zeros at either end of mid
    const int32_t band_pixels = problem.line_size * shape.lines;
    const int thread = device::thread_index();
    const int rank = Traits::kCluster > 1 ? device::cluster_rank() : 0;
    // Bands are dealt out to clusters, as many at a time as a cluster takes.
    const int32_t first_band = device::block_index() / Traits::kCluster * Traits::kMulticast;
    const int32_t stride = device::grid_size() / Traits::kCluster * Traits::kMulticast;
    const int32_t own_band = Traits::kMulticast > 1 ? rank : 0;  // of those

    if (device::smem_u32(&storage) % 512 != 0) device::trap();  // patterns of the swizzle
    if (thread == 0) {
      for (int i = 0; i < Traits::kStages; ++i) {
        device::mbarrier_init(device::smem_u32(&storage.full[i]), 1);
        device::mbarrier_init(device::smem_u32(&storage.empty[i]),
                              Traits::kConsumerWarps * Traits::kMulticast);
      }
      device::mbarrier_init(device::smem_u32(&storage.input_full), Traits::kLoaders);
      device::mbarrier_init(device::smem_u32(&storage.input_empty), Traits::kConsumerWarps);
      device::mbarrier_init(device::smem_u32(&storage.mid_full), 1);
      device::mbarrier_init(device::smem_u32(&storage.mid_empty),
                            Traits::kConsumerWarps * Traits::kSplit);
      device::mbarrier_init_fence();
    }
    // Zero where nothing else is written but products read: around the pixels of the mid band, and
    // the rows of a step that no copy brings.
    const int around = shape.mid_pitch - band_pixels;
    for (int i = thread; i < mid_chunks * around; i += Traits::kThreads) {
      const int row = i % around;
      mid[i / around * shape.mid_pitch + (row < halo ? row : row + band_pixels)] = {};
    }
    const int rows1 = Traits::copy_rows(round_up(problem.c_mid, kBlockK));
    const int rows2 = Traits::copy_rows(problem.c_out);
    const int brought = Traits::kMulticast * (rows1 < rows2 ? rows1 : rows2);
    const int missing = (Traits::kFilters - brought) * (kBlockK / 8);  // pieces of a step
    for (int i = thread; i < Traits::kStages * missing; i += Traits::kThreads) {
      device::Chunk* const step = storage.ring[i / missing][0];
      step[brought * (kBlockK / 8) + i % missing] = {};
    }
    device::fence_proxy_async();
    if constexpr (Traits::kCluster > 1) {
      device::cluster_arrive();
      device::cluster_wait();
    } else {
      device::block_sync();
    }

    if (thread >= Traits::kConsumerThreads) {
      if constexpr (Traits::kSharesRegisters) device::release_registers<Traits::kLoaderRegisters>();
      const int loader = thread - Traits::kConsumerThreads - device::kWarpSize;
      if (thread == Traits::kConsumerThreads) {
        // Filters, in the order in which they are used.
        FilterStream<Traits> stream{storage, rank};
        for (int32_t band = first_band; band < bands; band += stride) {
          stream.load(first_factor<Traits>(params, rank));
          stream.load(second_factor<Traits>(params, rank));
        }
      } else if (loader >= 0) {
        int parity = 0;
        for (int32_t band = first_band; band < bands; band += stride) {
          device::mbarrier_wait(device::smem_u32(&storage.input_empty), parity ^ 1);
          load_input<Traits>(input,
                             problem,
                             shape,
                             band_position(problem, bands_per_image, shape.lines, band + own_band),
                             loader);
          device::cp_async_commit();
          device::cp_async_wait<0>();
          device::fence_proxy_async();
          device::mbarrier_arrive(device::smem_u32(&storage.input_full));
          parity ^= 1;
        }
      }
    } else {
      if constexpr (Traits::kSharesRegisters) device::claim_registers<Traits::kConsumerRegisters>();
      Consumer<Traits> consumer;
      float d[Traits::kRegisters];
      // Of the 16 filters of this warp: the two of whose sums this lane holds parts.
      const int warp_filter = 64 * consumer.warpgroup + 16 * consumer.warp;
      float bias[2];
      bool real[2];
      const auto load_bias = [&](const Sm90Factor& factor, int32_t f) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int32_t filter = f + warp_filter + device::accumulator_row(consumer.lane, 2 * half);
          real[half] = filter < factor.filters;
          bias[half] = real[half] && factor.bias != nullptr
                           ? device::to_float<input_t>(factor.bias[filter])
                           : 0.0f;
        }
      };
      // 16 pixels of 16 filters as [half][pixel][8]: each lane takes one of these 32 pieces out.
      device::Chunk* const leaving = storage.leaving[thread / device::kWarpSize];
      int parity = 0;
      for (int32_t band = first_band; band < bands; band += stride) {
        // First factor.
        device::mbarrier_wait(device::smem_u32(&storage.input_full), parity);
        const Sm90Factor first = first_factor<Traits>(params, rank);
        for (int32_t tile = 0; tile < first.part; tile += Traits::kFilters) {
          const int32_t f = first.first + tile;
          sm90_product<Traits, input_t>(d,
                                        storage,
                                        consumer,
                                        first,
                                        f,
                                        device::smem_u32(input),
                                        shape.input_pitch,
                                        problem.line_size);
          if (tile + Traits::kFilters >= first.part)
            consumer.template arrive<false>(&storage.input_empty);
          // The second factor of the band before has read the mid band, in every block that has
          // a share of it; so the shares that this one has sent have arrived, too.
          if (tile == 0) device::mbarrier_wait(device::smem_u32(&storage.mid_empty), parity ^ 1);
          if (f + warp_filter >= first.end) continue;
          load_bias(first, f);
          const int32_t filter = f + warp_filter + consumer.lane / 8 % 2 * 8;
          device::Chunk* const target = mid + filter / 8 * shape.mid_pitch;
          // A share may end in the middle of a warp's filters; the next ones are another block's.
          const bool mine = filter < first.end;
#pragma unroll
          for (int j = 0; j < Traits::kPixels / 8; j += 2) {
            uint32_t r[4];
            sm90_finish<Traits, input_t>(r, d, j, bias, real, first.relu);
            const int pixel = 8 * (j + consumer.lane / 16) + consumer.lane % 8;
            // Columns that are no pixel go past the zeros at the end.
            const int row = pixel < band_pixels ? halo + pixel % problem.line_size * shape.lines +
                                                      pixel / problem.line_size
                                                : 2 * halo + pixel;
            device::stmatrix_transposed(
                device::smem_u32(mine ? target + row : leaving + consumer.lane), r);
          }
        }
        device::fence_proxy_async();
        device::named_barrier_sync(kComputing, Traits::kConsumerThreads);
        if constexpr (kExchanges) {
          if (thread < device::kWarpSize) {
            exchange_mid<Traits>(storage,
                                 mid + halo,
                                 shape.mid_pitch,
                                 first.first / 8,
                                 first.end / 8,
                                 mid_chunks,
                                 16 * band_pixels,
                                 rank);
          }
          device::mbarrier_wait(device::smem_u32(&storage.mid_full), parity);
        }

        // Second factor.
        const Sm90Position position =
            band_position(problem, bands_per_image, shape.lines, band + own_band);
        const Sm90Factor second = second_factor<Traits>(params, rank);
        for (int32_t tile = 0; tile < second.part; tile += Traits::kFilters) {
          const int32_t f = second.first + tile;
          sm90_product<Traits, input_t>(
              d, storage, consumer, second, f, device::smem_u32(mid), shape.mid_pitch, shape.lines);
          if (tile + Traits::kFilters >= second.part)
            consumer.template arrive<kExchanges>(&storage.mid_empty);
          if (!position.exists || f + warp_filter >= second.end) continue;
          load_bias(second, f);
          const int half = consumer.lane / 16;
          const int32_t filter = f + warp_filter + 8 * half;
          uint16_t* const output = static_cast<uint16_t*>(problem.output) +
                                   position.image * problem.output_stride.image + filter;
#pragma unroll
          for (int j = 0; j < Traits::kPixels / 8; j += 2) {
            uint32_t r[4];
            sm90_finish<Traits, input_t>(r, d, j, bias, real, second.relu);
            const int place =
                consumer.lane / 8 % 2 * 16 + consumer.lane / 16 * 8 + consumer.lane % 8;
            device::stmatrix_transposed(device::smem_u32(leaving + place), r);
            device::warp_sync();
            const device::Chunk piece = leaving[consumer.lane];
            const int pixel = 8 * j + consumer.lane % 16;
            const int32_t line = pixel / shape.lines;
            const int32_t cross = position.first_line + pixel % shape.lines;
            if (pixel < band_pixels && cross < problem.cross_size && filter < second.end) {
              *reinterpret_cast<device::Chunk*>(output + cross * problem.output_stride.cross +
                                                line * problem.output_stride.line) = piece;
            }
            device::warp_sync();
          }
        }
        parity ^= 1;
      }
    }
    // Others may still copy to this block and arrive at its barriers.
    if constexpr (Traits::kCluster > 1) {
      device::cluster_arrive();
      device::cluster_wait();
    }
  } else {
    device::trap();
  }
}

}  // namespace fused_inception
