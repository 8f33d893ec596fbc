// SPDX-License-Identifier: Apache-2.0
// From what a tensor says at run time to what a template or a launch needs.
#pragma once

#include "common/checks.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// Only a libtorch with CUDA has this function. Where it is missing the library must load all the
// same, so that its operators are there to be refused in words.
#pragma weak aoti_torch_get_current_cuda_stream

namespace fused_inception {

// Calls `function` with a value of the element type, __half or __nv_bfloat16.
template <typename Function>
auto dispatch_16_bit(const char* op, ScalarType type, Function&& function) {
  check_16_bit(op, type);
  return type == ScalarType::Half ? function(__half{}) : function(__nv_bfloat16{});
}

// Makes a device current for its lifetime. cudart is linked statically and has a current device of
// its own beside PyTorch's: both are set, PyTorch's is put back.
class DeviceGuard {
 public:
  explicit DeviceGuard(int32_t device_index) : guard_(device_index) {
    const cudaError_t error = cudaSetDevice(device_index);
    check(error == cudaSuccess,
          "cudaSetDevice(",
          device_index,
          ") failed: ",
          cudaGetErrorString(error));
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

// PyTorch's current stream of a device.
inline cudaStream_t current_stream(int32_t device_index) {
  check(aoti_torch_get_current_cuda_stream != nullptr, "the installed torch is built without CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_index, &stream));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace fused_inception
