// Y = s(gate half of X) * h(other half): the activation of a packed gated FFN.
//
// 1. Split halves are two runs of memory of H * inner elements; interleaved ones with more than one element behind the axis
//    are two runs of `inner`. So both are rows of pairs of runs.
// 2. Interleaved halves on the last axis are parted block by block first.
#include <algorithm>
#include <optional>
#include <vector>

#include "../channels.h"
#include "ops.h"

namespace actx {

namespace {

// Elements of a run that one task takes at a time.
constexpr std::int64_t kPiece = 4 * kBlockElements;

// One table and what runs it.
struct SingleSpline {
  SingleSpline(const SplineAttributes& s, const Kernels& kernels, std::string_view kernel)
      : prepared(s.knots.data(), s.origins.data(), s.segments, s.degree, kernels, kernel), rows(prepared.size()) {
    prepared.fill(s.coefficients.data(), rows.data());
    table = prepared.with(rows.data());
  }
  void run(const float* x, const float* u, float* y, std::int64_t n) const {
    prepared.kernel().run(table, x, u, y, n, false);
  }
  PreparedSpline prepared;
  FloatArray rows;
  SplineTable table;
};

struct Layout {
  std::int64_t axis = -1;
  bool interleaved = false;
  std::int64_t gate = 0;
};

class GatedSpline final : public Op {
 public:
  GatedSpline(const Layout& layout, const SplineAttributes& gate, bool per_channel,
              const std::optional<SplineAttributes>& other, const Kernels& kernels, std::string_view kernel)
      : kernels_(kernels), layout_(layout) {
    if (per_channel) {
      channels_ = std::make_unique<ChannelSplines>(gate, kernels, layout.axis == -1);
    } else {
      single_ = std::make_unique<SingleSpline>(gate, kernels, kernel);
    }
    if (other) other_ = std::make_unique<SingleSpline>(*other, kernels, "");
  }

  const char* kernel() const override { return channels_ ? "channels" : single_->prepared.kernel().name; }

  Type output_type(Inputs inputs) const override {
    check_float(inputs[0]);
    return inputs[0].type;
  }

  Shape output_shape(Inputs inputs) const override {
    Shape shape = inputs[0].shape;
    const std::size_t axis = normalized_axis(layout_.axis, shape);
    if (shape[axis] % 2 != 0) {
      throw Error("axis " + std::to_string(layout_.axis) + " of X must hold two halves, got the shape " + to_string(shape));
    }
    shape[axis] /= 2;
    if (channels_ && channels_->interleaved().channels != shape[axis]) {
      throw Error("axis " + std::to_string(layout_.axis) + " of X has halves of " + std::to_string(shape[axis]) +
                  " elements, the spline has " + std::to_string(channels_->interleaved().channels) + " channels");
    }
    return shape;
  }

  void run(Inputs inputs, void* output, const Parallel& parallel) const override {
    const Tensor& x = inputs[0];
    if (product(x.shape) == 0) return;
    const std::size_t axis = normalized_axis(layout_.axis, x.shape);
    const std::int64_t inner = product(x.shape, axis + 1, x.shape.size()), outer = product(x.shape, 0, axis);
    const std::int64_t half = x.shape[axis] / 2;
    if (channels_) {
      run_channels(x, output, outer, half, inner, parallel);
    } else if (layout_.interleaved && inner == 1) {
      run_pairs(x, output, outer * half, parallel);
    } else if (layout_.interleaved) {
      run_runs(x, output, outer * half, inner, parallel);
    } else {
      run_runs(x, output, outer, half * inner, parallel);
    }
  }

 private:
  // y = s(gate) * h(other) on blocks of float32.
  template <class Gate>
  void combine(const Gate& gate, const float* g, const float* o, float* y, std::int64_t n) const {
    if (!other_) return gate(g, o, y, n);
    alignas(64) float changed[kBlockElements];
    for (std::int64_t i = 0; i < n; i += kBlockElements) {
      const std::int64_t count = std::min(kBlockElements, n - i);
      other_->run(o + i, nullptr, changed, count);
      gate(g + i, changed, y + i, count);
    }
  }

  // 1. `rows` pairs of runs of `length` elements.
  void run_runs(const Tensor& x, void* y, std::int64_t rows, std::int64_t length, const Parallel& parallel) const {
    const std::int64_t pieces = (length + kPiece - 1) / kPiece;
    for_range(parallel, rows * pieces, std::min(length, kPiece), [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t row = i / pieces, from = i % pieces * kPiece;
        run_pair(x, 2 * row * length + from, length, at(y, x.type, row * length + from), std::min(kPiece, length - from),
                 [this](const float* g, const float* o, float* out, std::int64_t n) { single_->run(g, o, out, n); });
      }
    });
  }

  // `start` is where the first half of the pair starts, and `distance` elements behind it the second.
  template <class Gate>
  void run_pair(const Tensor& x, std::int64_t start, std::int64_t distance, void* y, std::int64_t n,
                const Gate& gate) const {
    const std::int64_t g = start + (layout_.gate == 0 ? 0 : distance), o = start + (layout_.gate == 0 ? distance : 0);
    map_floats(kernels_, x.type, at(x.data, x.type, g), at(x.data, x.type, o), y, n,
               [&](const float* in, const float* other, float* out, std::int64_t count) {
                 combine(gate, in, other, out, count);
               });
  }

  // 2. Gate and other alternate.
  void run_pairs(const Tensor& x, void* y, std::int64_t pairs, const Parallel& parallel) const {
    const std::int64_t blocks = (pairs + kBlockElements - 1) / kBlockElements;
    for_range(parallel, blocks, kBlockElements, [&](std::int64_t first, std::int64_t last) {
      alignas(64) float wide[2 * kBlockElements], even[kBlockElements], odd[kBlockElements], out[kBlockElements];
      for (std::int64_t block = first; block < last; ++block) {
        const std::int64_t from = block * kBlockElements, n = std::min(kBlockElements, pairs - from);
        const void* in = at(x.data, x.type, 2 * from);
        if (x.type != Type::kFloat) widen(kernels_, x.type, in, wide, 2 * n);
        kernels_.deinterleave(x.type == Type::kFloat ? static_cast<const float*>(in) : wide, even, odd, n);
        const float* gate = layout_.gate == 0 ? even : odd;
        const float* other = layout_.gate == 0 ? odd : even;
        float* const result = x.type == Type::kFloat ? static_cast<float*>(y) + from : out;
        combine([this](const float* g, const float* o, float* z, std::int64_t count) { single_->run(g, o, z, count); }, gate,
                other, result, n);
        if (x.type != Type::kFloat) narrow(kernels_, x.type, out, at(y, x.type, from), n);
      }
    });
  }

  void run_channels(const Tensor& x, void* y, std::int64_t outer, std::int64_t half, std::int64_t inner,
                    const Parallel& parallel) const {
    if (inner > 1) return run_channel_runs(x, y, outer * half, half, inner, parallel);
    for_range(parallel, outer, half, [&](std::int64_t first, std::int64_t last) {
      std::vector<float> row(static_cast<std::size_t>(5 * half));
      float* const wide = row.data();
      float* const even = wide + 2 * half;
      float* const odd = even + half;
      float* const out = odd + half;
      for (std::int64_t i = first; i < last; ++i) {
        widen(kernels_, x.type, at(x.data, x.type, 2 * i * half), wide, 2 * half);
        if (layout_.interleaved) kernels_.deinterleave(wide, even, odd, half);
        float* const halves[] = {layout_.interleaved ? even : wide, layout_.interleaved ? odd : wide + half};
        float* const other = halves[1 - layout_.gate];
        if (other_) {
          other_->run(other, nullptr, out, half);
          std::copy_n(out, half, other);
        }
        kernels_.channels(channels_->interleaved(), halves[layout_.gate], other, out, 1);
        narrow(kernels_, x.type, out, at(y, x.type, i * half), half);
      }
    });
  }

  // Every run lies in one channel.
  void run_channel_runs(const Tensor& x, void* y, std::int64_t runs, std::int64_t half, std::int64_t inner,
                        const Parallel& parallel) const {
    for_range(parallel, runs, inner, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t row = i / half, channel = i % half;
        const SplineTable table = channels_->table(channel);
        const auto kernel = channels_->kernel(channel).run;
        const std::int64_t start = (2 * row * half + (layout_.interleaved ? 2 * channel : channel)) * inner;
        run_pair(x, start, layout_.interleaved ? inner : half * inner, at(y, x.type, i * inner), inner,
                 [&](const float* g, const float* o, float* out, std::int64_t n) { kernel(table, g, o, out, n, false); });
      }
    });
  }

  const Kernels& kernels_;
  Layout layout_;
  std::unique_ptr<ChannelSplines> channels_;  // with a table per channel
  std::unique_ptr<SingleSpline> single_;      // without
  std::unique_ptr<SingleSpline> other_;
};

Layout read_layout(const Attributes& attributes) {
  Layout layout;
  layout.axis = attributes.integer("axis").value_or(-1);
  layout.gate = attributes.integer("gate").value_or(0);
  const std::string name = attributes.text("layout").value_or("split");
  if (name != "split" && name != "interleaved") throw Error("the attribute 'layout' must be 'split' or 'interleaved', got '" + name + "'");
  if (layout.gate != 0 && layout.gate != 1) throw Error("the attribute 'gate' must be 0 or 1, got " + std::to_string(layout.gate));
  layout.interleaved = name == "interleaved";
  return layout;
}

}  // namespace

std::unique_ptr<Op> create_gated_spline(const Attributes& attributes, const Kernels& kernels, std::string_view kernel) {
  const Layout layout = read_layout(attributes);
  const auto channels = attributes.integer("channels");
  std::optional<SplineAttributes> other;
  if (attributes.integer("other_degree")) other = read_spline(attributes, 1, "other_");
  return std::make_unique<GatedSpline>(layout, read_spline(attributes, channels.value_or(1)), channels.has_value(), other,
                                       kernels, kernel);
}

}  // namespace actx
