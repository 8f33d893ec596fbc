// SPDX-License-Identifier: Apache-2.0
// The emulated device from the inside: the threads of a block, who runs next, who waits for whom.
//
// Clusters of a grid, mostly of one block, run one after another on fresh poisoned shared memory;
// all threads of a cluster are alive at once, one fiber each. A primitive either goes on, or
// suspends its thread until another thread wakes it. Everything is deterministic for given options.
#pragma once

#include "emulator/async.h"
#include "emulator/clocks.h"
#include "emulator/control.h"
#include "emulator/device_host.h"
#include "emulator/fiber.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace emulator {

constexpr int kWarpSize = 32;
constexpr int kNamedBarriers = 16;
// Where dynamic shared memory begins: address 0 is never valid, and sm_90 keeps 1 KB of its own.
constexpr size_t kSharedBase = 1024;
constexpr size_t kSharedWindow = size_t{1} << 20;
// A cluster of more blocks takes an opt-in that the launcher does not ask for.
constexpr int kMaxCluster = 8;
// The upper byte of a shared address is 0 for the thread's own block, else a rank and 1.
constexpr int kRankShift = 24;

// Ends the launch with a message that names block and thread; called from a thread of a kernel.
[[noreturn]] void fail(const std::string& message);

// Call sites have numbers. Of a plain access only the machine code's address is known.
int site_number(const Site& site);
int plain_site_number(const void* address);
std::string site_name(int site);

// Plain accesses of the kernels are hooked. Without them races cannot be judged.
void note_hooks();

// Whether a synchronizing call is to be left out. Also notes that the call was reached.
bool skipped(int site, const char* primitive);
bool weakened(int site);

struct Thread {
  int index = 0;  // of the cluster, block after block, and so is the warp
  int warp = 0;
  int lane = 0;
  bool exited = false;
  const char* wait = nullptr;  // the primitive it is suspended in, and where
  int wait_site = 0;
  Epoch groups = 0;         // of cp.async that it has committed
  Epoch matrix_groups = 0;  // of wgmma
  bool fenced = false;      // by wgmma_fence, since it last got accumulators back
  bool arrived = false;     // at the cluster's barrier, and has not waited
  int cluster_phases = 0;   // that it has waited for
};

struct Warp {
  std::vector<int> ready;  // threads
  // The collective call that is gathering its lanes.
  int gathered = 0;
  const char* name = nullptr;
  int site = 0;
  int64_t variant = 0;  // must agree as well: a barrier's number, an instruction's shape
  void* arguments[kWarpSize] = {};
};

struct Barrier {
  int threads = 0;  // that it takes
  int arrived = 0;
  std::vector<int> waiting;
  HappensBefore::Release release;
};

// The barrier of a cluster, whose arrivals and waits are apart.
struct ClusterBarrier {
  int arrived = 0;
  int phases = 0;  // complete
  std::vector<int> waiting;
  HappensBefore::Release release, complete;  // what the phase under way, and the last one, release
};

// An mbarrier. Bulk copies count by what is left of their bytes.
struct Mbarrier {
  int number = 0;  // of the block's; its bulk copies are an actor
  int arrivals = 0;
  int pending = 0;
  int64_t bytes = 0;
  Epoch phase = 0;
  bool known = false;  // by mbarrier_init_fence
  std::vector<int> waiting;
  HappensBefore::Release next, complete;  // what the phase under way, and the last one, release
};

// Accumulators between the first product and the wait: the registers hold NaN meanwhile.
struct Tile {
  std::vector<float> d;  // [64][columns]
  int columns = 0;
  float* registers[kWarpgroupThreads] = {};
  bool returned[kWarpgroupThreads] = {};
  Epoch group = 0;  // of its last product
};

struct Warpgroup {
  int warps = 0;  // that have come to the product being issued
  void* arguments[kWarpgroupThreads] = {};
  std::vector<std::shared_ptr<Tile>> tiles;
};

// Where a shared address leads.
struct Place {
  int rank;
  uint32_t offset;  // in the rank's window
  char* host;
};

// What a block has for itself.
struct BlockState {
  BlockState(size_t shadow_bytes, const HappensBefore* order) : shadow(shadow_bytes, order) {}

  Shadow shadow;
  Barrier barriers[kNamedBarriers];
  int exited = 0;  // threads
  // What others, and copies that they have issued, have last done in its memory, and where.
  struct Visit {
    Epoch epoch;
    int site;
  };
  std::map<Actor, Visit> visits;
};

// A block, with the others of its cluster where there are any.
class Block {
 public:
  Block(int64_t index,
        int64_t grid,
        int threads,
        size_t shared_bytes,
        int cluster,
        const Options& options);

  // Runs all threads to their end, or to the first fault.
  void run(const std::function<void()>& kernel);

  // Of the current thread's block.
  int64_t index() const { return index_ + rank(); }
  int rank() const { return current_ < 0 ? 0 : rank_of(current_); }
  int64_t grid() const { return grid_; }
  int size() const { return size_; }  // threads of a block
  int cluster() const { return static_cast<int>(blocks_.size()); }
  int rank_of(int thread) const { return thread / size_; }
  size_t shared_bytes() const { return shared_bytes_; }
  Thread& current() { return threads_[static_cast<size_t>(current_)]; }
  void leave();  // back to the scheduler, for good where there is a fault

  HappensBefore& order() { return order_; }
  AsyncEngine& async() { return async_; }
  std::mt19937_64& random() { return random_; }

  // Gathers the 32 lanes of a warp in one call. The last lane to come calls `perform` with the
  // arguments of all; where that returns false, the lanes stay suspended.
  using Perform = bool (*)(Block& block, int first_thread, void* const* arguments);
  void collective(
      const char* name, const Site& site, int64_t variant, void* argument, Perform perform);

  // The threads of a warp come to a barrier. True where they go on.
  bool arrive(int barrier, int threads, int first_thread, bool waits);

  // Gives way to other threads, now and then, where the schedule is a swarm.
  void maybe_yield();

  // The range of shared memory, as a host address; fails where it is not the block's own.
  char* resolve(uint32_t address, size_t bytes, size_t alignment, const char* what);

  // The same for an address that may lead to another block of the cluster. That one has to be known
  // to be there: the thread has waited for the cluster's barrier, and the block has not ended.
  Place locate(uint32_t address, size_t bytes, size_t alignment, const char* what);

  // Judges an access to shared memory that `thread` makes or issues, by default in its own block.
  void touch(
      bool write, size_t offset, size_t bytes, int thread, Actor actor, Epoch epoch, int site) {
    touch(write, offset, bytes, Shadow::Issuer{thread, 1, false}, actor, epoch, site);
  }
  void touch(bool write,
             size_t offset,
             size_t bytes,
             const Shadow::Issuer& issuer,
             Actor actor,
             Epoch epoch,
             int site) {
    touch_block(rank_of(issuer.first), write, offset, bytes, issuer, actor, epoch, site);
  }
  void touch_block(int rank,
                   bool write,
                   size_t offset,
                   size_t bytes,
                   const Shadow::Issuer& issuer,
                   Actor actor,
                   Epoch epoch,
                   int site);

  // `actor` is at work in the memory of a block that is not the current thread's.
  void visit(int rank, Actor actor, Epoch epoch, int site);
  // Fails where the block has ended.
  void require_alive(int rank, const char* what);

  void arrive_cluster();
  void wait_cluster(int site);
  // The current thread has come to its end.
  void exit_thread();

  // By rank and offset.
  std::map<std::pair<int, uint32_t>, Mbarrier>& mbarriers() { return mbarriers_; }
  Warpgroup& warpgroup(int thread) {
    return warpgroups_[static_cast<size_t>(thread / kWarpgroupThreads)];
  }
  Thread& thread(int index) { return threads_[static_cast<size_t>(index)]; }

  void suspend(const char* primitive, int site);
  void wake(int thread);

 private:
  enum class Policy { kInTurn, kRandom, kWarpPriority, kLastInFirstOut };

  int pick();
  std::string deadlock() const;

  int64_t index_;  // of the first block
  int64_t grid_;
  int size_;
  size_t shared_bytes_;
  bool races_;
  std::mt19937_64 random_;
  Policy policy_ = Policy::kInTurn;
  uint64_t landing_interval_ = 0;  // switches from one landing to the next; 0: none at switches
  uint64_t yield_interval_ = 0;
  HappensBefore order_;
  std::vector<BlockState> blocks_;  // by rank
  AsyncEngine async_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<int> ready_warps_;
  std::vector<uint64_t> priority_;  // of the warps
  ClusterBarrier cluster_barrier_;
  std::map<std::pair<int, uint32_t>, Mbarrier> mbarriers_;
  std::vector<Warpgroup> warpgroups_;
  int current_ = -1;
};

// The block that is running, or null.
Block* current_block();

// A swizzle of `span` bytes (32, 64 or 128): 16-byte pieces of shared memory change places within
// the span by the bits of their address from 128 up. What the tensor unit writes by it wgmma reads.
inline uint32_t swizzled(uint32_t address, uint32_t span) {
  return address ^ ((address >> 7 & (span / 16 - 1)) << 4);
}

// Offset 0 of the shared memory of a block; the others of its cluster follow.
char* shared_window(int rank);

// Whether the address is anywhere in global memory, in a buffer or not.
bool is_global(const void* address);

// Judges an access to global memory.
void touch_global(bool write, const void* address, size_t bytes, int site);

void count_banks(int conflicts);

}  // namespace emulator
