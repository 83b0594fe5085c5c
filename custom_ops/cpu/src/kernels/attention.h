// Attention of codes, one head: scores stay in the first cache, and weights are codes from 0 to 255 of which each row's largest
// is 255. Products are of 16-bit numbers, codes less their zero points, in pairs: exact on every CPU.
#pragma once

#include <cfloat>
#include <cstddef>

#include "../kernels.h"

namespace actx {
namespace {

// Codes less their zero point, and a zero behind an odd number of them.
inline void widen_codes(const std::uint8_t* x, std::int64_t count, std::int32_t zero_point, std::int16_t* y) {
  for (std::int64_t i = 0; i < count; ++i) y[i] = static_cast<std::int16_t>(x[i] - zero_point);
  if (count % 2 != 0) y[count] = 0;
}

// [outputs, inputs] as panels of 16 outputs, in each the inputs by pairs: [ceil(outputs / 16), ceil(inputs / 2), 16, 2]. A row
// passes through `row`.
inline void pack_rows(const std::uint8_t* x, std::int64_t outputs, std::int64_t inputs, std::int64_t stride,
                      std::int32_t zero_point, std::int16_t* row, std::int16_t* packed) {
  const std::int64_t size = places_of(inputs, 2);
  for (std::int64_t i = 0; i < places_of(outputs, kPanel); ++i) {
    if (i < outputs) widen_codes(x + i * stride, inputs, zero_point, row);
    std::int16_t* to = packed + i / kPanel * kPanel * size + i % kPanel * 2;
    for (std::int64_t k = 0; k < size; k += 2, to += 2 * kPanel) {
      if (i < outputs) {
        __builtin_memcpy(to, row + k, 2 * sizeof *to);
      } else {
        to[0] = to[1] = 0;
      }
    }
  }
}

// The same of [inputs, outputs].
inline void pack_columns(const std::uint8_t* x, std::int64_t inputs, std::int64_t outputs, std::int64_t stride,
                         std::int32_t zero_point, std::int16_t* packed) {
  const auto pack = [&](const std::uint8_t* from, int count, bool both) {
    for (int i = 0; i < count; ++i) {
      packed[2 * i] = static_cast<std::int16_t>(from[i] - zero_point);
      packed[2 * i + 1] = static_cast<std::int16_t>(both ? from[i + stride] - zero_point : 0);
    }
    for (int i = 2 * count; i < 2 * kPanel; ++i) packed[i] = 0;
    packed += 2 * kPanel;
  };
  for (std::int64_t first = 0; first < outputs; first += kPanel) {
    const bool whole = outputs - first >= kPanel;
    std::int64_t k = 0;
    if (whole) {
      for (; k + 2 <= inputs; k += 2) pack(x + k * stride + first, kPanel, true);
    }
    for (; k < inputs; k += 2) pack(x + k * stride + first, whole ? kPanel : static_cast<int>(outputs - first), k + 1 < inputs);
  }
}

template <class V, int kRows>
void add_pairs(const std::int16_t* x, std::int64_t stride, std::int64_t pairs, const std::int16_t* w,
               std::int32_t* sums, std::int64_t sums_stride) {
  typename V::PairSums totals[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) totals[r] = V::no_pairs();
  for (std::int64_t k = 0; k < pairs; ++k, w += 2 * kPanel) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) V::add_pair(totals[r], x + r * stride + 2 * k, w);
  }
  for (int r = 0; r < kRows; ++r) V::store_pairs(sums + r * sums_stride, totals[r]);
}

// Sums of a panel for some rows.
template <class V>
void sum_pairs(const std::int16_t* x, std::int64_t rows, std::int64_t stride, std::int64_t pairs, const std::int16_t* w,
               std::int32_t* sums, std::int64_t sums_stride) {
  std::int64_t row = 0;
  for (; row + V::kPairRows <= rows; row += V::kPairRows) {
    add_pairs<V, V::kPairRows>(x + row * stride, stride, pairs, w, sums + row * sums_stride, sums_stride);
  }
  for (; row < rows; ++row) add_pairs<V, 1>(x + row * stride, stride, pairs, w, sums + row * sums_stride, sums_stride);
}

// 255 * 2^x, rounded, for x <= 0: what is added leaves the whole part of x in the low bits.
template <class V>
typename V::I weight(typename V::F x) {
  const auto biased = V::add(x, V::set(kRounder));
  const auto part = V::sub(x, V::sub(biased, V::set(kRounder)));
  auto value = V::set(kExponential[4]);
  for (int k = 3; k >= 0; --k) value = V::fused(value, part, V::set(kExponential[k]));
  return V::round(V::times_power(value, biased));
}

// Gives the scores of a row times log2(e), finite numbers; returns the largest.
template <class V>
float score(const AttentionTable& t, const float* mask, const std::int32_t* sums, float* scores) {
  auto top = V::set(-FLT_MAX);
  const auto give = [&](std::int64_t i, typename V::F added) {
    const auto sum = V::fused(V::number(V::load_index(sums + i)), V::set(t.scale), added);
    const auto found = V::min(V::or_least(sum), V::set(FLT_MAX));
    V::store(scores + i, found);
    return found;
  };
  const auto one = V::set(mask != nullptr ? *mask * kLog2E : -0.0f);  // the same number and -0 is that number
  const bool varies = mask != nullptr && t.mask_column != 0;
  std::int64_t i = 0;
  if (varies) {
    for (; i + V::kLanes <= t.keys; i += V::kLanes) top = V::max(give(i, V::mul(V::load(mask + i), V::set(kLog2E))), top);
  } else {
    for (; i + V::kLanes <= t.keys; i += V::kLanes) top = V::max(give(i, one), top);
  }
  if (i < t.keys) {
    give(i, varies ? V::mul(V::load(mask + i, static_cast<int>(t.keys - i)), V::set(kLog2E)) : one);
    for (std::int64_t k = t.keys; k < i + V::kLanes; ++k) scores[k] = -FLT_MAX;
    top = V::max(V::load(scores + i), top);
  }
  float lanes[V::kLanes], most = -FLT_MAX;
  V::store(lanes, top);
  for (const float lane : lanes) most = lane > most ? lane : most;
  return most;
}

// Gives the weights of a row, 0 for places beyond the keys; returns their sum.
template <class V>
std::int64_t weigh(const AttentionTable& t, const float* scores, float most, std::int16_t* weights) {
  std::int64_t sum = 0;
  for (std::int64_t first = 0; first < t.keys; first += kKeysAtOnce) {
    const std::int64_t last = t.keys - first < kKeysAtOnce ? t.keys : first + kKeysAtOnce;
    auto totals = V::zero();
    for (std::int64_t i = first; i < last; i += V::kLanes) {
      const auto below = V::max(V::sub(V::load(scores + i), V::set(most)), V::set(kLeastScore));
      const auto found = weight<V>(below);
      V::narrow_short(weights + i, found);
      totals = V::add(totals, found);
    }
    std::int32_t lanes[V::kLanes];
    V::store_index(lanes, totals);
    for (const std::int32_t lane : lanes) sum += lane;
  }
  for (std::int64_t i = t.keys; i < places_of(t.keys, kPanel); ++i) {
    if (i < places_of(t.keys, V::kLanes)) sum -= weights[i];
    weights[i] = 0;
  }
  return sum;
}

template <class V>
void attention(const AttentionTable& t, const std::uint8_t* q, const std::uint8_t* k, const std::uint8_t* v, std::uint8_t* y,
               const AttentionScratch& scratch) {
  const std::int64_t size = places_of(t.size, 2), places = places_of(t.keys, kPanel);
  const std::int64_t value_rows = places_of(t.keys, 2);
  pack_rows(k, t.keys, t.size, t.k_stride, t.k_zero_point, scratch.queries, scratch.keys);
  pack_columns(v, t.keys, t.value_size, t.v_stride, t.v_zero_point, scratch.values);
  const auto low = V::set(static_cast<float>(-t.y_zero_point)), high = V::set(static_cast<float>(255 - t.y_zero_point));
  std::int32_t sums[kQueries * kPanel];
  float factors[kQueries];
  for (std::int64_t first = 0; first < t.queries; first += kQueries) {
    const std::int64_t rows = t.queries - first < kQueries ? t.queries - first : kQueries;
    for (std::int64_t r = 0; r < rows; ++r) {
      widen_codes(q + (first + r) * t.q_stride, t.size, t.q_zero_point, scratch.queries + r * size);
    }
    for (std::int64_t panel = 0; panel < places; panel += kPanel) {
      sum_pairs<V>(scratch.queries, rows, size, size / 2, scratch.keys + panel * size, scratch.sums + panel, places);
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      const float* const mask = t.mask == nullptr ? nullptr : t.mask + (first + r) * t.mask_row;
      const float largest = score<V>(t, mask, scratch.sums + r * places, scratch.scores);
      factors[r] = t.output_scale / static_cast<float>(weigh<V>(t, scratch.scores, largest, scratch.weights + r * places));
    }
    for (std::int64_t output = 0; output < t.value_size; output += kPanel) {
      float totals[kQueries * kPanel];
      for (std::int64_t key = 0; key < t.keys; key += kKeysAtOnce) {
        const std::int64_t count = value_rows - key < kKeysAtOnce ? value_rows - key : kKeysAtOnce;
        const std::int16_t* const values = scratch.values + output * value_rows + key * kPanel;
        sum_pairs<V>(scratch.weights + key, rows, places, count / 2, values, sums, kPanel);
        for (std::int64_t i = 0; i < rows * kPanel; i += V::kLanes) {
          const auto more = V::number(V::load_index(sums + i));
          V::store(totals + i, key == 0 ? more : V::add(V::load(totals + i), more));
        }
      }
      const std::int64_t outputs = t.value_size - output < kPanel ? t.value_size - output : kPanel;
      for (std::int64_t r = 0; r < rows; ++r) {
        std::uint8_t codes[kPanel];
        for (int i = 0; i < kPanel; i += V::kLanes) {
          const auto kept = V::min(V::max(V::mul(V::load(totals + r * kPanel + i), V::set(factors[r])), low), high);
          V::narrow_byte(codes + i, V::plus(V::round(kept), t.y_zero_point));
        }
        __builtin_memcpy(y + (first + r) * t.y_stride + output, codes, static_cast<std::size_t>(outputs));
      }
    }
  }
}

}  // namespace
}  // namespace actx
