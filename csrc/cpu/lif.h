// The leaky integrate-and-fire layer over all its time steps, forward and backward, on raw memory.
//
// Tensors are [timesteps, neurons], the neurons of one step contiguous. The work is cut into tiles
// of neighbouring neurons that depend on the shape alone: any split of the tiles among
// threads gives the same result.
#pragma once

#include <cstdint>

#include "../dispatch.h"
#include "rows.h"

namespace snnkern::cpu {

struct LifShape {
  Dtype dtype;  // of x, spikes and their gradients
  std::int64_t timesteps;
  std::int64_t neurons;
  std::int64_t x_step;  // elements from one step of x to the next; 0 where the current is constant
};

// The cut of the neurons into tiles.
struct Tiling {
  std::int64_t neurons;
  std::int64_t size;

  static Tiling of(const LifShape& shape);
  std::int64_t count() const { return (neurons + size - 1) / size; }
};

// F: type of the state, float or double.
template <class F>
struct LifDynamics {
  Reset reset;
  bool strict;  // fires at v > threshold instead of v >= threshold
  F v_reset;
  Parameter<F> leak;
  Parameter<F> threshold;
};

template <class F>
struct LifForward {
  LifShape shape;
  LifDynamics<F> dynamics;
  const void* x;    // [timesteps, neurons]
  const F* v_init;  // [neurons], or null: rest
  void* spikes;     // [timesteps, neurons]
  F* state;         // [neurons], or null: not wanted
};

// Tiles [first, last).
template <class F>
void lif_forward(const LifForward<F>& p, const Tiling& tiling, std::int64_t first,
                 std::int64_t last);

template <class F>
struct LifBackward {
  LifShape shape;
  LifDynamics<F> dynamics;
  const void* x;            // [timesteps, neurons]
  const F* v_init;          // [neurons], or null: rest
  const void* grad_spikes;  // [timesteps, neurons]
  std::int64_t grad_step;   // elements from one step of grad_spikes to the next; 0 where constant
  const F* grad_state;      // [neurons], or null: the final state was not used
  bool detach_reset;
  Surrogate surrogate;
  const double* surrogate_args;
  bool normalized;
  void* grad_x;              // [timesteps, neurons]
  F* grad_v_init;            // [neurons], or null: not wanted
  F* neuron_grad_leak;       // [neurons], or null: not wanted. Sums over time, per neuron;
  F* neuron_grad_threshold;  // reduce_to_parameter makes the parameter's gradient of them
};

// Tiles [first, last).
template <class F>
void lif_backward(const LifBackward<F>& p, const Tiling& tiling, std::int64_t first,
                  std::int64_t last);

// Sums the gradients of the neurons that share a parameter value, for values [first, last), always
// in the same order. `neuron_grad` is [neurons], `grad` is [parameter.count].
template <class F>
void reduce_to_parameter(const F* neuron_grad, std::int64_t neurons, std::int64_t count,
                         std::int64_t repeat, F* grad);

}  // namespace snnkern::cpu
