// From the attributes of a spline to the table that a kernel reads.
#pragma once

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
  bool per_channel = false;
  std::int64_t axis = 0;  // of the channels; may be negative
  int segments = 0;
  int degree = 0;
  std::vector<float> knots;         // [C, segments - 1]
  std::vector<float> origins;       // [C, segments]
  std::vector<float> coefficients;  // [C, segments, degree + 1]
};

// Reads `prefix`degree, `prefix`knots, `prefix`coefficients and `prefix`origins; with `channels`, one table for each. Throws
// Error for what is missing, does not fit together, is not finite, or more than kernels have.
SplineAttributes read_spline(const Attributes& attributes, std::int64_t channels, const std::string& prefix = "");

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

// A table for one spline, with the row that runs it. Coefficients may be set anew (`SplineMix`).
class PreparedSpline {
 public:
  // Takes the first row that fits, or the one that is named. Throws Error where that does not fit.
  PreparedSpline(const float* knots, const float* origins, int segments, int degree, const Kernels& kernels,
                 std::string_view kernel);

  const SplineKernel& kernel() const { return *kernel_; }
  const SplineTable& table() const { return table_; }
  // Entries of a row of coefficients: a kernel's arrays are [degree + 1, width].
  int width() const { return table_.width; }
  // Position of a segment in a row of the arrays.
  int entry(int segment) const { return (first_ + segment) & (table_.width - 1); }

  // Fills all entries of [degree + 1, width] and both limits from [segments, degree + 1] ascending powers.
  void set_coefficients(const float* coefficients);

 private:
  bool place(const float* knots, Index index);
  bool place_direct(const float* knots);
  bool place_buckets(const float* knots);

  const SplineKernel* kernel_ = nullptr;
  SplineTable table_;
  int segments_;
  int degree_;  // of the attributes; the kernel may have a larger one
  int first_ = 0;
  FloatArray knots_, origins_, coefficients_;
  std::vector<std::uint8_t> buckets_;
};

}  // namespace actx
