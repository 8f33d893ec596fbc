// SPDX-License-Identifier: Apache-2.0
// A convolution as a matrix product: the pieces that the kernels of all ops are made of, but for
// the pair on wgmma.
//
// A block multiplies a tile of pixels x channels, whose rows move with the tap, by one of (tap,
// channel) x filters, 32 channels of a tap a step. What a step needs arrives by 16-byte cp.async in
// a ring of 3 to 8 steps of shared memory, with one barrier a step (`run_steps`). One of two
// engines multiplies (`multiply`) and adds in float32: warps take a step by ldmatrix to
// mma.m16n8k16, or warpgroups of four name it to wgmma.m64k16 by descriptors. An element's sum
// depends on nothing but the engine and the order of the steps, so all tiles of an engine give the
// same bits. Bias, activation and rounding follow (`finish`), and results leave through the ring's
// memory in pieces of 16 bytes (`write_output`).
//
// Tile rows are 64 bytes with their chunks exchanged (`tile_offset`): neither ldmatrix nor the
// copies meet a bank twice. That is the 64-byte swizzle of wgmma's descriptors, for tiles on
// multiples of 512 bytes. Accumulators lie alike, too: 64 rows of a warpgroup are 16 of each of its
// warps, in the fragments of mma.m16n8k16. So the engines differ in `WarpTile`, `multiply` and two
// waits, and in nothing else.
//
// wgmma runs on while its warps go on: the products of a step are waited for before the barrier two
// steps later, and until then its slot of the ring stays as it is. cp.async writes by the generic
// proxy and wgmma reads by the async one, so each thread that has waited for its copies fences them
// before the barrier (PTX ISA 9.7.9.25.2).
//
// Offsets are 64 bits before they are multiplied.
#pragma once

#include "common/convolution.h"
#include "common/device.cuh"
#include "common/tile.h"

namespace fused_inception {

// With `kHalves` = 2 the tile's filters are those of two convolutions, half of them each, and every
// warp has some of both. Without `kPixels` the ring has filters alone.
template <TileShape kShape, int kHalves = 1, bool kPixels = true>
struct TileTraits {
  static constexpr bool kWgmma = kShape.engine == Engine::kWgmma;
  static constexpr int kBlockM = kShape.block_m;
  static constexpr int kBlockN = kShape.block_n;
  static constexpr int kHalfN = kBlockN / kHalves;
  static constexpr int kStages = kShape.stages;
  static constexpr int kThreads = kShape.threads();
  static constexpr int kMinBlocks = kShape.min_blocks;
  static constexpr int kWarpsN = kShape.warps_n;
  static constexpr int kWarpM = kBlockM / kShape.warps_m;
  static constexpr int kWarpN = kHalfN / kWarpsN;  // of a half
  static constexpr int kFragmentsM = kWarpM / 16;
  static constexpr int kHalfFragmentsN = kWarpN / 8;
  static constexpr int kFragmentsN = kHalves * kHalfFragmentsN;
  // Rows from a warp's fragment to its next: warpgroups have 64 rows between their four warps.
  static constexpr int kFragmentStep = kWgmma ? 64 : 16;
  // Slots of the ring that products read: of this step, and on wgmma of the step before.
  static constexpr int kSlotsInUse = kWgmma ? 2 : 1;
  // A row of a tile is four chunks of 16 bytes, loaded by four neighbouring threads.
  static constexpr int kRowsPerPass = kThreads / 4;
  static constexpr int kRowsA = kBlockM / kRowsPerPass;
  static constexpr int kStageRows = (kPixels ? kBlockM : 0) + kBlockN;
  static constexpr int kOutputPitch = kBlockN + 8;

  static_assert(kBlockM % (16 * kShape.warps_m) == 0 && kHalfN % (16 * kWarpsN) == 0,
                "a warp has whole fragments, and pairs of them along the filters");
  static_assert(kBlockM % kRowsPerPass == 0, "every pass over the pixels is full");
  static_assert(kStages >= 2 + kSlotsInUse,
                "a step is loaded while others are in use and one more is on its way");
  static_assert(!kWgmma || kShape.warps_m % 4 == 0, "a warpgroup is four warps along the pixels");
  static_assert(!kWgmma || kStageRows % 8 == 0, "a swizzle's pattern is eight rows");
  static_assert(kBlockM * kOutputPitch <= kStages * kStageRows * kBlockK,
                "the output tile is collected in the ring");
};

// What a step needs: the filters' tile, then the pixels'.
template <typename Traits>
struct TileStage {
  uint16_t rows[Traits::kStageRows * kBlockK];

  __device__ __forceinline__ uint32_t filters() const { return device::smem_u32(rows); }
  __device__ __forceinline__ uint32_t pixels() const {
    return device::smem_u32(rows + Traits::kBlockN * kBlockK);
  }
};

template <typename Traits>
struct TileStorage {
  union {
    TileStage<Traits> ring[Traits::kStages];
    uint16_t output[Traits::kBlockM * Traits::kOutputPitch];
  };
  int64_t output_offset[Traits::kBlockM];  // of each row of the tile; negative: the row is not real
};

// The block's shared memory.
template <typename Traits>
__device__ __forceinline__ TileStorage<Traits>& tile_storage() {
  auto& storage = *device::dynamic_smem<TileStorage<Traits>>();
  if constexpr (Traits::kWgmma) {
    if (device::smem_u32(&storage) % 512 != 0) device::trap();  // patterns of the swizzle
  }
  return storage;
}

// Where chunk 0..3 of a row of a tile lies, in bytes. Chunks are exchanged so that eight rows of
// one ldmatrix, and the rows that a warp's cp.async writes, are in distinct banks.
__device__ __forceinline__ uint32_t tile_offset(int row, int chunk) {
  return static_cast<uint32_t>(row * (kBlockK * 2) + ((chunk ^ ((row >> 1) & 3)) << 4));
}

// Sixteen channels of the rows from `row` on, a multiple of eight, as an operand of wgmma.
__device__ __forceinline__ uint64_t tile_descriptor(uint32_t tile, int row, int k16) {
  constexpr int kRowBytes = kBlockK * 2;
  return device::swizzled_descriptor<device::Swizzle::k64>(tile + row * kRowBytes + k16 * 32,
                                                           8 * kRowBytes);
}

// A coordinate from which no tap reaches the map.
constexpr int32_t kNowhere = -(1 << 30);

// A row of a tile as a pixel of a map.
struct Pixel {
  bool real;
  int32_t image;
  int32_t cross;
  int32_t line;

  __device__ __forceinline__ int64_t offset(int64_t first_image, const MapStrides& stride) const {
    return (first_image + image) * stride.image + cross * stride.cross + line * stride.line;
  }
};

__device__ __forceinline__ Pixel locate(bool real,
                                        int32_t line_number,
                                        int32_t position,
                                        int32_t cross_size) {
  return {real, line_number / cross_size, line_number % cross_size, position};
}

// A thread's share of loading a step's pixels from global memory: one chunk of kRowsA rows.
template <typename Traits>
struct PixelRows {
  const uint16_t* source;
  int64_t offset[Traits::kRowsA];  // from source to the row's first tap, at the chunk
  int32_t cross[Traits::kRowsA];   // of the first tap
  int32_t line[Traits::kRowsA];
  int32_t cross_size;
  int32_t line_size;
  int64_t cross_stride;
  int64_t line_stride;
  int32_t channels;

  // `pixel_of(row)` locates a row of the tile on the output map.
  template <typename PixelOf>
  __device__ __forceinline__ PixelRows(const FilteredMap& map, const PixelOf& pixel_of)
      : source(static_cast<const uint16_t*>(map.data)),
        cross_size(map.cross_size),
        line_size(map.line_size),
        cross_stride(map.stride.cross),
        line_stride(map.stride.line),
        channels(map.channels) {
#pragma unroll
    for (int i = 0; i < Traits::kRowsA; ++i) {
      Pixel pixel = pixel_of(row(i));
      pixel.cross = pixel.cross * map.cross_step - map.cross_pad;
      pixel.line = pixel.line * map.line_step - map.line_pad;
      offset[i] = pixel.offset(map.first_image, map.stride) + 8 * chunk();
      cross[i] = pixel.real ? pixel.cross : kNowhere;
      line[i] = pixel.line;
    }
  }

  static __device__ __forceinline__ int row(int i) {
    return device::thread_index() / 4 + i * Traits::kRowsPerPass;
  }
  static __device__ __forceinline__ int chunk() { return device::thread_index() % 4; }

  // The pixels that tap (r, s) sees, the 32 channels from `k` on, to where `place(row, chunk)`
  // says.
  template <typename Place>
  __device__ __forceinline__ void load_to(const Place& place, int r, int s, int k) const {
#pragma unroll
    for (int i = 0; i < Traits::kRowsA; ++i) {
      const int32_t at = cross[i] + r, along = line[i] + s;
      const bool inside = at >= 0 && at < cross_size && along >= 0 && along < line_size &&
                          k + 8 * chunk() < channels;
      const int64_t element = inside ? offset[i] + r * cross_stride + s * line_stride + k : 0;
      device::cp_async_16(place(row(i), chunk()), source + element, inside ? 16 : 0);
    }
  }
  __device__ __forceinline__ void load(uint32_t tile, int r, int s, int k) const {
    load_to([&](int row, int chunk) { return tile + tile_offset(row, chunk); }, r, s, k);
  }
};

// A thread's chunk of a step where the channels of all taps follow one another: a step may have the
// last channels of one tap and the first of the next.
struct JoinedChunk {
  int32_t cross_taps;
  int32_t line_taps;
  int32_t channels;
  int32_t k;
  int32_t cross = 0;
  int32_t line = 0;

  __device__ __forceinline__ JoinedChunk(const FilteredMap& map, int chunk)
      : cross_taps(map.cross_taps), line_taps(map.line_taps), channels(map.channels), k(8 * chunk) {
    settle();
  }
  // To the chunk of the next step.
  __device__ __forceinline__ void advance() {
    k += kBlockK;
    settle();
  }
  __device__ __forceinline__ bool exists() const { return cross < cross_taps; }

 private:
  __device__ __forceinline__ void settle() {
    while (k >= channels && exists()) {
      k -= channels;
      if (++line == line_taps) {
        line = 0;
        ++cross;
      }
    }
  }
};

// What PixelRows is, for kRows filters of a step, from a weight [filter][tap][channel].
template <typename Traits, int kRows = Traits::kBlockN>
struct FilterRows {
  const uint16_t* weight;
  int32_t first;  // the thread's first filter
  int32_t end;    // past the last filter
  int32_t taps;
  int32_t channels;

  __device__ __forceinline__ FilterRows(
      const void* pointer, int32_t first_filter, int32_t end_, int32_t taps_, int32_t channels_)
      : weight(static_cast<const uint16_t*>(pointer)),
        first(first_filter + device::thread_index() / 4),
        end(end_),
        taps(taps_),
        channels(channels_) {}

  __device__ __forceinline__ void load(uint32_t tile, int tap, int k) const {
    constexpr int kPasses = (kRows + Traits::kRowsPerPass - 1) / Traits::kRowsPerPass;
    const int thread = device::thread_index();
    const int chunk = thread % 4;
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int row = thread / 4 + i * Traits::kRowsPerPass;
      if (kRows % Traits::kRowsPerPass != 0 && row >= kRows) break;
      const int32_t filter = first + i * Traits::kRowsPerPass;
      const bool inside = filter < end && k + 8 * chunk < channels;
      const int64_t row_number = static_cast<int64_t>(filter) * taps + tap;
      const int64_t element = inside ? row_number * channels + k + 8 * chunk : 0;
      device::cp_async_16(tile + tile_offset(row, chunk), weight + element, inside ? 16 : 0);
    }
  }
};

// What a warp computes of a tile, and which part of a fragment its lane holds.
template <typename Traits>
struct WarpTile {
  int lane;
  int group_row;  // the first row of the warp, or of its warpgroup
  int first_row;
  int first_column;

  __device__ __forceinline__ WarpTile() {
    constexpr int kGroup = Traits::kFragmentStep / 16;  // warps that multiply together
    const int thread = device::thread_index();
    const int warp = thread / device::kWarpSize;
    lane = thread % device::kWarpSize;
    group_row = warp / kGroup / Traits::kWarpsN * kGroup * Traits::kWarpM;
    first_row = group_row + warp % kGroup * 16;
    first_column = warp / kGroup % Traits::kWarpsN * Traits::kWarpN;
  }

  // The first row of the tile that fragment `m` has.
  __device__ __forceinline__ int row(int m) const { return first_row + m * Traits::kFragmentStep; }

  // The first filter of the tile that fragment `n` has.
  __device__ __forceinline__ int column(int n) const {
    return first_column + n / Traits::kHalfFragmentsN * Traits::kHalfN +
           n % Traits::kHalfFragmentsN * 8;
  }

  // ldmatrix of a 16x16 fragment of pixels, matrices in the order (rows 0-7, k 0-7), (8-15, 0-7),
  // (0-7, 8-15), (8-15, 8-15): the row of the tile, and the half of k, that the lane addresses.
  __device__ __forceinline__ int pixel_row(int fragment) const { return row(fragment) + lane % 16; }
  __device__ __forceinline__ int pixel_half() const { return lane / 16; }

  // The same of two 8x16 fragments of filters: (0-7, 0-7), (0-7, 8-15), (8-15, 0-7), (8-15, 8-15).
  __device__ __forceinline__ int filter_row(int pair) const {
    return column(2 * pair) + lane / 16 * 8 + lane % 8;
  }
  __device__ __forceinline__ int filter_half() const { return lane / 8 % 2; }

  // The operand of `multiply` for rows that lie in a tile as they are: what the lane gives to
  // ldmatrix, or the descriptor of the warpgroup's 64 rows.
  __device__ __forceinline__ auto pixels(uint32_t tile, int fragment, int k16) const {
    if constexpr (Traits::kWgmma) {
      return tile_descriptor(tile, group_row + fragment * Traits::kFragmentStep, k16);
    } else {
      return tile + tile_offset(pixel_row(fragment), 2 * k16 + pixel_half());
    }
  }
};

template <typename Traits>
using Accumulators = float[Traits::kFragmentsM][Traits::kFragmentsN][4];

template <typename Traits>
__device__ __forceinline__ void clear(Accumulators<Traits>& acc) {
#pragma unroll
  for (int m = 0; m < Traits::kFragmentsM; ++m) {
#pragma unroll
    for (int n = 0; n < Traits::kFragmentsN; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        acc[m][n][i] = 0.0f;
    }
  }
}

// All of them, as wgmma's fences take them.
template <typename Traits>
__device__ __forceinline__ auto& registers(Accumulators<Traits>& acc) {
  return reinterpret_cast<float (&)[sizeof(acc) / sizeof(float)]>(acc);
}

// A step of a sum: a tap of the filter, its coordinates, and the first of 32 channels.
struct Step {
  int32_t tap = 0;
  int32_t cross = 0;
  int32_t line = 0;
  int32_t k = 0;
};

// What both orders of a sum have.
struct FilterSteps {
  int32_t taps;
  int32_t line_taps;
  int32_t channels;

  __device__ __forceinline__ int32_t steps() const {
    return taps * ((channels + kBlockK - 1) / kBlockK);
  }

 protected:
  __device__ __forceinline__ void next_tap(Step& step) const {
    ++step.tap;
    if (++step.line == line_taps) {
      step.line = 0;
      ++step.cross;
    }
  }
};

// Taps outside, in the order of the weight; blocks of channels inside.
struct TapsOutside : FilterSteps {
  __device__ __forceinline__ void advance(Step& step) const {
    step.k += kBlockK;
    if (step.k < channels) return;
    step.k = 0;
    next_tap(step);
  }
};

// Blocks of channels outside, taps inside.
struct ChannelsOutside : FilterSteps {
  __device__ __forceinline__ void advance(Step& step) const {
    next_tap(step);
    if (step.tap < taps) return;
    step.tap = step.cross = step.line = 0;
    step.k += kBlockK;
  }
};

// A sum from zero: the steps of `order` through the ring. `load(stage, step)` starts the copies of
// a step, and `use(stage, step)`, which multiplies, has all of them. Leaves the ring free for all
// threads.
template <typename Traits, typename Order, typename Load, typename Use>
__device__ __forceinline__ void run_steps(Accumulators<Traits>& acc,
                                          TileStage<Traits>* ring,
                                          const Order& order,
                                          const Load& load,
                                          const Use& use) {
  constexpr int kAhead = Traits::kStages - Traits::kSlotsInUse;  // steps there or on their way
  clear<Traits>(acc);
  const int steps = order.steps();
  Step loading;
  const auto load_next = [&](int stage) {
    load(ring[stage], loading);
    order.advance(loading);
  };
  // A group is committed for every step, also where nothing is left to load, so that the wait can
  // count them.
  for (int stage = 0; stage < kAhead; ++stage) {
    if (stage < steps) load_next(stage);
    device::cp_async_commit();
  }

  Step step;
  int stage = 0;
  for (int i = 0; i < steps; ++i) {
    device::cp_async_wait<kAhead - 1>();
    if constexpr (Traits::kWgmma) {
      device::fence_proxy_async();
      device::wgmma_wait<1>();
    }
    // All copies of this step are visible, and nobody reads the slot that is loaded now any more.
    device::block_sync();
    if (i + kAhead < steps) {
      load_next(stage < Traits::kSlotsInUse ? stage + kAhead : stage - Traits::kSlotsInUse);
    }
    device::cp_async_commit();
    use(ring[stage], step);
    order.advance(step);
    stage = stage == Traits::kStages - 1 ? 0 : stage + 1;
  }
  if constexpr (Traits::kWgmma) device::wgmma_finish(registers<Traits>(acc));
  device::block_sync();
}

// acc += pixels x filters of one step, 16 channels after 16, for the halves from kFirstHalf up to
// kEndHalf. `pixels(fragment, k16)` is the operand of a fragment's pixels, see `WarpTile::pixels`.
template <typename Traits,
          typename input_t,
          int kFirstHalf = 0,
          int kEndHalf = Traits::kFragmentsN / Traits::kHalfFragmentsN,
          typename Pixels>
__device__ __forceinline__ void multiply(Accumulators<Traits>& acc,
                                         uint32_t filters,
                                         const WarpTile<Traits>& warp,
                                         const Pixels& pixels) {
  if constexpr (Traits::kWgmma) {
    // Only the first step needs it, but ptxas serializes the products of a loop without it.
    device::wgmma_fence(registers<Traits>(acc));
#pragma unroll
    for (int k16 = 0; k16 < kBlockK / 16; ++k16) {
#pragma unroll
      for (int m = 0; m < Traits::kFragmentsM; ++m) {
#pragma unroll
        for (int half = kFirstHalf; half < kEndHalf; ++half) {
          const int n = half * Traits::kHalfFragmentsN;
          device::wgmma_m64k16<input_t>(reinterpret_cast<float (&)[Traits::kWarpN / 2]>(acc[m][n]),
                                        pixels(m, k16),
                                        tile_descriptor(filters, warp.column(n), k16),
                                        true);
        }
      }
    }
    device::wgmma_commit();
    return;
  }
  constexpr int kPairs = Traits::kHalfFragmentsN / 2;
#pragma unroll
  for (int k16 = 0; k16 < kBlockK / 16; ++k16) {
    uint32_t a[Traits::kFragmentsM][4];
#pragma unroll
    for (int m = 0; m < Traits::kFragmentsM; ++m) {
      device::ldmatrix(a[m], pixels(m, k16));
    }
#pragma unroll
    for (int pair = kFirstHalf * kPairs; pair < kEndHalf * kPairs; ++pair) {
      uint32_t b[4];
      const int chunk = 2 * k16 + warp.filter_half();
      device::ldmatrix(b, filters + tile_offset(warp.filter_row(pair), chunk));
      const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
      for (int m = 0; m < Traits::kFragmentsM; ++m) {
        device::mma_m16n8k16<input_t>(acc[m][2 * pair], a[m], b0);
        device::mma_m16n8k16<input_t>(acc[m][2 * pair + 1], a[m], b1);
      }
    }
  }
}

// Bias and activation of one half, then `store(row, column, two rounded values)` for every pair of
// neighbouring filters of the tile; zero past the last filter. Column 0 is `first_filter`.
template <typename Traits, typename input_t, int kHalf = 0, typename Store>
__device__ __forceinline__ void finish(const Accumulators<Traits>& acc,
                                       const WarpTile<Traits>& warp,
                                       const void* bias,
                                       int32_t first_filter,
                                       int32_t filters,
                                       bool relu,
                                       const Store& store) {
  const uint16_t* bias_values = static_cast<const uint16_t*>(bias);
#pragma unroll
  for (int i_n = 0; i_n < Traits::kHalfFragmentsN; ++i_n) {
    const int n = kHalf * Traits::kHalfFragmentsN + i_n;
    const int column = warp.column(n) + device::accumulator_column(warp.lane, 0);
    const int32_t filter = first_filter + column;
    float bias_value[2] = {0.0f, 0.0f};
    if (bias != nullptr) {
      if (filter < filters) bias_value[0] = device::to_float<input_t>(bias_values[filter]);
      if (filter + 1 < filters) bias_value[1] = device::to_float<input_t>(bias_values[filter + 1]);
    }
#pragma unroll
    for (int m = 0; m < Traits::kFragmentsM; ++m) {
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        float value[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          value[e] = acc[m][n][i + e] + bias_value[e];
          if (relu) value[e] = device::relu(value[e]);
          // An infinite pixel times the zeros of no filter is NaN.
          if (filter + e >= filters) value[e] = 0.0f;
        }
        const int row = warp.row(m) + device::accumulator_row(warp.lane, i);
        store(row, column, device::pack2<input_t>(value[0], value[1]));
      }
    }
  }
}

// The `store` of `finish` that collects the tile in `storage.output`.
template <typename Traits>
__device__ __forceinline__ auto collect_in(TileStorage<Traits>& storage) {
  return [&storage](int row, int column, uint32_t pair) {
    *reinterpret_cast<uint32_t*>(storage.output + row * Traits::kOutputPitch + column) = pair;
  };
}

// Writes one half of the tile collected in `storage.output` to global memory, 16 bytes at a time:
// its first column goes to channel `first_channel`. A barrier must have come after the stores.
template <typename Traits, int kHalf = 0>
__device__ __forceinline__ void write_half(const TileStorage<Traits>& storage,
                                           void* destination,
                                           int32_t first_channel,
                                           int32_t stored) {
  constexpr int kChunks = Traits::kHalfN / 8;
  for (int i = device::thread_index(); i < Traits::kBlockM * kChunks; i += Traits::kThreads) {
    const int row = i / kChunks, column = i % kChunks * 8;
    const int64_t offset = storage.output_offset[row];
    if (offset < 0 || first_channel + column >= stored) continue;
    uint16_t* target = static_cast<uint16_t*>(destination) + offset + first_channel + column;
    *reinterpret_cast<device::Chunk*>(target) = *reinterpret_cast<const device::Chunk*>(
        storage.output + row * Traits::kOutputPitch + kHalf * Traits::kHalfN + column);
  }
}

// The same for a tile of one half, and the barrier.
template <typename Traits>
__device__ __forceinline__ void write_output(const TileStorage<Traits>& storage,
                                             void* destination,
                                             int32_t first_channel,
                                             int32_t stored) {
  static_assert(Traits::kHalfN == Traits::kBlockN, "a tile of two halves has two destinations");
  device::block_sync();
  write_half<Traits>(storage, destination, first_channel, stored);
}

template <typename Traits, typename PixelOf>
__device__ __forceinline__ void fill_output_offsets(TileStorage<Traits>& storage,
                                                    const MapStrides& stride,
                                                    int64_t first_image,
                                                    const PixelOf& pixel_of) {
  for (int row = device::thread_index(); row < Traits::kBlockM; row += Traits::kThreads) {
    const Pixel pixel = pixel_of(row);
    storage.output_offset[row] = pixel.real ? pixel.offset(first_image, stride) : -1;
  }
}

// Rows of a tile as pixels of the output map, in order from `first_pixel` on.
__device__ __forceinline__ Pixel locate_in_order(const FilteredMap& map,
                                                 int32_t first_pixel,
                                                 int row) {
  const int32_t number = first_pixel + row;
  return locate(number < map.num_pixels(),
                number / map.out_line_size,
                number % map.out_line_size,
                map.out_cross_size);
}

// A tile of pixels times a tile of the filters of one segment, taps outside and channels inside:
// all that block number `block` of a convolution does. Blocks that read the same pixels are
// neighbours. Where taps are joined their channels fill whole steps together, if not by themselves.
template <typename Traits, typename input_t, bool kJoinTaps = true>
__device__ __forceinline__ void convolve_tile(const ConvolutionParams& params, int block) {
  auto& storage = tile_storage<Traits>();
  const WarpTile<Traits> warp;
  int32_t filter_tiles = 0;
  for (int i = 0; i < params.num_segments; ++i) {
    filter_tiles += filter_tiles_of(params.segments[i], Traits::kBlockN);
  }
  const int32_t first_pixel = block / filter_tiles * Traits::kBlockM;
  int32_t tile = block % filter_tiles;
  int segment_number = 0;
  while (tile >= filter_tiles_of(params.segments[segment_number], Traits::kBlockN)) {
    tile -= filter_tiles_of(params.segments[segment_number++], Traits::kBlockN);
  }
  const Segment& segment = params.segments[segment_number];
  const int32_t first_channel = tile * Traits::kBlockN;
  const int32_t first_filter = segment.begin + first_channel;

  const auto pixel_of = [&](int row) { return locate_in_order(params.input, first_pixel, row); };
  fill_output_offsets<Traits>(storage, segment.stride, segment.first_image, pixel_of);
  const PixelRows<Traits> pixel_rows(params.input, pixel_of);
  const int32_t channels = params.input.channels;
  const int32_t taps = params.input.cross_taps * params.input.line_taps;
  // The channels of joined taps are those of one.
  const int32_t own_taps = kJoinTaps ? 1 : taps;
  const int32_t own_channels = kJoinTaps ? taps * channels : channels;
  const FilterRows<Traits> filter_rows(
      params.weight, first_filter, segment.end, own_taps, own_channels);
  JoinedChunk joined(params.input, PixelRows<Traits>::chunk());

  Accumulators<Traits> acc;
  run_steps<Traits>(
      acc,
      storage.ring,
      TapsOutside{own_taps, params.input.line_taps, own_channels},
      [&](TileStage<Traits>& stage, const Step& step) {
        if constexpr (kJoinTaps) {
          const int32_t k = joined.exists() ? joined.k - 8 * PixelRows<Traits>::chunk() : channels;
          pixel_rows.load(stage.pixels(), joined.cross, joined.line, k);
          joined.advance();
        } else {
          pixel_rows.load(stage.pixels(), step.cross, step.line, step.k);
        }
        filter_rows.load(stage.filters(), step.tap, step.k);
      },
      [&](TileStage<Traits>& stage, const Step&) {
        multiply<Traits, input_t>(acc, stage.filters(), warp, [&](int fragment, int k16) {
          return warp.pixels(stage.pixels(), fragment, k16);
        });
      });
  finish<Traits, input_t>(
      acc, warp, params.bias, first_filter, segment.end, segment.relu, collect_in(storage));
  write_output<Traits>(storage, segment.destination, first_channel, segment.stored);
}

}  // namespace fused_inception
