// SPDX-License-Identifier: Apache-2.0
#include "emulator/machine.h"

#include "emulator/sanitizer.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <sys/mman.h>
#include <unistd.h>
#include <utility>

namespace emulator {
namespace {

constexpr size_t kArenaBytes = size_t{1} << 34;  // of addresses
constexpr size_t kFillLimit = size_t{1} << 26;
constexpr size_t kGap = 64 * 1024;  // between buffers
constexpr size_t kBufferAlignment = 256;

struct Buffer {
  std::string name;
  char* begin;
  size_t bytes;
  Access access;
  // What the running grid did to every two bytes.
  enum State : uint8_t { kUntouched, kRead, kWritten };
  std::vector<uint8_t> state;
};

struct SiteInfo {
  std::string name;
  const void* address = nullptr;  // of a plain access
};

bool hooked = false;
Options options;
std::string first_fault;
std::map<std::string, std::string> synchronizing_sites;
BankCount banks;
std::deque<Buffer> buffers;
std::deque<SiteInfo> site_infos;
std::vector<std::unique_ptr<Fiber>> fibers;
Block* running_block = nullptr;
const std::function<void()>* running_kernel = nullptr;

char* reserve(size_t bytes) {
  void* mapping = mmap(
      nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) {
    std::perror("emulator: no memory");
    std::abort();
  }
  return static_cast<char*>(mapping);
}

char* arena() {
  static char* const begin = reserve(kArenaBytes);
  return begin;
}

// Where the program's own code says that `address` comes from.
std::string source_of(const void* address) {
  char command[256];
  std::snprintf(
      command, sizeof(command), "addr2line -e /proc/%d/exe %p 2>/dev/null", getpid(), address);
  std::string line;
  if (FILE* pipe = popen(command, "r")) {
    char text[512];
    if (std::fgets(text, sizeof(text), pipe)) line = text;
    pclose(pipe);
  }
  line = line.substr(0, line.find_first_of("\n ("));
  line = line.substr(line.rfind('/') + 1);
  return line.empty() || line[0] == '?' ? std::string("plain access") : "plain access, " + line;
}

std::string plural(int count, const char* noun) {
  return std::to_string(count) + " " + noun + (count == 1 ? "" : "s");
}

void run_thread(void*) {
  (*running_kernel)();
  Block& block = *running_block;
  const Thread& thread = block.current();
  if (block.async().in_flight(block.order().copy_actor(thread.index))) {
    fail("exits with copies in flight: cp_async_wait is missing");
  }
  for (const auto& tile : block.warpgroup(thread.index).tiles) {
    if (!tile->returned[thread.index % kWarpgroupThreads])
      fail("exits with accumulators in flight: wgmma_finish is missing");
  }
  block.exit_thread();
  block.leave();
}

}  // namespace

char* shared_window(int rank) {
  static char* const begin = reserve(kMaxCluster * kSharedWindow);
  return begin + static_cast<size_t>(rank) * kSharedWindow;
}

Block* current_block() {
  return running_block;
}

const std::string& fault() {
  return first_fault;
}
const std::map<std::string, std::string>& sites() {
  return synchronizing_sites;
}
BankCount bank_count() {
  return banks;
}
int multiprocessors() {
  return options.multiprocessors;
}

void count_banks(int conflicts) {
  ++banks.matrices;
  banks.conflicts += conflicts;
}

void note_hooks() {
  hooked = true;
}

void configure(const Options& chosen) {
  options = chosen;
  options.races = chosen.races && hooked;
  first_fault.clear();
}

void fail(const std::string& message) {
  Block& block = *running_block;
  first_fault = "block " + std::to_string(block.index()) + ", thread " +
                std::to_string(block.current().index % block.size()) + ": " + message;
  block.leave();
  std::abort();
}

// Sites.

int site_number(const Site& site) {
  // A call site's strings are constants, so their address tells files apart.
  struct Entry {
    const char* file;
    uint32_t line;
    int number;
  };
  static Entry cache[4096] = {};
  const uint32_t line = site.line();
  Entry& entry = cache[line % 4096];
  if (entry.file != site.file_name() || entry.line != line) {
    const char* slash = std::strrchr(site.file_name(), '/');
    const std::string name =
        std::string(slash ? slash + 1 : site.file_name()) + ":" + std::to_string(line);
    const auto known = std::find_if(site_infos.begin(),
                                    site_infos.end(),
                                    [&](const SiteInfo& info) { return info.name == name; });
    entry = {site.file_name(), line, static_cast<int>(known - site_infos.begin())};
    if (known == site_infos.end()) site_infos.push_back({name, nullptr});
  }
  return entry.number;
}

int plain_site_number(const void* address) {
  static std::pair<const void*, int> cache[4096] = {};
  auto& entry = cache[reinterpret_cast<uintptr_t>(address) % 4096];
  if (entry.first != address) {
    const auto known = std::find_if(site_infos.begin(),
                                    site_infos.end(),
                                    [&](const SiteInfo& info) { return info.address == address; });
    entry = {address, static_cast<int>(known - site_infos.begin())};
    if (known == site_infos.end()) site_infos.push_back({"", address});
  }
  return entry.second;
}

std::string site_name(int site) {
  const SiteInfo& info = site_infos[static_cast<size_t>(site)];
  return info.address ? source_of(info.address) : info.name;
}

bool skipped(int site, const char* primitive) {
  const std::string& name = site_infos[static_cast<size_t>(site)].name;
  synchronizing_sites.emplace(name, primitive);
  return !options.weaken && options.mutated_site == name;
}

bool weakened(int site) {
  return options.weaken && options.mutated_site == site_infos[static_cast<size_t>(site)].name;
}

// Global memory.

void* allocate(const std::string& name, size_t bytes, Access access) {
  char* begin = buffers.empty() ? arena() : buffers.back().begin + buffers.back().bytes;
  begin += kGap - reinterpret_cast<uintptr_t>(begin) % kBufferAlignment;
  if (begin + bytes + kGap > arena() + kArenaBytes) {
    std::fprintf(stderr, "emulator: no room for %zu bytes of %s\n", bytes, name.c_str());
    std::abort();
  }
  // Beyond the limit a buffer is sparse: it begins as zeros.
  std::memset(begin, 0xff, std::min(bytes, kFillLimit));
  poison(begin - kGap / 2, kGap / 2);
  poison(begin + bytes, kGap / 2);
  const size_t tracked = access == Access::kRead ? 0 : (bytes + 1) / 2;
  buffers.push_back({name, begin, bytes, access, std::vector<uint8_t>(tracked)});
  return begin;
}

bool is_global(const void* address) {
  const char* begin = static_cast<const char*>(address);
  return begin >= arena() && begin < arena() + kArenaBytes;
}

void touch_global(bool write, const void* address, size_t bytes, int site) {
  const char* begin = static_cast<const char*>(address);
  const auto text = [&] {
    return std::string(write ? "writes " : "reads ") + std::to_string(bytes) +
           " bytes of global memory (" + site_name(site) + ")";
  };
  for (Buffer& buffer : buffers) {
    if (begin + bytes <= buffer.begin - kGap / 2 || begin >= buffer.begin + buffer.bytes + kGap / 2)
      continue;
    const int64_t offset = begin - buffer.begin;
    if (offset < 0 || static_cast<size_t>(offset) + bytes > buffer.bytes) {
      fail("out of bounds: " + text() + " at offset " + std::to_string(offset) + " of " +
           buffer.name + ", which has " + std::to_string(buffer.bytes));
    }
    if (write ? buffer.access == Access::kRead : buffer.access == Access::kWrite) {
      fail(text() + " of " + buffer.name + ", which is for the other use only");
    }
    if (buffer.access == Access::kRead) return;
    for (size_t i = static_cast<size_t>(offset) / 2;
         i < (static_cast<size_t>(offset) + bytes + 1) / 2;
         ++i) {
      uint8_t& state = buffer.state[i];
      if (state == Buffer::kWritten || (write && state == Buffer::kRead)) {
        fail(text() + " at offset " + std::to_string(2 * i) + " of " + buffer.name +
             ", which this grid has already " + (state == Buffer::kWritten ? "written" : "read"));
      }
      state = write ? Buffer::kWritten : Buffer::kRead;
    }
    return;
  }
  fail("out of bounds: " + text() + " in no buffer");
}

// Launches.

bool run_grid(
    int64_t blocks, int threads, int64_t shared_bytes, int cluster, std::function<void()> kernel) {
  if (threads < 1 || threads > 1024 || threads % kWarpSize != 0) {
    first_fault =
        "a block of " + plural(threads, "thread") + ": takes whole warps, up to 1024 threads";
  } else if (blocks < 1) {
    first_fault = "a grid of " + std::to_string(blocks) + " blocks";
  } else if (shared_bytes < 0 || shared_bytes > options.shared_limit) {
    first_fault = "a block asks for " + std::to_string(shared_bytes) +
                  " bytes of shared memory, the limit is " + std::to_string(options.shared_limit);
  } else if (cluster < 1 || cluster > kMaxCluster || blocks % cluster != 0) {
    first_fault = "a cluster of " + plural(cluster, "block") + " in a grid of " +
                  std::to_string(blocks) + ": takes 1 to 8, and whole clusters";
  } else if (cluster > 1 && threads % kWarpgroupThreads != 0) {
    first_fault = "a cluster of blocks of " + std::to_string(threads) +
                  " threads: the emulator takes whole warpgroups";
  }
  if (!first_fault.empty()) return false;
  for (Buffer& buffer : buffers)
    std::fill(buffer.state.begin(), buffer.state.end(), uint8_t{Buffer::kUntouched});
  while (fibers.size() < static_cast<size_t>(threads * cluster))
    fibers.push_back(std::make_unique<Fiber>());
  for (int64_t i = 0; i < blocks && first_fault.empty(); i += cluster) {
    for (int rank = 0; rank < cluster; ++rank) {
      char* const window = shared_window(rank);
      unpoison(window, kSharedWindow);
      std::memset(window, 0xff, kSharedBase + static_cast<size_t>(shared_bytes));
      poison(window, kSharedBase);
      poison(window + kSharedBase + shared_bytes,
             kSharedWindow - kSharedBase - static_cast<size_t>(shared_bytes));
    }
    Block(i, blocks, threads, static_cast<size_t>(shared_bytes), cluster, options).run(kernel);
  }
  return first_fault.empty();
}

// A block.

namespace {

Landing choose_landing(const Options& chosen, std::mt19937_64& random) {
  if (!chosen.swarm) return chosen.landing;
  const uint64_t choice = random() % 8;
  return choice == 0 ? Landing::kEager : choice == 1 ? Landing::kLazy : Landing::kRandom;
}

}  // namespace

Block::Block(int64_t index,
             int64_t grid,
             int threads_of_a_block,
             size_t shared_bytes,
             int cluster,
             const Options& chosen)
    : index_(index),
      grid_(grid),
      size_(threads_of_a_block),
      shared_bytes_(shared_bytes),
      races_(chosen.races),
      random_(chosen.seed * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(index)),
      order_(threads_of_a_block, cluster, chosen.races),
      blocks_(static_cast<size_t>(cluster), BlockState(chosen.races ? shared_bytes : 0, &order_)),
      async_(order_.actors(), choose_landing(chosen, random_)),
      threads_(static_cast<size_t>(threads_of_a_block * cluster)),
      warps_(threads_.size() / kWarpSize),
      priority_(warps_.size()),
      warpgroups_((threads_.size() + kWarpgroupThreads - 1) / kWarpgroupThreads) {
  if (chosen.swarm) {
    constexpr Policy kPolicies[] = {
        Policy::kRandom, Policy::kWarpPriority, Policy::kLastInFirstOut};
    constexpr uint64_t kLandingIntervals[] = {2, 16, 512, 0};
    constexpr uint64_t kYieldIntervals[] = {0, 3, 50};
    policy_ = kPolicies[random_() % 3];
    yield_interval_ = kYieldIntervals[random_() % 3];
    if (async_.landing() == Landing::kRandom) landing_interval_ = kLandingIntervals[random_() % 4];
  }
  for (uint64_t& priority : priority_)
    priority = random_();
  for (int i = 0; i < static_cast<int>(threads_.size()); ++i) {
    threads_[static_cast<size_t>(i)].index = i;
    threads_[static_cast<size_t>(i)].warp = i / kWarpSize;
    threads_[static_cast<size_t>(i)].lane = i % kWarpSize;
  }
}

void Block::run(const std::function<void()>& kernel) {
  running_block = this;
  running_kernel = &kernel;
  const auto exited = [](const Thread& thread) { return thread.exited; };
  for (size_t i = 0; i < threads_.size(); ++i) {
    fibers[i]->start(run_thread, nullptr);
    wake(static_cast<int>(i));
  }
  for (uint64_t switches = 1;; ++switches) {
    if (landing_interval_ != 0 && switches % landing_interval_ == 0) async_.land_one(random_);
    current_ = pick();
    if (current_ < 0) {
      // What is in flight may be what they wait for.
      if (async_.any_in_flight() && std::all_of(threads_.begin(), threads_.end(), exited)) {
        first_fault = "block " + std::to_string(index_) + ": ends with bulk copies in flight";
        break;
      }
      if (async_.land_one(random_)) continue;
      break;
    }
    fibers[static_cast<size_t>(current_)]->enter();
    if (!first_fault.empty()) break;
  }
  running_block = nullptr;
  if (first_fault.empty() && !std::all_of(threads_.begin(), threads_.end(), exited))
    first_fault = deadlock();
}

void Block::leave() {
  fibers[static_cast<size_t>(current_)]->leave();
}

void Block::suspend(const char* primitive, int site) {
  Thread& thread = current();
  thread.wait = primitive;
  thread.wait_site = site;
  leave();
}

void Block::wake(int thread) {
  const int warp = thread / kWarpSize;
  std::vector<int>& ready = warps_[static_cast<size_t>(warp)].ready;
  if (ready.empty()) ready_warps_.push_back(warp);
  ready.push_back(thread);
}

int Block::pick() {
  if (ready_warps_.empty()) return -1;
  size_t slot = 0;
  switch (policy_) {
    case Policy::kInTurn:
      break;
    case Policy::kRandom:
      slot = random_() % ready_warps_.size();
      break;
    case Policy::kLastInFirstOut:
      slot = ready_warps_.size() - 1;
      break;
    case Policy::kWarpPriority:
      // Uniform choices alone hardly ever let one warp run far ahead of another.
      if (random_() % 4096 == 0) {
        for (uint64_t& priority : priority_)
          priority = random_();
      }
      for (size_t i = 1; i < ready_warps_.size(); ++i) {
        const auto priority = [&](size_t j) {
          return priority_[static_cast<size_t>(ready_warps_[j])];
        };
        if (priority(i) > priority(slot)) slot = i;
      }
      break;
  }
  std::vector<int>& ready = warps_[static_cast<size_t>(ready_warps_[slot])].ready;
  if (policy_ == Policy::kRandom) std::swap(ready[random_() % ready.size()], ready.back());
  const int thread = ready.back();
  ready.pop_back();
  if (ready.empty()) ready_warps_.erase(ready_warps_.begin() + static_cast<std::ptrdiff_t>(slot));
  return thread;
}

std::string Block::deadlock() const {
  std::map<std::pair<std::string, std::string>, int> waits;
  int exited = 0;
  for (const Thread& thread : threads_) {
    if (thread.exited) {
      ++exited;
    } else {
      ++waits[{thread.wait, site_name(thread.wait_site)}];
    }
  }
  std::string text = "block " + std::to_string(index_) + ": deadlock: ";
  for (const auto& [wait, count] : waits) {
    text += plural(count, "thread") + " in " + wait.first + " (" + wait.second + "), ";
  }
  return text + std::to_string(exited) + " exited";
}

void Block::collective(
    const char* name, const Site& site, int64_t variant, void* argument, Perform perform) {
  const Thread& me = current();
  const int number = site_number(site);
  Warp& warp = warps_[static_cast<size_t>(me.warp)];
  if (warp.gathered == 0) {
    warp.name = name;
    warp.site = number;
    warp.variant = variant;
  } else if (warp.name != name || warp.site != number || warp.variant != variant) {
    fail("warp diverged: in " + std::string(name) + " (" + site_name(number) +
         ") while other lanes of the warp are in " + warp.name + " (" + site_name(warp.site) + ")");
  }
  warp.arguments[me.lane] = argument;
  ++warp.gathered;
  if (warp.gathered < kWarpSize) {
    suspend(name, number);
    return;
  }
  warp.gathered = 0;
  const int first = me.index - me.lane;
  if (!perform(*this, first, warp.arguments)) {
    suspend(name, number);
    return;
  }
  for (int i = 0; i < kWarpSize; ++i) {
    if (first + i != me.index) wake(first + i);
  }
}

bool Block::arrive(int barrier, int threads, int first_thread, bool waits) {
  Barrier& b = blocks_[static_cast<size_t>(rank_of(first_thread))].barriers[barrier];
  if (b.arrived == 0) {
    b.threads = threads;
  } else if (b.threads != threads) {
    fail("barrier " + std::to_string(barrier) + " is used for " + std::to_string(threads) +
         " threads while it waits for " + std::to_string(b.threads));
  }
  for (int i = 0; i < kWarpSize; ++i)
    order_.release(first_thread + i, b.release);
  b.arrived += kWarpSize;
  if (b.arrived < b.threads) {
    for (int i = 0; waits && i < kWarpSize; ++i)
      b.waiting.push_back(first_thread + i);
    return !waits;
  }
  for (int i = 0; waits && i < kWarpSize; ++i)
    order_.acquire(first_thread + i, b.release);
  for (const int thread : b.waiting) {
    order_.acquire(thread, b.release);
    wake(thread);
  }
  b = {};
  return true;
}

void Block::maybe_yield() {
  if (yield_interval_ == 0 || random_() % yield_interval_ != 0) return;
  wake(current_);
  leave();
}

char* Block::resolve(uint32_t address, size_t bytes, size_t alignment, const char* what) {
  if (address >> kRankShift != 0)
    fail(std::string(what) + " at an address of map_rank: takes one of the block itself");
  return locate(address, bytes, alignment, what).host;
}

Place Block::locate(uint32_t address, size_t bytes, size_t alignment, const char* what) {
  const int mapped = static_cast<int>(address >> kRankShift);
  const int target = mapped == 0 ? rank() : mapped - 1;
  address &= (1u << kRankShift) - 1;
  if (address % alignment != 0) {
    fail(std::string("misaligned: ") + what + " at shared address " + std::to_string(address) +
         ", takes multiples of " + std::to_string(alignment));
  }
  if (address < kSharedBase || address + bytes > kSharedBase + shared_bytes_) {
    fail(std::string("out of bounds: ") + what + " of " + std::to_string(bytes) +
         " bytes at offset " +
         std::to_string(static_cast<int64_t>(address) - static_cast<int64_t>(kSharedBase)) +
         " of shared memory, of which the block has " + std::to_string(shared_bytes_));
  }
  if (target != rank()) {
    if (current().cluster_phases == 0)
      fail(std::string(what) + " in another block, before any wait for the cluster's barrier");
    require_alive(target, what);
  }
  return {target, address, shared_window(target) + address};
}

void Block::touch_block(int rank,
                        bool write,
                        size_t offset,
                        size_t bytes,
                        const Shadow::Issuer& issuer,
                        Actor actor,
                        Epoch epoch,
                        int site) {
  if (!races_) return;
  Shadow& shadow = blocks_[static_cast<size_t>(rank)].shadow;
  const std::string wrong = shadow.access(write, offset, bytes, issuer, actor, epoch, site);
  if (!wrong.empty()) fail(wrong);
}

// Clusters.

void Block::visit(int rank, Actor actor, Epoch epoch, int site) {
  BlockState::Visit& visit = blocks_[static_cast<size_t>(rank)].visits[actor];
  if (epoch >= visit.epoch) visit = {epoch, site};
}

void Block::require_alive(int rank, const char* what) {
  if (blocks_[static_cast<size_t>(rank)].exited == size_)
    fail(std::string(what) + " in block " + std::to_string(index_ + rank) + ", which has ended");
}

void Block::arrive_cluster() {
  Thread& thread = current();
  if (thread.arrived) fail("cluster_arrive twice without cluster_wait");
  thread.arrived = true;
  order_.release(thread.index, cluster_barrier_.release);
  if (++cluster_barrier_.arrived < static_cast<int>(threads_.size())) return;
  for (const int other : cluster_barrier_.waiting)
    wake(other);
  cluster_barrier_.waiting.clear();
  cluster_barrier_.complete = std::move(cluster_barrier_.release);
  cluster_barrier_.release = {};
  cluster_barrier_.arrived = 0;
  ++cluster_barrier_.phases;
}

void Block::wait_cluster(int site) {
  Thread& thread = current();
  if (!thread.arrived) fail("cluster_wait without cluster_arrive");
  if (cluster_barrier_.phases == thread.cluster_phases) {
    cluster_barrier_.waiting.push_back(thread.index);
    suspend("cluster_wait", site);
  }
  thread.arrived = false;
  ++thread.cluster_phases;
  order_.join(thread.index, cluster_barrier_.complete);
}

void Block::exit_thread() {
  Thread& thread = current();
  if (thread.arrived) fail("exits between cluster_arrive and cluster_wait");
  thread.exited = true;
  BlockState& state = blocks_[static_cast<size_t>(rank())];
  if (++state.exited < size_ || state.visits.empty()) return;
  // The memory goes. Nobody else may be at work in it: what others did has to be ordered before
  // the end of one of the block's threads.
  HappensBefore::Release all;
  for (int i = 0; i < size_; ++i)
    order_.release(rank() * size_ + i, all);
  for (const auto& [actor, visit] : state.visits) {
    if (!order_.released(all, actor, visit.epoch))
      fail("ends while another block may still be at work in its shared memory (" +
           site_name(visit.site) + ")");
  }
}

}  // namespace emulator
