// SPDX-License-Identifier: Apache-2.0
// csrc/common/device_launch.cuh for a host compiler: a launch runs the grid before it returns.
#pragma once

#include "emulator/control.h"
#include "emulator/device_host.h"

#include <cstdint>

namespace fused_inception::device {

using Stream = void*;
enum class Status { kOk, kBadValue, kFault };
inline constexpr Status kSuccess = Status::kOk;
inline constexpr Status kInvalidValue = Status::kBadValue;

inline int multiprocessors() {
  return emulator::multiprocessors();
}

// The rules are those of cuTensorMapEncodeTiled; a row of a swizzled box has to fill the span.
inline Status make_tensor_map(TensorMap& map,
                              const void* base,
                              const int64_t (&sizes)[3],
                              const int64_t (&strides)[2],
                              const int (&box)[3],
                              Swizzle swizzle) {
  map = {base,
         {sizes[0], sizes[1], sizes[2]},
         {strides[0], strides[1]},
         {box[0], box[1], box[2]},
         static_cast<int>(swizzle),
         true};
  bool valid = reinterpret_cast<uintptr_t>(base) % 16 == 0 && box[0] * 2 % 16 == 0;
  valid = valid && (swizzle == Swizzle::kNone || box[0] * 2 == map.swizzle);
  for (const int64_t stride : strides)
    valid = valid && stride % 16 == 0 && stride >= 0 && stride < int64_t{1} << 40;
  for (int i = 0; i < 3; ++i)
    valid = valid && box[i] >= 1 && box[i] <= 256 && sizes[i] >= 1 && sizes[i] <= int64_t{1} << 32;
  return valid ? kSuccess : kInvalidValue;
}

template <typename Params>
Status launch(void (*kernel)(Params),
              int64_t blocks,
              int threads,
              int shared_bytes,
              Stream,
              const Params& params,
              int cluster = 1) {
  if (blocks > INT32_MAX) return kInvalidValue;
  const bool ok = emulator::run_grid(
      blocks, threads, shared_bytes, cluster, [kernel, &params] { kernel(params); });
  return ok ? kSuccess : Status::kFault;
}

}  // namespace fused_inception::device
