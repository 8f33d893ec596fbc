// SPDX-License-Identifier: Apache-2.0
// A small kernel with the parts of one on wgmma, and every way to break it that the emulator must
// notice: `fault=` names one. Host only.
#include "common/device_launch.cuh"
#include "emulator/driver.h"

#include <utility>

namespace {

using namespace fused_inception;

// X(name): `is(kName)` breaks the kernel below where it says so.
#define FAULTS(X)                 \
  X(none)                         \
  X(no_init_fence)                \
  X(no_sync_after_init)           \
  X(initialised_twice)            \
  X(barrier_not_initialised)      \
  X(misaligned_barrier)           \
  X(no_full_wait)                 \
  X(no_empty_wait)                \
  X(wrong_full_phase)             \
  X(wrong_empty_phase)            \
  X(every_lane_arrives)           \
  X(one_warp_arrives)             \
  X(expects_half)                 \
  X(expects_too_much)             \
  X(no_proxy_fence)               \
  X(proxy_fence_of_the_reader)    \
  X(proxy_fence_after_barrier)    \
  X(no_named_barrier)             \
  X(swapped_strides)              \
  X(wrong_row_stride)             \
  X(eight_rows_too_far)           \
  X(rows_out_of_bounds)           \
  X(halo_not_zeroed)              \
  X(swizzled_descriptor)          \
  X(disagreeing_descriptors)      \
  X(no_wgmma_fence)               \
  X(no_wgmma_wait)                \
  X(weak_wgmma_wait)              \
  X(no_wgmma_commit)              \
  X(released_before_wait)         \
  X(half_a_warpgroup)             \
  X(misaligned_bulk_copy)         \
  X(ragged_bulk_copy)             \
  X(bulk_copy_out_of_bounds)      \
  X(bulk_copy_from_out_of_bounds) \
  X(bulk_copy_in_flight_at_exit)  \
  X(misaligned_stmatrix)          \
  X(no_sync_after_stmatrix)       \
  X(overwritten_while_read)

enum class Fault {
#define X(name) name,
  FAULTS(X)
#undef X
};

constexpr int kColumns = 80, kHalo = 3, kSlots = 2, kThreads = 160;
constexpr int kRowsB = kColumns + kHalo, kPieceBytes = 64 * 16 * 2;

struct FaultParams {
  const device::Chunk* a;  // [2 steps][64], eight elements each: k-major, as wgmma reads it
  const device::Chunk* b;  // [2 steps][kColumns]
  uint32_t* output;        // [kColumns][32], pairs of float16: (a shifted b^T) transposed
  int32_t steps;
  Fault fault;
};

struct SharedStorage {
  alignas(128) device::Chunk ring[kSlots][2][64];
  device::Chunk b[8][kRowsB];
  device::Chunk leaving[4][16];
  uint64_t full[kSlots], empty[kSlots], spare;
};

// Four warps multiply, the fifth streams `a`. Column n of the result is row n - kHalo of b, and
// zero for the first kHalo.
__global__ void faulty_kernel(const __grid_constant__ FaultParams p) {
  auto& s = *device::dynamic_smem<SharedStorage>();
  const int thread = device::thread_index(), warp = thread / 32, lane = thread % 32;
  const auto is = [&](Fault fault) { return p.fault == fault; };
  const auto full = [&](int slot) { return device::smem_u32(&s.full[slot]); };
  const auto empty = [&](int slot) { return device::smem_u32(&s.empty[slot]); };

  if (thread == 0) {
    for (int i = 0; i < kSlots; ++i) {
      if (is(Fault::barrier_not_initialised) && i == 1) break;
      device::mbarrier_init(full(i), 1);
      device::mbarrier_init(empty(i), 4);
      if (is(Fault::initialised_twice)) device::mbarrier_init(full(i), 1);
    }
    if (is(Fault::misaligned_barrier)) device::mbarrier_init(full(0) + 4, 1);
    if (!is(Fault::no_init_fence)) device::mbarrier_init_fence();
  }
  if (!is(Fault::no_sync_after_init)) device::block_sync();

  if (warp == 4) {
    if (lane != 0) return;
    for (int step = 0; step < p.steps; ++step) {
      const int slot = step % kSlots, turn = step / kSlots;
      if (!is(Fault::no_empty_wait))
        device::mbarrier_wait(empty(slot), (turn + (is(Fault::wrong_empty_phase) ? 0 : 1)) % 2);
      int expected = kPieceBytes;
      if (is(Fault::expects_half)) expected /= 2;
      if (is(Fault::expects_too_much)) expected += 16;
      device::mbarrier_arrive_expect_tx(full(slot), expected);
      const device::Chunk* source = p.a + 128 * step;
      int bytes = kPieceBytes;
      uint32_t target = device::smem_u32(s.ring[slot]);
      if (is(Fault::misaligned_bulk_copy))
        source = reinterpret_cast<const device::Chunk*>(reinterpret_cast<const char*>(source) + 8);
      if (is(Fault::ragged_bulk_copy)) bytes -= 8;
      if (is(Fault::bulk_copy_from_out_of_bounds) && step == p.steps - 1) source += 1;
      if (is(Fault::bulk_copy_out_of_bounds)) target += 1 << 17;
      device::bulk_copy(target, source, bytes, full(slot));
    }
    if (is(Fault::bulk_copy_in_flight_at_exit)) {
      device::mbarrier_wait(empty(0), 1);
      device::bulk_copy(device::smem_u32(s.ring[0]), p.a, 16, full(0));
    }
    return;
  }

  // b, shifted, by plain stores.
  for (int i = thread; i < 2 * p.steps * kRowsB; i += 128) {
    const int chunk = i / kRowsB, row = i % kRowsB;
    if (row < kHalo && is(Fault::halo_not_zeroed)) continue;
    s.b[chunk][row] = row < kHalo ? device::Chunk{} : p.b[chunk * kColumns + row - kHalo];
  }
  const bool early_fence = !is(Fault::no_proxy_fence) && !is(Fault::proxy_fence_of_the_reader) &&
                           !is(Fault::proxy_fence_after_barrier);
  if (early_fence || (is(Fault::proxy_fence_of_the_reader) && warp == 0))
    device::fence_proxy_async();
  if (!is(Fault::no_named_barrier)) device::named_barrier_sync(1, 128);
  if (is(Fault::proxy_fence_after_barrier)) device::fence_proxy_async();

  float d[kColumns / 2];
  if (!is(Fault::no_wgmma_fence)) device::wgmma_fence(d);
  for (int step = 0; step < p.steps; ++step) {
    const int slot = step % kSlots, turn = step / kSlots;
    if (!is(Fault::no_full_wait))
      device::mbarrier_wait(full(slot), (turn + (is(Fault::wrong_full_phase) ? 1 : 0)) % 2);
    uint32_t rows_b = device::smem_u32(s.b[2 * step]);
    if (is(Fault::eight_rows_too_far)) rows_b += 8 * 16;
    if (is(Fault::rows_out_of_bounds)) rows_b += 1 << 14;
    if (is(Fault::disagreeing_descriptors) && warp == 2) rows_b += 16;
    uint32_t k_stride = 16 * kRowsB, row_stride = 128;
    if (is(Fault::swapped_strides)) std::swap(k_stride, row_stride);
    if (is(Fault::wrong_row_stride)) row_stride = 64;
    uint64_t descriptor = device::matrix_descriptor(rows_b, k_stride, row_stride);
    if (is(Fault::swizzled_descriptor)) descriptor |= uint64_t{1} << 62;
    if (is(Fault::half_a_warpgroup) && warp >= 2) break;
    device::wgmma_m64k16<Float16>(
        d,
        device::matrix_descriptor(device::smem_u32(s.ring[slot]), 16 * 64, 128),
        descriptor,
        step > 0);
    if (!is(Fault::no_wgmma_commit)) device::wgmma_commit();
    if (is(Fault::overwritten_while_read) && step == 0 && thread == 0) s.b[0][kHalo] = {};
    if (is(Fault::weak_wgmma_wait)) {
      device::wgmma_wait<1>();
    } else if (!is(Fault::released_before_wait) &&
               !(is(Fault::no_wgmma_wait) && step == p.steps - 1)) {
      device::wgmma_wait<0>();
    }
    const bool arrives = is(Fault::every_lane_arrives) || (lane == 0);
    if (arrives && !(is(Fault::one_warp_arrives) && warp > 0)) device::mbarrier_arrive(empty(slot));
    // The accumulators have been given back; the next product takes them again.
    if (!is(Fault::no_wgmma_fence)) device::wgmma_fence(d);
  }
  if (!is(Fault::no_wgmma_wait)) device::wgmma_finish(d);

  // 16 rows and 8 columns at a time, transposed.
  for (int j = 0; j < kColumns / 8; ++j) {
    const uint32_t r[2] = {device::pack2<Float16>(d[4 * j], d[4 * j + 1]),
                           device::pack2<Float16>(d[4 * j + 2], d[4 * j + 3])};
    uint32_t target = device::smem_u32(&s.leaving[warp][lane % 16]);
    if (is(Fault::misaligned_stmatrix)) target += 8;
    device::stmatrix_transposed(target, r);
    if (!is(Fault::no_sync_after_stmatrix)) device::warp_sync();
    for (int i = lane; i < 64; i += 32) {
      const int half = i / 32, column = i / 4 % 8, pair = i % 4;
      p.output[(8 * j + column) * 32 + 8 * warp + 4 * half + pair] =
          s.leaving[warp][8 * half + column].words[pair];
    }
    device::warp_sync();
  }
}

Fault fault_of(const std::string& name) {
#define X(fault) \
  if (name == #fault) return Fault::fault;
  FAULTS(X)
#undef X
  driver::die("no fault " + name);
}

}  // namespace

int main(int argc, char** argv) {
  const driver::Arguments arguments(argc, argv);
  if (arguments.number("list", 0) != 0) {
#define X(fault) std::printf("fault %s\n", #fault);
    FAULTS(X)
#undef X
    return 0;
  }
  driver::configure(arguments);
  FaultParams params = {};
  const auto chunks = [&](const char* name) {
    return static_cast<const device::Chunk*>(
        driver::Buffer::read(name, arguments.text(name)).get());
  };
  params.a = chunks("a");
  params.b = chunks("b");
  params.steps = static_cast<int32_t>(arguments.number("steps"));
  params.fault = fault_of(arguments.text("fault"));
  const driver::Buffer output("output", kColumns * 32 * 4, driver::Access::kWrite);
  params.output = static_cast<uint32_t*>(output.get());
  device::launch(faulty_kernel, 1, kThreads, sizeof(SharedStorage), nullptr, params);
  const int result = driver::report();
  output.save(arguments.text("output"));
  return result;
}
