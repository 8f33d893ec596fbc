// SPDX-License-Identifier: Apache-2.0
// Starts the sm_90a kernel of the pair: from a configuration to a grid and its shared memory.
#pragma once

#include "common/device_launch.cuh"
#include "factorized_conv2d/sm90.cuh"
#ifdef __CUDACC__
#include "factorized_conv2d/launch.h"
#endif

#include <algorithm>

namespace fused_inception {

template <int kConfiguration, typename input_t>
device::Status launch_sm90(const FactorizedConv2dParams& params, device::Stream stream) {
  using Traits = Sm90Traits<kConfiguration>;
  static_assert(sizeof(Sm90SharedStorage<Traits>) == Traits::kRow.fixed_shared_bytes(),
                "configuration.h counts what sm90.cuh uses");
  const Sm90Band band = sm90_band(Traits::kPixels, params);
  const int64_t bytes = shared_bytes(Traits::kRow, params);
  if (band.lines == 0 || bytes > INT32_MAX) return device::kInvalidValue;
  const int64_t bands =
      int64_t{params.num_images} * ((params.cross_size + band.lines - 1) / band.lines);
  return device::launch(factorized_conv2d_sm90_kernel<kConfiguration, input_t>,
                        std::min<int64_t>(bands, std::max(1, device::multiprocessors())),
                        Traits::kThreads,
                        static_cast<int>(bytes),
                        stream,
                        params);
}

template <typename input_t, int kConfiguration = 0>
device::Status launch_sm90_configuration(const FactorizedConv2dParams& params,
                                         int configuration,
                                         device::Stream stream) {
  if constexpr (kConfiguration == kNumSm90Configurations) {
    return device::kInvalidValue;
  } else {
    if (configuration != kConfiguration) {
      return launch_sm90_configuration<input_t, kConfiguration + 1>(params, configuration, stream);
    }
    return launch_sm90<kConfiguration, input_t>(params, stream);
  }
}

// Runs `configuration`, a row of kSm90Configurations, on `stream`. A problem that it does not take
// is kInvalidValue, and nothing is launched.
template <typename input_t>
device::Status launch_factorized_conv2d_sm90(const FactorizedConv2dParams& params,
                                             int configuration,
                                             device::Stream stream) {
  return launch_sm90_configuration<input_t>(params, configuration, stream);
}

}  // namespace fused_inception
