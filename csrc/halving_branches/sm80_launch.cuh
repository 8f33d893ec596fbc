// SPDX-License-Identifier: Apache-2.0
// Starts the sm_80 kernels of the branches: from a configuration to a grid.
#pragma once

#include "common/convolution_launch.cuh"
#include "halving_branches/sm80.cuh"
#ifdef __CUDACC__
#include "halving_branches/launch.h"
#endif

namespace fused_inception {

// Runs `configuration`, a row of kHalvingBranchesConfigurations, on `stream`.
template <typename input_t>
device::Status launch_halving_branches(HalvingBranchesParams params,
                                       int configuration,
                                       device::Stream stream) {
  return with_configuration<kNumHalvingBranchesConfigurations>(configuration, [&](auto number) {
    constexpr TileShape kTile = kHalvingBranchesConfigurations[number];
    int64_t blocks = 0;
    for (int i = 0; i < params.num_branches; ++i) {
      blocks += convolution_blocks(kTile, params.branches[i]);
      params.ends[i] = static_cast<int32_t>(blocks);
    }
    blocks += pool_blocks<input_t>(params.pool_input, kTile.threads());
    return device::launch(halving_branches_kernel<number, input_t>,
                          blocks,
                          kTile.threads(),
                          kTile.fixed_shared_bytes(),
                          stream,
                          params);
  });
}

}  // namespace fused_inception
