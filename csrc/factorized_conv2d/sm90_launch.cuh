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
device::Status launch_sm90(const FactorizedConv2dParams& problem, device::Stream stream) {
  using Traits = Sm90Traits<kConfiguration>;
  constexpr Sm90Configuration kRow = Traits::kRow;
  static_assert(sizeof(Sm90SharedStorage<Traits>) == kRow.fixed_shared_bytes(),
                "configuration.h counts what sm90.cuh uses");
  const Sm90Band band = sm90_band(kRow.pixels, problem);
  const int64_t bytes = shared_bytes(kRow, problem);
  if (band.lines == 0 || bytes > INT32_MAX) return device::kInvalidValue;

  Sm90Params params;
  params.problem = problem;
  const auto make_map = [](device::TensorMap& map,
                           const void* weight,
                           int64_t filters,
                           int64_t taps,
                           int64_t channels,
                           int stored) {
    return device::make_tensor_map(map,
                                   weight,
                                   {channels, taps, filters},
                                   {2 * channels, 2 * taps * channels},
                                   {kBlockK, 1, Traits::copy_rows(stored)},
                                   device::Swizzle::k64);
  };
  device::Status status = make_map(params.filters1,
                                   problem.weight1,
                                   problem.filters1,
                                   problem.taps1,
                                   problem.c_in,
                                   round_up(problem.c_mid, kBlockK));
  if (status != device::kSuccess) return status;
  status = make_map(params.filters2,
                    problem.weight2,
                    problem.filters2,
                    problem.taps2,
                    problem.c_mid,
                    problem.c_out);
  if (status != device::kSuccess) return status;

  const int64_t bands =
      int64_t{problem.num_images} * ((problem.cross_size + band.lines - 1) / band.lines);
  const int64_t clusters =
      std::min<int64_t>((bands + kRow.multicast - 1) / kRow.multicast,
                        sm90_clusters(device::multiprocessors(), kRow.cluster()));
  return device::launch(factorized_conv2d_sm90_kernel<kConfiguration, input_t>,
                        clusters * kRow.cluster(),
                        Traits::kThreads,
                        static_cast<int>(bytes),
                        stream,
                        params,
                        kRow.cluster());
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
