#include "driver.h"

#include <dlfcn.h>

#include <string>

#include "op.h"

namespace actx::cuda {
namespace {

constexpr const char* kLibrary = "libcuda.so.1";

template <typename Call>
void find(void* library, const char* name, Call& call) {
  call = reinterpret_cast<Call>(dlsym(library, name));
  if (call == nullptr) throw Error(std::string(kLibrary) + " has no " + name + ": the NVIDIA driver is too old");
}

Driver load() {
  void* library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw Error(std::string("the NVIDIA driver is not installed: ") + dlerror());
  Driver found{};
#define ACTX_FIND(name) find(library, #name, found.name)
  ACTX_FIND(cuInit);
  ACTX_FIND(cuGetErrorString);
  ACTX_FIND(cuStreamGetCtx);
  ACTX_FIND(cuCtxPushCurrent_v2);
  ACTX_FIND(cuCtxPopCurrent_v2);
  ACTX_FIND(cuCtxGetDevice);
  ACTX_FIND(cuDeviceGetAttribute);
  ACTX_FIND(cuModuleLoadData);
  ACTX_FIND(cuModuleUnload);
  ACTX_FIND(cuModuleGetFunction);
  ACTX_FIND(cuFuncSetAttribute);
  ACTX_FIND(cuMemAlloc_v2);
  ACTX_FIND(cuMemFree_v2);
  ACTX_FIND(cuMemcpyHtoD_v2);
  ACTX_FIND(cuLaunchKernel);
#undef ACTX_FIND
  return found;
}

std::string described(const Driver& the_driver, Result result) {
  const char* text = nullptr;
  the_driver.cuGetErrorString(result, &text);
  return "error " + std::to_string(result) + (text == nullptr ? "" : std::string(" (") + text + ")");
}

Driver initialised() {
  const Driver found = load();
  if (const Result result = found.cuInit(0)) throw Error("the NVIDIA driver does not start: " + described(found, result));
  return found;
}

}  // namespace

const Driver& driver() {
  static const Driver found = initialised();
  return found;
}

void check(Result result, const char* what) {
  if (result != 0) throw Error(std::string(what) + ": the CUDA driver gives " + described(driver(), result));
}

Current::Current(Context context) { check(driver().cuCtxPushCurrent_v2(context), "cannot make the context current"); }

Current::~Current() {
  Context context;
  driver().cuCtxPopCurrent_v2(&context);
}

}  // namespace actx::cuda
