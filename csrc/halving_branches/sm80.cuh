// SPDX-License-Identifier: Apache-2.0
// Stride-2 convolutions of several maps on mma.sync, and a stride-2 max pool of yet another: what a
// grid reduction of unequal inputs (Mixed_7a) ends with, as one launch.
//
//   y_i[p, q, f]    = relu(b_i[f] + sum over r, s, c of x_i[2p + r, 2q + s, c] * w_i[f, r, s, c])
//   pooled[p, q, c] = max over r, s of x[2p + r, 2q + s, c]
//
// Blocks are numbered over the tiles of the first convolution, then those of the next, then those
// of the pool; each does what a block of `conv2d_act` or of the max pool does. The sums have the
// order of `conv2d_act`, and the bits.
//
// Bytes moved from and to memory: those of the launches that it stands for, 0.44 + 0.22 MB of input
// and 0.16 MB of output an image at 17x17, and 1.8 MB of weights a launch. What is saved is
// waiting. With tiles of 64 x 32 an image makes 10 + 6 tiles for its 320 + 192 filters and 48
// blocks for its 768 pooled channels: 16 and 48 blocks on 108 to 132 multiprocessors, where each of
// three launches would wait for the one before. A tile is 54 steps of 32 channels behind one
// another, whatever the batch, so that up to six images (96 tiles) the two convolutions together
// last as long as one. At 256 images tiles of 128 x 128 are 384 + 256: six waves of 108 against
// four and three, and the pool's 139 MB, 69 us of an A100's memory (2.0 TB/s), begin where the last
// wave leaves room. No batch is worse off: a block does the same work as in a launch of its own.
//
// Range: up to three convolutions; any odd kernel, channels in multiples of 8, which the caller
// pads; any batch of up to 2^30 output pixels a launch. The window is always inside the map.
// Nothing here has been timed.
#pragma once

#include "common/pool.cuh"
#include "common/tile_product.cuh"
#include "halving_branches/configuration.h"
#include "halving_branches/params.h"

namespace fused_inception {

template <int kConfiguration>
using HalvingBranchesTraits = TileTraits<kHalvingBranchesConfigurations[kConfiguration]>;

template <int kConfiguration, typename input_t>
__global__ void __launch_bounds__(HalvingBranchesTraits<kConfiguration>::kThreads,
                                  HalvingBranchesTraits<kConfiguration>::kMinBlocks)
    halving_branches_kernel(const __grid_constant__ HalvingBranchesParams params) {
  using Traits = HalvingBranchesTraits<kConfiguration>;
  int branch = 0;
  int32_t block = device::block_index();
  while (branch < params.num_branches && block >= params.ends[branch])
    ++branch;
  if (branch > 0) block -= params.ends[branch - 1];
  if (branch < params.num_branches) {
    convolve_tile<Traits, input_t>(params.branches[branch], block);
  } else {
    const int64_t item = int64_t{block} * Traits::kThreads + device::thread_index();
    max_pool_item<input_t>(params.pool_input, item, params.pooled, params.pooled_stride);
  }
}

}  // namespace fused_inception
