// The kernels for any CPU.
#include "simd/portable.h"

#include "kernels/all.h"

namespace actx {
extern const Kernels k_portable;
constexpr Kernels k_portable = make_kernels("portable");
}  // namespace actx
