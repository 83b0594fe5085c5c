#include "isa.h"

#include <cstdlib>

#include "kernels.h"
#include "op.h"

namespace actx {

// Which of them the library has is up to its build: ACTX_ISAS.
extern const Kernels k_avx512vbmi, k_avx512, k_avx2, k_neon, k_portable;

namespace {

std::vector<const Kernels*> detect() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  // Every CPU with AVX2 and FMA has F16C, which not every compiler can ask for.
  [[maybe_unused]] const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  [[maybe_unused]] const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  // CPUs with VBMI have VNNI, but for one of 2018.
  [[maybe_unused]] const bool vbmi = avx512 && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
#endif
#if defined(ACTX_HAS_avx512vbmi)
  if (vbmi) found.push_back(&k_avx512vbmi);
#endif
#if defined(ACTX_HAS_avx512)
  if (avx512) found.push_back(&k_avx512);
#endif
#if defined(ACTX_HAS_avx2)
  if (avx2) found.push_back(&k_avx2);
#endif
#if defined(ACTX_HAS_neon)
  found.push_back(&k_neon);
#endif
  found.push_back(&k_portable);
  return found;
}

std::string names() {
  std::string all;
  for (const Kernels* kernels : available_kernels()) all += (all.empty() ? "" : ", ") + std::string(kernels->isa);
  return all;
}

}  // namespace

const std::vector<const Kernels*>& available_kernels() {
  static const std::vector<const Kernels*> kernels = detect();
  return kernels;
}

const Kernels& find_kernels(const std::string& isa) {
  for (const Kernels* kernels : available_kernels()) {
    if (isa == kernels->isa) return *kernels;
  }
  throw Error("the instruction set '" + isa + "' is not available here; available: " + names());
}

const Kernels& default_kernels() {
  const char* asked = std::getenv("ACTX_ISA");
  return asked == nullptr || *asked == '\0' ? *available_kernels().front() : find_kernels(asked);
}

}  // namespace actx
