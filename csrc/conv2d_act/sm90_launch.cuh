// SPDX-License-Identifier: Apache-2.0
// Starts the sm_90a kernels of the convolution: from a configuration to a grid.
#pragma once

#include "common/convolution_launch.cuh"
#include "conv2d_act/sm90.cuh"
#ifdef __CUDACC__
#include "conv2d_act/launch.h"
#endif

namespace fused_inception {

// Runs `configuration`, a row of kConv2dActSm90Configurations, on `stream`.
template <typename input_t>
device::Status launch_conv2d_act_sm90(const ConvolutionParams& params,
                                      int configuration,
                                      device::Stream stream) {
  return with_configuration<kNumConv2dActSm90Configurations>(configuration, [&](auto number) {
    return launch_convolution(conv2d_act_sm90_kernel<number, input_t>,
                              kConv2dActSm90Configurations[number],
                              params,
                              stream);
  });
}

}  // namespace fused_inception
