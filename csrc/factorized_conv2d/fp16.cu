// SPDX-License-Identifier: Apache-2.0
// The pair for float16.
#include "factorized_conv2d/sm80_launch.cuh"

namespace fused_inception {

template cudaError_t launch_factorized_conv2d<__half>(const FactorizedConv2dParams& params,
                                                      int configuration,
                                                      cudaStream_t stream);

}  // namespace fused_inception
