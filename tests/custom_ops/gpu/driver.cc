// A stand-in for the CUDA driver, for launcher.cc: device memory is memory of the host, and a launch calls back.
//
// It is one device with one context. What is taken is counted, calls can be made to fail, and a context must be current where
// the real driver needs one.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace {

struct Module {
  std::string image;
};
struct Function {
  Module* module;
  std::string name;
  int shared_bytes = 48 << 10;
};

using Callback = int (*)(const char* image, const char* symbol, unsigned grid, unsigned threads, unsigned shared_bytes,
                         void* stream, void** parameters);

int context_here = 0;
int architecture = 87;
int depth = 0;  // of the stack of contexts
Callback callback = nullptr;
std::map<std::string, int> failures;  // by the name of the call, what it gives
std::map<std::string, int> calls;
std::set<Module*> modules;
std::set<Function*> functions;
std::map<unsigned long long, std::size_t> allocations;

int result_of(const char* name, bool needs_context = true) {
  ++calls[name];
  const auto found = failures.find(name);
  if (found != failures.end()) return found->second;
  return needs_context && depth == 0 ? 201 : 0;
}

}  // namespace

#define CALL(name, ...)                                             \
  if (const int result = result_of(#name, ##__VA_ARGS__)) return result

extern "C" {

// --- for the test ---

void stub_on_launch(Callback called) { callback = called; }
void stub_set_architecture(int value) { architecture = value; }
void stub_fail(const char* name, int result) {
  failures.erase(name);
  if (result != 0) failures[name] = result;
}
int stub_calls(const char* name) { return calls[name]; }
int stub_held() { return static_cast<int>(modules.size() + allocations.size()) + depth; }

// --- the driver ---

int cuInit(unsigned) { return result_of("cuInit", false); }

int cuGetErrorString(int result, const char** text) {
  *text = result == 209 ? "no kernel image is available for execution on the device" : "an error of the test";
  return 0;
}

int cuStreamGetCtx(void*, void** context) {
  CALL(cuStreamGetCtx, false);
  *context = &context_here;
  return 0;
}

int cuCtxPushCurrent_v2(void* context) {
  CALL(cuCtxPushCurrent_v2, false);
  if (context != &context_here) return 201;
  ++depth;
  return 0;
}

int cuCtxPopCurrent_v2(void** context) {
  CALL(cuCtxPopCurrent_v2);
  *context = &context_here;
  --depth;
  return 0;
}

int cuCtxGetDevice(int* device) {
  CALL(cuCtxGetDevice);
  *device = 0;
  return 0;
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
  CALL(cuDeviceGetAttribute, false);
  if (attribute != 75 && attribute != 76) return 1;
  *value = attribute == 75 ? architecture / 10 : architecture % 10;
  return 0;
}

int cuModuleLoadData(Module** module, const void* image) {
  CALL(cuModuleLoadData);
  *module = new Module{static_cast<const char*>(image)};
  modules.insert(*module);
  return 0;
}

int cuModuleUnload(Module* module) {
  CALL(cuModuleUnload);
  if (modules.erase(module) != 1) std::abort();
  for (auto i = functions.begin(); i != functions.end();) {
    if ((*i)->module == module) {
      delete *i;
      i = functions.erase(i);
    } else {
      ++i;
    }
  }
  delete module;
  return 0;
}

int cuModuleGetFunction(Function** function, Module* module, const char* name) {
  CALL(cuModuleGetFunction);
  *function = new Function{module, name};
  functions.insert(*function);
  return 0;
}

int cuFuncSetAttribute(Function* function, int attribute, int value) {
  CALL(cuFuncSetAttribute);
  if (attribute != 8) return 1;
  function->shared_bytes = value;
  return 0;
}

int cuMemAlloc_v2(unsigned long long* pointer, std::size_t bytes) {
  CALL(cuMemAlloc_v2);
  *pointer = reinterpret_cast<unsigned long long>(std::aligned_alloc(256, (bytes + 255) / 256 * 256));
  allocations[*pointer] = bytes;
  return 0;
}

int cuMemFree_v2(unsigned long long pointer) {
  CALL(cuMemFree_v2);
  if (allocations.erase(pointer) != 1) std::abort();
  std::free(reinterpret_cast<void*>(pointer));
  return 0;
}

int cuMemcpyHtoD_v2(unsigned long long pointer, const void* data, std::size_t bytes) {
  CALL(cuMemcpyHtoD_v2);
  if (allocations.at(pointer) < bytes) std::abort();
  std::memcpy(reinterpret_cast<void*>(pointer), data, bytes);
  return 0;
}

int cuLaunchKernel(Function* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned block_y, unsigned block_z,
                   unsigned shared_bytes, void* stream, void** parameters, void** extra) {
  CALL(cuLaunchKernel);
  if (x == 0 || y != 1 || z != 1 || block_y != 1 || block_z != 1 || extra != nullptr) return 1;
  if (static_cast<int>(shared_bytes) > function->shared_bytes) return 1;
  return callback(function->module->image.c_str(), function->name.c_str(), x, threads, shared_bytes, stream, parameters);
}

}  // extern "C"
