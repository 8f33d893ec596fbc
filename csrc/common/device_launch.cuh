// SPDX-License-Identifier: Apache-2.0
// How a kernel is started: one function that the device build and the emulator both have.
#pragma once

#include "common/device.cuh"

#include <cstdint>

#ifdef __CUDACC__

#include <cudaTypedefs.h>
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

// A tensor map of 16-bit elements: `sizes` elements, the first dimension contiguous and `strides`
// bytes between the others, boxes of `box` elements, zeros outside. Base and strides are multiples
// of 16 bytes, and so is the first size of a box; with a swizzle that is its span. The function
// that encodes it is the driver's, which the library is not linked to.
inline Status make_tensor_map(TensorMap& map,
                              const void* base,
                              const int64_t (&sizes)[3],
                              const int64_t (&strides)[2],
                              const int (&box)[3],
                              Swizzle swizzle) {
  if (swizzle != Swizzle::kNone && box[0] * 2 != static_cast<int>(swizzle)) return kInvalidValue;
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    cudaGetDriverEntryPointByVersion(
        "cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
#else
    cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
    if (found != cudaDriverEntryPointSuccess) function = nullptr;
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  if (encode == nullptr) return cudaErrorNotSupported;
  cuuint64_t dimensions[3], pitches[2];
  cuuint32_t boxes[3];
  const cuuint32_t steps[3] = {1, 1, 1};
  for (int i = 0; i < 3; ++i) {
    dimensions[i] = static_cast<cuuint64_t>(sizes[i]);
    boxes[i] = static_cast<cuuint32_t>(box[i]);
    if (i < 2) pitches[i] = static_cast<cuuint64_t>(strides[i]);
  }
  const CUtensorMapSwizzle mode = swizzle == Swizzle::k128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                  : swizzle == Swizzle::k64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                  : swizzle == Swizzle::k32 ? CU_TENSOR_MAP_SWIZZLE_32B
                                                            : CU_TENSOR_MAP_SWIZZLE_NONE;
  // Nothing but bits are moved.
  const CUresult result = encode(&map,
                                 CU_TENSOR_MAP_DATA_TYPE_UINT16,
                                 3,
                                 const_cast<void*>(base),
                                 dimensions,
                                 pitches,
                                 boxes,
                                 steps,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE,
                                 mode,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? kSuccess : kInvalidValue;
}

// Starts `kernel` on `blocks` blocks of `threads` threads, asynchronously, on the current device;
// `cluster` neighbouring blocks run together, at most 8.
template <typename Params>
Status launch(void (*kernel)(Params),
              int64_t blocks,
              int threads,
              int shared_bytes,
              Stream stream,
              const Params& params,
              int cluster = 1) {
  if (blocks > INT32_MAX || blocks % cluster != 0) return kInvalidValue;
  if (shared_bytes > kDefaultSharedBytes) {
    const Status status = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               shared_bytes);
    if (status != cudaSuccess) return status;
  }
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned int>(cluster);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = static_cast<unsigned int>(blocks);
  config.blockDim = static_cast<unsigned int>(threads);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  // Devices before sm_90 know no clusters.
  config.numAttrs = cluster > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, params);
}

}  // namespace fused_inception::device

#else

#include "emulator/launch_host.h"

#endif
