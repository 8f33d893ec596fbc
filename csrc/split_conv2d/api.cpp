// SPDX-License-Identifier: Apache-2.0
// `fused_inception::_split_conv2d_cuda_out`: checks, and launches on the current stream. Python has
// the schema, chooses the configuration and allocates; see cuda_launch.py.
#include "common/checks.h"
#include "common/operands.h"
#include "split_conv2d/configuration.h"
#include "split_conv2d/launch.h"

#include <torch/csrc/stable/library.h>

#include <vector>

namespace fused_inception {
namespace {

constexpr const char* kOp = "split_conv2d";

void split_conv2d_cuda_out(Tensor input,
                           Tensor weight_row,
                           std::optional<Tensor> bias_row,
                           Tensor weight_col,
                           std::optional<Tensor> bias_col,
                           Tensor row,
                           Tensor col,
                           bool relu,
                           int64_t configuration) {
  const ScalarType type = input.scalar_type();
  check_16_bit(kOp, type);
  check_kind(kOp, "input", input, type, 4);
  check_kind(kOp, "weight_row", weight_row, type, 4);
  check_kind(kOp, "weight_col", weight_col, type, 4);
  const int64_t batch = input.size(0), channels = input.size(1);
  const int64_t height = input.size(2), width = input.size(3);
  const int64_t c_row = weight_row.size(0), c_col = weight_col.size(0);
  const int64_t taps_row = weight_row.size(3), taps_col = weight_col.size(2);
  check(
      weight_row.size(2) == 1 && weight_col.size(3) == 1 && taps_row % 2 == 1 && taps_col % 2 == 1,
      kOp,
      ": weight_row and weight_col must be 1xn and mx1, n and m odd, got shapes ",
      List{weight_row.sizes()},
      " and ",
      List{weight_col.sizes()});
  check_input_map(kOp, input);
  check_channels(kOp, {channels, c_row, c_col});
  check_weight(kOp, "weight_row", weight_row, channels);
  check_weight(kOp, "weight_col", weight_col, channels);
  check_bias(kOp, "bias_row", bias_row, type, c_row);
  check_bias(kOp, "bias_col", bias_col, type, c_col);
  check_map(kOp, "input", input);
  check_alignment(kOp, "input", input.const_data_ptr());
  check_destination(kOp, "row", row, type, {batch, c_row, height, width});
  check_destination(kOp, "col", col, type, {batch, c_col, height, width});
  const int64_t strides[] = {row.stride(0), row.stride(1), row.stride(2), row.stride(3)};
  check_strides(kOp, "col", col, strides);

  SplitConv2dParams params = {};
  params.input = filtered_map(input, {1, 1}, {1, 1}, {0, 0});
  params.row = {weight_row.const_data_ptr(),
                pointer(bias_row),
                static_cast<int32_t>(taps_row),
                segment_of(row, 0, c_row, relu)};
  params.col = {weight_col.const_data_ptr(),
                pointer(bias_col),
                static_cast<int32_t>(taps_col),
                segment_of(col, 0, c_col, relu)};
  run_on_device(kOp,
                input,
                {{"weight_row", weight_row},
                 {"weight_col", weight_col},
                 {"bias_row", bias_row},
                 {"bias_col", bias_col},
                 {"row", row},
                 {"col", col}},
                height * width,
                configuration,
                [&](int64_t first, int32_t images, auto element, cudaStream_t stream) {
                  params.input.first_image = first;
                  params.row.output.first_image = params.col.output.first_image = first;
                  params.input.num_images = images;
                  using Element = decltype(element);
                  const int number = static_cast<int>(configuration);
                  if (number < kNumSplitConv2dConfigurations)
                    return launch_split_conv2d<Element>(params, number, stream);
                  check_has_wgmma(kOp, configuration, input.get_device_index());
                  return launch_split_conv2d_sm90<Element>(
                      params, number - kNumSplitConv2dConfigurations, stream);
                });
}

// Five numbers a configuration: whether it is on wgmma, whether it takes whole images, pixels and
// filters of its tile (those of both halves), and bytes of shared memory with so many channels and
// taps.
std::vector<int64_t> split_conv2d_cuda_configurations(int64_t channels,
                                                      int64_t taps_row,
                                                      int64_t taps_col) {
  check(channels >= 1 && channels <= kMaxChannels,
        kOp,
        ": channels must be 1 to 2^20, got ",
        channels);
  for (int64_t taps : {taps_row, taps_col})
    check(taps >= 1 && taps <= SplitPatches::kMaxTaps,
          kOp,
          ": taps must be 1 to ",
          SplitPatches::kMaxTaps,
          ", got ",
          taps);
  std::vector<int64_t> numbers;
  const auto add = [&](const SplitConv2dConfiguration& row) {
    const int64_t bytes = shared_bytes(
        row, static_cast<int>(channels), static_cast<int>(taps_row), static_cast<int>(taps_col));
    numbers.insert(
        numbers.end(),
        {row.tile.engine == Engine::kWgmma, row.whole, row.tile.block_m, row.tile.block_n, bytes});
  };
  for (const SplitConv2dConfiguration& row : kSplitConv2dConfigurations)
    add(row);
  for (const SplitConv2dConfiguration& row : kSplitConv2dSm90Configurations)
    add(row);
  return numbers;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_inception, CompositeExplicitAutograd, m) {
  m.impl("_split_conv2d_cuda_configurations", TORCH_BOX(&split_conv2d_cuda_configurations));
}

STABLE_TORCH_LIBRARY_IMPL(fused_inception, CUDA, m) {
  m.impl("_split_conv2d_cuda_out", TORCH_BOX(&split_conv2d_cuda_out));
}

}  // namespace fused_inception
