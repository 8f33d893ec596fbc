// SPDX-License-Identifier: Apache-2.0
// What the host code calls; sm80_launch.cuh defines it, one .cu per element type instantiates it.
#pragma once

#include "common/convolution.h"

#include <cuda_runtime.h>

namespace fused_inception {

// Runs `configuration` (a row of kConv2dActConfigurations) on `stream`.
template <typename Element>
cudaError_t launch_conv2d_act(const ConvolutionParams& params,
                              int configuration,
                              cudaStream_t stream);

}  // namespace fused_inception
