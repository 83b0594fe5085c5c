// Y = sum_e G[..., e] * s_e(X) [* U]: the tables of the entries share knots, so they are mixed once per token.
#include <algorithm>
#include <vector>

#include "../tables.h"
#include "ops.h"

namespace actx {

namespace {

constexpr std::size_t kLargestRows = kMaxSegments * 4 > 8 * 17 ? kMaxSegments * 4 : 8 * 17;

class SplineMix final : public Op {
 public:
  SplineMix(const SplineAttributes& s, std::int64_t entries, const Kernels& kernels, std::string_view kernel)
      : kernels_(kernels),
        entries_(entries),
        prepared_(s.knots.data(), s.origins.data(), s.segments, s.degree, kernels, kernel),
        size_(prepared_.size()),
        rows_(static_cast<std::size_t>(entries) * size_) {
    const std::size_t given = s.coefficients.size() / static_cast<std::size_t>(entries);
    for (std::size_t e = 0; e < static_cast<std::size_t>(entries); ++e) {
      prepared_.fill(s.coefficients.data() + e * given, rows_.data() + e * size_);
    }
  }

  const char* kernel() const override { return prepared_.kernel().name; }

  Type output_type(Inputs inputs) const override {
    check_float(inputs[0]);
    check_same_type(inputs[0], inputs[1], "G");
    check_same_type(inputs[0], inputs[2], "U");
    return inputs[0].type;
  }

  Shape output_shape(Inputs inputs) const override {
    const Shape& x = inputs[0].shape;
    const Shape& g = inputs[1].shape;
    if (x.empty() || g.size() != x.size() || !std::equal(x.begin(), x.end() - 1, g.begin()) || g.back() != entries_) {
      throw Error("G must have the shape of X with " + std::to_string(entries_) + " entries last, got " + to_string(g) +
                  " and " + to_string(x));
    }
    check_same_shape(inputs[0], inputs[2], "U");
    return x;
  }

  void run(Inputs inputs, void* output, const Parallel& parallel) const override {
    const Tensor& x = inputs[0];
    if (product(x.shape) == 0) return;
    const std::int64_t width = x.shape.back(), tokens = product(x.shape) / width;
    const void* u = inputs[2].present ? inputs[2].data : nullptr;
    for_range(parallel, tokens, width, [&](std::int64_t first, std::int64_t last) {
      std::vector<float> gates(static_cast<std::size_t>(entries_));
      alignas(64) float mixed[kLargestRows];
      for (std::int64_t token = first; token < last; ++token) {
        widen(kernels_, x.type, at(inputs[1].data, x.type, token * entries_), gates.data(), entries_);
        kernels_.mix(gates.data(), entries_, rows_.data(), mixed, static_cast<std::int64_t>(size_));
        const SplineTable table = prepared_.with(mixed);
        const std::int64_t from = token * width;
        map_floats(kernels_, x.type, at(x.data, x.type, from), u == nullptr ? nullptr : at(u, x.type, from),
                   at(output, x.type, from), width,
                   [&](const float* in, const float* gate, float* out, std::int64_t n) {
                     prepared_.kernel().run(table, in, gate, out, n, false);
                   });
      }
    });
  }

 private:
  const Kernels& kernels_;
  std::int64_t entries_;
  PreparedSpline prepared_;
  std::size_t size_;
  FloatArray rows_;  // [entries, degree + 1, width]
};

}  // namespace

std::unique_ptr<Op> create_spline_mix(const Attributes& attributes, const Kernels& kernels, std::string_view kernel) {
  const std::int64_t entries = attributes.integer("entries").value_or(0);
  if (entries < 1) throw Error("the attribute 'entries' must be 1 or more, got " + std::to_string(entries));
  return std::make_unique<SplineMix>(read_spline(attributes, 1, "", entries), entries, kernels, kernel);
}

}  // namespace actx
