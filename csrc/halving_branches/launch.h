// SPDX-License-Identifier: Apache-2.0
// What the host code calls; sm80_launch.cuh defines it, one .cu per element type instantiates it.
#pragma once

#include "halving_branches/params.h"

#include <cuda_runtime.h>

namespace fused_inception {

// Runs `configuration` (a row of kHalvingBranchesConfigurations) on `stream`; fills in the ends.
template <typename Element>
cudaError_t launch_halving_branches(HalvingBranchesParams params,
                                    int configuration,
                                    cudaStream_t stream);

}  // namespace fused_inception
