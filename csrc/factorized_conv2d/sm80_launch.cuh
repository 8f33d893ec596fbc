// SPDX-License-Identifier: Apache-2.0
// Starts the sm_80 kernels of the pair: from a configuration to a grid and its shared memory.
#pragma once

#include "common/device_launch.cuh"
#include "factorized_conv2d/sm80.cuh"
#ifdef __CUDACC__
#include "factorized_conv2d/launch.h"
#endif

namespace fused_inception {

template <int kConfiguration, typename input_t>
device::Status launch_bands(const FactorizedConv2dParams& params, device::Stream stream) {
  constexpr Sm80Configuration kRow = kSm80Configurations[kConfiguration];
  const int64_t num_lines = static_cast<int64_t>(params.num_images) * params.cross_size;
  const int32_t lines_per_band = kRow.block_m / params.line_size;
  const int64_t bytes = shared_bytes(kRow, params.c_mid);
  if (lines_per_band == 0 || bytes > INT32_MAX) return device::kInvalidValue;
  return device::launch(factorized_conv2d_bands_kernel<kConfiguration, input_t>,
                        (num_lines + lines_per_band - 1) / lines_per_band,
                        kRow.threads(),
                        static_cast<int>(bytes),
                        stream,
                        params);
}

template <int kConfiguration, typename input_t>
device::Status launch_shifted_conv2d(const ShiftedConv2dParams& params, device::Stream stream) {
  constexpr Sm80Configuration kRow = kSm80Configurations[kConfiguration];
  const int64_t pixel_tiles = (params.num_pixels + kRow.block_m - 1) / kRow.block_m;
  const int64_t filter_tiles = (params.stored + kRow.block_n - 1) / kRow.block_n;
  return device::launch(shifted_conv2d_kernel<kConfiguration, input_t>,
                        pixel_tiles * filter_tiles,
                        kRow.threads(),
                        static_cast<int>(shared_bytes(kRow, params.channels)),
                        stream,
                        params);
}

template <int kConfiguration, typename input_t>
device::Status launch_two(const FactorizedConv2dParams& params, device::Stream stream) {
  if (params.mid == nullptr) return device::kInvalidValue;
  const int64_t pixels_per_image = static_cast<int64_t>(params.cross_size) * params.line_size;
  const int64_t line_channels = static_cast<int64_t>(params.line_size) * params.c_mid;
  const MapStrides mid_stride = {pixels_per_image * params.c_mid, line_channels, params.c_mid};
  ShiftedConv2dParams factor = {};
  factor.num_pixels = static_cast<int32_t>(params.num_images * pixels_per_image);
  factor.cross_size = params.cross_size;
  factor.line_size = params.line_size;

  factor.source = params.input;
  factor.source_stride = params.input_stride;
  factor.source_image = params.first_image;
  factor.channels = params.c_in;
  factor.weight = params.weight1;
  factor.bias = params.bias1;
  factor.filters = params.filters1;
  factor.taps = params.taps1;
  factor.along_line = false;
  factor.relu = params.mid_relu;
  factor.destination = params.mid;
  factor.destination_stride = mid_stride;
  factor.destination_image = 0;
  factor.stored = params.c_mid;
  const device::Status status = launch_shifted_conv2d<kConfiguration, input_t>(factor, stream);
  if (status != device::kSuccess) return status;

  factor.source = params.mid;
  factor.source_stride = mid_stride;
  factor.source_image = 0;
  factor.channels = params.c_mid;
  factor.weight = params.weight2;
  factor.bias = params.bias2;
  factor.filters = params.filters2;
  factor.taps = params.taps2;
  factor.along_line = true;
  factor.relu = params.relu;
  factor.destination = params.output;
  factor.destination_stride = params.output_stride;
  factor.destination_image = params.first_image;
  factor.stored = params.c_out;
  return launch_shifted_conv2d<kConfiguration, input_t>(factor, stream);
}

template <typename input_t, int kConfiguration = 0>
device::Status launch_configuration(const FactorizedConv2dParams& params,
                                    int configuration,
                                    device::Stream stream) {
  if constexpr (kConfiguration == kNumSm80Configurations) {
    return device::kInvalidValue;
  } else {
    if (configuration != kConfiguration) {
      return launch_configuration<input_t, kConfiguration + 1>(params, configuration, stream);
    }
    if constexpr (kSm80Configurations[kConfiguration].bands) {
      return launch_bands<kConfiguration, input_t>(params, stream);
    } else {
      return launch_two<kConfiguration, input_t>(params, stream);
    }
  }
}

// Runs `configuration`, a row of kSm80Configurations, on `stream`. A problem that it does not take
// is kInvalidValue, and nothing is launched.
template <typename input_t>
device::Status launch_factorized_conv2d(const FactorizedConv2dParams& params,
                                        int configuration,
                                        device::Stream stream) {
  return launch_configuration<input_t>(params, configuration, stream);
}

}  // namespace fused_inception
