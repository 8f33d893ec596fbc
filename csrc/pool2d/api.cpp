// SPDX-License-Identifier: Apache-2.0
// `fused_inception::_pool2d_cuda_out`: checks, and launches on the current stream. Python has the
// schema, chooses the form and allocates; see cuda_launch.py.
#include "common/checks.h"
#include "common/operands.h"
#include "pool2d/configuration.h"
#include "pool2d/launch.h"

#include <torch/csrc/stable/library.h>

#include <vector>

namespace fused_inception {
namespace {

constexpr const char* kOp = "pool2d";

// Calls `function` with a value of the element type, which may be float too.
template <typename Function>
auto dispatch_element(ScalarType type, Function&& function) {
  if (type == ScalarType::Float) return function(float{});
  return dispatch_16_bit(kOp, type, function);
}

// `form` is a row of kPool2dForms. `include_pad`, `relu` and `bias` concern an average alone.
void pool2d_cuda_out(Tensor input,
                     std::optional<Tensor> bias,
                     Tensor out,
                     std::vector<int64_t> kernel,
                     std::vector<int64_t> stride,
                     std::vector<int64_t> padding,
                     int64_t form,
                     bool include_pad,
                     bool relu) {
  const ScalarType type = input.scalar_type();
  check(type == ScalarType::Half || type == ScalarType::BFloat16 || type == ScalarType::Float,
        kOp,
        ": input must be float16, bfloat16 or float32, got ",
        dtype_name(type));
  check_kind(kOp, "input", input, type, 4);
  const int64_t batch = input.size(0), channels = input.size(1);
  check_input_map(kOp, input);
  check_channels(kOp, {channels});
  check_map(kOp, "input", input);
  check_alignment(kOp, "input", input.const_data_ptr());
  check(form >= 0 && form < kNumPool2dForms,
        kOp,
        ": form must be 0 to ",
        kNumPool2dForms - 1,
        ", got ",
        form);
  check(kernel.size() == 2 && stride.size() == 2 && padding.size() == 2,
        kOp,
        ": kernel, stride and padding must be pairs");
  const int64_t taps[] = {kernel[0], kernel[1]};
  const int64_t step[] = {stride[0], stride[1]}, pad[] = {padding[0], padding[1]};
  bool fits = true;
  for (int i : {0, 1}) {
    // No window is empty.
    fits = fits && taps[i] >= 1 && taps[i] <= kMaxPixels && step[i] >= 1 && pad[i] >= 0 &&
           2 * pad[i] <= taps[i] && input.size(2 + i) + 2 * pad[i] >= taps[i];
  }
  fits = fits && (input.size(2) + 2 * pad[0]) * (input.size(3) + 2 * pad[1]) <= kMaxPixels;
  check(fits,
        kOp,
        ": strides must be at least 1, padding at most half of the window, and the map with its "
        "padding no smaller than that and of at most 2^30 pixels, got shape ",
        List{input.sizes()},
        ", kernel ",
        List{kernel},
        ", stride ",
        List{stride},
        " and padding ",
        List{padding});
  const bool global = form == kGlobalAveragePool;
  check(!global ||
            (taps[0] == input.size(2) && taps[1] == input.size(3) && pad[0] == 0 && pad[1] == 0),
        kOp,
        ": the kernel of a global average must be the map without padding, got shape ",
        List{input.sizes()},
        ", kernel ",
        List{kernel},
        " and padding ",
        List{padding});
  if (bias) {
    check_kind(kOp, "bias", *bias, type, 1);
    const int64_t dense[] = {1};
    check_strides(kOp, "bias", *bias, dense);
    check(form == kAveragePool && padded(bias->size(0)) == channels,
          kOp,
          ": bias must have a value for every channel of an average, got ",
          bias->size(0),
          " for ",
          channels,
          " channels, a multiple of ",
          kChannelMultiple);
  }

  Pool2dParams params = {};
  params.input = filtered_map(input, taps, step, pad);
  const int64_t height = params.input.out_cross_size, width = params.input.out_line_size;
  check_destination(kOp, "out", out, type, {batch, channels, height, width});
  params.output = out.mutable_data_ptr();
  params.output_stride = map_strides(out);
  params.bias = pointer(bias);
  params.biased = bias ? static_cast<int32_t>(bias->size(0)) : 0;
  params.include_pad = include_pad;
  params.relu = relu;
  // Keeps the blocks of a launch within int32 as well.
  const int64_t pieces = (channels + kChannelMultiple - 1) / kChannelMultiple;
  const int64_t work = global ? pieces : height * width * ((pieces + 63) / 64);
  run_in_parts(kOp,
               input,
               {{"bias", bias}, {"out", out}},
               work,
               form,
               [&](int64_t first, int32_t images, cudaStream_t stream) {
                 params.input.first_image = first;
                 params.input.num_images = images;
                 return dispatch_element(type, [&](auto element) {
                   return launch_pool2d<decltype(element)>(params, static_cast<int>(form), stream);
                 });
               });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_inception, CUDA, m) {
  m.impl("_pool2d_cuda_out", TORCH_BOX(&pool2d_cuda_out));
}

}  // namespace fused_inception
