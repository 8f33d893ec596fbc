// SPDX-License-Identifier: Apache-2.0
// What every test program does: `key=value` arguments, tensors in raw files, a launch, a report.
//
// The programs are compiled by the host compiler, where kernels run in the emulator, and by nvcc,
// where the same kernels run on a device.
#pragma once

#include "common/element.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "emulator/control.h"
#endif

namespace driver {

[[noreturn]] inline void die(const std::string& message) {
  std::fprintf(stderr, "%s\n", message.c_str());
  std::exit(2);
}

class Arguments {
 public:
  Arguments(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) {
      const std::string text = argv[i];
      const size_t equals = text.find('=');
      if (equals == std::string::npos) die("takes key=value, got " + text);
      values_[text.substr(0, equals)] = text.substr(equals + 1);
    }
  }

  std::string text(const std::string& key) const {
    const auto found = values_.find(key);
    if (found == values_.end()) die("argument " + key + " is missing");
    return found->second;
  }
  std::string text(const std::string& key, const std::string& otherwise) const {
    return values_.count(key) != 0 ? text(key) : otherwise;
  }
  int64_t number(const std::string& key) const { return std::stoll(text(key)); }
  int64_t number(const std::string& key, int64_t otherwise) const {
    return values_.count(key) != 0 ? number(key) : otherwise;
  }

 private:
  std::map<std::string, std::string> values_;
};

#ifdef __CUDACC__

enum class Access { kRead, kWrite, kReadWrite };

inline void check(cudaError_t status) {
  if (status != cudaSuccess) die(cudaGetErrorString(status));
}
inline void* allocate(const std::string&, size_t bytes, Access) {
  void* pointer = nullptr;
  check(cudaMalloc(&pointer, bytes));
  check(cudaMemset(pointer, 0xff, bytes));
  return pointer;
}
inline void copy(void* to, const void* from, size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault));
}
inline void configure(const Arguments&) {}
// Prints what happened; the program's exit status.
inline int report() {
  const cudaError_t status = cudaDeviceSynchronize();
  if (status != cudaSuccess) std::printf("fault %s\n", cudaGetErrorString(status));
  return status == cudaSuccess ? 0 : 1;
}

#else

using emulator::Access;
using emulator::allocate;
inline void copy(void* to, const void* from, size_t bytes) {
  std::copy_n(static_cast<const char*>(from), bytes, static_cast<char*>(to));
}
inline void configure(const Arguments& arguments) {
  emulator::Options options;
  const std::string schedule = arguments.text("schedule", "lazy");
  options.swarm = schedule == "swarm";
  options.landing = schedule == "eager" ? emulator::Landing::kEager : emulator::Landing::kLazy;
  if (schedule != "swarm" && schedule != "eager" && schedule != "lazy")
    die("no schedule " + schedule);
  options.seed = static_cast<uint64_t>(arguments.number("seed", 0));
  options.races = arguments.number("races", 1) != 0;
  options.mutated_site = arguments.text("mutate", "");
  options.weaken = arguments.number("weaken", 0) != 0;
  options.shared_limit = arguments.number("shared_limit", options.shared_limit);
  options.multiprocessors =
      static_cast<int>(arguments.number("multiprocessors", options.multiprocessors));
  emulator::configure(options);
}
inline int report() {
  for (const auto& [site, primitive] : emulator::sites()) {
    std::printf("site %s %s\n", site.c_str(), primitive.c_str());
  }
  const emulator::BankCount banks = emulator::bank_count();
  std::printf("matrices %lld\nconflicts %lld\n",
              static_cast<long long>(banks.matrices),
              static_cast<long long>(banks.conflicts));
  if (!emulator::fault().empty()) std::printf("fault %s\n", emulator::fault().c_str());
  return emulator::fault().empty() ? 0 : 1;
}

#endif

// A tensor of the device that begins as the contents of a file, or as 0xff bytes.
class Buffer {
 public:
  // `pieces` equal parts of the file begin `stride` bytes apart; the gaps keep whatever they hold.
  static Buffer read(const std::string& name,
                     const std::string& path,
                     size_t pieces = 1,
                     size_t stride = 0) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file) die("cannot read " + path);
    std::vector<char> bytes(static_cast<size_t>(file.tellg()));
    file.seekg(0);
    file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    const size_t piece = bytes.size() / pieces;
    Buffer buffer(name, (pieces - 1) * stride + piece, Access::kRead);
    for (size_t i = 0; i < pieces; ++i) {
      copy(static_cast<char*>(buffer.pointer_) + i * stride, bytes.data() + i * piece, piece);
    }
    return buffer;
  }
  Buffer(const std::string& name, size_t bytes, Access access)
      : bytes_(bytes), pointer_(allocate(name, bytes, access)) {}

  void* get() const { return pointer_; }

  void save(const std::string& path) const {
    std::vector<char> bytes(bytes_);
    copy(bytes.data(), pointer_, bytes_);
    std::ofstream file(path, std::ios::binary);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!file) die("cannot write " + path);
  }

 private:
  size_t bytes_;
  void* pointer_;
};

// Calls `function` with a value of the 16-bit element type that the argument dtype names.
template <typename Function>
auto with_element(const Arguments& arguments, const Function& function) {
  const bool bfloat16 = arguments.text("dtype") == "bfloat16";
#ifdef __SANITIZE_ADDRESS__
  // One element type is half the time to compile.
  if (!bfloat16) die("built for bfloat16 only");
  return function(fused_inception::BFloat16{});
#else
  return bfloat16 ? function(fused_inception::BFloat16{}) : function(fused_inception::Float16{});
#endif
}

// After a launch that may have been refused: prints what happened and saves the output; the
// program's exit status.
inline int finish(const Arguments& arguments, const Buffer& output, bool refused) {
  if (refused) {
    std::printf("refused\n");
    return 1;
  }
  const int result = report();
  output.save(arguments.text("output"));
  return result;
}

}  // namespace driver
