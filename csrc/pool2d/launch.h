// SPDX-License-Identifier: Apache-2.0
// What the host code calls; pool2d_launch.cuh defines it, pool2d.cu instantiates it.
#pragma once

#include "pool2d/params.h"

#include <cuda_runtime.h>

namespace fused_inception {

// Runs `form` (a row of kPool2dForms) on `stream`.
template <typename Element>
cudaError_t launch_pool2d(const Pool2dParams& params, int form, cudaStream_t stream);

}  // namespace fused_inception
