// Sums of rows that bits choose: what a convolution of spikes does instead of multiplying.
#pragma once

#include <cstdint>

namespace snnkern::cpu {

// Rows and sums are a multiple of this long.
inline constexpr std::int64_t kRowUnit = 16;

// Bits of a word.
inline constexpr std::int64_t kWord = 64;

// Words whose bits are events, and what these are worth.
struct Events {
  const std::uint64_t* words;
  // Null where all are worth 1; else where the values of each word's events begin, in their order.
  const std::int64_t* starts;
  const float* values;

  // From a later word on.
  Events from(std::int64_t word) const {
    return {words + word, starts ? starts + word : nullptr, values};
  }
};

// Sums in lines of cells, and the words of each: the row of bit k of word w begins
// k * bit_step + w * word_step elements behind the first.
struct RowSums {
  std::int64_t lines, cells, words;
  std::int64_t bit_step, word_step;
  Events events;
  std::int64_t line_words, cell_words;  // from one line to the next, from one cell to the next
  float* sums;
  std::int64_t line_sums, cell_sums;
};

// sum[0, length) += the rows of all events, times what they are worth, one after the other, for
// every cell.
void add_rows(std::int64_t length, const float* rows, const RowSums& p);

}  // namespace snnkern::cpu
