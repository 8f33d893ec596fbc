// SPDX-License-Identifier: Apache-2.0
// Runs `conv2d_act`, `grid_reduction` or `split_conv2d` once, as `op` says: operands from raw
// files, any configuration, all of the output's channels into one raw file.
#include "conv2d_act/sm80_launch.cuh"
#include "conv2d_act/sm90_launch.cuh"
#include "emulator/driver.h"
#include "emulator/maps.h"
#include "grid_reduction/sm90_launch.cuh"
#include "split_conv2d/sm90_launch.cuh"

#include <sstream>

namespace {

using namespace fused_inception;

struct Operands {
  const driver::Arguments& arguments;
  FilteredMap input;
  uint16_t* output;

  int32_t integer(const char* key) const { return static_cast<int32_t>(arguments.number(key)); }

  const void* file(const char* name) const { return driver::file(arguments, name); }
  MapStrides output_stride() const { return driver::output_stride(arguments, input); }
  Segment segment(const std::string& text, int32_t begin) const {
    return driver::segment(arguments, input, output, text, begin);
  }
};

template <typename Element>
device::Status run(const Operands& operands) {
  const driver::Arguments& arguments = operands.arguments;
  const std::string op = arguments.text("op");
  const int configuration = operands.integer("configuration");
  if (op == "grid_reduction") {
    GridReductionParams params = {};
    params.input = operands.input;
    params.weight = operands.file("weight");
    params.bias = operands.file("bias");
    params.conv = operands.segment(arguments.text("conv"), 0);
    params.pooled = operands.output + arguments.number("pooled");
    params.pooled_stride = operands.output_stride();
    params.max = operands.integer("max") != 0;
    constexpr int kFirst = kNumGridReductionConfigurations;
    return configuration < kFirst
               ? launch_grid_reduction<Element>(params, configuration, nullptr)
               : launch_grid_reduction_sm90<Element>(params, configuration - kFirst, nullptr);
  }
  if (op == "split_conv2d") {
    SplitConv2dParams params = {};
    params.input = operands.input;
    params.row = {operands.file("weight_row"),
                  operands.file("bias_row"),
                  operands.integer("taps_row"),
                  operands.segment(arguments.text("row"), 0)};
    params.col = {operands.file("weight_col"),
                  operands.file("bias_col"),
                  operands.integer("taps_col"),
                  operands.segment(arguments.text("col"), 0)};
    constexpr int kFirst = kNumSplitConv2dConfigurations;
    return configuration < kFirst
               ? launch_split_conv2d<Element>(params, configuration, nullptr)
               : launch_split_conv2d_sm90<Element>(params, configuration - kFirst, nullptr);
  }
  if (op != "conv2d_act") driver::die("no op " + op);
  ConvolutionParams params = {};
  params.input = operands.input;
  params.weight = operands.file("weight");
  params.bias = operands.file("bias");
  std::istringstream segments(arguments.text("segments"));
  int32_t begin = 0;
  for (std::string text; std::getline(segments, text, ',') && params.num_segments < kMaxSegments;) {
    params.segments[params.num_segments] = operands.segment(text, begin);
    begin = params.segments[params.num_segments++].end;
  }
  constexpr int kFirst = kNumConv2dActConfigurations;
  return configuration < kFirst
             ? launch_conv2d_act<Element>(params, configuration, nullptr)
             : launch_conv2d_act_sm90<Element>(params, configuration - kFirst, nullptr);
}

// The rows of the tables, with the shared memory that `channels` channels and three taps take.
int list(int channels) {
  const auto print = [](const std::string& name, const TileShape& tile, int64_t bytes) {
    std::printf("%s-%dx%d %d %d %lld\n",
                name.c_str(),
                tile.block_m,
                tile.block_n,
                tile.threads(),
                tile.min_blocks,
                static_cast<long long>(bytes));
  };
  for (const TileShape& tile : kConv2dActConfigurations) {
    print("conv2d_act tiles", tile, tile.fixed_shared_bytes());
  }
  for (const TileShape& tile : kConv2dActSm90Configurations) {
    print("conv2d_act sm90", tile, tile.fixed_shared_bytes());
  }
  for (const TileShape& tile : kGridReductionConfigurations) {
    print("grid_reduction tiles", tile, tile.fixed_shared_bytes());
  }
  for (const TileShape& tile : kGridReductionSm90Configurations) {
    print("grid_reduction sm90", tile, tile.fixed_shared_bytes());
  }
  for (const SplitConv2dConfiguration& row : kSplitConv2dConfigurations) {
    const std::string form = row.whole ? "whole" : "tiles";
    print("split_conv2d " + form, row.tile, shared_bytes(row, channels, 3, 3));
  }
  for (const SplitConv2dConfiguration& row : kSplitConv2dSm90Configurations) {
    const std::string form = row.whole ? "sm90-whole" : "sm90";
    print("split_conv2d " + form, row.tile, shared_bytes(row, channels, 3, 3));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const driver::Arguments arguments(argc, argv);
  if (arguments.number("list", 0) != 0) return list(static_cast<int>(arguments.number("list")));
  driver::configure(arguments);
  const driver::Buffer output(
      "output", static_cast<size_t>(arguments.number("output_bytes")), driver::Access::kWrite);
  const Operands operands = {
      arguments, driver::input_map(arguments, 2), static_cast<uint16_t*>(output.get())};
  const device::Status status = driver::with_element(
      arguments, [&](auto element) { return run<decltype(element)>(operands); });
  return driver::finish(arguments, output, status == device::kInvalidValue);
}
