// SPDX-License-Identifier: Apache-2.0
// `1xn` and `mx1` convolutions of one input on wgmma, side by side, for sm_90a: see params.h.
// Tiles, the shared centre tap and the order of sums are those of sm80.cuh, whose `split_tile` this
// is with the other engine of common/tile_product.cuh. conv2d_act/sm90.cuh says why pixels are rows
// and what loads.
//
// Whole images: 64 rows are one map of up to 8x8. wgmma has no address for each row, as ldmatrix
// has; it has a distance between groups of eight rows. So an image lies as eight lines of eight
// pixels with zeros between them (`SplitPatches`), in planes of eight channels without a swizzle,
// and a tap is a start address some pixels on: sideways by 16 bytes each, which the PTX ISA allows
// (any multiple of 16, 9.7.15.5.1) and no device test has confirmed. The steps of the centre tap
// load it once; after that only filters go through the ring. What was weighed against that:
//   Operands from registers, which ldmatrix would load from the addresses of sm80.cuh: 48 KB an
//   image, and any map of up to 64 pixels; but products in flight hold their registers, and each
//   step would wait for the one before.
//   Rows of 64 bytes with a swizzle, where only shifts by eight rows are safe: two copies of the
//   image, one in either order.
//
// Arithmetic, for 8x8, 384 channels and 384 + 384 filters: two images x (96 + 96) filters read 44
// KB of pixels and filters from L2 for the six products of 32 channels, 1,152 clocks of the matrix
// units: 39 bytes a clock of about 35, at 89 % of the matrix units. One image a tile would read 71
// bytes a clock, at 49 %. Triton loads its pixels for every tap: 64 KB for 768 clocks, 85 bytes a
// clock, at 41 %. 256 images are 512 tiles, four waves of 132; one image is 12 tiles of 64 x (32 +
// 32), and waits for 60 steps whatever it reads.
//
// Shared memory with 384 channels and three taps: for two images 134 KB of patches and a ring of 72
// KB; for one 74 and 32 KB, twice a multiprocessor. Registers 155 and 79; of the tiles for any map,
// 128 x (96 + 96) and 64 x (32 + 32), 149 and 75. ptxas 13.0 neither spills nor serializes the
// products.
//
// Range: that of sm80.cuh; whole images up to 8x8 with filters up to 31. Nothing here has been
// timed, and nothing here has run on a device.
#pragma once

#include "split_conv2d/sm80.cuh"

namespace fused_inception {

template <int kConfiguration>
using SplitConv2dSm90Traits = TileTraits<kSplitConv2dSm90Configurations[kConfiguration].tile,
                                         2,
                                         !kSplitConv2dSm90Configurations[kConfiguration].whole>;

template <int kConfiguration, typename input_t>
__global__ void __launch_bounds__(SplitConv2dSm90Traits<kConfiguration>::kThreads,
                                  SplitConv2dSm90Traits<kConfiguration>::kMinBlocks)
    split_conv2d_sm90_kernel(const __grid_constant__ SplitConv2dParams params) {
  if constexpr (device::kHasWgmma) {
    constexpr bool kWhole = kSplitConv2dSm90Configurations[kConfiguration].whole;
    split_tile<SplitConv2dSm90Traits<kConfiguration>, input_t, kWhole>(params);
  } else {
    device::trap();
  }
}

}  // namespace fused_inception
