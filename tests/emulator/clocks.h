// SPDX-License-Identifier: Apache-2.0
// Happens-before by vector clocks, and the shadow of a block's shared memory that is judged by it.
//
// An *actor* is whatever accesses memory in an order of its own: every thread, and every thread's
// queue of asynchronous copies. Other asynchronous units (an mbarrier's phase, a warpgroup's matrix
// unit) are more actors, numbered after these. An actor counts its operations in epochs; a clock
// says, for every actor, up to which epoch its operations have happened.
//
// Clocks that a barrier has made are shared and never changed. A thread has such a clock and, apart
// from it, the two entries that are its own; so a barrier of 256 threads costs one vector, not 256.
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

class HappensBefore {
 public:
  explicit HappensBefore(int threads);

  Actor thread_actor(int thread) const { return thread; }
  Actor copy_actor(int thread) const { return threads_count_ + thread; }

  // The epoch of what `thread` does now.
  Epoch now(int thread) const { return threads_[thread].epoch; }

  // Whether operation `epoch` of `actor` happens before what `thread` does now.
  bool ordered(int thread, Actor actor, Epoch epoch) const {
    const State& state = threads_[thread];
    if (actor == thread) return true;
    if (actor == copy_actor(thread)) return epoch <= state.copies_done;
    return epoch <= (*state.base)[static_cast<size_t>(actor)];
  }

  // `thread` has waited for its own copies up to `epoch`.
  void copies_done(int thread, Epoch epoch);

  // A barrier in the making: what has been released into it.
  class Release {
   public:
    bool empty() const { return clock_ == nullptr; }

   private:
    friend class HappensBefore;
    std::shared_ptr<Clock> clock_;
    std::vector<std::shared_ptr<const Clock>> merged_;
  };

  // All that happens before now in `thread` is released; what it does next is not.
  void release(int thread, Release& into);

  // All that was released happens before what `thread`, which is among the releasing, does next.
  void acquire(int thread, const Release& from);

 private:
  struct State {
    std::shared_ptr<const Clock> base;
    Epoch epoch;
    Epoch copies_done;
  };

  int threads_count_;
  std::vector<State> threads_;
};

// Last accesses to each two bytes of shared memory.
class Shadow {
 public:
  Shadow(size_t bytes, const HappensBefore* order);

  // Judges an access of `actor`, in its epoch `epoch`, that `thread` makes or issues. Returns what
  // is wrong with it, or an empty string. `site` says where it is, as an index into `sites`.
  std::string write(size_t offset, size_t bytes, int thread, Actor actor, Epoch epoch, int site) {
    return access(true, offset, bytes, thread, actor, epoch, site);
  }
  std::string read(size_t offset, size_t bytes, int thread, Actor actor, Epoch epoch, int site) {
    return access(false, offset, bytes, thread, actor, epoch, site);
  }

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

  std::string access(
      bool write, size_t offset, size_t bytes, int thread, Actor actor, Epoch epoch, int site);
  std::string conflict(bool write,
                       bool other_writes,
                       const Access& other,
                       size_t offset,
                       Actor actor,
                       int site) const;
  std::string who(Actor actor) const;

  std::vector<Cell> cells_;
  const HappensBefore* order_;
};

}  // namespace emulator
