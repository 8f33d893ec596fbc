// SPDX-License-Identifier: Apache-2.0
// Starts the kernels of the pools: from a form to a grid.
#pragma once

#include "common/convolution_launch.cuh"
#include "pool2d/pool2d.cuh"
#ifdef __CUDACC__
#include "pool2d/launch.h"
#endif

namespace fused_inception {

// Runs `form`, a row of kPool2dForms, on `stream`.
template <typename input_t>
device::Status launch_pool2d(const Pool2dParams& params, int form, device::Stream stream) {
  return with_configuration<kNumPool2dForms>(form, [&](auto number) {
    const int64_t chunks = params.input.channels / kChunkElements<input_t>;
    const int64_t parts = (chunks + kGlobalChunks - 1) / kGlobalChunks;
    const int64_t blocks = number == kGlobalAveragePool
                               ? params.input.num_images * parts
                               : pool_blocks<input_t>(params.input, kPoolThreads);
    return device::launch(pool2d_kernel<number, input_t>,
                          blocks,
                          kPoolThreads,
                          kPool2dForms[number].shared_bytes,
                          stream,
                          params);
  });
}

}  // namespace fused_inception
