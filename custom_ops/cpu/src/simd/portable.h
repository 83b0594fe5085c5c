// Plain C++ for any CPU. One lane.
#pragma once

#include <cstdint>
#include <cstring>

namespace actx {
namespace {

struct Vector {
  using F = float;
  using I = std::int32_t;
  static constexpr int kLanes = 1;
  static constexpr bool kHasBuckets = true;

  static std::uint32_t bits(float v) {
    std::uint32_t b;
    std::memcpy(&b, &v, sizeof b);
    return b;
  }
  static float from_bits(std::uint32_t b) {
    float v;
    std::memcpy(&v, &b, sizeof v);
    return v;
  }

  static F load(const float* p) { return *p; }
  static void store(float* p, F v) { *p = v; }
  static F load(const float* p, int) { return *p; }
  static void store(float* p, F v, int) { *p = v; }
  static void stream(float* p, F v) { *p = v; }
  static void fence() {}
  static F set(float v) { return v; }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F fma(F a, F b, F c) { return a * b + c; }
  // Rounded once, as others' fma: but for one in 2^29 numbers, where the sum in double is halfway.
  static F fused(F a, F b, F c) { return static_cast<F>(static_cast<double>(a) * b + c); }
  // The second where one of the two is NaN.
  static F max(F a, F b) { return a > b ? a : b; }
  static F min(F a, F b) { return a < b ? a : b; }
  static float sum(F a) { return a; }
  // Whether an infinity was seen among all x: the largest magnitude that is no NaN.
  static F track(F seen, F x) { return __builtin_fabsf(x) > seen ? __builtin_fabsf(x) : seen; }
  static bool infinite(F seen) { return seen == __builtin_inff(); }

  static I zero() { return 0; }
  // i + 1 where x >= knot.
  static I step(I i, F x, F knot) { return i + static_cast<I>(x >= knot); }
  static I plus(I i, int offset) { return i + offset; }

  template <int N>
  static I floor_index(F x, F scale) {
    const float product = x * scale;
    const I cut = product == product ? static_cast<I>(product) : 0;
    return (cut - (product < static_cast<float>(cut) ? 1 : 0)) & (N - 1);
  }

  template <int N>
  using Key = I;
  template <int N>
  static Key<N> key(I i) {
    return i;
  }
  template <int N>
  struct Lookup {
    const float* p;
    explicit Lookup(const float* table) : p(table) {}
    F operator()(I i) const { return p[i]; }
  };
  struct Buckets {
    const std::uint8_t* p;
    explicit Buckets(const std::uint8_t* table) : p(table) {}
    I operator()(I bucket) const { return p[bucket]; }
  };

  static I load_index(const std::int32_t* p) { return *p; }
  static void store_index(std::int32_t* p, I i) { *p = i; }
  static F gather(const float* base, I i) { return base[i]; }
  static I add(I a, I b) { return static_cast<I>(static_cast<std::uint32_t>(a) + static_cast<std::uint32_t>(b)); }
  static I multiply(I a, int b) { return a * b; }

  static void deinterleave(const float* p, F& even, F& odd) {
    even = p[0];
    odd = p[1];
  }

  // IEEE 754 binary16. A denormal is a multiple of 2^-24.
  static F widen_float16(const std::uint16_t* p) {
    const std::uint32_t sign = (*p & 0x8000u) << 16, magnitude = *p & 0x7fffu;
    if (magnitude >= 0x7c00u) return from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    if (magnitude < 0x400u) return from_bits(sign | bits(static_cast<float>(magnitude) * 0x1p-24f));
    return from_bits(sign | ((magnitude << 13) + (112u << 23)));
  }
  // To nearest, ties to even. Adding 1/2 rounds a denormal: the last bit of the sum is worth 2^-24.
  static void narrow_float16(std::uint16_t* p, F v) {
    const std::uint32_t all = bits(v), sign = all >> 16 & 0x8000u, magnitude = all & 0x7fffffffu;
    std::uint32_t result;
    if (magnitude > 0x7f800000u) {
      result = 0x7e00u | (magnitude >> 13 & 0x3ffu);
    } else if (magnitude >= 0x477ff000u) {  // 65520: rounds to infinity
      result = 0x7c00u;
    } else if (magnitude < 0x38800000u) {  // 2^-14
      result = bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
    } else {
      result = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    }
    *p = static_cast<std::uint16_t>(sign | result);
  }
  static F widen_bfloat16(const std::uint16_t* p) { return from_bits(static_cast<std::uint32_t>(*p) << 16); }
  // To nearest, ties to even.
  static void narrow_bfloat16(std::uint16_t* p, F v) {
    const std::uint32_t all = bits(v);
    const std::uint32_t result = v == v ? all + 0x7fffu + (all >> 16 & 1u) : all | 0x400000u;
    *p = static_cast<std::uint16_t>(result >> 16);
  }

  static constexpr int kBytes = 1;
  struct Bytes {
    const std::uint8_t* p;
    explicit Bytes(const std::uint8_t* table) : p(table) {}
    void operator()(const std::uint8_t* x, std::uint8_t* y) const { *y = p[*x]; }
  };

  static I widen_byte(const std::uint8_t* p) { return *p; }
  static I flip(I i, int mask) { return i ^ mask; }
  static F number(I i) { return static_cast<float>(i); }
  // To nearest, ties to even, for |v| < 2^22.
  static I round(F v) { return static_cast<I>(bits(v + 12582912.0f) - 0x4b400000u); }
  static void narrow_byte(std::uint8_t* p, I i) { *p = static_cast<std::uint8_t>(i); }

  static void narrow_short(std::int16_t* p, I i) { *p = static_cast<std::int16_t>(i); }
  // The least finite number for NaN and what is below it.
  static F or_least(F v) { return max(v, -__FLT_MAX__); }
  // v * 2^n for the n that is in the low bits of `biased`; both sides are normal numbers.
  static F times_power(F v, F biased) { return from_bits(bits(v) + (bits(biased) << 23)); }

  static constexpr int kRows = 1, kPanels = 1;
  static constexpr bool kNarrowSums = false;
  struct Sums {
    std::uint32_t outputs[16];
  };
  static Sums no_sums() { return {}; }
  static void add_octet(Sums& sums, const std::uint8_t* x, const std::int8_t* w) {
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 64; ++i) sums.outputs[i / 4] += static_cast<std::uint32_t>(x[4 * half + i % 4] * w[64 * half + i]);
    }
  }
  static void store_sums(std::int32_t* p, const Sums& sums) { std::memcpy(p, sums.outputs, sizeof sums.outputs); }

  static constexpr int kPairRows = 1;
  using PairSums = Sums;
  static PairSums no_pairs() { return {}; }
  static void add_pair(PairSums& sums, const std::int16_t* x, const std::int16_t* w) {
    for (int i = 0; i < 16; ++i) {
      sums.outputs[i] += static_cast<std::uint32_t>(x[0] * w[2 * i]) + static_cast<std::uint32_t>(x[1] * w[2 * i + 1]);
    }
  }
  static void store_pairs(std::int32_t* p, const PairSums& sums) { store_sums(p, sums); }
};

}  // namespace
}  // namespace actx
