// Work that may be divided among the threads of whoever calls: we never start threads of our own.
#pragma once

#include <algorithm>
#include <cstdint>

namespace actx {

// Runs task(i) for every i in [0, count), in any order and on any threads, and returns when all have ended.
class Parallel {
 public:
  using Task = void (*)(void* context, std::int64_t index);
  virtual ~Parallel() = default;
  virtual void run(std::int64_t count, Task task, void* context) const = 0;
  // Number of threads that tasks can run on at once, 1 or more; it decides how finely work is divided.
  virtual std::int64_t threads() const = 0;
};

class Serial final : public Parallel {
 public:
  void run(std::int64_t count, Task task, void* context) const override {
    for (std::int64_t i = 0; i < count; ++i) task(context, i);
  }
  std::int64_t threads() const override { return 1; }
};

// Elements that are worth a task of their own: about 10 microseconds of the cheapest kernel.
constexpr std::int64_t kElementsPerTask = 1 << 15;

// Calls body(first, last) on pieces of [0, count); `cost` is the number of elements that one unit stands for. A small range
// is one call on the caller's own thread.
template <typename Body>
void for_range(const Parallel& parallel, std::int64_t count, std::int64_t cost, Body&& body) {
  if (count <= 0) return;
  const std::int64_t least = std::max<std::int64_t>(1, kElementsPerTask / std::max<std::int64_t>(1, cost));
  const std::int64_t most_tasks = 8 * parallel.threads();
  std::int64_t tasks = parallel.threads() == 1 ? 1 : std::min((count + least - 1) / least, most_tasks);
  if (tasks <= 1) {
    body(std::int64_t{0}, count);
    return;
  }
  struct Context {
    Body* body;
    std::int64_t count, tasks;
  } context{&body, count, tasks};
  parallel.run(
      tasks,
      [](void* opaque, std::int64_t i) {
        auto& c = *static_cast<Context*>(opaque);
        const std::int64_t share = c.count / c.tasks, rest = c.count % c.tasks;
        const std::int64_t first = i * share + std::min(i, rest);
        (*c.body)(first, first + share + (i < rest ? 1 : 0));
      },
      &context);
}

}  // namespace actx
