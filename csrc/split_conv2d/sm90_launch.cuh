// SPDX-License-Identifier: Apache-2.0
// Starts the sm_90a kernels of the split: from a configuration to a grid and its shared memory.
#pragma once

#include "split_conv2d/sm80_launch.cuh"
#include "split_conv2d/sm90.cuh"

namespace fused_inception {

// Runs `configuration`, a row of kSplitConv2dSm90Configurations, on `stream`. A problem that it
// does not take is kInvalidValue, and nothing is launched.
template <typename input_t>
device::Status launch_split_conv2d_sm90(const SplitConv2dParams& params,
                                        int configuration,
                                        device::Stream stream) {
  return with_configuration<kNumSplitConv2dSm90Configurations>(configuration, [&](auto number) {
    return launch_split(split_conv2d_sm90_kernel<number, input_t>,
                        kSplitConv2dSm90Configurations[number],
                        params,
                        stream);
  });
}

}  // namespace fused_inception
