// SPDX-License-Identifier: Apache-2.0
// The pair for bfloat16.
#include "factorized_conv2d/sm80_launch.cuh"

namespace fused_inception {

template cudaError_t launch_factorized_conv2d<__nv_bfloat16>(const FactorizedConv2dParams& params,
                                                             int configuration,
                                                             cudaStream_t stream);

}  // namespace fused_inception
