// AVX2 with FMA and F16C. Eight lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace actx {
namespace {

struct Vector {
  using F = __m256;
  using I = __m256i;
  static constexpr int kLanes = 8;
  static constexpr bool kHasBuckets = false;  // 128 bytes would take as many shuffles as a search

  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  // The first n lanes, the others zero.
  static F load(const float* p, int n) { return _mm256_maskload_ps(p, mask(n)); }
  static void store(float* p, F v, int n) { _mm256_maskstore_ps(p, mask(n), v); }
  static I mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static void stream(float* p, F v) { _mm256_stream_ps(p, v); }
  static void fence() { _mm_sfence(); }
  static F set(float v) { return _mm256_set1_ps(v); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F fused(F a, F b, F c) { return fma(a, b, c); }
  // The second where one of the two is NaN.
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static float sum(F a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  // Whether an infinity was seen among all x: the largest magnitude that is no NaN.
  static F track(F seen, F x) {
    return _mm256_max_ps(_mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff))), seen);
  }
  static bool infinite(F seen) {
    return _mm256_movemask_ps(_mm256_cmp_ps(seen, set(__builtin_inff()), _CMP_EQ_OQ)) != 0;
  }

  static I zero() { return _mm256_setzero_si256(); }
  // i + 1 where x >= knot.
  static I step(I i, F x, F knot) {
    return _mm256_sub_epi32(i, _mm256_castps_si256(_mm256_cmp_ps(x, knot, _CMP_GE_OQ)));
  }
  static I plus(I i, int offset) { return _mm256_add_epi32(i, _mm256_set1_epi32(offset)); }

  // Permutations read the low three bits, and `Key` takes the two above.
  template <int N>
  static I floor_index(F x, F scale) {
    return _mm256_cvttps_epi32(_mm256_floor_ps(_mm256_mul_ps(x, scale)));
  }

  // Bits 3 and 4 of the index, moved to where a blend reads them.
  template <int N>
  struct Key {
    I index;
    F second, third;
  };
  template <int N>
  static Key<N> key(I i) {
    return {i, _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)), _mm256_castsi256_ps(_mm256_slli_epi32(i, 27))};
  }

  template <int N>
  struct Lookup {
    const float* p;
    explicit Lookup(const float* table) : p(table) {}
    F at(int part, I i) const { return _mm256_permutevar8x32_ps(_mm256_loadu_ps(p + 8 * part), i); }
    F operator()(const Key<N>& k) const {
      if (N == 8) return at(0, k.index);
      const F low = _mm256_blendv_ps(at(0, k.index), at(1, k.index), k.second);
      if (N == 16) return low;
      const F high = N == 24 ? at(2, k.index) : _mm256_blendv_ps(at(2, k.index), at(3, k.index), k.second);
      return _mm256_blendv_ps(low, high, k.third);
    }
  };

  static I load_index(const std::int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store_index(std::int32_t* p, I i) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), i); }
  static F gather(const float* base, I i) { return _mm256_i32gather_ps(base, i, 4); }
  static I add(I a, I b) { return _mm256_add_epi32(a, b); }
  static I multiply(I a, int b) { return _mm256_mullo_epi32(a, _mm256_set1_epi32(b)); }

  static void deinterleave(const float* p, F& even, F& odd) {
    const F a = load(p), b = load(p + 8);
    const auto ordered = [](F v) {
      return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), _MM_SHUFFLE(3, 1, 2, 0)));
    };
    even = ordered(_mm256_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0)));
    odd = ordered(_mm256_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1)));
  }

  static F widen_float16(const std::uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void narrow_float16(std::uint16_t* p, F v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static F widen_bfloat16(const std::uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  // To nearest, ties to even.
  static void narrow_bfloat16(std::uint16_t* p, F v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i chosen = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(chosen, chosen), _MM_SHUFFLE(3, 1, 2, 0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }

  static constexpr int kBytes = 32;
  struct Bytes {
    __m256i table[16];
    explicit Bytes(const std::uint8_t* p) {
      for (int i = 0; i < 16; ++i) {
        table[i] = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * i)));
      }
    }
    // A shuffle gives zero where bit 7 of the index is set: so of the eight tables of a half only one gives more than zero.
    void operator()(const std::uint8_t* x, std::uint8_t* y) const {
      const __m256i code = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
      __m256i offset = _mm256_and_si256(code, _mm256_set1_epi8(0x7f));
      __m256i low = _mm256_setzero_si256(), high = low;
      for (int i = 0; i < 8; ++i) {
        const __m256i index = _mm256_adds_epu8(offset, _mm256_set1_epi8(0x70));
        low = _mm256_or_si256(low, _mm256_shuffle_epi8(table[i], index));
        high = _mm256_or_si256(high, _mm256_shuffle_epi8(table[8 + i], index));
        offset = _mm256_sub_epi8(offset, _mm256_set1_epi8(16));
      }
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), _mm256_blendv_epi8(low, high, code));
    }
  };

  static I widen_byte(const std::uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static I flip(I i, int bits) { return _mm256_xor_si256(i, _mm256_set1_epi32(bits)); }
  static F number(I i) { return _mm256_cvtepi32_ps(i); }
  static I round(F v) { return _mm256_cvtps_epi32(v); }
  static void narrow_byte(std::uint8_t* p, I i) {
    const __m256i low = _mm256_and_si256(i, _mm256_set1_epi32(0xff));
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
  }

  static void narrow_short(std::int16_t* p, I i) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(i, i), _MM_SHUFFLE(3, 1, 2, 0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(words));
  }
  // The least finite number for NaN and what is below it.
  static F or_least(F v) { return max(v, set(-__FLT_MAX__)); }
  // v * 2^n for the n that is in the low bits of `biased`; both sides are normal numbers.
  static F times_power(F v, F biased) {
    const __m256i powers = _mm256_slli_epi32(_mm256_castps_si256(biased), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), powers));
  }

  // Four products of an output are added in 16 bits before they are widened: a third less work than two, as which
  // multiplications take most of the time.
  static constexpr int kRows = 4, kPanels = 1;
  static constexpr bool kNarrowSums = true;
  struct Sums {
    __m256i halves[2];
  };
  static Sums no_sums() { return {{_mm256_setzero_si256(), _mm256_setzero_si256()}}; }
  static __m256i quad(const std::uint8_t* x) {
    int codes;
    __builtin_memcpy(&codes, x, sizeof codes);
    return _mm256_set1_epi32(codes);
  }
  static void add_octet(Sums& sums, const std::uint8_t* x, const std::int8_t* w) {
    const auto* weights = reinterpret_cast<const __m256i*>(w);
    const __m256i first = quad(x), second = quad(x + 4);
    for (int i = 0; i < 2; ++i) {
      const __m256i four = _mm256_add_epi16(_mm256_maddubs_epi16(first, _mm256_loadu_si256(weights + i)),
                                            _mm256_maddubs_epi16(second, _mm256_loadu_si256(weights + 2 + i)));
      sums.halves[i] = _mm256_add_epi32(sums.halves[i], _mm256_madd_epi16(four, _mm256_set1_epi16(1)));
    }
  }
  static void store_sums(std::int32_t* p, const Sums& sums) {
    for (int i = 0; i < 2; ++i) _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8 * i), sums.halves[i]);
  }

  // Products of 16 bits, two of each output at a time.
  static constexpr int kPairRows = 4;
  using PairSums = Sums;
  static PairSums no_pairs() { return no_sums(); }
  static void add_pair(PairSums& sums, const std::int16_t* x, const std::int16_t* w) {
    int pair;
    __builtin_memcpy(&pair, x, sizeof pair);
    const auto* weights = reinterpret_cast<const __m256i*>(w);
    for (int i = 0; i < 2; ++i) {
      const __m256i two = _mm256_madd_epi16(_mm256_set1_epi32(pair), _mm256_loadu_si256(weights + i));
      sums.halves[i] = _mm256_add_epi32(sums.halves[i], two);
    }
  }
  static void store_pairs(std::int32_t* p, const PairSums& sums) { store_sums(p, sums); }
};

}  // namespace
}  // namespace actx
