// Turns what is known at run time into template parameters.
#pragma once

#include <type_traits>

#include "neuron.h"
#include "surrogate.h"

namespace snnkern {

// Element types of inputs and spikes. The state is float, and double for kFloat64. Only spikes can
// be bytes or bits; the bits of a step fill whole bytes, the first neuron in the lowest bit.
enum class Dtype : int { kFloat32, kFloat64, kFloat16, kBFloat16, kUint8, kBit };

constexpr int bytes_of(Dtype dtype) {
  return dtype == Dtype::kFloat64   ? 8
         : dtype == Dtype::kFloat32 ? 4
         : dtype == Dtype::kUint8   ? 1
                                    : 2;
}

template <auto kValue>
using Constant = std::integral_constant<decltype(kValue), kValue>;

// Calls f with the enumerator `value` as a constant; `kLast` is the last of the enumeration.
#pragma nv_exec_check_disable  // f is code of the host or of the device, as its caller is
template <auto kLast, auto kAt = decltype(kLast)(0), class Call>
SNN_HD void with_enum(decltype(kLast) value, Call&& f) {
  if (value == kAt) return f(Constant<kAt>{});
  if constexpr (kAt != kLast) {
    with_enum<kLast, decltype(kLast)(static_cast<int>(kAt) + 1)>(value, f);
  }
}

#pragma nv_exec_check_disable
template <class Call>
SNN_HD void with_reset(Reset reset, Call&& f) {
  with_enum<Reset::kNone>(reset, f);
}

#pragma nv_exec_check_disable
template <class Call>
SNN_HD void with_charge(Charge charge, Call&& f) {
  with_enum<Charge::kDecay>(charge, f);
}

#pragma nv_exec_check_disable
template <class Call>
SNN_HD void with_synapse(Synapse synapse, Call&& f) {
  with_enum<Synapse::kJump>(synapse, f);
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
