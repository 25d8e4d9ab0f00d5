// Neurons with any options, step by step. Every part of a step is a pass over a row of its own, so
// that the options add up instead of multiplying: synapse, charge and reset, derivative, reset
// backward, parameters, synapse backward.
#include <algorithm>
#include <cstdint>
#include <limits>

#include "clones.h"
#include "tile.h"

namespace snnkern::cpu {
namespace {

template <class F>
using Each = Neurons<F, false>;

// What reaches the membrane: gain * x through the synapse, whose current c moves on.
template <Synapse kSynapse, class F>
SNN_CLONES void conduct_row(std::int64_t n, const F gain, const F* __restrict decay,
                            const F* __restrict x, F* __restrict c, F* __restrict out) {
  for (std::int64_t i = 0; i < n; ++i) {
    F current = c[i];
    out[i] = conduct<kSynapse>(current, gain * x[i], decay[i]);
    c[i] = current;
  }
}

// One step: membranes before reset, the state after it, and spikes.
template <Charge kCharge, Reset kReset, class F>
SNN_CLONES void step_row(std::int64_t n, const Each<F> neurons, const F* __restrict x,
                         const F* __restrict u_in, F* __restrict v_out, F* __restrict u_out,
                         F* __restrict spikes) {
  for (std::int64_t i = 0; i < n; ++i) {
    const Neuron<F> neuron = neurons[i];
    const F v = charge<kCharge, kReset>(u_in[i], x[i], neuron);
    const bool s = fires(v, neuron);
    v_out[i] = v;
    u_out[i] = reset<kReset>(v, s, neuron);
    spikes[i] = s ? F(1) : F(0);
  }
}

template <class F>
SNN_CLONES void fires_row(std::int64_t n, const Each<F> neurons, const F* __restrict v,
                          F* __restrict spikes) {
  for (std::int64_t i = 0; i < n; ++i) spikes[i] = fires(v[i], neurons[i]) ? F(1) : F(0);
}

// ds/dv of a row of membranes.
template <class F, class Derivative>
SNN_CLONES void derivative_row(std::int64_t n, const Each<F> neurons, const Derivative derivative,
                               const bool normalized, const std::int64_t first,
                               const F* __restrict v, F* __restrict ds_dv) {
  for (std::int64_t i = 0; i < n; ++i) {
    const SurrogateArgument<F> z = neurons.argument(first + i, normalized);
    ds_dv[i] = derivative(z(v[i])) * z.scale;
  }
}

// The same where ds/dz is given.
template <class F>
SNN_CLONES void given_row(std::int64_t n, const Each<F> neurons, const bool normalized,
                          const std::int64_t first, const F* __restrict ds_dz,
                          F* __restrict ds_dv) {
  for (std::int64_t i = 0; i < n; ++i) {
    ds_dv[i] = ds_dz[i] * neurons.argument(first + i, normalized).scale;
  }
}

// The same for surrogates of the time since the last spike; the clock moves on.
template <class F>
SNN_CLONES void spike_time_row(std::int64_t n, const Each<F> neurons, const SpikeTime<F> derivative,
                               const bool normalized, const std::int64_t first,
                               const F* __restrict v, F* __restrict steps, F* __restrict ds_dv) {
  for (std::int64_t i = 0; i < n; ++i) {
    const SurrogateArgument<F> z = neurons.argument(first + i, normalized);
    const F since = steps[i] + F(1);
    ds_dv[i] = derivative(since) * z.scale;
    steps[i] = fires(v[i], neurons[first + i]) ? F(0) : since;
  }
}

// One step of the backward scan. grad_v is dL/dv of the step after, and becomes that of this one;
// `after_end`: it holds dL/du of the last step instead.
template <Charge kCharge, Reset kReset, bool kAttached, class F>
SNN_CLONES void step_gradient_row(std::int64_t n, const Each<F> neurons, const bool after_end,
                                  const F* __restrict normalized, const F* __restrict v,
                                  const F* __restrict ds_dv, const F* __restrict gs,
                                  F* __restrict grad_v, F* __restrict grad_threshold) {
  const F delayed = after_end ? F(0) : F(1);
  for (std::int64_t i = 0; i < n; ++i) {
    const Neuron<F> neuron = neurons[i];
    const F du = after_end ? F(1) : charge_du<kCharge>(neuron);
    // Only -dz/dthreshold is asked of the argument; a mixture of samples is normalised or not.
    const SurrogateArgument<F> z{F(1), F(0), F(1) - normalized[i],
                                 normalized[i] * neurons.inverse[i]};
    const StepGradient<F> g =
        step_gradient<kReset, kAttached>(v[i], ds_dv[i], gs[i], grad_v[i], du, delayed, neuron, z);
    grad_v[i] = g.v;
    grad_threshold[i] += g.threshold;
  }
}

// From dL/dv to the gradient of what reached the membrane and this step's share of dL/ddecay.
template <Charge kCharge, class F>
SNN_CLONES void charge_gradient_row(std::int64_t n, const Each<F> neurons,
                                    const F* __restrict grad_v, const F* __restrict u,
                                    const F* __restrict x, F* __restrict grad_x,
                                    F* __restrict grad_decay) {
  for (std::int64_t i = 0; i < n; ++i) {
    const Neuron<F> neuron = neurons[i];
    grad_x[i] = charge_dx<kCharge>(neuron) * grad_v[i];
    grad_decay[i] += grad_v[i] * charge_ddecay<kCharge>(u[i], x[i], neuron);
  }
}

// The same through the synapse, to the gradient of x itself.
template <Synapse kSynapse, class F>
SNN_CLONES void conduct_gradient_row(std::int64_t n, const F gain, const F* __restrict decay,
                                     const F* __restrict c, const F* __restrict x,
                                     const F* __restrict g, F* __restrict grad_c,
                                     F* __restrict grad_decay, F* __restrict grad_x) {
  for (std::int64_t i = 0; i < n; ++i) {
    F gc = grad_c[i], share = F(0);
    grad_x[i] = gain * conduct_gradient<kSynapse>(g[i], gc, c[i], gain * x[i], decay[i], share);
    grad_c[i] = gc;
    grad_decay[i] += share;
  }
}

// The working memory of a tile, and the passes that forward and backward have in common.
template <class F>
class Steps {
 public:
  Steps(const LifDynamics<F>& dynamics, const Currents<F>& input, std::int64_t begin,
        std::int64_t n, std::int64_t length, Rows<F>& rows)
      : dynamics_(dynamics), input_(input), n_(n) {
    neurons_ = gather_neurons<false>(dynamics, begin, begin + n, length, rows.take(Each<F>::kRows));
    synapse_decay_ = rows.take();
    if (dynamics.synapse != Synapse::kNone) {
      fill_row(dynamics.synapse_decay, begin, begin + n, synapse_decay_);
    }
  }
  static constexpr std::int64_t kRows = Each<F>::kRows + 1;

  const Each<F>& neurons() const { return neurons_; }
  const F* synapse_decay() const { return synapse_decay_; }

  // Row t of the input.
  const F* input(std::int64_t t) const { return input_.rows(t, 1, 0, n_).data; }

  // What of row t reaches the membranes, in `out` or where the input lies; c moves on.
  const F* current(std::int64_t t, F* c, F* out) const {
    const F* row = input(t);
    if (dynamics_.synapse == Synapse::kNone && dynamics_.gain == F(1)) return row;
    with_synapse(dynamics_.synapse, [&]<Synapse kSynapse>(Constant<kSynapse>) {
      conduct_row<kSynapse>(n_, dynamics_.gain, synapse_decay_, row, c, out);
    });
    return out;
  }

  void step(const F* x, const F* u_in, F* v, F* u_out, F* spikes) const {
    with_charge(dynamics_.charge, [&]<Charge kCharge>(Constant<kCharge>) {
      with_reset(dynamics_.reset, [&]<Reset kReset>(Constant<kReset>) {
        step_row<kCharge, kReset>(n_, neurons_, x, u_in, v, u_out, spikes);
      });
    });
  }

 private:
  const LifDynamics<F>& dynamics_;
  const Currents<F>& input_;
  std::int64_t n_;
  Each<F> neurons_;
  F* synapse_decay_;
};

}  // namespace

template <class F>
void forward_by_steps(const LifForward<F>& p, std::int64_t begin, std::int64_t n,
                      std::int64_t length) {
  const std::int64_t T = p.shape.timesteps;
  Rows<F> rows(length, 6 + Steps<F>::kRows + Currents<F>::rows_needed(1));
  F* const u = rows.take(2);  // before and after a step, in turn
  F* const c = rows.take();
  F* const v = rows.take();
  F* const current = rows.take();
  F* const s_buffer = rows.take();
  const Currents<F> input(p.shape, p.x, p.affine, begin, n, 1, rows);
  const Steps<F> steps(p.dynamics, input, begin, n, length, rows);
  start_from(p.v_init, begin, n, u);
  start_from(p.current_init, begin, n, c);
  const auto emit = [&](std::int64_t t, const auto& write) {
    const std::int64_t to = t * p.spikes_step + begin;
    const auto s = target_rows(p.spike_dtype, p.spikes, to, p.spikes_step, n, s_buffer);
    write(s.data);
    store_rows(p.spike_dtype, s, p.spikes, to, p.spikes_step, 1, n);
  };
  // A delayed spike leaves one step late: the first row is what the state before the first step
  // fires, the last spikes are seen by nobody.
  const std::int64_t delay = p.dynamics.delayed_spike && !p.membranes ? 1 : 0;
  if (delay) emit(0, [&](F* s) { fires_row(n, steps.neurons(), u, s); });
  for (std::int64_t t = 0; t < T; ++t) {
    const F* x = steps.current(t, c, current);
    F* const before = u + t % 2 * length;
    F* const after = u + (t + 1) % 2 * length;
    const auto step = [&](F* out) {
      steps.step(x, before, p.membranes ? out : v, after, p.membranes ? v : out);
    };
    if (t + delay < T) {
      emit(t + delay, step);
    } else {
      step(s_buffer);
    }
  }
  if (p.state) std::copy_n(u + T % 2 * length, n, p.state + begin);
  if (p.current) std::copy_n(c, n, p.current + begin);
}

template <class F>
void backward_by_steps(const LifBackward<F>& p, std::int64_t begin, std::int64_t n,
                       std::int64_t length) {
  const LifDynamics<F>& dynamics = p.dynamics;
  const std::int64_t T = p.shape.timesteps;
  const std::int64_t delay = dynamics.delayed_spike ? 1 : 0;
  // Whether the state before the first step is looked at: by a delayed reset or a delayed spike.
  const bool looks_at_start = dynamics.reset == Reset::kDelayedSoft || delay;
  const bool conducted = dynamics.synapse != Synapse::kNone || dynamics.gain != F(1);
  Rows<F> rows(length, 5 * (T + 1) + 10 + Steps<F>::kRows + Currents<F>::rows_needed(1) +
                           InputGradient<F>::rows_needed(1));
  F* const membranes = rows.take(T + 1);  // row 0 is the state before the first step
  F* const states = rows.take(T + 1);     // after t steps
  F* const synapses = rows.take(T + 1);   // the synapse's current after t steps
  F* const currents = rows.take(T + 1);   // what reaches the membranes in step t
  F* const ds_dv = rows.take(T + 1);      // row t + 1 belongs to step t
  F* const spikes = rows.take();
  F* const normalized = rows.take();
  F* const steps_since = rows.take();
  F* const gs_buffer = rows.take();
  F* const grad_v = rows.take();
  F* const grad_current = rows.take();
  F* const grad_c = rows.take();
  F* const grad_decay = rows.take();
  F* const grad_threshold = rows.take();
  F* const grad_synapse = rows.take();
  const Currents<F> input(p.shape, p.x, p.affine, begin, n, 1, rows);
  const Steps<F> steps(dynamics, input, begin, n, length, rows);
  const InputGradient<F> grad_x(p, input, begin, n, 1, rows);
  const auto at = [&](F* of, std::int64_t t) { return of + t * length; };

  start_from(p.v_init, begin, n, states);
  start_from(p.v_init, begin, n, membranes);
  start_from(p.current_init, begin, n, synapses);
  for (std::int64_t t = 0; t < T; ++t) {
    std::copy_n(at(synapses, t), n, at(synapses, t + 1));
    const F* x = steps.current(t, at(synapses, t + 1), at(currents, t));
    if (!conducted) std::copy_n(x, n, at(currents, t));
    steps.step(at(currents, t), at(states, t), at(membranes, t + 1), at(states, t + 1), spikes);
  }

  for_each_surrogate(p, begin, begin + n,
                     [&](const SurrogateChoice& choice, std::int64_t at_p, std::int64_t stop) {
                       const std::int64_t from = at_p - begin, count = stop - at_p;
                       std::fill_n(normalized + from, count, choice.normalized ? F(1) : F(0));
                       std::fill_n(steps_since + from, count, std::numeric_limits<F>::infinity());
                       for (std::int64_t t = looks_at_start ? 0 : 1; t <= T; ++t) {
                         F* const row = at(ds_dv, t) + from;
                         const F* const v = at(membranes, t) + from;
                         if (p.derivatives) {
                           given_row(count, steps.neurons(), choice.normalized, from,
                                     p.derivatives + (t - 1) * p.derivatives_step + at_p, row);
                           continue;
                         }
                         if (choice.kind == Surrogate::kSpikeTime) {
                           const SpikeTime<F> derivative{F(choice.args[0]), F(choice.args[1])};
                           spike_time_row(count, steps.neurons(), derivative, choice.normalized,
                                          from, v, steps_since + from, row);
                         }
                         with_surrogate<F>(choice.kind, choice.args, [&](const auto& derivative) {
                           derivative_row(count, steps.neurons(), derivative, choice.normalized,
                                          from, v, row);
                         });
                       }
                     });

  start_from(p.grad_state, begin, n, grad_v);
  start_from(p.grad_current, begin, n, grad_c);
  for (F* const sum : {grad_decay, grad_threshold, grad_synapse}) std::fill_n(sum, n, F(0));
  const auto spike_gradients = [&](std::int64_t t) -> const F* {
    if (t < 0 || t >= T) {
      std::fill_n(gs_buffer, n, F(0));
      return gs_buffer;
    }
    const std::int64_t from = t * p.grad_step + begin;
    return load_rows(p.shape.dtype, p.grad_spikes, from, p.grad_step, 1, n, gs_buffer).data;
  };
  with_charge(dynamics.charge, [&]<Charge kCharge>(Constant<kCharge>) {
    with_reset(dynamics.reset, [&]<Reset kReset>(Constant<kReset>) {
      with_bool(!p.detach_reset, [&]<bool kAttached>(Constant<kAttached>) {
        for (std::int64_t t = T - 1; t >= 0; --t) {
          step_gradient_row<kCharge, kReset, kAttached>(
              n, steps.neurons(), p.grad_state && t == T - 1, normalized, at(membranes, t + 1),
              at(ds_dv, t + 1), spike_gradients(t + delay), grad_v, grad_threshold);
          charge_gradient_row<kCharge>(n, steps.neurons(), grad_v, at(states, t), at(currents, t),
                                       grad_current, grad_decay);
          const auto gx = grad_x.target(t, 0, n);
          if (conducted) {
            const F* x = steps.input(t);
            with_synapse(dynamics.synapse, [&]<Synapse kSynapse>(Constant<kSynapse>) {
              conduct_gradient_row<kSynapse>(n, dynamics.gain, steps.synapse_decay(),
                                             at(synapses, t), x, grad_current, grad_c, grad_synapse,
                                             gx.data);
            });
          } else {
            std::copy_n(grad_current, n, gx.data);
          }
          grad_x.store(gx, t, 1, 0, n);
        }
        if (looks_at_start) {
          step_gradient_row<kCharge, kReset, kAttached>(
              n, steps.neurons(), false, normalized, membranes, ds_dv, spike_gradients(delay - 1),
              grad_v, grad_threshold);
        } else {
          for (std::int64_t i = 0; i < n; ++i) grad_v[i] *= charge_du<kCharge>(steps.neurons()[i]);
        }
      });
    });
  });
  grad_x.finish();
  const auto keep = [&](const F* row, F* tensor) {
    if (tensor) std::copy_n(row, n, tensor + begin);
  };
  keep(grad_v, p.grad_v_init);
  keep(grad_c, p.grad_current_init);
  keep(grad_decay, p.neuron_grad_decay);
  keep(grad_threshold, p.neuron_grad_threshold);
  keep(grad_synapse, p.neuron_grad_synapse);
}

template void forward_by_steps(const LifForward<float>&, std::int64_t, std::int64_t, std::int64_t);
template void forward_by_steps(const LifForward<double>&, std::int64_t, std::int64_t, std::int64_t);
template void backward_by_steps(const LifBackward<float>&, std::int64_t, std::int64_t,
                                std::int64_t);
template void backward_by_steps(const LifBackward<double>&, std::int64_t, std::int64_t,
                                std::int64_t);

}  // namespace snnkern::cpu
