// The leaky integrate-and-fire layer over all its time steps, forward and backward, on raw memory.
//
// Tensors are [timesteps, neurons], the neurons of one step contiguous. The work is cut into tiles
// of neighbouring neurons that depend on the shape alone: any split of the tiles among threads
// gives the same result.
#pragma once

#include <cstdint>

#include "../dispatch.h"
#include "rows.h"

namespace snnkern::cpu {

struct LifShape {
  Dtype dtype;  // of x and of gradients; of the spikes unless another format is asked for
  std::int64_t timesteps;
  std::int64_t neurons;
  std::int64_t x_step;  // elements from one step of x to the next; 0 where the current is constant
};

// The cut of the neurons into tiles.
struct Tiling {
  std::int64_t neurons;
  std::int64_t size;

  // `kept`: numbers that the kernel remembers per neuron and step. `largest`: a tile's length.
  static Tiling of(const LifShape& shape, std::int64_t kept, std::int64_t largest);
  std::int64_t count() const { return (neurons + size - 1) / size; }
};

// F: type of the state, float or double.
template <class F>
struct LifDynamics {
  Charge charge;
  Reset reset;
  Synapse synapse;
  bool strict;         // fires at v > threshold instead of v >= threshold
  bool delayed_spike;  // a spike leaves one step after the membrane reached the threshold
  F v_rest;
  F v_reset;
  F gain;              // of the input current
  Parameter<F> decay;  // leak, rate or time constant, as the charge has it
  Parameter<F> threshold;
  Parameter<F> synapse_decay;
};

// What the neurons see of x: scale * x + shift, per channel; x itself where there is none. This is
// how normalisation reaches them without a normalised tensor.
template <class F>
struct Affine {
  Parameter<F> scale{nullptr, 1, 1};
  Parameter<F> shift{nullptr, 1, 1};
  explicit operator bool() const { return scale.data != nullptr; }
};

// What the normalisation's own gradient needs of g, the gradient of scale * x + shift.
template <class F>
struct NormSums {
  Parameter<F> mean{nullptr, 1, 1};
  F* neuron_sum = nullptr;  // [neurons], or null: not wanted. Sums over time of g,
  F* neuron_dot = nullptr;  // and of g * (x - mean)
};

template <class F>
struct LifForward {
  LifShape shape;
  LifDynamics<F> dynamics;
  Affine<F> affine;
  const void* x;             // [timesteps, neurons]
  const F* v_init;           // [neurons], or null: rest
  const F* current_init;     // [neurons], or null: none
  Dtype spike_dtype;         // that of x, bytes or bits
  std::int64_t spikes_step;  // elements from one step of spikes to the next
  void* spikes;              // [timesteps, neurons]
  F* state;                  // [neurons], or null: not wanted
  F* current;                // [neurons], or null: not wanted
};

template <class F>
Tiling tiling_of(const LifForward<F>& p);

// Tiles [first, last).
template <class F>
void lif_forward(const LifForward<F>& p, const Tiling& tiling, std::int64_t first,
                 std::int64_t last);

// One surrogate, and whom it serves.
struct SurrogateChoice {
  Surrogate kind;
  double args[2];
  bool normalized;
};

template <class F>
struct LifBackward {
  LifShape shape;
  LifDynamics<F> dynamics;
  Affine<F> affine;
  NormSums<F> norm;
  const void* x;            // [timesteps, neurons]
  const F* v_init;          // [neurons], or null: rest
  const F* current_init;    // [neurons], or null: none
  const void* grad_spikes;  // [timesteps, neurons]
  std::int64_t grad_step;   // elements from one step of grad_spikes to the next; 0 where constant
  const F* grad_state;      // [neurons], or null: the final state was not used
  const F* grad_current;    // [neurons], or null: the final current was not used
  bool detach_reset;
  // One for all neurons, or one per sample: neuron p has number (p / sample_stride) % samples.
  const SurrogateChoice* surrogates;
  std::int64_t samples;
  std::int64_t sample_stride;
  bool sum_over_time;        // grad_x is [1, neurons], summed over the steps
  void* grad_x;              // [timesteps, neurons]; with affine: of what the neurons see
  F* grad_v_init;            // [neurons], or null: not wanted
  F* grad_current_init;      // [neurons], or null: not wanted
  F* neuron_grad_decay;      // [neurons], or null: not wanted. Sums over time, per neuron;
  F* neuron_grad_threshold;  // reduce_to_parameter makes the parameter's gradient of them
  F* neuron_grad_synapse;
};

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
