// The kernels for AVX-512 with VBMI.
#include "simd/avx512.h"

#include "kernels/all.h"

namespace actx {
extern const Kernels k_avx512vbmi;
constexpr Kernels k_avx512vbmi = make_kernels("avx512vbmi");
}  // namespace actx
