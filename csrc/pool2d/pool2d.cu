// SPDX-License-Identifier: Apache-2.0
// The pools for every element type: they take less time to compile than what they include.
#include "pool2d/pool2d_launch.cuh"

namespace fused_inception {

template cudaError_t launch_pool2d<__half>(const Pool2dParams& params,
                                           int form,
                                           cudaStream_t stream);
template cudaError_t launch_pool2d<__nv_bfloat16>(const Pool2dParams& params,
                                                  int form,
                                                  cudaStream_t stream);
template cudaError_t launch_pool2d<float>(const Pool2dParams& params,
                                          int form,
                                          cudaStream_t stream);

}  // namespace fused_inception
