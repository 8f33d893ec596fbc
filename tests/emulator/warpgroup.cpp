// SPDX-License-Identifier: Apache-2.0
// Products of a warpgroup on operands in shared memory.
#include "emulator/machine.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace emulator {
namespace {

Block& block() {
  return *current_block();
}

// One thread's part of a product.
struct WgmmaCall {
  Element element;
  float* d;
  int registers;
  uint64_t a;
  uint64_t b;
  bool accumulate;
  int site;
};

// An operand, decoded: K-major. Without a swizzle row r, element k is at
// start + r / 8 row_stride + r % 8 * 16 + k / 8 k_stride + k % 8 * 2; with one of `span` bytes it
// is at start + r / 8 row_stride + r % 8 span + k * 2, and then the 16-byte pieces change places.
struct Operand {
  uint32_t start, k_stride, row_stride, span;

  explicit Operand(uint64_t descriptor)
      : start(static_cast<uint32_t>(descriptor & 0x3fff) << 4),
        k_stride(static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4),
        row_stride(static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4),
        span((256u >> (descriptor >> 62)) & 255u) {
    constexpr uint64_t kKnown = 0x3fffull | 0x3fffull << 16 | 0x3fffull << 32 | 3ull << 62;
    if ((descriptor & ~kKnown) != 0)
      fail("a matrix descriptor with a base offset or unknown bits: neither is modelled");
    if (span == 0) return;
    // Where the pattern begins anywhere else, the ISA leaves open what is read.
    if (start % (8 * span) >= span || start % span + 32 > span)
      fail(
          "a swizzled matrix descriptor must start in the first row of its pattern, with 32 bytes "
          "of it left; it starts at " +
          std::to_string(start));
    if (row_stride % (8 * span) != 0)
      fail("a swizzled matrix descriptor must have whole patterns of rows apart");
  }
  uint32_t address(int row, int half) const {
    const auto r = static_cast<uint32_t>(row), h = static_cast<uint32_t>(half);
    if (span == 0) return start + r / 8 * row_stride + r % 8 * 16 + h * k_stride;
    return swizzled(start + r / 8 * row_stride + r % 8 * span + h * 16, span);
  }
};

class Product : public AsyncOperation {
 public:
  Product(Actor actor,
          Epoch group,
          std::shared_ptr<Tile> tile,
          Element element,
          const Operand& a,
          const Operand& b,
          bool accumulate,
          const char* window)
      : AsyncOperation(actor, group),
        window_(window),
        tile_(std::move(tile)),
        element_(element),
        a_(a),
        b_(b),
        accumulate_(accumulate) {}

  bool in_order() const override { return true; }

  // Products of 16-bit operands are exact in float32; the sum runs over k in order, rounded at each
  // step. The device's order within one product is not specified.
  void land() override {
    const int columns = tile_->columns;
    static float a[64][16], b[16][256];
    for (int row = 0; row < 64; ++row)
      load(a_, row, [row](int k) -> float& { return a[row][k]; });
    for (int row = 0; row < columns; ++row)
      load(b_, row, [row](int k) -> float& { return b[k][row]; });
    for (int m = 0; m < 64; ++m) {
      float* d = &tile_->d[static_cast<size_t>(m * columns)];
      if (!accumulate_) std::fill_n(d, columns, 0.0f);
      for (int k = 0; k < 16; ++k) {
        for (int n = 0; n < columns; ++n)
          d[n] += a[m][k] * b[k][n];
      }
    }
  }

 private:
  template <typename Place>
  void load(const Operand& operand, int row, const Place& place) const {
    for (int half = 0; half < 2; ++half) {
      uint16_t values[8];
      std::memcpy(values, window_ + operand.address(row, half), 16);
      for (int k = 0; k < 8; ++k)
        place(8 * half + k) = to_float(element_, values[k]);
    }
  }

  const char* window_;
  std::shared_ptr<Tile> tile_;
  Element element_;
  Operand a_, b_;
  bool accumulate_;
};

// Where register i of a thread stands in the 64xN tile (PTX ISA 9.7.15.5.1).
size_t place_of(const Tile& tile, int thread, int i) {
  const int lane = thread % kWarpSize;
  const int row = 16 * (thread / kWarpSize) + lane / 4 + 8 * (i / 2 % 2);
  const int column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
  return static_cast<size_t>(row * tile.columns + column);
}

std::shared_ptr<Tile> tile_of(Block& b, int first, Warpgroup& group, bool accumulate) {
  const auto call = [&](int i) -> const WgmmaCall& {
    return *static_cast<const WgmmaCall*>(group.arguments[i]);
  };
  for (const auto& tile : group.tiles) {
    if (tile->registers[0] != call(0).d) continue;
    for (int i = 0; i < kWarpgroupThreads; ++i) {
      if (tile->returned[i])
        fail("wgmma_m64k16 on accumulators that only some of the warps have waited for");
    }
    return tile;
  }
  auto tile = std::make_shared<Tile>();
  tile->columns = 2 * call(0).registers;
  tile->d.resize(static_cast<size_t>(64 * tile->columns));
  for (int i = 0; i < kWarpgroupThreads; ++i) {
    if (!b.thread(first + i).fenced)
      fail("wgmma_m64k16: wgmma_fence is missing since the accumulators were last touched");
    tile->registers[i] = call(i).d;
    for (int r = 0; r < call(i).registers; ++r) {
      tile->d[place_of(*tile, i, r)] =
          accumulate ? call(i).d[r] : std::numeric_limits<float>::quiet_NaN();
      call(i).d[r] = std::numeric_limits<float>::quiet_NaN();
    }
  }
  group.tiles.push_back(tile);
  return tile;
}

bool perform_wgmma(Block& b, int first_thread, void* const* arguments) {
  Warpgroup& group = b.warpgroup(first_thread);
  const int first = first_thread / kWarpgroupThreads * kWarpgroupThreads;
  std::copy_n(arguments, kWarpSize, group.arguments + (first_thread - first));
  if (++group.warps < 4) return false;
  group.warps = 0;

  const WgmmaCall& call = *static_cast<const WgmmaCall*>(group.arguments[0]);
  const Epoch number = b.thread(first).matrix_groups + 1;
  for (int i = 0; i < kWarpgroupThreads; ++i) {
    const auto& other = *static_cast<const WgmmaCall*>(group.arguments[i]);
    if (other.a != call.a || other.b != call.b || other.accumulate != call.accumulate ||
        other.registers != call.registers || other.site != call.site)
      fail("wgmma_m64k16: the threads of a warpgroup disagree on its operands");
    if (b.thread(first + i).matrix_groups + 1 != number)
      fail("wgmma_m64k16: the threads of a warpgroup have committed different numbers of groups");
  }
  const Operand operands[2] = {Operand(call.a), Operand(call.b)};
  const int rows[2] = {64, 2 * call.registers};
  const Actor actor = b.order().matrix_actor(first);
  for (int o = 0; o < 2; ++o) {
    for (int half = 0; half < 2; ++half) {
      for (int row = 0; row < rows[o]; ++row) {
        const uint32_t address = operands[o].address(row, half);
        b.resolve(address, 16, 16, "wgmma_m64k16");
        b.touch(false,
                address - kSharedBase,
                16,
                Shadow::Issuer{first, kWarpgroupThreads, true},
                actor,
                number,
                call.site);
      }
    }
  }
  const std::shared_ptr<Tile> tile = tile_of(b, first, group, call.accumulate);
  tile->group = number;
  b.async().issue(std::make_unique<Product>(actor,
                                            number,
                                            tile,
                                            call.element,
                                            operands[0],
                                            operands[1],
                                            call.accumulate,
                                            shared_window(b.rank())));
  for (int i = 0; i < kWarpgroupThreads; ++i) {
    if ((first + i) / kWarpSize != first_thread / kWarpSize) b.wake(first + i);
  }
  return true;
}

bool perform_nothing(Block&, int, void* const*) {
  return true;
}

}  // namespace

void wgmma_fence(const Site& site) {
  if (skipped(site_number(site), "wgmma_fence")) return;
  block().collective("wgmma_fence", site, 0, nullptr, perform_nothing);
  block().current().fenced = true;
}

void wgmma_wait(int pending, const Site& site) {
  const int number = site_number(site);
  if (skipped(number, "wgmma_wait")) return;
  if (weakened(number)) ++pending;
  Block& b = block();
  b.maybe_yield();
  b.collective("wgmma_wait", site, pending, nullptr, perform_nothing);
  Thread& thread = b.current();
  if (thread.matrix_groups <= static_cast<Epoch>(pending)) return;
  const Epoch done = thread.matrix_groups - static_cast<Epoch>(pending);
  b.async().force(b.order().matrix_actor(thread.index), done, b.random());
  b.order().matrix_done(thread.index, done);
  Warpgroup& group = b.warpgroup(thread.index);
  const int place = thread.index % kWarpgroupThreads;
  for (auto tile = group.tiles.begin(); tile != group.tiles.end();) {
    Tile& t = **tile;
    if (t.group <= done && !t.returned[place]) {
      for (int i = 0; i < t.columns / 2; ++i)
        t.registers[place][i] = t.d[place_of(t, place, i)];
      t.returned[place] = true;
      thread.fenced = false;
    }
    const bool all =
        std::all_of(std::begin(t.returned), std::end(t.returned), [](bool r) { return r; });
    tile = all ? group.tiles.erase(tile) : tile + 1;
  }
}

void wgmma_m64k16(Element element,
                  float* d,
                  int registers,
                  uint64_t a,
                  uint64_t b,
                  bool accumulate,
                  const Site& site) {
  WgmmaCall call{element, d, registers, a, b, accumulate, site_number(site)};
  const int thread = block().current().index % block().size();
  if (thread / kWarpgroupThreads * kWarpgroupThreads + kWarpgroupThreads > block().size())
    fail("wgmma_m64k16: takes warpgroups of 128 threads");
  block().collective("wgmma_m64k16", site, registers, &call, perform_wgmma);
}

void set_registers(int registers, const Site& site) {
  block().collective("set_registers", site, registers, nullptr, perform_nothing);
}

}  // namespace emulator

namespace fused_inception::device {

using emulator::current_block;

void wgmma_commit(Site site) {
  if (emulator::skipped(emulator::site_number(site), "wgmma_commit")) return;
  ++current_block()->current().matrix_groups;
}

}  // namespace fused_inception::device
