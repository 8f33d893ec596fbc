// SPDX-License-Identifier: Apache-2.0
// A `1xn -> mx1` (or `nx1 -> 1xm`) pair of convolutions on mma.sync, nothing recomputed at the
// seam. With the lines, shifts and letters of params.h:
//
//   mid[cross, line, k] = act_mid(bias1[k] + sum over t, c of x[cross + s, line, c] w1[k, t, c])
//   y[cross, line, f]   = act(bias2[f] + sum over t, k of mid[cross, line + u, k] w2[f, t, k])
//
// Both are products of a pixels x channels matrix, whose rows shift with the tap, and a
// (tap, channel) x filters matrix. `shifted_product` is that product: taps outside, blocks of 32
// channels inside, one mma.m16n8k16 after the other, in float32. An element's sum depends on
// nothing but the order of these, so all configurations give the same bits, whatever the batch.
//
// Bands, one launch: a block takes a band of whole lines, cut from the lines of all images; seven
// lines of 17 fill 119 of 128 rows. The first factor's pixels stream from global memory, shifted by
// the tap; its result, rounded, stays in shared memory as mid[row][channel]. An output line needs
// the mid tensor of that line alone, so the second factor reads the same rows shifted: ldmatrix
// takes an address per row, and a row that the tap moves off its line is given the address of a row
// of zeros. No halo, no copies, no rule that a band end at an image's border.
//
// Two launches, one a factor: tiles of pixels x tiles of filters, the mid tensor in global memory.
// For few bands, for lines longer than a tile, and where the mid band does not fit.
//
// Tiles (configuration.h): 128 pixels x up to 192 filters, 8 warps, each 32 x 96 of it: 24 mma for
// 8 ldmatrix.x4. Pixels and filters of a step arrive by 16-byte cp.async in a ring of 3 to 6 steps,
// with one barrier a step. Tile rows are 64 bytes with their chunks exchanged (tile_offset), mid
// rows are 16 bytes longer than a multiple of 64: ldmatrix and the stores meet no bank twice.
// Results leave through the ring's memory in pieces of 16 bytes.
//
// Bytes moved: input, weights and output from and to memory once; what taps and bands read again
// comes from L2. A step of 128 x 192 x 32 reads 8 KB of pixels (none in the second factor of a
// band) and 12 KB of filters. An A100 has 1024 multiply-adds a clock and multiprocessor, and 2,008
// bytes of L2 a clock for 108 of them (arXiv 2402.13499, 2501.12084): the first factor would be
// bound by L2 at about 70 % of the matrix units, the second by the matrix units. Arithmetic;
// nothing here has been timed.
//
// Shared memory and registers with 192 mid channels (ptxas, sm_80): bands of 192, 160 and 128
// filters 131, 123 and 115 KB, 222, 196 and 173 registers; of 96 filters 93 KB, 136 registers, for
// devices with 99 KB; two launches 37 and 43 KB, 78 and 126 registers. No spills.
//
// Range: any channels (c_in and c_mid in multiples of 8, which the caller pads), taps odd, lines of
// up to 128 pixels for bands and any length otherwise, any batch of up to 2^30 pixels a launch.
// Offsets are 64 bits before they are multiplied.
//
// Dropped: the input band with its halo of lines in shared memory, which would spare the first
// factor the taps' repeated reads from L2. With 7 taps and 192 channels it is 13 x 17 rows, 86 KB,
// beside the mid band's 50 KB and a ring: over the 163 KB of sm_80 with more than one step in
// flight, and bands could not cross images. Blocks of channels outside of taps, which would keep
// those reads in L1: another order of sums than Triton's. Tiles of 256 pixels: 192 accumulators a
// thread.
#pragma once

#include "common/device.cuh"
#include "factorized_conv2d/configuration.h"
#include "factorized_conv2d/params.h"

namespace fused_inception {

// Traits.

template <int kConfiguration>
struct Sm80Traits {
  static constexpr Sm80Configuration kRow = kSm80Configurations[kConfiguration];
  static constexpr int kBlockM = kRow.block_m;
  static constexpr int kBlockN = kRow.block_n;
  static constexpr int kStages = kRow.stages;
  static constexpr int kThreads = kRow.threads();
  static constexpr int kMinBlocks = kRow.min_blocks;
  static constexpr int kWarpM = kBlockM / kRow.warps_m;
  static constexpr int kWarpN = kBlockN / kRow.warps_n;
  static constexpr int kFragmentsM = kWarpM / 16;
  static constexpr int kFragmentsN = kWarpN / 8;
  // A row of a tile is four chunks of 16 bytes, loaded by four neighbouring threads.
  static constexpr int kRowsPerPass = kThreads / 4;
  static constexpr int kRowsA = kBlockM / kRowsPerPass;
  static constexpr int kRowsB = (kBlockN + kRowsPerPass - 1) / kRowsPerPass;
  static constexpr int kOutputPitch = kBlockN + 8;

  static_assert(kBlockM % (16 * kRow.warps_m) == 0 && kBlockN % (16 * kRow.warps_n) == 0,
                "a warp has whole fragments, and pairs of them along the filters");
  static_assert(kBlockM % kRowsPerPass == 0, "every pass over the pixels is full");
  static_assert(kStages >= 3, "a step is loaded while another is in use and a third is on its way");
  static_assert(kBlockM * kOutputPitch * 2 <= kStages * kRow.stage_bytes(),
                "the output tile is collected in the ring");
};

template <typename Traits>
struct Sm80Stage {
  uint16_t pixels[Traits::kBlockM * kBlockK];
  uint16_t filters[Traits::kBlockN * kBlockK];
};

template <typename Traits>
struct Sm80SharedStorage {
  union {
    Sm80Stage<Traits> ring[Traits::kStages];
    uint16_t output[Traits::kBlockM * Traits::kOutputPitch];
  };
  int64_t output_offset[Traits::kBlockM];  // of each row of the tile; negative: the row is not real
  // In the form with bands this follows: mid[kBlockM + 1][mid_pitch], the last row zero.
};

// One factor where it is a launch of its own.
struct ShiftedConv2dParams {
  const void* source;  // image 0, channel 0
  const void* weight;  // [filters][taps][channels]
  const void* bias;    // [filters], or null
  void* destination;   // image 0, channel 0
  MapStrides source_stride;
  MapStrides destination_stride;
  int64_t source_image;  // the first of this launch
  int64_t destination_image;
  int32_t num_pixels;  // of this launch, ordered (image, cross, line)
  int32_t cross_size;
  int32_t line_size;
  int32_t channels;  // a multiple of 8
  int32_t filters;
  int32_t stored;  // channels of the destination to write, a multiple of 8; zero past `filters`
  int32_t taps;
  bool along_line;  // whether the taps move along the line, or across lines
  bool relu;
};

// Device helpers.

// Where chunk 0..3 of a row of a tile lies, in bytes. Chunks are exchanged so that eight rows of
// one ldmatrix, and the rows that a warp's cp.async writes, are in distinct banks.
__device__ __forceinline__ uint32_t tile_offset(int row, int chunk) {
  return static_cast<uint32_t>(row * (kBlockK * 2) + ((chunk ^ ((row >> 1) & 3)) << 4));
}

// A coordinate from which no tap reaches the map.
constexpr int32_t kNowhere = -(1 << 30);

// A row of a tile as a pixel of the launch.
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
  int64_t offset[Traits::kRowsA];      // from source to the row's own pixel, at the chunk
  int32_t coordinate[Traits::kRowsA];  // on the axis along which the taps move
  int32_t end;                         // size of that axis; outside it the source is zero
  int64_t tap_stride;
  int32_t channels;

  // `pixel_of(row)` locates a row of the tile.
  template <typename PixelOf>
  __device__ __forceinline__ PixelRows(const void* pointer,
                                       const MapStrides& stride,
                                       int64_t first_image,
                                       bool along_line,
                                       int32_t axis_size,
                                       int32_t channel_count,
                                       const PixelOf& pixel_of)
      : source(static_cast<const uint16_t*>(pointer)),
        end(axis_size),
        tap_stride(along_line ? stride.line : stride.cross),
        channels(channel_count) {
    const int thread = device::thread_index();
#pragma unroll
    for (int i = 0; i < Traits::kRowsA; ++i) {
      const Pixel pixel = pixel_of(thread / 4 + i * Traits::kRowsPerPass);
      offset[i] = pixel.offset(first_image, stride) + 8 * (thread % 4);
      coordinate[i] = pixel.real ? (along_line ? pixel.line : pixel.cross) : kNowhere;
    }
  }

  __device__ __forceinline__ void load(Sm80Stage<Traits>& stage, int shift, int k) const {
    const int thread = device::thread_index();
    const int chunk = thread % 4;
    const uint32_t tile = device::smem_u32(stage.pixels);
#pragma unroll
    for (int i = 0; i < Traits::kRowsA; ++i) {
      const int32_t at = coordinate[i] + shift;
      const bool inside = at >= 0 && at < end && k + 8 * chunk < channels;
      const int64_t element = inside ? offset[i] + shift * tap_stride + k : 0;
      const int row = thread / 4 + i * Traits::kRowsPerPass;
      device::cp_async_16(tile + tile_offset(row, chunk), source + element, inside ? 16 : 0);
    }
  }
};

// The same for a step's filters, from a weight [filter][tap][channel].
template <typename Traits>
struct FilterRows {
  const uint16_t* weight;
  int32_t first;  // the thread's first filter
  int32_t filters;
  int32_t taps;
  int32_t channels;

  __device__ __forceinline__ FilterRows(
      const void* pointer, int32_t first_filter, int32_t count, int32_t taps_, int32_t channels_)
      : weight(static_cast<const uint16_t*>(pointer)),
        first(first_filter + device::thread_index() / 4),
        filters(count),
        taps(taps_),
        channels(channels_) {}

  __device__ __forceinline__ void load(Sm80Stage<Traits>& stage, int tap, int k) const {
    const int thread = device::thread_index();
    const int chunk = thread % 4;
    const uint32_t tile = device::smem_u32(stage.filters);
#pragma unroll
    for (int i = 0; i < Traits::kRowsB; ++i) {
      const int row = thread / 4 + i * Traits::kRowsPerPass;
      if (Traits::kBlockN % Traits::kRowsPerPass != 0 && row >= Traits::kBlockN) break;
      const int32_t filter = first + i * Traits::kRowsPerPass;
      const bool inside = filter < filters && k + 8 * chunk < channels;
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
  int first_row;
  int first_column;

  __device__ __forceinline__ WarpTile() {
    const int thread = device::thread_index();
    const int warp = thread / device::kWarpSize;
    lane = thread % device::kWarpSize;
    first_row = warp / Traits::kRow.warps_n * Traits::kWarpM;
    first_column = warp % Traits::kRow.warps_n * Traits::kWarpN;
  }

  // ldmatrix of a 16x16 fragment of pixels, matrices in the order (rows 0-7, k 0-7), (8-15, 0-7),
  // (0-7, 8-15), (8-15, 8-15): the row of the tile, and the half of k, that the lane addresses.
  __device__ __forceinline__ int pixel_row(int fragment) const {
    return first_row + fragment * 16 + lane % 16;
  }
  __device__ __forceinline__ int pixel_half() const { return lane / 16; }

  // The same of two 8x16 fragments of filters: (0-7, 0-7), (0-7, 8-15), (8-15, 0-7), (8-15, 8-15).
  __device__ __forceinline__ int filter_row(int pair) const {
    return first_column + pair * 16 + lane / 16 * 8 + lane % 8;
  }
  __device__ __forceinline__ int filter_half() const { return lane / 8 % 2; }
};

template <typename Traits>
using Accumulators = float[Traits::kFragmentsM][Traits::kFragmentsN][4];

// acc[p, f] = sum over taps t, channels c of pixels[p + t - taps / 2, c] * weight[f, t, c], in the
// order taps, blocks of kBlockK channels, 16 channels of one mma. `load_pixels(stage, shift, k)`
// starts the copy of a step's pixels into the ring where they are not in shared memory already;
// `pixel_address(stage, shift, k, fragment, k16)` is what a lane gives to ldmatrix. Leaves the ring
// free for all threads.
template <typename Traits, typename input_t, typename LoadPixels, typename PixelAddress>
__device__ __forceinline__ void shifted_product(Accumulators<Traits>& acc,
                                                Sm80Stage<Traits>* ring,
                                                const FilterRows<Traits>& filter_rows,
                                                const WarpTile<Traits>& warp,
                                                const LoadPixels& load_pixels,
                                                const PixelAddress& pixel_address) {
  const int taps = filter_rows.taps;
  const int channels = filter_rows.channels;
  const int steps = taps * ((channels + kBlockK - 1) / kBlockK);
#pragma unroll
  for (int m = 0; m < Traits::kFragmentsM; ++m) {
#pragma unroll
    for (int n = 0; n < Traits::kFragmentsN; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        acc[m][n][i] = 0.0f;
    }
  }

  int load_tap = 0, load_k = 0;
  const auto load_step = [&](int stage) {
    load_pixels(ring[stage], load_tap - taps / 2, load_k);
    filter_rows.load(ring[stage], load_tap, load_k);
    load_k += kBlockK;
    if (load_k >= channels) {
      load_k = 0;
      ++load_tap;
    }
  };
  // A group is committed for every step, also where nothing is left to load, so that the wait can
  // count them.
  for (int stage = 0; stage < Traits::kStages - 1; ++stage) {
    if (stage < steps) load_step(stage);
    device::cp_async_commit();
  }

  int tap = 0, k = 0, stage = 0;
  for (int step = 0; step < steps; ++step) {
    device::cp_async_wait<Traits::kStages - 2>();
    // All copies of this step are visible, and no warp reads the slot of the last step any more.
    device::block_sync();
    if (step + Traits::kStages - 1 < steps) {
      load_step(stage == 0 ? Traits::kStages - 1 : stage - 1);
    }
    device::cp_async_commit();

    const uint32_t filters = device::smem_u32(ring[stage].filters);
#pragma unroll
    for (int k16 = 0; k16 < kBlockK / 16; ++k16) {
      uint32_t a[Traits::kFragmentsM][4];
#pragma unroll
      for (int m = 0; m < Traits::kFragmentsM; ++m) {
        device::ldmatrix(a[m], pixel_address(ring[stage], tap - taps / 2, k, m, k16));
      }
#pragma unroll
      for (int pair = 0; pair < Traits::kFragmentsN / 2; ++pair) {
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

    stage = stage == Traits::kStages - 1 ? 0 : stage + 1;
    k += kBlockK;
    if (k >= channels) {
      k = 0;
      ++tap;
    }
  }
  device::block_sync();
}

// Bias and activation, then `store(row, column, two rounded values)` for every pair of neighbouring
// filters of the tile; zero past the last filter.
template <typename Traits, typename input_t, typename Store>
__device__ __forceinline__ void finish(const Accumulators<Traits>& acc,
                                       const WarpTile<Traits>& warp,
                                       const void* bias,
                                       int32_t first_filter,
                                       int32_t filters,
                                       bool relu,
                                       const Store& store) {
  const uint16_t* bias_values = static_cast<const uint16_t*>(bias);
#pragma unroll
  for (int n = 0; n < Traits::kFragmentsN; ++n) {
    const int column = warp.first_column + 8 * n + device::accumulator_column(warp.lane, 0);
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
        const int row = warp.first_row + 16 * m + device::accumulator_row(warp.lane, i);
        store(row, column, device::pack2<input_t>(value[0], value[1]));
      }
    }
  }
}

// Writes the tile collected in `storage.output` to global memory, 16 bytes at a time.
template <typename Traits>
__device__ __forceinline__ void write_output(const Sm80SharedStorage<Traits>& storage,
                                             void* destination,
                                             int32_t first_filter,
                                             int32_t stored) {
  constexpr int kChunks = Traits::kBlockN / 8;
  device::block_sync();
  for (int i = device::thread_index(); i < Traits::kBlockM * kChunks; i += Traits::kThreads) {
    const int row = i / kChunks, column = i % kChunks * 8;
    const int64_t offset = storage.output_offset[row];
    if (offset < 0 || first_filter + column >= stored) continue;
    uint16_t* target = static_cast<uint16_t*>(destination) + offset + first_filter + column;
    *reinterpret_cast<device::Chunk*>(target) = *reinterpret_cast<const device::Chunk*>(
        storage.output + row * Traits::kOutputPitch + column);
  }
}

template <typename Traits, typename PixelOf>
__device__ __forceinline__ void fill_output_offsets(Sm80SharedStorage<Traits>& storage,
                                                    const MapStrides& stride,
                                                    int64_t first_image,
                                                    const PixelOf& pixel_of) {
  for (int row = device::thread_index(); row < Traits::kBlockM; row += Traits::kThreads) {
    const Pixel pixel = pixel_of(row);
    storage.output_offset[row] = pixel.real ? pixel.offset(first_image, stride) : -1;
  }
}

// Kernels.

// Both factors of a band of whole lines; one band to a block.
template <int kConfiguration, typename input_t>
__global__ void __launch_bounds__(Sm80Traits<kConfiguration>::kThreads,
                                  Sm80Traits<kConfiguration>::kMinBlocks)
    factorized_conv2d_bands_kernel(const __grid_constant__ FactorizedConv2dParams params) {
  using Traits = Sm80Traits<kConfiguration>;
  auto& storage = *device::dynamic_smem<Sm80SharedStorage<Traits>>();
  uint16_t* const mid = reinterpret_cast<uint16_t*>(&storage + 1);
  const WarpTile<Traits> warp;

  // Where the rows of the band are; the band may cross the border between two images.
  const int32_t lines_per_band = Traits::kBlockM / params.line_size;
  const int32_t first_line = device::block_index() * lines_per_band;
  const auto pixel_of = [&](int row) {
    const int32_t line_in_band = row / params.line_size;
    const int32_t line_number = first_line + line_in_band;
    const bool real =
        line_in_band < lines_per_band && line_number < params.num_images * params.cross_size;
    return locate(real, line_number, row % params.line_size, params.cross_size);
  };
  fill_output_offsets<Traits>(storage, params.output_stride, params.first_image, pixel_of);

  // The zeros that lie beyond both ends of a line.
  const int pitch = mid_pitch(params.c_mid);
  for (int i = device::thread_index(); i < pitch; i += Traits::kThreads) {
    mid[Traits::kBlockM * pitch + i] = 0;
  }

  // First factor: the taps move from line to line of the input.
  Accumulators<Traits> acc;
  {
    const PixelRows<Traits> pixel_rows(params.input,
                                       params.input_stride,
                                       params.first_image,
                                       false,
                                       params.cross_size,
                                       params.c_in,
                                       pixel_of);
    const auto load_pixels = [&](Sm80Stage<Traits>& stage, int shift, int k) {
      pixel_rows.load(stage, shift, k);
    };
    const auto pixel_address = [&](Sm80Stage<Traits>& stage, int, int, int fragment, int k16) {
      const int chunk = 2 * k16 + warp.pixel_half();
      return device::smem_u32(stage.pixels) + tile_offset(warp.pixel_row(fragment), chunk);
    };
    const int32_t stored = round_up(params.c_mid, kBlockK);
    for (int32_t f = 0; f < stored; f += Traits::kBlockN) {
      const FilterRows<Traits> filter_rows(
          params.weight1, f, params.filters1, params.taps1, params.c_in);
      shifted_product<Traits, input_t>(
          acc, storage.ring, filter_rows, warp, load_pixels, pixel_address);
      const auto store = [&](int row, int column, uint32_t pair) {
        if (f + column >= stored) return;
        *reinterpret_cast<uint32_t*>(mid + row * pitch + f + column) = pair;
      };
      finish<Traits, input_t>(acc, warp, params.bias1, f, params.filters1, params.mid_relu, store);
    }
  }

  // Second factor: the taps move along the line, which is whole in shared memory. The barrier of
  // its first step puts the stores above before the reads.
  const auto load_pixels = [](Sm80Stage<Traits>&, int, int) {};
  const uint32_t mid_address = device::smem_u32(mid);
  int32_t line[Traits::kFragmentsM];
#pragma unroll
  for (int m = 0; m < Traits::kFragmentsM; ++m) {
    const Pixel pixel = pixel_of(warp.pixel_row(m));
    line[m] = pixel.real ? pixel.line : kNowhere;
  }
  const auto pixel_address = [&](Sm80Stage<Traits>&, int shift, int k, int fragment, int k16) {
    const int32_t at = line[fragment] + shift;
    const bool inside = at >= 0 && at < params.line_size;
    const int row = inside ? warp.pixel_row(fragment) + shift : Traits::kBlockM;
    return mid_address + 2 * (row * pitch + k + 16 * k16 + 8 * warp.pixel_half());
  };
  for (int32_t f = 0; f < params.c_out; f += Traits::kBlockN) {
    // The ring still holds the last tile of the output.
    if (f > 0) device::block_sync();
    const FilterRows<Traits> filter_rows(
        params.weight2, f, params.filters2, params.taps2, params.c_mid);
    shifted_product<Traits, input_t>(
        acc, storage.ring, filter_rows, warp, load_pixels, pixel_address);
    const auto store = [&](int row, int column, uint32_t pair) {
      *reinterpret_cast<uint32_t*>(storage.output + row * Traits::kOutputPitch + column) = pair;
    };
    finish<Traits, input_t>(acc, warp, params.bias2, f, params.filters2, params.relu, store);
    write_output<Traits>(storage, params.output, f, params.c_out);
  }
}

// One factor: a tile of pixels times a tile of filters to a block. Blocks that read the same pixels
// are neighbours.
template <int kConfiguration, typename input_t>
__global__ void __launch_bounds__(Sm80Traits<kConfiguration>::kThreads,
                                  Sm80Traits<kConfiguration>::kMinBlocks)
    shifted_conv2d_kernel(const __grid_constant__ ShiftedConv2dParams params) {
  using Traits = Sm80Traits<kConfiguration>;
  auto& storage = *device::dynamic_smem<Sm80SharedStorage<Traits>>();
  const WarpTile<Traits> warp;
  const int32_t filter_tiles = (params.stored + Traits::kBlockN - 1) / Traits::kBlockN;
  const int32_t first_pixel = device::block_index() / filter_tiles * Traits::kBlockM;
  const int32_t first_filter = device::block_index() % filter_tiles * Traits::kBlockN;
  const auto pixel_of = [&](int row) {
    const int32_t number = first_pixel + row;
    return locate(number < params.num_pixels,
                  number / params.line_size,
                  number % params.line_size,
                  params.cross_size);
  };
  fill_output_offsets<Traits>(
      storage, params.destination_stride, params.destination_image, pixel_of);

  const PixelRows<Traits> pixel_rows(params.source,
                                     params.source_stride,
                                     params.source_image,
                                     params.along_line,
                                     params.along_line ? params.line_size : params.cross_size,
                                     params.channels,
                                     pixel_of);
  const auto load_pixels = [&](Sm80Stage<Traits>& stage, int shift, int k) {
    pixel_rows.load(stage, shift, k);
  };
  const auto pixel_address = [&](Sm80Stage<Traits>& stage, int, int, int fragment, int k16) {
    const int chunk = 2 * k16 + warp.pixel_half();
    return device::smem_u32(stage.pixels) + tile_offset(warp.pixel_row(fragment), chunk);
  };
  const FilterRows<Traits> filter_rows(
      params.weight, first_filter, params.filters, params.taps, params.channels);
  Accumulators<Traits> acc;
  shifted_product<Traits, input_t>(
      acc, storage.ring, filter_rows, warp, load_pixels, pixel_address);
  const auto store = [&](int row, int column, uint32_t pair) {
    *reinterpret_cast<uint32_t*>(storage.output + row * Traits::kOutputPitch + column) = pair;
  };
  finish<Traits, input_t>(acc, warp, params.bias, first_filter, params.filters, params.relu, store);
  write_output<Traits>(storage, params.destination, first_filter, params.stored);
}

}  // namespace fused_inception
