// SPDX-License-Identifier: Apache-2.0
// The split on wgmma for bfloat16.
#include "split_conv2d/sm90_launch.cuh"

namespace fused_inception {

template cudaError_t launch_split_conv2d_sm90<__nv_bfloat16>(const SplitConv2dParams& params,
                                                             int configuration,
                                                             cudaStream_t stream);

}  // namespace fused_inception
