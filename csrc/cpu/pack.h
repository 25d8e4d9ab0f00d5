// Spikes as bits and back, on raw memory. The format is that of spikes that lif writes as bits: see
// Dtype in dispatch.h.
#pragma once

#include <cstdint>

#include "../dispatch.h"

namespace snnkern::cpu {

// Rows of neurons, which are cut into pieces that fill whole bytes.
struct BitRows {
  std::int64_t rows;
  std::int64_t neurons;

  static constexpr std::int64_t kPiece = 1 << 14;
  std::int64_t bytes() const { return (neurons + 7) / 8; }
  std::int64_t pieces() const { return rows * pieces_of_a_row(); }
  std::int64_t pieces_of_a_row() const { return (neurons + kPiece - 1) / kPiece; }
};

// Pieces [first, last) of `spikes`, whose rows are `step` elements apart, to `bits` [rows, bytes].
// Ends early at a value other than 0 and 1: gives its place, row * neurons + neuron, else -1.
std::int64_t pack_spikes(const BitRows& shape, Dtype dtype, const void* spikes, std::int64_t step,
                         std::uint8_t* bits, std::int64_t first, std::int64_t last);

// Pieces [first, last) of `bits` to `spikes` [rows, neurons].
void unpack_spikes(const BitRows& shape, Dtype dtype, const std::uint8_t* bits, void* spikes,
                   std::int64_t first, std::int64_t last);

// Element `place` of a tensor.
double value_at(Dtype dtype, const void* tensor, std::int64_t place);

}  // namespace snnkern::cpu
