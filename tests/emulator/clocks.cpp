// SPDX-License-Identifier: Apache-2.0
#include "emulator/clocks.h"

#include "emulator/machine.h"

#include <algorithm>

namespace emulator {

HappensBefore::HappensBefore(int threads) : threads_count_(threads) {
  const auto start = std::make_shared<const Clock>(static_cast<size_t>(2 * threads), 0);
  threads_.assign(static_cast<size_t>(threads), State{start, 1, 0});
}

void HappensBefore::copies_done(int thread, Epoch epoch) {
  State& state = threads_[thread];
  state.copies_done = std::max(state.copies_done, epoch);
}

void HappensBefore::release(int thread, Release& into) {
  State& state = threads_[thread];
  if (into.empty()) {
    into.clock_ = std::make_shared<Clock>(*state.base);
    into.merged_ = {state.base};
  } else if (std::find(into.merged_.begin(), into.merged_.end(), state.base) ==
             into.merged_.end()) {
    const Clock& base = *state.base;
    Clock& clock = *into.clock_;
    for (size_t i = 0; i < clock.size(); ++i)
      clock[i] = std::max(clock[i], base[i]);
    into.merged_.push_back(state.base);
  }
  Epoch& own = (*into.clock_)[static_cast<size_t>(thread_actor(thread))];
  own = std::max(own, state.epoch);
  Epoch& copies = (*into.clock_)[static_cast<size_t>(copy_actor(thread))];
  copies = std::max(copies, state.copies_done);
  ++state.epoch;
}

void HappensBefore::acquire(int thread, const Release& from) {
  threads_[thread].base = from.clock_;
}

Shadow::Shadow(size_t bytes, const HappensBefore* order) : cells_((bytes + 1) / 2), order_(order) {}

std::string Shadow::who(Actor actor) const {
  const Actor first_copy = order_->copy_actor(0);
  if (actor < first_copy) return "thread " + std::to_string(actor);
  return "an asynchronous copy of thread " + std::to_string(actor - first_copy);
}

std::string Shadow::conflict(bool write,
                             bool other_writes,
                             const Access& other,
                             size_t offset,
                             Actor actor,
                             int site) const {
  return "race: " + who(actor) + (write ? " writes" : " reads") + " shared memory at offset " +
         std::to_string(offset) + " (" + site_name(site) + ") without being ordered after " +
         who(other.actor) + ", which " + (other_writes ? "writes" : "reads") + " it (" +
         site_name(other.site) + ")";
}

std::string Shadow::access(
    bool write, size_t offset, size_t bytes, int thread, Actor actor, Epoch epoch, int site) {
  const size_t end = (offset + bytes + 1) / 2;
  for (size_t i = offset / 2; i < end; ++i) {
    Cell& cell = cells_[i];
    if (cell.writer.actor == kNobody) {
      if (!write) {
        return who(actor) + " reads shared memory at offset " + std::to_string(2 * i) + " (" +
               site_name(site) + "), which nobody has written";
      }
    } else if (!order_->ordered(thread, cell.writer.actor, cell.writer.epoch)) {
      return conflict(write, true, cell.writer, 2 * i, actor, site);
    }
    if (write) {
      for (Access& reader : cell.readers) {
        if (reader.actor != kNobody && !order_->ordered(thread, reader.actor, reader.epoch)) {
          return conflict(true, false, reader, 2 * i, actor, site);
        }
        reader = {};
      }
      cell.writer = {actor, epoch, site};
    } else {
      // A reader whose access happens before this one need not be kept: whoever is ordered after
      // this one is ordered after that one. Where no place is free, the oldest goes.
      Access* place = nullptr;
      for (Access& reader : cell.readers) {
        if (reader.actor == kNobody || order_->ordered(thread, reader.actor, reader.epoch)) {
          place = &reader;
          break;
        }
      }
      if (place == nullptr) {
        std::rotate(cell.readers, cell.readers + 1, cell.readers + kReaders);
        place = &cell.readers[kReaders - 1];
      }
      *place = {actor, epoch, site};
    }
  }
  return {};
}

}  // namespace emulator
