// SPDX-License-Identifier: Apache-2.0
// The tiles of the products, and their shared memory: plain arithmetic.
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

// What multiplies: mma.sync, a warp at a time, or wgmma, four warps at a time (sm_90a).
enum class Engine { kMmaSync, kWgmma };

// What a block computes of a product of pixels x filters, and how.
struct TileShape {
  int block_m;     // pixels of a tile
  int block_n;     // filters of a tile
  int warps_m;     // warps side by side along the pixels, on wgmma in fours ...
  int warps_n;     // ... and along the filters
  int stages;      // steps in the ring of shared memory, one or (wgmma) two of them in use
  int min_blocks;  // blocks per multiprocessor that the registers leave room for
  Engine engine = Engine::kMmaSync;

  constexpr int threads() const { return 32 * warps_m * warps_n; }
  // Of the ring, and of where each row of the tile goes. `pixels` says whether these are part of a
  // step, or in shared memory already.
  constexpr int fixed_shared_bytes(bool pixels = true) const {
    const int stage_bytes = ((pixels ? block_m : 0) + block_n) * kBlockK * 2;
    return stages * stage_bytes + block_m * 8;
  }
};

}  // namespace fused_inception
