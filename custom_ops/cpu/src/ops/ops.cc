#include "ops.h"

#include <algorithm>

namespace actx {

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

std::int64_t product(const Shape& shape, std::size_t first, std::size_t last) {
  std::int64_t count = 1;
  for (std::size_t i = first; i < last; ++i) count *= shape[i];
  return count;
}

std::int64_t product(const Shape& shape) { return product(shape, 0, shape.size()); }

std::size_t normalized_axis(std::int64_t axis, const Shape& shape) {
  const auto rank = static_cast<std::int64_t>(shape.size());
  if (axis < -rank || axis >= rank) {
    throw Error("axis " + std::to_string(axis) + " is none of an input of shape " + to_string(shape));
  }
  return static_cast<std::size_t>(axis < 0 ? axis + rank : axis);
}

std::size_t size_of(Type type) {
  switch (type) {
    case Type::kFloat:
    case Type::kInt32:
      return 4;
    case Type::kFloat16:
    case Type::kBfloat16:
      return 2;
    default:
      return 1;
  }
}

void check_float(const Tensor& x) {
  if (x.type != Type::kFloat && x.type != Type::kFloat16 && x.type != Type::kBfloat16) {
    throw Error("X must be float32, float16 or bfloat16, got the ONNX type " + std::to_string(static_cast<int>(x.type)));
  }
}

void check_same_type(const Tensor& x, const Tensor& other, const char* name) {
  if (other.present && other.type != x.type) {
    throw Error(std::string(name) + " must have the type of X, got the ONNX types " +
                std::to_string(static_cast<int>(other.type)) + " and " + std::to_string(static_cast<int>(x.type)));
  }
}

void check_same_shape(const Tensor& x, const Tensor& other, const char* name) {
  if (other.present && other.shape != x.shape) {
    throw Error(std::string(name) + " must have the shape of X, got " + to_string(other.shape) + " and " +
                to_string(x.shape));
  }
}

void widen(const Kernels& kernels, Type type, const void* x, float* y, std::int64_t n) {
  const auto* half = static_cast<const std::uint16_t*>(x);
  if (type == Type::kFloat) std::copy_n(static_cast<const float*>(x), n, y);
  if (type == Type::kFloat16) kernels.widen_float16(half, y, n);
  if (type == Type::kBfloat16) kernels.widen_bfloat16(half, y, n);
}

void narrow(const Kernels& kernels, Type type, const float* x, void* y, std::int64_t n) {
  auto* half = static_cast<std::uint16_t*>(y);
  if (type == Type::kFloat) std::copy_n(x, n, static_cast<float*>(y));
  if (type == Type::kFloat16) kernels.narrow_float16(x, half, n);
  if (type == Type::kBfloat16) kernels.narrow_bfloat16(x, half, n);
}

}  // namespace actx
