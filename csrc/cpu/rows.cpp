#include "rows.h"

#include "clones.h"

namespace snnkern::cpu {

SNN_CLONES void half_row_to_float(std::int64_t n, const std::uint16_t* __restrict in,
                                  float* __restrict out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = from_half(in[i]);
}

SNN_CLONES void float_row_to_half(std::int64_t n, const float* __restrict in,
                                  std::uint16_t* __restrict out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = to_half(in[i]);
}

SNN_CLONES void bfloat16_row_to_float(std::int64_t n, const std::uint16_t* __restrict in,
                                      float* __restrict out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = from_bfloat16(in[i]);
}

SNN_CLONES void float_row_to_bfloat16(std::int64_t n, const float* __restrict in,
                                      std::uint16_t* __restrict out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = to_bfloat16(in[i]);
}

template <class F>
SNN_CLONES void row_to_bytes(std::int64_t n, const F* __restrict in, std::uint8_t* __restrict out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = in[i] != F(0);
}

template <class F>
SNN_CLONES void row_to_bits(std::int64_t n, const F* __restrict in, std::uint8_t* __restrict out) {
  const std::int64_t whole = n / 8;
  for (std::int64_t byte = 0; byte < whole; ++byte) {
    unsigned bits = 0;
    for (std::int64_t k = 0; k < 8; ++k) bits |= unsigned(in[byte * 8 + k] != F(0)) << k;
    out[byte] = static_cast<std::uint8_t>(bits);
  }
  if (n % 8) {
    unsigned bits = 0;
    for (std::int64_t i = whole * 8; i < n; ++i) bits |= unsigned(in[i] != F(0)) << (i % 8);
    out[whole] = static_cast<std::uint8_t>(bits);
  }
}

template <class F>
SNN_CLONES void add_row(std::int64_t n, const F* __restrict row, F* __restrict sum) {
  for (std::int64_t i = 0; i < n; ++i) sum[i] += row[i];
}

template <class F>
SNN_CLONES void affine_row(std::int64_t n, const F* __restrict scale, const F* __restrict shift,
                           const F* x, F* out) {
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) out[i] = scale[i] * x[i] + shift[i];
}

template <class F>
SNN_CLONES void sums_row(std::int64_t n, const F* __restrict g, const F* __restrict x,
                         const NormSumRows<F> sums) {
  const F* __restrict mean = sums.mean;
  F* __restrict sum = sums.sum;
  F* __restrict dot = sums.dot;
  for (std::int64_t i = 0; i < n; ++i) {
    sum[i] += g[i];
    dot[i] += g[i] * (x[i] - mean[i]);
  }
}

template void affine_row(std::int64_t, const float*, const float*, const float*, float*);
template void affine_row(std::int64_t, const double*, const double*, const double*, double*);
template void sums_row(std::int64_t, const float*, const float*, NormSumRows<float>);
template void sums_row(std::int64_t, const double*, const double*, NormSumRows<double>);
template void add_row(std::int64_t, const float*, float*);
template void add_row(std::int64_t, const double*, double*);
template void row_to_bytes(std::int64_t, const float*, std::uint8_t*);
template void row_to_bytes(std::int64_t, const double*, std::uint8_t*);
template void row_to_bits(std::int64_t, const float*, std::uint8_t*);
template void row_to_bits(std::int64_t, const double*, std::uint8_t*);

}  // namespace snnkern::cpu
