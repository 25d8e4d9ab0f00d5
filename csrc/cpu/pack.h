// Spikes as bits and back, on raw memory.
#pragma once

#include <cstdint>

#include "../pack.h"

namespace snnkern::cpu {

// Rows are cut into pieces, which fill whole bytes.
inline constexpr std::int64_t kPiece = 1 << 14;
inline std::int64_t pieces_of_a_row(const BitRows& shape) {
  return (shape.neurons + kPiece - 1) / kPiece;
}

// Pieces [first, last) of `spikes`, whose rows are `step` elements apart, to `bits` [rows, bytes].
// Ends early at a value other than 0 and 1: gives its place, row * neurons + neuron, else -1.
std::int64_t pack_spikes(const BitRows& shape, Dtype dtype, const void* spikes, std::int64_t step,
                         std::uint8_t* bits, std::int64_t first, std::int64_t last);

// Pieces [first, last) of `bits` to `spikes` [rows, neurons].
void unpack_spikes(const BitRows& shape, Dtype dtype, const std::uint8_t* bits, void* spikes,
                   std::int64_t first, std::int64_t last);

}  // namespace snnkern::cpu
