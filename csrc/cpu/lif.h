// The leaky integrate-and-fire layer over all its time steps, forward and backward, on raw memory.
//
// Tensors are [timesteps, neurons], the neurons of one step contiguous. The work is cut into tiles
// of neighbouring neurons that depend on the shape alone: any split of the tiles among threads
// gives the same result.
#pragma once

#include <cstdint>

#include "../lif.h"

namespace snnkern::cpu {

// The cut of the neurons into tiles.
struct Tiling {
  std::int64_t neurons;  // of each sample, where samples lie apart
  std::int64_t size;
  std::int64_t samples;

  // `kept`: numbers that the kernel remembers per neuron and step. `largest`: a tile's length.
  static Tiling of(const LifShape& shape, std::int64_t kept, std::int64_t largest);
  std::int64_t per_sample() const { return (neurons + size - 1) / size; }
  std::int64_t count() const { return samples * per_sample(); }
};

template <class F>
Tiling tiling_of(const LifForward<F>& p);

// Tiles [first, last).
template <class F>
void lif_forward(const LifForward<F>& p, const Tiling& tiling, std::int64_t first,
                 std::int64_t last);

template <class F>
Tiling tiling_of(const LifBackward<F>& p);

// Tiles [first, last).
template <class F>
void lif_backward(const LifBackward<F>& p, const Tiling& tiling, std::int64_t first,
                  std::int64_t last);

// Sums over time of x - centre and of its square, per neuron, for tiles [first, last).
template <class F>
void moments(const LifShape& shape, const void* x, const Parameter<F>& centre, F* neuron_sum,
             F* neuron_square, const Tiling& tiling, std::int64_t first, std::int64_t last);

// The gradient of normalisation, in place: g becomes from_g * g + from_x * (x - mean) + constant.
template <class F>
void norm_backward(const LifShape& shape, const void* x, const Parameter<F>& mean,
                   const Parameter<F>& from_g, const Parameter<F>& from_x,
                   const Parameter<F>& constant, void* g, const Tiling& tiling, std::int64_t first,
                   std::int64_t last);

// Sums the gradients of the neurons that share a parameter value, always in the same order.
// `neuron_grad` is [neurons], `grad` is [count]; neuron p has value (p / repeat) % count.
template <class F>
void reduce_to_parameter(const F* neuron_grad, std::int64_t neurons, std::int64_t count,
                         std::int64_t repeat, F* grad);

}  // namespace snnkern::cpu
