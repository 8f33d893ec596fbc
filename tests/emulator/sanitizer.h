// SPDX-License-Identifier: Apache-2.0
// AddressSanitizer's manual poisoning, where the emulator is built with it.
#pragma once

#include <cstddef>

#ifdef __SANITIZE_ADDRESS__

#include <sanitizer/asan_interface.h>

namespace emulator {
inline void poison(const void* begin, size_t bytes) {
  __asan_poison_memory_region(begin, bytes);
}
inline void unpoison(const void* begin, size_t bytes) {
  __asan_unpoison_memory_region(begin, bytes);
}
}  // namespace emulator

#else

namespace emulator {
inline void poison(const void*, size_t) {}
inline void unpoison(const void*, size_t) {}
}  // namespace emulator

#endif
