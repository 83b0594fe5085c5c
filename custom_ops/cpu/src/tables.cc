#include "tables.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <new>

namespace actx {

namespace {

constexpr int kMaxDegree = 3, kMaxSegmentsOfHighDegree = 4, kMaxHighDegree = 16;
constexpr std::size_t kCacheLine = 64;
constexpr double kLargestBucket = 0x1p20;
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> finite(const Attributes& attributes, const std::string& name) {
  auto values = attributes.numbers(name.c_str());
  if (!values) throw Error("the attribute '" + name + "' is missing");
  for (float value : *values) {
    if (!std::isfinite(value)) throw Error("the attribute '" + name + "' must be finite, got " + std::to_string(value));
  }
  return *std::move(values);
}

void check_size(const std::string& name, std::size_t got, std::int64_t expected) {
  if (static_cast<std::int64_t>(got) != expected) {
    throw Error("the attribute '" + name + "' must have " + std::to_string(expected) + " values, got " +
                std::to_string(got));
  }
}

void check_size_of_table(int segments, int degree) {
  const bool low = segments <= kMaxSegments && degree <= kMaxDegree;
  const bool high = segments <= kMaxSegmentsOfHighDegree && degree <= kMaxHighDegree;
  if (!low && !high) {
    throw Error("a spline has at most 32 segments of degree 3 or 4 of degree 16, got " + std::to_string(segments) +
                " of degree " + std::to_string(degree));
  }
}

void check_ascending(const SplineAttributes& s, const std::string& name) {
  const int knots = s.segments - 1;
  for (std::int64_t c = 0; c < s.channels; ++c) {
    for (int i = 1; i < knots; ++i) {
      const float* k = s.knots.data() + c * knots + i;
      if (!(k[-1] < k[0])) throw Error("the attribute '" + name + "' must ascend strictly");
    }
  }
}

int degree_of(const Attributes& attributes, const std::string& name) {
  const auto degree = attributes.integer(name.c_str());
  if (!degree) throw Error("the attribute '" + name + "' is missing");
  if (*degree < 0 || *degree > kMaxHighDegree) {
    throw Error("the attribute '" + name + "' must be between 0 and 16, got " + std::to_string(*degree));
  }
  return static_cast<int>(*degree);
}

}  // namespace

SplineAttributes read_spline(const Attributes& attributes, std::int64_t channels, const std::string& prefix,
                             std::int64_t entries) {
  SplineAttributes s;
  s.channels = channels;
  s.degree = degree_of(attributes, prefix + "degree");
  s.knots = finite(attributes, prefix + "knots");
  s.coefficients = finite(attributes, prefix + "coefficients");
  s.origins = finite(attributes, prefix + "origins");
  const auto size = static_cast<std::int64_t>(s.origins.size());
  if (channels < 1 || size < channels || size % channels != 0) {
    throw Error("the attribute '" + prefix + "origins' must have the same number of values for each of " +
                std::to_string(channels) + " channels, 1 or more, got " + std::to_string(size));
  }
  if (size / channels > kMaxSegments) check_size_of_table(kMaxSegments + 1, s.degree);
  s.segments = static_cast<int>(size / channels);
  check_size_of_table(s.segments, s.degree);
  check_size(prefix + "knots", s.knots.size(), channels * (s.segments - 1));
  if (entries > static_cast<std::int64_t>(s.coefficients.size())) {
    throw Error("there are " + std::to_string(entries) + " entries, and the attribute '" + prefix + "coefficients' has only " +
                std::to_string(s.coefficients.size()) + " values");
  }
  check_size(prefix + "coefficients", s.coefficients.size(), size * (s.degree + 1) * entries);
  check_ascending(s, prefix + "knots");
  return s;
}

float limit(const float* coefficients, int degree, float sign) {
  for (int power = degree; power > 0; --power) {
    if (coefficients[power] != 0) return coefficients[power] * (power % 2 == 1 ? sign : 1.0f) > 0 ? kInfinity : -kInfinity;
  }
  return coefficients[0];
}

FloatArray::FloatArray(std::size_t count) {
  const std::size_t bytes = (count * sizeof(float) + kCacheLine - 1) / kCacheLine * kCacheLine;
  data_.reset(static_cast<float*>(std::aligned_alloc(kCacheLine, std::max(bytes, kCacheLine))));
  if (!data_) throw std::bad_alloc();
  std::fill_n(data_.get(), count, 0.0f);
}

void FloatArray::Free::operator()(float* p) const { std::free(p); }

PreparedSpline::PreparedSpline(const float* knots, const float* origins, int segments, int degree, const Kernels& kernels,
                               std::string_view kernel)
    : segments_(segments), degree_(degree), knots_(kMaxSegments), levels_(kLevels * kLevelStride), origins_(kMaxSegments) {
  for (std::size_t i = 0; i < kernels.spline_count && kernel_ == nullptr; ++i) {
    const SplineKernel& row = kernels.splines[i];
    table_.width = row.width;
    const bool asked = kernel.empty() || kernel == row.name;
    if (asked && row.takes(row.index, segments, degree) && place(knots, row.index)) kernel_ = &row;
  }
  if (kernel_ == nullptr) {
    throw Error("the kernel '" + std::string(kernel) + "' of " + kernels.isa + " does not take a table of " +
                std::to_string(segments) + " segments of degree " + std::to_string(degree) + " with these knots");
  }
  table_.degree = std::max({degree, kernel_->degree, 1});
  for (int entry = 0; entry < table_.width; ++entry) {
    origins_.data()[entry] = origins[segments_of_[static_cast<std::size_t>(entry)]];
    knots_.data()[entry] = entry < segments - 1 ? knots[entry] : kInfinity;
  }
  fill_levels();
  table_.has_origins = std::any_of(origins, origins + segments, [](float origin) { return origin != 0; });
  table_.knots = knots_.data();
  table_.levels = levels_.data();
  table_.origins = origins_.data();
  table_.buckets = buckets_.data();
}

// The knots that part the segments in halves, then those that part each half, and so on.
void PreparedSpline::fill_levels() {
  const int all = table_.width > 16 ? 32 : table_.width;
  for (int level = 0; (2 << level) <= all; ++level) {
    const int part = all >> level;
    for (int i = 0; i < (1 << level); ++i) {
      const int knot = i * part + part / 2 - 1;
      levels_.data()[level * kLevelStride + i] = knot < segments_ - 1 ? knots_.data()[knot] : kInfinity;
    }
  }
}

bool PreparedSpline::place(const float* knots, Index index) {
  table_.index = index;
  table_.low = -kLargest;
  table_.high = kLargest;
  for (int entry = 0; entry < kMaxSegments; ++entry) segments_of_[static_cast<std::size_t>(entry)] = std::min(entry, segments_ - 1);
  return index == Index::kDirect ? place_direct(knots) : index == Index::kBuckets ? place_buckets(knots) : true;
}

// The widest buckets of 2^e <= 1 whose ends are the knots. Their inverse is at least 1, so its product with x is exact.
bool PreparedSpline::place_direct(const float* knots) {
  const int count = segments_ - 1, width = table_.width;
  if (count < 1) return false;
  for (float scale = 1.0f; scale <= 0x1p20f; scale *= 2) {
    const double first = static_cast<double>(knots[0]) * scale, last = static_cast<double>(knots[count - 1]) * scale;
    if (last - first > width - 2 || std::max(std::fabs(first), std::fabs(last)) > kLargestBucket) return false;
    const auto is_whole = [scale](float x) { return static_cast<double>(x) * scale == std::floor(static_cast<double>(x) * scale); };
    if (!std::all_of(knots, knots + count, is_whole)) continue;
    table_.scale = scale;
    table_.low = static_cast<float>((first - 1) / scale);
    table_.high = knots[count - 1];
    for (int entry = 0; entry < width; ++entry) {
      const int bucket = static_cast<int>(first) - 1 + entry;
      const auto beyond = std::upper_bound(knots, knots + count, static_cast<float>(bucket / static_cast<double>(scale)));
      segments_of_[static_cast<std::size_t>(bucket & (width - 1))] = static_cast<int>(beyond - knots);
    }
    return true;
  }
  return false;
}

// The widest buckets of 2^e that part the knots. Floor is monotone, so a bucket without a knot lies in one segment,
// and one with a knot in two, whatever the rounding of the product.
bool PreparedSpline::place_buckets(const float* knots) {
  const int count = segments_ - 1;
  if (count < 1) return false;
  for (int i = 0; i < count; ++i) {
    if (knots[i] != 0 && std::fabs(knots[i]) < 0x1p-100f) return false;  // their products may underflow
  }
  for (float scale = 0x1p-10f; scale <= 0x1p20f; scale *= 2) {
    const auto bucket = [scale](float x) { return std::floor(static_cast<double>(x) * scale); };
    const double first = bucket(knots[0]), last = bucket(knots[count - 1]);
    if (last - first > kBucketCount - 3 || std::max(std::fabs(first), std::fabs(last)) > kLargestBucket) return false;
    bool parted = true;
    for (int i = 1; i < count; ++i) parted = parted && bucket(knots[i]) > bucket(knots[i - 1]);
    if (!parted) continue;
    table_.scale = scale;
    table_.low = static_cast<float>((first - 1) / scale);
    table_.high = static_cast<float>((last + 1) / scale);
    buckets_.assign(kBucketCount, 0);
    for (int b = static_cast<int>(first) - 1; b <= static_cast<int>(last) + 1; ++b) {
      int below = 0;
      while (below < count && bucket(knots[below]) < b) ++below;
      buckets_[static_cast<std::size_t>(b & (kBucketCount - 1))] = static_cast<std::uint8_t>(below);
    }
    return true;
  }
  return false;
}

void PreparedSpline::fill(const float* coefficients, float* rows) const {
  const int width = table_.width;
  for (int entry = 0; entry < width; ++entry) {
    const int segment = segments_of_[static_cast<std::size_t>(entry)];
    for (int power = 0; power <= table_.degree; ++power) {
      rows[power * width + entry] = power <= degree_ ? coefficients[segment * (degree_ + 1) + power] : 0.0f;
    }
  }
}

SplineTable PreparedSpline::with(const float* rows) const {
  const auto tail = [this, rows](int segment) {
    const auto entry = std::find(segments_of_.begin(), segments_of_.end(), segment) - segments_of_.begin();
    std::array<float, kMaxHighDegree + 1> coefficients{};
    for (int power = 0; power <= table_.degree; ++power) {
      coefficients[static_cast<std::size_t>(power)] = rows[power * table_.width + entry];
    }
    return coefficients;
  };
  const auto left = tail(0), right = tail(segments_ - 1);
  const auto vanish = [](const auto& c, std::ptrdiff_t from) {
    return std::all_of(c.begin() + from, c.end(), [](float value) { return value == 0; });
  };
  SplineTable table = table_;
  table.coefficients = rows;
  table.at_minus_infinity = limit(left.data(), table.degree, -1.0f);
  table.at_infinity = limit(right.data(), table.degree, 1.0f);
  table.is_open = vanish(left, 1) && vanish(right, 2) && right[1] != 0;
  return table;
}

}  // namespace actx
