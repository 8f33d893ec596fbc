// SPDX-License-Identifier: Apache-2.0
// The primitives of csrc/common/device.cuh, as the PTX ISA describes them.
#include "emulator/machine.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace emulator {
namespace {

Block& block() {
  return *current_block();
}

float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

float float16_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = bits >> 10 & 31, mantissa = bits & 1023;
  if (exponent == 31) return bits_to_float(sign | 0x7f800000 | mantissa << 13);
  if (exponent != 0) return bits_to_float(sign | (exponent + 112) << 23 | mantissa << 13);
  const float value = std::ldexp(static_cast<float>(mantissa), -24);
  return sign ? -value : value;
}

struct Float16Table {
  float value[65536];
  Float16Table() {
    for (uint32_t i = 0; i < 65536; ++i)
      value[i] = float16_to_float(static_cast<uint16_t>(i));
  }
};

uint16_t round_to_float16(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t sign = bits >> 16 & 0x8000;
  if (std::isnan(value)) return static_cast<uint16_t>(0x7fff);
  const float magnitude = std::fabs(value);
  // 65520 is halfway from the largest number, 65504, to the next that would have been.
  if (magnitude >= 65520.0f) return static_cast<uint16_t>(sign | 0x7c00);
  // The unit in the last place: 2^-24 below 2^-14, then 10 bits under the leading one. The host
  // rounds to nearest even.
  int exponent = -14;
  if (magnitude >= std::ldexp(1.0f, -14)) exponent = std::ilogb(magnitude);
  const float units = std::nearbyint(std::ldexp(magnitude, 10 - exponent));
  return static_cast<uint16_t>(
      sign | (static_cast<uint32_t>(exponent + 14) * 1024 + static_cast<uint32_t>(units)));
}

uint16_t round_to_bfloat16(float value) {
  const uint32_t bits = float_to_bits(value);
  if (std::isnan(value)) return static_cast<uint16_t>(0x7fff);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// A copy of cp.async in flight.
class Copy : public AsyncOperation {
 public:
  Copy(Actor actor, Epoch epoch, char* destination, const void* source, int bytes)
      : AsyncOperation(actor, epoch), destination_(destination), source_(source), bytes_(bytes) {}

  void land() override {
    std::memcpy(destination_, source_, static_cast<size_t>(bytes_));
    std::memset(destination_ + bytes_, 0, static_cast<size_t>(16 - bytes_));
  }

 private:
  char* destination_;
  const void* source_;
  int bytes_;
};

// A warp at a barrier: 0 is the block's.
struct BarrierCall {
  int id;
  int threads;
  bool waits;
};

bool perform_barrier(Block& block, int first_thread, void* const* arguments) {
  const auto& call = *static_cast<const BarrierCall*>(arguments[0]);
  return block.arrive(call.id, call.threads, first_thread, call.waits);
}

void barrier(const char* name, BarrierCall call, const Site& site) {
  if (skipped(site_number(site), name)) return;
  block().maybe_yield();
  const int64_t variant = call.id * 4096 + call.threads;
  block().collective(name, site, variant, &call, perform_barrier);
}

bool perform_warp_sync(Block& block, int first_thread, void* const*) {
  HappensBefore::Release release;
  for (int i = 0; i < kWarpSize; ++i)
    block.order().release(first_thread + i, release);
  for (int i = 0; i < kWarpSize; ++i)
    block.order().acquire(first_thread + i, release);
  return true;
}

struct LdmatrixCall {
  uint32_t* r;
  uint32_t address;
  int matrices;
  bool transposed;
  int site;
};

bool perform_ldmatrix(Block& block, int first_thread, void* const* arguments) {
  const auto call = [&](int lane) -> const LdmatrixCall& {
    return *static_cast<const LdmatrixCall*>(arguments[lane]);
  };
  const LdmatrixCall& first = call(0);
  uint16_t matrix[4][8][8];
  for (int j = 0; j < first.matrices; ++j) {
    uint32_t banks[8][8];
    int in_bank[8] = {};
    int most = 1;
    for (int row = 0; row < 8; ++row) {
      const int lane = 8 * j + row;
      const uint32_t address = call(lane).address;
      std::memcpy(matrix[j][row], block.resolve(address, 16, 16, "ldmatrix"), 16);
      const int thread = first_thread + lane;
      block.touch(false,
                  address - kSharedBase,
                  16,
                  thread,
                  block.order().thread_actor(thread),
                  block.order().now(thread),
                  first.site);
      // Rows of distinct addresses in the same 16 of the 128 bytes wait for each other.
      const int bank = static_cast<int>(address >> 4 & 7);
      bool known = false;
      for (int i = 0; i < in_bank[bank]; ++i)
        known = known || banks[bank][i] == address;
      if (!known) banks[bank][in_bank[bank]++] = address;
      most = in_bank[bank] > most ? in_bank[bank] : most;
    }
    count_banks(most - 1);
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const int g = lane / 4, q = lane % 4;
    for (int j = 0; j < first.matrices; ++j) {
      const auto& m = matrix[j];
      const uint32_t low = first.transposed ? m[2 * q][g] : m[g][2 * q];
      const uint32_t high = first.transposed ? m[2 * q + 1][g] : m[g][2 * q + 1];
      call(lane).r[j] = low | high << 16;
    }
  }
  return true;
}

struct StmatrixCall {
  const uint32_t* r;
  uint32_t address;
  int matrices;
  bool transposed;
  int site;
};

bool perform_stmatrix(Block& block, int first_thread, void* const* arguments) {
  const auto call = [&](int lane) -> const StmatrixCall& {
    return *static_cast<const StmatrixCall*>(arguments[lane]);
  };
  const StmatrixCall& first = call(0);
  for (int j = 0; j < first.matrices; ++j) {
    for (int row = 0; row < 8; ++row) {
      uint16_t values[8];
      for (int column = 0; column < 8; ++column) {
        const int g = first.transposed ? column : row, pair = first.transposed ? row : column;
        values[column] = static_cast<uint16_t>(call(4 * g + pair / 2).r[j] >> 16 * (pair % 2));
      }
      const int thread = first_thread + 8 * j + row;
      const uint32_t address = call(8 * j + row).address;
      char* target = block.resolve(address, 16, 16, "stmatrix");
      block.touch(true,
                  address - kSharedBase,
                  16,
                  thread,
                  block.order().thread_actor(thread),
                  block.order().now(thread),
                  first.site);
      std::memcpy(target, values, 16);
    }
  }
  return true;
}

struct MmaCall {
  Element element;
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

bool perform_mma(Block&, int, void* const* arguments) {
  float a[16][16], b[16][8], d[16][8];
  const Element element = static_cast<const MmaCall*>(arguments[0])->element;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto& call = *static_cast<const MmaCall*>(arguments[lane]);
    const int g = lane / 4, q = lane % 4;
    for (int e = 0; e < 2; ++e) {
      const auto half = [e](uint32_t word) { return static_cast<uint16_t>(word >> 16 * e); };
      for (int r = 0; r < 4; ++r) {
        a[g + 8 * (r & 1)][2 * q + e + 8 * (r >> 1)] = to_float(element, half(call.a[r]));
      }
      for (int r = 0; r < 2; ++r)
        b[2 * q + e + 8 * r][g] = to_float(element, half(call.b[r]));
    }
    for (int i = 0; i < 4; ++i)
      d[g + 8 * (i >> 1)][2 * q + (i & 1)] = call.d[i];
  }
  // Products of 16-bit operands are exact in float32; the sum runs over k in order, rounded at each
  // step. The device's order within one mma is not specified.
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 8; ++n)
        d[m][n] += a[m][k] * b[k][n];
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto& call = *static_cast<const MmaCall*>(arguments[lane]);
    const int g = lane / 4, q = lane % 4;
    for (int i = 0; i < 4; ++i)
      call.d[i] = d[g + 8 * (i >> 1)][2 * q + (i & 1)];
  }
  return true;
}

}  // namespace

void* dynamic_smem() {
  return shared_window(block().rank()) + kSharedBase;
}

void named_barrier(int id, int threads, bool waits, const Site& site) {
  if (id < 1 || id >= kNamedBarriers) {
    fail("named barrier " + std::to_string(id) + ": takes 1 to 15");
  }
  if (threads < kWarpSize || threads % kWarpSize != 0 || threads > block().size()) {
    fail("named barrier " + std::to_string(id) + " for " + std::to_string(threads) +
         " threads: takes whole warps of the block");
  }
  barrier(waits ? "named_barrier_sync" : "named_barrier_arrive", {id, threads, waits}, site);
}

void cp_async_wait(int pending, const Site& site) {
  const int number = site_number(site);
  if (skipped(number, "cp_async_wait")) return;
  if (weakened(number)) ++pending;
  block().maybe_yield();
  const Thread& thread = block().current();
  if (thread.groups <= static_cast<Epoch>(pending)) return;
  const Epoch done = thread.groups - static_cast<Epoch>(pending);
  block().async().force(block().order().copy_actor(thread.index), done, block().random());
  block().order().copies_done(thread.index, done);
}

void ldmatrix(uint32_t* r, int matrices, bool transposed, uint32_t address, const Site& site) {
  LdmatrixCall call{r, address, matrices, transposed, site_number(site)};
  block().collective(
      transposed ? "ldmatrix_transposed" : "ldmatrix", site, matrices, &call, perform_ldmatrix);
}

void stmatrix(
    const uint32_t* r, int matrices, bool transposed, uint32_t address, const Site& site) {
  StmatrixCall call{r, address, matrices, transposed, site_number(site)};
  block().collective(
      transposed ? "stmatrix_transposed" : "stmatrix", site, matrices, &call, perform_stmatrix);
}

void mma_m16n8k16(
    Element element, float* d, const uint32_t* a, const uint32_t* b, const Site& site) {
  MmaCall call{element, d, a, b};
  block().collective("mma_m16n8k16", site, static_cast<int64_t>(element), &call, perform_mma);
}

uint32_t pack2(Element element, float low, float high) {
  const auto round = element == Element::kFloat16 ? round_to_float16 : round_to_bfloat16;
  return round(low) | static_cast<uint32_t>(round(high)) << 16;
}

float to_float(Element element, uint16_t bits) {
  static const Float16Table table;
  return element == Element::kFloat16 ? table.value[bits]
                                      : bits_to_float(static_cast<uint32_t>(bits) << 16);
}

}  // namespace emulator

namespace fused_inception::device {

using emulator::current_block;

int thread_index() {
  return current_block()->current().index % current_block()->size();
}
int block_index() {
  return static_cast<int>(current_block()->index());
}
int grid_size() {
  return static_cast<int>(current_block()->grid());
}

void trap() {
  emulator::fail("trap");
}

uint32_t smem_u32(const void* pointer) {
  const std::ptrdiff_t offset =
      static_cast<const char*>(pointer) - emulator::shared_window(current_block()->rank());
  const auto end =
      static_cast<std::ptrdiff_t>(emulator::kSharedBase + current_block()->shared_bytes());
  if (offset < 0 || offset > end)
    emulator::fail("smem_u32 of a pointer that is not into shared memory");
  return static_cast<uint32_t>(offset);
}

void block_sync(Site site) {
  emulator::barrier("block_sync", {0, current_block()->size(), true}, site);
}

void warp_sync(Site site) {
  if (emulator::skipped(emulator::site_number(site), "warp_sync")) return;
  current_block()->maybe_yield();
  current_block()->collective("warp_sync", site, 0, nullptr, emulator::perform_warp_sync);
}

void cp_async_16(uint32_t destination, const void* source, int bytes, Site site) {
  emulator::Block& block = *current_block();
  const int number = emulator::site_number(site);
  if (bytes < 0 || bytes > 16)
    emulator::fail("cp_async_16 of " + std::to_string(bytes) + " bytes: takes 0 to 16");
  if (reinterpret_cast<uintptr_t>(source) % 16 != 0)
    emulator::fail("misaligned: the source of cp_async_16");
  // Also where nothing is read the address has to be a valid one.
  if (!emulator::is_global(source)) {
    emulator::fail("out of bounds: the source of cp_async_16 is not in global memory");
  }
  emulator::touch_global(false, source, bytes == 0 ? 1 : static_cast<size_t>(bytes), number);
  char* target = block.resolve(destination, 16, 16, "cp_async_16");
  const emulator::Thread& thread = block.current();
  const emulator::Actor actor = block.order().copy_actor(thread.index);
  const emulator::Epoch group = thread.groups + 1;
  block.touch(true, destination - emulator::kSharedBase, 16, thread.index, actor, group, number);
  std::memset(target, 0xff, 16);
  block.async().issue(std::make_unique<emulator::Copy>(actor, group, target, source, bytes));
  block.maybe_yield();
}

void cp_async_commit(Site site) {
  if (emulator::skipped(emulator::site_number(site), "cp_async_commit")) return;
  ++current_block()->current().groups;
}

}  // namespace fused_inception::device
