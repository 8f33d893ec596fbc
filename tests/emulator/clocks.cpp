// SPDX-License-Identifier: Apache-2.0
#include "emulator/clocks.h"

#include "emulator/machine.h"

#include <algorithm>

namespace emulator {

HappensBefore::HappensBefore(int threads, int blocks, bool judged)
    : threads_count_(threads * blocks), blocks_(blocks), judged_(judged) {
  const auto start = std::make_shared<const Clock>(static_cast<size_t>(actors()), 0);
  threads_.assign(static_cast<size_t>(threads_count_), State{start, 1, 0, 0, 0, 0});
}

std::string HappensBefore::name(int thread) const {
  const int of_a_block = threads_count_ / blocks_;
  std::string text = "thread " + std::to_string(thread % of_a_block);
  if (blocks_ > 1) text += " of rank " + std::to_string(thread / of_a_block);
  return text;
}

void HappensBefore::fence(int thread) {
  State& state = threads_[thread];
  state.fenced = state.epoch++;
  state.copies_fenced = state.copies_done;
}

void HappensBefore::matrix_done(int thread, Epoch epoch) {
  State& state = threads_[thread];
  state.matrix_done = std::max(state.matrix_done, epoch);
}

void HappensBefore::copies_done(int thread, Epoch epoch) {
  State& state = threads_[thread];
  state.copies_done = std::max(state.copies_done, epoch);
}

void HappensBefore::release(int thread, Release& into) {
  if (!judged_) return;
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
  release(thread_actor(thread), state.epoch, into);
  release(copy_actor(thread), state.copies_done, into);
  release(fenced(thread_actor(thread)), state.fenced, into);
  release(fenced(copy_actor(thread)), state.copies_fenced, into);
  release(matrix_actor(thread), state.matrix_done, into);
  ++state.epoch;
}

void HappensBefore::release(Actor actor, Epoch epoch, Release& into) const {
  if (!judged_) return;
  if (into.empty()) into.clock_ = std::make_shared<Clock>(static_cast<size_t>(actors()), 0);
  Epoch& entry = (*into.clock_)[static_cast<size_t>(actor)];
  entry = std::max(entry, epoch);
}

void HappensBefore::acquire(int thread, const Release& from) {
  if (judged_) threads_[thread].base = from.clock_;
}

void HappensBefore::join(int thread, const Release& from) {
  State& state = threads_[thread];
  if (from.empty() || state.base == from.clock_) return;
  if (state.base != joined_base_ || from.clock_ != joined_from_) {
    auto both = std::make_shared<Clock>(*state.base);
    for (size_t i = 0; i < both->size(); ++i)
      (*both)[i] = std::max((*both)[i], (*from.clock_)[i]);
    joined_base_ = state.base;
    joined_from_ = from.clock_;
    joined_ = both;
  }
  state.base = joined_;
}

Shadow::Shadow(size_t bytes, const HappensBefore* order) : cells_((bytes + 1) / 2), order_(order) {}

std::string Shadow::who(Actor actor) const {
  const Actor copies = order_->copy_actor(0), matrices = order_->matrix_actor(0);
  const Actor bulk = order_->bulk_actor(0);
  if (actor < copies) return order_->name(actor);
  if (actor < matrices) return "an asynchronous copy of " + order_->name(actor - copies);
  if (actor < bulk) return "a product of warpgroup " + std::to_string(actor - matrices);
  return "a bulk copy of mbarrier " + std::to_string(actor - bulk);
}

bool Shadow::ordered(const Issuer& issuer, const Access& other) const {
  for (int i = 0; i < issuer.threads; ++i) {
    const int thread = issuer.first + i;
    if (issuer.async_proxy ? !order_->visible(thread, other.actor, other.epoch)
                           : !order_->ordered(thread, other.actor, other.epoch))
      return false;
  }
  return true;
}

std::string Shadow::conflict(bool write,
                             bool other_writes,
                             const Access& other,
                             size_t offset,
                             const Issuer& issuer,
                             Actor actor,
                             int site) const {
  const bool fence_only =
      issuer.async_proxy && ordered({issuer.first, issuer.threads, false}, other);
  return (fence_only ? "no fence_proxy_async: " : "race: ") + who(actor) +
         (write ? " writes" : " reads") + " shared memory at offset " + std::to_string(offset) +
         " (" + site_name(site) + ") without being ordered after " + who(other.actor) + ", which " +
         (other_writes ? "writes" : "reads") + " it (" + site_name(other.site) + ")";
}

std::string Shadow::access(bool write,
                           size_t offset,
                           size_t bytes,
                           const Issuer& issuer,
                           Actor actor,
                           Epoch epoch,
                           int site) {
  const size_t end = (offset + bytes + 1) / 2;
  Access good;  // the last that was found ordered: neighbours mostly share it
  const auto is_ordered = [&](const Access& other) {
    if (other.actor == good.actor && other.epoch == good.epoch) return true;
    if (!ordered(issuer, other)) return false;
    good = other;
    return true;
  };
  for (size_t i = offset / 2; i < end; ++i) {
    Cell& cell = cells_[i];
    if (cell.writer.actor == kNobody) {
      if (!write) {
        return who(actor) + " reads shared memory at offset " + std::to_string(2 * i) + " (" +
               site_name(site) + "), which nobody has written";
      }
    } else if (!is_ordered(cell.writer)) {
      return conflict(write, true, cell.writer, 2 * i, issuer, actor, site);
    }
    if (write) {
      for (Access& reader : cell.readers) {
        if (reader.actor != kNobody && !is_ordered(reader)) {
          return conflict(true, false, reader, 2 * i, issuer, actor, site);
        }
        reader = {};
      }
      cell.writer = {actor, epoch, site};
    } else {
      // A reader whose access happens before this one need not be kept: whoever is ordered after
      // this one is ordered after that one. Where no place is free, the oldest goes.
      Access* place = nullptr;
      for (Access& reader : cell.readers) {
        if (reader.actor == kNobody || reader.actor == actor ||
            order_->ordered(issuer.first, reader.actor, reader.epoch)) {
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
