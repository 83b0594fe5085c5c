// Linear layers of codes: a tile is some rows by a panel of 16 outputs, whose sums stay in registers over all inputs.
#pragma once

#include "../kernels.h"

namespace actx {
namespace {

struct Tile {
  std::int64_t row, rows, output, outputs;  // the first ones and how many; outputs beyond `outputs` are none
  const std::int32_t (*sums)[kPanel];
  std::int32_t bias[kPanel];
  float scales[kPanel];
};

template <class V, int kRows>
void add_products(const std::uint8_t* x, std::int64_t inputs, const std::int8_t* w, std::int32_t (*sums)[kPanel]) {
  typename V::Sums totals[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) totals[r] = V::no_sums();
  const auto add = [&](const std::uint8_t* first, std::int64_t stride) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) V::add_octet(totals[r], first + r * stride, w);
    w += kOctet * kPanel;
  };
  for (std::int64_t k = 0; k + kOctet <= inputs; k += kOctet) add(x + k, inputs);
  if (const std::int64_t rest = inputs % kOctet; rest > 0) {
    std::uint8_t last[kRows][kOctet] = {};
    for (int r = 0; r < kRows; ++r) {
      __builtin_memcpy(last[r], x + r * inputs + inputs - rest, static_cast<std::size_t>(rest));
    }
    add(last[0], kOctet);
  }
  for (int r = 0; r < kRows; ++r) V::store_sums(sums[r], totals[r]);
}

// Calls finish(tile) for all rows of x and the panels [first, last).
template <class V, class Finish>
void for_tiles(const LinearTable& t, const std::uint8_t* x, std::int64_t rows, std::int64_t first, std::int64_t last,
               const Finish& finish) {
  const std::int64_t panel_size = (t.inputs + kOctet - 1) / kOctet * kOctet * kPanel;
  for (std::int64_t panel = first; panel < last; ++panel) {
    Tile tile{};
    tile.output = panel * kPanel;
    tile.outputs = t.outputs - tile.output < kPanel ? t.outputs - tile.output : kPanel;
    const auto count = static_cast<std::size_t>(tile.outputs);
    __builtin_memcpy(tile.bias, t.bias + tile.output, count * sizeof(std::int32_t));
    __builtin_memcpy(tile.scales, t.scales + tile.output, count * sizeof(float));
    std::int32_t sums[V::kRows][kPanel];
    tile.sums = sums;
    const std::int8_t* w = t.weights + panel * panel_size;
    for (std::int64_t row = 0; row < rows; row += tile.rows) {
      tile.row = row;
      tile.rows = rows - row < V::kRows ? 1 : V::kRows;
      const std::uint8_t* from = x + row * t.inputs;
      if (tile.rows == 1) {
        add_products<V, 1>(from, t.inputs, w, sums);
      } else {
        add_products<V, V::kRows>(from, t.inputs, w, sums);
      }
      finish(tile);
    }
  }
}

// (sum + bias) * scale of some outputs of a row of a tile.
template <class V>
typename V::F scaled(const Tile& tile, std::int64_t row, int output) {
  const auto sum = V::add(V::load_index(tile.sums[row] + output), V::load_index(tile.bias + output));
  return V::mul(V::number(sum), V::load(tile.scales + output));
}

// Calls write(output, to) with the addresses of all outputs of a row, by way of a buffer where the panel has fewer than 16.
template <class Number, class Write>
void write_row(const Tile& tile, Number* row, const Write& write) {
  if (tile.outputs == kPanel) return write(row);
  Number all[kPanel];
  write(all);
  __builtin_memcpy(row, all, static_cast<std::size_t>(tile.outputs) * sizeof(Number));
}

template <class V>
void linear_codes(const LinearTable& t, const std::uint8_t* x, std::int64_t rows, std::int64_t first, std::int64_t last,
                  std::uint8_t* y) {
  const auto low = V::set(static_cast<float>(-t.zero_point)), high = V::set(static_cast<float>(255 - t.zero_point));
  for_tiles<V>(t, x, rows, first, last, [&](const Tile& tile) {
    for (std::int64_t r = 0; r < tile.rows; ++r) {
      write_row(tile, y + (tile.row + r) * t.outputs + tile.output, [&](std::uint8_t* out) {
        for (int i = 0; i < kPanel; i += V::kLanes) {
          const auto kept = V::min(V::max(scaled<V>(tile, r, i), low), high);
          V::narrow_byte(out + i, V::plus(V::round(kept), t.zero_point));
        }
      });
    }
  });
}

template <class V>
void linear_floats(const LinearTable& t, const std::uint8_t* x, std::int64_t rows, std::int64_t first, std::int64_t last,
                   float* y) {
  for_tiles<V>(t, x, rows, first, last, [&](const Tile& tile) {
    for (std::int64_t r = 0; r < tile.rows; ++r) {
      write_row(tile, y + (tile.row + r) * t.outputs + tile.output, [&](float* out) {
        for (int i = 0; i < kPanel; i += V::kLanes) V::store(out + i, scaled<V>(tile, r, i));
      });
    }
  });
}

}  // namespace
}  // namespace actx
