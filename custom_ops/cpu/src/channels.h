// The tables of a spline per channel, for both ways that channels can lie in memory.
#pragma once

#include <vector>

#include "tables.h"

namespace actx {

class ChannelSplines {
 public:
  // `last_axis`: whether the channels are known to be the last axis, so that no table is needed for whole rows of one channel.
  ChannelSplines(const SplineAttributes& spline, const Kernels& kernels, bool last_axis);

  // For elements of all channels in turn.
  const ChannelTables& interleaved() const { return interleaved_; }
  // For elements of one channel.
  const SplineKernel& kernel(std::int64_t channel) const { return splines_[static_cast<std::size_t>(channel)].kernel(); }
  SplineTable table(std::int64_t channel) const;

 private:
  void interleave(const SplineAttributes& spline);

  ChannelTables interleaved_;
  FloatArray arrays_;
  std::vector<PreparedSpline> splines_;
  std::vector<FloatArray> rows_;
};

}  // namespace actx
