// SPDX-License-Identifier: Apache-2.0
// `1xn` and `mx1` convolutions of one input on wgmma, side by side: see params.h.
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
