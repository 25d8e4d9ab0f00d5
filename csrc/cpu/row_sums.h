// Sums of rows that bits choose: what a convolution of spikes does instead of multiplying.
#pragma once

#include <cstdint>

namespace snnkern::cpu {

// Rows and sums are a multiple of this long.
inline constexpr std::int64_t kRowUnit = 16;

// Bits of a word.
inline constexpr std::int64_t kWord = 64;

// Sums in lines of cells, and the words of each: the row of bit k of word w begins
// k * bit_step + w * word_step elements behind the first.
struct RowSums {
  std::int64_t lines, cells, words;
  std::int64_t bit_step, word_step;
  const std::uint64_t* bits;
  std::int64_t line_bits, cell_bits;  // from one line to the next, from one cell to the next
  float* sums;
  std::int64_t line_sums, cell_sums;
};

// sum[0, length) += the rows of all bits that are 1, one after the other, for every cell.
void add_rows(std::int64_t length, const float* rows, const RowSums& p);

}  // namespace snnkern::cpu
