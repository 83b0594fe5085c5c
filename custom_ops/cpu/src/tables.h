// From the attributes of a spline to the table that a kernel reads.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels.h"
#include "op.h"

namespace actx {

// The attributes of a spline, checked. With channels the arrays have a leading dimension C.
struct SplineAttributes {
  std::int64_t channels = 1;
  int segments = 0;
  int degree = 0;
  std::vector<float> knots;         // [C, segments - 1]
  std::vector<float> origins;       // [C, segments]
  std::vector<float> coefficients;  // [entries, C, segments, degree + 1]
};

// Reads `prefix`degree, `prefix`knots, `prefix`coefficients and `prefix`origins, with one table for each channel, and
// coefficients for each entry. Throws
// Error for what is missing, does not fit together, is not finite, or more than kernels have.
SplineAttributes read_spline(const Attributes& attributes, std::int64_t channels, const std::string& prefix = "",
                             std::int64_t entries = 1);

// The value of a tail with ascending coefficients at an infinity of this sign: the offset where all powers vanish.
float limit(const float* coefficients, int degree, float sign);

// A number of floats that starts at a cache line.
class FloatArray {
 public:
  explicit FloatArray(std::size_t count);
  float* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(float* p) const;
  };
  std::unique_ptr<float, Free> data_;
};

// The knots of a spline with the row that runs it. The coefficients are given apart: `SplineMix` has several sets of them.
class PreparedSpline {
 public:
  // Takes the first row that fits, or the one that is named. Throws Error where that does not fit.
  PreparedSpline(const float* knots, const float* origins, int segments, int degree, const Kernels& kernels,
                 std::string_view kernel);

  const SplineKernel& kernel() const { return *kernel_; }
  // Number of floats of a kernel's coefficients, [degree + 1, width].
  std::size_t size() const { return static_cast<std::size_t>(table_.degree + 1) * static_cast<std::size_t>(table_.width); }
  // Writes them from [segments, degree + 1] ascending powers.
  void fill(const float* coefficients, float* rows) const;
  // A table over such rows, which it refers to.
  SplineTable with(const float* rows) const;

 private:
  bool place(const float* knots, Index index);
  void fill_levels();
  bool place_direct(const float* knots);
  bool place_buckets(const float* knots);

  const SplineKernel* kernel_ = nullptr;
  SplineTable table_;
  int segments_;
  int degree_;  // of the attributes; the kernel may have a larger one
  std::array<int, kMaxSegments> segments_of_{};  // of the entries
  FloatArray knots_, levels_, origins_;
  std::vector<std::uint8_t> buckets_;
};

}  // namespace actx
