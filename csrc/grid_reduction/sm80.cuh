// SPDX-License-Identifier: Apache-2.0
// A stride-2 convolution and a stride-2 pool of the same window on mma.sync, in one pass.
//
//   y[p, q, f]      = act(bias[f] + sum over c, r, s of x[2p + r, 2q + s, c] * weight[f, r, s, c])
//   pooled[p, q, c] = max (or mean) over r, s of x[2p + r, 2q + s, c]
//
// The window of the pool is the window of the filter. Blocks of channels are the outer loop and
// taps the inner one, so that the tiles of one block of channels pass by in the row-major order of
// the window; while they feed the matrix units, a running maximum or sum is kept of them, and the
// pool loads nothing. A thread pools the 16-byte chunks that it loaded itself. The blocks of one
// tile of pixels, one per tile of filters, see the same tiles of pixels: each pools every so many
// blocks of channels, and only those.
//
// The maximum and the mean are those of common/pool.cuh, the first pixel to begin with.
//
// Bytes moved: input, weight and both outputs from and to memory once; what taps and tiles of
// filters read again comes from L2. A pool of its own would read the input once more: at
// 35x35x288 706 KB an image, beside 706 of input and 388 of output. The pool takes 8 KB of shared
// memory a step and tile, where the products of 128 x 128 take 64: with three tiles of filters a
// third of the steps pool.
//
// sm90.cuh has the same on wgmma.
//
// Range: any odd kernel; channels in multiples of 8, which the caller pads; any batch of up to 2^30
// output pixels a launch. The window is always inside the map. Nothing here has been timed.
#pragma once

#include "common/pool.cuh"
#include "grid_reduction/configuration.h"
#include "grid_reduction/params.h"

namespace fused_inception {

template <int kConfiguration>
using GridReductionTraits = TileTraits<kGridReductionConfigurations[kConfiguration]>;

// A thread's share of the pool: the chunks of a tile that it loads itself.
template <typename Traits, typename input_t>
struct TilePool {
  RunningPool<input_t> rows[Traits::kRowsA];

  __device__ __forceinline__ void take(const TileStage<Traits>& stage, bool first, bool max) {
    const uint16_t* tile = stage.rows + Traits::kBlockN * kBlockK;
#pragma unroll
    for (int i = 0; i < Traits::kRowsA; ++i) {
      const uint32_t offset =
          tile_offset(PixelRows<Traits>::row(i), PixelRows<Traits>::chunk()) / sizeof(uint16_t);
      rows[i].take(*reinterpret_cast<const device::Chunk*>(tile + offset), first, max);
    }
  }
};

// A tile of pixels times a tile of filters, and its share of the pool: a kernel on either engine.
template <typename Traits, typename input_t>
__device__ __forceinline__ void reduce_tile(const GridReductionParams& params) {
  auto& storage = tile_storage<Traits>();
  const WarpTile<Traits> warp;
  const int32_t filter_tiles = filter_tiles_of(params.conv, Traits::kBlockN);
  const int32_t first_pixel = device::block_index() / filter_tiles * Traits::kBlockM;
  const int32_t filter_tile = device::block_index() % filter_tiles;
  const int32_t first_filter = filter_tile * Traits::kBlockN;
  const auto pixel_of = [&](int row) { return locate_in_order(params.input, first_pixel, row); };
  fill_output_offsets<Traits>(storage, params.conv.stride, params.conv.first_image, pixel_of);

  const PixelRows<Traits> pixel_rows(params.input, pixel_of);
  const int32_t channels = params.input.channels;
  const int32_t taps = params.input.cross_taps * params.input.line_taps;
  const FilterRows<Traits> filter_rows(
      params.weight, first_filter, params.conv.end, taps, channels);
  TilePool<Traits, input_t> pool;
  const auto store_pool = [&](int32_t k) {
    const int32_t channel = k + 8 * PixelRows<Traits>::chunk();
#pragma unroll
    for (int i = 0; i < Traits::kRowsA; ++i) {
      const Pixel pixel = pixel_of(PixelRows<Traits>::row(i));
      if (!pixel.real || channel >= channels) continue;
      uint16_t* target = static_cast<uint16_t*>(params.pooled) +
                         pixel.offset(params.input.first_image, params.pooled_stride) + channel;
      *reinterpret_cast<device::Chunk*>(target) =
          pool.rows[i].result(static_cast<float>(taps), params.max);
    }
  };

  Accumulators<Traits> acc;
  run_steps<Traits>(
      acc,
      storage.ring,
      ChannelsOutside{taps, params.input.line_taps, channels},
      [&](TileStage<Traits>& stage, const Step& step) {
        pixel_rows.load(stage.pixels(), step.cross, step.line, step.k);
        filter_rows.load(stage.filters(), step.tap, step.k);
      },
      [&](TileStage<Traits>& stage, const Step& step) {
        multiply<Traits, input_t>(acc, stage.filters(), warp, [&](int fragment, int k16) {
          return warp.pixels(stage.pixels(), fragment, k16);
        });
        if (step.k / kBlockK % filter_tiles != filter_tile) return;
        pool.take(stage, step.tap == 0, params.max);
        if (step.tap == taps - 1) store_pool(step.k);
      });
  finish<Traits, input_t>(
      acc, warp, params.bias, first_filter, params.conv.end, params.conv.relu, collect_in(storage));
  write_output<Traits>(storage, params.conv.destination, first_filter, params.conv.stored);
}

template <int kConfiguration, typename input_t>
__global__ void __launch_bounds__(GridReductionTraits<kConfiguration>::kThreads,
                                  GridReductionTraits<kConfiguration>::kMinBlocks)
    grid_reduction_kernel(const __grid_constant__ GridReductionParams params) {
  reduce_tile<GridReductionTraits<kConfiguration>, input_t>(params);
}

}  // namespace fused_inception
