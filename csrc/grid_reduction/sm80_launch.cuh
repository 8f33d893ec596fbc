// SPDX-License-Identifier: Apache-2.0
// Starts the sm_80 kernels of the grid reduction: from a configuration to a grid.
#pragma once

#include "common/convolution_launch.cuh"
#include "grid_reduction/sm80.cuh"
#ifdef __CUDACC__
#include "grid_reduction/launch.h"
#endif

namespace fused_inception {

// Starts a kernel that is `reduce_tile`.
inline device::Status launch_reduction(void (*kernel)(GridReductionParams),
                                       const TileShape& shape,
                                       const GridReductionParams& params,
                                       device::Stream stream) {
  return device::launch(
      kernel,
      product_blocks(shape, params.input, filter_tiles_of(params.conv, shape.block_n)),
      shape.threads(),
      shape.fixed_shared_bytes(),
      stream,
      params);
}

// Runs `configuration`, a row of kGridReductionConfigurations, on `stream`.
template <typename input_t>
device::Status launch_grid_reduction(const GridReductionParams& params,
                                     int configuration,
                                     device::Stream stream) {
  return with_configuration<kNumGridReductionConfigurations>(configuration, [&](auto number) {
    return launch_reduction(grid_reduction_kernel<number, input_t>,
                            kGridReductionConfigurations[number],
                            params,
                            stream);
  });
}

}  // namespace fused_inception
