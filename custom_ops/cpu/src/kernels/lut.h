// Tables of 256 entries for eight-bit codes.
#pragma once

#include "rows.h"

namespace actx {
namespace {

template <class V>
void lut(const std::uint8_t* table, const std::uint8_t* x, std::uint8_t* y, std::int64_t n) {
  const typename V::Bytes look(table);
  for_vectors<V::kBytes>(
      n, [&](std::int64_t i) { look(x + i, y + i); },
      [&](std::int64_t i, int count) {
        for (std::int64_t j = i; j < i + count; ++j) y[j] = table[x[j]];
      });
}

// round(product) + zero point, kept to the codes: the bounds are integers, so the product may be kept to them first.
template <class V>
void gated_lut(const GatedTable& t, const std::uint8_t* x, const std::uint8_t* u, std::uint8_t* y, std::int64_t n) {
  const auto low = V::set(static_cast<float>(t.y_low - t.y_zero_point));
  const auto high = V::set(static_cast<float>(t.y_high - t.y_zero_point));
  const auto run = [&](const std::uint8_t* gate, const std::uint8_t* code, std::uint8_t* out) {
    const auto factor = V::number(V::plus(V::flip(V::widen_byte(code), t.u_flip), -t.u_zero_point));
    const auto product = V::mul(V::gather(t.products, V::widen_byte(gate)), factor);
    V::narrow_byte(out, V::plus(V::round(V::min(V::max(product, low), high)), t.y_zero_point));
  };
  for_vectors<V::kLanes>(
      n, [&](std::int64_t i) { run(x + i, u + i, y + i); },
      [&](std::int64_t i, int count) {
        std::uint8_t gates[V::kLanes] = {}, codes[V::kLanes] = {}, out[V::kLanes];
        __builtin_memcpy(gates, x + i, static_cast<std::size_t>(count));
        __builtin_memcpy(codes, u + i, static_cast<std::size_t>(count));
        run(gates, codes, out);
        __builtin_memcpy(y + i, out, static_cast<std::size_t>(count));
      });
}

}  // namespace
}  // namespace actx
