// SPDX-License-Identifier: Apache-2.0
// Checks of arguments: what is wrong is said with the values, and reaches Python as a RuntimeError.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace fused_inception {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws the message, put together from `parts`, unless `condition` holds.
template <typename... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// Prints as (2, 3, 4).
struct List {
  IntHeaderOnlyArrayRef values;
};

inline std::ostream& operator<<(std::ostream& stream, const List& list) {
  const char* separator = "(";
  for (int64_t value : list.values) {
    stream << separator << value;
    separator = ", ";
  }
  return stream << (list.values.empty() ? "()" : ")");
}

inline const char* dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    default:
      return "another dtype";
  }
}

inline std::string device_name(const Tensor& tensor) {
  if (!tensor.is_cuda()) return tensor.is_cpu() ? "cpu" : "another device";
  return "cuda:" + std::to_string(tensor.get_device_index());
}

// Operands are read and written 16 bytes at a time.
constexpr int64_t kAlignment = 16;

// Refuses an input that is neither float16 nor bfloat16.
inline void check_16_bit(const char* op, ScalarType type) {
  check(type == ScalarType::Half || type == ScalarType::BFloat16,
        op,
        ": input must be float16 or bfloat16, got ",
        dtype_name(type));
}

// Refuses a tensor whose dtype or rank is not the one asked for.
inline void check_kind(
    const char* op, const char* name, const Tensor& tensor, ScalarType type, int64_t rank) {
  check(tensor.scalar_type() == type,
        op,
        ": ",
        name,
        " must be ",
        dtype_name(type),
        " as input is, got ",
        dtype_name(tensor.scalar_type()));
  check(tensor.dim() == rank,
        op,
        ": ",
        name,
        " must be ",
        rank,
        "-D, got shape ",
        List{tensor.sizes()});
}

// Refuses a tensor that is not on the device of `input`, a CUDA device.
inline void check_device(const char* op,
                         const char* name,
                         const Tensor& tensor,
                         const Tensor& input) {
  check(tensor.is_cuda() && tensor.get_device_index() == input.get_device_index(),
        op,
        ": ",
        name,
        " must be on ",
        device_name(input),
        " as input is, got ",
        device_name(tensor));
}

// Refuses a pointer that 16-byte accesses cannot start from.
inline void check_alignment(const char* op, const char* name, const void* pointer) {
  check(reinterpret_cast<uintptr_t>(pointer) % kAlignment == 0,
        op,
        ": ",
        name,
        " must start on a multiple of ",
        kAlignment,
        " bytes, got address ",
        pointer);
}

// Refuses a tensor whose strides are not `expected`; a dimension of size 1 or 0 may have any.
inline void check_strides(const char* op,
                          const char* name,
                          const Tensor& tensor,
                          IntHeaderOnlyArrayRef expected) {
  bool equal = true;
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    equal = equal && (tensor.size(i) <= 1 || tensor.stride(i) == expected[i]);
  }
  check(equal,
        op,
        ": ",
        name,
        " of shape ",
        List{tensor.sizes()},
        " must have strides ",
        List{expected},
        ", got ",
        List{tensor.strides()});
}

}  // namespace fused_inception
