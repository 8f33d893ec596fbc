// SPDX-License-Identifier: Apache-2.0
// A fiber: a stack of its own, entered and left by a switch that saves the callee-saved registers.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(EMULATOR_UCONTEXT)
#define EMULATOR_UCONTEXT
#endif

#ifdef EMULATOR_UCONTEXT
#include <ucontext.h>
#endif

namespace emulator {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes the next `enter` call function(argument) on a fresh stack. What ran on it is dropped: no
  // destructor runs.
  void start(void (*function)(void*), void* argument);

  // Runs the fiber until it calls `leave`; called from outside of every fiber.
  void enter();

  // Returns to whoever entered; called from inside.
  void leave();

 private:
  char* mapping_ = nullptr;  // a guard page, then the stack
#ifdef EMULATOR_UCONTEXT
  ucontext_t inside_, outside_;
#else
  void* inside_ = nullptr;
  void* outside_ = nullptr;
#endif
};

}  // namespace emulator
