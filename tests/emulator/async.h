// SPDX-License-Identifier: Apache-2.0
// Operations that take effect at some moment between their issue and the wait that covers them.
#pragma once

#include "emulator/clocks.h"
#include "emulator/control.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

namespace emulator {

// One operation in flight. A kind of asynchronous unit is a subclass; what it touches is judged at
// its issue, under its actor's future epoch, and `land` only moves the data.
class AsyncOperation {
 public:
  AsyncOperation(Actor actor, Epoch epoch) : actor(actor), epoch(epoch) {}
  virtual ~AsyncOperation() = default;
  virtual void land() = 0;
  virtual bool in_order() const { return false; }  // after the earlier operations of its actor

  const Actor actor;
  const Epoch epoch;  // waits count in epochs of the actor: the group of a cp.async
};

class AsyncEngine {
 public:
  AsyncEngine(int actors, Landing landing)
      : by_actor_(static_cast<size_t>(actors)), landing_(landing) {}

  void issue(std::unique_ptr<AsyncOperation> operation) {
    if (landing_ == Landing::kEager) {
      operation->land();
      return;
    }
    Queue& queue = by_actor_[static_cast<size_t>(operation->actor)];
    if (queue.empty()) busy_.push_back(operation->actor);
    queue.push_back(std::move(operation));
  }

  // Lands what `actor` has in flight up to `epoch`, in random order where the unit has none.
  template <typename Random>
  void force(Actor actor, Epoch epoch, Random& random) {
    Queue& queue = by_actor_[static_cast<size_t>(actor)];
    if (queue.empty()) return;
    const auto later = std::stable_partition(
        queue.begin(), queue.end(), [&](const auto& o) { return o->epoch <= epoch; });
    if (!queue.front()->in_order()) std::shuffle(queue.begin(), later, random);
    std::for_each(queue.begin(), later, [](const auto& operation) { operation->land(); });
    queue.erase(queue.begin(), later);
    if (queue.empty()) busy_.erase(std::find(busy_.begin(), busy_.end(), actor));
  }

  // Lands one operation of any actor; false where nothing is in flight.
  template <typename Random>
  bool land_one(Random& random) {
    if (busy_.empty()) return false;
    const size_t i = random() % busy_.size();
    Queue& queue = by_actor_[static_cast<size_t>(busy_[i])];
    const auto next = queue.front()->in_order()
                          ? queue.begin()
                          : queue.begin() + static_cast<std::ptrdiff_t>(random() % queue.size());
    const std::unique_ptr<AsyncOperation> operation = std::move(*next);
    queue.erase(next);
    if (queue.empty()) {
      busy_[i] = busy_.back();
      busy_.pop_back();
    }
    operation->land();
    return true;
  }

  bool in_flight(Actor actor) const { return !by_actor_[static_cast<size_t>(actor)].empty(); }
  bool any_in_flight() const { return !busy_.empty(); }
  Landing landing() const { return landing_; }

 private:
  using Queue = std::vector<std::unique_ptr<AsyncOperation>>;
  std::vector<Queue> by_actor_;
  std::vector<Actor> busy_;  // actors with something in flight
  Landing landing_;
};

}  // namespace emulator
