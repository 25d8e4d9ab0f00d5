#include "pack.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "clones.h"

namespace snnkern::cpu {
namespace {

static_assert(std::endian::native == std::endian::little, "eight bytes are gathered as one number");

constexpr std::int64_t kBlock = 64;

// Bytes 0 or 1 to the bits of a byte, the first in the lowest.
inline std::uint8_t gather_bits(const std::uint8_t* bytes) {
  std::uint64_t eight = 0;
  std::memcpy(&eight, bytes, sizeof(eight));
  return static_cast<std::uint8_t>((eight * 0x0102040810204080u) >> 56);
}

// n values to (n + 7) / 8 bytes; whether all were 0 or 1.
template <class U>
SNN_CLONES bool pack_row(std::int64_t n, Pattern<U> pattern, const U* __restrict in,
                         std::uint8_t* __restrict out) {
  U strays = 0;
  std::uint8_t fired[kBlock];
  std::int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    for (std::int64_t k = 0; k < kBlock; ++k) {
      const U v = in[i + k];
      fired[k] = pattern.is_spike(v);
      strays |= static_cast<U>(pattern.is_stray(v));
    }
    for (std::int64_t byte = 0; byte < kBlock / 8; ++byte) {
      out[i / 8 + byte] = gather_bits(fired + 8 * byte);
    }
  }
  if (i < n) {
    std::fill(fired, fired + kBlock, std::uint8_t{0});
    for (std::int64_t k = 0; i + k < n; ++k) {
      const U v = in[i + k];
      fired[k] = pattern.is_spike(v);
      strays |= static_cast<U>(pattern.is_stray(v));
    }
    for (std::int64_t byte = 0; i + 8 * byte < n; ++byte) {
      out[i / 8 + byte] = gather_bits(fired + 8 * byte);
    }
  }
  return strays == 0;
}

template <class U>
SNN_CLONES void unpack_row(std::int64_t n, U one, const std::uint8_t* __restrict in,
                           U* __restrict out) {
  std::uint8_t fired[kBlock];
  for (std::int64_t i = 0; i < n; i += kBlock) {
    const std::int64_t count = std::min(kBlock, n - i);
    for (std::int64_t byte = 0; 8 * byte < count; ++byte) {
      const std::uint64_t eight = (in[i / 8 + byte] * 0x0101010101010101u) & 0x8040201008040201u;
      std::memcpy(fired + 8 * byte, &eight, sizeof(eight));
    }
    if (count == kBlock) {
      for (std::int64_t k = 0; k < kBlock; ++k) out[i + k] = fired[k] ? one : U(0);
    } else {
      for (std::int64_t k = 0; k < count; ++k) out[i + k] = fired[k] ? one : U(0);
    }
  }
}

// Calls f(row, begin, end), the neurons of a row, for pieces [first, last); ends where f gives
// false.
template <class Call>
void for_pieces(const BitRows& shape, std::int64_t first, std::int64_t last, Call&& f) {
  const std::int64_t per_row = pieces_of_a_row(shape);
  for (std::int64_t piece = first; piece < last; ++piece) {
    const std::int64_t begin = piece % per_row * kPiece;
    if (!f(piece / per_row, begin, std::min(begin + kPiece, shape.neurons))) return;
  }
}

}  // namespace

std::int64_t pack_spikes(const BitRows& shape, Dtype dtype, const void* spikes, std::int64_t step,
                         std::uint8_t* bits, std::int64_t first, std::int64_t last) {
  std::int64_t stray = -1;
  with_pattern(dtype, [&]<class U>(Pattern<U> pattern) {
    for_pieces(shape, first, last, [&](std::int64_t row, std::int64_t begin, std::int64_t end) {
      const U* const in = static_cast<const U*>(spikes) + row * step;
      std::uint8_t* const out = bits + row * shape.bytes() + begin / 8;
      if (pack_row(end - begin, pattern, in + begin, out)) return true;
      const U* const found =
          std::find_if(in + begin, in + end, [&](U v) { return pattern.is_stray(v); });
      stray = row * shape.neurons + (found - in);
      return false;
    });
  });
  return stray;
}

void unpack_spikes(const BitRows& shape, Dtype dtype, const std::uint8_t* bits, void* spikes,
                   std::int64_t first, std::int64_t last) {
  with_pattern(dtype, [&]<class U>(Pattern<U> pattern) {
    for_pieces(shape, first, last, [&](std::int64_t row, std::int64_t begin, std::int64_t end) {
      unpack_row(end - begin, pattern.one, bits + row * shape.bytes() + begin / 8,
                 static_cast<U*>(spikes) + row * shape.neurons + begin);
      return true;
    });
  });
}

}  // namespace snnkern::cpu
