// The sizes of a tensor, without memory from the heap in the usual case.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <vector>

namespace actx {

// The sizes of the dimensions, as a vector is used. Up to 8 of them need no memory of their own: a call on a small tensor
// takes less time than an allocation.
class Shape {
 public:
  Shape() = default;
  explicit Shape(std::size_t rank, std::int64_t size = 0) { resize(rank, size); }
  Shape(std::initializer_list<std::int64_t> sizes) : Shape(sizes.begin(), sizes.end()) {}
  template <typename Iterator, typename = typename std::iterator_traits<Iterator>::iterator_category>
  Shape(Iterator first, Iterator last) : Shape(static_cast<std::size_t>(std::distance(first, last))) {
    std::copy(first, last, begin());
  }

  void resize(std::size_t rank, std::int64_t size = 0) {
    if (rank > kFew && rank_ <= kFew) many_.assign(few_.begin(), few_.begin() + rank_);
    if (rank > kFew) many_.resize(rank, size);
    if (rank <= kFew && rank_ > kFew) std::copy_n(many_.begin(), rank, few_.begin());
    if (rank <= kFew) std::fill(few_.begin() + std::min(rank, rank_), few_.begin() + rank, size);
    rank_ = rank;
  }

  std::size_t size() const { return rank_; }
  bool empty() const { return rank_ == 0; }
  std::int64_t* data() { return rank_ > kFew ? many_.data() : few_.data(); }
  const std::int64_t* data() const { return rank_ > kFew ? many_.data() : few_.data(); }
  std::int64_t* begin() { return data(); }
  std::int64_t* end() { return data() + rank_; }
  const std::int64_t* begin() const { return data(); }
  const std::int64_t* end() const { return data() + rank_; }
  std::int64_t& operator[](std::size_t i) { return data()[i]; }
  std::int64_t operator[](std::size_t i) const { return data()[i]; }
  std::int64_t& back() { return data()[rank_ - 1]; }
  std::int64_t back() const { return data()[rank_ - 1]; }

  friend bool operator==(const Shape& a, const Shape& b) { return std::equal(a.begin(), a.end(), b.begin(), b.end()); }
  friend bool operator!=(const Shape& a, const Shape& b) { return !(a == b); }

 private:
  static constexpr std::size_t kFew = 8;
  std::size_t rank_ = 0;
  std::array<std::int64_t, kFew> few_{};
  std::vector<std::int64_t> many_;  // instead of few_, where there are more
};

}  // namespace actx
