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

// The same on wgmma (sm90.cuh), numbered after those above. Between the two tables a device may
// differ in bits: which of them serves must not depend on the batch.
constexpr SplitConv2dConfiguration kSplitConv2dSm90Configurations[] = {
    {true, {128, 192, 8, 1, 6, 1, Engine::kWgmma}},   // two images of 8x8
    {true, {64, 64, 4, 1, 8, 2, Engine::kWgmma}},     // one, for the smallest batches
    {false, {128, 192, 8, 1, 6, 1, Engine::kWgmma}},  // any map
    {false, {64, 64, 4, 1, 8, 3, Engine::kWgmma}},    // few pixels, few filters
};
constexpr int kNumSplitConv2dSm90Configurations = static_cast<int>(
    sizeof(kSplitConv2dSm90Configurations) / sizeof(kSplitConv2dSm90Configurations[0]));

// Whole images as wgmma takes them, pixels that are rows of 16 bytes in planes of eight channels.
// An image has eight lines of eight pixels, all that are not on the map zero; zeros follow each
// line, and lines of zeros each image, as far as the taps reach, and come before the first.
struct SplitPatches {
  static constexpr int kSide = 8;
  static constexpr int kMaxTaps = 31;  // all that the op takes

  int images;
  int line_zeros;
  int cross_zeros;

  FUSED_INCEPTION_HOST_DEVICE constexpr int pitch() const { return kSide + line_zeros; }
  FUSED_INCEPTION_HOST_DEVICE constexpr int row(int image, int cross, int line) const {
    const int lines = cross_zeros + image * (kSide + cross_zeros) + cross;
    return line_zeros + lines * pitch() + line;
  }
  FUSED_INCEPTION_HOST_DEVICE constexpr int rows() const { return row(images, 0, 0); }
  // Whether a row is that of a pixel.
  FUSED_INCEPTION_HOST_DEVICE constexpr bool is_pixel(int row) const {
    const int place = row - line_zeros, line = place / pitch() - cross_zeros;
    return place >= 0 && place % pitch() < kSide && line >= 0 &&
           line % (kSide + cross_zeros) < kSide;
  }
  // Rows of a plane: two pixels of four planes, which eight threads write together, are in distinct
  // banks.
  FUSED_INCEPTION_HOST_DEVICE constexpr int plane() const { return round_up(rows() - 2, 8) + 2; }
};

FUSED_INCEPTION_HOST_DEVICE constexpr SplitPatches patches_of(int block_m,
                                                              int row_taps,
                                                              int col_taps) {
  return {block_m / (SplitPatches::kSide * SplitPatches::kSide), row_taps / 2, col_taps / 2};
}

// Whole images that a tile takes; 0 where a map is too large.
constexpr int64_t whole_images(const TileShape& tile, const SplitConv2dParams& params) {
  const int cross = params.input.cross_size, line = params.input.line_size;
  if (tile.engine == Engine::kMmaSync) return tile.block_m / (int64_t{cross} * line);
  const int side = cross > line ? cross : line;
  const int taps = params.row.taps > params.col.taps ? params.row.taps : params.col.taps;
  const bool fits = side <= SplitPatches::kSide && taps <= SplitPatches::kMaxTaps;
  return fits ? patches_of(tile.block_m, params.row.taps, params.col.taps).images : 0;
}

// Bytes of dynamic shared memory of a block. Whole images are, on mma.sync, tiles of 32 channels,
// one after the other, and 16 bytes of zeros; on wgmma they are patches.
constexpr int64_t shared_bytes(const SplitConv2dConfiguration& configuration,
                               int channels,
                               int row_taps,
                               int col_taps) {
  const TileShape& tile = configuration.tile;
  if (!configuration.whole) return tile.fixed_shared_bytes();
  const int64_t bytes = int64_t{2} * round_up(channels, kBlockK);
  return tile.fixed_shared_bytes(false) +
         (tile.engine == Engine::kMmaSync
              ? bytes * tile.block_m + 16
              : bytes * patches_of(tile.block_m, row_taps, col_taps).plane());
}

// Tiles of filters, as many as the longer half needs.
FUSED_INCEPTION_HOST_DEVICE constexpr int32_t filter_tiles_of(const SplitConv2dParams& params,
                                                              int block_n) {
  const int32_t row = filter_tiles_of(params.row.output, block_n / 2);
  const int32_t col = filter_tiles_of(params.col.output, block_n / 2);
  return row > col ? row : col;
}

}  // namespace fused_inception
