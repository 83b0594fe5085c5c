// Y = (sum_i W[i] N(X^(K - i)) + B) [* U] along the last axis, N(z) = z / sqrt(mean(z^2) + epsilon): PolyNorm of PolyCom
// (arXiv 2411.03884). One pass for the sums of even powers, then a polynomial whose coefficients belong to the row.
#include <algorithm>
#include <cmath>
#include <vector>

#include "ops.h"

namespace actx {

namespace {

constexpr std::int64_t kMaxOrder = 4;
// Sums beyond this, or that overflow, are formed again in double precision.
constexpr double kLargestSum = 1e36;

class PolyNorm final : public Op {
 public:
  PolyNorm(float epsilon, const Kernels& kernels) : kernels_(kernels), epsilon_(epsilon) {}

  const char* kernel() const override { return "moments"; }

  Type output_type(Inputs inputs) const override {
    check_float(inputs[0]);
    check_same_type(inputs[0], inputs[1], "W");
    check_same_type(inputs[0], inputs[2], "B");
    check_same_type(inputs[0], inputs[3], "U");
    return inputs[0].type;
  }

  Shape output_shape(Inputs inputs) const override {
    const Shape& w = inputs[1].shape;
    if (inputs[0].shape.empty()) throw Error("X must have an axis, got a scalar");
    if (w.size() != 1 || w[0] < 1 || w[0] > kMaxOrder) throw Error("W must have 1 to 4 elements, got the shape " + to_string(w));
    if (inputs[2].shape.size() != 1 || inputs[2].shape[0] != 1) {
      throw Error("B must have the shape [1], got " + to_string(inputs[2].shape));
    }
    check_same_shape(inputs[0], inputs[3], "U");
    return inputs[0].shape;
  }

  void run(Inputs inputs, void* output, const Parallel& parallel) const override {
    const Tensor& x = inputs[0];
    if (product(x.shape) == 0) return;
    const std::int64_t width = x.shape.back(), rows = product(x.shape) / width;
    const Weights weights = read_weights(inputs[1], inputs[2]);
    const void* u = inputs[3].present ? inputs[3].data : nullptr;
    for_range(parallel, rows, 2 * width, [&](std::int64_t first, std::int64_t last) {
      std::vector<float> wide(x.type == Type::kFloat ? 0 : static_cast<std::size_t>(width));
      for (std::int64_t row = first; row < last; ++row) {
        const void* in = at(x.data, x.type, row * width);
        if (x.type != Type::kFloat) widen(kernels_, x.type, in, wide.data(), width);
        const float* values = x.type == Type::kFloat ? static_cast<const float*>(in) : wide.data();
        run_row(weights, x.type, values, in, u == nullptr ? nullptr : at(u, x.type, row * width),
                at(output, x.type, row * width), width);
      }
    });
  }

 private:
  struct Weights {
    int order = 0;
    double by_power[kMaxOrder + 1] = {};  // the bias first
  };

  Weights read_weights(const Tensor& w, const Tensor& b) const {
    Weights weights;
    weights.order = static_cast<int>(w.shape[0]);
    float read[kMaxOrder], bias;
    widen(kernels_, w.type, w.data, read, weights.order);
    widen(kernels_, b.type, b.data, &bias, 1);
    weights.by_power[0] = static_cast<double>(bias);
    for (int i = 0; i < weights.order; ++i) weights.by_power[weights.order - i] = static_cast<double>(read[i]);
    return weights;
  }

  // `values` are those of `in`, widened.
  void run_row(const Weights& weights, Type type, const float* values, const void* in, const void* u, void* y,
               std::int64_t n) const {
    double sums[kMaxOrder];
    kernels_.moments(values, n, weights.order, sums);
    const bool usual = std::all_of(sums, sums + weights.order, [](double sum) { return sum < kLargestSum; });
    if (!usual) exact_moments(values, n, weights.order, sums);
    double c[kMaxOrder + 1] = {weights.by_power[0]};
    for (int k = 1; k <= weights.order; ++k) {
      c[k] = weights.by_power[k] / std::sqrt(sums[k - 1] / static_cast<double>(n) + static_cast<double>(epsilon_));
    }
    float single[kMaxOrder + 1];
    std::transform(c, c + weights.order + 1, single, [](double v) { return static_cast<float>(v); });
    map_floats(kernels_, type, in, u, y, n, [&](const float* x, const float* gate, float* out, std::int64_t count) {
      if (usual) return kernels_.polynomial(single, weights.order, x, gate, out, count);
      exact_polynomial(c, weights.order, x, gate, out, count);
    });
  }

  static void exact_moments(const float* x, std::int64_t n, int order, double* sums) {
    std::fill_n(sums, order, 0.0);
    for (std::int64_t i = 0; i < n; ++i) {
      const double square = static_cast<double>(x[i]) * static_cast<double>(x[i]);
      double power = 1;
      for (int k = 0; k < order; ++k) sums[k] += power *= square;
    }
  }

  static void exact_polynomial(const double* c, int order, const float* x, const float* u, float* y, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) {
      double sum = c[order];
      for (int k = order - 1; k >= 0; --k) sum = sum * static_cast<double>(x[i]) + c[k];
      y[i] = static_cast<float>(u == nullptr ? sum : sum * static_cast<double>(u[i]));
    }
  }

  const Kernels& kernels_;
  float epsilon_;
};

}  // namespace

std::unique_ptr<Op> create_poly_norm(const Attributes& attributes, const Kernels& kernels, std::string_view) {
  const float epsilon = attributes.number("epsilon").value_or(1e-6f);
  if (!(epsilon > 0) || std::isinf(epsilon)) {
    throw Error("the attribute 'epsilon' must be finite and positive, got " + std::to_string(epsilon));
  }
  return std::make_unique<PolyNorm>(epsilon, kernels);
}

}  // namespace actx
