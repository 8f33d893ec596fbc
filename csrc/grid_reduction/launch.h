// SPDX-License-Identifier: Apache-2.0
// What the host code calls; sm80_launch.cuh and sm90_launch.cuh define it, one .cu each per element
// type instantiates it.
#pragma once

#include "grid_reduction/params.h"

#include <cuda_runtime.h>

namespace fused_inception {

// Runs `configuration` (a row of kGridReductionConfigurations) on `stream`.
template <typename Element>
cudaError_t launch_grid_reduction(const GridReductionParams& params,
                                  int configuration,
                                  cudaStream_t stream);

// The same for a row of kGridReductionSm90Configurations, on a device of compute capability 9.0.
// Elsewhere the launch traps.
template <typename Element>
cudaError_t launch_grid_reduction_sm90(const GridReductionParams& params,
                                       int configuration,
                                       cudaStream_t stream);

}  // namespace fused_inception
