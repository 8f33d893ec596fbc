// SPDX-License-Identifier: Apache-2.0
// A `1xn -> mx1` (or `nx1 -> 1xm`) pair of convolutions on mma.sync, nothing recomputed at the
// seam. With the lines, shifts and letters of params.h:
//
//   mid[cross, line, k] = act_mid(bias1[k] + sum over t, c of x[cross + s, line, c] w1[k, t, c])
//   y[cross, line, f]   = act(bias2[f] + sum over t, k of mid[cross, line + u, k] w2[f, t, k])
//
// Both are the product of common/tile_product.cuh, taps outside and channels inside: all
// configurations give the same bits, whatever the batch.
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
// 8 ldmatrix.x4. Mid rows are 16 bytes longer than a multiple of 64: ldmatrix and the stores meet
// no bank twice.
//
// Bytes moved: input, weights and output from and to memory once; what taps and bands read again
// comes from L2. A step of 128 x 192 x 32 reads 8 KB of pixels (none in the second factor of a
// band) and 12 KB of filters. An A100 has 1024 multiply-adds a clock and multiprocessor, and 2,008
// bytes of L2 a clock for 108 of them (arXiv 2402.13499, 2501.12084): the first factor would be
// bound by L2 at about 70 % of the matrix units, the second by the matrix units. Arithmetic;
// nothing here has been timed.
//
// Shared memory and registers with 192 mid channels (ptxas, sm_80): bands of 192, 160 and 128
// filters 131, 123 and 115 KB, 222, 196 and 174 registers; of 96 filters 93 KB, 136 registers, for
// devices with 99 KB; two launches 37 and 43 KB, 80 and 124 registers. No spills.
//
// Range: any channels (c_in and c_mid in multiples of 8, which the caller pads), taps odd, lines of
// up to 128 pixels for bands and any length otherwise, any batch of up to 2^30 pixels a launch.
//
// Dropped: the input band with its halo of lines in shared memory, which would spare the first
// factor the taps' repeated reads from L2. With 7 taps and 192 channels it is 13 x 17 rows, 86 KB,
// beside the mid band's 50 KB and a ring: over the 163 KB of sm_80 with more than one step in
// flight, and bands could not cross images. Blocks of channels outside of taps, which would keep
// those reads in L1: another order of sums than Triton's. Tiles of 256 pixels: 192 accumulators a
// thread.
#pragma once

#include "common/device.cuh"
#include "common/tile_product.cuh"
#include "factorized_conv2d/configuration.h"
#include "factorized_conv2d/params.h"

namespace fused_inception {

template <int kConfiguration>
using Sm80Traits = TileTraits<kSm80Configurations[kConfiguration].tile>;

// In the form with bands this follows the tiles: mid[kBlockM + 1][mid_pitch], the last row zero.

// Both factors of a band of whole lines; one band to a block.
template <int kConfiguration, typename input_t>
__global__ void __launch_bounds__(Sm80Traits<kConfiguration>::kThreads,
                                  Sm80Traits<kConfiguration>::kMinBlocks)
    factorized_conv2d_bands_kernel(const __grid_constant__ FactorizedConv2dParams params) {
  using Traits = Sm80Traits<kConfiguration>;
  auto& storage = tile_storage<Traits>();
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
    const PixelRows<Traits> pixel_rows(first_factor_input(params), pixel_of);
    const int32_t stored = round_up(params.c_mid, kBlockK);
    for (int32_t f = 0; f < stored; f += Traits::kBlockN) {
      const FilterRows<Traits> filter_rows(
          params.weight1, f, params.filters1, params.taps1, params.c_in);
      run_steps<Traits>(
          acc,
          storage.ring,
          TapsOutside{params.taps1, 1, params.c_in},
          [&](TileStage<Traits>& stage, const Step& step) {
            pixel_rows.load(stage.pixels(), step.tap, 0, step.k);
            filter_rows.load(stage.filters(), step.tap, step.k);
          },
          [&](TileStage<Traits>& stage, const Step&) {
            multiply<Traits, input_t>(acc, stage.filters(), warp, [&](int fragment, int k16) {
              return warp.pixels(stage.pixels(), fragment, k16);
            });
          });
      const auto store = [&](int row, int column, uint32_t pair) {
        if (f + column >= stored) return;
        *reinterpret_cast<uint32_t*>(mid + row * pitch + f + column) = pair;
      };
      finish<Traits, input_t>(acc, warp, params.bias1, f, params.filters1, params.mid_relu, store);
    }
  }

  // Second factor: the taps move along the line, which is whole in shared memory. The barrier of
  // its first step puts the stores above before the reads.
  const uint32_t mid_address = device::smem_u32(mid);
  int32_t line[Traits::kFragmentsM];
#pragma unroll
  for (int m = 0; m < Traits::kFragmentsM; ++m) {
    const Pixel pixel = pixel_of(warp.pixel_row(m));
    line[m] = pixel.real ? pixel.line : kNowhere;
  }
  for (int32_t f = 0; f < params.c_out; f += Traits::kBlockN) {
    // The ring still holds the last tile of the output.
    if (f > 0) device::block_sync();
    const FilterRows<Traits> filter_rows(
        params.weight2, f, params.filters2, params.taps2, params.c_mid);
    run_steps<Traits>(
        acc,
        storage.ring,
        TapsOutside{params.taps2, params.taps2, params.c_mid},
        [&](TileStage<Traits>& stage, const Step& step) {
          filter_rows.load(stage.filters(), step.tap, step.k);
        },
        [&](TileStage<Traits>& stage, const Step& step) {
          const int shift = step.tap - params.taps2 / 2;
          multiply<Traits, input_t>(acc, stage.filters(), warp, [&](int fragment, int k16) {
            const int32_t at = line[fragment] + shift;
            const bool inside = at >= 0 && at < params.line_size;
            const int row = inside ? warp.pixel_row(fragment) + shift : Traits::kBlockM;
            return mid_address + 2 * (row * pitch + step.k + 16 * k16 + 8 * warp.pixel_half());
          });
        });
    finish<Traits, input_t>(
        acc, warp, params.bias2, f, params.filters2, params.relu, collect_in(storage));
    write_output<Traits>(storage, params.output, f, params.c_out);
  }
}

// One factor, a launch of its own.
template <int kConfiguration, typename input_t>
__global__ void __launch_bounds__(Sm80Traits<kConfiguration>::kThreads,
                                  Sm80Traits<kConfiguration>::kMinBlocks)
    shifted_conv2d_kernel(const __grid_constant__ ConvolutionParams params) {
  convolve_tile<Sm80Traits<kConfiguration>, input_t, false>(params, device::block_index());
}

}  // namespace fused_inception
