// The launch of a node that was compiled for GPUs: custom_ops/ops/cuda.py says what its attributes mean.
//
// 1. The shape of the output gives rows, columns and channels, these the kernel's integers and the grid.
// 2. Of the images it takes one for the device's own compute capability, else the newest PTX that is not newer than it.
// 3. A kernel that reads by 16 bytes is taken where the number of columns is a multiple of 16, and where there is one.
// 4. What a context needs, an image and the table, is loaded at its first launch and freed with the launcher.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "driver.h"
#include "op.h"
#include "shape.h"

namespace actx::cuda {

// Code for one compute capability, of the kernel that reads by 16 bytes or of the one that does not.
struct Image {
  std::int64_t architecture;
  bool aligned;
  unsigned shared_bytes;
  const char* data;
  bool ptx;
};

class Launcher {
 public:
  // Throws Error where an attribute is missing or does not fit, or there is no driver.
  explicit Launcher(const Attributes& attributes);
  ~Launcher();

  // Launch on a stream; an empty output needs no launch. Several threads may launch at once. Throws Error.
  void launch(const Inputs& inputs, const Shape& shape, void* output, Stream stream) const;

 private:
  struct Loaded;
  struct Sizes;

  Sizes sizes_of(const Shape& shape) const;
  const Image& image_for(std::int64_t architecture, bool aligned) const;
  Loaded& loaded_in(Context context) const;
  Function function_in(Loaded& loaded, const Image& image) const;

  std::vector<char> code_;
  std::vector<Image> images_;
  std::string symbol_;
  unsigned threads_;
  std::vector<char> table_;
  std::vector<std::int64_t> places_;  // of the inputs that the kernel takes
  std::int64_t rows_;                 // how many of the output's dimensions are rows; from the end where it is negative
  std::optional<std::int64_t> channel_axis_;
  std::vector<std::int64_t> tile_;
  std::size_t integers_;
  mutable std::mutex mutex_;
  mutable std::map<Context, std::unique_ptr<Loaded>> loaded_;
};

}  // namespace actx::cuda
