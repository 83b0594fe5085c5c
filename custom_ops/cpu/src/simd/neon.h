// NEON of AArch64. Four lanes.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace actx {
namespace {

struct Vector {
  using F = float32x4_t;
  using I = uint32x4_t;
  static constexpr int kLanes = 4;
  static constexpr bool kHasBuckets = true;

  static F load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, F v) { vst1q_f32(p, v); }
  // The first n lanes, the others zero.
  static F load(const float* p, int n) {
    float lanes[kLanes] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
  }
  static void store(float* p, F v, int n) {
    float lanes[kLanes];
    store(lanes, v);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
  }
  static void stream(float* p, F v) { vst1q_f32(p, v); }
  static void fence() {}
  static F set(float v) { return vdupq_n_f32(v); }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F sub(F a, F b) { return vsubq_f32(a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static F fused(F a, F b, F c) { return fma(a, b, c); }
  // NaN where one of the two is.
  static F max(F a, F b) { return vmaxq_f32(a, b); }
  static F min(F a, F b) { return vminq_f32(a, b); }
  static float sum(F a) { return vaddvq_f32(a); }
  // Whether an infinity was seen among all x, as a mask.
  static F track(F seen, F x) {
    const uint32x4_t now = vceqq_f32(vabsq_f32(x), vdupq_n_f32(__builtin_inff()));
    return vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(seen), now));
  }
  static bool infinite(F seen) { return vmaxvq_u32(vreinterpretq_u32_f32(seen)) != 0; }

  static I zero() { return vdupq_n_u32(0); }
  // i + 1 where x >= knot.
  static I step(I i, F x, F knot) {
    return vsubq_u32(i, vcgeq_f32(x, knot));
  }
  static I plus(I i, int offset) { return vaddq_u32(i, vdupq_n_u32(static_cast<unsigned>(offset))); }

  template <int N>
  static I floor_index(F x, F scale) {
    return vandq_u32(vreinterpretq_u32_s32(vcvtmq_s32_f32(vmulq_f32(x, scale))), vdupq_n_u32(N - 1));
  }

  // The numbers of the four bytes of entry i.
  template <int N>
  using Key = uint8x16_t;
  template <int N>
  static Key<N> key(I i) {
    return vreinterpretq_u8_u32(vmlaq_u32(vdupq_n_u32(0x03020100u), i, vdupq_n_u32(0x04040404u)));
  }

  template <int N>
  struct Lookup {
    const std::uint8_t* p;
    explicit Lookup(const float* table) : p(reinterpret_cast<const std::uint8_t*>(table)) {}
    F operator()(Key<N> k) const {
      if (N == 8) return vreinterpretq_f32_u8(vqtbl2q_u8(vld1q_u8_x2(p), k));
      const uint8x16_t low = vqtbl4q_u8(vld1q_u8_x4(p), k);  // zero from 64 on
      if (N == 16) return vreinterpretq_f32_u8(low);
      const uint8x16_t rest = vsubq_u8(k, vdupq_n_u8(64));
      return vreinterpretq_f32_u8(N == 24 ? vqtbx2q_u8(low, vld1q_u8_x2(p + 64), rest)
                                          : vqtbx4q_u8(low, vld1q_u8_x4(p + 64), rest));
    }
  };

  struct Buckets {
    uint8x16x4_t low, high;
    explicit Buckets(const std::uint8_t* p) : low(vld1q_u8_x4(p)), high(vld1q_u8_x4(p + 64)) {}
    I operator()(I bucket) const {
      // The bytes above the lowest read beyond the table and give zero.
      const uint8x16_t k = vreinterpretq_u8_u32(vorrq_u32(bucket, vdupq_n_u32(0xffffff00u)));
      const uint8x16_t first = vqtbl4q_u8(low, k);
      const uint8x16_t found = vqtbx4q_u8(first, high, vsubq_u8(k, vdupq_n_u8(64)));
      return vandq_u32(vreinterpretq_u32_u8(found), vdupq_n_u32(0xffu));
    }
  };

  static I load_index(const std::int32_t* p) { return vreinterpretq_u32_s32(vld1q_s32(p)); }
  static void store_index(std::int32_t* p, I i) { vst1q_s32(p, vreinterpretq_s32_u32(i)); }
  static F gather(const float* base, I i) {
    const float found[4] = {base[vgetq_lane_u32(i, 0)], base[vgetq_lane_u32(i, 1)], base[vgetq_lane_u32(i, 2)],
                            base[vgetq_lane_u32(i, 3)]};
    return vld1q_f32(found);
  }
  static I add(I a, I b) { return vaddq_u32(a, b); }
  static I multiply(I a, int b) { return vmulq_n_u32(a, static_cast<unsigned>(b)); }

  static void deinterleave(const float* p, F& even, F& odd) {
    const float32x4x2_t both = vld2q_f32(p);
    even = both.val[0];
    odd = both.val[1];
  }

  static F widen_float16(const std::uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
  static void narrow_float16(std::uint16_t* p, F v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
  static F widen_bfloat16(const std::uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
  // To nearest, ties to even.
  static void narrow_bfloat16(std::uint16_t* p, F v) {
    const I bits = vreinterpretq_u32_f32(v);
    const I odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const I rounded = vaddq_u32(vaddq_u32(bits, odd), vdupq_n_u32(0x7fff));
    const I quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    vst1_u16(p, vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), rounded, quiet), 16));
  }

  static constexpr int kBytes = 16;
  struct Bytes {
    uint8x16x4_t table[4];
    explicit Bytes(const std::uint8_t* p) {
      for (int i = 0; i < 4; ++i) table[i] = vld1q_u8_x4(p + 64 * i);
    }
    void operator()(const std::uint8_t* x, std::uint8_t* y) const {
      uint8x16_t code = vld1q_u8(x);
      uint8x16_t found = vqtbl4q_u8(table[0], code);
      for (int i = 1; i < 4; ++i) {
        code = vsubq_u8(code, vdupq_n_u8(64));
        found = vqtbx4q_u8(found, table[i], code);
      }
      vst1q_u8(y, found);
    }
  };

  static I widen_byte(const std::uint8_t* p) {
    const std::uint32_t codes[4] = {p[0], p[1], p[2], p[3]};
    return vld1q_u32(codes);
  }
  static I flip(I i, int bits) { return veorq_u32(i, vdupq_n_u32(static_cast<unsigned>(bits))); }
  static F number(I i) { return vcvtq_f32_s32(vreinterpretq_s32_u32(i)); }
  static I round(F v) { return vreinterpretq_u32_s32(vcvtnq_s32_f32(v)); }
  static void narrow_byte(std::uint8_t* p, I i) {
    p[0] = static_cast<std::uint8_t>(vgetq_lane_u32(i, 0));
    p[1] = static_cast<std::uint8_t>(vgetq_lane_u32(i, 1));
    p[2] = static_cast<std::uint8_t>(vgetq_lane_u32(i, 2));
    p[3] = static_cast<std::uint8_t>(vgetq_lane_u32(i, 3));
  }

  static void narrow_short(std::int16_t* p, I i) { vst1_s16(p, vmovn_s32(vreinterpretq_s32_u32(i))); }
  // The least finite number for NaN and what is below it.
  static F or_least(F v) { return vmaxnmq_f32(v, vdupq_n_f32(-__FLT_MAX__)); }
  // v * 2^n for the n that is in the low bits of `biased`; both sides are normal numbers.
  static F times_power(F v, F biased) {
    return vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(v), vshlq_n_u32(vreinterpretq_u32_f32(biased), 23)));
  }

  // Every CPU of the architecture has this; those with dot products are faster with them.
  static constexpr int kRows = 1, kPanels = 1;
  static constexpr bool kNarrowSums = false;
  struct Sums {
    int32x4_t outputs[16];  // four partial sums of each
  };
  static Sums no_sums() {
    Sums sums;
    for (int32x4_t& parts : sums.outputs) parts = vdupq_n_s32(0);
    return sums;
  }
  static void add_octet(Sums& sums, const std::uint8_t* x, const std::int8_t* w) {
    const int16x8_t codes = vreinterpretq_s16_u16(vmovl_u8(vld1_u8(x)));
    const int16x4_t quads[2] = {vget_low_s16(codes), vget_high_s16(codes)};
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 8; ++i) {
        const int16x8_t both = vmovl_s8(vld1_s8(w + 64 * half + 8 * i));
        sums.outputs[2 * i] = vmlal_s16(sums.outputs[2 * i], quads[half], vget_low_s16(both));
        sums.outputs[2 * i + 1] = vmlal_s16(sums.outputs[2 * i + 1], quads[half], vget_high_s16(both));
      }
    }
  }
  static void store_sums(std::int32_t* p, const Sums& sums) {
    for (int i = 0; i < 16; ++i) p[i] = vaddvq_s32(sums.outputs[i]);
  }

  // Products of 16 bits, two of each output at a time.
  static constexpr int kPairRows = 4;
  struct PairSums {
    int32x4_t parts[4];
  };
  static PairSums no_pairs() {
    const int32x4_t none = vdupq_n_s32(0);
    return {{none, none, none, none}};
  }
  static void add_pair(PairSums& sums, const std::int16_t* x, const std::int16_t* w) {
    std::int32_t pair;
    __builtin_memcpy(&pair, x, sizeof pair);
    const int16x8_t both = vreinterpretq_s16_s32(vdupq_n_s32(pair));
    for (int i = 0; i < 4; ++i) {
      const int16x8_t weights = vld1q_s16(w + 8 * i);
      const int32x4_t low = vmull_s16(vget_low_s16(both), vget_low_s16(weights));
      sums.parts[i] = vaddq_s32(sums.parts[i], vpaddq_s32(low, vmull_high_s16(both, weights)));
    }
  }
  static void store_pairs(std::int32_t* p, const PairSums& sums) {
    for (int i = 0; i < 4; ++i) vst1q_s32(p + 4 * i, sums.parts[i]);
  }
};

}  // namespace
}  // namespace actx
