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

// What a neuron does after it fired. Order and names are those of snnkern.reference.RESETS.
enum class Reset : int {
  kHard = 0,         // u = v_reset
  kSoft = 1,         // u = v - threshold
  kDelayedSoft = 2,  // u = v; the next step subtracts the threshold after the leak
  kNone = 3,         // u = v
};

inline constexpr const char* kResetNames[] = {"hard", "soft", "delayed_soft", "none"};

// How a neuron takes up its input current. `decay` is the leak, the rate or the time constant, as
// the kind has it. Each is the exact association of operations of a library that people use. Order
// and names are those of snnkern.reference.CHARGES.
enum class Charge : int {
  kLeak = 0,        // v = leak * u + x
  kEuler = 1,       // v = u + rate * ((v_rest - u) + x)
  kEulerBox = 2,    // v = u + rate * ((x + v_rest) - u)
  kDecayInput = 3,  // v = u + ((v_rest - u) + x) / tau
  kDecay = 4,       // v = (u - (u - v_rest) / tau) + x
};

inline constexpr const char* kChargeNames[] = {"leak", "euler", "euler_box", "decay_input",
                                               "decay"};

// The synapse in front of the membrane: what current reaches it. Order and names are those of
// snnkern.reference.SYNAPSES.
enum class Synapse : int {
  kNone = 0,     // x
  kCharged = 1,  // c = decay * c + x;     c
  kDecayed = 2,  // c = decay * (c + x);   c
  kJump = 3,     // j = c + x, c = j + -rate * j;  j
};

inline constexpr const char* kSynapseNames[] = {"none", "charged", "decayed", "jump"};

// The parameters of one neuron. `fire_at` is the smallest membrane that fires: the threshold
// itself, or, where the comparison is strict, the next representable number above it.
template <class F>
struct Neuron {
  F decay;
  F threshold;
  F fire_at;
  F v_rest;
  F v_reset;
};

// Fire. False for NaN.
template <class F>
SNN_HD bool fires(F v, const Neuron<F>& n) {
  return v >= n.fire_at;
}

// Charge: the membrane v[t] before reset, from the carried state u[t-1] and the input current x[t].
template <Charge kCharge, Reset kReset, class F>
SNN_HD F charge(F u, F x, const Neuron<F>& n) {
  F v;
  if constexpr (kCharge == Charge::kLeak) {
    v = n.decay * u + x;
  } else if constexpr (kCharge == Charge::kEuler) {
    v = u + n.decay * ((n.v_rest - u) + x);
  } else if constexpr (kCharge == Charge::kEulerBox) {
    v = u + n.decay * ((x + n.v_rest) - u);
  } else if constexpr (kCharge == Charge::kDecayInput) {
    v = u + ((n.v_rest - u) + x) / n.decay;
  } else {
    v = (u - (u - n.v_rest) / n.decay) + x;
  }
  if constexpr (kReset == Reset::kDelayedSoft) {
    return v - (fires(u, n) ? n.threshold : F(0));
  } else {
    return v;
  }
}

// Derivatives of the charge: dv/du and dv/dx, which depend on parameters alone, and dv/ddecay.
template <Charge kCharge, class F>
SNN_HD F charge_du(const Neuron<F>& n) {
  if constexpr (kCharge == Charge::kLeak) {
    return n.decay;
  } else if constexpr (kCharge == Charge::kEuler || kCharge == Charge::kEulerBox) {
    return F(1) - n.decay;
  } else {
    return F(1) - F(1) / n.decay;
  }
}

template <Charge kCharge, class F>
SNN_HD F charge_dx(const Neuron<F>& n) {
  if constexpr (kCharge == Charge::kLeak || kCharge == Charge::kDecay) {
    return F(1);
  } else if constexpr (kCharge == Charge::kDecayInput) {
    return F(1) / n.decay;
  } else {
    return n.decay;
  }
}

template <Charge kCharge, class F>
SNN_HD F charge_ddecay(F u, F x, const Neuron<F>& n) {
  if constexpr (kCharge == Charge::kLeak) {
    return u;
  } else if constexpr (kCharge == Charge::kEuler || kCharge == Charge::kEulerBox) {
    return (x - u) + n.v_rest;
  } else if constexpr (kCharge == Charge::kDecayInput) {
    return ((u - n.v_rest) - x) / (n.decay * n.decay);
  } else {
    return (u - n.v_rest) / (n.decay * n.decay);
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

// The same where it is known that nothing is normalized.
template <class F>
struct DistanceToThreshold {
  static constexpr F scale = F(1);
  F threshold;

  SNN_HD F operator()(F v) const { return v - threshold; }
  SNN_HD F minus_dthreshold(F) const { return F(1); }
};

// What one step of the backward scan leaves behind.
template <class F>
struct StepGradient {
  F v;          // dL/dv[t]
  F threshold;  // this step's share of dL/dthreshold
};

// One step of backpropagation through time, from step t+1 to step t.
//   v         membrane of step t, before reset
//   ds_dv     derivative of the spike with respect to it
//   gs        dL/ds[t] from the layer above
//   g_next    dL/dv[t+1]; at the end of time dL/du[t] of the final state
//   du        dv[t+1]/du[t]; 1 at the end
//   delayed   1 if the next step subtracts what a delayed reset owes, 0 at the end
//   kAttached whether the spike inside the reset is differentiated too
// The chain from g_next to the result is one multiplication and one addition: a step waits for it.
template <Reset kReset, bool kAttached, class F, class Argument>
SNN_HD StepGradient<F> step_gradient(F v, F ds_dv, F gs, F g_next, F du, F delayed,
                                     const Neuron<F>& n, const Argument& z) {
  const bool s = fires(v, n);
  F by_spike = F(0);  // dv[t+1]/dv[t] through the spike in the reset,
  F by_state = du;    // and past it
  F by_threshold = F(0);
  if constexpr (kReset == Reset::kHard) {
    if constexpr (kAttached) by_spike = du * ((n.v_reset - v) * ds_dv);
    by_state = s ? F(0) : du;
  } else if constexpr (kReset == Reset::kSoft) {
    if constexpr (kAttached) by_spike = -du * (n.threshold * ds_dv);
    by_threshold = s ? -du : F(0);
  } else if constexpr (kReset == Reset::kDelayedSoft) {
    if constexpr (kAttached) by_spike = -delayed * (n.threshold * ds_dv);
    by_threshold = s ? -delayed : F(0);
  }
  const F from_above = gs * ds_dv;
  const F through_spike = from_above + g_next * by_spike;
  return {from_above + g_next * (by_spike + by_state),
          g_next * by_threshold - through_spike * z.minus_dthreshold(v)};
}

// Synapse: what reaches the membrane, and the carried current c, which becomes the next one.
template <Synapse kSynapse, class F>
SNN_HD F conduct(F& c, F x, F decay) {
  if constexpr (kSynapse == Synapse::kCharged) {
    return c = decay * c + x;
  } else if constexpr (kSynapse == Synapse::kDecayed) {
    return c = decay * (c + x);
  } else if constexpr (kSynapse == Synapse::kJump) {
    const F j = c + x;
    c = j + -decay * j;
    return j;
  } else {
    return x;
  }
}

// One step backward through the synapse: from dL/d(what reached the membrane) and dL/dc of the step
// after, which becomes that of this one, to dL/dx. `c` is the carried current before the step;
// this step's share of dL/ddecay is added to g_decay.
template <Synapse kSynapse, class F>
SNN_HD F conduct_gradient(F g, F& gc, F c, F x, F decay, F& g_decay) {
  if constexpr (kSynapse == Synapse::kCharged) {
    const F total = g + gc;
    g_decay += total * c;
    gc = decay * total;
    return total;
  } else if constexpr (kSynapse == Synapse::kDecayed) {
    const F total = g + gc;
    g_decay += total * (c + x);
    return gc = decay * total;
  } else if constexpr (kSynapse == Synapse::kJump) {
    g_decay += -(gc * (c + x));
    return gc = g + (F(1) - decay) * gc;
  } else {
    return g;
  }
}

}  // namespace snnkern
