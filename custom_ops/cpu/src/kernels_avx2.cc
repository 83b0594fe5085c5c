// The kernels for AVX2.
#include "simd/avx2.h"

#include "kernels/all.h"

namespace actx {
extern const Kernels k_avx2;
constexpr Kernels k_avx2 = make_kernels("avx2");
}  // namespace actx
