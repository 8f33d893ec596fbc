// SPDX-License-Identifier: Apache-2.0
// A small kernel with the parts of a real one, and every way to break it that the emulator must
// notice: `fault=` names one.
#include "common/device_launch.cuh"
#include "emulator/driver.h"

namespace {

using namespace fused_inception;

// X(name): `if (p.fault == kName)` breaks the kernel below where it says so.
#define FAULTS(X)               \
  X(none)                       \
  X(no_copy_wait)               \
  X(weak_copy_wait)             \
  X(no_copy_commit)             \
  X(no_sync_after_wait)         \
  X(no_sync_at_loop_end)        \
  X(no_sync_in_epilogue)        \
  X(no_warp_sync)               \
  X(swapped_fragment)           \
  X(transposed_fragment)        \
  X(write_race)                 \
  X(shared_write_out_of_bounds) \
  X(shared_read_out_of_bounds)  \
  X(ldmatrix_out_of_bounds)     \
  X(copy_out_of_bounds)         \
  X(copy_from_out_of_bounds)    \
  X(copy_from_host_memory)      \
  X(global_write_out_of_bounds) \
  X(global_read_out_of_bounds)  \
  X(misaligned_ldmatrix)        \
  X(misaligned_copy)            \
  X(uninitialised_read)         \
  X(diverged_warp)              \
  X(diverged_ldmatrix)          \
  X(barrier_in_a_branch)        \
  X(early_exit)                 \
  X(wrong_barrier_count)        \
  X(disagreeing_barrier_count)  \
  X(named_barrier_missing)      \
  X(copies_in_flight_at_exit)   \
  X(written_twice)              \
  X(reads_another_block)        \
  X(writes_an_input)            \
  X(too_much_shared_memory)

enum class Fault {
#define X(name) name,
  FAULTS(X)
#undef X
};

constexpr int kRows = 32, kColumns = 8, kStep = 16, kThreads = 64;

struct FaultParams {
  const uint16_t* a;  // [kRows][16 * steps], float16
  const uint16_t* b;  // [kColumns][16 * steps]
  float* output;      // [blocks][kRows][kColumns]
  int32_t steps;
  Fault fault;
};

struct Stage {
  uint16_t a[kRows][kStep];
  uint16_t b[kColumns][kStep];
};

struct SharedStorage {
  Stage ring[2];
  float output[kRows][kColumns];
  float warp_sum[2][32];
  float row_sum[kRows];
};

// output = a b + 1. Two warps, 16 rows each; what a thread copies, the other warp reads.
__global__ void __launch_bounds__(kThreads) faulty_kernel(const __grid_constant__ FaultParams p) {
  auto& s = *device::dynamic_smem<SharedStorage>();
  const int thread = device::thread_index(), warp = thread / 32, lane = thread % 32;
  const int k = kStep * p.steps;

  const auto load = [&](int step) {
    Stage& stage = s.ring[step % 2];
    int row = (thread / 2 + 16) % kRows;
    const int half = thread % 2;
    const uint16_t* source = p.a + row * k + step * kStep + 8 * half;
    if (p.fault == Fault::copy_from_out_of_bounds && row == kRows - 1) source += k;
    if (p.fault == Fault::misaligned_copy) source += 4;
    uint16_t host[8] = {};
    if (p.fault == Fault::copy_from_host_memory) {
      source = reinterpret_cast<uint16_t*>((reinterpret_cast<uintptr_t>(host) + 15) / 16 * 16);
    }
    if (p.fault == Fault::copy_out_of_bounds) row += 1000;
    device::cp_async_16(device::smem_u32(stage.a) + 2 * (row * kStep + 8 * half), source, 16);
    if (p.fault == Fault::uninitialised_read && step == 0) return;
    if (thread < 2 * kColumns) {
      device::cp_async_16(device::smem_u32(&stage.b[thread / 2][8 * half]),
                          p.b + thread / 2 * k + step * kStep + 8 * half,
                          16);
    }
  };
  load(0);
  device::cp_async_commit();

  float d[4] = {};
  for (int step = 0; step < p.steps; ++step) {
    if (step + 1 < p.steps) load(step + 1);
    if (p.fault != Fault::no_copy_commit) device::cp_async_commit();
    if (p.fault == Fault::weak_copy_wait) {
      device::cp_async_wait<2>();
    } else if (p.fault != Fault::no_copy_wait) {
      device::cp_async_wait<1>();
    }
    if (p.fault != Fault::no_sync_after_wait) device::block_sync();

    const Stage& stage = s.ring[step % 2];
    int row = 16 * warp + lane % 16, half = lane / 16;
    if (p.fault == Fault::swapped_fragment) {
      row = 16 * warp + lane % 8 + lane / 16 * 8;
      half = lane / 8 % 2;
    }
    if (p.fault == Fault::ldmatrix_out_of_bounds) row += 1000;
    uint32_t address = device::smem_u32(stage.a) + 2 * (row * kStep + 8 * half);
    if (p.fault == Fault::misaligned_ldmatrix) address += 8;
    uint32_t a[4], b[2];
    if (p.fault == Fault::transposed_fragment) {
      device::ldmatrix_transposed(a, address);
    } else if (p.fault == Fault::diverged_ldmatrix && lane >= 16) {
      device::ldmatrix(a, address);
    } else {
      device::ldmatrix(a, address);
    }
    device::ldmatrix(b, device::smem_u32(&stage.b[lane % 8][8 * (lane / 8 % 2)]));
    device::mma_m16n8k16<Float16>(d, a, b);
    if (p.fault == Fault::barrier_in_a_branch && warp == 1 && step == p.steps - 1) break;
    if (p.fault != Fault::no_sync_at_loop_end) device::block_sync();
  }
  if (p.fault == Fault::early_exit && lane == 31) return;

  // A barrier of one warp, and one between the two.
  s.warp_sum[warp][lane] = 1.0f;
  if (p.fault == Fault::diverged_warp && lane == 0) device::block_sync();
  if (p.fault != Fault::no_warp_sync) device::warp_sync();
  const float one = s.warp_sum[warp][lane ^ 1];
  if (p.fault == Fault::write_race && lane == 3) s.row_sum[0] = one;
  if (warp == 0) {
    s.row_sum[lane] = one;
    if (p.fault != Fault::named_barrier_missing) {
      device::named_barrier_arrive(1, p.fault == Fault::wrong_barrier_count ? 32 : 64);
    }
  } else if (p.fault != Fault::named_barrier_missing) {
    device::named_barrier_sync(1, p.fault == Fault::disagreeing_barrier_count ? 32 : 64);
  }
  const float bias = warp == 1 ? s.row_sum[lane] : one;

  for (int i = 0; i < 4; ++i) {
    const int row = 16 * warp + device::accumulator_row(lane, i);
    s.output[row][device::accumulator_column(lane, i)] = d[i] + bias;
  }
  if (p.fault != Fault::no_sync_in_epilogue) device::block_sync();
  const int other = (thread + 32) % kThreads;
  if (p.fault == Fault::shared_write_out_of_bounds) (&s)[1].output[0][thread % 8] = 0.0f;
  float extra = 0.0f;
  if (p.fault == Fault::shared_read_out_of_bounds) extra = (&s)[1].output[0][0];
  if (p.fault == Fault::global_read_out_of_bounds) extra = p.b[kColumns * k];
  int target = device::block_index() * kRows * kColumns / 4 + other;
  if (p.fault == Fault::global_write_out_of_bounds) target += 32;
  if (p.fault == Fault::written_twice) target = other;
  auto* output = reinterpret_cast<device::Chunk*>(p.output);
  if (p.fault == Fault::reads_another_block && device::block_index() == 1) extra = p.output[0];
  output[target] = reinterpret_cast<const device::Chunk*>(s.output)[other];
  if (p.fault == Fault::writes_an_input) const_cast<uint16_t*>(p.a)[0] = 0;
  if (p.fault == Fault::copies_in_flight_at_exit) load(0);
  if (extra != 0.0f) p.output[0] = extra;
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
  params.a = static_cast<const uint16_t*>(driver::Buffer::read("a", arguments.text("a")).get());
  params.b = static_cast<const uint16_t*>(driver::Buffer::read("b", arguments.text("b")).get());
  params.steps = static_cast<int32_t>(arguments.number("steps"));
  params.fault = fault_of(arguments.text("fault"));
  constexpr int kBlocks = 2;
  const driver::Access access = params.fault == Fault::reads_another_block
                                    ? driver::Access::kReadWrite
                                    : driver::Access::kWrite;
  const driver::Buffer output("output", kBlocks * kRows * kColumns * sizeof(float), access);
  params.output = static_cast<float*>(output.get());
  const int bytes = params.fault == Fault::too_much_shared_memory
                        ? 1 << 18
                        : static_cast<int>(sizeof(SharedStorage));
  device::launch(faulty_kernel, kBlocks, kThreads, bytes, nullptr, params);
  const int result = driver::report();
  output.save(arguments.text("output"));
  return result;
}
