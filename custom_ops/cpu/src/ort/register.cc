// The operators as custom ops of ONNX Runtime: it finds RegisterCustomOps by name in a library that a session registers.
//
// No exception crosses the boundary: each entry returns a status, which the runtime turns into its own error.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "../../include/actx_ops.h"
#include "../isa.h"
#include "../op.h"
#include "../ops/ops.h"
#include "abi.h"
#include "launcher.h"

namespace actx::ort {
namespace {

constexpr std::size_t kMaxInputs = 4;
constexpr const char* kCpu = "CPUExecutionProvider";
constexpr const char* kCuda = ACTX_CUDA_PROVIDER;  // another one in tests, over a stand-in for the CUDA driver

// --- errors ---

// A status that a function of the runtime returned.
struct Failure {
  Status* status;
};

void check(Status* status) {
  if (status != nullptr) throw Failure{status};
}

// Where a failure only says that something is not there.
bool succeeded(const Api& api, Status* status) {
  if (status != nullptr) api.ReleaseStatus(status);
  return status == nullptr;
}

Status* status_of(const Api& api, ErrorCode code, const char* op_type, const char* what) {
  char text[1024];
  std::snprintf(text, sizeof text, "actx%s%s: %s", *op_type == 0 ? "" : "::", op_type, what);
  return api.CreateStatus(code, text);
}

template <typename Body>
Status* guarded(const Api& api, const char* op_type, Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const Error& error) {
    return status_of(api, kInvalidArgument, op_type, error.what());
  } catch (const std::bad_alloc&) {
    return status_of(api, kFail, op_type, "out of memory");
  } catch (const std::exception& error) {
    return status_of(api, kFail, op_type, error.what());
  }
}

// --- a node ---

// Type, sizes and memory of a tensor.
Tensor tensor_of(const Api& api, const Value* value) {
  TensorTypeAndShapeInfo* info;
  check(api.GetTensorTypeAndShape(value, &info));
  const std::unique_ptr<TensorTypeAndShapeInfo, void (*)(TensorTypeAndShapeInfo*)> owner(
      info, api.ReleaseTensorTypeAndShapeInfo);
  ElementType type;
  std::size_t rank;
  void* data;
  check(api.GetTensorElementType(info, &type));
  check(api.GetDimensionsCount(info, &rank));
  Shape shape(rank);
  check(api.GetDimensions(info, shape.data(), rank));
  check(api.GetTensorMutableData(const_cast<Value*>(value), &data));  // the only function that gives the data
  return {static_cast<Type>(type), std::move(shape), data, true};
}

class NodeAttributes final : public Attributes {
 public:
  NodeAttributes(const Api& api, const KernelInfo* info) : api_(api), info_(info) {}

  std::optional<std::int64_t> integer(const char* name) const override {
    std::int64_t value;
    if (!succeeded(api_, api_.KernelInfoGetAttribute_int64(info_, name, &value))) return std::nullopt;
    return value;
  }

  std::optional<float> number(const char* name) const override {
    float value;
    if (!succeeded(api_, api_.KernelInfoGetAttribute_float(info_, name, &value))) return std::nullopt;
    return value;
  }

  std::optional<std::string> text(const char* name) const override {
    auto value = array<std::string>(api_.KernelInfoGetAttribute_string, name);
    if (value && !value->empty()) value->pop_back();  // the size that the runtime states counts the final null
    return value;
  }

  std::optional<std::vector<std::int64_t>> integers(const char* name) const override {
    return array<std::vector<std::int64_t>>(api_.KernelInfoGetAttributeArray_int64, name);
  }

  std::optional<std::vector<float>> numbers(const char* name) const override {
    return array<std::vector<float>>(api_.KernelInfoGetAttributeArray_float, name);
  }

  std::optional<std::vector<char>> bytes(const char* name) const override {
    Allocator* allocator;
    Value* value;
    check(api_.GetAllocatorWithDefaultOptions(&allocator));
    if (!succeeded(api_, api_.KernelInfoGetAttribute_tensor(info_, name, allocator, &value))) return std::nullopt;
    const std::unique_ptr<Value, void (*)(Value*)> owner(value, api_.ReleaseValue);
    const Tensor tensor = tensor_of(api_, value);
    const auto* first = static_cast<const char*>(tensor.data);
    return std::vector<char>(first, first + static_cast<std::size_t>(product(tensor.shape)) * size_of(tensor.type));
  }

  std::optional<Tensor> constant(std::size_t input) const override {
    int is_constant;
    const Value* value;
    if (!succeeded(api_, api_.KernelInfoGetConstantInput_tensor(info_, input, &is_constant, &value)) || is_constant == 0) {
      return std::nullopt;
    }
    return tensor_of(api_, value);
  }

 private:
  // Asked without memory, the runtime gives the size.
  template <typename Array>
  std::optional<Array> array(Status* (*get)(const KernelInfo*, const char*, typename Array::value_type*, std::size_t*),
                             const char* name) const {
    std::size_t size = 0;
    if (!succeeded(api_, get(info_, name, nullptr, &size))) return std::nullopt;
    Array values(size, {});
    if (size > 0) check(get(info_, name, values.data(), &size));
    return values;
  }

  const Api& api_;
  const KernelInfo* info_;
};

// The threads of the session that a node runs in.
class SessionThreads final : public Parallel {
 public:
  SessionThreads(const Api& api, const KernelContext* context, std::int64_t threads)
      : api_(api), context_(context), threads_(threads) {}

  void run(std::int64_t count, Task task, void* context) const override {
    Job job{task, context, {}, {}};
    check(api_.KernelContext_ParallelFor(context_, run_one, static_cast<std::size_t>(count), 0, &job));
    if (job.error) std::rethrow_exception(job.error);
  }

  std::int64_t threads() const override { return threads_; }

 private:
  struct Job {
    Task task;
    void* context;
    std::atomic<bool> failed;
    std::exception_ptr error;  // of the task that failed first
  };

  static void run_one(void* opaque, std::size_t index) {
    auto& job = *static_cast<Job*>(opaque);
    try {
      job.task(job.context, static_cast<std::int64_t>(index));
    } catch (...) {
      if (!job.failed.exchange(true)) job.error = std::current_exception();
    }
  }

  const Api& api_;
  const KernelContext* context_;
  std::int64_t threads_;
};

// --- an operator, once for every provider and combination of types ---

// The types of a node's inputs and of its output.
struct Signature {
  std::array<Type, kMaxInputs> inputs;
  Type output;
};

bool is_code(Type type) { return type == Type::kInt8 || type == Type::kUint8; }

// An op on floats has one type throughout; one on codes may have another type on its second input. The runtime infers the
// output's type from the inputs alone, so it is that of the first unless the op has but one.
std::vector<Signature> signatures(const OpInfo& info) {
  std::vector<Signature> result;
  for (const Type first : info.types) {
    if (!info.other_types.empty()) {
      Signature signature{{first}, info.output_type.value_or(first)};
      std::copy(info.other_types.begin(), info.other_types.end(), signature.inputs.begin() + 1);
      result.push_back(signature);
      continue;
    }
    const bool mixed = is_code(first) && info.required_inputs > 1;
    const std::vector<Type> others = mixed ? std::vector{Type::kInt8, Type::kUint8} : std::vector{first};
    for (const Type other : others) result.push_back({{first, other, other, other}, first});
  }
  return result;
}

struct TypedOp : CustomOp {
  TypedOp(const Api& api, bool shapes_in_place, bool on_gpu, const OpInfo& info, const Signature& signature);

  std::size_t inputs() const { return info.required_inputs + info.optional_inputs; }

  const Api& api;
  bool shapes_in_place;
  bool on_gpu;
  const OpInfo& info;
  Signature signature;
};

const TypedOp& typed(const CustomOp* op) { return *static_cast<const TypedOp*>(op); }

// --- a node of it ---

class Node {
 public:
  Node(const TypedOp& type, const KernelInfo* info)
      : type_(type), op_(type.info.create(NodeAttributes(type.api, info), default_kernels(), "")) {
    check(type.api.KernelInfo_GetInputCount(info, &given_inputs_));
    check_output_type();
  }
  virtual ~Node() = default;

  const Api& api() const { return type_.api; }
  const char* op_type() const { return type_.info.name; }

  void compute(KernelContext* context) const {
    std::array<Tensor, kMaxInputs> tensors;
    for (std::size_t i = 0; i < given_inputs_; ++i) read(context, i, tensors[i]);
    const Inputs inputs(tensors.data(), type_.inputs());
    const Shape shape = op_->output_shape(inputs);
    Value* output;
    void* data;
    check(api().KernelContext_GetOutput(context, 0, shape.data(), shape.size(), &output));
    check(api().GetTensorMutableData(output, &data));
    run(inputs, shape, data, context);
  }

 protected:
  // `output` is of that shape.
  virtual void run(const Inputs& inputs, const Shape& shape, void* output, KernelContext* context) const = 0;

  const Op& op() const { return *op_; }

 private:
  // The runtime chose the signature by the types in the model; the attributes may ask for another output.
  void check_output_type() const {
    std::array<Tensor, kMaxInputs> tensors;
    for (std::size_t i = 0; i < type_.info.required_inputs; ++i) {
      tensors[i].type = type_.signature.inputs[i];
      tensors[i].present = true;
    }
    if (op_->output_type(Inputs(tensors.data(), type_.inputs())) != type_.signature.output) {
      throw Error("in ONNX Runtime, which infers it from the inputs, the output has the type of X: the attribute 'to' must say so");
    }
  }

  void read(KernelContext* context, std::size_t index, Tensor& tensor) const {
    const Value* value;
    check(api().KernelContext_GetInput(context, index, &value));
    if (value == nullptr) return;
    if (!type_.shapes_in_place) {
      tensor = tensor_of(api(), value);
      return;
    }
    ElementType type;
    const std::int64_t* sizes;
    std::size_t rank;
    void* data;
    check(api().GetTensorElementTypeAndShapeDataReference(value, &type, &sizes, &rank));
    check(api().GetTensorMutableData(const_cast<Value*>(value), &data));
    tensor = {type_.signature.inputs[index], Shape(sizes, sizes + rank), data, true};
  }

  const TypedOp& type_;
  std::size_t given_inputs_ = 0;
  std::unique_ptr<Op> op_;
};

class CpuNode final : public Node {
 public:
  using Node::Node;

 private:
  void run(const Inputs& inputs, const Shape&, void* output, KernelContext* context) const override {
    op().run(inputs, output, SessionThreads(api(), context, threads_));
  }

  std::int64_t threads_ = std::max(1u, std::thread::hardware_concurrency());
};

// The tensors are in the memory of the GPU. The op checks shapes, and computes nothing.
class CudaNode final : public Node {
 public:
  CudaNode(const TypedOp& type, const KernelInfo* info) : Node(type, info), launcher_(NodeAttributes(type.api, info)) {}

 private:
  void run(const Inputs& inputs, const Shape& shape, void* output, KernelContext* context) const override {
    void* stream;
    check(api().KernelContext_GetGPUComputeStream(context, &stream));
    launcher_.launch(inputs, shape, output, static_cast<cuda::Stream>(stream));
  }

  cuda::Launcher launcher_;
};

std::unique_ptr<Node> make_node(const TypedOp& type, const KernelInfo* info) {
  if (type.on_gpu) return std::make_unique<CudaNode>(type, info);
  return std::make_unique<CpuNode>(type, info);
}

Status* create_node(const CustomOp* op, const Api* api, const KernelInfo* info, void** node) {
  return guarded(*api, typed(op).info.name, [&] { *node = make_node(typed(op), info).release(); });
}

Status* compute_node(void* opaque, KernelContext* context) {
  const auto& node = *static_cast<const Node*>(opaque);
  return guarded(node.api(), node.op_type(), [&] { node.compute(context); });
}

// ONNX Runtime would take an unknown size without a name for the number -1.
bool all_known(const Api& api, const TensorTypeAndShapeInfo* info, std::size_t rank) {
  std::vector<std::int64_t> sizes(rank);
  std::vector<const char*> names(rank, nullptr);
  check(api.GetDimensions(info, sizes.data(), rank));
  check(api.GetSymbolicDimensions(info, names.data(), rank));
  for (std::size_t i = 0; i < rank; ++i) {
    if (sizes[i] < 0 && (names[i] == nullptr || *names[i] == '\0')) return false;
  }
  return true;
}

// Only of ops whose Y has the sizes of X. Rank 0 may also mean that the rank is not known.
void infer_shape(const TypedOp& op, ShapeInferContext* context) {
  TensorTypeAndShapeInfo* info;
  std::size_t rank;
  check(op.api.ShapeInferContext_GetInputTypeShape(context, 0, &info));
  check(op.api.GetDimensionsCount(info, &rank));
  if (rank == 0 || !op.info.keeps_shape || !all_known(op.api, info, rank)) return;
  check(op.api.ShapeInferContext_SetOutputTypeShape(context, 0, info));
}

TypedOp::TypedOp(const Api& the_api, bool in_place, bool gpu, const OpInfo& the_info, const Signature& the_signature)
    : CustomOp{}, api(the_api), shapes_in_place(in_place), on_gpu(gpu), info(the_info), signature(the_signature) {
  version = kApiVersion;
  GetName = [](const CustomOp* op) { return typed(op).info.name; };
  GetExecutionProviderType = [](const CustomOp* op) { return typed(op).on_gpu ? kCuda : kCpu; };
  GetInputTypeCount = [](const CustomOp* op) { return typed(op).inputs(); };
  GetInputType = [](const CustomOp* op, std::size_t i) { return static_cast<ElementType>(typed(op).signature.inputs[i]); };
  GetInputCharacteristic = [](const CustomOp* op, std::size_t i) {
    return i < typed(op).info.required_inputs ? kRequired : kOptional;
  };
  GetInputMemoryType = [](const CustomOp*, std::size_t) { return kMemTypeDefault; };
  GetOutputTypeCount = [](const CustomOp*) { return std::size_t{1}; };
  GetOutputType = [](const CustomOp* op, std::size_t) { return static_cast<ElementType>(typed(op).signature.output); };
  GetOutputCharacteristic = [](const CustomOp*, std::size_t) { return kRequired; };
  GetStartVersion = [](const CustomOp*) { return 1; };
  GetEndVersion = [](const CustomOp*) { return std::numeric_limits<int>::max(); };
  CreateKernelV2 = create_node;
  KernelComputeV2 = compute_node;
  KernelDestroy = [](void* node) { delete static_cast<Node*>(node); };
  InferOutputShapeFn = [](const CustomOp* op, ShapeInferContext* context) {
    return guarded(typed(op).api, typed(op).info.name, [&] { infer_shape(typed(op), context); });
  };
}

// --- the domain ---

// The operators as one runtime sees them. Sessions hold pointers into it, so it lives as long as this library is loaded.
class Domain {
 public:
  Domain(const Api& api, bool shapes_in_place) : domain_(nullptr, api.ReleaseCustomOpDomain) {
    CustomOpDomain* domain;
    check(api.CreateCustomOpDomain("actx", &domain));
    domain_.reset(domain);
    if (std::strcmp(kCuda, kCpu) != 0) add_ops(api, shapes_in_place, false);
    add_ops(api, shapes_in_place, true);
  }

  CustomOpDomain* get() const { return domain_.get(); }

 private:
  void add_ops(const Api& api, bool shapes_in_place, bool on_gpu) {
    for (const OpInfo& info : op_infos()) {
      if (on_gpu && !info.on_gpu) continue;
      for (const Signature& signature : signatures(info)) {
        ops_.push_back(std::make_unique<TypedOp>(api, shapes_in_place, on_gpu, info, signature));
        check(api.CustomOpDomain_Add(domain_.get(), ops_.back().get()));
      }
    }
  }

  std::vector<std::unique_ptr<TypedOp>> ops_;
  std::unique_ptr<CustomOpDomain, void (*)(CustomOpDomain*)> domain_;
};

// One for each runtime: a process may have several.
CustomOpDomain* domain_for(const Api& api, bool shapes_in_place) {
  static std::mutex mutex;
  static std::map<const Api*, Domain> domains;
  const std::lock_guard<std::mutex> lock(mutex);
  return domains.try_emplace(&api, api, shapes_in_place).first->second.get();
}

// "1.31.0" gives 31: ONNX Runtime's API has the number of its minor version.
std::uint32_t api_version(const char* version) {
  const char* dot = std::strchr(version, '.');
  return dot == nullptr ? 0 : static_cast<std::uint32_t>(std::strtoul(dot + 1, nullptr, 10));
}

Status* register_ops(SessionOptions* options, const ApiBase& base) {
  const char* version = base.GetVersionString();
  // Asked for an API that it does not have, a runtime gives null, and says so on stderr.
  const Api* api = base.GetApi(kApiVersion);
  if (api == nullptr) {
    const std::string text = std::string("actx needs ONNX Runtime 1.18 or newer, this is ") + version;
    return base.GetApi(1)->CreateStatus(kFail, text.c_str());  // null would mean success
  }
  return guarded(*api, "", [&] {
    default_kernels();  // an instruction set that cannot be had is an error here, not at the first node
    check(api->AddCustomOpDomain(options, domain_for(*api, api_version(version) >= kShapeReferenceVersion)));
  });
}

}  // namespace
}  // namespace actx::ort

extern "C" ACTX_EXPORT actx::ort::Status* RegisterCustomOps(actx::ort::SessionOptions* options,
                                                            const actx::ort::ApiBase* base) {
  return actx::ort::register_ops(options, *base);
}
