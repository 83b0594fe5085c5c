// An operator of the domain actx, apart from any runtime: ONNX Runtime, numpy and PyTorch all run it through this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "parallel.h"
#include "shape.h"

namespace actx {

// What the user can mend: an attribute, a shape or a type. The text says what is wrong and what was got.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Element types, with the numbers of ONNX's TensorProto.DataType.
enum class Type : std::int32_t { kFloat = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6, kFloat16 = 10, kBfloat16 = 16 };

// An input. `data` is null where an optional input is absent; it may be anything where the shape holds a zero.
struct Tensor {
  Type type{};
  Shape shape;
  const void* data = nullptr;
  bool present = false;
};

// A view of the inputs of a call, which the caller owns: one entry for every input that the op can have, in order. Throws Error
// where a shape has a negative size, or sizes whose product overflows without those that are zero, so that no op's can.
class Inputs {
 public:
  Inputs(const Tensor* tensors, std::size_t count);

  std::size_t size() const { return count_; }
  const Tensor* begin() const { return tensors_; }
  const Tensor* end() const { return tensors_ + count_; }
  const Tensor& operator[](std::size_t i) const { return tensors_[i]; }

 private:
  const Tensor* tensors_;
  std::size_t count_;
};

// The attributes of a node; one that the node does not have is nullopt.
class Attributes {
 public:
  virtual ~Attributes() = default;
  virtual std::optional<std::int64_t> integer(const char* name) const = 0;
  virtual std::optional<float> number(const char* name) const = 0;
  virtual std::optional<std::string> text(const char* name) const = 0;
  virtual std::optional<std::vector<std::int64_t>> integers(const char* name) const = 0;
  virtual std::optional<std::vector<float>> numbers(const char* name) const = 0;
  // The elements of a tensor as they are in memory; no op has such an attribute, but a node that was compiled for a GPU.
  virtual std::optional<std::vector<char>> bytes(const char*) const { return std::nullopt; }
  // An input that is the same in every call, where that is known when the node is made.
  virtual std::optional<Tensor> constant(std::size_t) const { return std::nullopt; }
};

struct Kernels;  // kernels.h: the rows of one instruction set

// A node whose attributes were checked. Immutable: several threads may run it at once.
class Op {
 public:
  virtual ~Op() = default;
  // Name of the row of the kernel table that runs it.
  virtual const char* kernel() const = 0;
  // Throw Error where types or shapes of the inputs do not fit.
  virtual Type output_type(Inputs inputs) const = 0;
  virtual Shape output_shape(Inputs inputs) const = 0;
  // `output` has that type and shape and does not overlap an input.
  virtual void run(Inputs inputs, void* output, const Parallel& parallel) const = 0;
};

// What a runtime must know of an operator before any node exists.
struct OpInfo {
  const char* name;
  std::size_t required_inputs;
  std::size_t optional_inputs;  // after the required ones
  std::vector<Type> types;      // of the first input; a runtime registers them all
  // Validate the attributes and prepare the tables. Throws Error. `kernel` names the row to take, "" for the best that fits.
  std::unique_ptr<Op> (*create)(const Attributes&, const Kernels&, std::string_view kernel);
  bool keeps_shape = true;  // whether the output has the sizes of the first input
  // Where they do not follow from the type of the first: the types of the inputs behind it, and of the output.
  std::vector<Type> other_types = {};
  std::optional<Type> output_type = std::nullopt;
  bool on_gpu = true;  // whether there are kernels for GPUs
};

// All operators of opset 1.
const std::vector<OpInfo>& op_infos();

// By name. Throws Error where there is none.
const OpInfo& op_info(std::string_view op_type);

}  // namespace actx
