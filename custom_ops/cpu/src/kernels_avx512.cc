// The kernels for AVX-512 without VBMI.
#include "simd/avx512.h"

#include "kernels/all.h"

namespace actx {
extern const Kernels k_avx512;
constexpr Kernels k_avx512 = make_kernels("avx512");
}  // namespace actx
