// SPDX-License-Identifier: Apache-2.0
// mbarriers, the copies that count for them (bulk and tensor copies), and what the blocks of a
// cluster do to each other.
#include "emulator/machine.h"

#include <algorithm>
#include <cstring>
#include <functional>

namespace emulator {
namespace {

using fused_inception::device::TensorMap;

Block& block() {
  return *current_block();
}

void require_mapped(uint32_t address, const char* primitive) {
  if (address >> kRankShift == 0)
    fail(std::string(primitive) + " at an address of the block itself: takes one of map_rank");
}

void require_own(uint32_t address, const char* primitive) {
  if (address >> kRankShift != 0)
    fail(std::string(primitive) + " at an address of map_rank: takes one of the block itself");
}

// An mbarrier, wherever in the cluster it is, as the current thread may use it.
Mbarrier& mbarrier_at(uint32_t address, const char* primitive, int site) {
  Block& b = block();
  const Place place = b.locate(address, 8, 8, primitive);
  const auto found = b.mbarriers().find({place.rank, place.offset});
  if (found == b.mbarriers().end())
    fail(std::string(primitive) + " of an mbarrier that nobody has initialised");
  // Whoever uses it has to be ordered after its initialisation.
  const int thread = b.current().index;
  const Actor actor = b.order().thread_actor(thread);
  const Epoch now = b.order().now(thread);
  b.touch_block(place.rank,
                false,
                place.offset - kSharedBase,
                8,
                Shadow::Issuer{thread, 1, false},
                actor,
                now,
                site);
  if (place.rank != b.rank()) b.visit(place.rank, actor, now, site);
  if (!found->second.known) fail(std::string(primitive) + ": mbarrier_init_fence is missing");
  return found->second;
}

void complete_where_due(Block& b, Mbarrier& barrier) {
  if (barrier.pending > 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.arrivals;
  barrier.complete = std::move(barrier.next);
  barrier.next = {};
  for (const int thread : barrier.waiting)
    b.wake(thread);
  barrier.waiting.clear();
}

void arrive(const char* primitive, uint32_t address, int bytes, int number) {
  Block& b = block();
  b.maybe_yield();
  Mbarrier& barrier = mbarrier_at(address, primitive, number);
  if (barrier.pending == 0)
    fail(std::string(primitive) + ": more arrivals in a phase than the mbarrier was made for");
  barrier.bytes += bytes;
  --barrier.pending;
  b.order().release(b.current().index, barrier.next);
  complete_where_due(b, barrier);
}

// A copy into shared memory that counts for an mbarrier of the same block.
class BulkCopy : public AsyncOperation {
 public:
  BulkCopy(Block& block,
           Mbarrier& barrier,
           Actor actor,
           Epoch phase,
           int bytes,
           std::function<void()> move)
      : AsyncOperation(actor, phase),
        block_(block),
        barrier_(barrier),
        bytes_(bytes),
        move_(std::move(move)) {}

  void land() override {
    move_();
    barrier_.bytes -= bytes_;
    block_.order().release(actor, epoch, barrier_.next);
    complete_where_due(block_, barrier_);
  }

 private:
  Block& block_;
  Mbarrier& barrier_;
  int bytes_;
  std::function<void()> move_;
};

// What every such copy has in common. `source`, where it is shared memory, is read meanwhile;
// `move` brings the data to the place that it is given.
struct Destination {
  uint32_t address;
  uint32_t barrier;
};

void issue(const char* primitive,
           const Destination& to,
           const Place* source,
           int bytes,
           int alignment,
           int site,
           const std::function<void(Place)>& move) {
  Block& b = block();
  Mbarrier& made = mbarrier_at(to.barrier, primitive, site);
  const Place target =
      b.locate(to.address, static_cast<size_t>(bytes), static_cast<size_t>(alignment), primitive);
  const Actor actor = b.order().bulk_actor(made.number);
  const Epoch phase = made.phase + 1;
  const Shadow::Issuer issuer{b.current().index, 1, true};
  const auto size = static_cast<size_t>(bytes);
  if (source != nullptr) {
    b.touch_block(
        source->rank, false, source->offset - kSharedBase, size, issuer, actor, phase, site);
    b.visit(source->rank, actor, phase, site);
  }
  b.touch_block(target.rank, true, target.offset - kSharedBase, size, issuer, actor, phase, site);
  if (target.rank != b.rank()) b.visit(target.rank, actor, phase, site);
  std::memset(target.host, 0xff, size);
  b.async().issue(
      std::make_unique<BulkCopy>(b, made, actor, phase, bytes, [move, target] { move(target); }));
}

void check_bytes(const char* primitive, int bytes) {
  if (bytes < 16 || bytes % 16 != 0)
    fail(std::string(primitive) + " of " + std::to_string(bytes) + " bytes: takes multiples of 16");
}

// The same place, and the same mbarrier, in every block of the mask.
std::vector<Destination> everywhere(const char* primitive,
                                    uint32_t destination,
                                    uint32_t barrier,
                                    uint16_t mask) {
  Block& b = block();
  if (mask == 0 || mask >> b.cluster() != 0)
    fail(std::string(primitive) + " to mask " + std::to_string(mask) + ": a cluster of " +
         std::to_string(b.cluster()));
  require_own(destination, primitive);
  require_own(barrier, primitive);
  std::vector<Destination> all;
  for (int rank = 0; rank < b.cluster(); ++rank) {
    const uint32_t window = rank == b.rank() ? 0 : static_cast<uint32_t>(rank + 1) << kRankShift;
    if (mask >> rank & 1) all.push_back({window | destination, window | barrier});
  }
  return all;
}

void copy_from_global(const char* primitive,
                      const std::vector<Destination>& all,
                      const void* source,
                      int bytes,
                      int site) {
  check_bytes(primitive, bytes);
  if (reinterpret_cast<uintptr_t>(source) % 16 != 0)
    fail(std::string("misaligned: the source of ") + primitive);
  if (!is_global(source))
    fail(std::string("out of bounds: the source of ") + primitive + " is not in global memory");
  touch_global(false, source, static_cast<size_t>(bytes), site);
  for (const Destination& to : all) {
    issue(primitive, to, nullptr, bytes, 16, site, [source, bytes](const Place& target) {
      std::memcpy(target.host, source, static_cast<size_t>(bytes));
    });
  }
  block().maybe_yield();
}

// The box of a tensor whose first element has these coordinates, zero outside of the tensor.
void copy_box(const char* primitive,
              const std::vector<Destination>& all,
              const TensorMap& map,
              const int (&start)[3],
              int site) {
  if (!map.made) fail(std::string(primitive) + " by a tensor map that nobody has made");
  const int row_bytes = 2 * static_cast<int>(map.box[0]);
  const auto row_of = [map, start](int i, int j) -> const char* {
    const int64_t y = start[1] + i, z = start[2] + j;
    if (y < 0 || y >= map.sizes[1] || z < 0 || z >= map.sizes[2]) return nullptr;
    return static_cast<const char*>(map.base) + y * map.strides[0] + z * map.strides[1];
  };
  // Of a row, the elements inside of the tensor.
  const int64_t first = std::max(0, -start[0]);
  const int64_t last = std::min<int64_t>(map.box[0], map.sizes[0] - start[0]);
  for (int j = 0; j < map.box[2]; ++j) {
    for (int i = 0; i < map.box[1]; ++i) {
      const char* row = row_of(i, j);
      if (row == nullptr || last <= first) continue;
      touch_global(
          false, row + 2 * (start[0] + first), static_cast<size_t>(2 * (last - first)), site);
    }
  }
  const int bytes = row_bytes * map.box[1] * map.box[2];
  const auto span = static_cast<uint32_t>(map.swizzle);
  // A tensor copy counts the whole box, also where it is outside of the tensor.
  for (const Destination& to : all) {
    issue(primitive,
          to,
          nullptr,
          bytes,
          std::max(128, 8 * static_cast<int>(span)),
          site,
          [=](const Place& target) {
            for (int line = 0; line < map.box[1] * map.box[2]; ++line) {
              const char* row = row_of(line % map.box[1], line / map.box[1]);
              for (int x = 0; x < map.box[0]; ++x) {
                auto place = target.offset + static_cast<uint32_t>(line * row_bytes + 2 * x);
                if (span != 0) place = swizzled(place, span);
                char* const element = target.host + (place - target.offset);
                if (row != nullptr && x >= first && x < last) {
                  std::memcpy(element, row + 2 * (start[0] + x), 2);
                } else {
                  std::memset(element, 0, 2);
                }
              }
            }
          });
  }
  block().maybe_yield();
}

bool gathered(Block&, int, void* const*) {
  return true;
}

// A plain access to another block of the cluster, of four bytes.
char* touch_remote(const char* primitive, bool write, uint32_t address, int site) {
  Block& b = block();
  require_mapped(address, primitive);
  const Place place = b.locate(address, 4, 4, primitive);
  const int thread = b.current().index;
  const Actor actor = b.order().thread_actor(thread);
  const Epoch now = b.order().now(thread);
  b.touch_block(place.rank,
                write,
                place.offset - kSharedBase,
                4,
                Shadow::Issuer{thread, 1, false},
                actor,
                now,
                site);
  if (place.rank != b.rank()) b.visit(place.rank, actor, now, site);
  return place.host;
}

}  // namespace
}  // namespace emulator

namespace fused_inception::device {

using emulator::current_block;

// mbarriers.

void mbarrier_init(uint32_t barrier, int arrivals, Site site) {
  emulator::Block& block = *current_block();
  const int number = emulator::site_number(site);
  block.resolve(barrier, 8, 8, "mbarrier_init");
  if (arrivals < 1) emulator::fail("mbarrier_init: takes at least one arrival");
  const int thread = block.current().index;
  block.touch(true,
              barrier - emulator::kSharedBase,
              8,
              thread,
              block.order().thread_actor(thread),
              block.order().now(thread),
              number);
  if (block.mbarriers().count({block.rank(), barrier}) != 0)
    emulator::fail("mbarrier_init of an mbarrier that is initialised already");
  const int count = static_cast<int>(block.mbarriers().size());
  if (count == emulator::kMbarriers * block.cluster())
    emulator::fail("more mbarriers than the emulator has");
  emulator::Mbarrier& made = block.mbarriers()[{block.rank(), barrier}];
  made.number = count;
  made.arrivals = made.pending = arrivals;
}

void mbarrier_init_fence(Site site) {
  if (emulator::skipped(emulator::site_number(site), "mbarrier_init_fence")) return;
  for (auto& [place, barrier] : current_block()->mbarriers()) {
    if (place.first == current_block()->rank()) barrier.known = true;
  }
}

void mbarrier_arrive(uint32_t barrier, Site site) {
  const int number = emulator::site_number(site);
  if (emulator::skipped(number, "mbarrier_arrive")) return;
  emulator::require_own(barrier, "mbarrier_arrive");
  emulator::arrive("mbarrier_arrive", barrier, 0, number);
}

void mbarrier_arrive_expect_tx(uint32_t barrier, int bytes, Site site) {
  const int number = emulator::site_number(site);
  if (emulator::skipped(number, "mbarrier_arrive_expect_tx")) return;
  emulator::require_own(barrier, "mbarrier_arrive_expect_tx");
  emulator::arrive("mbarrier_arrive_expect_tx", barrier, bytes, number);
}

void mbarrier_arrive_remote(uint32_t barrier, Site site) {
  const int number = emulator::site_number(site);
  if (emulator::skipped(number, "mbarrier_arrive_remote")) return;
  emulator::require_mapped(barrier, "mbarrier_arrive_remote");
  emulator::arrive("mbarrier_arrive_remote", barrier, 0, number);
}

void mbarrier_wait(uint32_t address, int parity, Site site) {
  const int number = emulator::site_number(site);
  if (emulator::skipped(number, "mbarrier_wait")) return;
  emulator::Block& block = *current_block();
  block.maybe_yield();
  emulator::require_own(address, "mbarrier_wait");
  emulator::Mbarrier& barrier = emulator::mbarrier_at(address, "mbarrier_wait", number);
  // The device's wait knows one bit of the phase, so a wait two phases late does not wait.
  while (static_cast<int>(barrier.phase & 1) == parity) {
    barrier.waiting.push_back(block.current().index);
    block.suspend("mbarrier_wait", number);
  }
  block.order().join(block.current().index, barrier.complete);
}

void fence_proxy_async(Site site) {
  if (emulator::skipped(emulator::site_number(site), "fence_proxy_async")) return;
  current_block()->order().fence(current_block()->current().index);
}

// Bulk and tensor copies.

void bulk_copy(uint32_t destination, const void* source, int bytes, uint32_t barrier, Site site) {
  emulator::require_own(destination, "bulk_copy");
  emulator::copy_from_global(
      "bulk_copy", {{destination, barrier}}, source, bytes, emulator::site_number(site));
}

void bulk_copy_multicast(uint32_t destination,
                         const void* source,
                         int bytes,
                         uint32_t barrier,
                         uint16_t blocks,
                         Site site) {
  const auto all = emulator::everywhere("bulk_copy_multicast", destination, barrier, blocks);
  emulator::copy_from_global(
      "bulk_copy_multicast", all, source, bytes, emulator::site_number(site));
}

void bulk_push(uint32_t destination, uint32_t source, int bytes, uint32_t barrier, Site site) {
  constexpr const char* kName = "bulk_push";
  emulator::Block& block = *current_block();
  emulator::check_bytes(kName, bytes);
  emulator::require_mapped(destination, kName);
  emulator::require_mapped(barrier, kName);
  const auto size = static_cast<size_t>(bytes);
  const emulator::Place to = block.locate(destination, size, 16, kName);
  if (to.rank == block.rank()) emulator::fail("bulk_push to the block itself: takes another");
  if (block.locate(barrier, 8, 8, kName).rank != to.rank)
    emulator::fail("bulk_push with an mbarrier of another block than the destination's");
  emulator::require_own(source, kName);
  const emulator::Place from = block.locate(source, size, 16, kName);
  emulator::issue(
      kName,
      {destination, barrier},
      &from,
      bytes,
      16,
      emulator::site_number(site),
      [from, size](const emulator::Place& target) { std::memcpy(target.host, from.host, size); });
  block.maybe_yield();
}

void tensor_copy(
    uint32_t destination, const TensorMap& map, int x, int y, int z, uint32_t barrier, Site site) {
  emulator::require_own(destination, "tensor_copy");
  emulator::copy_box(
      "tensor_copy", {{destination, barrier}}, map, {x, y, z}, emulator::site_number(site));
}

void tensor_copy_multicast(uint32_t destination,
                           const TensorMap& map,
                           int x,
                           int y,
                           int z,
                           uint32_t barrier,
                           uint16_t blocks,
                           Site site) {
  const auto all = emulator::everywhere("tensor_copy_multicast", destination, barrier, blocks);
  emulator::copy_box("tensor_copy_multicast", all, map, {x, y, z}, emulator::site_number(site));
}

// Clusters.

int cluster_rank() {
  return current_block()->rank();
}

uint32_t map_rank(uint32_t address, int rank) {
  if (address >> emulator::kRankShift != 0)
    emulator::fail("map_rank of an address of map_rank: takes one of the block itself");
  if (rank < 0 || rank >= current_block()->cluster())
    emulator::fail("map_rank to rank " + std::to_string(rank) + " of a cluster of " +
                   std::to_string(current_block()->cluster()));
  return address | static_cast<uint32_t>(rank + 1) << emulator::kRankShift;
}

void cluster_arrive(Site site) {
  if (emulator::skipped(emulator::site_number(site), "cluster_arrive")) return;
  current_block()->maybe_yield();
  current_block()->collective("cluster_arrive", site, 0, nullptr, emulator::gathered);
  current_block()->arrive_cluster();
}

void cluster_wait(Site site) {
  const int number = emulator::site_number(site);
  if (emulator::skipped(number, "cluster_wait")) return;
  current_block()->collective("cluster_wait", site, 0, nullptr, emulator::gathered);
  current_block()->wait_cluster(number);
}

uint32_t remote_load(uint32_t address, Site site) {
  uint32_t value;
  std::memcpy(&value,
              emulator::touch_remote("remote_load", false, address, emulator::site_number(site)),
              4);
  return value;
}

void remote_store(uint32_t address, uint32_t value, Site site) {
  std::memcpy(emulator::touch_remote("remote_store", true, address, emulator::site_number(site)),
              &value,
              4);
}

}  // namespace fused_inception::device
