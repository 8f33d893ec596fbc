// SPDX-License-Identifier: Apache-2.0
// Every hardware primitive that the kernels use, behind a named function.
//
// Kernels contain no inline assembly and no intrinsics; they call these functions. Under nvcc they
// are PTX (device_ptx.cuh), for any other compiler they belong to the emulator of the tests, which
// runs the same kernels on the host. Both sides have the same names and the same signatures; what
// is arithmetic for both of them stands here, below the switch.
#pragma once

#include "common/element.h"

#include <cstdint>

namespace fused_inception::device {

// Sixteen bytes that move as one: the unit of cp.async and of global stores.
struct alignas(16) Chunk {
  uint32_t words[4];
};

// How the 16-byte pieces of shared memory change places: within spans of so many bytes, by the bits
// of their address from 128 up. Tensor copies write by it and wgmma reads by it, so that eight rows
// of one span each meet every bank once.
enum class Swizzle { kNone = 0, k32 = 32, k64 = 64, k128 = 128 };

}  // namespace fused_inception::device

#ifdef __CUDACC__
#include "common/device_ptx.cuh"
#else
#include "emulator/device_host.h"
#endif

namespace fused_inception::device {

constexpr int kWarpSize = 32;

// Where register i (0..3) of a lane stands in the 16x8 accumulator of mma_m16n8k16.
__device__ __forceinline__ int accumulator_row(int lane, int i) {
  return (lane >> 2) + 8 * (i >> 1);
}
__device__ __forceinline__ int accumulator_column(int lane, int i) {
  return 2 * (lane & 3) + (i & 1);
}

constexpr int kWarpgroupSize = 128;

// The same for register i of a thread of a warpgroup in the accumulator of wgmma_m64k16.
__device__ __forceinline__ int wgmma_row(int thread, int i) {
  return 16 * (thread / kWarpSize) + (thread % kWarpSize >> 2) + 8 * (i >> 1 & 1);
}
__device__ __forceinline__ int wgmma_column(int thread, int i) {
  return 8 * (i >> 2) + 2 * (thread & 3) + (i & 1);
}

// Operands of wgmma_m64k16: K-major without a swizzle (PTX ISA 9.7.15.5.1.2). Eight elements of k
// are 16 bytes, eight rows of these 128 bytes; `k_stride` bytes on are the next eight elements of
// k, and `row_stride` bytes on the next eight rows. Addresses and strides are multiples of 16.
//
// With [k / 8][row][8] in memory, k_stride is 16 times the number of rows and row_stride is 128;
// then rows are linear, and a start address 16 d bytes on is the same operand from row d on.
__device__ __forceinline__ uint64_t matrix_descriptor(uint32_t address,
                                                      uint32_t k_stride,
                                                      uint32_t row_stride) {
  const auto field = [](uint32_t bytes) { return static_cast<uint64_t>((bytes & 0x3ffff) >> 4); };
  return field(address) | field(k_stride) << 16 | field(row_stride) << 32;
}

// The same for rows of kSwizzle bytes, as tensor copies with this swizzle write them; `row_stride`
// from eight rows to the next. The address is in the first row of a pattern, which is eight rows
// and begins on a multiple of its size; 32 bytes on are the next 16 elements of k.
template <Swizzle kSwizzle>
__device__ __forceinline__ uint64_t swizzled_descriptor(uint32_t address, uint32_t row_stride) {
  static_assert(kSwizzle != Swizzle::kNone, "that is matrix_descriptor");
  constexpr uint64_t kLayout = kSwizzle == Swizzle::k128 ? 1 : kSwizzle == Swizzle::k64 ? 2 : 3;
  return matrix_descriptor(address, 16, row_stride) | kLayout << 62;
}

// max(x, 0) that keeps NaN and -0.0, as PyTorch's relu does.
__device__ __forceinline__ float relu(float x) {
  return x < 0.0f ? 0.0f : x;
}

// A float's bits, and back.
__device__ __forceinline__ uint32_t float_bits(float value) {
  return __builtin_bit_cast(uint32_t, value);
}
__device__ __forceinline__ float bits_float(uint32_t bits) {
  return __builtin_bit_cast(float, bits);
}

}  // namespace fused_inception::device
