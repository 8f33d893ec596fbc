// SPDX-License-Identifier: Apache-2.0
// The configurations of the kernels: plain arithmetic.
#pragma once

#include "common/tile.h"

namespace fused_inception {

// A row's number is the `configuration` of the launcher. The order of every sum is the same in all
// of them. Chosen by arithmetic and by ptxas's reports (`python -m tests.cuda_gate`); none has been
// timed.
constexpr TileShape kGridReductionConfigurations[] = {
    // block_m, block_n, warps_m, warps_n, stages, min_blocks
    {128, 128, 4, 2, 4, 1},  // 384 filters
    {128, 96, 4, 2, 3, 1},   // 96 and 192 filters
    {64, 32, 4, 1, 6, 4},    // few pixels, few filters
};
constexpr int kNumGridReductionConfigurations = static_cast<int>(
    sizeof(kGridReductionConfigurations) / sizeof(kGridReductionConfigurations[0]));

// The same on wgmma (sm90.cuh), numbered after those above. Between the two tables a device may
// differ in bits: which of them serves must not depend on the batch.
constexpr TileShape kGridReductionSm90Configurations[] = {
    {192, 192, 12, 1, 6, 1, Engine::kWgmma},  // 192, 384 and 576 filters
    {128, 96, 8, 1, 6, 2, Engine::kWgmma},    // 96 filters, and batches in between
    {64, 32, 4, 1, 8, 4, Engine::kWgmma},     // few pixels, few filters
};
constexpr int kNumGridReductionSm90Configurations = static_cast<int>(
    sizeof(kGridReductionSm90Configurations) / sizeof(kGridReductionSm90Configurations[0]));

}  // namespace fused_inception
