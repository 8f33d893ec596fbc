// SPDX-License-Identifier: Apache-2.0
// `1xn` and `mx1` convolutions of one input on mma.sync, side by side: see params.h.
//
// A tile has pixels and, of each half, half of its filters; every warp has fragments of both. The
// centre tap of both filters is the same pixel: its tile is loaded once and multiplied with all the
// tile's filters. The n - 1 and m - 1 other taps follow, each with the filters of its half: for
// n = m = 3 five tiles of pixels for six products. A sum runs over the centre first, then the other
// taps in order, 32 channels at a time; all configurations give the same bits.
//
// Whole images: a tile of 64 rows is one map of 8x8, or as many whole smaller maps as fit. The
// steps of the centre tap load it, 32 channels each, and it stays in shared memory: 48 KB with 384
// channels. A lane that needs a pixel moved by a tap gives ldmatrix the address of that row, or of
// zeros where it is beyond the map; five tiles of pixels become one. Only filters go through the
// ring. Tiles: pixels go through the ring too, once for every distinct tap; for any map.
//
// Bytes moved: input, weights and output from and to memory once. By whole images a block of
// 64 x (64 + 64) reads 48 KB of pixels and 6 x 48 KB of filters from L2 for 9.4 M multiply-adds,
// 9,216 clocks of an A100's matrix units (1024 a clock); at 18.6 bytes of L2 a clock and
// multiprocessor (arXiv 2402.13499) it is bound by L2, 18,500 clocks, at half of the matrix units.
// With 64 rows every image reads all filters once; two images a tile would halve that, and their
// 96 KB of pixels and the ring leave no room for a second block, with half the warps to hide a
// barrier. Arithmetic; nothing here has been timed.
//
// sm90.cuh has the same on wgmma.
//
// Range: odd filters; channels in multiples of 8, which the caller pads; any batch of up to 2^30
// pixels a launch.
#pragma once

#include "common/tile_product.cuh"
#include "split_conv2d/configuration.h"
#include "split_conv2d/params.h"

#include <type_traits>

namespace fused_inception {

template <int kConfiguration>
using SplitConv2dTraits = TileTraits<kSplitConv2dConfigurations[kConfiguration].tile,
                                     2,
                                     !kSplitConv2dConfigurations[kConfiguration].whole>;

// The steps of a tile: the centre of both filters, then the other taps of the row filter, then
// those of the column filter. `tap` of a step counts them all, the centre being 0.
struct SplitSteps {
  int32_t row_taps;
  int32_t col_taps;
  int32_t row_others;  // row_taps - 1; none where the tile has no filters of that half
  int32_t col_others;
  int32_t channels;

  __device__ __forceinline__ int32_t steps() const {
    return (1 + row_others + col_others) * ((channels + kBlockK - 1) / kBlockK);
  }
  __device__ __forceinline__ void advance(Step& step) const {
    step.k += kBlockK;
    if (step.k < channels) return;
    step.k = 0;
    ++step.tap;
    step.line = is_row(step) ? row_tap(step) - row_taps / 2 : 0;
    step.cross = is_col(step) ? col_tap(step) - col_taps / 2 : 0;
  }

  __device__ __forceinline__ bool is_centre(const Step& step) const { return step.tap == 0; }
  __device__ __forceinline__ bool is_row(const Step& step) const {
    return step.tap > 0 && step.tap <= row_others;
  }
  __device__ __forceinline__ bool is_col(const Step& step) const { return step.tap > row_others; }
  // The tap of the weight; that of the centre is passed over.
  __device__ __forceinline__ int32_t row_tap(const Step& step) const {
    return around(step.tap - 1, row_taps / 2);
  }
  __device__ __forceinline__ int32_t col_tap(const Step& step) const {
    return around(step.tap - 1 - row_others, col_taps / 2);
  }

 private:
  static __device__ __forceinline__ int32_t around(int32_t number, int32_t centre) {
    return number < centre ? number : number + 1;
  }
};

// Whole images in shared memory, after the tiles. On mma.sync: pixels[blocks of 32 channels]
// [kBlockM][kBlockK], then eight zeros.
template <typename Traits>
struct WholeImages {
  uint32_t pixels;
  uint32_t zeros;
  int32_t cross[Traits::kFragmentsM];  // of the lane's rows
  int32_t line[Traits::kFragmentsM];

  template <typename PixelOf>
  __device__ __forceinline__ WholeImages(uint16_t* memory,
                                         const SplitConv2dParams& params,
                                         const WarpTile<Traits>& warp,
                                         const PixelOf& pixel_of) {
    uint16_t* const behind = memory + round_up(params.input.channels, kBlockK) * Traits::kBlockM;
    if (device::thread_index() < 8) behind[device::thread_index()] = 0;
    pixels = device::smem_u32(memory);
    zeros = device::smem_u32(behind);
#pragma unroll
    for (int m = 0; m < Traits::kFragmentsM; ++m) {
      const Pixel pixel = pixel_of(warp.pixel_row(m));
      cross[m] = pixel.real ? pixel.cross : kNowhere;
      line[m] = pixel.line;
    }
  }

  // The tile of 32 channels from `k` on.
  __device__ __forceinline__ uint32_t tile(int32_t k) const {
    return pixels + 2 * k * Traits::kBlockM;
  }
  __device__ __forceinline__ void load(const PixelRows<Traits>& rows,
                                       const TileStage<Traits>&,
                                       const Step& step) const {
    if (step.tap == 0) rows.load(tile(step.k), 0, 0, step.k);
  }
  // The operand of `multiply`: what a lane gives to ldmatrix.
  __device__ __forceinline__ uint32_t operand(const FilteredMap& map,
                                              const WarpTile<Traits>& warp,
                                              const TileStage<Traits>&,
                                              const Step& step,
                                              int fragment,
                                              int k16) const {
    const int32_t h = cross[fragment] + step.cross, w = line[fragment] + step.line;
    const bool inside = h >= 0 && h < map.cross_size && w >= 0 && w < map.line_size;
    const int row = warp.pixel_row(fragment) + step.cross * map.line_size + step.line;
    return inside ? tile(step.k) + tile_offset(row, 2 * k16 + warp.pixel_half()) : zeros;
  }
};

// On wgmma: the patches of configuration.h without a swizzle, where a start address so many rows on
// is the same operand moved by a tap. Eight lines of eight pixels are `pitch` rows apart.
template <typename Traits>
struct WholePatches {
  SplitPatches patches;
  uint32_t pixels;

  template <typename PixelOf>
  __device__ __forceinline__ WholePatches(uint16_t* memory,
                                          const SplitConv2dParams& params,
                                          const WarpTile<Traits>&,
                                          const PixelOf&)
      : patches(patches_of(Traits::kBlockM, params.row.taps, params.col.taps)),
        pixels(device::smem_u32(memory)) {
    device::Chunk* const chunks = reinterpret_cast<device::Chunk*>(memory);
    const int planes = round_up(params.input.channels, kBlockK) / 8, rows = patches.rows();
    for (int i = device::thread_index(); i < planes * rows; i += Traits::kThreads) {
      if (!patches.is_pixel(i % rows)) chunks[i / rows * patches.plane() + i % rows] = {};
    }
  }

  // Of row `row` of the patches, the eight channels from `k` on.
  __device__ __forceinline__ uint32_t address(int row, int32_t k) const {
    return pixels + static_cast<uint32_t>(16 * (k / 8 * patches.plane() + row));
  }
  __device__ __forceinline__ void load(const PixelRows<Traits>& rows,
                                       const TileStage<Traits>&,
                                       const Step& step) const {
    if (step.tap > 0) return;
    constexpr int kSide = SplitPatches::kSide;
    const auto place = [&](int row, int chunk) {
      const int line = row / kSide;
      return address(patches.row(line / kSide, line % kSide, row % kSide), step.k + 8 * chunk);
    };
    rows.load_to(place, 0, 0, step.k);
  }
  __device__ __forceinline__ uint64_t operand(const FilteredMap&,
                                              const WarpTile<Traits>& warp,
                                              const TileStage<Traits>&,
                                              const Step& step,
                                              int fragment,
                                              int k16) const {
    const int image = (warp.group_row + fragment * Traits::kFragmentStep) / 64;
    return device::matrix_descriptor(
        address(patches.row(image, step.cross, step.line), step.k + 16 * k16),
        static_cast<uint32_t>(16 * patches.plane()),
        static_cast<uint32_t>(16 * patches.pitch()));
  }
};

// The same where every tap loads its pixels.
template <typename Traits>
struct PixelsInRing {
  template <typename PixelOf>
  __device__ __forceinline__ PixelsInRing(uint16_t*,
                                          const SplitConv2dParams&,
                                          const WarpTile<Traits>&,
                                          const PixelOf&) {}

  __device__ __forceinline__ void load(const PixelRows<Traits>& rows,
                                       const TileStage<Traits>& stage,
                                       const Step& step) const {
    rows.load(stage.pixels(), step.cross, step.line, step.k);
  }
  __device__ __forceinline__ auto operand(const FilteredMap&,
                                          const WarpTile<Traits>& warp,
                                          const TileStage<Traits>& stage,
                                          const Step&,
                                          int fragment,
                                          int k16) const {
    return warp.pixels(stage.pixels(), fragment, k16);
  }
};

// A tile of pixels times one of the filters of both halves: a kernel on either engine.
template <typename Traits, typename input_t, bool kWhole>
__device__ __forceinline__ void split_tile(const SplitConv2dParams& params) {
  auto& storage = tile_storage<Traits>();
  const WarpTile<Traits> warp;
  const FilteredMap& map = params.input;
  const int32_t filter_tiles = filter_tiles_of(params, Traits::kBlockN);
  const int32_t pixel_tile = device::block_index() / filter_tiles;
  const int32_t first_filter = device::block_index() % filter_tiles * Traits::kHalfN;
  const auto pixel_of = [&](int row) {
    if constexpr (!kWhole) return locate_in_order(map, pixel_tile * Traits::kBlockM, row);
    if constexpr (Traits::kWgmma) {
      constexpr int kSide = SplitPatches::kSide, kRows = kSide * kSide;
      const int32_t image = pixel_tile * (Traits::kBlockM / kRows) + row / kRows;
      const int32_t cross = row / kSide % kSide, position = row % kSide;
      const bool on_map = cross < map.cross_size && position < map.line_size;
      return Pixel{on_map && image < map.num_images, image, cross, position};
    }
    const int32_t images = Traits::kBlockM / (map.cross_size * map.line_size);
    const int32_t lines = images * map.cross_size, line = row / map.line_size;
    const int32_t number = pixel_tile * lines + line;
    const bool real = line < lines && number < map.num_images * map.cross_size;
    return locate(real, number, row % map.line_size, map.cross_size);
  };
  fill_output_offsets<Traits>(
      storage, params.row.output.stride, params.row.output.first_image, pixel_of);

  const PixelRows<Traits> pixel_rows(map, pixel_of);
  using Whole = std::conditional_t<Traits::kWgmma, WholePatches<Traits>, WholeImages<Traits>>;
  using Images = std::conditional_t<kWhole, Whole, PixelsInRing<Traits>>;
  const Images images(reinterpret_cast<uint16_t*>(&storage + 1), params, warp, pixel_of);
  using Rows = FilterRows<Traits, Traits::kHalfN>;
  const int32_t row_end = params.row.output.end, col_end = params.col.output.end;
  const Rows rows(params.row.weight, first_filter, row_end, params.row.taps, map.channels);
  const Rows cols(params.col.weight, first_filter, col_end, params.col.taps, map.channels);
  const SplitSteps order = {params.row.taps,
                            params.col.taps,
                            first_filter < row_end ? params.row.taps - 1 : 0,
                            first_filter < col_end ? params.col.taps - 1 : 0,
                            map.channels};

  Accumulators<Traits> acc;
  run_steps<Traits>(
      acc,
      storage.ring,
      order,
      [&](TileStage<Traits>& stage, const Step& step) {
        images.load(pixel_rows, stage, step);
        const bool centre = order.is_centre(step);
        if (centre || order.is_row(step)) {
          rows.load(stage.filters(), centre ? params.row.taps / 2 : order.row_tap(step), step.k);
        }
        if (centre || order.is_col(step)) {
          cols.load(stage.filters() + Traits::kHalfN * kBlockK * 2,
                    centre ? params.col.taps / 2 : order.col_tap(step),
                    step.k);
        }
      },
      [&](TileStage<Traits>& stage, const Step& step) {
        const auto pixels = [&](int fragment, int k16) {
          return images.operand(map, warp, stage, step, fragment, k16);
        };
        if (order.is_centre(step)) {
          multiply<Traits, input_t>(acc, stage.filters(), warp, pixels);
        } else if (order.is_row(step)) {
          multiply<Traits, input_t, 0, 1>(acc, stage.filters(), warp, pixels);
        } else {
          multiply<Traits, input_t, 1, 2>(acc, stage.filters(), warp, pixels);
        }
      });

  finish<Traits, input_t, 0>(acc,
                             warp,
                             params.row.bias,
                             first_filter,
                             row_end,
                             params.row.output.relu,
                             collect_in(storage));
  finish<Traits, input_t, 1>(acc,
                             warp,
                             params.col.bias,
                             first_filter - Traits::kHalfN,
                             col_end,
                             params.col.output.relu,
                             collect_in(storage));
  device::block_sync();
  write_half<Traits, 0>(
      storage, params.row.output.destination, first_filter, params.row.output.stored);
  write_half<Traits, 1>(
      storage, params.col.output.destination, first_filter, params.col.output.stored);
}

template <int kConfiguration, typename input_t>
__global__ void __launch_bounds__(SplitConv2dTraits<kConfiguration>::kThreads,
                                  SplitConv2dTraits<kConfiguration>::kMinBlocks)
    split_conv2d_kernel(const __grid_constant__ SplitConv2dParams params) {
  constexpr bool kWhole = kSplitConv2dConfigurations[kConfiguration].whole;
  split_tile<SplitConv2dTraits<kConfiguration>, input_t, kWhole>(params);
}

}  // namespace fused_inception
