// Bounds through a spiking neuron: what charge, fire and reset make of intervals (S-IBP), and lines
// below what they give (S-CROWN). Liang et al. 2022; the only place in C++ where they are written.
#pragma once

#include <cmath>

#include "dispatch.h"
#include "neuron.h"

namespace snnkern {

template <class F>
struct Interval {
  F lower, upper;
};

// As the reference selects, so that ties and signs of zero agree.
template <class F>
SNN_HD F lesser(F a, F b) {
  return b < a ? b : a;
}
template <class F>
SNN_HD F greater(F a, F b) {
  return b > a ? b : a;
}

// Bounds of the membrane before reset, from those of the carried state and of the current. A
// delayed reset subtracts here what a step before may owe that fired.
template <Reset kReset, class F>
SNN_HD Interval<F> charge_interval(const Interval<F>& u, const Interval<F>& x, const Neuron<F>& n) {
  const F low = charge<Charge::kLeak, Reset::kNone>(u.lower, x.lower, n);
  const F high = charge<Charge::kLeak, Reset::kNone>(u.upper, x.upper, n);
  if constexpr (kReset == Reset::kDelayedSoft) {
    const bool surely = fires(u.lower, n), maybe = fires(u.upper, n);
    // Both cases meet at the threshold, where one has fired and the other has not.
    const F fired = charge<Charge::kLeak, Reset::kNone>(n.threshold, x.lower, n) - n.threshold;
    const F silent = charge<Charge::kLeak, Reset::kNone>(n.threshold, x.upper, n);
    const F low_fired = low - n.threshold, high_fired = high - n.threshold;
    const F low_either = lesser(low, fired), high_either = greater(silent, high_fired);
    return {surely ? low_fired : (maybe ? low_either : low),
            surely ? high_fired : (maybe ? high_either : high)};
  } else {
    return {low, high};
  }
}

// Bounds of the state after reset: where v may or may not fire, the smallest interval around the
// states of both cases.
template <Reset kReset, class F>
SNN_HD Interval<F> carry_interval(const Interval<F>& v, const Neuron<F>& n) {
  if constexpr (kReset == Reset::kHard || kReset == Reset::kSoft) {
    const bool surely = fires(v.lower, n), maybe = fires(v.upper, n);
    const bool hard = kReset == Reset::kHard;
    const F low_fired = hard ? n.v_reset : v.lower - n.threshold;
    const F high_fired = hard ? n.v_reset : v.upper - n.threshold;
    const F low_either = lesser(v.lower, hard ? n.v_reset : F(0));
    const F high_either = greater(n.threshold, high_fired);
    return {surely ? low_fired : (maybe ? low_either : v.lower),
            surely ? high_fired : (maybe ? high_either : v.upper)};
  } else {
    return v;
  }
}

// Derivatives of one end of the next membrane: by the same end of this one, and by parameters.
template <class F>
struct EndGradient {
  F v, threshold, decay;
};

template <class F>
struct Transition {
  EndGradient<F> lower, upper;
};

// From a membrane to that of the step after, whose current is x: derivatives of what is selected.
template <Reset kReset, class F>
SNN_HD Transition<F> transition(const Interval<F>& v, const Interval<F>& x, const Neuron<F>& n) {
  const bool surely = fires(v.lower, n), maybe = fires(v.upper, n);
  const F a = n.decay, threshold = n.threshold;
  if constexpr (kReset == Reset::kDelayedSoft) {
    const F low = charge<Charge::kLeak, Reset::kNone>(v.lower, x.lower, n);
    const F high = charge<Charge::kLeak, Reset::kNone>(v.upper, x.upper, n);
    const F met = charge<Charge::kLeak, Reset::kNone>(threshold, x.lower, n) - threshold;
    const F below = charge<Charge::kLeak, Reset::kNone>(threshold, x.upper, n);
    const bool at_met = maybe && !surely && met < low;
    const bool owing = maybe && (surely || high - threshold > below);
    const bool at_below = maybe && !owing;
    return {{at_met ? F(0) : a, surely ? F(-1) : (at_met ? a - F(1) : F(0)),
             at_met ? threshold : v.lower},
            {at_below ? F(0) : a, owing ? F(-1) : (at_below ? a : F(0)),
             at_below ? threshold : v.upper}};
  } else {
    const Interval<F> state = carry_interval<kReset>(v, n);
    F low = F(1), high = F(1), low_threshold = F(0), high_threshold = F(0);
    if constexpr (kReset == Reset::kHard) {
      low = surely || (maybe && n.v_reset < v.lower) ? F(0) : F(1);
      high = maybe ? F(0) : F(1);
      high_threshold = maybe && !surely && !(n.v_reset > threshold) ? F(1) : F(0);
    } else if constexpr (kReset == Reset::kSoft) {
      low = maybe && !surely && F(0) < v.lower ? F(0) : F(1);
      low_threshold = surely ? F(-1) : F(0);
      const bool subtracted = maybe && (surely || v.upper - threshold > threshold);
      high = maybe && !subtracted ? F(0) : F(1);
      high_threshold = subtracted ? F(-1) : (maybe ? F(1) : F(0));
    }
    return {{a * low, a * low_threshold, state.lower}, {a * high, a * high_threshold, state.upper}};
  }
}

// Which slope a line below spike and carried state takes. Order and names are those of
// snnkern.reference.SLOPES.
enum class Slope : int {
  kEdge = 0,   // of the longer edge of the lower hull
  kPaper = 1,  // eq. 8 and 10 of Liang et al. 2022
  kGiven = 2,
  kMixed = 3,  // between the edges of the lower hull, at a given share of the way to the right one
};

template <class F>
struct Line {
  F slope;
  double intercept;  // rounding errors of the neuron and of this included
};

// A line in the membrane v, `bounds.lower` <= v <= `bounds.upper`, below
// on_spike * s(v) + on_next * (what v leaves to the membrane of the next step).
//   before  the largest magnitude of the state that v was charged from
//   given   the slope, for Slope::kGiven, or the share, for Slope::kMixed
// In double: a slope is rounded to F once, and the intercept is that of the rounded slope.
template <Reset kReset, Slope kSlope, class F>
SNN_HD Line<F> line_below(F row, F after, const Interval<F>& bounds, double before, F given,
                          const Neuron<F>& n) {
  constexpr double kUnit = sizeof(F) == sizeof(float) ? 0x1p-24 : 0x1p-53;
  const double decay = n.decay, threshold = n.threshold, v_reset = n.v_reset;
  const double low = bounds.lower, high = bounds.upper;
  const double on_spike = row, on_next = after;
  const double on_state = decay * on_next;
  // Silent: on_state * v. Fired: constant + fired_slope * v.
  double constant = on_spike, fired_slope = on_state;
  if constexpr (kReset == Reset::kHard) {
    constant = on_spike + on_state * v_reset;
    fired_slope = 0.0;
  } else if constexpr (kReset == Reset::kSoft) {
    constant = on_spike - on_state * threshold;
  } else if constexpr (kReset == Reset::kDelayedSoft) {
    constant = on_spike - on_next * threshold;
  }
  const bool surely = fires(bounds.lower, n), maybe = fires(bounds.upper, n);
  const double below = threshold - low, above = high - threshold;
  const double left = on_state * low, right = constant + fired_slope * high;
  const double silent = on_state * threshold, fired = constant + fired_slope * threshold;
  double line = 0.0;
  if constexpr (kSlope == Slope::kEdge) {
    const double middle = lesser(silent, fired);
    const double chord = (right - left) / (high - low);
    const bool longer = below >= above;
    const double edge = (longer ? middle - left : right - middle) / (longer ? below : above);
    line = middle - left < chord * below ? edge : chord;
  } else if constexpr (kSlope == Slope::kMixed) {
    const double middle = lesser(silent, fired);
    const double chord = (right - left) / (high - low);
    const double one =
        (below > 0.0 ? middle - left : right - middle) / (below > 0.0 ? below : above);
    const double other =
        (above > 0.0 ? right - middle : middle - left) / (above > 0.0 ? above : below);
    line = middle - left < chord * below ? one + given * (other - one) : chord;
  } else if constexpr (kSlope == Slope::kPaper) {
    const double jump = kReset == Reset::kHard
                            ? constant - on_state * (on_state > 0.0 ? low : threshold)
                            : constant;
    const double up = above >= below ? jump / above : 0.0;
    const double down = above >= below ? 0.0 : jump / below;
    line = (jump > 0.0 ? up : (jump < 0.0 ? down : 0.0)) + fired_slope;
  } else {
    line = given;
  }
  const F slope = static_cast<F>(surely ? fired_slope : (maybe ? line : on_state));
  line = slope;
  const double either = lesser(lesser(left - line * low, silent - line * threshold),
                               lesser(fired - line * threshold, right - line * high));
  const double always =
      lesser(constant + (fired_slope - line) * low, constant + (fired_slope - line) * high);
  const double never = lesser((on_state - line) * low, (on_state - line) * high);
  const double lowest = surely ? always : (maybe ? either : never);
  const double size = greater(std::abs(low), std::abs(high));
  const double rest = threshold + std::abs(v_reset);
  const double of_state = std::abs(on_state) * (size + rest);
  const double of_charge = std::abs(line) * (size + threshold + decay * before);
  const double slack = 2 * kUnit * (of_charge + of_state);
  const double own = std::abs(on_spike) + of_state + std::abs(on_next) * threshold +
                     std::abs(line) * (size + threshold);
  return {slope, lowest - (slack + 0x1p-49 * own)};
}

// Calls f with the slope as a constant.
template <class Call>
void with_slope(Slope slope, Call&& f) {
  with_enum<Slope::kMixed>(slope, f);
}

}  // namespace snnkern
