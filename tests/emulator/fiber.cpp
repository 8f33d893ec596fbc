// SPDX-License-Identifier: Apache-2.0
#include "emulator/fiber.h"

#include "emulator/sanitizer.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#include <unistd.h>

namespace emulator {
namespace {

constexpr size_t kStackBytes = 128 * 1024;

size_t page_bytes() {
  return static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace

Fiber::Fiber() {
  void* mapping = mmap(nullptr,
                       page_bytes() + kStackBytes,
                       PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                       -1,
                       0);
  if (mapping == MAP_FAILED || mprotect(mapping, page_bytes(), PROT_NONE) != 0) {
    std::perror("emulator: no memory for a stack");
    std::abort();
  }
  mapping_ = static_cast<char*>(mapping);
}

Fiber::~Fiber() {
  munmap(mapping_, page_bytes() + kStackBytes);
}

#ifdef EMULATOR_UCONTEXT

namespace {

// makecontext passes ints only.
void trampoline(unsigned function_high,
                unsigned function_low,
                unsigned argument_high,
                unsigned argument_low) {
  const auto join = [](unsigned high, unsigned low) {
    return static_cast<uintptr_t>(static_cast<uint64_t>(high) << 32 | low);
  };
  const auto function = reinterpret_cast<void (*)(void*)>(join(function_high, function_low));
  function(reinterpret_cast<void*>(join(argument_high, argument_low)));
  std::abort();
}

}  // namespace

void Fiber::start(void (*function)(void*), void* argument) {
  unpoison(mapping_ + page_bytes(), kStackBytes);
  getcontext(&inside_);
  inside_.uc_stack.ss_sp = mapping_ + page_bytes();
  inside_.uc_stack.ss_size = kStackBytes;
  inside_.uc_link = nullptr;
  const uint64_t f = reinterpret_cast<uintptr_t>(function);
  const uint64_t a = reinterpret_cast<uintptr_t>(argument);
  makecontext(&inside_,
              reinterpret_cast<void (*)()>(trampoline),
              4,
              static_cast<unsigned>(f >> 32),
              static_cast<unsigned>(f),
              static_cast<unsigned>(a >> 32),
              static_cast<unsigned>(a));
}

void Fiber::enter() {
  swapcontext(&outside_, &inside_);
}
void Fiber::leave() {
  swapcontext(&inside_, &outside_);
}

#else

// void emulator_switch(void** save, void* load): pushes the callee-saved registers, stores the
// stack pointer in *save and goes on at the stack pointer `load`.
// emulator_entry: where a fresh fiber comes out of its first switch.
extern "C" void emulator_switch(void** save, void* load);
extern "C" void emulator_entry();

#if defined(__x86_64__)

asm(R"(
.text
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch, .-emulator_switch
.globl emulator_entry
.type emulator_entry, @function
emulator_entry:
  movq %r12, %rdi
  callq *%r13
  ud2
.size emulator_entry, .-emulator_entry
)");

void Fiber::start(void (*function)(void*), void* argument) {
  unpoison(mapping_ + page_bytes(), kStackBytes);
  // From the top: 16 bytes that keep the alignment of a call, the return address, then the six
  // registers in the order in which they are popped.
  auto* top = reinterpret_cast<uintptr_t*>(mapping_ + page_bytes() + kStackBytes) - 2;
  *--top = reinterpret_cast<uintptr_t>(&emulator_entry);
  *--top = 0;                                      // rbp
  *--top = 0;                                      // rbx
  *--top = reinterpret_cast<uintptr_t>(argument);  // r12
  *--top = reinterpret_cast<uintptr_t>(function);  // r13
  *--top = 0;                                      // r14
  *--top = 0;                                      // r15
  inside_ = top;
}

#else  // aarch64

asm(R"(
.text
.globl emulator_switch
.type emulator_switch, %function
emulator_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emulator_switch, .-emulator_switch
.globl emulator_entry
.type emulator_entry, %function
emulator_entry:
  mov x0, x19
  blr x20
  brk #0
.size emulator_entry, .-emulator_entry
)");

void Fiber::start(void (*function)(void*), void* argument) {
  unpoison(mapping_ + page_bytes(), kStackBytes);
  auto* frame = reinterpret_cast<uintptr_t*>(mapping_ + page_bytes() + kStackBytes) - 20;
  for (int i = 0; i < 20; ++i)
    frame[i] = 0;
  frame[0] = reinterpret_cast<uintptr_t>(argument);          // x19
  frame[1] = reinterpret_cast<uintptr_t>(function);          // x20
  frame[11] = reinterpret_cast<uintptr_t>(&emulator_entry);  // x30
  inside_ = frame;
}

#endif

void Fiber::enter() {
  emulator_switch(&outside_, inside_);
}
void Fiber::leave() {
  emulator_switch(&inside_, outside_);
}

#endif

}  // namespace emulator
