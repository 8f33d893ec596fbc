// SPDX-License-Identifier: Apache-2.0
// Tensors as operands of a convolution: checks, and what the kernels need of them.
#pragma once

#include "common/checks.h"
#include "common/convolution.h"
#include "common/dispatch.h"
#include "common/tile.h"

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <utility>
#include <vector>

namespace fused_inception {

// Pixels of one launch: keeps their numbers, and the last tile's overhang, inside int32.
constexpr int64_t kMaxPixels = int64_t{1} << 30;
// Channels come in whole 16-byte pieces.
constexpr int64_t kChannelMultiple = 8;
// Keeps every offset inside one image or one filter's weights far from the end of int64.
constexpr int64_t kMaxChannels = int64_t{1} << 20;

inline int64_t padded(int64_t channels) {
  return (channels + kChannelMultiple - 1) / kChannelMultiple * kChannelMultiple;
}

inline const void* pointer(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr() : nullptr;
}

// Strides of a map whose lines are its rows.
inline MapStrides map_strides(const Tensor& map) {
  return {map.stride(0), map.stride(2), map.stride(3)};
}

// A map of whole 16-byte pieces: channel stride 1, the others in multiples of 8 elements.
inline void check_map(const char* op, const char* name, const Tensor& map) {
  bool whole = map.size(1) == 1 || map.stride(1) == 1;
  for (int64_t i : {0, 2, 3}) {
    whole = whole && (map.size(i) <= 1 || map.stride(i) % kChannelMultiple == 0);
  }
  check(whole,
        op,
        ": ",
        name,
        " must be channels_last with strides in multiples of ",
        kChannelMultiple,
        ", got shape ",
        List{map.sizes()},
        " and strides ",
        List{map.strides()});
}

// A weight [filter][tap][channel] with `channels` channels.
inline void check_weight(const char* op, const char* name, const Tensor& weight, int64_t channels) {
  const int64_t taps = weight.size(2) * weight.size(3);
  check(weight.size(1) == channels && weight.size(0) >= 1,
        op,
        ": ",
        name,
        " must take ",
        channels,
        " channels, got shape ",
        List{weight.sizes()});
  const int64_t strides[] = {taps * channels, 1, weight.size(3) * channels, channels};
  check_strides(op, name, weight, strides);
  check_alignment(op, name, weight.const_data_ptr());
}

inline void check_bias(const char* op,
                       const char* name,
                       const std::optional<Tensor>& bias,
                       ScalarType type,
                       int64_t filters) {
  if (!bias) return;
  check_kind(op, name, *bias, type, 1);
  const int64_t strides[] = {1};
  check(bias->size(0) == filters,
        op,
        ": ",
        name,
        " must have ",
        filters,
        " values, got ",
        bias->size(0));
  check_strides(op, name, *bias, strides);
}

// An input's channels and map; its strides are check_map's.
inline void check_input_map(const char* op, const Tensor& input) {
  const int64_t height = input.size(2), width = input.size(3);
  check(input.size(1) % kChannelMultiple == 0 && height >= 1 && width >= 1 &&
            height * width <= kMaxPixels,
        op,
        ": input must have channels in multiples of ",
        kChannelMultiple,
        " and a map of 1 to 2^30 pixels, got shape ",
        List{input.sizes()});
}

inline void check_channels(const char* op, std::initializer_list<int64_t> numbers) {
  check(std::max(numbers) <= kMaxChannels,
        op,
        ": channels must number at most 2^20, got ",
        List{IntHeaderOnlyArrayRef(numbers.begin(), numbers.size())});
}

// Where `channels` channels of a (batch, channels, height, width) map are written.
inline void check_destination(const char* op,
                              const char* name,
                              const Tensor& out,
                              ScalarType type,
                              const int64_t (&shape)[4]) {
  check_kind(op, name, out, type, 4);
  check(out.size(0) == shape[0] && out.size(1) >= padded(shape[1]) && out.size(2) == shape[2] &&
            out.size(3) == shape[3],
        op,
        ": ",
        name,
        " must have the shape ",
        List{shape},
        " with channels in multiples of ",
        kChannelMultiple,
        ", got ",
        List{out.sizes()});
  check_map(op, name, out);
  check_alignment(op, name, out.const_data_ptr());
}

// The convolution of `input` by filters of rows x columns, without the images of a launch.
inline FilteredMap filtered_map(const Tensor& input,
                                const int64_t (&taps)[2],
                                const int64_t (&step)[2],
                                const int64_t (&pad)[2]) {
  const int64_t height = input.size(2), width = input.size(3);
  FilteredMap map = {};
  map.data = input.const_data_ptr();
  map.stride = map_strides(input);
  map.cross_size = static_cast<int32_t>(height);
  map.line_size = static_cast<int32_t>(width);
  map.out_cross_size = static_cast<int32_t>((height + 2 * pad[0] - taps[0]) / step[0] + 1);
  map.out_line_size = static_cast<int32_t>((width + 2 * pad[1] - taps[1]) / step[1] + 1);
  // A larger step, with which one position fits, would not be an int32.
  map.cross_step = static_cast<int32_t>(std::min(step[0], kMaxPixels));
  map.line_step = static_cast<int32_t>(std::min(step[1], kMaxPixels));
  map.cross_pad = static_cast<int32_t>(pad[0]);
  map.line_pad = static_cast<int32_t>(pad[1]);
  map.cross_taps = static_cast<int32_t>(taps[0]);
  map.line_taps = static_cast<int32_t>(taps[1]);
  map.channels = static_cast<int32_t>(input.size(1));
  return map;
}

// Where filters [begin, begin + filters) go.
inline Segment segment_of(const Tensor& out, int64_t begin, int64_t filters, bool relu) {
  return {out.mutable_data_ptr(),
          map_strides(out),
          0,
          static_cast<int32_t>(begin),
          static_cast<int32_t>(begin + filters),
          static_cast<int32_t>(padded(filters)),
          relu};
}

inline void check_launched(const char* op,
                           cudaError_t error,
                           int64_t configuration,
                           int32_t device) {
  check(error == cudaSuccess,
        op,
        ": configuration ",
        configuration,
        " failed on cuda:",
        device,
        " (built for ",
        FUSED_INCEPTION_ARCHITECTURES,
        "): ",
        cudaGetErrorName(error),
        ", ",
        cudaGetErrorString(error));
}

// Refuses a configuration on wgmma for any device but those that have it.
inline void check_has_wgmma(const char* op, int64_t configuration, int32_t device) {
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  check(major == 9 && minor == 0,
        op,
        ": configuration ",
        configuration,
        " takes a device of compute capability 9.0, got ",
        major,
        ".",
        minor);
}

// Four numbers a row of tables of tiles: whether it is on wgmma, pixels, filters, and bytes of
// shared memory.
template <size_t... kRows>
std::vector<int64_t> tile_numbers(const TileShape (&... tables)[kRows]) {
  std::vector<int64_t> numbers;
  const auto add = [&](const auto& table) {
    for (const TileShape& tile : table) {
      numbers.insert(
          numbers.end(),
          {tile.engine == Engine::kWgmma, tile.block_m, tile.block_n, tile.fixed_shared_bytes()});
    }
  };
  (add(tables), ...);
  return numbers;
}

using NamedTensors = std::vector<std::pair<const char*, std::optional<Tensor>>>;

// Checks the devices of `tensors`, then runs `launch(first image, images, stream)` on as many
// images at a time as keep `pixels` of each within a launch.
template <typename Launch>
void run_in_parts(const char* op,
                  const Tensor& input,
                  const NamedTensors& tensors,
                  int64_t pixels,
                  int64_t configuration,
                  const Launch& launch) {
  check(input.is_cuda(), op, ": input must be on a CUDA device, got ", device_name(input));
  for (const auto& [name, tensor] : tensors) {
    if (tensor) check_device(op, name, *tensor, input);
  }
  const int32_t device = input.get_device_index();
  const DeviceGuard guard(device);
  const int64_t batch = input.size(0);
  if (batch == 0) return;
  const cudaStream_t stream = current_stream(device);
  const int64_t images = std::max<int64_t>(1, kMaxPixels / pixels);
  for (int64_t first = 0; first < batch; first += images) {
    const auto count = static_cast<int32_t>(std::min(images, batch - first));
    check_launched(op, launch(first, count, stream), configuration, device);
  }
}

// The same with `launch(first image, images, element, stream)`, `element` a value of the element
// type, of 16 bits.
template <typename Launch>
void run_on_device(const char* op,
                   const Tensor& input,
                   const NamedTensors& tensors,
                   int64_t pixels,
                   int64_t configuration,
                   const Launch& launch) {
  run_in_parts(op,
               input,
               tensors,
               pixels,
               configuration,
               [&](int64_t first, int32_t images, cudaStream_t stream) {
                 return dispatch_16_bit(op, input.scalar_type(), [&](auto element) {
                   return launch(first, images, element, stream);
                 });
               });
}

}  // namespace fused_inception
