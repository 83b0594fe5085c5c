// Y = s(X) [* U], with one table for all elements or one per channel.
#include <algorithm>
#include <optional>
#include <vector>

#include "../channels.h"
#include "ops.h"

namespace actx {

namespace {

class Spline final : public Op {
 public:
  Spline(const SplineAttributes& spline, std::optional<std::int64_t> axis, const Kernels& kernels, std::string_view kernel)
      : kernels_(kernels), axis_(axis), channel_count_(spline.channels) {
    if (axis) {
      channels_ = std::make_unique<ChannelSplines>(spline, kernels, *axis == -1);
    } else {
      prepared_ = std::make_unique<PreparedSpline>(spline.knots.data(), spline.origins.data(), spline.segments,
                                                   spline.degree, kernels, kernel);
      rows_ = std::make_unique<FloatArray>(prepared_->size());
      prepared_->fill(spline.coefficients.data(), rows_->data());
      table_ = prepared_->with(rows_->data());
    }
  }

  const char* kernel() const override { return axis_ ? "channels" : prepared_->kernel().name; }

  Type output_type(Inputs inputs) const override {
    check_float(inputs[0]);
    check_same_type(inputs[0], inputs[1], "U");
    return inputs[0].type;
  }

  Shape output_shape(Inputs inputs) const override {
    const Shape& shape = inputs[0].shape;
    check_same_shape(inputs[0], inputs[1], "U");
    if (axis_) {
      const std::int64_t got = shape[normalized_axis(*axis_, shape)];
      if (got != channel_count_) {
        throw Error("axis " + std::to_string(*axis_) + " of X has " + std::to_string(got) + " elements, the spline has " +
                    std::to_string(channel_count_) + " channels");
      }
    }
    return shape;
  }

  void run(Inputs inputs, void* output, const Parallel& parallel) const override {
    const Tensor& x = inputs[0];
    if (product(x.shape) == 0) return;  // there may be any number of rows of none
    const void* u = inputs[1].present ? inputs[1].data : nullptr;
    if (!axis_) return run_plain(x, u, output, parallel);
    const std::size_t axis = normalized_axis(*axis_, x.shape);
    const std::int64_t inner = product(x.shape, axis + 1, x.shape.size());
    const std::int64_t outer = product(x.shape, 0, axis);
    if (inner == 1) {
      run_last_axis(x, u, output, outer, parallel);
    } else {
      run_rows(x, u, output, outer * channel_count_, inner, parallel);
    }
  }

 private:
  void run_plain(const Tensor& x, const void* u, void* y, const Parallel& parallel) const {
    const std::int64_t n = product(x.shape);
    const bool stream = x.type == Type::kFloat && n * 4 >= kStreamBytes;
    const auto body = [this, stream](const float* in, const float* gate, float* out, std::int64_t count) {
      prepared_->kernel().run(table_, in, gate, out, count, stream);
    };
    const std::int64_t blocks = (n + kBlockElements - 1) / kBlockElements;
    for_range(parallel, blocks, kBlockElements, [&](std::int64_t first, std::int64_t last) {
      const std::int64_t from = first * kBlockElements, to = std::min(n, last * kBlockElements);
      map_floats(kernels_, x.type, at(x.data, x.type, from), u == nullptr ? nullptr : at(u, x.type, from),
                 at(y, x.type, from), to - from, body);
    });
  }

  // Every row lies in one channel.
  void run_rows(const Tensor& x, const void* u, void* y, std::int64_t rows, std::int64_t inner,
                const Parallel& parallel) const {
    for_range(parallel, rows, inner, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t row = first; row < last; ++row) {
        const std::int64_t channel = row % channel_count_, from = row * inner;
        const SplineTable table = channels_->table(channel);
        const auto run = channels_->kernel(channel).run;
        map_floats(kernels_, x.type, at(x.data, x.type, from), u == nullptr ? nullptr : at(u, x.type, from),
                   at(y, x.type, from), inner, [&](const float* in, const float* gate, float* out, std::int64_t n) {
                     run(table, in, gate, out, n, false);
                   });
      }
    });
  }

  // Every row goes through all channels. Half precision is widened some rows at a time.
  void run_last_axis(const Tensor& x, const void* u, void* y, std::int64_t rows, const Parallel& parallel) const {
    const ChannelTables& tables = channels_->interleaved();
    for_range(parallel, rows, channel_count_, [&](std::int64_t first, std::int64_t last) {
      const std::int64_t from = first * channel_count_;
      if (x.type == Type::kFloat) {
        kernels_.channels(tables, static_cast<const float*>(x.data) + from,
                          u == nullptr ? nullptr : static_cast<const float*>(u) + from, static_cast<float*>(y) + from,
                          last - first);
        return;
      }
      const std::int64_t step = std::max<std::int64_t>(1, kBlockElements / channel_count_);
      std::vector<float> block(static_cast<std::size_t>(3 * step * channel_count_));
      float* const in = block.data();
      float* const gate = in + step * channel_count_;
      float* const out = gate + step * channel_count_;
      for (std::int64_t row = first; row < last; row += step) {
        const std::int64_t count = std::min(step, last - row) * channel_count_, start = row * channel_count_;
        widen(kernels_, x.type, at(x.data, x.type, start), in, count);
        if (u != nullptr) widen(kernels_, x.type, at(u, x.type, start), gate, count);
        kernels_.channels(tables, in, u == nullptr ? nullptr : gate, out, count / channel_count_);
        narrow(kernels_, x.type, out, at(y, x.type, start), count);
      }
    });
  }

  const Kernels& kernels_;
  std::optional<std::int64_t> axis_;
  std::int64_t channel_count_;
  std::unique_ptr<ChannelSplines> channels_;  // with an axis
  std::unique_ptr<PreparedSpline> prepared_;  // without
  std::unique_ptr<FloatArray> rows_;
  SplineTable table_;
};

}  // namespace

std::unique_ptr<Op> create_spline(const Attributes& attributes, const Kernels& kernels, std::string_view kernel) {
  const auto axis = attributes.integer("axis"), channels = attributes.integer("channels");
  if (axis.has_value() != channels.has_value()) throw Error("the attributes 'axis' and 'channels' come together");
  return std::make_unique<Spline>(read_spline(attributes, channels.value_or(1)), axis, kernels, kernel);
}

}  // namespace actx
