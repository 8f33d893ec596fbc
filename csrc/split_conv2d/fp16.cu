// SPDX-License-Identifier: Apache-2.0
// The split for float16.
#include "split_conv2d/sm80_launch.cuh"

namespace fused_inception {

template cudaError_t launch_split_conv2d<__half>(const SplitConv2dParams& params,
                                                 int configuration,
                                                 cudaStream_t stream);

}  // namespace fused_inception
