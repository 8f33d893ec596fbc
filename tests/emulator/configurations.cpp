// SPDX-License-Identifier: Apache-2.0
// Prints the rows of kSm80Configurations and kSm90Configurations, with the shared memory that
// `c_mid` channels take: in the input as well, on maps of 17x17 and with 7 taps, where that
// matters.
#include "emulator/driver.h"
#include "factorized_conv2d/configuration.h"

int main(int argc, char** argv) {
  const driver::Arguments arguments(argc, argv);
  const int c_mid = static_cast<int>(arguments.number("c_mid"));
  for (const fused_inception::Sm80Configuration& row : fused_inception::kSm80Configurations) {
    std::printf("%s-%dx%d %d %d %lld\n",
                row.bands ? "bands" : "two",
                row.tile.block_m,
                row.tile.block_n,
                row.tile.threads(),
                row.tile.min_blocks,
                static_cast<long long>(shared_bytes(row, c_mid)));
  }
  fused_inception::FactorizedConv2dParams pair = {};
  pair.cross_size = pair.line_size = static_cast<int>(arguments.number("side", 17));
  pair.taps1 = pair.taps2 = static_cast<int>(arguments.number("taps", 7));
  pair.c_in = static_cast<int>(arguments.number("c_in", c_mid));
  pair.c_mid = c_mid;
  for (const fused_inception::Sm90Configuration& row : fused_inception::kSm90Configurations) {
    std::string cluster;
    if (row.split > 1) cluster = "-split" + std::to_string(row.split);
    if (row.multicast > 1) cluster = "-multicast" + std::to_string(row.multicast);
    std::printf("sm90-%dx%d%s %d 1 %lld\n",
                row.filters(),
                row.pixels,
                cluster.c_str(),
                row.threads(),
                static_cast<long long>(shared_bytes(row, pair)));
  }
  return 0;
}
