// float16 and bfloat16 as the 16 bits that they are, for host and device.
#pragma once

#include <bit>
#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include "neuron.h"

namespace snnkern {

SNN_HD float from_half(std::uint16_t h) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(h));
#else
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
  const std::uint32_t rest = static_cast<std::uint32_t>(h & 0x7fffu) << 13;
  const float finite = std::bit_cast<float>(rest) * 0x1p112f;  // subnormals come out right too
  const std::uint32_t bits =
      rest >= 0x0f800000u ? (rest | 0x7f800000u) : std::bit_cast<std::uint32_t>(finite);
  return std::bit_cast<float>(sign | bits);
#endif
}

// Rounds to nearest, ties to even.
SNN_HD std::uint16_t to_half(float f) {
#if defined(__CUDA_ARCH__)
  return __half_as_ushort(__float2half_rn(f));
#else
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(f);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t rest = bits & 0x7fffffffu;
  const std::uint32_t special = rest > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const std::uint32_t subnormal =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(rest) + 0.5f) - 0x3f000000u;
  const std::uint32_t normal = (rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u)) >> 13;
  const std::uint32_t half =
      rest >= 0x47800000u ? special : (rest < 0x38800000u ? subnormal : normal);
  return static_cast<std::uint16_t>(sign | half);
#endif
}

SNN_HD float from_bfloat16(std::uint16_t b) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(b) << 16);
}

// Rounds to nearest, ties to even.
SNN_HD std::uint16_t to_bfloat16(float f) {
#if defined(__CUDA_ARCH__)
  return __bfloat16_as_ushort(__float2bfloat16_rn(f));
#else
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(f);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
#endif
}

}  // namespace snnkern
