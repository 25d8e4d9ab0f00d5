// What the kernels of a layer are given, on every device: raw pointers and plain numbers.
#pragma once

#include <cstdint>

#include "dispatch.h"

namespace snnkern {

// A parameter of the neurons: one value for all, or values that repeat over the neurons in memory
// order: neuron p has value (p / repeat) % count.
template <class F>
struct Parameter {
  const F* data;
  std::int64_t count;
  std::int64_t repeat;

  // Calls f(value, begin, end) for every stretch of neurons in [begin, end) that shares one value.
  template <class Call>
  void for_each_stretch(std::int64_t begin, std::int64_t end, Call&& f) const {
    std::int64_t index = (begin / repeat) % count;
    std::int64_t p = begin;
    std::int64_t stop = (begin / repeat + 1) * repeat;
    while (p < end) {
      f(index, p, stop < end ? stop : end);
      p = stop;
      stop += repeat;
      index = index + 1 == count ? 0 : index + 1;
    }
  }
};

struct LifShape {
  Dtype dtype;  // of x and of gradients; of the spikes unless another format is asked for
  std::int64_t timesteps;
  std::int64_t neurons;
  std::int64_t x_step;  // elements from one step of x to the next; 0 where the current is constant
  // Samples that lie apart in x, spikes and their gradients, so many elements from one to the next,
  // while each step of a sample lies together. Only kernels for the CPU are given more than one.
  std::int64_t samples;
  std::int64_t x_sample;
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
  std::int64_t spikes_sample;
  void* spikes;            // [timesteps, neurons]
  F* state;                // [neurons], or null: not wanted
  F* current;              // [neurons], or null: not wanted
  bool membranes = false;  // leave membranes before reset in place of spikes; spike_dtype is F's
};

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
  std::int64_t grad_sample;
  const F* grad_state;    // [neurons], or null: the final state was not used
  const F* grad_current;  // [neurons], or null: the final current was not used
  bool detach_reset;
  // One for all neurons, or one per sample: neuron p has number (p / sample_stride) % samples.
  const SurrogateChoice* surrogates;
  std::int64_t samples;
  std::int64_t sample_stride;
  // ds/dz of every step in place of a surrogate's, or null. Where the neurons look at the state
  // before the first step, that one's lies a step before.
  const F* derivatives;           // [timesteps, neurons]
  std::int64_t derivatives_step;  // elements from one step to the next; 0 where constant
  std::int64_t derivatives_sample;
  bool sum_over_time;  // grad_x is [1, neurons], summed over the steps
  void* grad_x;        // [timesteps, neurons]; with affine: of what the neurons see
  std::int64_t grad_x_step;
  std::int64_t grad_x_sample;
  F* grad_v_init;            // [neurons], or null: not wanted
  F* grad_current_init;      // [neurons], or null: not wanted
  F* neuron_grad_decay;      // [neurons], or null: not wanted. Sums over time, per neuron;
  F* neuron_grad_threshold;  // reduce_to_parameter makes the parameter's gradient of them
  F* neuron_grad_synapse;
};

}  // namespace snnkern
