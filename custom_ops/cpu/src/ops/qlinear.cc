// A linear layer of codes: s = (sum_k X[k] W[k, n] + B[n]) * S[n], as a number, or as the table's entry for the code
// round(s) + zero point. Sums are taken modulo 2^32, the sum becomes a float32 number and is multiplied in float32, and s is
// rounded half to even: that is the definition, so that all kernels give the same.
//
// W is stored as the kernels read it, so that nothing is packed when a model is opened: panels of 16 outputs, in each the inputs
// by eights, of which each half has four inputs for each of the outputs.
#include <algorithm>
#include <optional>
#include <vector>

#include "codes.h"
#include "ops.h"

namespace actx {

extern const Kernels k_portable;

namespace {

constexpr std::int64_t kRowsPerBlock = 120;  // of which the inputs stay in the second cache
constexpr std::int64_t kProductsPerElement = 32;  // that take as long as an element of the cheapest kernel

// Whether 16 bits hold what a kernel adds in them, 255 at most times four weights of one output: the positive ones of a four
// sum to at most 128, and the negative ones to no less than -128. A four has two inputs of each half of an eight.
bool is_narrow(const std::int8_t* weights, std::int64_t octets) {
  constexpr int kHalf = kOctet * kPanel / 2;
  int worst = 0;
  for (std::int64_t octet = 0; octet < octets; ++octet, weights += 2 * kHalf) {
    for (int i = 0; i < kHalf; i += 2) {
      int above = 0, below = 0;
      for (const int place : {i, i + 1, kHalf + i, kHalf + i + 1}) {
        above += std::max<int>(weights[place], 0);
        below -= std::min<int>(weights[place], 0);
      }
      worst = std::max({worst, above, below});
    }
  }
  return worst <= 128;
}

class QLinear final : public Op {
 public:
  QLinear(std::int64_t zero_point, std::vector<std::uint8_t> table, bool to_float, std::optional<Tensor> weights,
          const Kernels& kernels)
      : kernels_(kernels), zero_point_(zero_point), table_(std::move(table)), to_float_(to_float) {
    if (kernels.narrow_sums && weights && weights->type == Type::kInt8) narrow_ = is_narrow(*weights);
  }

  const char* kernel() const override { return to_float_ ? "linear_floats" : "linear_codes"; }

  Type output_type(Inputs inputs) const override {
    constexpr Type kTypes[] = {Type::kUint8, Type::kInt8, Type::kInt32, Type::kFloat};
    constexpr const char* kExpected[] = {"X must be uint8", "W must be int8", "B must be int32", "S must be float32"};
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i].type != kTypes[i]) {
        throw Error(std::string(kExpected[i]) + ", got the ONNX type " + std::to_string(static_cast<int>(inputs[i].type)));
      }
    }
    return to_float_ ? Type::kFloat : Type::kUint8;
  }

  Shape output_shape(Inputs inputs) const override {
    Shape shape = inputs[0].shape;
    const Shape &weights = inputs[1].shape, &bias = inputs[2].shape;
    if (shape.empty()) throw Error("X must have an axis of inputs, got a scalar");
    if (bias.size() != 1 || inputs[3].shape != bias) {
      throw Error("B and S must have one number for each output, got " + to_string(bias) + " and " + to_string(inputs[3].shape));
    }
    const Shape expected = {count_of(bias[0], kPanel), count_of(shape.back(), kOctet), kOctet * kPanel};
    if (weights != expected) {
      throw Error("W must be of shape " + to_string(expected) + " for " + std::to_string(shape.back()) + " inputs and " +
                  std::to_string(bias[0]) + " outputs, got " + to_string(weights));
    }
    shape.back() = bias[0];
    return shape;
  }

  void run(Inputs inputs, void* output, const Parallel& parallel) const override {
    const Shape& shape = inputs[0].shape;
    const LinearTable table{static_cast<const std::int8_t*>(inputs[1].data), static_cast<const std::int32_t*>(inputs[2].data),
                            static_cast<const float*>(inputs[3].data),       shape.back(),
                            inputs[2].shape[0],                              static_cast<std::int32_t>(zero_point_)};
    const Call call{table, static_cast<const std::uint8_t*>(inputs[0].data), output, sums_of(inputs[1])};
    const std::int64_t rows = product(shape, 0, shape.size() - 1), panels = inputs[1].shape[0];
    const std::int64_t cost = table.inputs * table.outputs / kProductsPerElement;
    if (rows == 0 || table.outputs == 0) return;
    if (rows >= 4 * parallel.threads()) {
      for_range(parallel, rows, cost, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t row = first; row < last; row += kRowsPerBlock) {
          run_tile(call, row, std::min(kRowsPerBlock, last - row), 0, panels);
        }
      });
    } else {
      for_range(parallel, panels, rows * cost / panels,
                [&](std::int64_t first, std::int64_t last) { run_tile(call, 0, rows, first, last); });
    }
  }

 private:
  struct Call {
    LinearTable table;
    const std::uint8_t* x;
    void* y;
    const Kernels& sums;
  };

  static std::int64_t count_of(std::int64_t size, std::int64_t each) { return size / each + (size % each > 0 ? 1 : 0); }
  static bool is_narrow(const Tensor& weights) {
    return actx::is_narrow(static_cast<const std::int8_t*>(weights.data), product(weights.shape) / (kOctet * kPanel));
  }

  // The kernels that give exact sums of these weights.
  const Kernels& sums_of(const Tensor& weights) const {
    const bool exact = !kernels_.narrow_sums || (narrow_ ? *narrow_ : is_narrow(weights));
    return exact ? kernels_ : k_portable;
  }

  // Rows [row, row + rows) of the panels [first, last).
  void run_tile(const Call& call, std::int64_t row, std::int64_t rows, std::int64_t first, std::int64_t last) const {
    const LinearTable& t = call.table;
    const std::uint8_t* x = call.x + row * t.inputs;
    if (to_float_) {
      return call.sums.linear_floats(t, x, rows, first, last, static_cast<float*>(call.y) + row * t.outputs);
    }
    std::uint8_t* const y = static_cast<std::uint8_t*>(call.y) + row * t.outputs;
    call.sums.linear_codes(t, x, rows, first, last, y);
    if (table_.empty()) return;
    const std::int64_t begin = first * kPanel, count = std::min(last * kPanel, t.outputs) - begin;
    if (count == t.outputs) return look_up(y, rows * count);
    for (std::int64_t r = 0; r < rows; ++r) look_up(y + r * t.outputs + begin, count);
  }

  void look_up(std::uint8_t* y, std::int64_t count) const { kernels_.lut(table_.data(), y, y, count); }

  const Kernels& kernels_;
  std::int64_t zero_point_;
  std::vector<std::uint8_t> table_;  // empty where codes stay as they are
  bool to_float_;
  std::optional<bool> narrow_;  // of weights that do not change
};

}  // namespace

std::unique_ptr<Op> create_qlinear(const Attributes& attributes, const Kernels& kernels, std::string_view) {
  const std::int64_t zero_point = attributes.integer("zero_point").value_or(0);
  const auto is_code = [](std::int64_t value) { return value >= 0 && value <= 255; };
  if (!is_code(zero_point)) throw Error("the attribute 'zero_point' must be from 0 to 255, got " + std::to_string(zero_point));
  const auto entries = attributes.integers("table");
  if (entries && (entries->size() != kCodes || !std::all_of(entries->begin(), entries->end(), is_code))) {
    throw Error("the attribute 'table' must have 256 values from 0 to 255");
  }
  const auto table = entries ? std::vector<std::uint8_t>(entries->begin(), entries->end()) : std::vector<std::uint8_t>();
  return std::make_unique<QLinear>(zero_point, table, false, attributes.constant(1), kernels);
}

std::unique_ptr<Op> create_qlinear_to_float(const Attributes& attributes, const Kernels& kernels, std::string_view) {
  return std::make_unique<QLinear>(0, std::vector<std::uint8_t>(), true, attributes.constant(1), kernels);
}

}  // namespace actx
