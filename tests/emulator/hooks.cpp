// SPDX-License-Identifier: Apache-2.0
// The entry points that -fsanitize=thread calls at every plain access of a kernel. libtsan is not
// linked; these stand in for it, and judge accesses to the device's memory.
#include "emulator/machine.h"

#include <cstddef>
#include <cstdint>

namespace emulator {
namespace {

// Inline functions of the standard library may be linked in their hooked form everywhere, so this
// is called from inside the emulator too; all but the device's memory must be left alone at once.
void access(bool write, const void* address, size_t bytes, const void* caller) {
  Block* block = current_block();
  if (block == nullptr) return;
  const auto place = static_cast<size_t>(static_cast<const char*>(address) - shared_window(0));
  if (place < kMaxCluster * kSharedWindow) {
    const size_t offset = place % kSharedWindow;
    const int site = plain_site_number(caller);
    if (static_cast<int>(place / kSharedWindow) != block->rank())
      fail("a plain access to the shared memory of another block (" + site_name(site) + ")");
    if (offset < kSharedBase || offset + bytes > kSharedBase + block->shared_bytes()) {
      fail("out of bounds: " + std::string(write ? "writes " : "reads ") + std::to_string(bytes) +
           " bytes at offset " +
           std::to_string(static_cast<int64_t>(offset) - static_cast<int64_t>(kSharedBase)) +
           " of shared memory, of which the block has " + std::to_string(block->shared_bytes()) +
           " (" + site_name(site) + ")");
    }
    const int thread = block->current().index;
    block->touch(write,
                 offset - kSharedBase,
                 bytes,
                 thread,
                 block->order().thread_actor(thread),
                 block->order().now(thread),
                 site);
    return;
  }
  if (is_global(address)) touch_global(write, address, bytes, plain_site_number(caller));
}

}  // namespace
}  // namespace emulator

// The instruction before the return address is the call that stands beside the access.
#define EMULATOR_CALLER (static_cast<char*>(__builtin_return_address(0)) - 1)
#define EMULATOR_HOOKS(size)                                 \
  void __tsan_read##size(void* address) {                    \
    emulator::access(false, address, size, EMULATOR_CALLER); \
  }                                                          \
  void __tsan_write##size(void* address) {                   \
    emulator::access(true, address, size, EMULATOR_CALLER);  \
  }                                                          \
  void __tsan_unaligned_read##size(void* address) {          \
    emulator::access(false, address, size, EMULATOR_CALLER); \
  }                                                          \
  void __tsan_unaligned_write##size(void* address) {         \
    emulator::access(true, address, size, EMULATOR_CALLER);  \
  }

extern "C" {
EMULATOR_HOOKS(1)
EMULATOR_HOOKS(2)
EMULATOR_HOOKS(4)
EMULATOR_HOOKS(8)
EMULATOR_HOOKS(16)
void __tsan_read_range(void* address, size_t bytes) {
  emulator::access(false, address, bytes, EMULATOR_CALLER);
}
void __tsan_write_range(void* address, size_t bytes) {
  emulator::access(true, address, bytes, EMULATOR_CALLER);
}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
// Every instrumented file calls this before main.
void __tsan_init() {
  emulator::note_hooks();
}
}
