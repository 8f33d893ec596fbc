// SPDX-License-Identifier: Apache-2.0
// A small kernel of two blocks that share what they load and exchange what they compute, and every
// way to break it that the emulator must notice: `fault=` names one. Host only.
#include "common/device_launch.cuh"
#include "emulator/driver.h"

namespace {

using namespace fused_inception;
using device::Swizzle;

// X(name): `is(kName)` breaks the kernel below where it says so.
#define FAULTS(X)                  \
  X(none)                          \
  X(no_cluster_barrier_at_start)   \
  X(block_barrier_at_start)        \
  X(no_cluster_wait_at_start)      \
  X(no_cluster_barrier_at_end)     \
  X(exit_between_arrive_and_wait)  \
  X(wait_without_arrive)           \
  X(late_producer)                 \
  X(one_block_leaves_early)        \
  X(rank_of_nobody)                \
  X(own_rank)                      \
  X(mapped_twice)                  \
  X(local_arrival_at_a_mapped)     \
  X(remote_arrival_at_a_local)     \
  X(wait_at_a_mapped)              \
  X(plain_access_to_another_block) \
  X(remote_store_race)             \
  X(remote_load_out_of_bounds)     \
  X(no_exchange_wait)              \
  X(no_exchange_empty_wait)        \
  X(no_fence_before_push)          \
  X(no_barrier_before_push)        \
  X(push_with_own_mbarrier)        \
  X(push_of_too_little)            \
  X(ragged_push)                   \
  X(source_overwritten)            \
  X(no_multicast)                  \
  X(mask_too_wide)                 \
  X(own_empty_only)                \
  X(empty_counts_own_only)         \
  X(expects_what_it_copies_itself) \
  X(expects_the_inside_of_the_box) \
  X(no_full_wait)                  \
  X(no_empty_wait)                 \
  X(misaligned_box)                \
  X(box_off_the_pattern)           \
  X(box_out_of_bounds)             \
  X(map_that_nobody_made)          \
  X(map_of_ragged_strides)         \
  X(map_of_wide_rows)              \
  X(descriptor_without_swizzle)    \
  X(descriptor_of_another_swizzle) \
  X(descriptor_off_the_pattern)    \
  X(descriptor_with_a_base_offset) \
  X(descriptor_past_its_span)      \
  X(too_many_blocks)               \
  X(half_a_cluster)

enum class Fault {
#define X(name) name,
  FAULTS(X)
#undef X
};

constexpr int kColumns = 80, kSlots = 2, kSteps = 4, kRounds = 2, kThreads = 256;
constexpr int kRowsOfABlock = 32, kBoxBytes = kRowsOfABlock * 64, kPieces = 4 * kSteps;
// Of 128 channels the last eight are outside of the tensor.
constexpr int kChannels = 120;

struct FaultParams {
  device::TensorMap a;     // [64][kChannels], float16
  const device::Chunk* b;  // [kRounds][kPieces][kColumns], eight channels each
  float* output;           // [block][kRounds][64][kColumns]: a b^T
  Fault fault;
};

struct SharedStorage {
  alignas(1024) device::Chunk ring[kSlots][64][4];
  device::Chunk b[kPieces][kColumns];
  uint64_t full[kSlots], empty[kSlots], exchange_full, exchange_empty;
  uint32_t spare[2];
};

// Four warps multiply, the fifth streams `a`: each block loads half of its rows for both. Of b each
// block stores half of the channels and pushes them to the other.
__global__ void faulty_kernel(const __grid_constant__ FaultParams p) {
  auto& s = *device::dynamic_smem<SharedStorage>();
  const int thread = device::thread_index(), warp = thread / 32, lane = thread % 32;
  const int rank = device::cluster_rank(), peer = 1 - rank;
  const auto is = [&](Fault fault) { return p.fault == fault; };
  const auto full = [&](int slot) { return device::smem_u32(&s.full[slot]); };
  const auto empty = [&](int slot) { return device::smem_u32(&s.empty[slot]); };
  const uint32_t exchange_full = device::smem_u32(&s.exchange_full);
  const uint32_t exchange_empty = device::smem_u32(&s.exchange_empty);

  if (thread == 0) {
    for (int i = 0; i < kSlots; ++i) {
      device::mbarrier_init(full(i), 1);
      device::mbarrier_init(empty(i), is(Fault::empty_counts_own_only) ? 4 : 8);
    }
    device::mbarrier_init(exchange_full, 1);
    device::mbarrier_init(exchange_empty, 8);
    device::mbarrier_init_fence();
  }
  if (is(Fault::wait_without_arrive)) device::cluster_wait();
  if (is(Fault::block_barrier_at_start)) device::block_sync();
  if (!is(Fault::no_cluster_barrier_at_start) && !is(Fault::block_barrier_at_start)) {
    device::cluster_arrive();
    if (!is(Fault::no_cluster_wait_at_start)) device::cluster_wait();
  }
  if (is(Fault::one_block_leaves_early) && rank == 0) return;

  // Arrives at the same mbarrier of both blocks, one lane each.
  const auto arrive_at_both = [&](uint32_t barrier) {
    if (lane >= 2) return;
    int target = lane;
    if (is(Fault::rank_of_nobody)) target += 2;
    if (is(Fault::mapped_twice)) barrier = device::map_rank(barrier, rank);
    if (is(Fault::local_arrival_at_a_mapped)) {
      device::mbarrier_arrive(device::map_rank(barrier, target));
    } else if (is(Fault::remote_arrival_at_a_local)) {
      device::mbarrier_arrive_remote(barrier);
    } else {
      device::mbarrier_arrive_remote(device::map_rank(barrier, target));
    }
  };

  if (thread == 128) {
    for (int step = 0; step < kRounds * kSteps; ++step) {
      const int slot = step % kSlots, turn = step / kSlots;
      if (!is(Fault::no_empty_wait)) device::mbarrier_wait(empty(slot), (turn + 1) % 2);
      int expected = 2 * kBoxBytes;
      if (is(Fault::expects_what_it_copies_itself)) expected = kBoxBytes;
      if (is(Fault::expects_the_inside_of_the_box) && step % kSteps == kSteps - 1)
        expected -= 2 * kRowsOfABlock * 16;
      device::mbarrier_arrive_expect_tx(full(slot), expected);
      uint32_t target = device::smem_u32(s.ring[slot][kRowsOfABlock * rank]);
      if (is(Fault::misaligned_box)) target += 64;
      if (is(Fault::box_off_the_pattern)) target += 128;
      if (is(Fault::box_out_of_bounds)) target += 1 << 17;
      const int x = 32 * (step % kSteps), z = kRowsOfABlock * rank;
      uint16_t mask = 3;
      if (is(Fault::no_multicast)) mask = static_cast<uint16_t>(1 << rank);
      if (is(Fault::mask_too_wide)) mask = 7;
      device::tensor_copy_multicast(target, p.a, x, 0, z, full(slot), mask);
    }
  }
  if (is(Fault::late_producer)) {
    device::cluster_arrive();
    device::cluster_wait();
  }

  if (warp < 4) {
    float d[kColumns / 2];
    for (int round = 0; round < kRounds; ++round) {
      if (!is(Fault::no_exchange_empty_wait))
        device::mbarrier_wait(exchange_empty, (round + 1) % 2);
      constexpr int kHalf = kPieces / 2 * kColumns;
      device::Chunk* const mine = s.b[kPieces / 2 * rank];
      for (int i = thread; i < kHalf; i += 128)
        mine[i] = p.b[(2 * round + rank) * kHalf + i];
      if (!is(Fault::no_fence_before_push)) device::fence_proxy_async();
      if (!is(Fault::no_barrier_before_push)) device::named_barrier_sync(1, 128);
      if (thread == 0) {
        device::mbarrier_arrive_expect_tx(exchange_full, kHalf * 16);
        int bytes = kHalf * 16;
        if (is(Fault::push_of_too_little)) bytes -= 16;
        if (is(Fault::ragged_push)) bytes -= 8;
        const int target = is(Fault::own_rank) ? rank : peer;
        device::bulk_push(
            device::map_rank(device::smem_u32(mine), target),
            device::smem_u32(mine),
            bytes,
            device::map_rank(exchange_full, is(Fault::push_with_own_mbarrier) ? rank : target));
        if (is(Fault::source_overwritten)) mine[0] = {};
      }
      const uint32_t arrived =
          is(Fault::wait_at_a_mapped) ? device::map_rank(exchange_full, peer) : exchange_full;
      if (!is(Fault::no_exchange_wait)) device::mbarrier_wait(arrived, round % 2);

      for (int step = 0; step < kSteps; ++step) {
        const int slot = step % kSlots;
        if (!is(Fault::no_full_wait)) device::mbarrier_wait(full(slot), step / kSlots % 2);
        device::wgmma_fence(d);
        for (int k16 = 0; k16 < 2; ++k16) {
          uint32_t rows_a = device::smem_u32(s.ring[slot]) + static_cast<uint32_t>(32 * k16);
          if (is(Fault::descriptor_off_the_pattern)) rows_a += 128;
          if (is(Fault::descriptor_past_its_span)) rows_a += 16;
          uint64_t descriptor = device::swizzled_descriptor<Swizzle::k64>(rows_a, 512);
          if (is(Fault::descriptor_without_swizzle))
            descriptor = device::matrix_descriptor(rows_a, 16, 512);
          if (is(Fault::descriptor_of_another_swizzle))
            descriptor = device::swizzled_descriptor<Swizzle::k32>(rows_a & ~63u, 512);
          if (is(Fault::descriptor_with_a_base_offset)) descriptor |= uint64_t{1} << 49;
          device::wgmma_m64k16<Float16>(
              d,
              descriptor,
              device::matrix_descriptor(
                  device::smem_u32(s.b[4 * step + 2 * k16]), 16 * kColumns, 128),
              step + k16 > 0);
        }
        device::wgmma_commit();
        device::wgmma_wait<0>();
        if (is(Fault::own_empty_only)) {
          if (lane == 0) device::mbarrier_arrive(empty(slot));
        } else {
          arrive_at_both(empty(slot));
        }
      }
      arrive_at_both(exchange_empty);
      float* const output = p.output + (device::block_index() * kRounds + round) * 64 * kColumns;
      for (int i = 0; i < kColumns / 2; ++i) {
        const int row = device::wgmma_row(thread, i), column = device::wgmma_column(thread, i);
        output[row * kColumns + column] = d[i];
      }
    }
  }

  const uint32_t spare = device::smem_u32(&s.spare[0]);
  if (thread == 0) {
    s.spare[0] = 1;
    if (is(Fault::remote_store_race)) device::remote_store(device::map_rank(spare, peer), 2);
    if (is(Fault::remote_load_out_of_bounds))
      device::remote_load(device::map_rank(spare, peer) + 4096);
    // The emulator's blocks are so far apart.
    if (is(Fault::plain_access_to_another_block))
      *reinterpret_cast<uint32_t*>(reinterpret_cast<char*>(&s) + (peer - rank) * (1 << 20)) = 0;
  }
  if (is(Fault::no_cluster_barrier_at_end)) return;
  device::cluster_arrive();
  if (is(Fault::exit_between_arrive_and_wait)) return;
  device::cluster_wait();
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
  params.fault = fault_of(arguments.text("fault"));
  const auto is = [&](Fault fault) { return params.fault == fault; };
  const void* a = driver::Buffer::read("a", arguments.text("a")).get();
  params.b =
      static_cast<const device::Chunk*>(driver::Buffer::read("b", arguments.text("b")).get());
  const int64_t pitch = 2 * kChannels - (is(Fault::map_of_ragged_strides) ? 8 : 0);
  const device::Status made =
      device::make_tensor_map(params.a,
                              a,
                              {kChannels, 1, 64},
                              {2 * kChannels, pitch},
                              {is(Fault::map_of_wide_rows) ? 64 : 32, 1, kRowsOfABlock},
                              Swizzle::k64);
  if (made != device::kSuccess) {
    std::printf("refused\n");
    return 1;
  }
  if (is(Fault::map_that_nobody_made)) params.a = {};
  const driver::Buffer output("output", 2 * kRounds * 64 * kColumns * 4, driver::Access::kWrite);
  params.output = static_cast<float*>(output.get());
  device::launch(faulty_kernel,
                 is(Fault::half_a_cluster) ? 3 : 2,
                 kThreads,
                 sizeof(SharedStorage),
                 nullptr,
                 params,
                 is(Fault::too_many_blocks) ? 9 : 2);
  const int result = driver::report();
  output.save(arguments.text("output"));
  return result;
}
