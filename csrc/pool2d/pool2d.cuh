// SPDX-License-Identifier: Apache-2.0
// Pools of channels_last maps: no arithmetic but comparisons, sums and one division.
//
//   max             y[p, q, c] = max over r, s of x[p * step - pad + r, q * step - pad + s, c]
//   average         y[p, q, c] = act(bias[c] + mean over r, s of the same)
//   global_average  y[c]       = mean over h, w of x[h, w, c]
//
// A thread pools 16 bytes of channels of one output pixel; neighbouring threads have neighbouring
// channels. Loads of three pixels are on their way at once. The mean of a whole map has few
// results: there 32 threads share a piece of channels, thread i of them sums pixels i, i + 32, ...,
// and the 32 sums are added up in their order. Every order depends on the map alone.
//
// Bytes moved from and to memory: the input and the output once; what windows share comes from L1
// and L2. In 16 bits an image takes 444 + 98 KB where 17x17x768 are halved, 111 + 111 KB for the
// average of 17x17x192, 262 + 4 KB for the mean of 8x8x2048; 256 images 41, 17 and 20 us of an
// H100's memory (3.35 TB/s). A comparison is some seven instructions, a sum three: with nine pixels
// a window 27, 13 and 1 us of its lanes (132 x 128 at 1.76 GHz), below the memory's time. The one
// pool of a network where they are above it is the max pool with step 1 in front of a 1x1,
// 8x8x2048, 71 us to 40, in a block of 0.78 GFLOP an image, 0.2 ms at 989 TFLOP/s.
//
// Range: any window and step; padding of at most half of the window, so that no window is empty;
// elements of 16 or 32 bits; channels in multiples of 8, which the caller pads; any batch of up to
// 2^30 output pixels a launch. Nothing here has been timed.
#pragma once

#include "common/pool.cuh"
#include "pool2d/configuration.h"
#include "pool2d/params.h"

namespace fused_inception {

template <typename input_t>
__device__ __forceinline__ void average_item(const Pool2dParams& params, int64_t item) {
  const FilteredMap& map = params.input;
  const auto finish = [&](const WindowPool<input_t>& window, int32_t chunk) {
    const int32_t taps = map.cross_taps * map.line_taps;
    const auto divisor = static_cast<float>(params.include_pad ? taps : window.count);
    return rounded<input_t>([&](int element) {
      float value = window.pool.mean(element, divisor);
      const int32_t channel = chunk * kChunkElements<input_t> + element;
      if (params.bias != nullptr && channel < params.biased) {
        value += element_at<input_t>(params.bias, channel);
      }
      return params.relu ? device::relu(value) : value;
    });
  };
  pool_item<input_t>(map, item, false, params.output, params.output_stride, finish);
}

// kGlobalChunks pieces of channels of one image a block.
template <typename input_t>
__device__ __forceinline__ void pool_whole_map(const Pool2dParams& params) {
  constexpr int kElements = kChunkElements<input_t>, kPerWord = Elements<input_t>::kPerWord;
  constexpr int kColumns = kGlobalChunks * kElements;
  auto& sums = *device::dynamic_smem<uint32_t[kGlobalSums][kColumns]>();
  const FilteredMap& map = params.input;
  const int32_t chunks = map.channels / kElements;
  const int32_t parts = (chunks + kGlobalChunks - 1) / kGlobalChunks;
  const int64_t image = map.first_image + device::block_index() / parts;
  const int32_t first_chunk = device::block_index() % parts * kGlobalChunks;
  const int thread = device::thread_index();
  const int column = thread % kGlobalChunks, row = thread / kGlobalChunks;

  RunningPool<input_t> pool;
  pool.clear(false);
  const int32_t pixels = map.cross_size * map.line_size;
  if (first_chunk + column < chunks) {
    const auto* source = static_cast<const device::Chunk*>(map.data) + first_chunk + column;
    for (int32_t i = row; i < pixels; i += kGlobalSums) {
      const int64_t offset = image * map.stride.image + i / map.line_size * map.stride.cross +
                             i % map.line_size * map.stride.line;
      pool.take(source[offset / kElements], false, false);
    }
  }
#pragma unroll
  for (int i = 0; i < kElements; ++i)
    sums[row][column * kElements + i] = pool.words[i];
  device::block_sync();

  // A word of results a thread.
  const int32_t word = first_chunk * kChunkWords + thread;
  if (thread >= kGlobalChunks * kChunkWords || word >= chunks * kChunkWords) return;
  float values[kPerWord];
#pragma unroll
  for (int e = 0; e < kPerWord; ++e) {
    float sum = 0.0f;
#pragma unroll 8
    for (int i = 0; i < kGlobalSums; ++i)
      sum += device::bits_float(sums[i][thread * kPerWord + e]);
    values[e] = sum / static_cast<float>(pixels);
  }
  auto* output = static_cast<uint32_t*>(params.output);
  output[image * (params.output_stride.image / kPerWord) + word] = Elements<input_t>::pack(values);
}

template <int kForm, typename input_t>
__global__ void __launch_bounds__(kPoolThreads, kPool2dForms[kForm].min_blocks)
    pool2d_kernel(const __grid_constant__ Pool2dParams params) {
  const int64_t item = int64_t{device::block_index()} * kPoolThreads + device::thread_index();
  if constexpr (kForm == kMaxPool) {
    max_pool_item<input_t>(params.input, item, params.output, params.output_stride);
  } else if constexpr (kForm == kAveragePool) {
    average_item<input_t>(params, item);
  } else {
    pool_whole_map<input_t>(params);
  }
}

}  // namespace fused_inception
