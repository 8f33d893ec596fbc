// SPDX-License-Identifier: Apache-2.0
// Prints the rows of kSm80Configurations, with the shared memory that `c_mid` channels take.
#include "emulator/driver.h"
#include "factorized_conv2d/configuration.h"

int main(int argc, char** argv) {
  const driver::Arguments arguments(argc, argv);
  const int c_mid = static_cast<int>(arguments.number("c_mid"));
  for (const fused_inception::Sm80Configuration& row : fused_inception::kSm80Configurations) {
    std::printf("%s-%dx%d %d %d %lld\n",
                row.bands ? "bands" : "two",
                row.block_m,
                row.block_n,
                row.threads(),
                row.min_blocks,
                static_cast<long long>(shared_bytes(row, c_mid)));
  }
  return 0;
}
