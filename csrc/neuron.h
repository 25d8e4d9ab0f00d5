// The dynamics of a spiking neuron: charge, fire, reset, and their derivatives.
//
// This is the only place in C++ where they are written; every kernel, on every device, calls these
// functions one neuron-step at a time. Multiplication and addition stay separate roundings (build
// flags forbid contraction), so that every backend spikes exactly like the reference.
#pragma once

#if defined(__CUDACC__)
#define SNN_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define SNN_HD [[gnu::always_inline]] inline
#else
#define SNN_HD inline
#endif

namespace snnkern {

// What a neuron does after it fired. Order and names are those of snnkern._ops.RESETS.
enum class Reset : int {
  kHard = 0,         // u = v_reset
  kSoft = 1,         // u = v - threshold
  kDelayedSoft = 2,  // u = v; the next step subtracts the threshold after the leak
  kNone = 3,         // u = v
};

inline constexpr const char* kResetNames[] = {"hard", "soft", "delayed_soft", "none"};

// The parameters of one neuron. `fire_at` is the smallest membrane that fires: the threshold
// itself, or, where the comparison is strict, the next representable number above it.
template <class F>
struct Neuron {
  F leak;
  F threshold;
  F fire_at;
  F v_reset;
};

// Fire. False for NaN.
template <class F>
SNN_HD bool fires(F v, const Neuron<F>& n) {
  return v >= n.fire_at;
}

// Charge: the membrane v[t] before reset, from the carried state u[t-1] and the input current x[t].
template <Reset kReset, class F>
SNN_HD F charge(F u, F x, const Neuron<F>& n) {
  const F v = n.leak * u + x;
  if constexpr (kReset == Reset::kDelayedSoft) {
    return v - (fires(u, n) ? n.threshold : F(0));
  } else {
    return v;
  }
}

// Reset: the state u[t] carried to the next step. A selection, not arithmetic on the spike, so that
// an infinite membrane that fires comes back to v_reset.
template <Reset kReset, class F>
SNN_HD F reset(F v, bool s, const Neuron<F>& n) {
  if constexpr (kReset == Reset::kHard) {
    return s ? n.v_reset : v;
  } else if constexpr (kReset == Reset::kSoft) {
    return v - (s ? n.threshold : F(0));
  } else {
    return v;
  }
}

// How the surrogate sees the membrane: z = scale * v - shift, which is v - threshold, or
// v / threshold - 1 when normalized; -dz/dthreshold is dz/dv times constant + slope * v. Numbers
// instead of branches, so that a loop over neurons stays free of control flow.
template <class F>
struct SurrogateArgument {
  F scale, shift, constant, slope;

  // `inverse` is 1 / threshold.
  SNN_HD static SurrogateArgument of(F threshold, F inverse, bool normalized) {
    return {normalized ? inverse : F(1), normalized ? F(1) : threshold, normalized ? F(0) : F(1),
            normalized ? inverse : F(0)};
  }
  SNN_HD F operator()(F v) const { return v * scale - shift; }
  SNN_HD F minus_dthreshold(F v) const { return constant + slope * v; }
};

// What one step of the backward scan leaves behind.
template <class F>
struct StepGradient {
  F v;          // dL/dv[t] = dL/dx[t], and what the step before receives
  F leak;       // this step's share of dL/dleak: it pairs u[t] with dL/dv[t+1]
  F threshold;  // this step's share of dL/dthreshold
};

// One step of backpropagation through time, from step t+1 to step t.
//   v         membrane of step t, before reset
//   gs        dL/ds[t] from the layer above
//   gu        dL/du[t] from the step after: leak * dL/dv[t+1]
//   g_next    dL/dv[t+1] itself, for what a delayed reset subtracts there and for the leak
//   attached  1 if the spike inside the reset is differentiated too, 0 if it is detached
template <Reset kReset, class F, class Derivative>
SNN_HD StepGradient<F> step_gradient(F v, F gs, F gu, F g_next, F attached, const Neuron<F>& n,
                                     const SurrogateArgument<F>& z, const Derivative& derivative) {
  const bool s = fires(v, n);
  F g_spike = gs;
  F g_membrane = gu;
  F g_threshold = F(0);
  if constexpr (kReset == Reset::kHard) {
    g_spike = gs + gu * (attached * (n.v_reset - v));
    g_membrane = s ? F(0) : gu;
  } else if constexpr (kReset == Reset::kSoft) {
    g_spike = gs - gu * (attached * n.threshold);
    g_threshold = s ? gu : F(0);
  } else if constexpr (kReset == Reset::kDelayedSoft) {
    g_spike = gs - g_next * (attached * n.threshold);
    g_threshold = s ? g_next : F(0);
  }
  // The factors are put together apart from the gradients, which pass from step to step: the chain
  // of a step stays short.
  const F ds_dv = derivative(z(v)) * z.scale;
  const F through_spike = g_spike * ds_dv;
  return {g_membrane + through_spike, g_next * reset<kReset>(v, s, n),
          -g_threshold - through_spike * z.minus_dthreshold(v)};
}

}  // namespace snnkern
