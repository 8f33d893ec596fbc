// SPDX-License-Identifier: Apache-2.0
// Starts the sm_90a kernels of the grid reduction: from a configuration to a grid.
#pragma once

#include "grid_reduction/sm80_launch.cuh"
#include "grid_reduction/sm90.cuh"

namespace fused_inception {

// Runs `configuration`, a row of kGridReductionSm90Configurations, on `stream`.
template <typename input_t>
device::Status launch_grid_reduction_sm90(const GridReductionParams& params,
                                          int configuration,
                                          device::Stream stream) {
  return with_configuration<kNumGridReductionSm90Configurations>(configuration, [&](auto number) {
    return launch_reduction(grid_reduction_sm90_kernel<number, input_t>,
                            kGridReductionSm90Configurations[number],
                            params,
                            stream);
  });
}

}  // namespace fused_inception
