// SPDX-License-Identifier: Apache-2.0
// One convolution with bias and activation on mma.sync, as an implicit matrix product: with the
// letters of common/convolution.h,
//
//   y[cross, line, f] = act(bias[f] + sum over r, s, c of
//       x[cross * step - pad + r, line * step - pad + s, c] * weight[f, r, s, c])
//
// The filters may be those of up to four convolutions of one geometry on the same input, one below
// the other in the weight: each such segment has a destination and an activation of its own, and a
// tile of filters belongs to one segment. All of it is `convolve_tile` of common/tile_product.cuh.
//
// Bytes moved: input, weight and output from and to memory once; what taps and tiles of filters
// read again comes from L2. A step of 128 x 128 x 32 reads 16 KB for 512 K multiply-adds, 512
// clocks of an A100's matrix units; L2 gives a multiprocessor 18.6 bytes a clock (2,008 for 108,
// arXiv 2402.13499), 880 clocks: bound by L2, at 58 % of the matrix units.
//
// sm90.cuh has the same on wgmma.
//
// Steps have 32 of the channels of all taps together (joined taps), so that the three channels of
// an image, padded to 8, are 3 steps for 3x3 taps. But an image has to be written and read once
// more to be padded: up to 8 channels the tables prefer Triton, whose kernel takes them as they
// are.
//
// Range: any filter, step and padding; channels in multiples of 8, which the caller pads; any batch
// of up to 2^30 output pixels a launch. Nothing here has been timed.
#pragma once

#include "common/tile_product.cuh"
#include "conv2d_act/configuration.h"

namespace fused_inception {

template <int kConfiguration>
using Conv2dActTraits = TileTraits<kConv2dActConfigurations[kConfiguration]>;

template <int kConfiguration, typename input_t>
__global__ void __launch_bounds__(Conv2dActTraits<kConfiguration>::kThreads,
                                  Conv2dActTraits<kConfiguration>::kMinBlocks)
    conv2d_act_kernel(const __grid_constant__ ConvolutionParams params) {
  convolve_tile<Conv2dActTraits<kConfiguration>, input_t>(params, device::block_index());
}

}  // namespace fused_inception
