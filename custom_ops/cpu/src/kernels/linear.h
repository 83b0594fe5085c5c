// Linear layers of codes: a tile is some rows by some panels of 16 outputs, whose sums stay in registers over all inputs.
#pragma once

#include <utility>

#include "../kernels.h"

namespace actx {
namespace {

// A panel of a tile.
struct Tile {
  std::int64_t row, rows, output, outputs;  // the first ones and how many; outputs beyond `outputs` are none
  const std::int32_t (*sums)[kPanel];
  std::int32_t bias[kPanel];
  float scales[kPanel];
};

// The sums of some rows and panels, row by row. Constants index them, so that they stay in registers.
template <class V, int kPanels, int... kPlaces>
struct Products {
  typename V::Sums sums[sizeof...(kPlaces)] = {((void)kPlaces, V::no_sums())...};

  __attribute__((always_inline)) void add(const std::uint8_t* x, std::int64_t stride, const std::int8_t* w,
                                          std::int64_t panel_size) {
    (V::add_octet(sums[kPlaces], x + kPlaces / kPanels * stride, w + kPlaces % kPanels * panel_size), ...);
  }
  __attribute__((always_inline)) void store(std::int32_t (*to)[kPanel]) const {
    constexpr int kRows = sizeof...(kPlaces) / kPanels;
    (V::store_sums(to[kPlaces % kPanels * kRows + kPlaces / kPanels], sums[kPlaces]), ...);
  }
};

template <class V, int kPanels, int... kPlaces>
Products<V, kPanels, kPlaces...> no_products(std::integer_sequence<int, kPlaces...>) {
  return {};
}

// sums [kPanels, kRows, 16] of rows of x and the panels at w, over whole octets of the inputs.
template <class V, int kRows, int kPanels>
void sum_octets(const std::uint8_t* x, std::int64_t inputs, const std::int8_t* w, std::int64_t panel_size,
                std::int32_t (*sums)[kPanel]) {
  auto products = no_products<V, kPanels>(std::make_integer_sequence<int, kRows * kPanels>{});
  for (std::int64_t k = 0; k + kOctet <= inputs; k += kOctet, w += kOctet * kPanel) {
    products.add(x + k, inputs, w, panel_size);
  }
  products.store(sums);
}

// The same over all inputs.
template <class V, int kRows, int kPanels>
void sum_products(const std::uint8_t* x, std::int64_t inputs, const std::int8_t* w, std::int64_t panel_size,
                  std::int32_t (*sums)[kPanel]) {
  sum_octets<V, kRows, kPanels>(x, inputs, w, panel_size, sums);
  const std::int64_t rest = inputs % kOctet;
  if (rest == 0) return;
  std::uint8_t last[kRows][kOctet] = {};
  for (int r = 0; r < kRows; ++r) {
    __builtin_memcpy(last[r], x + r * inputs + inputs - rest, static_cast<std::size_t>(rest));
  }
  std::int32_t more[kRows * kPanels][kPanel];
  sum_octets<V, kRows, kPanels>(last[0], kOctet, w + inputs / kOctet * kOctet * kPanel, panel_size, more);
  for (int i = 0; i < kRows * kPanels; ++i) {
    for (int j = 0; j < kPanel; ++j) {
      sums[i][j] = static_cast<std::int32_t>(static_cast<std::uint32_t>(sums[i][j]) + static_cast<std::uint32_t>(more[i][j]));
    }
  }
}

inline Tile tile_of(const LinearTable& t, std::int64_t panel) {
  Tile tile{};
  tile.output = panel * kPanel;
  tile.outputs = t.outputs - tile.output < kPanel ? t.outputs - tile.output : kPanel;
  const auto count = static_cast<std::size_t>(tile.outputs);
  __builtin_memcpy(tile.bias, t.bias + tile.output, count * sizeof(std::int32_t));
  __builtin_memcpy(tile.scales, t.scales + tile.output, count * sizeof(float));
  return tile;
}

// Calls finish(tile) for all rows of x and kPanels panels, some rows at a time.
template <class V, int kPanels, class Finish>
void for_rows(const LinearTable& t, const std::uint8_t* x, std::int64_t rows, std::int64_t panel, const Finish& finish) {
  constexpr int kFew = V::kRows < 4 ? V::kRows : 4;
  const std::int64_t panel_size = places_of(t.inputs, kOctet) * kPanel;
  const std::int8_t* const w = t.weights + panel * panel_size;
  std::int32_t sums[V::kRows * kPanels][kPanel];
  Tile tiles[kPanels];
  for (int p = 0; p < kPanels; ++p) tiles[p] = tile_of(t, panel + p);
  for (std::int64_t row = 0, count = 0; row < rows; row += count) {
    const std::uint8_t* const from = x + row * t.inputs;
    if (count = V::kRows; rows - row >= count) {
      sum_products<V, V::kRows, kPanels>(from, t.inputs, w, panel_size, sums);
    } else if (count = kFew; rows - row >= count) {
      sum_products<V, kFew, kPanels>(from, t.inputs, w, panel_size, sums);
    } else {
      count = 1;
      sum_products<V, 1, kPanels>(from, t.inputs, w, panel_size, sums);
    }
    for (int p = 0; p < kPanels; ++p) {
      tiles[p].row = row;
      tiles[p].rows = count;
      tiles[p].sums = sums + p * count;
      finish(tiles[p]);
    }
  }
}

// The same for the panels [first, last).
template <class V, class Finish>
void for_tiles(const LinearTable& t, const std::uint8_t* x, std::int64_t rows, std::int64_t first, std::int64_t last,
               const Finish& finish) {
  std::int64_t panel = first;
  for (; panel + V::kPanels <= last; panel += V::kPanels) for_rows<V, V::kPanels>(t, x, rows, panel, finish);
  for (; panel < last; ++panel) for_rows<V, 1>(t, x, rows, panel, finish);
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
