// SPDX-License-Identifier: Apache-2.0
// How a kernel is started: one function that the device build and the emulator both have.
#pragma once

#include "common/device.cuh"

#include <cstdint>

#ifdef __CUDACC__

#include <cuda_runtime.h>

namespace fused_inception::device {

using Stream = cudaStream_t;
using Status = cudaError_t;
inline constexpr Status kSuccess = cudaSuccess;
inline constexpr Status kInvalidValue = cudaErrorInvalidValue;

// Dynamic shared memory that needs no leave.
constexpr int kDefaultSharedBytes = 48 * 1024;

// Multiprocessors of the current device; 0 where that cannot be said.
inline int multiprocessors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)
    return 0;
  return count;
}

// Starts `kernel` on `blocks` blocks of `threads` threads, asynchronously, on the current device.
template <typename Params>
Status launch(void (*kernel)(Params),
              int64_t blocks,
              int threads,
              int shared_bytes,
              Stream stream,
              const Params& params) {
  if (blocks > INT32_MAX) return kInvalidValue;
  if (shared_bytes > kDefaultSharedBytes) {
    const Status status = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               shared_bytes);
    if (status != cudaSuccess) return status;
  }
  kernel<<<static_cast<unsigned int>(blocks), threads, shared_bytes, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace fused_inception::device

#else

#include "emulator/launch_host.h"

#endif
