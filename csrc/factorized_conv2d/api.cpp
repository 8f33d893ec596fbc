// SPDX-License-Identifier: Apache-2.0
// `fused_inception::_factorized_conv2d_cuda_out`: checks, and launches on the current stream.
// Python has the schema, chooses the configuration and allocates; see cuda_launch.py.
#include "common/checks.h"
#include "common/dispatch.h"
#include "common/operands.h"
#include "factorized_conv2d/configuration.h"
#include "factorized_conv2d/launch.h"
#include "factorized_conv2d/params.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <vector>

namespace fused_inception {
namespace {

constexpr const char* kOp = "factorized_conv2d";
// Strides of a map as the kernels count: lines along the height where the row filter comes first.
MapStrides pair_strides(const Tensor& map, bool row_first) {
  const MapStrides rows = map_strides(map);
  return row_first ? MapStrides{rows.image, rows.line, rows.cross} : rows;
}

void factorized_conv2d_cuda_out(Tensor input,
                                Tensor weight1,
                                std::optional<Tensor> bias1,
                                Tensor weight2,
                                std::optional<Tensor> bias2,
                                std::optional<Tensor> mid,
                                Tensor out,
                                int64_t channel_offset,
                                bool mid_relu,
                                bool relu,
                                int64_t configuration) {
  const ScalarType type = input.scalar_type();
  check_16_bit(kOp, type);
  check_kind(kOp, "input", input, type, 4);
  check_kind(kOp, "weight1", weight1, type, 4);
  check_kind(kOp, "weight2", weight2, type, 4);
  check_kind(kOp, "out", out, type, 4);
  const int64_t batch = input.size(0), c_in = input.size(1);
  const int64_t height = input.size(2), width = input.size(3);
  const int64_t filters1 = weight1.size(0), c_mid = padded(filters1), filters2 = weight2.size(0);

  const bool row_first = weight1.size(2) == 1 && weight2.size(3) == 1;
  check(row_first || (weight1.size(3) == 1 && weight2.size(2) == 1),
        kOp,
        ": weight1 and weight2 must be a 1xn filter and an mx1 one, or nx1 and 1xm, got shapes ",
        List{weight1.sizes()},
        " and ",
        List{weight2.sizes()});
  const int64_t taps1 = weight1.size(2) * weight1.size(3);
  const int64_t taps2 = weight2.size(2) * weight2.size(3);
  check(taps1 % 2 == 1 && taps2 % 2 == 1,
        kOp,
        ": filters must have odd lengths, got ",
        taps1,
        " and ",
        taps2);
  check_input_map(kOp, input);
  check_channels(kOp, {c_in, filters1, filters2});
  check_weight(kOp, "weight1", weight1, c_in);
  check_weight(kOp, "weight2", weight2, c_mid);
  check_bias(kOp, "bias1", bias1, type, filters1);
  check_bias(kOp, "bias2", bias2, type, filters2);

  check(out.size(0) == batch && out.size(2) == height && out.size(3) == width,
        kOp,
        ": out must have the batch and the map of input, ",
        List{input.sizes()},
        ", got shape ",
        List{out.sizes()});
  check(channel_offset >= 0 && channel_offset % kChannelMultiple == 0 &&
            channel_offset + padded(filters2) <= out.size(1),
        kOp,
        ": out must have room for ",
        padded(filters2),
        " channels at a multiple of ",
        kChannelMultiple,
        ", got shape ",
        List{out.sizes()},
        " and channel_offset ",
        channel_offset);
  check_map(kOp, "input", input);
  check_map(kOp, "out", out);
  check_alignment(kOp, "input", input.const_data_ptr());
  check_alignment(kOp, "out", out.const_data_ptr());

  const int64_t cross_size = row_first ? width : height;
  const int64_t line_size = row_first ? height : width;
  int64_t images = std::max<int64_t>(1, kMaxPixels / (height * width));
  if (mid) {
    check_kind(kOp, "mid", *mid, type, 4);
    check(mid->size(0) >= 1 && mid->size(1) == cross_size && mid->size(2) == line_size &&
              mid->size(3) == c_mid,
          kOp,
          ": mid must have the shape (images, ",
          cross_size,
          ", ",
          line_size,
          ", ",
          c_mid,
          "), got ",
          List{mid->sizes()});
    check(
        mid->is_contiguous(), kOp, ": mid must be contiguous, got strides ", List{mid->strides()});
    check_alignment(kOp, "mid", mid->const_data_ptr());
    images = std::min(images, mid->size(0));
  }

  check(input.is_cuda(), kOp, ": input must be on a CUDA device, got ", device_name(input));
  check_device(kOp, "weight1", weight1, input);
  check_device(kOp, "weight2", weight2, input);
  check_device(kOp, "out", out, input);
  if (bias1) check_device(kOp, "bias1", *bias1, input);
  if (bias2) check_device(kOp, "bias2", *bias2, input);
  if (mid) check_device(kOp, "mid", *mid, input);

  const int32_t device = input.get_device_index();
  const DeviceGuard guard(device);
  if (configuration >= kNumSm80Configurations) check_has_wgmma(kOp, configuration, device);
  if (batch == 0) return;

  FactorizedConv2dParams params{
      .input = input.const_data_ptr(),
      .weight1 = weight1.const_data_ptr(),
      .bias1 = pointer(bias1),
      .weight2 = weight2.const_data_ptr(),
      .bias2 = pointer(bias2),
      .output = static_cast<char*>(out.mutable_data_ptr()) +
                channel_offset * static_cast<int64_t>(out.element_size()),
      .mid = mid ? mid->mutable_data_ptr() : nullptr,
      .input_stride = pair_strides(input, row_first),
      .output_stride = pair_strides(out, row_first),
      .first_image = 0,
      .num_images = 0,
      .cross_size = static_cast<int32_t>(cross_size),
      .line_size = static_cast<int32_t>(line_size),
      .c_in = static_cast<int32_t>(c_in),
      .filters1 = static_cast<int32_t>(filters1),
      .c_mid = static_cast<int32_t>(c_mid),
      .filters2 = static_cast<int32_t>(filters2),
      .c_out = static_cast<int32_t>(padded(filters2)),
      .taps1 = static_cast<int32_t>(taps1),
      .taps2 = static_cast<int32_t>(taps2),
      .mid_relu = mid_relu,
      .relu = relu,
  };
  const cudaStream_t stream = current_stream(device);
  for (int64_t first = 0; first < batch; first += images) {
    params.first_image = first;
    params.num_images = static_cast<int32_t>(std::min(images, batch - first));
    const cudaError_t error = dispatch_16_bit(kOp, type, [&](auto element) {
      using Element = decltype(element);
      const int number = static_cast<int>(configuration);
      return number < kNumSm80Configurations
                 ? launch_factorized_conv2d<Element>(params, number, stream)
                 : launch_factorized_conv2d_sm90<Element>(
                       params, number - kNumSm80Configurations, stream);
    });
    check_launched(kOp, error, configuration, device);
  }
}

// Four numbers a configuration: whether it works in bands, pixels and filters of its tile, and
// bytes of shared memory with `c_mid` channels.
std::vector<int64_t> factorized_conv2d_cuda_configurations(int64_t c_mid) {
  check(c_mid >= 1 && c_mid <= kMaxChannels, kOp, ": c_mid must be 1 to 2^20, got ", c_mid);
  std::vector<int64_t> numbers;
  for (const Sm80Configuration& row : kSm80Configurations) {
    numbers.insert(numbers.end(),
                   {row.bands,
                    row.tile.block_m,
                    row.tile.block_n,
                    shared_bytes(row, static_cast<int>(c_mid))});
  }
  return numbers;
}

// Six numbers a configuration of sm_90a, which are numbered after those above: lines of a band (0:
// none fits), pixels and filters of its tile, bytes of shared memory, the blocks that share out the
// filters of a band, and those that load filters together.
std::vector<int64_t> factorized_conv2d_cuda_sm90_configurations(int64_t c_in,
                                                                int64_t c_mid,
                                                                int64_t taps1,
                                                                int64_t taps2,
                                                                int64_t cross_size,
                                                                int64_t line_size) {
  for (int64_t channels : {c_in, c_mid})
    check(channels >= 1 && channels <= kMaxChannels, kOp, ": channels must be 1 to 2^20");
  for (int64_t size : {taps1, taps2, cross_size, line_size})
    check(size >= 1 && size <= 1024, kOp, ": taps and sides must be 1 to 1024, got ", size);
  FactorizedConv2dParams params = {};
  params.c_in = static_cast<int32_t>(c_in);
  params.c_mid = static_cast<int32_t>(c_mid);
  params.taps1 = static_cast<int32_t>(taps1);
  params.taps2 = static_cast<int32_t>(taps2);
  params.cross_size = static_cast<int32_t>(cross_size);
  params.line_size = static_cast<int32_t>(line_size);
  std::vector<int64_t> numbers;
  for (const Sm90Configuration& row : kSm90Configurations) {
    const Sm90Band band = sm90_band(row.pixels, params);
    numbers.insert(numbers.end(),
                   {band.lines,
                    row.pixels,
                    row.filters(),
                    shared_bytes(row, params),
                    row.split,
                    row.multicast});
  }
  return numbers;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_inception, CompositeExplicitAutograd, m) {
  m.impl("_factorized_conv2d_cuda_sm90_configurations",
         TORCH_BOX(&factorized_conv2d_cuda_sm90_configurations));
  m.impl("_factorized_conv2d_cuda_configurations",
         TORCH_BOX(&factorized_conv2d_cuda_configurations));
}

STABLE_TORCH_LIBRARY_IMPL(fused_inception, CUDA, m) {
  m.impl("_factorized_conv2d_cuda_out", TORCH_BOX(&factorized_conv2d_cuda_out));
}

}  // namespace fused_inception
