#include "op.h"

#include "ops/ops.h"

namespace actx {

namespace {

constexpr std::int64_t kMaxElements = std::int64_t{1} << 56;  // no machine addresses more bytes

bool is_possible(const Shape& shape) {
  std::int64_t count = 1;
  for (const std::int64_t size : shape) {
    if (size < 0 || size > kMaxElements / count) return false;
    count *= size == 0 ? 1 : size;
  }
  return true;
}

}  // namespace

Inputs::Inputs(const Tensor* tensors, std::size_t count) : tensors_(tensors), count_(count) {
  for (std::size_t i = 0; i < count; ++i) {
    if (!is_possible(tensors[i].shape)) {
      throw Error("input " + std::to_string(i) + " has a shape that no array has, " + to_string(tensors[i].shape));
    }
  }
}

const std::vector<OpInfo>& op_infos() {
  static const std::vector<Type> floats = {Type::kFloat, Type::kFloat16, Type::kBfloat16};
  static const std::vector<Type> codes = {Type::kUint8, Type::kInt8};
  static const std::vector<Type> linear = {Type::kInt8, Type::kInt32, Type::kFloat};  // weights, bias, scales
  static const std::vector<OpInfo> infos = {
      {"Spline", 1, 1, floats, create_spline},          {"GatedSpline", 1, 0, floats, create_gated_spline, false},
      {"SplineMix", 2, 1, floats, create_spline_mix},   {"PolyNorm", 3, 1, floats, create_poly_norm},
      {"Lut", 1, 0, codes, create_lut},                 {"GatedLut", 2, 0, codes, create_gated_lut},
      {"QLinear", 4, 0, {Type::kUint8}, create_qlinear, false, linear, Type::kUint8, false},
      {"QAttention", 3, 1, {Type::kUint8}, create_qattention, false, {Type::kUint8, Type::kUint8, Type::kFloat}, Type::kUint8, false},
      {"QLinearToFloat", 4, 0, {Type::kUint8}, create_qlinear_to_float, false, linear, Type::kFloat, false},
  };
  return infos;
}

const OpInfo& op_info(std::string_view op_type) {
  for (const OpInfo& info : op_infos()) {
    if (op_type == info.name) return info;
  }
  throw Error("the domain actx has no op '" + std::string(op_type) + "'");
}

}  // namespace actx
