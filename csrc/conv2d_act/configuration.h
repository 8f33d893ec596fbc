// SPDX-License-Identifier: Apache-2.0
// The configurations of the kernels: plain arithmetic.
#pragma once

#include "common/tile.h"

namespace fused_inception {

// A row's number is the `configuration` of the launcher. The order of every sum is the same in all
// of them. Chosen by arithmetic and by ptxas's reports (`python -m tests.cuda_gate`); none has been
// timed.
constexpr TileShape kConv2dActConfigurations[] = {
    // block_m, block_n, warps_m, warps_n, stages, min_blocks
    {128, 128, 4, 2, 4, 1},  // the most products per byte of shared memory
    {128, 96, 4, 2, 3, 2},   // 96, 192 and 288 filters
    {128, 64, 4, 2, 4, 2},   // 64, 80, 320 and 448 filters
    {64, 32, 4, 1, 6, 4},    // few pixels, few filters
};
constexpr int kNumConv2dActConfigurations =
    static_cast<int>(sizeof(kConv2dActConfigurations) / sizeof(kConv2dActConfigurations[0]));

// The same on wgmma (sm90.cuh), numbered after those above. Between the two tables a device may
// differ in bits: which of them serves must not depend on the batch.
constexpr TileShape kConv2dActSm90Configurations[] = {
    {256, 192, 8, 1, 6, 1, Engine::kWgmma},  // the least bytes from L2 per product
    {256, 96, 8, 1, 8, 1, Engine::kWgmma},   // 96 and 288 filters
    {256, 64, 8, 1, 5, 2, Engine::kWgmma},   // 32, 64, 320 and 448 filters
    {128, 128, 8, 1, 6, 2, Engine::kWgmma},  // batches in between ...
    {128, 64, 8, 1, 6, 2, Engine::kWgmma},   // ... and smaller ones
    {64, 32, 4, 1, 8, 4, Engine::kWgmma},    // few pixels, few filters
};
constexpr int kNumConv2dActSm90Configurations = static_cast<int>(
    sizeof(kConv2dActSm90Configurations) / sizeof(kConv2dActSm90Configurations[0]));

}  // namespace fused_inception
