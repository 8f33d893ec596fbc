// SPDX-License-Identifier: Apache-2.0
// The grid reduction on wgmma for bfloat16.
#include "grid_reduction/sm90_launch.cuh"

namespace fused_inception {

template cudaError_t launch_grid_reduction_sm90<__nv_bfloat16>(const GridReductionParams& params,
                                                               int configuration,
                                                               cudaStream_t stream);

}  // namespace fused_inception
