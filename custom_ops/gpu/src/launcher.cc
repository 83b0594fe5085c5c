#include "launcher.h"

#include <array>
#include <cstring>
#include <limits>
#include <utility>

#include "ops/ops.h"

namespace actx::cuda {
namespace {

constexpr std::int64_t kAlignment = 16;  // columns, and bytes of a pointer
constexpr std::int64_t kLargest = std::numeric_limits<std::int32_t>::max();
constexpr unsigned kSharedBytesUnasked = 48 << 10;

template <typename Value>
Value required(std::optional<Value> value, const char* name) {
  if (!value) throw Error(std::string("the node has no attribute '") + name + "', which a kernel for this GPU needs: "
                          "export the model with --target ort-cuda");
  return std::move(*value);
}

void check_that(bool fits, const char* what) {
  if (!fits) throw Error(std::string("the compiled kernel is damaged: ") + what);
}

bool is_elf(const char* data, std::size_t size) { return size > 4 && std::memcmp(data, "\177ELF", 4) == 0; }

// The attributes of all images, one value for each.
std::vector<Image> read_images(const Attributes& attributes, const std::vector<char>& code) {
  const auto sizes = required(attributes.integers("cuda_code_sizes"), "cuda_code_sizes");
  const auto architectures = required(attributes.integers("cuda_architectures"), "cuda_architectures");
  const auto aligned = required(attributes.integers("cuda_aligned"), "cuda_aligned");
  const auto shared = required(attributes.integers("cuda_shared_bytes"), "cuda_shared_bytes");
  check_that(architectures.size() == sizes.size() && aligned.size() == sizes.size() && shared.size() == sizes.size(),
             "its lists differ in length");
  std::vector<Image> images;
  std::size_t begin = 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const auto size = static_cast<std::size_t>(sizes[i]);
    check_that(sizes[i] > 0 && size <= code.size() - begin, "cuda_code_sizes do not fit cuda_code");
    const char* data = code.data() + begin;
    const bool ptx = !is_elf(data, size);
    check_that(!ptx || data[size - 1] == '\0', "PTX does not end with a null");
    check_that(shared[i] >= 0 && shared[i] <= kLargest, "cuda_shared_bytes is out of range");
    images.push_back({architectures[i], aligned[i] != 0, static_cast<unsigned>(shared[i]), data, ptx});
    begin += size;
  }
  check_that(begin == code.size(), "cuda_code_sizes do not fit cuda_code");
  return images;
}

std::int64_t within_int32(std::int64_t size, const char* what) {
  if (size > kLargest) throw Error(std::string(what) + " are " + std::to_string(size) + ", a kernel takes at most 2147483647");
  return size;
}

std::int64_t blocks(std::int64_t size, std::int64_t tile) { return tile == 0 ? 1 : (size + (tile - 1)) / tile; }

DevicePointer address(const void* data, const char* what) {
  const auto value = reinterpret_cast<std::uintptr_t>(data);
  if (value % kAlignment != 0) throw Error(std::string(what) + " does not start at a multiple of 16 bytes on the device");
  return value;
}

std::int64_t capability(int attribute) {
  Device device;
  int value;
  check(driver().cuCtxGetDevice(&device), "cannot tell the device");
  check(driver().cuDeviceGetAttribute(&value, attribute, device), "cannot tell the compute capability of the device");
  return value;
}

std::string name_of(const Image& image) {
  return std::string(image.ptx ? "PTX of " : "") + std::to_string(image.architecture);
}

}  // namespace

struct Launcher::Sizes {
  std::int64_t rows, cols, channels;
};

// What a context has of a node. The context is current where this is made, and freed.
struct Launcher::Loaded {
  explicit Loaded(const std::vector<char>& bytes) : architecture(10 * capability(kComputeCapabilityMajor) +
                                                                 capability(kComputeCapabilityMinor)) {
    check(driver().cuMemAlloc_v2(&table, bytes.size()), "cannot allocate the table");
    if (const Result result = driver().cuMemcpyHtoD_v2(table, bytes.data(), bytes.size())) {
      driver().cuMemFree_v2(table);
      check(result, "cannot copy the table to the device");
    }
  }

  ~Loaded() {
    for (const Module module : modules) driver().cuModuleUnload(module);
    driver().cuMemFree_v2(table);
  }

  Loaded(const Loaded&) = delete;
  Loaded& operator=(const Loaded&) = delete;

  std::int64_t architecture;
  DevicePointer table = 0;
  std::vector<Module> modules;
  std::map<const Image*, Function> functions;
};

Launcher::Launcher(const Attributes& attributes)
    : code_(required(attributes.bytes("cuda_code"), "cuda_code")),
      images_(read_images(attributes, code_)),
      symbol_(required(attributes.text("cuda_symbol"), "cuda_symbol")),
      table_(required(attributes.bytes("cuda_table"), "cuda_table")),
      places_(required(attributes.integers("cuda_inputs"), "cuda_inputs")),
      rows_(required(attributes.integer("cuda_rows"), "cuda_rows")),
      channel_axis_(attributes.integer("cuda_channel_axis")),
      tile_(required(attributes.integers("cuda_tile"), "cuda_tile")),
      integers_(static_cast<std::size_t>(required(attributes.integer("cuda_integers"), "cuda_integers"))) {
  const std::int64_t threads = required(attributes.integer("cuda_threads"), "cuda_threads");
  check_that(!images_.empty(), "there is no code");
  check_that(!table_.empty(), "the table is empty");
  check_that(threads >= 1 && threads <= 1024, "cuda_threads is out of range");
  check_that(tile_.size() == 2 && tile_[0] >= 1 && tile_[1] >= 0 && tile_[0] <= kLargest && tile_[1] <= kLargest,
             "cuda_tile is out of range");
  check_that(integers_ == 2 || integers_ == 3, "cuda_integers is out of range");
  threads_ = static_cast<unsigned>(threads);
  driver();
}

Launcher::~Launcher() {
  for (auto& [context, loaded] : loaded_) {
    try {
      const Current current(context);
      loaded.reset();
    } catch (const Error&) {
      loaded.release();  // the context is gone, and with it what was in it; only our own few bytes are left
    }
  }
}

void Launcher::launch(const Inputs& inputs, const Shape& shape, void* output, Stream stream) const {
  if (product(shape) == 0) return;
  const Sizes sizes = sizes_of(shape);
  const std::int64_t grid = within_int32(blocks(sizes.rows, tile_[0]) * blocks(sizes.cols, tile_[1]), "the programs");
  std::vector<DevicePointer> pointers;
  for (const std::int64_t place : places_) {
    check_that(place >= 0 && place < static_cast<std::int64_t>(inputs.size()), "cuda_inputs has no such input");
    const Tensor& input = inputs[static_cast<std::size_t>(place)];
    if (!input.present) throw Error("input " + std::to_string(place) + " is missing");
    pointers.push_back(address(input.data, "an input"));
  }
  pointers.push_back(address(output, "the output"));

  Context context;
  check(driver().cuStreamGetCtx(stream, &context), "cannot tell the context");
  const Current current(context);
  std::unique_lock<std::mutex> lock(mutex_);
  Loaded& loaded = loaded_in(context);
  const Image& image = image_for(loaded.architecture, sizes.cols % kAlignment == 0);
  const Function function = function_in(loaded, image);
  lock.unlock();
  pointers.push_back(loaded.table);

  std::array<std::int32_t, 3> integers = {static_cast<std::int32_t>(sizes.rows), static_cast<std::int32_t>(sizes.cols),
                                          static_cast<std::int32_t>(sizes.channels)};
  std::array<DevicePointer, 2> scratch = {0, 0};  // Triton's own parameters, which these kernels do not use
  std::vector<void*> parameters;
  for (DevicePointer& pointer : pointers) parameters.push_back(&pointer);
  for (std::size_t i = 0; i < integers_; ++i) parameters.push_back(&integers[i]);
  for (DevicePointer& pointer : scratch) parameters.push_back(&pointer);
  check(driver().cuLaunchKernel(function, static_cast<unsigned>(grid), 1, 1, threads_, 1, 1, image.shared_bytes, stream,
                                parameters.data(), nullptr),
        "cannot launch the kernel");
}

Launcher::Sizes Launcher::sizes_of(const Shape& shape) const {
  const auto rank = static_cast<std::int64_t>(shape.size());
  const std::int64_t split = rows_ < 0 ? rows_ + rank : rows_;
  check_that(split >= 0 && split <= rank, "cuda_rows does not fit the rank");
  const auto place = static_cast<std::size_t>(split);
  const std::int64_t channels = channel_axis_ ? shape[normalized_axis(*channel_axis_, shape)] : 1;
  return {within_int32(product(shape, 0, place), "the rows"), within_int32(product(shape, place, shape.size()), "the columns"),
          within_int32(channels, "the channels")};
}

const Image& Launcher::image_for(std::int64_t architecture, bool aligned) const {
  const Image* best = nullptr;
  const auto rank = [&](const Image& image) { return std::array{!image.ptx, image.aligned}; };
  const auto fits = [&](const Image& image) {
    return (aligned || !image.aligned) && (image.ptx ? image.architecture <= architecture : image.architecture == architecture);
  };
  for (const Image& image : images_) {
    if (!fits(image)) continue;
    if (best == nullptr || rank(image) > rank(*best) ||
        (rank(image) == rank(*best) && image.architecture > best->architecture)) {
      best = &image;
    }
  }
  if (best != nullptr) return *best;
  std::string available;
  for (const Image& image : images_) {
    const std::string name = name_of(image);
    if (available.find(name) == std::string::npos) available += (available.empty() ? "" : ", ") + name;
  }
  throw Error("the device has compute capability " + std::to_string(architecture) + ", the kernel was compiled for " +
              available + ": export the model with --with-kernels sm_" + std::to_string(architecture));
}

Launcher::Loaded& Launcher::loaded_in(Context context) const {
  auto& loaded = loaded_[context];
  if (loaded == nullptr) loaded = std::make_unique<Loaded>(table_);
  return *loaded;
}

Function Launcher::function_in(Loaded& loaded, const Image& image) const {
  const auto known = loaded.functions.find(&image);
  if (known != loaded.functions.end()) return known->second;
  Module module;
  const std::string what = "cannot load the code (" + name_of(image) + ")";
  check(driver().cuModuleLoadData(&module, image.data), what.c_str());
  loaded.modules.push_back(module);  // from here on it is freed
  Function function;
  check(driver().cuModuleGetFunction(&function, module, symbol_.c_str()), "cannot find the kernel in its code");
  if (image.shared_bytes > kSharedBytesUnasked) {
    check(driver().cuFuncSetAttribute(function, kMaxDynamicSharedSizeBytes, static_cast<int>(image.shared_bytes)),
          "the device has too little shared memory");
  }
  return loaded.functions.emplace(&image, function).first->second;
}

}  // namespace actx::cuda
