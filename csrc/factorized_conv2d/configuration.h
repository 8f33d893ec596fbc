// SPDX-License-Identifier: Apache-2.0
// The configurations of the kernels, and the shared memory that each takes: plain arithmetic.
#pragma once

#include "common/tile.h"
#include "factorized_conv2d/params.h"

#include <cstdint>

namespace fused_inception {

// One way to run the pair. The order of every sum is the same in all of them.
struct Sm80Configuration {
  bool bands;  // one launch, or one launch per factor with the mid tensor in global memory
  TileShape tile;
};

// Elements from one pixel of the mid band to the next. Channels are rounded up to whole steps; the
// 16 bytes more spread eight neighbouring rows over all banks.
FUSED_INCEPTION_HOST_DEVICE constexpr int mid_pitch(int c_mid) {
  return round_up(c_mid, kBlockK) + 8;
}

// Bytes of dynamic shared memory of a block.
constexpr int64_t shared_bytes(const Sm80Configuration& configuration, int c_mid) {
  const int64_t rows =
      configuration.bands ? configuration.tile.block_m + 1 : 0;  // and one of zeros
  return configuration.tile.fixed_shared_bytes() + rows * mid_pitch(c_mid) * 2;
}

// A row's number is the `configuration` of the launcher. Chosen by arithmetic and by ptxas's
// reports (`python -m tests.cuda_gate`); none has been timed.
constexpr Sm80Configuration kSm80Configurations[] = {
    // bands, block_m, block_n, warps_m, warps_n, stages, min_blocks
    // Bands; the filters of Inception's pairs are one tile of 128, 160 or 192 ...
    {true, {128, 192, 4, 2, 4, 1}},
    {true, {128, 160, 4, 2, 4, 1}},
    {true, {128, 128, 4, 2, 4, 1}},
    // ... or two, where a block has 99 KB.
    {true, {128, 96, 4, 2, 3, 1}},
    // Two launches: many blocks of little work for the smallest batches, fewer of more for others.
    {false, {64, 32, 4, 1, 6, 4}},
    {false, {128, 96, 4, 2, 3, 2}},
};
constexpr int kNumSm80Configurations =
    static_cast<int>(sizeof(kSm80Configurations) / sizeof(kSm80Configurations[0]));

// One way to run the pair on wgmma (sm90.cuh); one block a multiprocessor. The order of every sum
// is the same in all of them, but it is not that of the sm_80 kernels: which of the two kinds runs
// must not depend on the batch.
struct Sm90Configuration {
  int consumers;  // warpgroups of a block that compute, 64 filters each
  int pixels;     // of a tile
  int stages;     // steps in the ring
  int split;      // blocks of a cluster that share out the filters of one band, or ...
  int multicast;  // ... that have a band each, and load the filters of all together

  constexpr int filters() const { return 64 * consumers; }  // of a block's tile
  constexpr int cluster() const { return split * multicast; }
  constexpr int threads() const { return 128 * (consumers + 1); }
  // The ring; 512 bytes a warp for the results; the barriers.
  constexpr int fixed_shared_bytes() const {
    const int ring = stages * filters() * kBlockK * 2;
    return round_up(ring + consumers * 4 * 512 + (2 * stages + 4) * 8, 128);
  }
};

// Of `stored` filters: those of one block of a cluster, and those that one of its copies brings to
// a tile of `filters`, either in whole eights.
FUSED_INCEPTION_HOST_DEVICE constexpr int sm90_part(int stored, int split) {
  return round_up((stored + split - 1) / split, 8);
}
FUSED_INCEPTION_HOST_DEVICE constexpr int sm90_copy_rows(int stored,
                                                         int filters,
                                                         int split,
                                                         int multicast) {
  const int rows = round_up(sm90_part(stored, split), 8 * multicast);
  return (rows < filters ? rows : filters) / multicast;
}

// Numbered after those of kSm80Configurations; docs/cuda_factorized_conv2d.md has what each is for.
constexpr Sm90Configuration kSm90Configurations[] = {
    // consumers, pixels, stages, split, multicast
    {3, 160, 3, 1, 1},
    {3, 160, 3, 1, 2},
    {2, 160, 5, 1, 2},
    {3, 96, 6, 1, 2},
    {2, 160, 5, 2, 1},
    {1, 80, 12, 3, 1},
    {1, 48, 12, 8, 1},
};
constexpr int kNumSm90Configurations =
    static_cast<int>(sizeof(kSm90Configurations) / sizeof(kSm90Configurations[0]));

// Clusters that run at once. A cluster lies in one processing cluster of the device, of which an
// H100 has some of 16 multiprocessors and some of 18: two to a pair of neighbours always fit,
// larger ones are counted as if all had 16.
constexpr int sm90_clusters(int multiprocessors, int cluster) {
  const int fitting =
      cluster <= 2 ? multiprocessors / cluster : multiprocessors / 16 * (16 / cluster);
  return fitting > 1 ? fitting : 1;
}

// The bands of a problem. Rows of input and mid are pixels; a pitch counts the rows from one eight
// channels to the next, and is odd so that neighbouring channels are in distinct banks.
struct Sm90Band {
  int lines;  // of a band; 0 where no line fits
  int input_rows;
  int input_pitch;
  int mid_pitch;
};

FUSED_INCEPTION_HOST_DEVICE constexpr Sm90Band sm90_band(int pixels,
                                                         const FactorizedConv2dParams& params) {
  const int most = pixels / params.line_size;
  if (most == 0) return {0, 0, 0, 0};
  // Bands of an image as equal as can be.
  const int bands = (params.cross_size + most - 1) / most;
  const int lines = (params.cross_size + bands - 1) / bands;
  const int input_rows = (params.taps1 - 1) * params.line_size + pixels;
  const int mid_rows = (params.taps2 - 1) * lines + pixels;
  return {lines, input_rows, input_rows | 1, mid_rows | 1};
}

// Bytes of dynamic shared memory of a block.
constexpr int64_t shared_bytes(const Sm90Configuration& configuration,
                               const FactorizedConv2dParams& params) {
  const Sm90Band band = sm90_band(configuration.pixels, params);
  if (band.lines == 0) return 0;
  return configuration.fixed_shared_bytes() +
         int64_t{2} * band.input_pitch * round_up(params.c_in, kBlockK) +
         int64_t{2} * band.mid_pitch * round_up(params.c_mid, kBlockK);
}

}  // namespace fused_inception
