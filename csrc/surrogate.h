// Surrogate derivatives ds/dz of the spike with respect to its argument z, for host and device.
// Formulas, parameters and their order are those of snnkern/surrogate.py.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "neuron.h"

namespace snnkern {

// Order and names are those of snnkern.reference.SURROGATES.
enum class Surrogate : int {
  kTriangle = 0,
  kRectangle = 1,
  kExponential = 2,
  kATan = 3,
  kSigmoid = 4,
  kFastSigmoid = 5,
  kErf = 6,
  kStraightThrough = 7,
  kSpikeTime = 8,  // depends on the time since the last spike, not on z
};

inline constexpr const char* kSurrogateNames[] = {"triangle", "rectangle",        "exponential",
                                                  "atan",     "sigmoid",          "fast_sigmoid",
                                                  "erf",      "straight_through", "spike_time"};

// exp(x) for x <= 0 by range reduction and a polynomial: libm's expf is a call that keeps loops
// from being vectorised, and differs from that of CUDA. Within 2 ulp of expf; below -87.3, where
// floats become subnormal, it is 0.
SNN_HD float exp_nonpositive(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // 2^n: the integer sits in the low bits of `shifted`
  const float scale =
      std::bit_cast<float>((std::bit_cast<std::uint32_t>(shifted) << 23) + 0x3f800000u);
  return x < -87.3f ? 0.0f : p * scale;
}

SNN_HD double exp_nonpositive(double x) { return exp(x); }

template <class F>
struct Triangle {
  F width, scale;
  SNN_HD F operator()(F z) const {
    const F height = width - std::abs(z);
    return height > F(0) ? scale * height : F(0);
  }
};

template <class F>
struct Rectangle {
  F half_width, scale;
  SNN_HD F operator()(F z) const { return std::abs(z) < half_width ? scale : F(0); }
};

template <class F>
struct Exponential {
  F scale, slope;
  SNN_HD F operator()(F z) const { return scale * exp_nonpositive(-(slope * std::abs(z))); }
};

template <class F>
struct ATan {
  F alpha;
  SNN_HD F operator()(F z) const {
    const F q = F(1.5707963267948966) * alpha * z;
    return F(0.5) * alpha / (F(1) + q * q);
  }
};

template <class F>
struct Sigmoid {
  F alpha;
  SNN_HD F operator()(F z) const {
    const F e = exp_nonpositive(-(alpha * std::abs(z)));
    const F d = F(1) + e;
    return alpha * e / (d * d);
  }
};

template <class F>
struct FastSigmoid {
  F slope;
  SNN_HD F operator()(F z) const {
    const F d = F(1) + slope * std::abs(z);
    return F(1) / (d * d);
  }
};

template <class F>
struct Erf {
  F alpha;
  SNN_HD F operator()(F z) const {
    const F q = alpha * z;
    return F(0.5641895835477563) * alpha * exp_nonpositive(-(q * q));
  }
};

// ds/dz = alpha exp(-beta steps), with the steps since the neuron last fired (STDB).
template <class F>
struct SpikeTime {
  F alpha, beta;
  SNN_HD F operator()(F steps) const { return alpha * exp_nonpositive(-(beta * steps)); }
};

template <class F>
struct StraightThrough {
  SNN_HD F operator()(F) const { return F(1); }
};

// Calls `f` with the derivative that `kind` names; false where there is none of that kind.
#pragma nv_exec_check_disable  // f is code of the host or of the device, as its caller is
template <class F, class Call>
SNN_HD bool with_surrogate(Surrogate kind, const double* args, Call&& f) {
  switch (kind) {
    case Surrogate::kTriangle:
      return f(Triangle<F>{F(args[0]), F(args[1])}), true;
    case Surrogate::kRectangle:
      return f(Rectangle<F>{F(args[0]) / F(2), F(args[1])}), true;
    case Surrogate::kExponential:
      return f(Exponential<F>{F(args[0]), F(args[1])}), true;
    case Surrogate::kATan:
      return f(ATan<F>{F(args[0])}), true;
    case Surrogate::kSigmoid:
      return f(Sigmoid<F>{F(args[0])}), true;
    case Surrogate::kFastSigmoid:
      return f(FastSigmoid<F>{F(args[0])}), true;
    case Surrogate::kErf:
      return f(Erf<F>{F(args[0])}), true;
    case Surrogate::kStraightThrough:
      return f(StraightThrough<F>{}), true;
    case Surrogate::kSpikeTime:
      return false;
  }
  return false;
}

}  // namespace snnkern
