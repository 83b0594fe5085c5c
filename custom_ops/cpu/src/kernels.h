// The table of kernels: what each instruction set offers, and the prepared tables that kernels read.
//
// Kernels work on float32; half precision is widened and narrowed block by block around them. They never write past n
// elements, take any alignment, and any n >= 0; outputs overlap no input. NaN in gives NaN out.
#pragma once

#include <cstddef>
#include <cstdint>

namespace actx {

// How a kernel finds the segment of an element. All three give the segment of exact comparisons with the knots.
enum class Index {
  kDirect,   // the knots are multiples of a power of two, at most 1: the floor of a product names the entry
  kBuckets,  // no two knots share a bucket of 2^e width, of 128: a table of bytes, then one comparison
  kSearch,   // binary search
};

constexpr int kMaxSegments = 32;
constexpr int kBucketCount = 128;
// A search compares with one knot after another: the first is that of level 0, and level l has 2^l of them to choose from.
constexpr int kLevels = 5;
constexpr int kLevelStride = 16;

// A spline as a kernel reads it. Arrays have `width` entries (8, 16, 24 or 32) per row; for kDirect an
// entry is a bucket modulo the width, and a segment may have several; otherwise it is a segment.
struct SplineTable {
  Index index = Index::kSearch;
  int width = 0;
  int degree = 0;                       // 1 or more
  bool has_origins = false;             // whether one is not zero
  const float* knots = nullptr;         // [width]: where the next segment starts; +inf behind the last knot
  const float* levels = nullptr;        // [5, 16]: the same knots in the order of a search
  const float* origins = nullptr;       // [width]
  const float* coefficients = nullptr;  // [degree + 1, width], ascending powers
  float low = 0, high = 0;              // finite, in the outer segments: tables are looked up for x between them
  float scale = 1;                      // bucket = floor(x * scale)
  bool is_open = false;                 // whether the left tail is constant and the right one linear
  const std::uint8_t* buckets = nullptr;  // [128]: knots in lower buckets than this one, taken modulo 128
  float at_minus_infinity = 0, at_infinity = 0;
};

// One table per element of a row of C channels, for a channel axis that is the last.
struct ChannelTables {
  std::int64_t channels = 0;
  std::int64_t stride = 0;              // C rounded up to whole vectors, 16
  int segments = 0;
  int degree = 0;
  const float* knots = nullptr;         // [segments - 1, stride]
  const float* origins = nullptr;       // [segments, stride]
  const float* coefficients = nullptr;  // [degree + 1, segments, stride]
  const float* limits = nullptr;        // [2, stride]: at -inf and at +inf
};

struct GatedTable {
  float products[256];  // by bit pattern of the gate's code
  std::int32_t u_flip;  // 0x80 where u is signed: xor gives the code minus the smallest one
  std::int32_t u_zero_point;  // counted from the smallest code
  std::int32_t y_zero_point, y_low, y_high;  // codes as numbers
};

// Outputs of a panel, and inputs that are multiplied by it at once.
constexpr int kPanel = 16;
constexpr int kOctet = 8;

// A linear layer of codes. Sums are taken modulo 2^32.
struct LinearTable {
  const std::int8_t* weights = nullptr;  // [ceil(outputs / 16), ceil(inputs / 8), 2, 16, 4], zero beyond the matrix
  const std::int32_t* bias = nullptr;    // [outputs]
  const float* scales = nullptr;         // [outputs]
  std::int64_t inputs = 0, outputs = 0;
  std::int32_t zero_point = 0;           // of the output's codes, from 0 to 255
};

// Queries that a kernel takes at once, and keys whose products with codes fit 32 bits: 32768 * 255 * 255 < 2^31.
constexpr int kQueries = 8;
constexpr std::int64_t kKeysAtOnce = 32768;
// 255 * 2^f for f from -1/2 to 1/2, within 0.0007: ascending powers; the least exponent that is told from lower ones; and 1.5 * 2^23,
// to which numbers are added to be rounded.
constexpr float kExponential[] = {255, 176.745987f, 61.2561531f, 14.2595205f, 2.46888733f};
constexpr float kLog2E = 1.44269504f, kLeastScore = -28, kRounder = 12582912;

// One head of an attention of codes. Rows of the heads lie beside each other: strides are the elements from row to row.
struct AttentionTable {
  std::int64_t queries = 0, keys = 0;    // 1 or more of each
  std::int64_t size = 0, value_size = 0;  // of a query and a key, and of a value
  std::int64_t q_stride = 0, k_stride = 0, v_stride = 0, y_stride = 0;
  std::int32_t q_zero_point = 0, k_zero_point = 0, v_zero_point = 0, y_zero_point = 0;  // from 0 to 255
  float scale = 1, output_scale = 1;     // the first one times log2(e)
  const float* mask = nullptr;           // added to the scores of the first query
  std::int64_t mask_row = 0, mask_column = 0;  // elements to the next query's and key's; that of a key is 0 or 1
};

constexpr std::int64_t places_of(std::int64_t count, std::int64_t each) { return (count + each - 1) / each * each; }

// Memory of a call, of which nothing needs to be set.
struct AttentionScratch {
  std::int16_t* keys;     // [keys to a multiple of 16, size to one of 2]
  std::int16_t* values;   // [value size to a multiple of 16, keys to one of 2]
  std::int16_t* queries;  // [8, size to a multiple of 2]
  std::int32_t* sums;     // [8, keys to a multiple of 16]
  float* scores;          // [keys to a multiple of 16]
  std::int16_t* weights;  // [8, keys to a multiple of 16]
};

using SplineFunction = void (*)(const SplineTable& table, const float* x, const float* u, float* y, std::int64_t n,
                                bool stream);

// A row: which tables a kernel takes.
struct SplineKernel {
  const char* name;
  Index index;
  int width;
  int degree;  // that it has registers for; 0 for any up to 16
  SplineFunction run;  // null where the instruction set does not have it

  bool takes(Index other, int other_segments, int other_degree) const {
    return run != nullptr && index == other && other_segments <= width && (degree == 0 || other_degree <= degree);
  }
};

// Everything that one instruction set offers. The members are declared in kernels.inc, which tests and benchmarks list too.
struct Kernels {
  const char* isa;
  const SplineKernel* splines;  // the cheapest first
  std::size_t spline_count;
  // y = s_c(x) [* u] for `rows` rows of C channels.
  void (*channels)(const ChannelTables& tables, const float* x, const float* u, float* y, std::int64_t rows);
  // sums[k] = sum of x^(2 (k + 1)) for k < order, in blocks of at most 64 additions per float32 sum.
  void (*moments)(const float* x, std::int64_t n, int order, double* sums);
  // y = (sum_j coefficients[j] x^j) [* u], j <= order <= 4.
  void (*polynomial)(const float* coefficients, int order, const float* x, const float* u, float* y, std::int64_t n);
  // y[i] = sum_e weights[e] * rows[e * n + i].
  void (*mix)(const float* weights, std::int64_t count, const float* rows, float* y, std::int64_t n);
  // first[i] = x[2 i], second[i] = x[2 i + 1], i < n.
  void (*deinterleave)(const float* x, float* first, float* second, std::int64_t n);
  void (*widen_float16)(const std::uint16_t* x, float* y, std::int64_t n);
  void (*narrow_float16)(const float* x, std::uint16_t* y, std::int64_t n);
  void (*widen_bfloat16)(const std::uint16_t* x, float* y, std::int64_t n);
  void (*narrow_bfloat16)(const float* x, std::uint16_t* y, std::int64_t n);
  // y = table[x], both by bit pattern; y may be x.
  void (*lut)(const std::uint8_t* table, const std::uint8_t* x, std::uint8_t* y, std::int64_t n);
  void (*gated_lut)(const GatedTable& table, const std::uint8_t* x, const std::uint8_t* u, std::uint8_t* y, std::int64_t n);
  // Outputs of the panels [first, last) for `rows` rows of x [rows, inputs], into y [rows, outputs]: round((sum + bias) * scale)
  // + zero point kept to uint8, or the number before that.
  void (*linear_codes)(const LinearTable& table, const std::uint8_t* x, std::int64_t rows, std::int64_t first,
                       std::int64_t last, std::uint8_t* y);
  void (*linear_floats)(const LinearTable& table, const std::uint8_t* x, std::int64_t rows, std::int64_t first,
                        std::int64_t last, float* y);
  // All queries of a head.
  void (*attention)(const AttentionTable& table, const std::uint8_t* q, const std::uint8_t* k, const std::uint8_t* v,
                    std::uint8_t* y, const AttentionScratch& scratch);
  // Whether the linear ones add products in 16 bits, and so need narrow weights (ops/qlinear.cc).
  bool narrow_sums;
};

}  // namespace actx
