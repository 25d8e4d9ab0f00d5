// Spikes as bits, for host and device. The format is that of spikes that lif writes as bits: see
// Dtype in dispatch.h.
#pragma once

#include <cstdint>

#include "dispatch.h"
#include "half.h"

namespace snnkern {

// Rows of neurons; each fills whole bytes.
struct BitRows {
  std::int64_t rows;
  std::int64_t neurons;

  SNN_HD std::int64_t bytes() const { return (neurons + 7) / 8; }
};

// Numbers by their bits: that of 1, and all but the sign, which a zero may have.
template <class U>
struct Pattern {
  U one;
  U magnitude;

  SNN_HD bool is_spike(U v) const { return (v & magnitude) != 0; }
  SNN_HD bool is_stray(U v) const { return is_spike(v) & (v != one); }
};

// Calls f with the pattern of a dtype.
template <class Call>
auto with_pattern(Dtype dtype, Call&& f) {
  switch (dtype) {
    case Dtype::kFloat64:
      return f(Pattern<std::uint64_t>{0x3ff0000000000000u, 0x7fffffffffffffffu});
    case Dtype::kFloat16:
      return f(Pattern<std::uint16_t>{0x3c00u, 0x7fffu});
    case Dtype::kBFloat16:
      return f(Pattern<std::uint16_t>{0x3f80u, 0x7fffu});
    case Dtype::kUint8:
      return f(Pattern<std::uint8_t>{1u, 0xffu});
    default:
      return f(Pattern<std::uint32_t>{0x3f800000u, 0x7fffffffu});
  }
}

// Element `place` of a tensor.
SNN_HD double value_at(Dtype dtype, const void* tensor, std::int64_t place) {
  switch (dtype) {
    case Dtype::kFloat64:
      return static_cast<const double*>(tensor)[place];
    case Dtype::kFloat16:
      return static_cast<double>(from_half(static_cast<const std::uint16_t*>(tensor)[place]));
    case Dtype::kBFloat16:
      return static_cast<double>(from_bfloat16(static_cast<const std::uint16_t*>(tensor)[place]));
    case Dtype::kUint8:
      return static_cast<const std::uint8_t*>(tensor)[place];
    default:
      return static_cast<double>(static_cast<const float*>(tensor)[place]);
  }
}

}  // namespace snnkern
