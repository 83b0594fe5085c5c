// Y = table[X] for eight-bit codes, with one table for all elements or one per channel.
#include <array>
#include <optional>
#include <vector>

#include "codes.h"
#include "ops.h"

namespace actx {

namespace {

class Lut final : public Op {
 public:
  Lut(std::vector<std::int64_t> table, std::int64_t channels, std::optional<std::int64_t> axis, std::optional<Type> to,
      const Kernels& kernels)
      : kernels_(kernels), entries_(std::move(table)), channels_(channels), axis_(axis), to_(to) {
    for (std::size_t type : {0, 1}) {
      tables_[type].resize(entries_.size());
      for (std::size_t i = 0; i < entries_.size(); ++i) {
        const std::size_t code = i % kCodes ^ (type == 0 ? 0 : kSmallestSigned);
        tables_[type][i / kCodes * kCodes + code] = static_cast<std::uint8_t>(entries_[i]);
      }
    }
  }

  const char* kernel() const override { return "lut"; }

  Type output_type(Inputs inputs) const override {
    check_codes(inputs[0], "X");
    const Type type = to_.value_or(inputs[0].type);
    check_range(entries_, type);
    return type;
  }

  Shape output_shape(Inputs inputs) const override {
    const Shape& shape = inputs[0].shape;
    if (axis_) {
      const std::int64_t got = shape[normalized_axis(*axis_, shape)];
      if (got != channels_) {
        throw Error("axis " + std::to_string(*axis_) + " of X has " + std::to_string(got) + " elements, the table has " +
                    std::to_string(channels_) + " channels");
      }
    }
    return shape;
  }

  void run(Inputs inputs, void* output, const Parallel& parallel) const override {
    const Tensor& x = inputs[0];
    const std::uint8_t* tables = tables_[x.type == Type::kUint8 ? 0 : 1].data();
    const auto* in = static_cast<const std::uint8_t*>(x.data);
    auto* const out = static_cast<std::uint8_t*>(output);
    const std::int64_t n = product(x.shape);
    if (!axis_) {
      return for_range(parallel, n, 1, [&](std::int64_t first, std::int64_t last) {
        kernels_.lut(tables, in + first, out + first, last - first);
      });
    }
    if (n == 0) return;
    const std::size_t axis = normalized_axis(*axis_, x.shape);
    const std::int64_t inner = product(x.shape, axis + 1, x.shape.size());
    for_range(parallel, n / inner, inner, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t row = first; row < last; ++row) {
        const std::uint8_t* table = tables + row % channels_ * static_cast<std::int64_t>(kCodes);
        if (inner == 1) {
          out[row] = table[in[row]];
        } else {
          kernels_.lut(table, in + row * inner, out + row * inner, inner);
        }
      }
    });
  }

 private:
  // Throws Error where an entry is no code of the type.
  static void check_range(const std::vector<std::int64_t>& entries, Type type) {
    for (std::int64_t entry : entries) {
      if (entry < smallest_code(type) || entry > largest_code(type)) {
        throw Error("an entry of the table is " + std::to_string(entry) + ", the output's codes go from " +
                    std::to_string(smallest_code(type)) + " to " + std::to_string(largest_code(type)));
      }
    }
  }

  const Kernels& kernels_;
  std::vector<std::int64_t> entries_;
  std::int64_t channels_;
  std::optional<std::int64_t> axis_;
  std::optional<Type> to_;
  std::array<std::vector<std::uint8_t>, 2> tables_;  // by bit pattern of an unsigned and of a signed code
};

}  // namespace

std::unique_ptr<Op> create_lut(const Attributes& attributes, const Kernels& kernels, std::string_view) {
  const auto axis = attributes.integer("axis"), channels = attributes.integer("channels");
  if (axis.has_value() != channels.has_value()) throw Error("the attributes 'axis' and 'channels' come together");
  const std::int64_t count = channels.value_or(1);
  auto table = attributes.integers("table");
  if (!table) throw Error("the attribute 'table' is missing");
  const auto size = static_cast<std::int64_t>(table->size());
  if (count < 1 || size % static_cast<std::int64_t>(kCodes) != 0 || size / static_cast<std::int64_t>(kCodes) != count) {
    throw Error("the attribute 'table' must have 256 values for each of " + std::to_string(count) + " channels, got " +
                std::to_string(size));
  }
  return std::make_unique<Lut>(*std::move(table), count, axis, read_code_type(attributes), kernels);
}

}  // namespace actx
