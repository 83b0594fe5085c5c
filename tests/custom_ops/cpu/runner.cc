// Runs operators of a library of CPU kernels in a process of its own: one for another machine, or one with sanitizers.
//
//   runner LIBRARY
//
// answers requests on stdin with responses on stdout until stdin ends; process.py has the other side. Numbers are
// little-endian, a text or an array is its length as u64 and its bytes.
//
//   "isas"                                    -> text
//   "kernels" isa                             -> text
//   "run" op_type isa kernel                  -> "ok" kernel tensor, or "error" text
//         n, n x (name, "f" | "i" | "s", array)
//         n, n x tensor
//   tensor: type (0: absent) rank sizes array
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "actx_ops.h"

namespace {

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "runner: %s\n", what);
  std::exit(2);
}

// Memory of exactly the size asked for, so that a sanitizer sees what is read or written behind it.
struct Bytes {
  explicit Bytes(std::size_t count) : size(count), data(new char[count]) {}
  std::size_t size;
  std::unique_ptr<char[]> data;
};

void read(void* into, std::size_t size) {
  if (size > 0 && std::fread(into, 1, size, stdin) != size) fail("a request ended early");
}

std::uint64_t read_number() {
  std::uint64_t value;
  read(&value, sizeof value);
  return value;
}

Bytes read_bytes() {
  Bytes bytes(read_number());
  read(bytes.data.get(), bytes.size);
  return bytes;
}

std::string read_text() {
  const Bytes bytes = read_bytes();
  return std::string(bytes.data.get(), bytes.size);
}

void write_number(std::uint64_t value) { std::fwrite(&value, sizeof value, 1, stdout); }

void write_bytes(const void* data, std::size_t size) {
  write_number(size);
  std::fwrite(data, 1, size, stdout);
}

void write_text(const std::string& text) { write_bytes(text.data(), text.size()); }

struct Library {
  explicit Library(const char* path) : handle(dlopen(path, RTLD_NOW)) {
    if (handle == nullptr) fail(dlerror());
  }

  template <typename Function>
  Function* get(Function*, const char* name) const {
    void* found = dlsym(handle, name);
    if (found == nullptr) fail(dlerror());
    return reinterpret_cast<Function*>(found);
  }

  void* handle;
};

#define ACTX(name) library.get(static_cast<decltype(&name)>(nullptr), #name)

struct Tensor {
  std::int32_t type;
  std::vector<std::int64_t> sizes;
  Bytes data;

  ActxTensor view() const { return {type, sizes.size(), sizes.data(), data.data.get()}; }
};

Tensor read_tensor() {
  const auto type = static_cast<std::int32_t>(read_number());
  std::vector<std::int64_t> sizes(read_number());
  for (auto& size : sizes) size = static_cast<std::int64_t>(read_number());
  return {type, std::move(sizes), read_bytes()};
}

struct Attribute {
  std::string name, kind;
  Bytes value;

  ActxAttribute view() const {
    const char* data = value.data.get();
    if (kind == "f") return {name.c_str(), reinterpret_cast<const float*>(data), nullptr, nullptr, value.size / 4};
    if (kind == "i") return {name.c_str(), nullptr, reinterpret_cast<const std::int64_t*>(data), nullptr, value.size / 8};
    return {name.c_str(), nullptr, nullptr, data, value.size};
  }
};

Attribute read_attribute() {
  std::string name = read_text(), kind = read_text();
  return {std::move(name), std::move(kind), read_bytes()};
}

std::size_t element_size(std::int32_t type) { return type == 1 || type == 6 ? 4 : type == 2 || type == 3 ? 1 : 2; }

template <typename Item>
auto views(const std::vector<Item>& items) {
  std::vector<decltype(items[0].view())> result;
  for (const Item& item : items) result.push_back(item.view());
  return result;
}

class Run {
 public:
  explicit Run(const Library& library) : library(library) {
    op_type = read_text();
    isa = read_text();
    kernel = read_text();
    for (std::uint64_t i = 0, n = read_number(); i < n; ++i) attributes.push_back(read_attribute());
    for (std::uint64_t i = 0, n = read_number(); i < n; ++i) inputs.push_back(read_tensor());
  }

  void respond() const {
    ActxOp* op = nullptr;
    const auto given = views(attributes);
    if (ACTX(actx_op_create)(op_type.c_str(), given.data(), given.size(), isa.empty() ? nullptr : isa.c_str(),
                             kernel.empty() ? nullptr : kernel.c_str(), &op, error, sizeof error) != 0) {
      return respond_error();
    }
    run(op);
    ACTX(actx_op_destroy)(op);
  }

 private:
  void run(const ActxOp* op) const {
    const auto given = views(inputs);
    std::int32_t type;
    std::size_t rank;
    std::vector<std::int64_t> sizes(64);
    if (ACTX(actx_op_infer)(op, given.data(), given.size(), &type, &rank, sizes.data(), sizes.size(), error, sizeof error)) {
      return respond_error();
    }
    sizes.resize(rank);
    std::size_t count = element_size(type);
    for (const std::int64_t size : sizes) count *= static_cast<std::size_t>(size);
    const Tensor output{type, sizes, Bytes(count)};
    const ActxTensor into = output.view();
    if (ACTX(actx_op_run)(op, given.data(), given.size(), &into, error, sizeof error) != 0) return respond_error();
    write_text("ok");
    write_text(ACTX(actx_op_kernel)(op));
    write_number(static_cast<std::uint64_t>(type));
    write_number(rank);
    for (const std::int64_t size : sizes) write_number(static_cast<std::uint64_t>(size));
    write_bytes(output.data.data.get(), output.data.size);
  }

  void respond_error() const {
    write_text("error");
    write_text(error);
  }

  const Library& library;
  std::string op_type, isa, kernel;
  std::vector<Attribute> attributes;
  std::vector<Tensor> inputs;
  mutable char error[1024];
};

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) fail("usage: runner LIBRARY");
  const Library library(arguments[1]);
  for (int next = std::getchar(); next != EOF; next = std::getchar()) {
    std::ungetc(next, stdin);
    const std::string request = read_text();
    if (request == "isas") {
      write_text(ACTX(actx_isas)());
    } else if (request == "kernels") {
      const char* rows = ACTX(actx_kernels)(read_text().c_str());
      write_text(rows == nullptr ? "" : rows);
    } else if (request == "run") {
      Run(library).respond();
    } else {
      fail("unknown request");
    }
    std::fflush(stdout);
  }
}
