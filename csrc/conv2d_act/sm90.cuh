// SPDX-License-Identifier: Apache-2.0
// One convolution with bias and activation on wgmma.
#pragma once

#include "common/tile_product.cuh"
#include "conv2d_act/configuration.h"

namespace fused_inception {

template <int kConfiguration>
using Conv2dActSm90Traits = TileTraits<kConv2dActSm90Configurations[kConfiguration]>;

template <int kConfiguration, typename input_t>
__global__ void __launch_bounds__(Conv2dActSm90Traits<kConfiguration>::kThreads,
                                  Conv2dActSm90Traits<kConfiguration>::kMinBlocks)
    conv2d_act_sm90_kernel(const __grid_constant__ ConvolutionParams params) {
  if constexpr (device::kHasWgmma) {
    convolve_tile<Conv2dActSm90Traits<kConfiguration>, input_t, true>(params);
  } else {
    device::trap();
  }
}

}  // namespace fused_inception
