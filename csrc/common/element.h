// SPDX-License-Identifier: Apache-2.0
// Element types as the kernels' templates name them. In memory both are 16 bits, and the kernels
// move them as `uint16_t`; a host compiler needs no CUDA header for that.
#pragma once

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace fused_inception {
using Float16 = __half;
using BFloat16 = __nv_bfloat16;
}  // namespace fused_inception

#else

namespace fused_inception {
struct Float16 {};   // IEEE binary16
struct BFloat16 {};  // the upper half of an IEEE binary32
}  // namespace fused_inception

#endif
