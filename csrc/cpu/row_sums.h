// Sums of rows that lie anywhere: what a convolution of spikes does instead of multiplying.
#pragma once

#include <cstdint>

namespace snnkern::cpu {

// Rows that begin at base + offset for the offsets [begin, end).
struct RowRun {
  const float* base;
  const std::uint32_t* begin;
  const std::uint32_t* end;
};

// Rows and sums are a multiple of this long.
inline constexpr std::int64_t kRowUnit = 16;

// sum[0, length) += all rows of `runs`, one after the other.
void add_rows(std::int64_t length, const RowRun* runs, std::int64_t count, float* sum);

}  // namespace snnkern::cpu
