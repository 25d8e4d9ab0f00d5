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

// One step of backpropagation through time at one end: dL/dv of this step from that of the step
// after, and its shares of the parameters' gradients, which are added.
//   next   derivatives of the next membrane; 0 at the last step
//   ds_dv  of the spike by the membrane
template <class F>
SNN_HD F end_gradient(F g_next, const EndGradient<F>& next, F v, F gs, F ds_dv,
                      const SurrogateArgument<F>& z, F& decay, F& threshold) {
  decay += g_next * next.decay;
  threshold += g_next * next.threshold;
  const F through_spike = gs * ds_dv;
  threshold -= through_spike * z.minus_dthreshold(v);
  return g_next * next.v + through_spike;
}

// What reaches the first membrane is multiplied by a state that is given, and may owe a spike.
template <Reset kReset, class F>
SNN_HD void start_gradient(F g, F v_init, const Neuron<F>& n, F& decay, F& threshold) {
  decay += g * v_init;
  if (kReset == Reset::kDelayedSoft && fires(v_init, n)) threshold -= g;
}

// Which slope a line below spike and carried state takes. Order and names are those of
// snnkern.reference.SLOPES.
enum class Slope : int {
  kEdge = 0,   // of the longer edge of the lower hull
  kPaper = 1,  // eq. 8 and 10 of Liang et al. 2022
  kGiven = 2,
  kMixed = 3,  // between the edges of the lower hull, at a given share of the way to the right one
};

constexpr bool is_given(Slope slope) { return slope == Slope::kGiven || slope == Slope::kMixed; }

template <class F>
struct Line {
  F slope;
  double intercept;  // rounding errors of the neuron and of this included
};

// What a membrane v, `low` <= v <= `high`, fires and carries on, weighed: on_state * v where it is
// silent, constant + fired_slope * v where it fired. The heights of both at their ends: `left` to
// `silent`, at the threshold, and from there `fired` to `right`.
struct Pieces {
  double low, high, threshold;
  double on_state, constant, fired_slope;
  double left, silent, fired, right;
  bool surely, maybe;
};

template <Reset kReset, class F>
SNN_HD Pieces pieces(F row, F after, const Interval<F>& bounds, const Neuron<F>& n) {
  const double decay = n.decay, threshold = n.threshold, v_reset = n.v_reset;
  const double low = bounds.lower, high = bounds.upper;
  const double on_spike = row, on_next = after;
  const double on_state = decay * on_next;
  double constant = on_spike, fired_slope = on_state;
  if constexpr (kReset == Reset::kHard) {
    constant = on_spike + on_state * v_reset;
    fired_slope = 0.0;
  } else if constexpr (kReset == Reset::kSoft) {
    constant = on_spike - on_state * threshold;
  } else if constexpr (kReset == Reset::kDelayedSoft) {
    constant = on_spike - on_next * threshold;
  }
  return {low,
          high,
          threshold,
          on_state,
          constant,
          fired_slope,
          on_state * low,
          on_state * threshold,
          constant + fired_slope * threshold,
          constant + fired_slope * high,
          fires(bounds.lower, n),
          fires(bounds.upper, n)};
}

// The largest magnitude of the state that a membrane was charged from, by that of the step before.
template <class F>
SNN_HD double state_before(const Interval<F>& v, const Neuron<F>& n) {
  const double low = v.lower, high = v.upper, threshold = n.threshold, v_reset = n.v_reset;
  return greater(std::abs(low), std::abs(high)) + (threshold + std::abs(v_reset));
}

// A line in the membrane, below both of its pieces.
//   before  see state_before; at the first step the magnitude of what it starts from
//   given   the slope, for Slope::kGiven, or the share, for Slope::kMixed
// In double: a slope is rounded to F once, and the intercept is that of the rounded slope.
template <Reset kReset, Slope kSlope, class F>
SNN_HD Line<F> line_below(F row, F after, const Interval<F>& bounds, double before, F given,
                          const Neuron<F>& n) {
  constexpr double kUnit = sizeof(F) == sizeof(float) ? 0x1p-24 : 0x1p-53;
  const Pieces p = pieces<kReset>(row, after, bounds, n);
  const double below = p.threshold - p.low, above = p.high - p.threshold;
  double line = 0.0;
  if constexpr (kSlope == Slope::kEdge) {
    const double middle = lesser(p.silent, p.fired);
    const double chord = (p.right - p.left) / (p.high - p.low);
    const bool longer = below >= above;
    const double edge = (longer ? middle - p.left : p.right - middle) / (longer ? below : above);
    line = middle - p.left < chord * below ? edge : chord;
  } else if constexpr (kSlope == Slope::kMixed) {
    const double middle = lesser(p.silent, p.fired);
    const double chord = (p.right - p.left) / (p.high - p.low);
    const double one =
        (below > 0.0 ? middle - p.left : p.right - middle) / (below > 0.0 ? below : above);
    const double other =
        (above > 0.0 ? p.right - middle : middle - p.left) / (above > 0.0 ? above : below);
    line = middle - p.left < chord * below ? one + given * (other - one) : chord;
  } else if constexpr (kSlope == Slope::kPaper) {
    const double jump = kReset == Reset::kHard
                            ? p.constant - p.on_state * (p.on_state > 0.0 ? p.low : p.threshold)
                            : p.constant;
    const bool wide = above >= below;
    const double steep = jump / (wide ? above : below);
    line = ((wide ? jump : -jump) > 0.0 ? steep : 0.0) + p.fired_slope;
  } else {
    line = given;
  }
  const F slope = static_cast<F>(p.surely ? p.fired_slope : (p.maybe ? line : p.on_state));
  line = slope;
  const double either = lesser(lesser(p.left - line * p.low, p.silent - line * p.threshold),
                               lesser(p.fired - line * p.threshold, p.right - line * p.high));
  const double always = lesser(p.constant + (p.fired_slope - line) * p.low,
                               p.constant + (p.fired_slope - line) * p.high);
  const double never = lesser((p.on_state - line) * p.low, (p.on_state - line) * p.high);
  const double lowest = p.surely ? always : (p.maybe ? either : never);
  const double size = greater(std::abs(p.low), std::abs(p.high));
  const double rest = p.threshold + std::abs(static_cast<double>(n.v_reset));
  const double of_state = std::abs(p.on_state) * (size + rest);
  const double of_charge =
      std::abs(line) * (size + p.threshold + static_cast<double>(n.decay) * before);
  const double slack = 2 * kUnit * (of_charge + of_state);
  const double own = std::abs(static_cast<double>(row)) + of_state +
                     std::abs(static_cast<double>(after)) * p.threshold +
                     std::abs(line) * (size + p.threshold);
  return {slope, lowest - (slack + 0x1p-49 * own)};
}

// Derivatives by what a line is made of; `given` as in line_below.
struct LineGradient {
  double row, after, lower, upper, decay, threshold, given;
};

// From those of a line's slope and intercept. What is subtracted for rounding errors is constant.
template <Reset kReset, Slope kSlope, class F>
SNN_HD LineGradient line_gradient(double g_line, double g_bias, F row, F after, F slope,
                                  const Interval<F>& bounds, F given, const Neuron<F>& n) {
  const Pieces p = pieces<kReset>(row, after, bounds, n);
  const double decay = n.decay, line = slope, v_reset = n.v_reset, next = after;
  const double below = p.threshold - p.low, above = p.high - p.threshold;
  const bool either = p.maybe & !p.surely;
  // The line touches one of the four ends.
  const double gap_left = p.left - line * p.low, gap_silent = p.silent - line * p.threshold;
  const double gap_fired = p.fired - line * p.threshold, gap_right = p.right - line * p.high;
  const bool to_silent = gap_silent < gap_left, to_outer = gap_right < gap_fired;
  const bool to_right = (to_outer ? gap_right : gap_fired) < (to_silent ? gap_silent : gap_left);
  const double touch = either ? g_bias : 0.0;
  const double touch_left = to_right ? 0.0 : touch, touch_right = to_right ? touch : 0.0;
  double left = to_silent ? 0.0 : touch_left, silent = touch_left - left;
  double right = to_outer ? touch_right : 0.0, fired = touch_right - right;
  const double turned = g_line - (left * p.low + (silent + fired) * p.threshold + right * p.high);
  double low = -line * left, high = -line * right, threshold = -line * (silent + fired);
  double constant = p.surely ? g_bias : 0.0, fired_slope = p.surely ? g_line : 0.0;
  double on_state = p.maybe ? 0.0 : g_line, of_given = 0.0;
  const double turn = either ? turned : 0.0;
  if constexpr (kSlope == Slope::kEdge || kSlope == Slope::kMixed) {
    const bool lower = p.fired < p.silent;
    const double middle = lower ? p.fired : p.silent;
    const double wide = either ? p.high - p.low : 1.0;
    const double rising = either & (below > 0.0) ? below : 1.0;
    const double falling = either & (above > 0.0) ? above : 1.0;
    const double chord = (p.right - p.left) / wide;
    const double one = (middle - p.left) / rising, other = (p.right - middle) / falling;
    const bool hull = middle - p.left < chord * below;
    double share = below < above ? 1.0 : 0.0;
    if constexpr (kSlope == Slope::kMixed) {
      share = given;
      of_given = hull & (below > 0.0) & (above > 0.0) ? turn * (other - one) : 0.0;
    }
    share = below > 0.0 ? (above > 0.0 ? share : 0.0) : 1.0;
    const double g_one = (hull ? turn * (1.0 - share) : 0.0) / rising;
    const double g_other = (hull ? turn * share : 0.0) / falling;
    const double g_chord = (hull ? 0.0 : turn) / wide;
    const double g_middle = g_one - g_other;
    left -= g_one + g_chord;
    right += g_other + g_chord;
    silent += lower ? 0.0 : g_middle;
    fired += lower ? g_middle : 0.0;
    low += g_one * one + g_chord * chord;
    high -= g_other * other + g_chord * chord;
    threshold += g_other * other - g_one * one;
  } else if constexpr (kSlope == Slope::kPaper) {
    const bool wide = above >= below, to_low = p.on_state > 0.0;
    const double past = to_low ? p.low : p.threshold;
    const double jump = kReset == Reset::kHard ? p.constant - p.on_state * past : p.constant;
    const double span = either ? (wide ? above : below) : 1.0;
    const double g_jump = ((wide ? jump : -jump) > 0.0 ? turn : 0.0) / span;
    const double g_span = -g_jump * jump / span;
    high += wide ? g_span : 0.0;
    low -= wide ? 0.0 : g_span;
    threshold += wide ? -g_span : g_span;
    constant += g_jump;
    fired_slope += turn;
    if constexpr (kReset == Reset::kHard) {
      on_state -= g_jump * past;
      low -= to_low ? g_jump * p.on_state : 0.0;
      threshold -= to_low ? 0.0 : g_jump * p.on_state;
    }
  } else {
    of_given = turn;
  }
  on_state += left * p.low + silent * p.threshold;
  constant += fired + right;
  fired_slope += fired * p.threshold + right * p.high;
  low += left * p.on_state;
  high += right * p.fired_slope;
  threshold += silent * p.on_state + fired * p.fired_slope;
  double on_next = 0.0;
  if constexpr (kReset == Reset::kHard) {
    on_state += constant * v_reset;
  } else if constexpr (kReset == Reset::kSoft) {
    on_state += fired_slope - constant * p.threshold;
    threshold -= constant * p.on_state;
  } else {
    on_state += fired_slope;
    if constexpr (kReset == Reset::kDelayedSoft) {
      on_next = -constant * p.threshold;
      threshold -= constant * next;
    }
  }
  return {constant, on_next + on_state * decay, low, high, on_state * next, threshold, of_given};
}

// The line of the first step, at the state that it starts from: adds to a bias, or, given dL/dbias,
// to gradients, and gives dL/dline.
template <Reset kReset, class F>
SNN_HD void add_start(F line, F v_init, const Neuron<F>& n, double& bias) {
  const double first = line, start = v_init, decay = n.decay, threshold = n.threshold;
  bias += first * (decay * start);
  if constexpr (kReset == Reset::kDelayedSoft) bias -= fires(v_init, n) ? first * threshold : 0.0;
}

template <Reset kReset, class F>
SNN_HD double line_start_gradient(double g_bias, F line, F v_init, const Neuron<F>& n,
                                  double& g_decay, double& g_threshold) {
  const double first = line, start = v_init, decay = n.decay, threshold = n.threshold;
  const double owed = kReset == Reset::kDelayedSoft && fires(v_init, n) ? g_bias : 0.0;
  g_decay += g_bias * first * start;
  g_threshold -= owed * first;
  return g_bias * decay * start - owed * threshold;
}

// Calls f with the slope as a constant.
template <class Call>
void with_slope(Slope slope, Call&& f) {
  with_enum<Slope::kMixed>(slope, f);
}

}  // namespace snnkern
