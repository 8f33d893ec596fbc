// SPDX-License-Identifier: Apache-2.0
// The forms of the pools: plain arithmetic.
#pragma once

namespace fused_inception {

// A row's number is the `form` of the launcher.
struct Pool2dForm {
  const char* name;
  int threads;
  int min_blocks;  // blocks per multiprocessor that the registers leave room for
  int shared_bytes;
};

constexpr int kMaxPool = 0;
constexpr int kAveragePool = 1;
constexpr int kGlobalAveragePool = 2;

constexpr int kPoolThreads = 256;
// Of the mean of a whole map: 16-byte pieces of channels side by side, and partial sums of each.
constexpr int kGlobalChunks = 8;
constexpr int kGlobalSums = kPoolThreads / kGlobalChunks;

constexpr Pool2dForm kPool2dForms[] = {
    {"max", kPoolThreads, 4, 0},
    {"average", kPoolThreads, 4, 0},
    // Sums of 16-bit elements, of which a chunk has eight.
    {"global_average", kPoolThreads, 4, kGlobalSums * kGlobalChunks * 8 * 4},
};
constexpr int kNumPool2dForms = static_cast<int>(sizeof(kPool2dForms) / sizeof(kPool2dForms[0]));

}  // namespace fused_inception
