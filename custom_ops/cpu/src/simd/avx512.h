// AVX-512 (F, BW, DQ, VL), and VBMI where the unit is compiled with it. Sixteen lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace actx {
namespace {

struct Vector {
  using F = __m512;
  using I = __m512i;
  static constexpr int kLanes = 16;
#ifdef __AVX512VBMI__
  static constexpr bool kHasBuckets = true;
#else
  static constexpr bool kHasBuckets = false;
#endif

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  // The first n lanes, the others zero.
  static F load(const float* p, int n) { return _mm512_maskz_loadu_ps(mask(n), p); }
  static void store(float* p, F v, int n) { _mm512_mask_storeu_ps(p, mask(n), v); }
  static __mmask16 mask(int n) { return static_cast<__mmask16>((1u << n) - 1); }
  static void stream(float* p, F v) { _mm512_stream_ps(p, v); }
  static void fence() { _mm_sfence(); }
  static F set(float v) { return _mm512_set1_ps(v); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F fused(F a, F b, F c) { return fma(a, b, c); }
  // The second where one of the two is NaN.
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static float sum(F a) { return _mm512_reduce_add_ps(a); }
  // Whether an infinity was seen among all x: the largest magnitude that is no NaN.
  static F track(F seen, F x) { return _mm512_max_ps(_mm512_abs_ps(x), seen); }
  static bool infinite(F seen) { return _mm512_fpclass_ps_mask(seen, 0x18) != 0; }

  static I zero() { return _mm512_setzero_si512(); }
  // i + 1 where x >= knot.
  static I step(I i, F x, F knot) {
    return _mm512_mask_add_epi32(i, _mm512_cmp_ps_mask(x, knot, _CMP_GE_OQ), i, _mm512_set1_epi32(1));
  }
  static I plus(I i, int offset) { return _mm512_add_epi32(i, _mm512_set1_epi32(offset)); }

  // Adding 1.5 * 2^23 leaves the floor in the low bits; permutations read no others.
  template <int N>
  static I floor_index(F x, F scale) {
    return _mm512_castps_si512(
        _mm512_fmadd_round_ps(x, scale, _mm512_set1_ps(12582912.0f), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
  }

  template <int N>
  using Key = I;
  template <int N>
  static Key<N> key(I i) {
    return i;
  }

  template <int N>
  struct Lookup {
    __m512 low, high;
    explicit Lookup(const float* p)
        : low(N == 8 ? _mm512_broadcast_f32x8(_mm256_loadu_ps(p)) : _mm512_loadu_ps(p)),
          high(N == 32   ? _mm512_loadu_ps(p + 16)
               : N == 24 ? _mm512_castps256_ps512(_mm256_loadu_ps(p + 16))
                         : low) {}
    F operator()(I i) const {
      return N > 16 ? _mm512_permutex2var_ps(low, i, high) : _mm512_permutexvar_ps(i, low);
    }
  };

#ifdef __AVX512VBMI__
  // Only the low byte of a lane is read, and only that of the result is of use.
  struct Buckets {
    __m512i low, high;
    explicit Buckets(const std::uint8_t* p) : low(_mm512_loadu_si512(p)), high(_mm512_loadu_si512(p + 64)) {}
    I operator()(I bucket) const { return _mm512_permutex2var_epi8(low, bucket, high); }
  };
#endif

  static I load_index(const std::int32_t* p) { return _mm512_loadu_si512(p); }
  static void store_index(std::int32_t* p, I i) { _mm512_storeu_si512(p, i); }
  static F gather(const float* base, I i) { return _mm512_i32gather_ps(i, base, 4); }
  static I add(I a, I b) { return _mm512_add_epi32(a, b); }
  static I multiply(I a, int b) { return _mm512_mullo_epi32(a, _mm512_set1_epi32(b)); }

  static void deinterleave(const float* p, F& even, F& odd) {
    const F a = load(p), b = load(p + 16);
    const I first = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    even = _mm512_permutex2var_ps(a, first, b);
    odd = _mm512_permutex2var_ps(a, _mm512_add_epi32(first, _mm512_set1_epi32(1)), b);
  }

  static F widen_float16(const std::uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void narrow_float16(std::uint16_t* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static F widen_bfloat16(const std::uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  // To nearest, ties to even, by integers: the instruction of AVX512_BF16 flushes denormals.
  static void narrow_bfloat16(std::uint16_t* p, F v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __m512i chosen = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), quiet);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16)));
  }

  // 256 bytes as four registers with VBMI; else sixteen tables of sixteen bytes.
  static constexpr int kBytes = 64;
#ifdef __AVX512VBMI__
  struct Bytes {
    __m512i table[4];
    explicit Bytes(const std::uint8_t* p) {
      for (int i = 0; i < 4; ++i) table[i] = _mm512_loadu_si512(p + 64 * i);
    }
    void operator()(const std::uint8_t* x, std::uint8_t* y) const {
      const __m512i code = _mm512_loadu_si512(x);
      const __m512i low = _mm512_permutex2var_epi8(table[0], code, table[1]);
      const __m512i high = _mm512_permutex2var_epi8(table[2], code, table[3]);
      _mm512_storeu_si512(y, _mm512_mask_blend_epi8(_mm512_movepi8_mask(code), low, high));
    }
  };
#else
  struct Bytes {
    __m512i table[16];
    explicit Bytes(const std::uint8_t* p) {
      for (int i = 0; i < 16; ++i) {
        table[i] = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * i)));
      }
    }
    // A shuffle gives zero where bit 7 of the index is set: so of the eight tables of a half only one gives more than zero.
    void operator()(const std::uint8_t* x, std::uint8_t* y) const {
      const __m512i code = _mm512_loadu_si512(x);
      __m512i offset = _mm512_and_si512(code, _mm512_set1_epi8(0x7f));
      __m512i low = _mm512_setzero_si512(), high = low;
      for (int i = 0; i < 8; ++i) {
        const __m512i index = _mm512_adds_epu8(offset, _mm512_set1_epi8(0x70));
        low = _mm512_or_si512(low, _mm512_shuffle_epi8(table[i], index));
        high = _mm512_or_si512(high, _mm512_shuffle_epi8(table[8 + i], index));
        offset = _mm512_sub_epi8(offset, _mm512_set1_epi8(16));
      }
      _mm512_storeu_si512(y, _mm512_mask_blend_epi8(_mm512_movepi8_mask(code), low, high));
    }
  };
#endif

  static I widen_byte(const std::uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static I flip(I i, int bits) { return _mm512_xor_si512(i, _mm512_set1_epi32(bits)); }
  static F number(I i) { return _mm512_cvtepi32_ps(i); }
  static I round(F v) { return _mm512_cvtps_epi32(v); }
  static void narrow_byte(std::uint8_t* p, I i) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(i));
  }

  static void narrow_short(std::int16_t* p, I i) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(i));
  }
  // As in avx2.h.
  static F or_least(F v) { return max(v, set(-__FLT_MAX__)); }
  static F times_power(F v, F biased) {
    const __m512i powers = _mm512_slli_epi32(_mm512_castps_si512(biased), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), powers));
  }

  using Sums = __m512i;
  static Sums no_sums() { return _mm512_setzero_si512(); }
  static __m512i quad(const std::uint8_t* x) {
    int codes;
    __builtin_memcpy(&codes, x, sizeof codes);
    return _mm512_set1_epi32(codes);
  }
  static void store_sums(std::int32_t* p, Sums sums) { _mm512_storeu_si512(p, sums); }

  static constexpr int kPairRows = 8;
  using PairSums = Sums;
  static PairSums no_pairs() { return no_sums(); }
  static void add_pair(PairSums& sums, const std::int16_t* x, const std::int16_t* w) {
    int pair;
    __builtin_memcpy(&pair, x, sizeof pair);
#ifdef __AVX512VNNI__
    sums = _mm512_dpwssd_epi32(sums, _mm512_set1_epi32(pair), _mm512_loadu_si512(w));
#else
    sums = _mm512_add_epi32(sums, _mm512_madd_epi16(_mm512_set1_epi32(pair), _mm512_loadu_si512(w)));
#endif
  }
  static void store_pairs(std::int32_t* p, PairSums sums) { store_sums(p, sums); }

#ifdef __AVX512VNNI__
  static constexpr int kRows = 12, kPanels = 2;
  static constexpr bool kNarrowSums = false;
  static void add_octet(Sums& sums, const std::uint8_t* x, const std::int8_t* w) {
    sums = _mm512_dpbusd_epi32(sums, quad(x), _mm512_loadu_si512(w));
    sums = _mm512_dpbusd_epi32(sums, quad(x + 4), _mm512_loadu_si512(w + 64));
  }
#else
  // As in avx2.h.
  static constexpr int kRows = 8, kPanels = 1;
  static constexpr bool kNarrowSums = true;
  static void add_octet(Sums& sums, const std::uint8_t* x, const std::int8_t* w) {
    const __m512i four = _mm512_add_epi16(_mm512_maddubs_epi16(quad(x), _mm512_loadu_si512(w)),
                                          _mm512_maddubs_epi16(quad(x + 4), _mm512_loadu_si512(w + 64)));
    sums = _mm512_add_epi32(sums, _mm512_madd_epi16(four, _mm512_set1_epi16(1)));
  }
#endif
};

}  // namespace
}  // namespace actx
