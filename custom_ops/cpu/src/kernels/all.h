// The rows of one instruction set, over the Vector that the unit included before this.
//
// Everything has internal linkage, and nothing of the standard library is called: a shared copy of an inline function that
// was compiled for this instruction set must never run on another machine.
#pragma once

#include "attention.h"
#include "linear.h"
#include "lut.h"
#include "rows.h"
#include "spline.h"

namespace actx {
namespace {

template <class V, Index kIndex, int N, int D>
constexpr SplineFunction spline_row() {
  if constexpr (kIndex != Index::kBuckets || V::kHasBuckets) return spline<V, kIndex, N, D>;
  return nullptr;
}

#define ACTX_SPLINE(name, index, width, degree) \
  {#name, Index::index, width, degree, spline_row<Vector, Index::index, width, degree>()},
#define ACTX_KERNEL(name, op)
constexpr SplineKernel kSplines[] = {
#include "../kernels.inc"
};
#undef ACTX_SPLINE
#undef ACTX_KERNEL

constexpr auto widen_float16 = widen<Vector, Vector::widen_float16>;
constexpr auto narrow_float16 = narrow<Vector, Vector::narrow_float16>;
constexpr auto widen_bfloat16 = widen<Vector, Vector::widen_bfloat16>;
constexpr auto narrow_bfloat16 = narrow<Vector, Vector::narrow_bfloat16>;

constexpr Kernels make_kernels(const char* isa) {
  Kernels k{};
  k.isa = isa;
  k.splines = kSplines;
  k.spline_count = sizeof kSplines / sizeof kSplines[0];
  k.channels = channels<Vector>;
  k.moments = moments<Vector>;
  k.polynomial = polynomial<Vector>;
  k.mix = mix<Vector>;
  k.deinterleave = deinterleave<Vector>;
  k.widen_float16 = widen_float16;
  k.narrow_float16 = narrow_float16;
  k.widen_bfloat16 = widen_bfloat16;
  k.narrow_bfloat16 = narrow_bfloat16;
  k.lut = lut<Vector>;
  k.gated_lut = gated_lut<Vector>;
  k.linear_codes = linear_codes<Vector>;
  k.linear_floats = linear_floats<Vector>;
  k.attention = attention<Vector>;
  k.narrow_sums = Vector::kNarrowSums;
  return k;
}

}  // namespace
}  // namespace actx
