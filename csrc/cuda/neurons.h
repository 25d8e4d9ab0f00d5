// What a thread needs to take kCount neighbouring neurons through time: their place, elements in
// memory, parameters and state. For host and device, so that it can be tested without a GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "../half.h"
#include "lif.h"

namespace snnkern::cuda {

template <Dtype kDtype>
using Element = std::conditional_t<
    kDtype == Dtype::kFloat32, float,
    std::conditional_t<kDtype == Dtype::kFloat64, double,
                       std::conditional_t<kDtype == Dtype::kUint8, std::uint8_t, std::uint16_t>>>;

template <Dtype kDtype, class F>
SNN_HD F from_element(Element<kDtype> e) {
  if constexpr (kDtype == Dtype::kFloat16) {
    return from_half(e);
  } else if constexpr (kDtype == Dtype::kBFloat16) {
    return from_bfloat16(e);
  } else {
    return e;
  }
}

template <Dtype kDtype, class F>
SNN_HD Element<kDtype> to_element(F value) {
  if constexpr (kDtype == Dtype::kFloat16) {
    return to_half(value);
  } else if constexpr (kDtype == Dtype::kBFloat16) {
    return to_bfloat16(value);
  } else {
    return static_cast<Element<kDtype>>(value);
  }
}

constexpr int at_most_16(int bytes) { return bytes < 16 ? bytes : 16; }

// Neighbouring elements, loaded and stored as one.
template <class E, int kCount>
struct alignas(at_most_16(sizeof(E) * kCount)) Pack {
  E e[kCount];
};

// kCount neighbouring neurons, `present` of them in the layer.
template <int kCount>
struct Place {
  std::int64_t first;
  int present;
  bool whole;  // all are present, and every tensor lets them be loaded as one

  // `aligned`: the rows of every tensor start at multiples of 16 bytes, or of all kCount neurons.
  SNN_HD static Place of(std::int64_t thread, std::int64_t neurons, bool aligned) {
    const std::int64_t first = thread * kCount;
    const std::int64_t left = neurons - first;
    const int present = left >= kCount ? kCount : static_cast<int>(left);
    return {first, present, aligned && present == kCount};
  }

  // The neurons' elements of a row.
  template <class E>
  SNN_HD Pack<E, kCount> load(const E* row) const {
    if (whole) return *reinterpret_cast<const Pack<E, kCount>*>(row + first);
    Pack<E, kCount> pack{};
    for (int i = 0; i < kCount; ++i) {
      if (i < present) pack.e[i] = row[first + i];
    }
    return pack;
  }

  template <class E>
  SNN_HD void store(const Pack<E, kCount>& pack, E* row) const {
    if (whole) {
      *reinterpret_cast<Pack<E, kCount>*>(row + first) = pack;
      return;
    }
    for (int i = 0; i < kCount; ++i) {
      if (i < present) row[first + i] = pack.e[i];
    }
  }

  // A row of the state; zero where there is none.
  template <class F>
  SNN_HD void load_state(const F* row, F (&out)[kCount]) const {
    Pack<F, kCount> pack{};
    if (row) pack = load(row);
    for (int i = 0; i < kCount; ++i) out[i] = pack.e[i];
  }

  template <class F>
  SNN_HD void store_state(const F (&values)[kCount], F* row) const {
    if (!row) return;
    Pack<F, kCount> pack;
    for (int i = 0; i < kCount; ++i) pack.e[i] = values[i];
    store(pack, row);
  }

  // The neurons' values of a parameter.
  template <class F>
  SNN_HD void load_parameter(const Parameter<F>& parameter, F (&out)[kCount]) const {
    if (parameter.count == 1) {
      const F value = *parameter.data;
      for (int i = 0; i < kCount; ++i) out[i] = value;
      return;
    }
    // Division of 64 bits takes a GPU a hundred instructions.
    const bool small = static_cast<std::uint64_t>(first | parameter.repeat) >> 32 == 0;
    const std::int64_t stretch =
        small ? static_cast<std::uint32_t>(first) / static_cast<std::uint32_t>(parameter.repeat)
              : first / parameter.repeat;
    const bool few = static_cast<std::uint64_t>(stretch | parameter.count) >> 32 == 0;
    std::int64_t index =
        few ? static_cast<std::uint32_t>(stretch) % static_cast<std::uint32_t>(parameter.count)
            : stretch % parameter.count;
    std::int64_t left = parameter.repeat - (first - stretch * parameter.repeat);
    for (int i = 0; i < kCount; ++i) {
      out[i] = parameter.data[index];
      if (--left == 0) {
        left = parameter.repeat;
        index = index + 1 == parameter.count ? 0 : index + 1;
      }
    }
  }
};

// Up to kBlock steps of a tensor, on their way from memory.
template <Dtype kDtype, int kCount, int kBlock>
struct Loads {
  Pack<Element<kDtype>, kCount> steps[kBlock];

  // Steps t, t + stride, ..., `count` of them; zero from step T on.
  SNN_HD static Loads of(const Place<kCount>& place, const void* tensor, std::int64_t step, int t,
                         int stride, int count, int T) {
    Loads loads;
    const auto* row = static_cast<const Element<kDtype>*>(tensor) + t * step;
    const std::int64_t next = stride * step;
#pragma unroll
    for (int k = 0; k < kBlock; ++k) {
      loads.steps[k] = {};
      if (k < count && t + k * stride < T) loads.steps[k] = place.load(row + k * next);
    }
    return loads;
  }

  template <class F>
  SNN_HD void get(int k, F (&out)[kCount]) const {
    for (int i = 0; i < kCount; ++i) out[i] = from_element<kDtype, F>(steps[k].e[i]);
  }
};

// The carried state of the neurons.
template <class F, int kCount>
struct State {
  F u[kCount];
  F c[kCount];      // the synapse's current
  F since[kCount];  // steps since the last spike
};

// What of the input the neurons see: scale * x + shift, or x itself.
template <class F, int kCount>
struct Seen {
  bool affine;
  F scale[kCount], shift[kCount];

  SNN_HD Seen(const Affine<F>& from, const Place<kCount>& place) : affine(from.scale.data) {
    if (!affine) return;
    place.load_parameter(from.scale, scale);
    place.load_parameter(from.shift, shift);
  }

  SNN_HD void apply(F (&x)[kCount]) const {
    if (!affine) return;
    for (int i = 0; i < kCount; ++i) x[i] = scale[i] * x[i] + shift[i];
  }
};

SNN_HD float next_above(float v) { return nextafterf(v, std::numeric_limits<float>::infinity()); }
SNN_HD double next_above(double v) { return nextafter(v, std::numeric_limits<double>::infinity()); }

template <class F>
SNN_HD F fire_at(F threshold, bool strict) {
  return strict ? next_above(threshold) : threshold;
}

// The usual neurons: a leak and a threshold for the whole layer, no synapse. What is asked about
// them is known at compile time.
template <class F, int kNeurons, Reset kReset>
struct Plain {
  static constexpr int kCount = kNeurons;
  static constexpr bool kPlain = true;
  static constexpr int kBlock = 4;  // steps whose loads are under way together

  SNN_HD Plain(const LifDynamics<F>& d, const Place<kCount>&) {
    const F threshold = *d.threshold.data;
    neuron_ = {*d.decay.data, threshold, fire_at(threshold, d.strict), d.v_rest, d.v_reset};
    inverse_ = F(1) / threshold;
  }

  SNN_HD const Neuron<F>& neuron(int) const { return neuron_; }
  SNN_HD F inverse(int) const { return inverse_; }
  SNN_HD F synapse_decay(int) const { return F(0); }
  SNN_HD F gain() const { return F(1); }
  SNN_HD int delay() const { return 0; }
  SNN_HD bool conducted() const { return false; }
  SNN_HD bool looks_at_input() const { return false; }
  SNN_HD bool looks_at_start() const { return kReset == Reset::kDelayedSoft; }

  template <class Call>
  SNN_HD void with_dynamics(Call&& f) const {
    f(Constant<Charge::kLeak>{}, Constant<kReset>{});
  }
  template <class Call>
  SNN_HD void with_synapse(Call&& f) const {
    f(Constant<Synapse::kNone>{});
  }

 private:
  Neuron<F> neuron_;
  F inverse_;
};

// Neurons with any options.
template <class F, int kNeurons>
struct Any {
  static constexpr int kCount = kNeurons;
  static constexpr bool kPlain = false;
  static constexpr int kBlock = 2;

  SNN_HD Any(const LifDynamics<F>& d, const Place<kCount>& place)
      : charge_(d.charge),
        reset_(d.reset),
        synapse_(d.synapse),
        delayed_(d.delayed_spike),
        gain_(d.gain) {
    F decay[kCount], threshold[kCount];
    place.load_parameter(d.decay, decay);
    place.load_parameter(d.threshold, threshold);
    for (int i = 0; i < kCount; ++i) {
      neuron_[i] = {decay[i], threshold[i], fire_at(threshold[i], d.strict), d.v_rest, d.v_reset};
      inverse_[i] = F(1) / threshold[i];
      synapse_decay_[i] = F(0);
    }
    if (conducted()) place.load_parameter(d.synapse_decay, synapse_decay_);
  }

  SNN_HD const Neuron<F>& neuron(int i) const { return neuron_[i]; }
  SNN_HD F inverse(int i) const { return inverse_[i]; }
  SNN_HD F synapse_decay(int i) const { return synapse_decay_[i]; }
  SNN_HD F gain() const { return gain_; }
  SNN_HD int delay() const { return delayed_ ? 1 : 0; }
  SNN_HD bool conducted() const { return synapse_ != Synapse::kNone; }
  SNN_HD bool looks_at_input() const { return conducted() || charge_ != Charge::kLeak; }
  SNN_HD bool looks_at_start() const { return reset_ == Reset::kDelayedSoft || delayed_; }

  template <class Call>
  SNN_HD void with_dynamics(Call&& f) const {
    with_charge(charge_,
                [&](auto charge) { with_reset(reset_, [&](auto reset) { f(charge, reset); }); });
  }
  template <class Call>
  SNN_HD void with_synapse(Call&& f) const {
    snnkern::with_synapse(synapse_, f);
  }

 private:
  Charge charge_;
  Reset reset_;
  Synapse synapse_;
  bool delayed_;
  F gain_;
  Neuron<F> neuron_[kCount];
  F inverse_[kCount], synapse_decay_[kCount];
};

// What of the input x reaches the membranes: gain * x through the synapse, whose current moves on.
template <class Neurons, class F, int kCount>
SNN_HD void conduct_all(const Neurons& neurons, const F (&x)[kCount], F (&c)[kCount],
                        F (&current)[kCount]) {
  neurons.with_synapse([&]<Synapse kSynapse>(Constant<kSynapse>) {
    for (int i = 0; i < kCount; ++i) {
      current[i] = conduct<kSynapse>(c[i], neurons.gain() * x[i], neurons.synapse_decay(i));
    }
  });
}

// One step: the membranes before reset; the state moves on.
template <class Neurons, class F, int kCount>
SNN_HD void step(const Neurons& neurons, const F (&x)[kCount], State<F, kCount>& state,
                 F (&v)[kCount]) {
  F current[kCount];
  conduct_all(neurons, x, state.c, current);
  neurons.with_dynamics([&]<Charge kCharge, Reset kReset>(Constant<kCharge>, Constant<kReset>) {
    for (int i = 0; i < kCount; ++i) {
      const Neuron<F>& n = neurons.neuron(i);
      v[i] = charge<kCharge, kReset>(state.u[i], current[i], n);
      state.u[i] = reset<kReset>(v[i], fires(v[i], n), n);
    }
  });
}

template <class F>
bool fits_plain(const LifDynamics<F>& d) {
  return std::is_same_v<F, float> && d.charge == Charge::kLeak && d.synapse == Synapse::kNone &&
         !d.delayed_spike && d.gain == F(1) && d.decay.count == 1 && d.threshold.count == 1;
}

// Whether rows `step` elements of `size` bytes apart, from `data` on, can be loaded kCount at once.
inline bool loads_as_one(const void* data, std::int64_t step, std::int64_t size, int count) {
  const std::int64_t bytes = size * count < 16 ? size * count : 16;
  return reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(bytes) == 0 &&
         step * size % bytes == 0;
}

inline std::int64_t size_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64:
      return 8;
    case Dtype::kFloat32:
      return 4;
    case Dtype::kFloat16:
    case Dtype::kBFloat16:
      return 2;
    default:
      return 1;
  }
}

}  // namespace snnkern::cuda
