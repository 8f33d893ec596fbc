// SPDX-License-Identifier: Apache-2.0
// The branches of a grid reduction for bfloat16.
#include "halving_branches/sm80_launch.cuh"

namespace fused_inception {

template cudaError_t launch_halving_branches<__nv_bfloat16>(HalvingBranchesParams params,
                                                            int configuration,
                                                            cudaStream_t stream);

}  // namespace fused_inception
