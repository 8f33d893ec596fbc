// SPDX-License-Identifier: Apache-2.0
// The configurations of the sm_80 kernels, and the shared memory that each takes: plain arithmetic.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FUSED_INCEPTION_HOST_DEVICE __host__ __device__
#else
#define FUSED_INCEPTION_HOST_DEVICE
#endif

namespace fused_inception {

// Channels of one step of a sum; 64 bytes, the row of a tile in shared memory.
constexpr int kBlockK = 32;

FUSED_INCEPTION_HOST_DEVICE constexpr int round_up(int value, int multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// One way to run the pair. The order of every sum is the same in all of them.
struct Sm80Configuration {
  bool bands;      // one launch, or one launch per factor with the mid tensor in global memory
  int block_m;     // pixels of a tile
  int block_n;     // filters of a tile
  int warps_m;     // warps side by side along the pixels ...
  int warps_n;     // ... and along the filters
  int stages;      // steps in the ring of shared memory, one of them in use
  int min_blocks;  // blocks per multiprocessor that the registers leave room for

  constexpr int threads() const { return 32 * warps_m * warps_n; }
  constexpr int stage_bytes() const { return (block_m + block_n) * kBlockK * 2; }
  // The ring, and where each row of the tile goes.
  constexpr int fixed_shared_bytes() const { return stages * stage_bytes() + block_m * 8; }
};

// Elements from one pixel of the mid band to the next. Channels are rounded up to whole steps; the
// 16 bytes more spread eight neighbouring rows over all banks.
FUSED_INCEPTION_HOST_DEVICE constexpr int mid_pitch(int c_mid) {
  return round_up(c_mid, kBlockK) + 8;
}

// Bytes of dynamic shared memory of a block.
constexpr int64_t shared_bytes(const Sm80Configuration& configuration, int c_mid) {
  const int64_t rows = configuration.bands ? configuration.block_m + 1 : 0;  // and one of zeros
  return configuration.fixed_shared_bytes() + rows * mid_pitch(c_mid) * 2;
}

// A row's number is the `configuration` of the launcher. Chosen by arithmetic and by ptxas's
// reports
// (`python -m tests.cuda_gate`); none has been timed.
constexpr Sm80Configuration kSm80Configurations[] = {
    // bands, block_m, block_n, warps_m, warps_n, stages, min_blocks
    // Bands; the filters of Inception's pairs are one tile of 128, 160 or 192 ...
    {true, 128, 192, 4, 2, 4, 1},
    {true, 128, 160, 4, 2, 4, 1},
    {true, 128, 128, 4, 2, 4, 1},
    // ... or two, where a block has 99 KB.
    {true, 128, 96, 4, 2, 3, 1},
    // Two launches: many blocks of little work for the smallest batches, fewer of more for others.
    {false, 64, 32, 4, 1, 6, 4},
    {false, 128, 96, 4, 2, 3, 2},
};
constexpr int kNumSm80Configurations =
    static_cast<int>(sizeof(kSm80Configurations) / sizeof(kSm80Configurations[0]));

}  // namespace fused_inception
