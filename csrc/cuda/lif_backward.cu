#include <algorithm>

#include "launch.h"
#include "lif.h"
#include "neurons.h"

namespace snnkern::cuda {
namespace {

constexpr int kThreads = 128;
// Of a thread: with known options, and with any.
constexpr int kMostNeurons = 4;
constexpr int kFewNeurons = 2;
// Every GPU has this much for a block without being asked.
constexpr std::int64_t kSharedMemory = 48 * 1024;
// Longer ones leave too few threads on the chip to keep the memory busy.
constexpr int kLongestSegment = 64;
constexpr int kSegment = 32;

bool has_clock(const SurrogateChoice& choice, bool table) {
  return table || choice.kind == Surrogate::kSpikeTime;
}

template <class F>
struct Arguments {
  LifBackward<F> p;
  SurrogateChoice choice;
  SurrogateTable table;
  F* workspace;
  Segments segments;
  bool aligned;
  bool clock;
};

// What is kept of a segment's steps: the membranes (row 0) and, as far as they are needed, the
// synapse's current after the step, the time since the last spike and, last, x. A column of numbers
// per thread that nobody else touches.
template <class F, int kCount>
struct Column {
  Pack<F, kCount>* of_thread;
  int threads, rows;

  SNN_HD void keep(int t, int row, const F (&values)[kCount]) const {
    for (int i = 0; i < kCount; ++i) of_thread[(t * rows + row) * threads].e[i] = values[i];
  }
  SNN_HD void get(int t, int row, F (&out)[kCount]) const {
    const Pack<F, kCount> pack = of_thread[(t * rows + row) * threads];
    for (int i = 0; i < kCount; ++i) out[i] = pack.e[i];
  }
};

// Which surrogate each of a thread's neurons has.
template <class F, class Neurons>
class Surrogates {
 public:
  static constexpr int kCount = Neurons::kCount;

  SNN_HD Surrogates(const Arguments<F>& a, const Neurons& neurons, std::int64_t first)
      : neurons_(neurons) {
    if constexpr (Neurons::kPlain) {
      choices_[0] = a.choice;
    } else {
      for (int i = 0; i < kCount; ++i) {
        choices_[i] = a.choice;
        if (!a.table) continue;
        const double* const row = a.table + (first + i) / a.p.sample_stride % a.p.samples * 4;
        choices_[i] = {
            static_cast<Surrogate>(static_cast<int>(row[0])), {row[1], row[2]}, row[3] != 0};
      }
    }
  }

  SNN_HD SurrogateArgument<F> argument(int i) const {
    const bool normalized = choice(i).normalized;
    return SurrogateArgument<F>::of(neurons_.neuron(i).threshold, neurons_.inverse(i), normalized);
  }

  // ds/dv of a step whose ds/dz is given.
  SNN_HD void given(const Place<kCount>& place, const F* ds_dz, F (&ds_dv)[kCount]) const {
    place.load_state(ds_dz, ds_dv);
    for (int i = 0; i < kCount; ++i) ds_dv[i] = ds_dv[i] * argument(i).scale;
  }

  // ds/dv of kSteps steps, from the membranes and the steps since the last spike.
  template <int kSteps>
  SNN_HD void derive(const F (&v)[kSteps][kCount], const F (&since)[kSteps][kCount],
                     F (&ds_dv)[kSteps][kCount]) const {
    if constexpr (!Neurons::kPlain) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const SurrogateChoice& one = choice(i);
        const SurrogateArgument<F> z = argument(i);
        if (one.kind == Surrogate::kSpikeTime) {
          const SpikeTime<F> derivative{F(one.args[0]), F(one.args[1])};
#pragma unroll
          for (int k = 0; k < kSteps; ++k) ds_dv[k][i] = derivative(since[k][i]) * z.scale;
        }
        with_surrogate<F>(one.kind, one.args, [&](const auto& derivative) {
#pragma unroll
          for (int k = 0; k < kSteps; ++k) ds_dv[k][i] = derivative(z(v[k][i])) * z.scale;
        });
      }
    } else {
      const SurrogateArgument<F> z = argument(0);
      with_surrogate<F>(choice(0).kind, choice(0).args, [&](const auto& derivative) {
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
#pragma unroll
          for (int i = 0; i < kCount; ++i) ds_dv[k][i] = derivative(z(v[k][i])) * z.scale;
        }
      });
    }
  }

 private:
  SNN_HD const SurrogateChoice& choice(int i) const { return choices_[Neurons::kPlain ? 0 : i]; }

  const Neurons& neurons_;
  SurrogateChoice choices_[Neurons::kPlain ? 1 : kCount];
};

// The steps of the layer going forward, from one state to another.
template <Dtype kDtype, class Neurons, class F>
struct Forwards {
  static constexpr int kCount = Neurons::kCount, kBlock = Neurons::kBlock;

  const Arguments<F>& a;
  const Place<kCount>& place;
  const Neurons& neurons;
  const Seen<F, kCount>& seen;

  SNN_HD State<F, kCount> start() const {
    State<F, kCount> state;
    place.load_state(a.p.v_init, state.u);
    place.load_state(a.p.current_init, state.c);
    for (int i = 0; i < kCount; ++i) {
      const bool fired = neurons.looks_at_start() && fires(state.u[i], neurons.neuron(i));
      state.since[i] = fired ? F(0) : std::numeric_limits<F>::infinity();
    }
    return state;
  }

  // Steps [begin, end); calls f(t, x, v, state) after each.
  template <class Call>
  SNN_HD void walk(int begin, int end, State<F, kCount>& state, Call&& f) const {
    const auto x_from = [&](int t) {
      return Loads<kDtype, kCount, kBlock>::of(place, a.p.x, a.p.shape.x_step, t, 1, end - t, end);
    };
    auto next = x_from(begin);
    for (int t = begin; t < end; t += kBlock) {
      const auto loads = next;
      if (t + kBlock < end) next = x_from(t + kBlock);
#pragma unroll
      for (int k = 0; k < kBlock; ++k) {
        if (t + k >= end) break;
        F raw[kCount], x[kCount], v[kCount];
        loads.get(k, raw);
        for (int i = 0; i < kCount; ++i) x[i] = raw[i];
        seen.apply(x);
        step(neurons, x, state, v);
        for (int i = 0; i < kCount; ++i) state.since[i] = state.since[i] + F(1);
        f(t + k, raw, v, state);
        for (int i = 0; i < kCount; ++i) {
          if (fires(v[i], neurons.neuron(i))) state.since[i] = F(0);
        }
      }
    }
  }
};

// The gradient of a thread's neurons going back, and what it adds up to.
template <class F, int kCount>
struct Gradient {
  F v[kCount];  // dL/dv of the step after; at the end of time dL/du of the final state
  F c[kCount];  // dL/d(the synapse's current)
  F decay[kCount], threshold[kCount], synapse[kCount];
  F sum[kCount], dot[kCount], held[kCount];
};

// The membrane's part of a step back: from dL/ds to dL/dv, and, where `f` is, to what else follows:
// f(charge, i), called after g.v[i] is that of this step. `last`: nothing comes after the step.
template <class Neurons, class Surrogates, class F, int kCount, class Call>
SNN_HD void step_back(const Neurons& neurons, const Surrogates& surrogates, bool attached,
                      bool last, const F (&v)[kCount], const F (&ds_dv)[kCount],
                      const F (&gs)[kCount], Gradient<F, kCount>& g, Call&& f) {
  neurons.with_dynamics([&]<Charge kCharge, Reset kReset>(Constant<kCharge>, Constant<kReset>) {
    const F delayed = last ? F(0) : F(1);
    const auto all = [&]<bool kAttached>(Constant<kAttached>) {
      for (int i = 0; i < kCount; ++i) {
        const Neuron<F>& n = neurons.neuron(i);
        const F du = last ? F(1) : charge_du<kCharge>(n);
        const StepGradient<F> of = step_gradient<kReset, kAttached>(
            v[i], ds_dv[i], gs[i], g.v[i], du, delayed, n, surrogates.argument(i));
        g.threshold[i] += of.threshold;
        g.v[i] = of.v;
      }
    };
    if (attached) {
      all(Constant<true>{});
    } else {
      all(Constant<false>{});
    }
    for (int i = 0; i < kCount; ++i) f(Constant<kCharge>{}, i);
  });
}

template <Dtype kDtype, class F, int kCount>
SNN_HD void store_gradient(const F (&values)[kCount], const Place<kCount>& place, void* tensor,
                           std::int64_t offset) {
  Pack<Element<kDtype>, kCount> pack;
  for (int i = 0; i < kCount; ++i) pack.e[i] = to_element<kDtype>(values[i]);
  place.store(pack, static_cast<Element<kDtype>*>(tensor) + offset);
}

// The gradient of x in step t goes where it belongs: into the tensor, into the sum over time of an
// input that is held, and into the sums that normalisation asks for.
template <Dtype kDtype, bool kSums, class F, int kCount>
SNN_HD void emit_gradient(const LifBackward<F>& p, const Place<kCount>& place, int t,
                          const F (&gx)[kCount], const F (&x)[kCount], const F (&mean)[kCount],
                          Gradient<F, kCount>& g) {
  if (kSums && p.norm.neuron_sum) {
    for (int i = 0; i < kCount; ++i) {
      g.sum[i] += gx[i];
      g.dot[i] += gx[i] * (x[i] - mean[i]);
    }
  }
  if (kSums && p.sum_over_time) {
    for (int i = 0; i < kCount; ++i) g.held[i] += gx[i];
  } else {
    store_gradient<kDtype>(gx, place, p.grad_x, t * p.shape.neurons);
  }
}

template <Dtype kDtype, bool kSums, class F, int kCount>
SNN_HD void finish(const LifBackward<F>& p, const Place<kCount>& place,
                   const Gradient<F, kCount>& g) {
  place.store_state(g.v, p.grad_v_init);
  place.store_state(g.c, p.grad_current_init);
  if constexpr (!kSums) return;
  if (p.sum_over_time) store_gradient<kDtype>(g.held, place, p.grad_x, 0);
  place.store_state(g.decay, p.neuron_grad_decay);
  place.store_state(g.threshold, p.neuron_grad_threshold);
  place.store_state(g.synapse, p.neuron_grad_synapse);
  place.store_state(g.sum, p.norm.neuron_sum);
  place.store_state(g.dot, p.norm.neuron_dot);
}

template <Dtype kDtype, class Neurons, bool kSums, class F>
SNN_HD void backward(const Arguments<F>& a, std::int64_t thread, void* shared, int threads,
                     int number) {
  constexpr int kCount = Neurons::kCount, kBlock = Neurons::kBlock;
  const LifBackward<F>& p = a.p;
  const auto place = Place<kCount>::of(thread, p.shape.neurons, a.aligned);
  if (place.present <= 0) return;
  const Neurons neurons(p.dynamics, place);
  const Seen<F, kCount> seen(p.affine, place);
  const Surrogates<F, Neurons> surrogates(a, neurons, place.first);
  const Forwards<kDtype, Neurons, F> forwards{a, place, neurons, seen};
  const Column<F, kCount> column{static_cast<Pack<F, kCount>*>(shared) + number, threads,
                                 a.segments.rows};
  const int T = static_cast<int>(p.shape.timesteps), delay = neurons.delay();
  const bool conducted = neurons.conducted(), clock = !Neurons::kPlain && a.clock;
  const int clock_row = conducted ? 2 : 1, x_row = a.segments.rows - 1;
  // The state before segment s > 0.
  const auto saved = [&](int s, int row) {
    return a.workspace + ((s - 1) * a.segments.state_rows + row) * p.shape.neurons;
  };

  Gradient<F, kCount> g{};
  place.load_state(p.grad_state, g.v);
  place.load_state(p.grad_current, g.c);
  F mean[kCount] = {};
  const bool looks_at_x = neurons.looks_at_input() || (kSums && p.norm.neuron_sum);
  if (looks_at_x && p.norm.neuron_sum) place.load_parameter(p.norm.mean, mean);

  // Forward through all segments, then back through them: the last one is visited once.
  const int last = a.segments.count - 1;
  State<F, kCount> state = forwards.start();
  for (int visit = 0; visit <= 2 * last; ++visit) {
    const int s = visit <= last ? visit : 2 * last - visit;
    const int begin = s * a.segments.length;
    const int end = begin + a.segments.length < T ? begin + a.segments.length : T;
    if (visit > last) {
      if (s > 0) {
        place.load_state(saved(s, 0), state.u);
        if (conducted) place.load_state(saved(s, 1), state.c);
        if (clock) place.load_state(saved(s, clock_row), state.since);
      } else {
        state = forwards.start();
      }
    }
    // Steps t, t - 1, ...: what arrives there of the spikes' gradients.
    const auto grads_from = [&](int t) {
      return Loads<kDtype, kCount, kBlock>::of(place, p.grad_spikes, p.grad_step, t + delay, -1,
                                               t + 1 - begin, p.shape.timesteps);
    };
    auto next = grads_from(end - 1);
    const State<F, kCount> before = state;
    forwards.walk(
        begin, end, state,
        [&](int t, const F(&x)[kCount], const F(&v)[kCount], const State<F, kCount>& after) {
          column.keep(t - begin, 0, v);
          if (conducted) column.keep(t - begin, 1, after.c);
          if (clock) column.keep(t - begin, clock_row, after.since);
          if (looks_at_x) column.keep(t - begin, x_row, x);
        });
    if (visit < last) {
      place.store_state(state.u, saved(s + 1, 0));
      if (conducted) place.store_state(state.c, saved(s + 1, 1));
      if (clock) place.store_state(state.since, saved(s + 1, clock_row));
      continue;
    }
    for (int from = end - 1; from >= begin; from -= kBlock) {
      const auto grads = next;
      if (from - kBlock >= begin) next = grads_from(from - kBlock);
      F v[kBlock][kCount], since[kBlock][kCount], ds_dv[kBlock][kCount];
#pragma unroll
      for (int k = 0; k < kBlock; ++k) {
        const int t = from - k > begin ? from - k : begin;
        column.get(t - begin, 0, v[k]);
        if (clock) column.get(t - begin, clock_row, since[k]);
        if (p.derivatives) {
          surrogates.given(place, p.derivatives + t * p.derivatives_step, ds_dv[k]);
        }
      }
      if (!p.derivatives) surrogates.derive(v, since, ds_dv);
#pragma unroll
      for (int k = 0; k < kBlock; ++k) {
        const int t = from - k;
        if (t < begin) break;
        F u[kCount], c[kCount] = {}, gs[kCount], raw[kCount] = {}, current[kCount] = {}, gx[kCount];
        if (t == begin) {
          for (int i = 0; i < kCount; ++i) {
            u[i] = before.u[i];
            c[i] = before.c[i];
          }
        } else {
          column.get(t - begin - 1, 0, u);
          neurons.with_dynamics(
              [&]<Charge kCharge, Reset kReset>(Constant<kCharge>, Constant<kReset>) {
                for (int i = 0; i < kCount; ++i) {
                  u[i] = reset<kReset>(u[i], fires(u[i], neurons.neuron(i)), neurons.neuron(i));
                }
              });
          if (conducted) column.get(t - begin - 1, 1, c);
        }
        grads.get(k, gs);
        F x[kCount] = {};
        if (looks_at_x) {
          column.get(t - begin, x_row, raw);
          for (int i = 0; i < kCount; ++i) x[i] = raw[i];
          seen.apply(x);
          F moved[kCount];
          for (int i = 0; i < kCount; ++i) moved[i] = c[i];
          conduct_all(neurons, x, moved, current);
        }
        step_back(neurons, surrogates, !p.detach_reset, t == T - 1, v[k], ds_dv[k], gs, g,
                  [&]<Charge kCharge>(Constant<kCharge>, int i) {
                    const Neuron<F>& n = neurons.neuron(i);
                    g.decay[i] += g.v[i] * charge_ddecay<kCharge>(u[i], current[i], n);
                    gx[i] = charge_dx<kCharge>(n) * g.v[i];
                  });
        neurons.with_synapse([&]<Synapse kSynapse>(Constant<kSynapse>) {
          for (int i = 0; i < kCount; ++i) {
            gx[i] = neurons.gain() *
                    conduct_gradient<kSynapse>(gx[i], g.c[i], c[i], neurons.gain() * x[i],
                                               neurons.synapse_decay(i), g.synapse[i]);
          }
        });
        emit_gradient<kDtype, kSums>(p, place, t, gx, raw, mean, g);
      }
    }
  }
  // What reaches the state before the first step, whose spike counts where the neurons look at it.
  if (neurons.looks_at_start()) {
    F v[1][kCount], since[1][kCount], ds_dv[1][kCount], gs[kCount] = {};
    place.load_state(p.v_init, v[0]);
    for (int i = 0; i < kCount; ++i) since[0][i] = std::numeric_limits<F>::infinity();
    if (p.derivatives) {
      surrogates.given(place, p.derivatives - p.derivatives_step, ds_dv[0]);
    } else {
      surrogates.derive(v, since, ds_dv);
    }
    if (delay) {
      Loads<kDtype, kCount, 1>::of(place, p.grad_spikes, p.grad_step, 0, 1, 1, T).get(0, gs);
    }
    step_back(neurons, surrogates, !p.detach_reset, false, v[0], ds_dv[0], gs, g, [](auto, int) {});
  } else {
    neurons.with_dynamics([&]<Charge kCharge>(Constant<kCharge>, auto) {
      for (int i = 0; i < kCount; ++i) g.v[i] *= charge_du<kCharge>(neurons.neuron(i));
    });
  }
  finish<kDtype, kSums>(p, place, g);
}

// kSums: something is summed over time, for a parameter, for normalisation or for a held input.
template <Dtype kDtype, class Neurons, bool kSums, class F>
__global__ void __launch_bounds__(kThreads, 2) backward_kernel(const Arguments<F> a) {
  backward<kDtype, Neurons, kSums>(a, this_thread(), shared, static_cast<int>(blockDim.x),
                                   static_cast<int>(threadIdx.x));
}

template <class F>
bool is_aligned(const LifBackward<F>& p) {
  const std::int64_t size = size_of(p.shape.dtype);
  const auto state = [](const F* row) { return loads_as_one(row, 0, sizeof(F), kMostNeurons); };
  return loads_as_one(p.x, p.shape.x_step, size, kMostNeurons) &&
         loads_as_one(p.grad_spikes, p.grad_step, size, kMostNeurons) &&
         loads_as_one(p.grad_x, p.shape.neurons, size, kMostNeurons) &&
         loads_as_one(p.derivatives, p.derivatives_step, sizeof(F), kMostNeurons) &&
         state(p.v_init) && state(p.current_init) && state(p.grad_state) && state(p.grad_current);
}

template <Dtype kDtype, class Neurons, bool kSums, class F>
cudaError_t run(const Arguments<F>& a, cudaStream_t stream) {
  constexpr int kCount = Neurons::kCount;
  const std::int64_t threads = (a.p.shape.neurons + kCount - 1) / kCount;
  const std::int64_t shared =
      std::int64_t{kCount} * sizeof(F) * a.segments.length * a.segments.rows;
  const int block =
      static_cast<int>(std::min<std::int64_t>(kThreads, kSharedMemory / shared / 32 * 32));
  return launch(backward_kernel<kDtype, Neurons, kSums, F>, threads, block, shared, stream, a);
}

template <Dtype kDtype, class F>
cudaError_t run(const Arguments<F>& a, cudaStream_t stream) {
  if constexpr (std::is_same_v<F, float>) {
    if (fits_plain(a.p.dynamics) && a.p.dynamics.reset != Reset::kNone && !a.clock) {
      const bool sums = a.p.neuron_grad_decay || a.p.norm.neuron_sum || a.p.sum_over_time;
      cudaError_t error = cudaSuccess;
      with_enum<Reset::kDelayedSoft>(a.p.dynamics.reset, [&]<Reset kReset>(Constant<kReset>) {
        using Neurons = Plain<F, kMostNeurons, kReset>;
        error =
            sums ? run<kDtype, Neurons, true>(a, stream) : run<kDtype, Neurons, false>(a, stream);
      });
      return error;
    }
  }
  using Neurons = Any<F, kFewNeurons>;
  return run<kDtype, Neurons, true>(a, stream);
}

}  // namespace

template <class F>
Segments Segments::of(const LifBackward<F>& p, bool table) {
  const bool clock = has_clock(p.surrogates[0], table);
  const bool synapse = p.dynamics.synapse != Synapse::kNone;
  const bool looks_at_x = synapse || p.dynamics.charge != Charge::kLeak || p.norm.neuron_sum;
  const int state_rows = 1 + synapse + clock, rows = state_rows + looks_at_x;
  const auto most = static_cast<int>(kSharedMemory / (32 * kMostNeurons * sizeof(F) * rows));
  const auto T = static_cast<int>(p.shape.timesteps);
  const int length = T <= std::min(most, kLongestSegment) ? T : std::min(most, kSegment);
  return {length, (T + length - 1) / length, rows, state_rows};
}

template <>
cudaError_t lif_backward(const LifBackward<float>& p, SurrogateTable table, float* workspace,
                         cudaStream_t stream) {
  const Arguments<float> a{p,
                           p.surrogates[0],
                           table,
                           workspace,
                           Segments::of(p, table != nullptr),
                           is_aligned(p),
                           has_clock(p.surrogates[0], table != nullptr)};
  switch (p.shape.dtype) {
    case Dtype::kFloat16:
      return run<Dtype::kFloat16>(a, stream);
    case Dtype::kBFloat16:
      return run<Dtype::kBFloat16>(a, stream);
    default:
      return run<Dtype::kFloat32>(a, stream);
  }
}

template <>
cudaError_t lif_backward(const LifBackward<double>& p, SurrogateTable table, double* workspace,
                         cudaStream_t stream) {
  return run<Dtype::kFloat64>(
      Arguments<double>{p, p.surrogates[0], table, workspace, Segments::of(p, table != nullptr),
                        is_aligned(p), has_clock(p.surrogates[0], table != nullptr)},
      stream);
}

template Segments Segments::of(const LifBackward<float>&, bool);
template Segments Segments::of(const LifBackward<double>&, bool);

}  // namespace snnkern::cuda
