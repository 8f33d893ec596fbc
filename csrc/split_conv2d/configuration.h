// SPDX-License-Identifier: Apache-2.0
// The configurations of the kernels, and the shared memory that each takes: plain arithmetic.
#pragma once

#include "common/tile.h"
#include "split_conv2d/params.h"

#include <cstdint>

namespace fused_inception {

// One way to run the split. The order of every sum is the same in all of them.
struct SplitConv2dConfiguration {
  bool whole;      // whole images in shared memory, or tiles of pixels that every tap loads
  TileShape tile;  // half of its filters are those of either convolution
};

// A row's number is the `configuration` of the launcher. Chosen by arithmetic and by ptxas's
// reports (`python -m tests.cuda_gate`); none has been timed.
constexpr SplitConv2dConfiguration kSplitConv2dConfigurations[] = {
    // whole, {block_m, block_n, warps_m, warps_n, stages, min_blocks}
    {true, {64, 128, 2, 2, 4, 2}},    // one image of 8x8
    {true, {64, 32, 4, 1, 6, 2}},     // the same for the smallest batches
    {false, {128, 128, 4, 2, 4, 1}},  // any map
    {false, {64, 32, 4, 1, 6, 4}},    // few pixels, few filters
};
constexpr int kNumSplitConv2dConfigurations =
    static_cast<int>(sizeof(kSplitConv2dConfigurations) / sizeof(kSplitConv2dConfigurations[0]));

// Bytes of dynamic shared memory of a block. Whole images are tiles of 32 channels, one after the
// other, and 16 bytes of zeros.
constexpr int64_t shared_bytes(const SplitConv2dConfiguration& configuration, int channels) {
  const TileShape& tile = configuration.tile;
  if (!configuration.whole) return tile.fixed_shared_bytes();
  return tile.fixed_shared_bytes(false) + int64_t{2} * tile.block_m * round_up(channels, kBlockK) +
         16;
}

// Tiles of filters, as many as the longer half needs.
FUSED_INCEPTION_HOST_DEVICE constexpr int32_t filter_tiles_of(const SplitConv2dParams& params,
                                                              int block_n) {
  const int32_t row = filter_tiles_of(params.row.output, block_n / 2);
  const int32_t col = filter_tiles_of(params.col.output, block_n / 2);
  return row > col ? row : col;
}

}  // namespace fused_inception
