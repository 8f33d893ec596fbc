// SPDX-License-Identifier: Apache-2.0
// Starts the sm_80 kernels of the convolution: from a configuration to a grid.
#pragma once

#include "common/convolution_launch.cuh"
#include "conv2d_act/sm80.cuh"
#ifdef __CUDACC__
#include "conv2d_act/launch.h"
#endif

namespace fused_inception {

// Runs `configuration`, a row of kConv2dActConfigurations, on `stream`.
template <typename input_t>
device::Status launch_conv2d_act(const ConvolutionParams& params,
                                 int configuration,
                                 device::Stream stream) {
  return with_configuration<kNumConv2dActConfigurations>(configuration, [&](auto number) {
    return launch_convolution(
        conv2d_act_kernel<number, input_t>, kConv2dActConfigurations[number], params, stream);
  });
}

}  // namespace fused_inception
