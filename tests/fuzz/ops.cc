// Hands random attributes, shapes, types and numbers to one operator of a library of CPU kernels.
//
//   ops LIBRARY OP FIRST COUNT SECONDS
//
// makes the nodes FIRST, FIRST + 1, ... and calls each with 64 sets of inputs, until COUNT executions are made or SECONDS are over.
// An execution is a call, or a node that is refused; a node and its inputs depend on the operator and the node's number alone.
// It prints how many nodes it made, how many executions that were, and how many of these were refused neither for the node nor for
// its inputs. The library and this program are built with sanitizers, which end the process at a wrong address or undefined
// behaviour; the number of the node is printed then. A node may take 10 seconds and allocate what ASAN_OPTIONS allows.
#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "actx_ops.h"

extern "C" void __sanitizer_set_death_callback(void (*callback)());

namespace {

constexpr unsigned kSecondsPerNode = 10;
constexpr int kCallsPerNode = 64;
constexpr std::int64_t kMaxElements = 1 << 13;
unsigned long long current = 0;

void report() { std::fprintf(stderr, "node %llu\n", current); }

[[noreturn]] void report_time(int) {
  report();
  std::_Exit(3);
}

template <typename Function>
Function* get(void* library, Function*, const char* name) {
  void* found = dlsym(library, name);
  if (found == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    std::exit(2);
  }
  return reinterpret_cast<Function*>(found);
}

// splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0xbf58476d1ce4e5b9u) {}
  std::uint64_t bits() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  std::int64_t below(std::int64_t end) { return static_cast<std::int64_t>(bits() % static_cast<std::uint64_t>(end)); }
  bool one_in(std::int64_t n) { return below(n) == 0; }
  template <typename Item>
  const Item& of(const std::vector<Item>& items) {
    return items[static_cast<std::size_t>(below(static_cast<std::int64_t>(items.size())))];
  }

 private:
  std::uint64_t state_;
};

constexpr std::int64_t kLargest = std::numeric_limits<std::int64_t>::max();
const std::vector<std::int64_t> kOddIntegers = {-1,       -2,        0,         1,          2,           3,         16,
                                                17,       255,       256,       1 << 20,    kLargest,    -kLargest, -kLargest - 1,
                                                INT32_MAX, INT32_MIN, UINT32_MAX, std::int64_t{1} << 32, std::int64_t{1} << 62};
const std::vector<float> kOddFloats = {0.0f,
                                       -0.0f,
                                       1.0f,
                                       -1.0f,
                                       0.5f,
                                       1e-45f,
                                       -1e-40f,
                                       1e-30f,
                                       1.17549435e-38f,
                                       3.4028235e38f,
                                       -3.4028235e38f,
                                       65504.0f,
                                       1e10f,
                                       16777216.0f,
                                       std::numeric_limits<float>::infinity(),
                                       -std::numeric_limits<float>::infinity(),
                                       std::numeric_limits<float>::quiet_NaN()};

float any_float(Random& random) {
  if (random.one_in(4)) return random.of(kOddFloats);
  if (random.one_in(8)) {
    const auto bits = static_cast<std::uint32_t>(random.bits());
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  return static_cast<float>(static_cast<double>(random.below(1 << 16)) / 4096.0 - 8.0);
}

struct Attribute {
  std::string name;
  char kind;
  std::vector<float> floats;
  std::vector<std::int64_t> ints;
  std::string text;

  ActxAttribute view() const {
    if (kind == 'f') return {name.c_str(), floats.data(), nullptr, nullptr, floats.size()};
    if (kind == 'i') return {name.c_str(), nullptr, ints.data(), nullptr, ints.size()};
    return {name.c_str(), nullptr, nullptr, text.data(), text.size()};
  }
};

// The bytes end where the elements do, so that a sanitizer sees what is read or written behind them.
struct Tensor {
  std::int32_t type = 0;
  std::vector<std::int64_t> shape;
  std::unique_ptr<char[]> data;

  ActxTensor view() const { return {type, shape.size(), shape.data(), data.get()}; }
};

std::size_t size_of(std::int32_t type) { return type == 1 || type == 6 ? 4 : type == 2 || type == 3 ? 1 : 2; }

// The number of elements, or -1 where there is no such array, or none of a size to try.
std::int64_t elements(const std::vector<std::int64_t>& shape) {
  std::int64_t count = 1;
  bool empty = false;
  for (const std::int64_t size : shape) {
    if (size < 0) return -1;
    empty = empty || size == 0;
    count = count > kMaxElements || size > kMaxElements ? kMaxElements + 1 : count * size;
  }
  return empty ? 0 : count > kMaxElements ? -1 : count;
}

// A node as it should be, changed here and there.
class Node {
 public:
  Node(const std::string& op, Random& random) : op_(op), random_(random) {
    make_attributes();
    if (random_.one_in(8)) spoil_attributes();
  }

  // Makes other inputs.
  void draw_inputs() {
    inputs.clear();
    complete = true;
    make_inputs();
    if (random_.one_in(8)) spoil_inputs();
    fill();
  }

  std::vector<Attribute> attributes;
  std::vector<Tensor> inputs;
  bool complete = true;  // whether all inputs are arrays that exist

 private:
  void set(const std::string& name, std::int64_t value) { attributes.push_back({name, 'i', {}, {value}, {}}); }
  void set(const std::string& name, std::vector<float> values) { attributes.push_back({name, 'f', std::move(values), {}, {}}); }

  // --- attributes ---

  std::vector<float> ascending(std::int64_t count) {
    const float step = random_.one_in(2) ? 0.25f : random_.one_in(2) ? 1e-3f : 1e6f;
    std::vector<float> knots;
    float at = static_cast<float>(random_.below(64) - 32) * step;
    for (std::int64_t i = 0; i < count; ++i) {
      knots.push_back(at);
      at += step * static_cast<float>(1 + (random_.one_in(2) ? 0 : random_.below(5)));
      if (random_.one_in(32)) at += std::fabs(at) * 0.37f;
    }
    if (random_.one_in(16)) {
      for (float& knot : knots) knot = any_float(random_);
      std::sort(knots.begin(), knots.end());
    }
    return knots;
  }

  std::vector<float> numbers(std::int64_t count) {
    const bool odd = random_.one_in(16), zero = random_.one_in(4);
    std::vector<float> values;
    for (std::int64_t i = 0; i < count; ++i) {
      values.push_back(odd ? any_float(random_) : zero ? 0.0f : static_cast<float>(random_.below(4096)) / 512.0f - 4.0f);
    }
    return values;
  }

  void make_spline(const std::string& prefix, std::int64_t channels, std::int64_t entries = 1) {
    const bool high = random_.one_in(4);
    const std::int64_t segments = 1 + random_.below(high ? 4 : 32), degree = random_.below(high ? 17 : 4);
    std::vector<float> knots;
    for (std::int64_t c = 0; c < channels; ++c) {
      for (const float knot : ascending(segments - 1)) knots.push_back(knot);
    }
    set(prefix + "degree", degree);
    set(prefix + "knots", knots);
    set(prefix + "origins", random_.one_in(2) ? std::vector<float>(static_cast<std::size_t>(channels * segments), 0.0f)
                                              : numbers(channels * segments));
    set(prefix + "coefficients", numbers(entries * channels * segments * (degree + 1)));
  }

  void make_attributes() {
    axis_ = random_.one_in(2) ? -1 : random_.below(5) - 2;
    channels_ = random_.one_in(2) ? 1 + random_.below(6) : 0;
    entries_ = 1 + random_.below(6);
    if (op_ == "Spline" || op_ == "GatedSpline") {
      make_spline("", std::max<std::int64_t>(1, channels_));
      if (channels_ > 0) set("channels", channels_);
    }
    if (op_ == "Spline" && channels_ > 0) set("axis", axis_);
    if (op_ == "GatedSpline") {
      set("axis", axis_);
      set("gate", random_.below(2));
      attributes.push_back({"layout", 's', {}, {}, random_.one_in(2) ? "split" : "interleaved"});
      if (random_.one_in(2)) make_spline("other_", 1);
    }
    if (op_ == "SplineMix") {
      make_spline("", 1, entries_);
      set("entries", entries_);
    }
    if (op_ == "PolyNorm") set("epsilon", std::vector<float>{random_.one_in(8) ? any_float(random_) : 1e-6f});
    if (op_ == "Lut" || op_ == "GatedLut") {
      to_ = 2 + random_.below(2);
      if (random_.one_in(2)) set("to", to_);
    }
    if (op_ == "Lut") {
      if (channels_ > 0) {
        set("channels", channels_);
        set("axis", axis_);
      }
      Attribute table{"table", 'i', {}, {}, {}};
      for (std::int64_t i = 0; i < 256 * std::max<std::int64_t>(1, channels_); ++i) table.ints.push_back(random_.below(128));
      attributes.push_back(table);
    }
    if (op_ == "GatedLut") {
      set("table", numbers(256));
      set("u_zero_point", random_.below(128));
      set("y_zero_point", random_.below(128));
    }
    if (op_ == "QLinear") make_linear();
    if (op_ == "QAttention") make_attention();
  }

  void make_linear() {
    set("zero_point", random_.below(256));
    if (random_.one_in(2)) return;
    Attribute table{"table", 'i', {}, {}, {}};
    for (int i = 0; i < 256; ++i) table.ints.push_back(random_.below(256));
    attributes.push_back(table);
  }

  void make_attention() {
    set("heads", entries_);
    for (const char* name : {"q_zero_point", "k_zero_point", "v_zero_point", "y_zero_point"}) set(name, random_.below(256));
    for (const char* name : {"scale", "output_scale"}) {
      set(name, std::vector<float>{random_.one_in(8) ? any_float(random_) : static_cast<float>(random_.below(100)) * 1e-4f});
    }
  }

  void spoil_attributes() {
    for (int change = 0; change < 2 && !attributes.empty(); ++change) {
      Attribute& attribute = attributes[static_cast<std::size_t>(random_.below(static_cast<std::int64_t>(attributes.size())))];
      switch (random_.below(8)) {
        case 0:
          attribute.name = random_.of(attributes).name;
          break;
        case 1:
          attribute.kind = random_.of(std::vector<char>{'f', 'i', 's'});
          break;
        case 2:
          attributes.erase(attributes.begin() + (&attribute - attributes.data()));
          break;
        case 3:
          attributes.push_back({random_.of(std::vector<std::string>{"axis", "channels", "entries", "degree", "other_degree", "to"}),
                                'i', {}, {random_.of(kOddIntegers)}, {}});
          break;
        default:
          spoil_values(attribute);
      }
    }
  }

  void spoil_values(Attribute& attribute) {
    if (random_.one_in(3)) {
      const auto size = static_cast<std::size_t>(random_.below(300));
      attribute.floats.resize(size);
      attribute.ints.resize(size);
      attribute.text.resize(size, 'x');
    }
    if (!attribute.ints.empty()) {
      attribute.ints[static_cast<std::size_t>(random_.below(static_cast<std::int64_t>(attribute.ints.size())))] =
          random_.of(kOddIntegers);
    }
    if (!attribute.floats.empty()) {
      attribute.floats[static_cast<std::size_t>(random_.below(static_cast<std::int64_t>(attribute.floats.size())))] =
          any_float(random_);
    }
  }

  // --- inputs ---

  std::int64_t any_size() { return random_.one_in(32) ? 0 : 1 + random_.below(4); }

  std::vector<std::int64_t> any_shape() {
    std::vector<std::int64_t> shape(static_cast<std::size_t>(random_.one_in(16) ? random_.below(12) : 1 + random_.below(3)));
    for (std::int64_t& size : shape) size = any_size();
    if (!shape.empty() && random_.one_in(3)) {
      shape[static_cast<std::size_t>(random_.below(static_cast<std::int64_t>(shape.size())))] = 1 + random_.below(70);
    }
    if (!shape.empty() && random_.one_in(256)) shape = {1 + random_.below(2), 1000 + random_.below(2200)};
    return shape;
  }

  void make_inputs() {
    const bool codes = op_ == "Lut" || op_ == "GatedLut", linear = op_ == "QLinear" || op_ == "QLinearToFloat";
    const std::int32_t type = linear  ? 2
                              : codes ? static_cast<std::int32_t>(to_)
                                      : random_.of(std::vector<std::int32_t>{1, 10, 16});
    if (op_ == "QAttention") return make_attention_inputs();
    std::vector<std::int64_t> shape = any_shape();
    const auto rank = static_cast<std::int64_t>(shape.size());
    const std::int64_t place = axis_ < 0 ? axis_ + rank : axis_;
    if (place >= 0 && place < rank && !random_.one_in(8)) {
      std::int64_t& size = shape[static_cast<std::size_t>(place)];
      if (channels_ > 0) size = channels_;
      if (op_ == "GatedSpline") size *= 2;
    }
    add(type, shape);
    if (op_ == "SplineMix") {
      std::vector<std::int64_t> gates = shape;
      if (!gates.empty()) gates.back() = entries_;
      add(type, gates);
    }
    if (op_ == "PolyNorm") {
      add(type, {1 + random_.below(4)});
      add(type, {1});
    }
    if (op_ == "GatedLut") add(2 + static_cast<std::int32_t>(random_.below(2)), shape);
    if (linear) {
      const std::int64_t outputs = any_size() + random_.below(40), inputs = shape.empty() ? 0 : shape.back();
      add(3, {(outputs + 15) / 16, (inputs + 7) / 8, 128});
      add(6, {outputs});
      add(1, {outputs});
    }
    if ((op_ == "Spline" || op_ == "SplineMix" || op_ == "PolyNorm") && random_.one_in(2)) add(type, shape);
  }

  void make_attention_inputs() {
    const std::int64_t batch = any_size(), queries = any_size() + random_.below(10), heads = entries_;
    const std::int64_t keys = random_.one_in(4) ? random_.below(40) : any_size(), size = any_size(), values = any_size();
    add(2, {batch, queries, heads * size});
    add(2, {batch, keys, heads * size});
    add(2, {batch, keys, heads * (random_.one_in(4) ? values + 15 : values)});
    if (random_.one_in(2)) return;
    const std::vector<std::int64_t> scores = {batch, heads, queries, keys};
    std::vector<std::int64_t> mask;
    for (auto i = static_cast<std::size_t>(random_.below(5)); i < 4; ++i) mask.push_back(random_.one_in(2) ? 1 : scores[i]);
    add(1, mask);
  }

  void add(std::int32_t type, const std::vector<std::int64_t>& shape) { inputs.push_back({type, shape, nullptr}); }

  void spoil_inputs() {
    Tensor& tensor = inputs[static_cast<std::size_t>(random_.below(static_cast<std::int64_t>(inputs.size())))];
    switch (random_.below(6)) {
      case 0:
        tensor.type = random_.of(std::vector<std::int32_t>{-1, 0, 1, 2, 3, 4, 6, 7, 10, 11, 16, 17, 1 << 30});
        break;
      case 1:
        add(tensor.type, tensor.shape);
        break;
      case 2:
        inputs.pop_back();
        break;
      case 3:
        tensor.shape.push_back(any_size());
        break;
      default:
        if (tensor.shape.empty()) break;
        tensor.shape[static_cast<std::size_t>(random_.below(static_cast<std::int64_t>(tensor.shape.size())))] =
            random_.of(kOddIntegers);
        if (random_.one_in(2)) tensor.shape[0] = random_.one_in(2) ? 0 : random_.of(kOddIntegers);
        for (Tensor& other : inputs) {
          if (random_.one_in(2) && other.shape.size() == tensor.shape.size()) other.shape = tensor.shape;
        }
    }
  }

  void fill() {
    for (Tensor& tensor : inputs) {
      const std::int64_t count = elements(tensor.shape);
      complete = complete && count >= 0;
      const std::size_t bytes = static_cast<std::size_t>(std::max<std::int64_t>(0, count)) * size_of(tensor.type);
      tensor.data.reset(new char[bytes]);
      const bool floats = tensor.type == 1 && random_.one_in(2);
      for (std::size_t i = 0; i < bytes / 4 * 4; i += 4) {
        const float value = floats ? any_float(random_) : 0.0f;
        const auto bits = static_cast<std::uint32_t>(random_.bits());
        std::memcpy(tensor.data.get() + i, floats ? static_cast<const void*>(&value) : &bits, 4);
      }
      for (std::size_t i = bytes / 4 * 4; i < bytes; ++i) tensor.data[i] = static_cast<char>(random_.bits());
    }
  }

  const std::string& op_;
  Random& random_;
  std::int64_t axis_ = 0, channels_ = 0, entries_ = 1, to_ = 0;
};

template <typename Item>
auto views(const std::vector<Item>& items) {
  std::vector<decltype(items[0].view())> result;
  for (const Item& item : items) result.push_back(item.view());
  return result;
}

class Fuzzer {
 public:
  Fuzzer(void* library, std::string op)
      : op_(std::move(op)),
        create_(get(library, static_cast<decltype(&actx_op_create)>(nullptr), "actx_op_create")),
        infer_(get(library, static_cast<decltype(&actx_op_infer)>(nullptr), "actx_op_infer")),
        run_(get(library, static_cast<decltype(&actx_op_run)>(nullptr), "actx_op_run")),
        destroy_(get(library, static_cast<decltype(&actx_op_destroy)>(nullptr), "actx_op_destroy")) {
    std::istringstream isas(get(library, static_cast<decltype(&actx_isas)>(nullptr), "actx_isas")());
    const auto rows_of = get(library, static_cast<decltype(&actx_kernels)>(nullptr), "actx_kernels");
    for (std::string isa; isas >> isa;) {
      isas_.push_back(isa);
      std::istringstream rows(rows_of(isa.c_str()));
      for (std::string kernel, op; rows >> kernel >> op;) kernels_.push_back(kernel);
    }
    kernels_.emplace_back("none such");
  }

  // Makes a node and calls it.
  void run(std::uint64_t number) {
    Random random(number);
    Node node(op_, random);
    const auto attributes = views(node.attributes);
    const char* isa = random.one_in(64) ? "none such" : random.one_in(4) ? nullptr : random.of(isas_).c_str();
    const char* kernel = random.one_in(16) ? random.of(kernels_).c_str() : nullptr;
    ActxOp* op = nullptr;
    if (create_(op_.c_str(), attributes.data(), attributes.size(), isa, kernel, &op, error_, sizeof error_) != 0) {
      ++executions;
      return;
    }
    for (int call = 0; call < kCallsPerNode; ++call) {
      node.draw_inputs();
      ++executions;
      taken += call_op(op, node);
    }
    destroy_(op);
  }

  std::uint64_t executions = 0, taken = 0;

 private:
  bool call_op(const ActxOp* op, const Node& node) {
    const auto inputs = views(node.inputs);
    std::int32_t type;
    std::size_t rank;
    std::vector<std::int64_t> shape(16);
    if (infer_(op, inputs.data(), inputs.size(), &type, &rank, shape.data(), shape.size(), error_, sizeof error_) != 0 ||
        !node.complete) {
      return false;
    }
    shape.resize(rank);
    const std::int64_t count = elements(shape);
    if (count < 0) return false;  // a layer of no inputs may have any number of rows
    const auto bytes = static_cast<std::size_t>(count) * size_of(type);
    const std::unique_ptr<char[]> data(new char[bytes]);
    const ActxTensor output{type, rank, shape.data(), data.get()};
    return run_(op, inputs.data(), inputs.size(), &output, error_, sizeof error_) == 0;
  }

  const std::string op_;
  decltype(&actx_op_create) create_;
  decltype(&actx_op_infer) infer_;
  decltype(&actx_op_run) run_;
  decltype(&actx_op_destroy) destroy_;
  std::vector<std::string> isas_, kernels_;
  char error_[256];
};

}  // namespace

int main(int count, char** arguments) {
  if (count != 6) {
    std::fprintf(stderr, "usage: ops LIBRARY OP FIRST COUNT SECONDS\n");
    return 2;
  }
  void* library = dlopen(arguments[1], RTLD_NOW);
  if (library == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 2;
  }
  __sanitizer_set_death_callback(report);
  std::signal(SIGALRM, report_time);
  const std::uint64_t first = std::strtoull(arguments[3], nullptr, 10), runs = std::strtoull(arguments[4], nullptr, 10);
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(std::strtod(arguments[5], nullptr));
  Fuzzer fuzzer(library, arguments[2]);
  std::uint64_t made = 0;
  for (; fuzzer.executions < runs; ++made) {
    if (made % 64 == 0 && std::chrono::steady_clock::now() >= end) break;
    alarm(kSecondsPerNode);
    current = first + made;
    fuzzer.run(current);
  }
  std::printf("%llu %llu %llu\n", static_cast<unsigned long long>(made), static_cast<unsigned long long>(fuzzer.executions),
              static_cast<unsigned long long>(fuzzer.taken));
}
