// SPDX-License-Identifier: Apache-2.0
// The pair on wgmma for float16.
#include "factorized_conv2d/sm90_launch.cuh"

namespace fused_inception {

template cudaError_t launch_factorized_conv2d_sm90<__half>(const FactorizedConv2dParams& params,
                                                           int configuration,
                                                           cudaStream_t stream);

}  // namespace fused_inception
