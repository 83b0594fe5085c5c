// Attention of codes, softmax(scale * (Q - zq) (K - zk)^T + mask) (V - zv), as codes. Scores and weights stay in the first
// cache: nothing of [queries, keys] is stored, moved or rounded to codes of a scale that was calibrated.
//
// Products are of integers and exact, the largest weight of a row is the code 255, and each step in float32 is defined
// (custom_ops/ops/qattention.py), so that all kernels give the same.
#include <cmath>
#include <vector>

#include "codes.h"
#include "ops.h"

namespace actx {
namespace {

constexpr float kLargestFactor = 2e38f;  // finite also times log2(e)
constexpr std::int64_t kProductsPerElement = 16;  // that take as long as an element of the cheapest kernel

class QAttention final : public Op {
 public:
  QAttention(std::int64_t heads, const AttentionTable& table, const Kernels& kernels)
      : kernels_(kernels), heads_(heads), table_(table) {}

  const char* kernel() const override { return "attention"; }

  Type output_type(Inputs inputs) const override {
    constexpr const char* kNames[] = {"Q", "K", "V", "the mask"};
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const bool is_mask = i == kMask;
      if ((!is_mask || inputs[i].present) && inputs[i].type != (is_mask ? Type::kFloat : Type::kUint8)) {
        throw Error(std::string(kNames[i]) + " must be " + (is_mask ? "float32" : "uint8") + ", got the ONNX type " +
                    std::to_string(static_cast<int>(inputs[i].type)));
      }
    }
    return Type::kUint8;
  }

  Shape output_shape(Inputs inputs) const override {
    const Shape &q = inputs[0].shape, &k = inputs[1].shape, &v = inputs[2].shape;
    const bool fit = q.size() == 3 && k.size() == 3 && v.size() == 3 && k[0] == q[0] && v[0] == q[0] && k[2] == q[2] &&
                     v[1] == k[1] && q[2] % heads_ == 0 && v[2] % heads_ == 0;
    if (!fit) {
      throw Error("Q, K and V must be [batch, queries, heads * size], [batch, keys, heads * size] and [batch, keys, heads * "
                  "value size] for " + std::to_string(heads_) + " heads, got " + to_string(q) + ", " + to_string(k) + " and " +
                  to_string(v));
    }
    if (inputs[kMask].present) mask_strides(inputs);
    return {q[0], q[1], v[2]};
  }

  void run(Inputs inputs, void* output, const Parallel& parallel) const override {
    const Shape &q = inputs[0].shape, &v = inputs[2].shape;
    AttentionTable table = table_;
    table.queries = q[1], table.keys = v[1];
    table.size = q[2] / heads_, table.value_size = v[2] / heads_;
    table.q_stride = table.k_stride = q[2];
    table.v_stride = table.y_stride = v[2];
    auto* const y = static_cast<std::uint8_t*>(output);
    const std::int64_t batches = q[0], outputs = batches * table.queries * v[2];
    if (outputs == 0) return;
    if (table.keys == 0) {
      std::fill_n(y, outputs, static_cast<std::uint8_t>(table.y_zero_point));
      return;
    }
    Shape strides(4);
    if (inputs[kMask].present) strides = mask_strides(inputs);
    table.mask_row = strides[2], table.mask_column = strides[3];
    const auto at = [&](std::size_t input, std::int64_t element) {
      return static_cast<const std::uint8_t*>(inputs[input].data) + element;
    };
    const std::int64_t cost = table.queries * table.keys * (table.size + table.value_size) / kProductsPerElement;
    for_range(parallel, batches * heads_, cost, [&](std::int64_t first, std::int64_t last) {
      Memory memory(table);
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t batch = i / heads_, head = i % heads_;
        AttentionTable one = table;
        if (inputs[kMask].present) {
          one.mask = static_cast<const float*>(inputs[kMask].data) + batch * strides[0] + head * strides[1];
        }
        kernels_.attention(one, at(0, batch * one.queries * one.q_stride + head * one.size),
                           at(1, batch * one.keys * one.k_stride + head * one.size),
                           at(2, batch * one.keys * one.v_stride + head * one.value_size),
                           y + batch * one.queries * one.y_stride + head * one.value_size, memory.scratch());
      }
    });
  }

 private:
  static constexpr std::size_t kMask = 3;

  class Memory {
   public:
    explicit Memory(const AttentionTable& t)
        : keys_(count(places_of(t.keys, kPanel) * places_of(t.size, 2))),
          values_(count(places_of(t.value_size, kPanel) * places_of(t.keys, 2))),
          queries_(count(kQueries * places_of(t.size, 2))),
          sums_(count(kQueries * places_of(t.keys, kPanel))),
          scores_(count(places_of(t.keys, kPanel))),
          weights_(count(kQueries * places_of(t.keys, kPanel))) {}
    AttentionScratch scratch() {
      return {keys_.data(), values_.data(), queries_.data(), sums_.data(), scores_.data(), weights_.data()};
    }

   private:
    static std::size_t count(std::int64_t size) { return static_cast<std::size_t>(size); }
    std::vector<std::int16_t> keys_, values_, queries_;
    std::vector<std::int32_t> sums_;
    std::vector<float> scores_;
    std::vector<std::int16_t> weights_;
  };

  // Elements from one batch, head, query and key of the mask to the next: 0 where it is the same for all.
  Shape mask_strides(Inputs inputs) const {
    const Shape& mask = inputs[kMask].shape;
    const Shape scores = {inputs[0].shape[0], heads_, inputs[0].shape[1], inputs[1].shape[1]};
    Shape strides(4);
    std::int64_t stride = 1;
    for (std::size_t i = 0; i < mask.size(); ++i) {
      const std::int64_t size = mask[mask.size() - 1 - i];
      if (i >= 4 || (size != 1 && size != scores[3 - i])) {
        throw Error("the mask must be one for scores of shape " + to_string(scores) + ", got " + to_string(mask));
      }
      strides[3 - i] = size == 1 ? 0 : stride;
      stride *= size;
    }
    return strides;
  }

  const Kernels& kernels_;
  std::int64_t heads_;
  AttentionTable table_;
};

}  // namespace

std::unique_ptr<Op> create_qattention(const Attributes& attributes, const Kernels& kernels, std::string_view) {
  const auto code = [&](const char* name) {
    const std::int64_t value = attributes.integer(name).value_or(0);
    if (value < 0 || value > 255) {
      throw Error("the attribute '" + std::string(name) + "' must be from 0 to 255, got " + std::to_string(value));
    }
    return static_cast<std::int32_t>(value);
  };
  const auto factor = [&](const char* name) {
    const float value = attributes.number(name).value_or(1);
    if (!(std::fabs(value) <= kLargestFactor)) {
      throw Error("the attribute '" + std::string(name) + "' must be at most 2e38 in magnitude, got " + std::to_string(value));
    }
    return value;
  };
  const std::int64_t heads = attributes.integer("heads").value_or(0);
  if (heads < 1) throw Error("the attribute 'heads' must be 1 or more, got " + std::to_string(heads));
  AttentionTable table;
  table.q_zero_point = code("q_zero_point");
  table.k_zero_point = code("k_zero_point");
  table.v_zero_point = code("v_zero_point");
  table.y_zero_point = code("y_zero_point");
  table.scale = factor("scale") * kLog2E;
  table.output_scale = factor("output_scale");
  return std::make_unique<QAttention>(heads, table, kernels);
}

}  // namespace actx
