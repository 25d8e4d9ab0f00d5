// Bounds through a layer of neurons over all its time steps, on raw memory.
#pragma once

#include <cstdint>

#include "../bounds.h"
#include "lif.h"

namespace snnkern::cpu {

// Tiles [first, last).
template <class F>
void interval_forward(const IntervalForward<F>& p, const Tiling& tiling, std::int64_t first,
                      std::int64_t last);
template <class F>
void interval_backward(const IntervalBackward<F>& p, const Tiling& tiling, std::int64_t first,
                       std::int64_t last);
// Tiles of all rows, row after row.
template <class F>
void relax(const Relaxation<F>& p, const Tiling& tiling, std::int64_t first, std::int64_t last);

// Tiles [first, last), all rows of each.
template <class F>
void relax_backward(const RelaxationBackward<F>& p, const Tiling& tiling, std::int64_t first,
                    std::int64_t last);

}  // namespace snnkern::cpu
