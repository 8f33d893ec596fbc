// SPDX-License-Identifier: Apache-2.0
// Every hardware primitive that the kernels use, behind a named function.
//
// Kernels contain no inline assembly and no intrinsics; they call these functions. Under nvcc they
// are PTX (device_ptx.cuh), for any other compiler they belong to the emulator of the tests, which
// runs the same kernels on the host. Both sides have the same names and the same signatures; what
// is arithmetic for both of them stands here, below the switch.
#pragma once

#include "common/element.h"

#include <cstdint>

namespace fused_inception::device {

// Sixteen bytes that move as one: the unit of cp.async and of global stores.
struct alignas(16) Chunk {
  uint32_t words[4];
};

}  // namespace fused_inception::device

#ifdef __CUDACC__
#include "common/device_ptx.cuh"
#else
#include "emulator/device_host.h"
#endif

namespace fused_inception::device {

constexpr int kWarpSize = 32;

// Where register i (0..3) of a lane stands in the 16x8 accumulator of mma_m16n8k16.
__device__ __forceinline__ int accumulator_row(int lane, int i) {
  return (lane >> 2) + 8 * (i >> 1);
}
__device__ __forceinline__ int accumulator_column(int lane, int i) {
  return 2 * (lane & 3) + (i & 1);
}

// max(x, 0) that keeps NaN and -0.0, as PyTorch's relu does.
__device__ __forceinline__ float relu(float x) {
  return x < 0.0f ? 0.0f : x;
}

}  // namespace fused_inception::device
