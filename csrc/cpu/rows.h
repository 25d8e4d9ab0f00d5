// Rows: what a CPU kernel moves between tensors and its tile of neurons, one time step at a time.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../dispatch.h"
#include "../half.h"

namespace snnkern::cpu {

void half_row_to_float(std::int64_t n, const std::uint16_t* __restrict in, float* __restrict out);
void float_row_to_half(std::int64_t n, const float* __restrict in, std::uint16_t* __restrict out);
void bfloat16_row_to_float(std::int64_t n, const std::uint16_t* __restrict in,
                           float* __restrict out);
void float_row_to_bfloat16(std::int64_t n, const float* __restrict in,
                           std::uint16_t* __restrict out);

// Spikes as bytes 0 and 1, and as bits.
template <class F>
void row_to_bytes(std::int64_t n, const F* __restrict in, std::uint8_t* __restrict out);
template <class F>
void row_to_bits(std::int64_t n, const F* __restrict in, std::uint8_t* __restrict out);

// out = scale * x + shift, each rounded on its own.
template <class F>
void affine_row(std::int64_t n, const F* __restrict scale, const F* __restrict shift, const F* x,
                F* out);
// Rows of what normalisation makes of x: scale * x + shift.
template <class F>
struct AffineRow {
  const F* scale;
  const F* shift;
};
// Rows of what its gradient needs: sums of g and of g * (x - mean).
template <class F>
struct NormSumRows {
  const F* mean;
  F* sum;
  F* dot;
};
// sum += g, dot += g * (x - mean).
template <class F>
void sums_row(std::int64_t n, const F* __restrict g, const F* __restrict x, NormSumRows<F> sums);
// sum += row.
template <class F>
void add_row(std::int64_t n, const F* __restrict row, F* __restrict sum);

// Rows of a tensor, `step` elements apart.
template <class F>
struct RowsOf {
  F* data;
  std::int64_t step;
};

// `count` rows of n elements of a tensor as state-typed numbers: the tensor's own memory where the
// types agree, else converted copies in `buffer`, n apart.
template <class F>
RowsOf<const F> load_rows(Dtype dtype, const void* tensor, std::int64_t offset, std::int64_t step,
                          std::int64_t count, std::int64_t n, F* buffer) {
  if constexpr (std::is_same_v<F, float>) {
    if (dtype != Dtype::kFloat32) {
      const auto convert = dtype == Dtype::kFloat16 ? half_row_to_float : bfloat16_row_to_float;
      for (std::int64_t k = 0; k < count; ++k) {
        convert(n, static_cast<const std::uint16_t*>(tensor) + offset + k * step, buffer + k * n);
      }
      return {buffer, n};
    }
  }
  return {static_cast<const F*>(tensor) + offset, step};
}

// Where a kernel writes rows of a tensor: the tensor's own memory, or `buffer`, which store_rows
// then converts.
template <class F>
RowsOf<F> target_rows(Dtype dtype, void* tensor, std::int64_t offset, std::int64_t step,
                      std::int64_t n, F* buffer) {
  constexpr Dtype kOwn = std::is_same_v<F, float> ? Dtype::kFloat32 : Dtype::kFloat64;
  if (dtype != kOwn) return {buffer, n};
  return {static_cast<F*>(tensor) + offset, step};
}

// Offset and step count elements, for bits too; both are then multiples of 8.
template <class F>
void store_rows(Dtype dtype, const RowsOf<F>& rows, void* tensor, std::int64_t offset,
                std::int64_t step, std::int64_t count, std::int64_t n) {
  for (std::int64_t k = 0; k < count; ++k) {
    const F* const row = rows.data + k * rows.step;
    const std::int64_t at = offset + k * step;
    if (dtype == Dtype::kUint8) {
      row_to_bytes(n, row, static_cast<std::uint8_t*>(tensor) + at);
    } else if (dtype == Dtype::kBit) {
      row_to_bits(n, row, static_cast<std::uint8_t*>(tensor) + at / 8);
    } else if constexpr (std::is_same_v<F, float>) {
      if (dtype == Dtype::kFloat16) {
        float_row_to_half(n, row, static_cast<std::uint16_t*>(tensor) + at);
      } else if (dtype == Dtype::kBFloat16) {
        float_row_to_bfloat16(n, row, static_cast<std::uint16_t*>(tensor) + at);
      }
    }
  }
}

}  // namespace snnkern::cpu
