// SPDX-License-Identifier: Apache-2.0
// `fused_inception::_halving_branches_cuda_out`: checks, and launches on the current stream. Python
// has the schema, chooses the configuration and allocates; see cuda_launch.py.
#include "common/checks.h"
#include "common/operands.h"
#include "halving_branches/configuration.h"
#include "halving_branches/launch.h"

#include <torch/csrc/stable/library.h>

#include <vector>

namespace fused_inception {
namespace {

constexpr const char* kOp = "halving_branches";

// `inputs`, `weights`, `biases` and `outs` are those of the convolutions, one to three; `input` is
// what is pooled.
void halving_branches_cuda_out(std::vector<Tensor> inputs,
                               std::vector<Tensor> weights,
                               std::vector<std::optional<Tensor>> biases,
                               std::vector<Tensor> outs,
                               Tensor input,
                               Tensor pooled,
                               int64_t configuration) {
  const size_t branches = inputs.size();
  check(branches >= 1 && branches <= kMaxBranches && weights.size() == branches &&
            biases.size() == branches && outs.size() == branches,
        kOp,
        ": inputs, weights, biases and outs must be one to ",
        kMaxBranches,
        " each, got ",
        branches,
        ", ",
        weights.size(),
        ", ",
        biases.size(),
        " and ",
        outs.size());
  const ScalarType type = input.scalar_type();
  check_16_bit(kOp, type);
  check_kind(kOp, "input", input, type, 4);
  const int64_t batch = input.size(0), channels = input.size(1);
  check_input_map(kOp, input);
  check_channels(kOp, {channels});
  check_map(kOp, "input", input);
  check_alignment(kOp, "input", input.const_data_ptr());
  check_kind(kOp, "weight", weights[0], type, 4);
  const int64_t kernel = weights[0].size(2);
  check(kernel % 2 == 1 && input.size(2) >= kernel && input.size(3) >= kernel,
        kOp,
        ": weights must be kxk with k odd and no larger than the map, got shapes ",
        List{weights[0].sizes()},
        " and ",
        List{input.sizes()});

  HalvingBranchesParams params = {};
  params.pool_input = filtered_map(input, {kernel, kernel}, {2, 2}, {0, 0});
  const int64_t height = params.pool_input.out_cross_size;
  const int64_t width = params.pool_input.out_line_size;
  check_destination(kOp, "pooled", pooled, type, {batch, channels, height, width});
  params.pooled = pooled.mutable_data_ptr();
  params.pooled_stride = map_strides(pooled);
  params.num_branches = static_cast<int32_t>(branches);
  NamedTensors tensors = {{"pooled", pooled}};
  for (size_t i = 0; i < branches; ++i) {
    const Tensor &x = inputs[i], &weight = weights[i], &out = outs[i];
    check_kind(kOp, "inputs", x, type, 4);
    check_kind(kOp, "weight", weight, type, 4);
    check_input_map(kOp, x);
    check(x.size(0) == batch && x.size(2) == input.size(2) && x.size(3) == input.size(3),
          kOp,
          ": inputs must have the batch and the map of input, got shapes ",
          List{x.sizes()},
          " and ",
          List{input.sizes()});
    check(weight.size(2) == kernel && weight.size(3) == kernel,
          kOp,
          ": weights must be kxk with one k, got shapes ",
          List{weights[0].sizes()},
          " and ",
          List{weight.sizes()});
    const int64_t filters = weight.size(0);
    check_channels(kOp, {x.size(1), filters});
    check_weight(kOp, "weight", weight, x.size(1));
    check_bias(kOp, "bias", biases[i], type, filters);
    check_map(kOp, "inputs", x);
    check_alignment(kOp, "inputs", x.const_data_ptr());
    check_destination(kOp, "out", out, type, {batch, filters, height, width});
    ConvolutionParams& branch = params.branches[i];
    branch.input = filtered_map(x, {kernel, kernel}, {2, 2}, {0, 0});
    branch.weight = weight.const_data_ptr();
    branch.bias = pointer(biases[i]);
    branch.num_segments = 1;
    branch.segments[0] = segment_of(out, 0, filters, true);
    tensors.insert(tensors.end(),
                   {{"inputs", x}, {"weight", weight}, {"bias", biases[i]}, {"out", out}});
  }
  // Keeps the blocks of a launch within int32 as well.
  const int64_t pieces = channels / kChannelMultiple;
  run_on_device(kOp,
                input,
                tensors,
                height * width * ((pieces + 63) / 64),
                configuration,
                [&](int64_t first, int32_t images, auto element, cudaStream_t stream) {
                  params.pool_input.first_image = first;
                  params.pool_input.num_images = images;
                  for (ConvolutionParams& branch : params.branches) {
                    branch.input.first_image = branch.segments[0].first_image = first;
                    branch.input.num_images = images;
                  }
                  return launch_halving_branches<decltype(element)>(
                      params, static_cast<int>(configuration), stream);
                });
}

// Four numbers a configuration: see `tile_numbers`.
std::vector<int64_t> halving_branches_cuda_configurations() {
  return tile_numbers(kHalvingBranchesConfigurations);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_inception, CompositeExplicitAutograd, m) {
  m.impl("_halving_branches_cuda_configurations", TORCH_BOX(&halving_branches_cuda_configurations));
}

STABLE_TORCH_LIBRARY_IMPL(fused_inception, CUDA, m) {
  m.impl("_halving_branches_cuda_out", TORCH_BOX(&halving_branches_cuda_out));
}

}  // namespace fused_inception
