// SPDX-License-Identifier: Apache-2.0
// The pool of a window of pixels, 16 bytes of channels at a time: what the kernels of all pools are
// made of.
//
// The maximum is PyTorch's, bit by bit: a pixel replaces what there is where it is greater or NaN;
// so NaN stays with its bits, and of +0 and -0 the first. A mean is a float32 sum in the order of
// the window, divided and rounded once.
#pragma once

#include "common/tile_product.cuh"

namespace fused_inception {

// How elements lie in the words of a chunk.
template <typename input_t>
struct Elements {
  static constexpr int kPerWord = 2;

  static __device__ __forceinline__ uint32_t bits(uint32_t word, int e) {
    return word >> 16 * e & 0xffff;
  }
  static __device__ __forceinline__ float value(uint32_t bits) {
    return device::to_float<input_t>(static_cast<uint16_t>(bits));
  }
  // A word of rounded values.
  static __device__ __forceinline__ uint32_t pack(const float (&values)[2]) {
    return device::pack2<input_t>(values[0], values[1]);
  }
};

template <>
struct Elements<float> {
  static constexpr int kPerWord = 1;

  static __device__ __forceinline__ uint32_t bits(uint32_t word, int) { return word; }
  static __device__ __forceinline__ float value(uint32_t bits) { return device::bits_float(bits); }
  static __device__ __forceinline__ uint32_t pack(const float (&values)[1]) {
    return device::float_bits(values[0]);
  }
};

constexpr int kChunkWords = 4;

template <typename input_t>
constexpr int kChunkElements = kChunkWords * Elements<input_t>::kPerWord;

// Of the elements of a word, each that of `running`, replaced by that of `next` where it is greater
// or NaN.
template <typename input_t>
__device__ __forceinline__ uint32_t greater_or_nan(uint32_t running, uint32_t next) {
  using Elements = Elements<input_t>;
  uint32_t result = 0;
#pragma unroll
  for (int e = 0; e < Elements::kPerWord; ++e) {
    const uint32_t a = Elements::bits(running, e), b = Elements::bits(next, e);
    const float x = Elements::value(a), y = Elements::value(b);
    result |= (y > x || y != y ? b : a) << 16 * e;
  }
  return result;
}

// Element `index` of an array.
template <typename input_t>
__device__ __forceinline__ float element_at(const void* array, int32_t index) {
  if constexpr (Elements<input_t>::kPerWord == 1) {
    return static_cast<const float*>(array)[index];
  } else {
    return Elements<input_t>::value(static_cast<const uint16_t*>(array)[index]);
  }
}

// `value(element)` of every element of a chunk, rounded.
template <typename input_t, typename Value>
__device__ __forceinline__ device::Chunk rounded(const Value& value) {
  constexpr int kPerWord = Elements<input_t>::kPerWord;
  device::Chunk chunk;
#pragma unroll
  for (int j = 0; j < kChunkWords; ++j) {
    float values[kPerWord];
#pragma unroll
    for (int e = 0; e < kPerWord; ++e)
      values[e] = value(kPerWord * j + e);
    chunk.words[j] = Elements<input_t>::pack(values);
  }
  return chunk;
}

// The pool of one chunk of channels so far.
template <typename input_t>
struct RunningPool {
  // The maxima, packed as in a chunk; or the bits of the sums, one in a word.
  uint32_t words[kChunkElements<input_t>];

  // Begins with no pixel: where the first may lie outside of the map.
  __device__ __forceinline__ void clear(bool max) {
    const device::Chunk least = rounded<input_t>([](int) { return -__builtin_inff(); });
#pragma unroll
    for (int i = 0; i < kChunkElements<input_t>; ++i)
      words[i] = max ? least.words[i % kChunkWords] : 0;
  }

  // `first`: whether this is the pixel to begin with. By value: through a reference to memory a
  // chunk's words would be loaded one by one.
  __device__ __forceinline__ void take(device::Chunk chunk, bool first, bool max) {
    constexpr int kPerWord = Elements<input_t>::kPerWord;
#pragma unroll
    for (int j = 0; j < kChunkWords; ++j) {
      const uint32_t next = chunk.words[j];
      if (max) {
        words[j] = first ? next : greater_or_nan<input_t>(words[j], next);
        continue;
      }
#pragma unroll
      for (int e = 0; e < kPerWord; ++e) {
        uint32_t& sum = words[kPerWord * j + e];
        const float x = Elements<input_t>::value(Elements<input_t>::bits(next, e));
        sum = device::float_bits(first ? x : device::bits_float(sum) + x);
      }
    }
  }

  __device__ __forceinline__ float mean(int element, float count) const {
    return device::bits_float(words[element]) / count;
  }

  // The maxima, or the means of `count` pixels.
  __device__ __forceinline__ device::Chunk result(float count, bool max) const {
    if (max) return {{words[0], words[1], words[2], words[3]}};
    return rounded<input_t>([&](int element) { return mean(element, count); });
  }
};

// A window's pool, and how many of its pixels lie on the map.
template <typename input_t>
struct WindowPool {
  RunningPool<input_t> pool;
  int32_t count;
};

// The pool of what the taps of `map` see from output pixel `pixel`, `chunk` 16-byte pieces of
// channels on. Pixels outside of the map are left out.
template <typename input_t>
__device__ __forceinline__ WindowPool<input_t> pool_window(const FilteredMap& map,
                                                           Pixel pixel,
                                                           int32_t chunk,
                                                           bool max) {
  // Loads that are on their way at once: a row of the usual window.
  constexpr int kLoads = 3;
  pixel.cross = pixel.cross * map.cross_step - map.cross_pad;
  pixel.line = pixel.line * map.line_step - map.line_pad;
  const auto* source = static_cast<const device::Chunk*>(map.data);
  // Every stride is a multiple of 16 bytes.
  const int64_t offset =
      pixel.offset(map.first_image, map.stride) / kChunkElements<input_t> + chunk;
  const int64_t cross_stride = map.stride.cross / kChunkElements<input_t>;
  const int64_t line_stride = map.stride.line / kChunkElements<input_t>;
  WindowPool<input_t> window;
  window.pool.clear(max);
  window.count = 0;
  for (int32_t r = 0; r < map.cross_taps; ++r) {
    const int32_t at = pixel.cross + r;
    if (at < 0 || at >= map.cross_size) continue;
    for (int32_t s = 0; s < map.line_taps; s += kLoads) {
      device::Chunk chunks[kLoads];
      bool inside[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int32_t along = pixel.line + s + i;
        inside[i] = s + i < map.line_taps && along >= 0 && along < map.line_size;
        chunks[i] = {};
        if (inside[i]) chunks[i] = source[offset + r * cross_stride + (s + i) * line_stride];
      }
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if (!inside[i]) continue;
        window.pool.take(chunks[i], false, max);
        ++window.count;
      }
    }
  }
  return window;
}

// Pools one window: 16 bytes of channels of one output pixel, number `item` of those of a launch,
// counted over channels inside and pixels outside. `finish(window, chunk)` is the result, which
// goes to the same channels of `output`.
template <typename input_t, typename Finish>
__device__ __forceinline__ void pool_item(const FilteredMap& map,
                                          int64_t item,
                                          bool max,
                                          void* output,
                                          const MapStrides& output_stride,
                                          const Finish& finish) {
  const int32_t chunks = map.channels / kChunkElements<input_t>;
  const int64_t number = item / chunks;
  if (number >= map.num_pixels()) return;
  const auto chunk = static_cast<int32_t>(item % chunks);
  const Pixel pixel = locate_in_order(map, static_cast<int32_t>(number), 0);
  const device::Chunk result = finish(pool_window<input_t>(map, pixel, chunk, max), chunk);
  const int64_t offset = pixel.offset(map.first_image, output_stride);
  static_cast<device::Chunk*>(output)[offset / kChunkElements<input_t> + chunk] = result;
}

// The same for a maximum.
template <typename input_t>
__device__ __forceinline__ void max_pool_item(const FilteredMap& map,
                                              int64_t item,
                                              void* output,
                                              const MapStrides& output_stride) {
  pool_item<input_t>(
      map, item, true, output, output_stride, [](const WindowPool<input_t>& window, int32_t) {
        return window.pool.result(1.0f, true);
      });
}

// Blocks of `threads` threads for all items of a launch of `map`.
template <typename input_t>
int64_t pool_blocks(const FilteredMap& map, int threads) {
  const int64_t items = int64_t{map.num_pixels()} * (map.channels / kChunkElements<input_t>);
  return (items + threads - 1) / threads;
}

}  // namespace fused_inception
