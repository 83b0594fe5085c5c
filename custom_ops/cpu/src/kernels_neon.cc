// The kernels for NEON.
#include "simd/neon.h"

#include "kernels/all.h"

namespace actx {
extern const Kernels k_neon;
constexpr Kernels k_neon = make_kernels("neon");
}  // namespace actx
