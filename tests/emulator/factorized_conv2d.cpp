// SPDX-License-Identifier: Apache-2.0
// Runs the pair once: operands from raw files, any configuration, the output into a raw file.
#include "emulator/driver.h"
#include "factorized_conv2d/sm80_launch.cuh"
#include "factorized_conv2d/sm90_launch.cuh"

namespace {

using namespace fused_inception;

MapStrides strides(const driver::Arguments& arguments, const std::string& name) {
  return {arguments.number(name + "_image_stride"),
          arguments.number(name + "_cross_stride"),
          arguments.number(name + "_line_stride")};
}

}  // namespace

int main(int argc, char** argv) {
  const driver::Arguments arguments(argc, argv);
  driver::configure(arguments);
  const auto integer = [&](const char* key) { return static_cast<int32_t>(arguments.number(key)); };

  FactorizedConv2dParams params = {};
  params.input_stride = strides(arguments, "input");
  params.output_stride = strides(arguments, "output");
  params.first_image = arguments.number("first_image", 0);
  params.num_images = integer("num_images");
  params.cross_size = integer("cross_size");
  params.line_size = integer("line_size");
  params.c_in = integer("c_in");
  params.filters1 = integer("filters1");
  params.c_mid = round_up(params.filters1, 8);
  params.filters2 = integer("filters2");
  params.c_out = round_up(params.filters2, 8);
  params.taps1 = integer("taps1");
  params.taps2 = integer("taps2");
  params.mid_relu = integer("mid_relu") != 0;
  params.relu = integer("relu") != 0;

  const auto operand = [&](const char* name) -> const void* {
    const std::string path = arguments.text(name, "");
    return path.empty() ? nullptr : driver::Buffer::read(name, path).get();
  };
  // Images apart from one another, where the stride says so.
  params.input = driver::Buffer::read("input",
                                      arguments.text("input"),
                                      static_cast<size_t>(arguments.number("batch")),
                                      static_cast<size_t>(2 * params.input_stride.image))
                     .get();
  params.weight1 = operand("weight1");
  params.bias1 = operand("bias1");
  params.weight2 = operand("weight2");
  params.bias2 = operand("bias2");
  const driver::Buffer output(
      "output", static_cast<size_t>(arguments.number("output_bytes")), driver::Access::kWrite);
  params.output = static_cast<uint16_t*>(output.get()) + arguments.number("channel_offset", 0);
  const int configuration = integer("configuration");
  if (configuration >= 0 && configuration < kNumSm80Configurations &&
      !kSm80Configurations[configuration].bands) {
    const int64_t pixels = int64_t{params.num_images} * params.cross_size * params.line_size;
    params.mid =
        driver::Buffer(
            "mid", static_cast<size_t>(2 * pixels * params.c_mid), driver::Access::kReadWrite)
            .get();
  }

  const device::Status status = driver::with_element(arguments, [&](auto element) {
    using Element = decltype(element);
    return configuration < kNumSm80Configurations
               ? launch_factorized_conv2d<Element>(params, configuration, nullptr)
               : launch_factorized_conv2d_sm90<Element>(
                     params, configuration - kNumSm80Configurations, nullptr);
  });
  return driver::finish(arguments, output, status == device::kInvalidValue);
}
