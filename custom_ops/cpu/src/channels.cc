#include "channels.h"

#include <limits>

namespace actx {

namespace {

constexpr std::int64_t kLanes = 16;  // of the widest vector

std::int64_t stride_of(const SplineAttributes& spline) {
  const std::int64_t stride = (spline.channels + kLanes - 1) / kLanes * kLanes;
  if (stride > std::numeric_limits<std::int32_t>::max() / spline.segments) {
    throw Error("a spline per channel has at most 2^31 segments in all, got " + std::to_string(spline.channels) +
                " channels of " + std::to_string(spline.segments));
  }
  return stride;
}

std::size_t floats_of(const SplineAttributes& s) {
  return static_cast<std::size_t>(stride_of(s) * (s.segments - 1 + s.segments * (s.degree + 2) + 2));
}

}  // namespace

ChannelSplines::ChannelSplines(const SplineAttributes& spline, const Kernels& kernels, bool last_axis)
    : arrays_(floats_of(spline)) {
  interleave(spline);
  if (last_axis) return;
  const int knots = spline.segments - 1, width = spline.degree + 1;
  for (std::int64_t c = 0; c < spline.channels; ++c) {
    splines_.emplace_back(spline.knots.data() + c * knots, spline.origins.data() + c * spline.segments, spline.segments,
                          spline.degree, kernels, "");
    rows_.emplace_back(splines_.back().size());
    splines_.back().fill(spline.coefficients.data() + c * spline.segments * width, rows_.back().data());
  }
}

SplineTable ChannelSplines::table(std::int64_t channel) const {
  const auto c = static_cast<std::size_t>(channel);
  return splines_[c].with(rows_[c].data());
}

void ChannelSplines::interleave(const SplineAttributes& s) {
  const std::int64_t stride = stride_of(s), knots = s.segments - 1, width = s.degree + 1;
  float* const k = arrays_.data();
  float* const o = k + knots * stride;
  float* const coefficients = o + s.segments * stride;
  float* const limits = coefficients + width * s.segments * stride;
  for (std::int64_t c = 0; c < s.channels; ++c) {
    for (std::int64_t i = 0; i < knots; ++i) k[i * stride + c] = s.knots[static_cast<std::size_t>(c * knots + i)];
    for (std::int64_t i = 0; i < s.segments; ++i) {
      o[i * stride + c] = s.origins[static_cast<std::size_t>(c * s.segments + i)];
      for (std::int64_t j = 0; j < width; ++j) {
        coefficients[(j * s.segments + i) * stride + c] =
            s.coefficients[static_cast<std::size_t>((c * s.segments + i) * width + j)];
      }
    }
    const float* first = s.coefficients.data() + c * s.segments * width;
    limits[c] = limit(first, s.degree, -1.0f);
    limits[stride + c] = limit(first + knots * width, s.degree, 1.0f);
  }
  interleaved_ = {s.channels, stride, s.segments, s.degree, k, o, coefficients, limits};
}

}  // namespace actx
