// SPDX-License-Identifier: Apache-2.0
// `fused_inception::_conv2d_act_cuda_out`: checks, and launches on the current stream. Python has
// the schema, chooses the configuration and allocates; see cuda_launch.py.
#include "common/checks.h"
#include "common/operands.h"
#include "conv2d_act/configuration.h"
#include "conv2d_act/launch.h"

#include <torch/csrc/stable/library.h>

#include <vector>

namespace fused_inception {
namespace {

constexpr const char* kOp = "conv2d_act";

// `outs` are the destinations of the segments, one to four, which have `sizes` filters. Bit i of
// `relus` says whether segment i has a ReLU.
void conv2d_act_cuda_out(Tensor input,
                         Tensor weight,
                         std::optional<Tensor> bias,
                         std::vector<Tensor> outs,
                         std::vector<int64_t> sizes,
                         int64_t relus,
                         std::vector<int64_t> stride,
                         std::vector<int64_t> padding,
                         int64_t configuration) {
  const ScalarType type = input.scalar_type();
  check_16_bit(kOp, type);
  check_kind(kOp, "input", input, type, 4);
  check_kind(kOp, "weight", weight, type, 4);
  const int64_t batch = input.size(0), channels = input.size(1), filters = weight.size(0);
  check_input_map(kOp, input);
  check_channels(kOp, {channels, filters});
  check_weight(kOp, "weight", weight, channels);
  check_bias(kOp, "bias", bias, type, filters);
  check_map(kOp, "input", input);
  check_alignment(kOp, "input", input.const_data_ptr());
  check(stride.size() == 2 && padding.size() == 2 && stride[0] >= 1 && stride[1] >= 1,
        kOp,
        ": stride and padding must be pairs, and strides at least 1");
  const int64_t taps[] = {weight.size(2), weight.size(3)};
  const int64_t step[] = {stride[0], stride[1]}, pad[] = {padding[0], padding[1]};
  bool fits = true;
  for (int i : {0, 1}) {
    fits = fits && pad[i] >= 0 && pad[i] <= kMaxPixels && taps[i] <= kMaxPixels &&
           input.size(2 + i) + 2 * pad[i] >= taps[i];
  }
  fits = fits && (input.size(2) + 2 * pad[0]) * (input.size(3) + 2 * pad[1]) <= kMaxPixels;
  check(fits,
        kOp,
        ": the map with its padding must be no smaller than the filter and of at most 2^30 "
        "pixels, got shape ",
        List{input.sizes()},
        ", weight ",
        List{weight.sizes()},
        " and padding ",
        List{padding});

  // The channels of all taps are counted together.
  check(taps[0] * taps[1] * channels <= kMaxPixels,
        kOp,
        ": a filter must have at most 2^30 weights, got shape ",
        List{weight.sizes()});

  ConvolutionParams params = {};
  params.input = filtered_map(input, taps, step, pad);
  params.weight = weight.const_data_ptr();
  params.bias = pointer(bias);
  const int64_t height = params.input.out_cross_size, width = params.input.out_line_size;
  check(!outs.empty() && outs.size() <= kMaxSegments && outs.size() == sizes.size(),
        kOp,
        ": outs must be one to four with a size each, got ",
        outs.size(),
        " and ",
        sizes.size());
  int64_t begin = 0;
  for (size_t i = 0; i < outs.size(); ++i) {
    check(sizes[i] >= 1, kOp, ": a segment must have filters, got sizes ", List{sizes});
    check_destination(kOp, "out", outs[i], type, {batch, sizes[i], height, width});
    params.segments[i] = segment_of(outs[i], begin, sizes[i], (relus >> i & 1) != 0);
    begin += sizes[i];
  }
  params.num_segments = static_cast<int32_t>(outs.size());
  check(begin == filters,
        kOp,
        ": segments must make the ",
        filters,
        " filters of weight, got sizes ",
        List{sizes});
  NamedTensors tensors = {{"weight", weight}, {"bias", bias}};
  for (const Tensor& out : outs) {
    tensors.emplace_back("out", out);
  }
  run_on_device(kOp,
                input,
                tensors,
                height * width,
                configuration,
                [&](int64_t first, int32_t images, auto element, cudaStream_t stream) {
                  params.input.first_image = first;
                  params.input.num_images = images;
                  for (Segment& segment : params.segments)
                    segment.first_image = first;
                  using Element = decltype(element);
                  const int number = static_cast<int>(configuration);
                  if (number < kNumConv2dActConfigurations)
                    return launch_conv2d_act<Element>(params, number, stream);
                  check_has_wgmma(kOp, configuration, input.get_device_index());
                  return launch_conv2d_act_sm90<Element>(
                      params, number - kNumConv2dActConfigurations, stream);
                });
}

// Four numbers a configuration: see `tile_numbers`.
std::vector<int64_t> conv2d_act_cuda_configurations() {
  return tile_numbers(kConv2dActConfigurations, kConv2dActSm90Configurations);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_inception, CompositeExplicitAutograd, m) {
  m.impl("_conv2d_act_cuda_configurations", TORCH_BOX(&conv2d_act_cuda_configurations));
}

STABLE_TORCH_LIBRARY_IMPL(fused_inception, CUDA, m) {
  m.impl("_conv2d_act_cuda_out", TORCH_BOX(&conv2d_act_cuda_out));
}

}  // namespace fused_inception
