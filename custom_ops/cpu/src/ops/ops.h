// The operators, one file each, and what they share.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "../kernels.h"
#include "../op.h"

namespace actx {

std::unique_ptr<Op> create_spline(const Attributes& attributes, const Kernels& kernels, std::string_view kernel);
std::unique_ptr<Op> create_gated_spline(const Attributes& attributes, const Kernels& kernels, std::string_view kernel);
std::unique_ptr<Op> create_spline_mix(const Attributes& attributes, const Kernels& kernels, std::string_view kernel);
std::unique_ptr<Op> create_poly_norm(const Attributes& attributes, const Kernels& kernels, std::string_view kernel);
std::unique_ptr<Op> create_lut(const Attributes& attributes, const Kernels& kernels, std::string_view kernel);
std::unique_ptr<Op> create_gated_lut(const Attributes& attributes, const Kernels& kernels, std::string_view kernel);
std::unique_ptr<Op> create_qlinear(const Attributes& attributes, const Kernels& kernels, std::string_view kernel);
std::unique_ptr<Op> create_qlinear_to_float(const Attributes& attributes, const Kernels& kernels, std::string_view kernel);
std::unique_ptr<Op> create_qattention(const Attributes& attributes, const Kernels& kernels, std::string_view kernel);

// Elements of a block that is widened, run and narrowed while it is in the first cache.
constexpr std::int64_t kBlockElements = 1024;
// Outputs from this size on do not fit the caches beside their inputs: they are written past them.
constexpr std::int64_t kStreamBytes = std::int64_t{1} << 24;

std::string to_string(const Shape& shape);
std::int64_t product(const Shape& shape, std::size_t first, std::size_t last);
std::int64_t product(const Shape& shape);

// The axis counted from the front. Throws Error where there is none such.
std::size_t normalized_axis(std::int64_t axis, const Shape& shape);

std::size_t size_of(Type type);
inline const char* at(const void* data, Type type, std::int64_t element) {
  return static_cast<const char*>(data) + element * static_cast<std::int64_t>(size_of(type));
}
inline char* at(void* data, Type type, std::int64_t element) {
  return static_cast<char*>(data) + element * static_cast<std::int64_t>(size_of(type));
}

// Throws Error unless the type is a float type; unless `other`, where present, has the type of the first input, and the shape.
void check_float(const Tensor& x);
void check_same_type(const Tensor& x, const Tensor& other, const char* name);
void check_same_shape(const Tensor& x, const Tensor& other, const char* name);

// Reads and writes any float type as float32.
void widen(const Kernels& kernels, Type type, const void* x, float* y, std::int64_t n);
void narrow(const Kernels& kernels, Type type, const float* x, void* y, std::int64_t n);

// Calls body(x, u, y, n) on float32 copies of n elements of a float type; u may be null. Half precision passes through blocks
// that stay in the first cache.
template <class Body>
void map_floats(const Kernels& kernels, Type type, const void* x, const void* u, void* y, std::int64_t n, const Body& body) {
  if (type == Type::kFloat) {
    body(static_cast<const float*>(x), static_cast<const float*>(u), static_cast<float*>(y), n);
    return;
  }
  alignas(64) float in[kBlockElements], gate[kBlockElements], out[kBlockElements];
  for (std::int64_t i = 0; i < n; i += kBlockElements) {
    const std::int64_t count = n - i < kBlockElements ? n - i : kBlockElements;
    widen(kernels, type, at(x, type, i), in, count);
    if (u != nullptr) widen(kernels, type, at(u, type, i), gate, count);
    body(in, u != nullptr ? gate : nullptr, out, count);
    narrow(kernels, type, out, at(y, type, i), count);
  }
}

}  // namespace actx
