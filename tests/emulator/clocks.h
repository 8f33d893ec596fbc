// SPDX-License-Identifier: Apache-2.0
// Happens-before by vector clocks, and the shadow of a block's shared memory that is judged by it.
// Blocks of a cluster share the clocks: their threads are numbered one block after the other.
//
// An *actor* is whatever accesses memory in an order of its own: every thread, every thread's queue
// of cp.async, every warpgroup's matrix unit, and the bulk copies of every mbarrier, whose epochs
// are its phases. An actor counts its operations in epochs; a clock says, for every actor, up to
// which epoch its operations have happened.
//
// wgmma and bulk copies go by the async proxy: what a thread or its cp.async did is visible to them
// only as far as that thread has fenced since. A clock has a second entry for it, which travels
// with the first.
//
// Clocks that a barrier has made are shared and never changed. A thread has such a clock and, apart
// from it, the entries that are its own; so a barrier of 256 threads costs one vector, not 256.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace emulator {

using Actor = int32_t;
using Epoch = uint32_t;
using Clock = std::vector<Epoch>;

constexpr int kWarpgroupThreads = 128;
constexpr int kMbarriers = 64;  // of a block

class HappensBefore {
 public:
  // Where nothing is judged by it, no clocks are kept.
  HappensBefore(int threads, int blocks, bool judged);

  Actor thread_actor(int thread) const { return thread; }
  Actor copy_actor(int thread) const { return threads_count_ + thread; }
  Actor matrix_actor(int thread) const { return 4 * threads_count_ + thread / kWarpgroupThreads; }
  Actor bulk_actor(int mbarrier) const { return matrix_actor(threads_count_ - 1) + 1 + mbarrier; }
  int actors() const { return bulk_actor(kMbarriers * blocks_); }

  int block_of(int thread) const { return thread / (threads_count_ / blocks_); }
  // How messages name a thread: by its place in its block.
  std::string name(int thread) const;

  // The epoch of what `thread` does now.
  Epoch now(int thread) const { return threads_[thread].epoch; }

  // Whether operation `epoch` of `actor` happens before what `thread` does now.
  bool ordered(int thread, Actor actor, Epoch epoch) const {
    const State& state = threads_[thread];
    if (actor == thread) return true;
    if (actor == copy_actor(thread)) return epoch <= state.copies_done;
    if (actor == fenced(thread)) return epoch <= state.fenced;
    if (actor == fenced(copy_actor(thread))) return epoch <= state.copies_fenced;
    if (actor == matrix_actor(thread) && epoch <= state.matrix_done) return true;
    return epoch <= (*state.base)[static_cast<size_t>(actor)];
  }

  // Whether it is visible to what `thread` asks of the async proxy now.
  bool visible(int thread, Actor actor, Epoch epoch) const {
    return ordered(thread, actor < 2 * threads_count_ ? fenced(actor) : actor, epoch);
  }

  // What `thread` has done, and its copies that it has waited for, becomes visible to the async
  // proxy.
  void fence(int thread);

  // `thread` has waited for the products of its warpgroup up to group `epoch`.
  void matrix_done(int thread, Epoch epoch);

  // `thread` has waited for its own copies up to `epoch`.
  void copies_done(int thread, Epoch epoch);

  // A barrier in the making: what has been released into it.
  class Release {
   public:
    bool empty() const { return clock_ == nullptr; }

   private:
    friend class HappensBefore;
    std::shared_ptr<Clock> clock_;  // not changed any more once somebody has acquired it
    std::vector<std::shared_ptr<const Clock>> merged_;
  };

  // All that happens before now in `thread` is released; what it does next is not.
  void release(int thread, Release& into);

  // All that was released happens before what `thread`, which is among the releasing, does next.
  void acquire(int thread, const Release& from);

  // The same for a thread that need not be among the releasing.
  void join(int thread, const Release& from);

  // Whether operation `epoch` of `actor` was released.
  bool released(const Release& from, Actor actor, Epoch epoch) const {
    return !judged_ || epoch <= (*from.clock_)[static_cast<size_t>(actor)];
  }

  // Operations of `actor` up to `epoch` are released.
  void release(Actor actor, Epoch epoch, Release& into) const;

 private:
  Actor fenced(Actor actor) const { return 2 * threads_count_ + actor; }
  struct State {
    std::shared_ptr<const Clock> base;
    Epoch epoch;
    Epoch copies_done;
    Epoch fenced;
    Epoch copies_fenced;
    Epoch matrix_done;
  };

  int threads_count_;  // of all blocks
  int blocks_;
  bool judged_;
  std::vector<State> threads_;
  // The last join: threads of a warp mostly repeat it.
  std::shared_ptr<const Clock> joined_base_, joined_from_, joined_;
};

// Last accesses to each two bytes of shared memory.
class Shadow {
 public:
  Shadow(size_t bytes, const HappensBefore* order);

  // Who makes or issues an access: threads in a row, all of which it must be ordered after.
  struct Issuer {
    int first;
    int threads;
    bool async_proxy;
  };

  // Judges an access of `actor`, in its epoch `epoch`. Returns what is wrong with it, or an empty
  // string. `site` says where it is, as an index into `sites`.
  std::string access(bool write,
                     size_t offset,
                     size_t bytes,
                     const Issuer& issuer,
                     Actor actor,
                     Epoch epoch,
                     int site);

 private:
  static constexpr int kReaders = 3;
  static constexpr Actor kNobody = -1;

  struct Access {
    Actor actor = kNobody;
    Epoch epoch = 0;
    int site = 0;
  };
  struct Cell {
    Access writer;
    Access readers[kReaders];
  };

  std::string conflict(bool write,
                       bool other_writes,
                       const Access& other,
                       size_t offset,
                       const Issuer& issuer,
                       Actor actor,
                       int site) const;
  bool ordered(const Issuer& issuer, const Access& other) const;
  std::string who(Actor actor) const;

  std::vector<Cell> cells_;
  const HappensBefore* order_;
};

}  // namespace emulator
