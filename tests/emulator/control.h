// SPDX-License-Identifier: Apache-2.0
// What a test program uses of the emulator: options, global memory, launches and what went wrong.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>

namespace emulator {

// When asynchronous operations take effect: at their issue, as late as a wait allows, or at random.
enum class Landing { kEager, kLazy, kRandom };

struct Options {
  // Warps in turn; or a swarm, where a seed picks a policy, its choices and when copies land.
  bool swarm = false;
  uint64_t seed = 0;
  Landing landing = Landing::kLazy;  // of warps in turn
  bool races = true;  // judge the order of accesses to shared memory, where the build has hooks
  // A synchronizing call, "file:line", that is to do nothing, or to wait for one group less.
  std::string mutated_site;
  bool weaken = false;
  int64_t shared_limit = 227 * 1024;  // bytes that a block may have
  int multiprocessors = 2;            // that a launch is told of
};

void configure(const Options& options);

// Global memory: a buffer filled with 0xff, which is NaN in every floating-point type. Writing an
// element twice in one grid, and reading what the same grid writes, are faults: blocks may not
// communicate.
enum class Access { kRead, kWrite, kReadWrite };
void* allocate(const std::string& name, size_t bytes, Access access);

// Runs `kernel` once per thread of every block, `cluster` neighbouring blocks together. False where
// something went wrong: see `fault`.
bool run_grid(
    int64_t blocks, int threads, int64_t shared_bytes, int cluster, std::function<void()> kernel);

int multiprocessors();

// The first thing that went wrong, or an empty string.
const std::string& fault();

// The synchronizing calls that have run: "file:line" and the primitive's name.
const std::map<std::string, std::string>& sites();

// Matrices that ldmatrix has loaded, and the extra times it had to ask a bank for that.
struct BankCount {
  int64_t matrices = 0;
  int64_t conflicts = 0;
};
BankCount bank_count();

}  // namespace emulator
