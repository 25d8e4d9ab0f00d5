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

}  // namespace snnkern::cpu
