// PolyNorm's two passes, products, and the edges between element types.
#pragma once

#include "../kernels.h"

namespace actx {
namespace {

// Calls vector(i) for whole vectors of [0, n), then rest(i, count) once for what is left.
template <int kLanes, class Body, class Rest>
void for_vectors(std::int64_t n, const Body& vector, const Rest& rest) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) vector(i);
  if (i < n) rest(i, static_cast<int>(n - i));
}

// y = body(x, u), or body(x, 1).
template <class V, class Body>
void map(const float* x, const float* u, float* y, std::int64_t n, const Body& body) {
  const auto one = V::set(1.0f);
  for_vectors<V::kLanes>(
      n, [&](std::int64_t i) { V::store(y + i, body(V::load(x + i), u == nullptr ? one : V::load(u + i))); },
      [&](std::int64_t i, int count) {
        V::store(y + i, body(V::load(x + i, count), u == nullptr ? one : V::load(u + i, count)), count);
      });
}

template <class V>
void mix(const float* weights, std::int64_t count, const float* rows, float* y, std::int64_t n) {
  const auto sum = [&](std::int64_t i, const auto& load) {
    auto total = V::mul(V::set(weights[0]), load(rows + i));
    for (std::int64_t e = 1; e < count; ++e) total = V::fma(V::set(weights[e]), load(rows + e * n + i), total);
    return total;
  };
  for_vectors<V::kLanes>(
      n, [&](std::int64_t i) { V::store(y + i, sum(i, [](const float* p) { return V::load(p); })); },
      [&](std::int64_t i, int left) {
        V::store(y + i, sum(i, [left](const float* p) { return V::load(p, left); }), left);
      });
}

template <class V, int kOrder>
void polynomial_of(const float* c, const float* x, const float* u, float* y, std::int64_t n) {
  typename V::F wide[kOrder + 1];
  for (int j = 0; j <= kOrder; ++j) wide[j] = V::set(c[j]);
  const auto horner = [wide](typename V::F v) {
    auto sum = wide[kOrder];
    for (int j = kOrder - 1; j >= 0; --j) sum = V::fma(sum, v, wide[j]);
    return sum;
  };
  if (u == nullptr) {
    map<V>(x, nullptr, y, n, [horner](typename V::F v, typename V::F) { return horner(v); });
  } else {
    map<V>(x, u, y, n, [horner](typename V::F v, typename V::F gate) { return V::mul(horner(v), gate); });
  }
}

template <class V>
void polynomial(const float* c, int order, const float* x, const float* u, float* y, std::int64_t n) {
  constexpr decltype(&polynomial_of<V, 1>) kByOrder[] = {polynomial_of<V, 1>, polynomial_of<V, 2>, polynomial_of<V, 3>,
                                                         polynomial_of<V, 4>};
  kByOrder[order - 1](c, x, u, y, n);
}

template <class V, int kOrder>
void moments_of(const float* x, std::int64_t n, double* sums) {
  constexpr int kSums = 4;  // of each power at once
  constexpr int kStep = kSums * V::kLanes;
  constexpr std::int64_t kPiece = 64 * kStep;
  for (int k = 0; k < kOrder; ++k) sums[k] = 0;
  for (std::int64_t first = 0; first < n; first += kPiece) {
    const std::int64_t last = n - first < kPiece ? n : first + kPiece;
    typename V::F partial[kOrder][kSums];
    for (auto& row : partial) {
      for (auto& sum : row) sum = V::set(0.0f);
    }
    const auto add = [&partial](const float* p) {
      for (int i = 0; i < kSums; ++i) {
        const auto v = V::load(p + i * V::kLanes), square = V::mul(v, v);
        auto power = square;
        for (int k = 0; k + 1 < kOrder; ++k) {
          partial[k][i] = V::add(partial[k][i], power);
          if (k + 2 < kOrder) power = V::mul(power, square);
        }
        auto& highest = partial[kOrder - 1][i];
        highest = kOrder == 1 ? V::add(highest, square) : V::fma(power, square, highest);
      }
    };
    for_vectors<kStep>(
        last - first, [&](std::int64_t i) { add(x + first + i); },
        [&](std::int64_t i, int count) {
          float padded[kStep] = {};
          __builtin_memcpy(padded, x + first + i, sizeof(float) * static_cast<std::size_t>(count));
          add(padded);
        });
    for (int k = 0; k < kOrder; ++k) {
      for (int i = 1; i < kSums; ++i) partial[k][0] = V::add(partial[k][0], partial[k][i]);
      sums[k] += static_cast<double>(V::sum(partial[k][0]));
    }
  }
}

template <class V>
void moments(const float* x, std::int64_t n, int order, double* sums) {
  constexpr decltype(&moments_of<V, 1>) kByOrder[] = {moments_of<V, 1>, moments_of<V, 2>, moments_of<V, 3>, moments_of<V, 4>};
  kByOrder[order - 1](x, n, sums);
}

template <class V>
void deinterleave(const float* x, float* first, float* second, std::int64_t n) {
  for_vectors<V::kLanes>(
      n,
      [&](std::int64_t i) {
        typename V::F even, odd;
        V::deinterleave(x + 2 * i, even, odd);
        V::store(first + i, even);
        V::store(second + i, odd);
      },
      [&](std::int64_t i, int count) {
        for (std::int64_t j = i; j < i + count; ++j) {
          first[j] = x[2 * j];
          second[j] = x[2 * j + 1];
        }
      });
}

template <class V, typename V::F (*kWiden)(const std::uint16_t*)>
void widen(const std::uint16_t* x, float* y, std::int64_t n) {
  for_vectors<V::kLanes>(
      n, [&](std::int64_t i) { V::store(y + i, kWiden(x + i)); },
      [&](std::int64_t i, int count) {
        std::uint16_t in[V::kLanes] = {};
        float out[V::kLanes];
        __builtin_memcpy(in, x + i, sizeof(std::uint16_t) * static_cast<std::size_t>(count));
        V::store(out, kWiden(in));
        __builtin_memcpy(y + i, out, sizeof(float) * static_cast<std::size_t>(count));
      });
}

template <class V, void (*kNarrow)(std::uint16_t*, typename V::F)>
void narrow(const float* x, std::uint16_t* y, std::int64_t n) {
  for_vectors<V::kLanes>(
      n, [&](std::int64_t i) { kNarrow(y + i, V::load(x + i)); },
      [&](std::int64_t i, int count) {
        float in[V::kLanes] = {};
        std::uint16_t out[V::kLanes];
        __builtin_memcpy(in, x + i, sizeof(float) * static_cast<std::size_t>(count));
        kNarrow(out, V::load(in));
        __builtin_memcpy(y + i, out, sizeof(std::uint16_t) * static_cast<std::size_t>(count));
      });
}

}  // namespace
}  // namespace actx
