// Eight-bit codes, signed or not.
#pragma once

#include <cstddef>
#include <optional>

#include "ops.h"

namespace actx {

constexpr std::size_t kCodes = 256;
constexpr std::size_t kSmallestSigned = 128;  // the bit pattern of -128

inline std::int64_t smallest_code(Type type) { return type == Type::kInt8 ? -128 : 0; }
inline std::int64_t largest_code(Type type) { return type == Type::kInt8 ? 127 : 255; }

// Throws Error unless the tensor holds codes.
inline void check_codes(const Tensor& x, const char* name) {
  if (x.type != Type::kUint8 && x.type != Type::kInt8) {
    throw Error(std::string(name) + " must be uint8 or int8, got the ONNX type " + std::to_string(static_cast<int>(x.type)));
  }
}

// The attribute 'to'. Throws Error where it is no type of codes.
inline std::optional<Type> read_code_type(const Attributes& attributes) {
  const auto to = attributes.integer("to");
  if (!to) return std::nullopt;
  if (*to != static_cast<std::int64_t>(Type::kUint8) && *to != static_cast<std::int64_t>(Type::kInt8)) {
    throw Error("the attribute 'to' must be 2 (uint8) or 3 (int8), got " + std::to_string(*to));
  }
  return static_cast<Type>(*to);
}

}  // namespace actx
