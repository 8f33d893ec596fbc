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
// No version on wgmma. A 1x1 product of 768 to 640 channels on a 17x17 map does 284 MFLOP an image
// on 0.81 MB of traffic: 351 FLOP a byte, above the 295 at which an H100's memory would bind
// (989 TFLOP/s, 3.35 TB/s), but with 192 input channels on 35x35 maps, where the most bytes are, it
// is 100, bound by memory whatever multiplies. A 3x3 convolution is a plain matrix product of the
// kind that Triton's wgmma code and cuDNN exist for; what bands gain for the pair, the intermediate
// map that never leaves the multiprocessor, is not there to be gained. So on compute capability 9.0
// and 10.0 the tables of fused_inception/ops/dispatch prefer Triton for this op.
//
// Three channels: they are padded to 8, and each step has 8 of 32 channels; an image would be
// written and read once more, and three quarters of the products are zeros. The tables prefer
// Triton there too, whose kernel for few channels sums over taps and channels taken together.
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
  convolve_tile<Conv2dActTraits<kConfiguration>, input_t, true>(params);
}

}  // namespace fused_inception
