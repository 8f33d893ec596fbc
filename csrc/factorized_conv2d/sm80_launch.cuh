// SPDX-License-Identifier: Apache-2.0
// Starts the sm_80 kernels of the pair: from a configuration to a grid and its shared memory.
#pragma once

#include "common/convolution_launch.cuh"
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
  const int32_t lines_per_band = kRow.tile.block_m / params.line_size;
  const int64_t bytes = shared_bytes(kRow, params.c_mid);
  if (lines_per_band == 0 || bytes > INT32_MAX) return device::kInvalidValue;
  return device::launch(factorized_conv2d_bands_kernel<kConfiguration, input_t>,
                        (num_lines + lines_per_band - 1) / lines_per_band,
                        kRow.tile.threads(),
                        static_cast<int>(bytes),
                        stream,
                        params);
}

template <int kConfiguration, typename input_t>
device::Status launch_two(const FactorizedConv2dParams& params, device::Stream stream) {
  if (params.mid == nullptr) return device::kInvalidValue;
  constexpr TileShape kTile = kSm80Configurations[kConfiguration].tile;
  constexpr auto kKernel = shifted_conv2d_kernel<kConfiguration, input_t>;
  const int64_t line_channels = static_cast<int64_t>(params.line_size) * params.c_mid;
  const MapStrides mid_stride = {params.cross_size * line_channels, line_channels, params.c_mid};

  ConvolutionParams factor = {};
  factor.input = first_factor_input(params);
  factor.weight = params.weight1;
  factor.bias = params.bias1;
  factor.num_segments = 1;
  factor.segments[0] = {
      params.mid, mid_stride, 0, 0, params.filters1, params.c_mid, params.mid_relu};
  const device::Status status = launch_convolution(kKernel, kTile, factor, stream);
  if (status != device::kSuccess) return status;

  factor.input.data = params.mid;
  factor.input.stride = mid_stride;
  factor.input.first_image = 0;
  factor.input.channels = params.c_mid;
  factor.input.cross_taps = 1;
  factor.input.cross_pad = 0;
  factor.input.line_taps = params.taps2;
  factor.input.line_pad = params.taps2 / 2;
  factor.weight = params.weight2;
  factor.bias = params.bias2;
  factor.segments[0] = {params.output,
                        params.output_stride,
                        params.first_image,
                        0,
                        params.filters2,
                        params.c_out,
                        params.relu};
  return launch_convolution(kKernel, kTile, factor, stream);
}

// Runs `configuration`, a row of kSm80Configurations, on `stream`. A problem that it does not take
// is kInvalidValue, and nothing is launched.
template <typename input_t>
device::Status launch_factorized_conv2d(const FactorizedConv2dParams& params,
                                        int configuration,
                                        device::Stream stream) {
  return with_configuration<kNumSm80Configurations>(configuration, [&](auto number) {
    if constexpr (kSm80Configurations[number].bands) {
      return launch_bands<number, input_t>(params, stream);
    } else {
      return launch_two<number, input_t>(params, stream);
    }
  });
}

}  // namespace fused_inception
