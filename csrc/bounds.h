// What the kernels of certification are given, on every device.
#pragma once

#include <cstdint>

#include "interval.h"
#include "lif.h"

namespace snnkern {

// A tensor [timesteps, neurons], and elements from one step to the next; 0 where it is constant.
struct Steps {
  const void* data;
  std::int64_t step;
};

template <class F>
struct IntervalForward {
  LifShape shape;           // x_step is that of `lower`
  std::int64_t upper_step;  // elements from one step of `upper` to the next
  LifDynamics<F> dynamics;
  F v_init;
  const void *lower, *upper;          // [timesteps, neurons]
  void *spikes_lower, *spikes_upper;  // [timesteps, neurons]
  F *v_lower, *v_upper;               // [timesteps, neurons], or null: not wanted
};

// Pairs are of the lower and of the upper end.
template <class F>
struct IntervalBackward {
  LifShape shape;
  LifDynamics<F> dynamics;
  F v_init;
  Steps x[2];
  Steps grad_spikes[2];
  Steps grad_v[2];  // of type F; null where there are none
  SurrogateChoice surrogate;
  void* grad_x[2];           // [timesteps, neurons]
  F* neuron_grad_decay;      // [neurons], or null: not wanted. Sums over time, per neuron
  F* neuron_grad_threshold;  // [neurons], or null: not wanted
};

template <class F>
struct Relaxation {
  LifShape shape;
  LifDynamics<F> dynamics;
  F v_init;
  Steps v[2];  // of type F
  std::int64_t rows;
  Slope slope;
  const F* weights;  // [rows, timesteps, neurons]
  const F* after;    // [rows, neurons], of the membrane after the last step, or null: none
  const F* slopes;   // the same, or null: not given
  F* lines;          // [rows, timesteps, neurons]
  double* bias;      // [rows, neurons]
};

template <class F>
struct RelaxationBackward {
  LifShape shape;
  LifDynamics<F> dynamics;
  F v_init;
  Steps v[2];  // of type F
  std::int64_t rows;
  Slope slope;
  const F* weights;  // as in Relaxation, like these
  const F* after;
  const F* slopes;
  const F* lines;
  const F* grad_lines;          // [rows, timesteps, neurons]
  Parameter<double> grad_bias;  // of the first row; of the others `bias_step` elements on
  std::int64_t bias_step;
  F* grad_weights;           // [rows, timesteps, neurons]
  F* grad_v[2];              // [timesteps, neurons], summed over the rows
  F* grad_slopes;            // like slopes
  F* grad_after;             // like after
  F* neuron_grad_decay;      // [neurons], or null: not wanted. Sums over rows and time
  F* neuron_grad_threshold;  // [neurons], or null: not wanted
};

}  // namespace snnkern
