// SPDX-License-Identifier: Apache-2.0
// Runs a pool once: operands from raw files, any form, all of the output's channels into one raw
// file.
#include "emulator/driver.h"
#include "emulator/maps.h"
#include "pool2d/pool2d_launch.cuh"

namespace {

using namespace fused_inception;

template <typename Element>
device::Status run(const driver::Arguments& arguments, char* output, int64_t element_bytes) {
  Pool2dParams params = {};
  params.input = driver::input_map(arguments, element_bytes);
  params.output = output + element_bytes * arguments.number("offset");
  params.output_stride = driver::output_stride(arguments, params.input);
  params.bias = driver::file(arguments, "bias");
  params.biased = static_cast<int32_t>(arguments.number("biased"));
  params.include_pad = arguments.number("include_pad") != 0;
  params.relu = arguments.number("relu") != 0;
  return launch_pool2d<Element>(params, static_cast<int>(arguments.number("form")), nullptr);
}

device::Status run(const driver::Arguments& arguments, char* output) {
#ifndef __SANITIZE_ADDRESS__
  if (arguments.text("dtype") == "float32") return run<float>(arguments, output, 4);
#endif
  return driver::with_element(
      arguments, [&](auto element) { return run<decltype(element)>(arguments, output, 2); });
}

int list() {
  for (const Pool2dForm& form : kPool2dForms) {
    std::printf("%s %d %d %d\n", form.name, form.threads, form.min_blocks, form.shared_bytes);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const driver::Arguments arguments(argc, argv);
  if (arguments.number("list", 0) != 0) return list();
  driver::configure(arguments);
  const driver::Buffer output(
      "output", static_cast<size_t>(arguments.number("output_bytes")), driver::Access::kWrite);
  const device::Status status = run(arguments, static_cast<char*>(output.get()));
  return driver::finish(arguments, output, status == device::kInvalidValue);
}
