// Turns what is known at run time into template parameters.
#pragma once

#include <type_traits>

#include "neuron.h"
#include "surrogate.h"

namespace snnkern {

// Element types of inputs and spikes. The state is float, and double for kFloat64.
enum class Dtype : int { kFloat32, kFloat64, kFloat16, kBFloat16 };

template <auto kValue>
using Constant = std::integral_constant<decltype(kValue), kValue>;

template <class Call>
void with_reset(Reset reset, Call&& f) {
  switch (reset) {
    case Reset::kHard:
      return f(Constant<Reset::kHard>{});
    case Reset::kSoft:
      return f(Constant<Reset::kSoft>{});
    case Reset::kDelayedSoft:
      return f(Constant<Reset::kDelayedSoft>{});
    case Reset::kNone:
      return f(Constant<Reset::kNone>{});
  }
}

template <class Call>
void with_bool(bool value, Call&& f) {
  if (value) {
    f(Constant<true>{});
  } else {
    f(Constant<false>{});
  }
}

// Calls `f` with a value of the type that the state has for inputs of this dtype.
template <class Call>
void with_state_type(Dtype dtype, Call&& f) {
  if (dtype == Dtype::kFloat64) {
    f(double{});
  } else {
    f(float{});
  }
}

}  // namespace snnkern
