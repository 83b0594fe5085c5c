// The operators as plain C functions.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "../include/actx_ops.h"
#include "isa.h"
#include "kernels.h"
#include "op.h"

struct ActxOp {
  const actx::OpInfo* info;
  std::unique_ptr<actx::Op> op;
};

namespace actx {
namespace {

// No exception crosses the boundary.
template <typename Body>
int guarded(const char* op_type, char* error, std::size_t error_size, Body&& body) noexcept {
  try {
    body();
    return 0;
  } catch (const std::bad_alloc&) {
    std::snprintf(error, error_size, "actx::%s: out of memory", op_type);
  } catch (const std::exception& failure) {
    std::snprintf(error, error_size, "actx::%s: %s", op_type, failure.what());
  }
  return 1;
}

class GivenAttributes final : public Attributes {
 public:
  GivenAttributes(const ActxAttribute* first, std::size_t count) : first_(first), read_(count) {}

  std::optional<std::int64_t> integer(const char* name) const override {
    const ActxAttribute* given = find(name, [](const ActxAttribute& a) { return a.ints != nullptr && a.count == 1; });
    if (given == nullptr) return std::nullopt;
    return given->ints[0];
  }

  std::optional<float> number(const char* name) const override {
    const ActxAttribute* given = find(name, [](const ActxAttribute& a) { return a.floats != nullptr && a.count == 1; });
    if (given == nullptr) return std::nullopt;
    return given->floats[0];
  }

  std::optional<std::string> text(const char* name) const override {
    const ActxAttribute* given = find(name, [](const ActxAttribute& a) { return a.text != nullptr; });
    if (given == nullptr) return std::nullopt;
    return std::string(given->text, given->count);
  }

  std::optional<std::vector<std::int64_t>> integers(const char* name) const override {
    const ActxAttribute* given = find(name, [](const ActxAttribute& a) { return a.ints != nullptr; });
    if (given == nullptr) return std::nullopt;
    return std::vector<std::int64_t>(given->ints, given->ints + given->count);
  }

  std::optional<std::vector<float>> numbers(const char* name) const override {
    const ActxAttribute* given = find(name, [](const ActxAttribute& a) { return a.floats != nullptr; });
    if (given == nullptr) return std::nullopt;
    return std::vector<float>(given->floats, given->floats + given->count);
  }

  // An attribute that no operator asks for is a misspelt one, or has another type than the operator's.
  void check_all_were_read() const {
    const auto unread = std::find(read_.begin(), read_.end(), false);
    if (unread == read_.end()) return;
    throw Error("there is no attribute '" + std::string(first_[unread - read_.begin()].name) + "' of that type");
  }

 private:
  template <typename OfType>
  const ActxAttribute* find(const char* name, OfType&& of_type) const {
    for (std::size_t i = 0; i < read_.size(); ++i) {
      if (std::strcmp(first_[i].name, name) != 0) continue;
      read_[i] = read_[i] || of_type(first_[i]);
      return of_type(first_[i]) ? &first_[i] : nullptr;
    }
    return nullptr;
  }

  const ActxAttribute* first_;
  mutable std::vector<bool> read_;  // one for each
};

// One entry for every input of the op; those that were not given are absent.
std::vector<Tensor> read_inputs(const OpInfo& info, const ActxTensor* given, std::size_t count) {
  std::vector<Tensor> inputs(info.required_inputs + info.optional_inputs);
  if (count > inputs.size()) {
    throw Error("there are at most " + std::to_string(inputs.size()) + " inputs, got " + std::to_string(count));
  }
  for (std::size_t i = 0; i < count; ++i) {
    if (given[i].type == 0) continue;
    inputs[i].type = static_cast<Type>(given[i].type);
    inputs[i].shape = Shape(given[i].shape, given[i].shape + given[i].rank);
    inputs[i].data = given[i].data;
    inputs[i].present = true;
  }
  for (std::size_t i = 0; i < info.required_inputs; ++i) {
    if (!inputs[i].present) throw Error("input " + std::to_string(i) + " is missing");
  }
  return inputs;
}

void check_output(const Op& op, const Inputs& inputs, const ActxTensor& output) {
  const Shape given(output.shape, output.shape + output.rank);
  if (static_cast<Type>(output.type) != op.output_type(inputs) || given != op.output_shape(inputs)) {
    throw Error("the output has another type or shape than actx_op_infer gives");
  }
}

std::string isa_names() {
  std::string names;
  for (const Kernels* kernels : available_kernels()) names += (names.empty() ? "" : " ") + std::string(kernels->isa);
  return names;
}

// The rows of kernels.inc.
std::string rows(const Kernels& kernels) {
  std::string text;
  const auto add = [&](const char* name, const char* op) { text += std::string(name) + " " + op + "\n"; };
  for (std::size_t i = 0; i < kernels.spline_count; ++i) {
    if (kernels.splines[i].run != nullptr) add(kernels.splines[i].name, "Spline");
  }
#define ACTX_SPLINE(name, index, width, degree)
#define ACTX_KERNEL(name, op) add(#name, #op);
#include "kernels.inc"
#undef ACTX_SPLINE
#undef ACTX_KERNEL
  return text;
}

std::vector<std::string> all_rows() {
  std::vector<std::string> texts;
  for (const Kernels* kernels : available_kernels()) texts.push_back(rows(*kernels));
  return texts;
}

}  // namespace
}  // namespace actx

extern "C" {

int32_t actx_abi_version(void) { return ACTX_ABI_VERSION; }

const char* actx_isas(void) {
  static const std::string names = actx::isa_names();
  return names.c_str();
}

const char* actx_kernels(const char* isa) {
  static const std::vector<std::string> texts = actx::all_rows();
  const auto& available = actx::available_kernels();
  for (std::size_t i = 0; i < available.size(); ++i) {
    if (std::strcmp(available[i]->isa, isa) == 0) return texts[i].c_str();
  }
  return nullptr;
}

int actx_op_create(const char* op_type, const ActxAttribute* attributes, size_t attribute_count, const char* isa,
                   const char* kernel, ActxOp** op, char* error, size_t error_size) {
  return actx::guarded(op_type, error, error_size, [&] {
    const actx::OpInfo& info = actx::op_info(op_type);
    const actx::Kernels& kernels = isa == nullptr ? actx::default_kernels() : actx::find_kernels(isa);
    const actx::GivenAttributes given(attributes, attribute_count);
    auto made = info.create(given, kernels, kernel == nullptr ? "" : kernel);
    given.check_all_were_read();
    *op = new ActxOp{&info, std::move(made)};
  });
}

void actx_op_destroy(ActxOp* op) { delete op; }

const char* actx_op_kernel(const ActxOp* op) { return op->op->kernel(); }

int actx_op_infer(const ActxOp* op, const ActxTensor* inputs, size_t input_count, int32_t* type, size_t* rank,
                  int64_t* shape, size_t shape_capacity, char* error, size_t error_size) {
  return actx::guarded(op->info->name, error, error_size, [&] {
    const std::vector<actx::Tensor> given = actx::read_inputs(*op->info, inputs, input_count);
    const actx::Inputs view(given.data(), given.size());
    const actx::Shape sizes = op->op->output_shape(view);
    if (sizes.size() > shape_capacity) throw actx::Error("the output has more dimensions than there is room for");
    *type = static_cast<int32_t>(op->op->output_type(view));
    *rank = sizes.size();
    std::copy(sizes.begin(), sizes.end(), shape);
  });
}

int actx_op_run(const ActxOp* op, const ActxTensor* inputs, size_t input_count, const ActxTensor* output, char* error,
                size_t error_size) {
  return actx::guarded(op->info->name, error, error_size, [&] {
    const std::vector<actx::Tensor> given = actx::read_inputs(*op->info, inputs, input_count);
    const actx::Inputs view(given.data(), given.size());
    actx::check_output(*op->op, view, *output);
    op->op->run(view, output->data, actx::Serial());
  });
}

}  // extern "C"
