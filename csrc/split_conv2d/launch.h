// SPDX-License-Identifier: Apache-2.0
// What the host code calls; sm80_launch.cuh and sm90_launch.cuh define it, one .cu each per element
// type instantiates it.
#pragma once

#include "split_conv2d/params.h"

#include <cuda_runtime.h>

namespace fused_inception {

// Runs `configuration` (a row of kSplitConv2dConfigurations) on `stream`. A problem that the
// configuration does not take is cudaErrorInvalidValue, and nothing is launched.
template <typename Element>
cudaError_t launch_split_conv2d(const SplitConv2dParams& params,
                                int configuration,
                                cudaStream_t stream);

// The same for a row of kSplitConv2dSm90Configurations, on a device of compute capability 9.0.
// Elsewhere the launch traps.
template <typename Element>
cudaError_t launch_split_conv2d_sm90(const SplitConv2dParams& params,
                                     int configuration,
                                     cudaStream_t stream);

}  // namespace fused_inception
