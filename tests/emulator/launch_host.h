// SPDX-License-Identifier: Apache-2.0
// csrc/common/device_launch.cuh for a host compiler: a launch runs the grid before it returns.
#pragma once

#include "emulator/control.h"

#include <cstdint>

namespace fused_inception::device {

using Stream = void*;
enum class Status { kOk, kBadValue, kFault };
inline constexpr Status kSuccess = Status::kOk;
inline constexpr Status kInvalidValue = Status::kBadValue;

inline int multiprocessors() {
  return emulator::multiprocessors();
}

template <typename Params>
Status launch(void (*kernel)(Params),
              int64_t blocks,
              int threads,
              int shared_bytes,
              Stream,
              const Params& params) {
  if (blocks > INT32_MAX) return kInvalidValue;
  const bool ok =
      emulator::run_grid(blocks, threads, shared_bytes, [kernel, &params] { kernel(params); });
  return ok ? kSuccess : Status::kFault;
}

}  // namespace fused_inception::device
