// Y = saturate(round(table[X] * (U - u_zero_point)) + y_zero_point): an activation times a factor, both quantized. The product
// is formed in float32 and rounded to nearest, ties to even: that is the definition, so that all kernels give the same codes.
#include <cmath>
#include <optional>
#include <vector>

#include "codes.h"
#include "ops.h"

namespace actx {

namespace {

class GatedLut final : public Op {
 public:
  GatedLut(std::vector<float> products, std::int64_t u_zero_point, std::int64_t y_zero_point, std::optional<Type> to,
           const Kernels& kernels)
      : kernels_(kernels), products_(std::move(products)), u_zero_point_(u_zero_point), y_zero_point_(y_zero_point), to_(to) {}

  const char* kernel() const override { return "gated_lut"; }

  Type output_type(Inputs inputs) const override {
    check_codes(inputs[0], "X");
    check_codes(inputs[1], "U");
    const Type type = to_.value_or(inputs[0].type);
    check_zero_point("u_zero_point", u_zero_point_, inputs[1].type);
    check_zero_point("y_zero_point", y_zero_point_, type);
    return type;
  }

  Shape output_shape(Inputs inputs) const override {
    check_same_shape(inputs[0], inputs[1], "U");
    return inputs[0].shape;
  }

  void run(Inputs inputs, void* output, const Parallel& parallel) const override {
    const GatedTable table = make_table(inputs[0].type, inputs[1].type);
    const auto* x = static_cast<const std::uint8_t*>(inputs[0].data);
    const auto* u = static_cast<const std::uint8_t*>(inputs[1].data);
    auto* const y = static_cast<std::uint8_t*>(output);
    for_range(parallel, product(inputs[0].shape), 4, [&](std::int64_t first, std::int64_t last) {
      kernels_.gated_lut(table, x + first, u + first, y + first, last - first);
    });
  }

 private:
  static void check_zero_point(const char* name, std::int64_t value, Type type) {
    if (value < smallest_code(type) || value > largest_code(type)) {
      throw Error("the attribute '" + std::string(name) + "' is " + std::to_string(value) + ", the codes go from " +
                  std::to_string(smallest_code(type)) + " to " + std::to_string(largest_code(type)));
    }
  }

  GatedTable make_table(Type x, Type u) const {
    const Type y = to_.value_or(x);
    GatedTable table{};
    const std::size_t flip = x == Type::kInt8 ? kSmallestSigned : 0;
    for (std::size_t i = 0; i < kCodes; ++i) table.products[i ^ flip] = products_[i];
    table.u_flip = u == Type::kInt8 ? static_cast<std::int32_t>(kSmallestSigned) : 0;
    table.u_zero_point = static_cast<std::int32_t>(u_zero_point_ - smallest_code(u));
    table.y_zero_point = static_cast<std::int32_t>(y_zero_point_);
    table.y_low = static_cast<std::int32_t>(smallest_code(y));
    table.y_high = static_cast<std::int32_t>(largest_code(y));
    return table;
  }

  const Kernels& kernels_;
  std::vector<float> products_;
  std::int64_t u_zero_point_, y_zero_point_;
  std::optional<Type> to_;
};

}  // namespace

std::unique_ptr<Op> create_gated_lut(const Attributes& attributes, const Kernels& kernels, std::string_view) {
  auto table = attributes.numbers("table");
  if (!table) throw Error("the attribute 'table' is missing");
  if (table->size() != kCodes) throw Error("the attribute 'table' must have 256 values, got " + std::to_string(table->size()));
  for (float value : *table) {
    if (!std::isfinite(value)) throw Error("the attribute 'table' must be finite, got " + std::to_string(value));
  }
  return std::make_unique<GatedLut>(*std::move(table), attributes.integer("u_zero_point").value_or(0),
                                    attributes.integer("y_zero_point").value_or(0), read_code_type(attributes), kernels);
}

}  // namespace actx
