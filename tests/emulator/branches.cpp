// SPDX-License-Identifier: Apache-2.0
// Runs `halving_branches` once: operands from raw files, any configuration, all of the output's
// channels into one raw file.
#include "emulator/driver.h"
#include "emulator/maps.h"
#include "halving_branches/sm80_launch.cuh"

namespace {

using namespace fused_inception;

template <typename Element>
device::Status run(const driver::Arguments& arguments, uint16_t* output) {
  HalvingBranchesParams params = {};
  params.pool_input = driver::input_map(arguments, 2);
  params.pooled = output + arguments.number("pooled");
  params.pooled_stride = driver::output_stride(arguments, params.pool_input);
  params.num_branches = static_cast<int32_t>(arguments.number("branches"));
  for (int i = 0; i < params.num_branches; ++i) {
    const std::string suffix = std::to_string(i);
    ConvolutionParams& branch = params.branches[i];
    branch.input = driver::input_map(arguments, 2, suffix);
    branch.weight = driver::file(arguments, "weight" + suffix);
    branch.bias = driver::file(arguments, "bias" + suffix);
    branch.num_segments = 1;
    branch.segments[0] =
        driver::segment(arguments, branch.input, output, arguments.text("place" + suffix), 0);
  }
  const int configuration = static_cast<int>(arguments.number("configuration"));
  return launch_halving_branches<Element>(params, configuration, nullptr);
}

int list() {
  for (const TileShape& tile : kHalvingBranchesConfigurations) {
    std::printf("tiles-%dx%d %d %d %d\n",
                tile.block_m,
                tile.block_n,
                tile.threads(),
                tile.min_blocks,
                tile.fixed_shared_bytes());
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
  auto* target = static_cast<uint16_t*>(output.get());
  const device::Status status = driver::with_element(
      arguments, [&](auto element) { return run<decltype(element)>(arguments, target); });
  return driver::finish(arguments, output, status == device::kInvalidValue);
}
