// The instruction sets that this library was built for, and the one that this machine takes.
#pragma once

#include <string>
#include <vector>

namespace actx {

struct Kernels;

// The kernels of every instruction set that was compiled in and that this CPU has, best first; never empty.
const std::vector<const Kernels*>& available_kernels();

// The best, or the one that the environment variable ACTX_ISA names. Throws Error where that is not available here.
const Kernels& default_kernels();

// By name. Throws Error where it is not available here.
const Kernels& find_kernels(const std::string& isa);

}  // namespace actx
