// SPDX-License-Identifier: Apache-2.0
// The convolution on wgmma for float16.
#include "conv2d_act/sm90_launch.cuh"

namespace fused_inception {

template cudaError_t launch_conv2d_act_sm90<__half>(const ConvolutionParams& params,
                                                    int configuration,
                                                    cudaStream_t stream);

}  // namespace fused_inception
