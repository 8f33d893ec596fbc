// SPDX-License-Identifier: Apache-2.0
// `fused_inception::_grid_reduction_cuda_out`: checks, and launches on the current stream. Python
// has the schema, chooses the configuration and allocates; see cuda_launch.py.
#include "common/checks.h"
#include "common/operands.h"
#include "grid_reduction/configuration.h"
#include "grid_reduction/launch.h"

#include <torch/csrc/stable/library.h>

#include <vector>

namespace fused_inception {
namespace {

constexpr const char* kOp = "grid_reduction";

void grid_reduction_cuda_out(Tensor input,
                             Tensor weight,
                             std::optional<Tensor> bias,
                             Tensor conv,
                             Tensor pooled,
                             bool max,
                             bool relu,
                             int64_t configuration) {
  const ScalarType type = input.scalar_type();
  check_16_bit(kOp, type);
  check_kind(kOp, "input", input, type, 4);
  check_kind(kOp, "weight", weight, type, 4);
  const int64_t batch = input.size(0), channels = input.size(1), filters = weight.size(0);
  const int64_t kernel = weight.size(2);
  check(kernel % 2 == 1 && weight.size(3) == kernel && input.size(2) >= kernel &&
            input.size(3) >= kernel,
        kOp,
        ": weight must be kxk with k odd and no larger than the map, got shapes ",
        List{weight.sizes()},
        " and ",
        List{input.sizes()});
  check_input_map(kOp, input);
  check_channels(kOp, {channels, filters});
  check_weight(kOp, "weight", weight, channels);
  check_bias(kOp, "bias", bias, type, filters);
  check_map(kOp, "input", input);
  check_alignment(kOp, "input", input.const_data_ptr());

  GridReductionParams params = {};
  params.input = filtered_map(input, {kernel, kernel}, {2, 2}, {0, 0});
  const int64_t height = params.input.out_cross_size, width = params.input.out_line_size;
  check_destination(kOp, "conv", conv, type, {batch, filters, height, width});
  check_destination(kOp, "pooled", pooled, type, {batch, channels, height, width});
  params.weight = weight.const_data_ptr();
  params.bias = pointer(bias);
  params.conv = segment_of(conv, 0, filters, relu);
  params.pooled = pooled.mutable_data_ptr();
  params.pooled_stride = map_strides(pooled);
  params.max = max;
  run_on_device(kOp,
                input,
                {{"weight", weight}, {"bias", bias}, {"conv", conv}, {"pooled", pooled}},
                height * width,
                configuration,
                [&](int64_t first, int32_t images, auto element, cudaStream_t stream) {
                  params.input.first_image = params.conv.first_image = first;
                  params.input.num_images = images;
                  using Element = decltype(element);
                  const int number = static_cast<int>(configuration);
                  if (number < kNumGridReductionConfigurations)
                    return launch_grid_reduction<Element>(params, number, stream);
                  check_has_wgmma(kOp, configuration, input.get_device_index());
                  return launch_grid_reduction_sm90<Element>(
                      params, number - kNumGridReductionConfigurations, stream);
                });
}

// Four numbers a configuration: see `tile_numbers`.
std::vector<int64_t> grid_reduction_cuda_configurations() {
  return tile_numbers(kGridReductionConfigurations, kGridReductionSm90Configurations);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_inception, CompositeExplicitAutograd, m) {
  m.impl("_grid_reduction_cuda_configurations", TORCH_BOX(&grid_reduction_cuda_configurations));
}

STABLE_TORCH_LIBRARY_IMPL(fused_inception, CUDA, m) {
  m.impl("_grid_reduction_cuda_out", TORCH_BOX(&grid_reduction_cuda_out));
}

}  // namespace fused_inception
