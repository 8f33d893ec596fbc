// SPDX-License-Identifier: Apache-2.0
// Starts the sm_80 kernels of the grid reduction: from a configuration to a grid.
#pragma once

#include "common/convolution_launch.cuh"
#include "grid_reduction/sm80.cuh"
#ifdef __CUDACC__
#include "grid_reduction/launch.h"
#endif

namespace fused_inception {

// Runs `configuration`, a row of kGridReductionConfigurations, on `stream`.
template <typename input_t>
device::Status launch_grid_reduction(const GridReductionParams& params,
                                     int configuration,
                                     device::Stream stream) {
  return with_configuration<kNumGridReductionConfigurations>(configuration, [&](auto number) {
    constexpr TileShape kTile = kGridReductionConfigurations[number];
    return device::launch(
        grid_reduction_kernel<number, input_t>,
        product_blocks(kTile, params.input, filter_tiles_of(params.conv, kTile.block_n)),
        kTile.threads(),
        kTile.fixed_shared_bytes(),
        stream,
        params);
  });
}

}  // namespace fused_inception
