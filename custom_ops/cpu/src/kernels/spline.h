// Splines with one table for all elements, and with one table per element of a row.
#pragma once

#include "rows.h"

namespace actx {
namespace {

constexpr int kUnroll = 2;             // independent vectors in flight
constexpr std::int64_t kBlock = 1024;  // elements between two looks for infinities

inline bool is_infinite(float x) { return __builtin_fabsf(x) == __builtin_inff(); }

// The coefficients: of a degree that is known in registers, of any (D = 0) looked up as they are needed.
//
// All powers but the last are taken of t, which is bounded where the tails are linear, and the last of `end`, which is not: so
// an infinity meets the slope alone.
template <class V, int N, int D>
struct Polynomial {
  typename V::template Lookup<N> c0, c1, c2, c3;
  explicit Polynomial(const SplineTable& table)
      : c0(table.coefficients),
        c1(table.coefficients + N),
        c2(table.coefficients + (D > 1 ? 2 : 0) * N),
        c3(table.coefficients + (D > 2 ? 3 : 0) * N) {}
  typename V::F operator()(typename V::template Key<N> k, typename V::F t, typename V::F end) const {
    typename V::F y = D == 3 ? c3(k) : D == 2 ? c2(k) : c1(k);
    if (D == 3) y = V::fma(y, t, c2(k));
    if (D >= 2) y = V::fma(y, t, c1(k));
    return V::fma(y, end, c0(k));
  }
};

template <class V, int N>
struct Polynomial<V, N, 0> {
  const float* c;
  int degree;
  explicit Polynomial(const SplineTable& table) : c(table.coefficients), degree(table.degree) {}
  typename V::F operator()(typename V::template Key<N> k, typename V::F t, typename V::F end) const {
    typename V::F y = typename V::template Lookup<N>(c + degree * N)(k);
    for (int j = degree - 1; j >= 1; --j) y = V::fma(y, t, typename V::template Lookup<N>(c + j * N)(k));
    return V::fma(y, end, typename V::template Lookup<N>(c)(k));
  }
};

// The segment of x, which lies between the bounds of the table.
template <class V, Index kIndex, int N>
struct Segment;

template <class V, int N>
struct Segment<V, Index::kDirect, N> {
  typename V::F scale;
  explicit Segment(const SplineTable& table) : scale(V::set(table.scale)) {}
  typename V::I operator()(typename V::F x) const { return V::template floor_index<N>(x, scale); }
};

template <class V, int N>
struct Segment<V, Index::kBuckets, N> {
  typename V::F scale;
  typename V::Buckets below;
  typename V::template Lookup<N> knots;
  explicit Segment(const SplineTable& table) : scale(V::set(table.scale)), below(table.buckets), knots(table.knots) {}
  typename V::I operator()(typename V::F x) const {
    const auto i = below(V::template floor_index<kBucketCount>(x, scale));
    return V::step(i, x, knots(V::template key<N>(i)));
  }
};

// The number of the segment is found bit by bit, the highest first.
template <class V, int N>
struct Segment<V, Index::kSearch, N> {
  typename V::F first;
  typename V::template Lookup<8> second, third, fourth;
  typename V::template Lookup<16> fifth;
  explicit Segment(const SplineTable& table)
      : first(V::set(*table.levels)),
        second(table.levels + kLevelStride),
        third(table.levels + 2 * kLevelStride),
        fourth(table.levels + (N > 8 ? 3 : 0) * kLevelStride),
        fifth(table.levels + (N > 16 ? 4 : 0) * kLevelStride) {}
  typename V::I operator()(typename V::F x) const {
    typename V::I i = V::step(V::zero(), x, first);
    i = V::step(V::add(i, i), x, second(V::template key<8>(i)));
    i = V::step(V::add(i, i), x, third(V::template key<8>(i)));
    if (N > 8) i = V::step(V::add(i, i), x, fourth(V::template key<8>(i)));
    if (N > 16) i = V::step(V::add(i, i), x, fifth(V::template key<16>(i)));
    return i;
  }
};

// s(x). With kOpen the left tail is constant and the right one linear, as those of nearly all activations are, and
// infinities come out right; otherwise they are set afterwards.
template <class V, Index kIndex, int N, int D, bool kOrigins, bool kOpen>
struct Spline {
  using F = typename V::F;
  F low, high;
  Segment<V, kIndex, N> segment;
  typename V::template Lookup<N> origins;
  Polynomial<V, N, D> polynomial;
  explicit Spline(const SplineTable& table)
      : low(V::set(table.low)),
        high(V::set(table.high)),
        segment(table),
        origins(kOrigins ? table.origins : table.coefficients),
        polynomial(table) {}

  // The stages of several vectors side by side.
  template <int kVectors, class Load, class Store>
  void run(const Load& load, const Store& store, F& seen) const {
    F v[kVectors], bounded[kVectors], origin[kVectors];
    typename V::template Key<N> k[kVectors];
    for (int i = 0; i < kVectors; ++i) {
      v[i] = load(i);
      if (!kOpen) seen = V::track(seen, v[i]);
      const F above = V::max(low, v[i]);
      if (kOpen) v[i] = above;
      bounded[i] = V::min(high, above);
    }
    for (int i = 0; i < kVectors; ++i) k[i] = V::template key<N>(segment(bounded[i]));
    for (int i = 0; i < kVectors; ++i) {
      if (kOrigins) {
        origin[i] = origins(k[i]);
        v[i] = V::sub(v[i], origin[i]);
      }
      const F t = !kOpen ? v[i] : kOrigins ? V::sub(bounded[i], origin[i]) : bounded[i];
      v[i] = polynomial(k[i], t, v[i]);
    }
    for (int i = 0; i < kVectors; ++i) store(i, v[i]);
  }
};

// Powers of an infinity may meet coefficients of zero: its value comes from the tail instead.
template <bool kGated>
void set_infinities(const SplineTable& table, const float* x, const float* u, float* y, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    if (!is_infinite(x[i])) continue;
    const float limit = x[i] < 0 ? table.at_minus_infinity : table.at_infinity;
    y[i] = kGated ? limit * u[i] : limit;
  }
}

template <class V, Index kIndex, int N, int D, bool kOrigins, bool kOpen, bool kGated>
void spline_loop(const SplineTable& table, const float* x, const float* u, float* y, std::int64_t n, bool stream) {
  constexpr int kStep = kUnroll * V::kLanes;
  const Spline<V, kIndex, N, D, kOrigins, kOpen> spline(table);
  for (std::int64_t first = 0; first < n; first += kBlock) {
    const std::int64_t last = n - first < kBlock ? n : first + kBlock;
    typename V::F seen = V::set(0.0f);
    std::int64_t i = first;
    for (; i + kStep <= last; i += kStep) {
      spline.template run<kUnroll>(
          [x, i](int k) { return V::load(x + i + k * V::kLanes); },
          [=](int k, typename V::F v) {
            if (kGated) v = V::mul(v, V::load(u + i + k * V::kLanes));
            if (stream) {
              V::stream(y + i + k * V::kLanes, v);
            } else {
              V::store(y + i + k * V::kLanes, v);
            }
          },
          seen);
    }
    for (; i < last; i += V::kLanes) {
      const int count = static_cast<int>(last - i < V::kLanes ? last - i : V::kLanes);
      spline.template run<1>(
          [=](int) { return V::load(x + i, count); },
          [=](int, typename V::F v) { V::store(y + i, kGated ? V::mul(v, V::load(u + i, count)) : v, count); }, seen);
    }
    if (!kOpen && V::infinite(seen)) {
      set_infinities<kGated>(table, x + first, kGated ? u + first : nullptr, y + first, last - first);
    }
  }
  if (stream) V::fence();
}

template <class V, Index kIndex, int N, int D>
void spline(const SplineTable& table, const float* x, const float* u, float* y, std::int64_t n, bool stream) {
  constexpr std::size_t kAlignment = sizeof(float) * V::kLanes;
  const bool aligned = reinterpret_cast<std::uintptr_t>(y) % kAlignment == 0;
  constexpr SplineFunction kLoops[2][2][2] = {
      {{spline_loop<V, kIndex, N, D, false, false, false>, spline_loop<V, kIndex, N, D, false, false, true>},
       {spline_loop<V, kIndex, N, D, false, true, false>, spline_loop<V, kIndex, N, D, false, true, true>}},
      {{spline_loop<V, kIndex, N, D, true, false, false>, spline_loop<V, kIndex, N, D, true, false, true>},
       {spline_loop<V, kIndex, N, D, true, true, false>, spline_loop<V, kIndex, N, D, true, true, true>}}};
  const SplineFunction loop = kLoops[table.has_origins][table.is_open][u != nullptr];
  loop(table, x, u, y, n, stream && aligned);
}

// Vectors run along the channels, so knots are compared in order and coefficients gathered. The arrays of the tables are
// padded to whole vectors.
template <class V>
void channels(const ChannelTables& tables, const float* x, const float* u, float* y, std::int64_t rows) {
  constexpr int kLanes = V::kLanes;
  std::int32_t lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  const auto lane = V::load_index(lanes);
  const std::int64_t stride = tables.stride, size = stride * tables.segments;
  for (std::int64_t c = 0; c < tables.channels; c += kLanes) {
    const int count = static_cast<int>(tables.channels - c < kLanes ? tables.channels - c : kLanes);
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int64_t at = row * tables.channels + c;
      const auto v = V::load(x + at, count);
      auto segment = V::zero();
      for (int k = 0; k < tables.segments - 1; ++k) segment = V::step(segment, v, V::load(tables.knots + k * stride + c));
      const auto entry = V::add(V::multiply(segment, static_cast<int>(stride)), lane);
      const auto t = V::sub(v, V::gather(tables.origins + c, entry));
      const float* coefficients = tables.coefficients + tables.degree * size + c;
      auto s = V::gather(coefficients, entry);
      for (int j = tables.degree - 1; j >= 0; --j) {
        coefficients -= size;
        s = V::fma(s, t, V::gather(coefficients, entry));
      }
      V::store(y + at, u == nullptr ? s : V::mul(s, V::load(u + at, count)), count);
      if (!V::infinite(V::track(V::set(0.0f), v))) continue;
      for (std::int64_t i = 0; i < count; ++i) {
        if (!is_infinite(x[at + i])) continue;
        const float limit = tables.limits[(x[at + i] < 0 ? 0 : stride) + c + i];
        y[at + i] = u == nullptr ? limit : limit * u[at + i];
      }
    }
  }
}

}  // namespace
}  // namespace actx
