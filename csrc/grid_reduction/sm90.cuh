// SPDX-License-Identifier: Apache-2.0
// A stride-2 convolution and a stride-2 pool of the same window on wgmma, in one pass, for sm_90a:
// formula, order and pool of sm80.cuh, whose `reduce_tile` this is with the other engine of
// common/tile_product.cuh. conv2d_act/sm90.cuh says why pixels are rows and what loads.
//
// The pool reads the tile of pixels that the products read, after these have been started: it works
// in the shadow of the matrix units, by threads that would wait for them. Its eight registers a row
// and the accumulators leave room for 192 pixels in three warpgroups, not for 256 in two.
//
// Arithmetic, for 35x35, 288 channels and 384 filters: a step of 192 x 192 is 576 clocks of the
// matrix units and 24 KB from L2, 43 bytes a clock of about 35: bound by L2, at 82 % of the matrix
// units; Triton's tile of 128 x 128 at 55 %. 32 images are 98 tiles for 132 multiprocessors, one
// wave. In shared memory the pool reads 12 KB a step and tile where the products read 48 and the
// copies write 24, and does so in half of the steps with two tiles of filters. With 64 channels and
// 96 filters on 147x147 memory binds as much as L2 does, whatever multiplies: what fusing gains
// there is the second reading of the input.
//
// Registers and shared memory: 192 x 192 168, 146 KB; 128 x 96 124, 85 KB; 64 x 32 102, 49 KB.
// ptxas 13.0 neither spills nor serializes the products.
//
// Range: that of sm80.cuh. Nothing here has been timed, and nothing here has run on a device.
#pragma once

#include "grid_reduction/sm80.cuh"

namespace fused_inception {

template <int kConfiguration>
using GridReductionSm90Traits = TileTraits<kGridReductionSm90Configurations[kConfiguration]>;

template <int kConfiguration, typename input_t>
__global__ void __launch_bounds__(GridReductionSm90Traits<kConfiguration>::kThreads,
                                  GridReductionSm90Traits<kConfiguration>::kMinBlocks)
    grid_reduction_sm90_kernel(const __grid_constant__ GridReductionParams params) {
  if constexpr (device::kHasWgmma) {
    reduce_tile<GridReductionSm90Traits<kConfiguration>, input_t>(params);
  } else {
    device::trap();
  }
}

}  // namespace fused_inception
