// What a launcher needs of the CUDA driver API, which is looked for at run time: neither to build nor to load this library is
// CUDA needed. Names and signatures are the driver's (NVIDIA, CUDA Driver API reference).
#pragma once

#include <cstddef>
#include <cstdint>

namespace actx::cuda {

using Context = struct ContextHandle*;
using Function = struct FunctionHandle*;
using Module = struct ModuleHandle*;
using Stream = struct StreamHandle*;
using Device = int;
using DevicePointer = unsigned long long;
using Result = int;  // 0 for success

constexpr int kComputeCapabilityMajor = 75, kComputeCapabilityMinor = 76;  // CUdevice_attribute
constexpr int kMaxDynamicSharedSizeBytes = 8;                              // CUfunction_attribute

struct Driver {
  Result (*cuInit)(unsigned flags);
  Result (*cuGetErrorString)(Result, const char**);
  Result (*cuStreamGetCtx)(Stream, Context*);
  Result (*cuCtxPushCurrent_v2)(Context);
  Result (*cuCtxPopCurrent_v2)(Context*);
  Result (*cuCtxGetDevice)(Device*);
  Result (*cuDeviceGetAttribute)(int* value, int attribute, Device);
  Result (*cuModuleLoadData)(Module*, const void* image);
  Result (*cuModuleUnload)(Module);
  Result (*cuModuleGetFunction)(Function*, Module, const char* name);
  Result (*cuFuncSetAttribute)(Function, int attribute, int value);
  Result (*cuMemAlloc_v2)(DevicePointer*, std::size_t bytes);
  Result (*cuMemFree_v2)(DevicePointer);
  Result (*cuMemcpyHtoD_v2)(DevicePointer, const void*, std::size_t bytes);
  Result (*cuLaunchKernel)(Function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                           unsigned block_z, unsigned shared_bytes, Stream, void** parameters, void** extra);
};

// The machine's driver, initialised. Throws Error where there is none; it is then looked for again the next time.
const Driver& driver();

// Throw Error where a call failed: `what` says what was tried.
void check(Result result, const char* what);

// A context is current as long as this lives. The driver's calls are then for its device.
class Current {
 public:
  explicit Current(Context context);
  ~Current();
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;
};

}  // namespace actx::cuda
