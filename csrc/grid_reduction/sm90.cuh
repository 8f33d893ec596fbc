// SPDX-License-Identifier: Apache-2.0
// A stride-2 convolution and a stride-2 pool of the same window on wgmma, in one pass.
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
