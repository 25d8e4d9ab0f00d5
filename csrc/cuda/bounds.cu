#include "bounds.h"

#include "launch.h"
#include "neurons.h"

namespace snnkern::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kEnds = 2;  // of an interval
// Neurons of a thread: where it knows two ends of each, and where it works in double.
constexpr int kCount = 4;
constexpr int kFew = 2;
constexpr int kBlock = 4;  // steps whose loads are under way together

template <class F>
constexpr Dtype kOwn = sizeof(F) == sizeof(float) ? Dtype::kFloat32 : Dtype::kFloat64;

template <Dtype kDtype, int kNeurons, class F>
SNN_HD void store_row(const Place<kNeurons>& place, const F (&values)[kNeurons], void* tensor,
                      std::int64_t at) {
  Pack<Element<kDtype>, kNeurons> pack;
  for (int i = 0; i < kNeurons; ++i) pack.e[i] = to_element<kDtype>(values[i]);
  place.store(pack, static_cast<Element<kDtype>*>(tensor) + at);
}

// One step of a tensor, in the state's type.
template <Dtype kDtype, int kNeurons, class F>
SNN_HD void load_row(const Place<kNeurons>& place, const void* tensor, std::int64_t at,
                     F (&out)[kNeurons]) {
  const auto pack = place.load(static_cast<const Element<kDtype>*>(tensor) + at);
  for (int i = 0; i < kNeurons; ++i) out[i] = from_element<kDtype, F>(pack.e[i]);
}

// Membranes of all steps, from the currents; calls f(t, lower, upper) after each step.
template <Dtype kDtype, Reset kReset, class F, class Call>
SNN_HD void walk(const Any<F, kCount>& neurons, const Place<kCount>& place, F v_init,
                 const Steps& lower, const Steps& upper, int T, Call&& f) {
  const auto from = [&](const Steps& x, int t) {
    return Loads<kDtype, kCount, kBlock>::of(place, x.data, x.step, t, 1, T - t, T);
  };
  Interval<F> u[kCount];
  for (int i = 0; i < kCount; ++i) u[i] = {v_init, v_init};
  for (int t = 0; t < T; t += kBlock) {
    const auto lows = from(lower, t), highs = from(upper, t);
#pragma unroll
    for (int k = 0; k < kBlock; ++k) {
      if (t + k >= T) break;
      F x_lower[kCount], x_upper[kCount], v_lower[kCount], v_upper[kCount];
      lows.get(k, x_lower);
      highs.get(k, x_upper);
      for (int i = 0; i < kCount; ++i) {
        const Neuron<F>& n = neurons.neuron(i);
        const Interval<F> v = charge_interval<kReset>(u[i], Interval<F>{x_lower[i], x_upper[i]}, n);
        u[i] = carry_interval<kReset>(v, n);
        v_lower[i] = v.lower;
        v_upper[i] = v.upper;
      }
      f(t + k, v_lower, v_upper);
    }
  }
}

template <Dtype kDtype, Reset kReset, class F>
SNN_HD void interval(const IntervalForward<F>& p, bool aligned, std::int64_t thread) {
  const auto place = Place<kCount>::of(thread, p.shape.neurons, aligned);
  if (place.present <= 0) return;
  const Any<F, kCount> neurons(p.dynamics, place);
  const auto spikes = [&](const F(&v)[kCount], void* to, std::int64_t at) {
    F fired[kCount];
    for (int i = 0; i < kCount; ++i) fired[i] = fires(v[i], neurons.neuron(i)) ? F(1) : F(0);
    store_row<kDtype>(place, fired, to, at);
  };
  walk<kDtype, kReset>(neurons, place, p.v_init, {p.lower, p.shape.x_step}, {p.upper, p.upper_step},
                       static_cast<int>(p.shape.timesteps),
                       [&](int t, const F(&lower)[kCount], const F(&upper)[kCount]) {
                         const std::int64_t at = t * p.shape.neurons;
                         spikes(lower, p.spikes_lower, at);
                         spikes(upper, p.spikes_upper, at);
                         if (!p.v_lower) return;
                         store_row<kOwn<F>>(place, lower, p.v_lower, at);
                         store_row<kOwn<F>>(place, upper, p.v_upper, at);
                       });
}

template <Dtype kDtype, Reset kReset, class F>
__global__ void __launch_bounds__(kThreads) interval_kernel(IntervalForward<F> p, bool aligned) {
  interval<kDtype, kReset>(p, aligned, this_thread());
}

template <Dtype kDtype, Reset kReset, class F>
SNN_HD void interval_back(const IntervalBackward<F>& p, F* membranes, bool aligned,
                          std::int64_t thread) {
  const auto place = Place<kCount>::of(thread, p.shape.neurons, aligned);
  if (place.present <= 0) return;
  const Any<F, kCount> neurons(p.dynamics, place);
  const int T = static_cast<int>(p.shape.timesteps);
  F* const v_of[kEnds] = {membranes, membranes + T * p.shape.neurons};
  walk<kDtype, kReset>(neurons, place, p.v_init, p.x[0], p.x[1], T,
                       [&](int t, const F(&lower)[kCount], const F(&upper)[kCount]) {
                         store_row<kOwn<F>>(place, lower, v_of[0], t * p.shape.neurons);
                         store_row<kOwn<F>>(place, upper, v_of[1], t * p.shape.neurons);
                       });
  F g[kEnds][kCount] = {}, decay[kCount] = {}, threshold[kCount] = {};
  F x_next[kEnds][kCount] = {};
  with_surrogate<F>(p.surrogate.kind, p.surrogate.args, [&](const auto& derivative) {
    for (int t = T - 1; t >= 0; --t) {
      F v[kEnds][kCount], gs[kEnds][kCount], x[kEnds][kCount], more[kEnds][kCount] = {};
#pragma unroll
      for (int end = 0; end < kEnds; ++end) {
        load_row<kOwn<F>>(place, v_of[end], t * p.shape.neurons, v[end]);
        load_row<kDtype>(place, p.grad_spikes[end].data, t * p.grad_spikes[end].step, gs[end]);
        load_row<kDtype>(place, p.x[end].data, t * p.x[end].step, x[end]);
        if (p.grad_v[end].data) {
          load_row<kOwn<F>>(place, p.grad_v[end].data, t * p.grad_v[end].step, more[end]);
        }
      }
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const Neuron<F>& n = neurons.neuron(i);
        const auto z =
            SurrogateArgument<F>::of(n.threshold, neurons.inverse(i), p.surrogate.normalized);
        Transition<F> step{};
        if (t + 1 < T) {
          step = transition<kReset>(Interval<F>{v[0][i], v[1][i]},
                                    Interval<F>{x_next[0][i], x_next[1][i]}, n);
        }
        const EndGradient<F> ends[kEnds] = {step.lower, step.upper};
#pragma unroll
        for (int end = 0; end < kEnds; ++end) {
          const F ds_dv = derivative(z(v[end][i])) * z.scale;
          g[end][i] = end_gradient(g[end][i], ends[end], v[end][i], gs[end][i], ds_dv, z, decay[i],
                                   threshold[i]) +
                      more[end][i];
        }
      }
#pragma unroll
      for (int end = 0; end < kEnds; ++end) {
        store_row<kDtype>(place, g[end], p.grad_x[end], t * p.shape.neurons);
        for (int i = 0; i < kCount; ++i) x_next[end][i] = x[end][i];
      }
    }
  });
  for (int i = 0; i < kCount; ++i) {
    start_gradient<kReset>(g[0][i] + g[1][i], p.v_init, neurons.neuron(i), decay[i], threshold[i]);
  }
  place.store_state(decay, p.neuron_grad_decay);
  place.store_state(threshold, p.neuron_grad_threshold);
}

template <Dtype kDtype, Reset kReset, class F>
__global__ void __launch_bounds__(kThreads)
    interval_back_kernel(IntervalBackward<F> p, F* membranes, bool aligned) {
  interval_back<kDtype, kReset>(p, membranes, aligned, this_thread());
}

// A thread has a few neurons of one row: `rows` times as many threads as neurons ask for.
template <Reset kReset, Slope kSlope, class F>
SNN_HD void line(const Relaxation<F>& p, bool aligned, std::int64_t thread) {
  constexpr Dtype kDtype = kOwn<F>;
  const std::int64_t neurons_of_row = p.shape.neurons, packs = (neurons_of_row + kFew - 1) / kFew;
  const std::int64_t row = thread / packs;
  if (row >= p.rows) return;
  const auto place = Place<kFew>::of(thread - row * packs, neurons_of_row, aligned);
  const Any<F, kFew> neurons(p.dynamics, place);
  const int T = static_cast<int>(p.shape.timesteps);
  double bias[kFew] = {};
  F after[kFew] = {}, low[kFew], high[kFew];
  if (p.after) load_row<kDtype>(place, p.after, row * neurons_of_row, after);
  const auto load_bounds = [&](int t) {
    load_row<kDtype>(place, p.v[0].data, t * p.v[0].step, low);
    load_row<kDtype>(place, p.v[1].data, t * p.v[1].step, high);
  };
  load_bounds(T - 1);
  for (int t = T - 1; t >= 0; --t) {
    const std::int64_t at = (row * T + t) * neurons_of_row;
    F weights[kFew], given[kFew] = {};
    load_row<kDtype>(place, p.weights, at, weights);
    if constexpr (is_given(kSlope)) load_row<kDtype>(place, p.slopes, at, given);
    Interval<F> bounds[kFew];
    for (int i = 0; i < kFew; ++i) bounds[i] = {low[i], high[i]};
    if (t > 0) load_bounds(t - 1);
    for (int i = 0; i < kFew; ++i) {
      const Neuron<F>& n = neurons.neuron(i);
      const double before = t > 0 ? state_before(Interval<F>{low[i], high[i]}, n)
                                  : std::abs(static_cast<double>(p.v_init));
      const Line<F> found =
          line_below<kReset, kSlope>(weights[i], after[i], bounds[i], before, given[i], n);
      after[i] = found.slope;
      bias[i] += found.intercept;
    }
    store_row<kDtype>(place, after, p.lines, at);
  }
  for (int i = 0; i < kFew; ++i) {
    add_start<kReset>(after[i], p.v_init, neurons.neuron(i), bias[i]);
  }
  store_row<Dtype::kFloat64>(place, bias, p.bias, row * neurons_of_row);
}

template <Reset kReset, Slope kSlope, class F>
__global__ void __launch_bounds__(kThreads) line_kernel(Relaxation<F> p, bool aligned) {
  line<kReset, kSlope>(p, aligned, this_thread());
}

// A thread takes its neurons through all rows: what bounds and parameters get is summed over them.
template <Reset kReset, Slope kSlope, class F>
SNN_HD void line_back(const RelaxationBackward<F>& p, double* sums, bool aligned,
                      std::int64_t thread) {
  constexpr Dtype kDtype = kOwn<F>;
  const std::int64_t neurons_of_row = p.shape.neurons;
  const auto place = Place<kFew>::of(thread, neurons_of_row, aligned);
  if (place.present <= 0) return;
  const Any<F, kFew> neurons(p.dynamics, place);
  const int T = static_cast<int>(p.shape.timesteps);
  double decay[kFew] = {}, threshold[kFew] = {};
  for (std::int64_t row = 0; row < p.rows; ++row) {
    Parameter<double> upstream = p.grad_bias;
    upstream.data += row * p.bias_step;
    double g_bias[kFew], g[kFew];
    place.load_parameter(upstream, g_bias);
    F lines[kFew];
    load_row<kDtype>(place, p.lines, row * T * neurons_of_row, lines);
    for (int i = 0; i < kFew; ++i) {
      g[i] = line_start_gradient<kReset>(g_bias[i], lines[i], p.v_init, neurons.neuron(i), decay[i],
                                         threshold[i]);
    }
    for (int t = 0; t < T; ++t) {
      const std::int64_t at = (row * T + t) * neurons_of_row;
      F weights[kFew], low[kFew], high[kFew], g_lines[kFew], after[kFew] = {}, given[kFew] = {};
      F of_weights[kFew], of_given[kFew];
      load_row<kDtype>(place, p.weights, at, weights);
      load_row<kDtype>(place, p.grad_lines, at, g_lines);
      load_row<kDtype>(place, p.v[0].data, t * p.v[0].step, low);
      load_row<kDtype>(place, p.v[1].data, t * p.v[1].step, high);
      if constexpr (is_given(kSlope)) load_row<kDtype>(place, p.slopes, at, given);
      if (t + 1 < T) {
        load_row<kDtype>(place, p.lines, at + neurons_of_row, after);
      } else if (p.after) {
        load_row<kDtype>(place, p.after, row * neurons_of_row, after);
      }
      double of_ends[kEnds][kFew] = {};
      if (row > 0) {
        for (int end = 0; end < kEnds; ++end) {
          load_row<Dtype::kFloat64>(place, sums, (end * T + t) * neurons_of_row, of_ends[end]);
        }
      }
      for (int i = 0; i < kFew; ++i) {
        const LineGradient of = line_gradient<kReset, kSlope>(
            static_cast<double>(g_lines[i]) + g[i], g_bias[i], weights[i], after[i], lines[i],
            Interval<F>{low[i], high[i]}, given[i], neurons.neuron(i));
        of_weights[i] = static_cast<F>(of.row);
        of_given[i] = static_cast<F>(of.given);
        g[i] = of.after;
        of_ends[0][i] += of.lower;
        of_ends[1][i] += of.upper;
        decay[i] += of.decay;
        threshold[i] += of.threshold;
        lines[i] = after[i];
      }
      store_row<kDtype>(place, of_weights, p.grad_weights, at);
      if constexpr (is_given(kSlope)) store_row<kDtype>(place, of_given, p.grad_slopes, at);
      for (int end = 0; end < kEnds; ++end) {
        const std::int64_t to = (end * T + t) * neurons_of_row;
        if (row + 1 < p.rows) {
          store_row<Dtype::kFloat64>(place, of_ends[end], sums, to);
        } else {
          F of_v[kFew];
          for (int i = 0; i < kFew; ++i) of_v[i] = static_cast<F>(of_ends[end][i]);
          store_row<kDtype>(place, of_v, p.grad_v[end], t * neurons_of_row);
        }
      }
    }
    if (p.after) {
      F of_after[kFew];
      for (int i = 0; i < kFew; ++i) of_after[i] = static_cast<F>(g[i]);
      store_row<kDtype>(place, of_after, p.grad_after, row * neurons_of_row);
    }
  }
  F of_decay[kFew], of_threshold[kFew];
  for (int i = 0; i < kFew; ++i) {
    of_decay[i] = static_cast<F>(decay[i]);
    of_threshold[i] = static_cast<F>(threshold[i]);
  }
  place.store_state(of_decay, p.neuron_grad_decay);
  place.store_state(of_threshold, p.neuron_grad_threshold);
}

template <Reset kReset, Slope kSlope, class F>
__global__ void __launch_bounds__(kThreads)
    line_back_kernel(RelaxationBackward<F> p, double* sums, bool aligned) {
  line_back<kReset, kSlope>(p, sums, aligned, this_thread());
}

template <class F>
constexpr bool kFourBytes = sizeof(F) == sizeof(float);

// Calls f(dtype, reset) with both as constants.
template <class F, class Call>
void with_dtype_and_reset(Dtype dtype, Reset reset, Call&& f) {
  with_reset(reset, [&](auto known) {
    if constexpr (kFourBytes<F>) {
      if (dtype == Dtype::kFloat16) return f(Constant<Dtype::kFloat16>{}, known);
      if (dtype == Dtype::kBFloat16) return f(Constant<Dtype::kBFloat16>{}, known);
    }
    f(Constant<kOwn<F>>{}, known);
  });
}

template <class Call>
void with_reset_and_slope(Reset reset, Slope slope, Call&& f) {
  with_reset(reset, [&](auto known) { with_slope(slope, [&](auto way) { f(known, way); }); });
}

// Whether rows of all these can be loaded kNeurons at once.
template <int kNeurons, class... Pointers>
bool all_aligned(std::int64_t neurons, std::int64_t size, const Pointers*... tensors) {
  return (loads_as_one(tensors, neurons, size, kNeurons) && ...);
}

bool aligned(const Steps& steps, std::int64_t size, int count) {
  return loads_as_one(steps.data, steps.step, size, count);
}

std::int64_t threads_for(std::int64_t neurons, int count) { return (neurons + count - 1) / count; }

}  // namespace

template <class F>
cudaError_t interval_forward(const IntervalForward<F>& p, cudaStream_t stream) {
  const std::int64_t neurons = p.shape.neurons, size = size_of(p.shape.dtype);
  const bool whole = aligned({p.lower, p.shape.x_step}, size, kCount) &&
                     aligned({p.upper, p.upper_step}, size, kCount) &&
                     all_aligned<kCount>(neurons, size, p.spikes_lower, p.spikes_upper) &&
                     all_aligned<kCount>(neurons, sizeof(F), p.v_lower, p.v_upper);
  cudaError_t error = cudaSuccess;
  with_dtype_and_reset<F>(p.shape.dtype, p.dynamics.reset, [&](auto dtype, auto reset) {
    error = launch(interval_kernel<decltype(dtype)::value, decltype(reset)::value, F>,
                   threads_for(neurons, kCount), kThreads, 0, stream, p, whole);
  });
  return error;
}

template <class F>
cudaError_t interval_backward(const IntervalBackward<F>& p, F* membranes, cudaStream_t stream) {
  const std::int64_t neurons = p.shape.neurons, size = size_of(p.shape.dtype);
  bool whole = all_aligned<kCount>(neurons, sizeof(F), membranes);
  for (int end = 0; end < kEnds; ++end) {
    whole = whole && aligned(p.x[end], size, kCount) && aligned(p.grad_spikes[end], size, kCount) &&
            aligned(p.grad_v[end], sizeof(F), kCount) &&
            all_aligned<kCount>(neurons, size, p.grad_x[end]);
  }
  cudaError_t error = cudaSuccess;
  with_dtype_and_reset<F>(p.shape.dtype, p.dynamics.reset, [&](auto dtype, auto reset) {
    error = launch(interval_back_kernel<decltype(dtype)::value, decltype(reset)::value, F>,
                   threads_for(neurons, kCount), kThreads, 0, stream, p, membranes, whole);
  });
  return error;
}

template <class F>
cudaError_t relax(const Relaxation<F>& p, cudaStream_t stream) {
  const std::int64_t neurons = p.shape.neurons;
  const bool whole = aligned(p.v[0], sizeof(F), kFew) && aligned(p.v[1], sizeof(F), kFew) &&
                     all_aligned<kFew>(neurons, sizeof(F), p.weights, p.after, p.slopes, p.lines) &&
                     all_aligned<kFew>(neurons, sizeof(double), p.bias);
  cudaError_t error = cudaSuccess;
  with_reset_and_slope(p.dynamics.reset, p.slope, [&](auto reset, auto slope) {
    error = launch(line_kernel<decltype(reset)::value, decltype(slope)::value, F>,
                   p.rows * threads_for(neurons, kFew), kThreads, 0, stream, p, whole);
  });
  return error;
}

template <class F>
cudaError_t relax_backward(const RelaxationBackward<F>& p, double* sums, cudaStream_t stream) {
  const std::int64_t neurons = p.shape.neurons;
  const bool whole =
      aligned(p.v[0], sizeof(F), kFew) && aligned(p.v[1], sizeof(F), kFew) &&
      all_aligned<kFew>(neurons, sizeof(F), p.weights, p.after, p.slopes, p.lines, p.grad_lines,
                        p.grad_weights, p.grad_v[0], p.grad_v[1], p.grad_slopes, p.grad_after) &&
      all_aligned<kFew>(neurons, sizeof(double), sums);
  cudaError_t error = cudaSuccess;
  with_reset_and_slope(p.dynamics.reset, p.slope, [&](auto reset, auto slope) {
    error = launch(line_back_kernel<decltype(reset)::value, decltype(slope)::value, F>,
                   threads_for(neurons, kFew), kThreads, 0, stream, p, sums, whole);
  });
  return error;
}

template cudaError_t interval_forward(const IntervalForward<float>&, cudaStream_t);
template cudaError_t interval_forward(const IntervalForward<double>&, cudaStream_t);
template cudaError_t interval_backward(const IntervalBackward<float>&, float*, cudaStream_t);
template cudaError_t interval_backward(const IntervalBackward<double>&, double*, cudaStream_t);
template cudaError_t relax(const Relaxation<float>&, cudaStream_t);
template cudaError_t relax(const Relaxation<double>&, cudaStream_t);
template cudaError_t relax_backward(const RelaxationBackward<float>&, double*, cudaStream_t);
template cudaError_t relax_backward(const RelaxationBackward<double>&, double*, cudaStream_t);

}  // namespace snnkern::cuda
