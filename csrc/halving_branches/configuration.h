// SPDX-License-Identifier: Apache-2.0
// The configurations of the kernels: plain arithmetic.
#pragma once

#include "common/tile.h"

namespace fused_inception {

// A row's number is the `configuration` of the launcher. The order of every sum is the same in all
// of them. Chosen by arithmetic and by ptxas's reports (`python -m tests.cuda_gate`); none has been
// timed.
constexpr TileShape kHalvingBranchesConfigurations[] = {
    // block_m, block_n, warps_m, warps_n, stages, min_blocks
    {128, 128, 4, 2, 4, 1},  // many pixels
    {128, 64, 4, 2, 4, 2},   // 192 and 320 filters
    {64, 32, 4, 1, 6, 4},    // few pixels
};
constexpr int kNumHalvingBranchesConfigurations = static_cast<int>(
    sizeof(kHalvingBranchesConfigurations) / sizeof(kHalvingBranchesConfigurations[0]));

}  // namespace fused_inception
