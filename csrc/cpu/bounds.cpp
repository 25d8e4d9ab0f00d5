#include "bounds.h"

#include <algorithm>

#include "clones.h"
#include "tile.h"

namespace snnkern::cpu {
namespace {

// One step of a row of neurons: from the bounds of the carried state, which become those of the
// next, and of the current, to those of spikes and membranes.
template <Reset kReset, bool kUniform, class F>
SNN_CLONES void interval_row(std::int64_t n, const Neurons<F, kUniform> neurons,
                             const F* __restrict x_lower, const F* __restrict x_upper,
                             F* __restrict u_lower, F* __restrict u_upper,
                             F* __restrict spikes_lower, F* __restrict spikes_upper,
                             F* __restrict v_lower, F* __restrict v_upper) {
  for (std::int64_t i = 0; i < n; ++i) {
    const Neuron<F> neuron = neurons[i];
    const Interval<F> v = charge_interval<kReset>(Interval<F>{u_lower[i], u_upper[i]},
                                                  Interval<F>{x_lower[i], x_upper[i]}, neuron);
    const Interval<F> u = carry_interval<kReset>(v, neuron);
    spikes_lower[i] = fires(v.lower, neuron) ? F(1) : F(0);
    spikes_upper[i] = fires(v.upper, neuron) ? F(1) : F(0);
    v_lower[i] = v.lower;
    v_upper[i] = v.upper;
    u_lower[i] = u.lower;
    u_upper[i] = u.upper;
  }
}

// The membranes alone.
template <Reset kReset, bool kUniform, class F>
SNN_CLONES void membrane_row(std::int64_t n, const Neurons<F, kUniform> neurons,
                             const F* __restrict x_lower, const F* __restrict x_upper,
                             F* __restrict u_lower, F* __restrict u_upper, F* __restrict v_lower,
                             F* __restrict v_upper) {
  for (std::int64_t i = 0; i < n; ++i) {
    const Neuron<F> neuron = neurons[i];
    const Interval<F> v = charge_interval<kReset>(Interval<F>{u_lower[i], u_upper[i]},
                                                  Interval<F>{x_lower[i], x_upper[i]}, neuron);
    const Interval<F> u = carry_interval<kReset>(v, neuron);
    v_lower[i] = v.lower;
    v_upper[i] = v.upper;
    u_lower[i] = u.lower;
    u_upper[i] = u.upper;
  }
}

// What the backward scan reads and writes at one step, at both ends.
template <class F>
struct EndRows {
  const F* v[2];
  const F* x_next[2];  // null at the last step
  const F* grad_spikes[2];
  const F* grad_v[2];  // null where there are none
  F* g[2];             // dL/dv of the step after, then of this one
  F *grad_decay, *grad_threshold;
};

template <Reset kReset, bool kUniform, class F, class Derivative>
SNN_CLONES void interval_gradient_row(std::int64_t n, const Neurons<F, kUniform> neurons,
                                      const Derivative derivative, bool normalized,
                                      const EndRows<F> rows) {
  for (std::int64_t i = 0; i < n; ++i) {
    const Neuron<F> neuron = neurons[i];
    const SurrogateArgument<F> z = neurons.argument(i, normalized);
    F decay = F(0), threshold = F(0);
    Transition<F> step{};
    if (rows.x_next[0]) {
      step = transition<kReset>(Interval<F>{rows.v[0][i], rows.v[1][i]},
                                Interval<F>{rows.x_next[0][i], rows.x_next[1][i]}, neuron);
    }
    const EndGradient<F> ends[2] = {step.lower, step.upper};
    for (int end = 0; end < 2; ++end) {
      const F v = rows.v[end][i];
      F g = end_gradient(rows.g[end][i], ends[end], v, rows.grad_spikes[end][i],
                         derivative(z(v)) * z.scale, z, decay, threshold);
      if (rows.grad_v[end]) g += rows.grad_v[end][i];
      rows.g[end][i] = g;
    }
    rows.grad_decay[i] += decay;
    rows.grad_threshold[i] += threshold;
  }
}

template <class F>
struct LineRows {
  const F *weights, *v_lower, *v_upper;
  const F *before_lower, *before_upper;  // membranes of the step before; null at the first
  const F *after, *slopes;               // slopes: null where not given
  F* lines;
  double* bias;
};

template <Reset kReset, Slope kSlope, bool kUniform, class F>
SNN_CLONES void line_row(std::int64_t n, const Neurons<F, kUniform> neurons, F v_init,
                         const LineRows<F> rows) {
  const Neuron<F> first = neurons[0];
#pragma GCC ivdep  // so many rows that the compiler does not check whether they overlap
  for (std::int64_t i = 0; i < n; ++i) {
    const Neuron<F> neuron = kUniform ? first : neurons[i];
    double before = std::abs(static_cast<double>(v_init));
    if (rows.before_lower) {
      before = state_before(Interval<F>{rows.before_lower[i], rows.before_upper[i]}, neuron);
    }
    const Line<F> line = line_below<kReset, kSlope>(
        rows.weights[i], rows.after[i], Interval<F>{rows.v_lower[i], rows.v_upper[i]}, before,
        is_given(kSlope) ? rows.slopes[i] : F(0), neuron);
    rows.lines[i] = line.slope;
    rows.bias[i] += line.intercept;
  }
}

template <class F>
struct LineGradientRows {
  const F *weights, *v_lower, *v_upper, *after, *slopes, *lines, *grad_lines;
  const double* grad_bias;
  double* g;  // dL/d(line of this step) by the step before, then that of the step after
  F *grad_weights, *grad_slopes;
  double *grad_lower, *grad_upper, *grad_decay, *grad_threshold;  // sums over the rows
};

template <Reset kReset, Slope kSlope, bool kUniform, class F>
SNN_CLONES void line_gradient_row(std::int64_t n, const Neurons<F, kUniform> neurons,
                                  const LineGradientRows<F> rows) {
  const Neuron<F> first = neurons[0];
#pragma GCC ivdep  // so many rows that the compiler does not check whether they overlap
  for (std::int64_t i = 0; i < n; ++i) {
    const Neuron<F> neuron = kUniform ? first : neurons[i];
    const LineGradient g = line_gradient<kReset, kSlope>(
        static_cast<double>(rows.grad_lines[i]) + rows.g[i], rows.grad_bias[i], rows.weights[i],
        rows.after[i], rows.lines[i], Interval<F>{rows.v_lower[i], rows.v_upper[i]},
        is_given(kSlope) ? rows.slopes[i] : F(0), neuron);
    rows.grad_weights[i] = static_cast<F>(g.row);
    if constexpr (is_given(kSlope)) rows.grad_slopes[i] = static_cast<F>(g.given);
    rows.g[i] = g.after;
    rows.grad_lower[i] += g.lower;
    rows.grad_upper[i] += g.upper;
    rows.grad_decay[i] += g.decay;
    rows.grad_threshold[i] += g.threshold;
  }
}

// Calls f(reset, neurons) with the reset as a constant and the neurons of a tile.
template <class F, class Call>
void with_neurons(const LifDynamics<F>& dynamics, std::int64_t begin, std::int64_t n,
                  std::int64_t length, F* rows, Call&& f) {
  const bool uniform = dynamics.decay.count == 1 && dynamics.threshold.count == 1;
  with_reset(dynamics.reset, [&](auto reset) {
    with_bool(uniform, [&]<bool kUniform>(Constant<kUniform>) {
      f(reset, gather_neurons<kUniform>(dynamics, begin, begin + n, length, rows));
    });
  });
}

}  // namespace

template <class F>
void interval_forward(const IntervalForward<F>& p, const Tiling& tiling, std::int64_t first,
                      std::int64_t last) {
  const Dtype dtype = p.shape.dtype;
  const std::int64_t size = tiling.size, neurons = p.shape.neurons;
  for (std::int64_t begin = first * size; first < last; ++first, begin += size) {
    const std::int64_t n = std::min(size, neurons - begin);
    Rows<F> rows(size, 8 + Neurons<F, false>::kRows);
    F *const u_lower = rows.take(), *const u_upper = rows.take();
    F *const x_lower = rows.take(), *const x_upper = rows.take();
    F *const s_lower = rows.take(), *const s_upper = rows.take();
    F *const v_lower = rows.take(), *const v_upper = rows.take();
    std::fill_n(u_lower, n, p.v_init);
    std::fill_n(u_upper, n, p.v_init);
    with_neurons(
        p.dynamics, begin, n, size, rows.take(Neurons<F, false>::kRows),
        [&]<Reset kReset>(Constant<kReset>, const auto& own) {
          for (std::int64_t t = 0; t < p.shape.timesteps; ++t) {
            const std::int64_t at = t * neurons + begin;
            const auto low =
                load_rows(dtype, p.lower, t * p.shape.x_step + begin, 0, 1, n, x_lower);
            const auto high = load_rows(dtype, p.upper, t * p.upper_step + begin, 0, 1, n, x_upper);
            const auto surely = target_rows(dtype, p.spikes_lower, at, 0, n, s_lower);
            const auto maybe = target_rows(dtype, p.spikes_upper, at, 0, n, s_upper);
            interval_row<kReset>(n, own, low.data, high.data, u_lower, u_upper, surely.data,
                                 maybe.data, p.v_lower ? p.v_lower + at : v_lower,
                                 p.v_upper ? p.v_upper + at : v_upper);
            store_rows(dtype, surely, p.spikes_lower, at, 0, 1, n);
            store_rows(dtype, maybe, p.spikes_upper, at, 0, 1, n);
          }
        });
  }
}

template <class F>
void interval_backward(const IntervalBackward<F>& p, const Tiling& tiling, std::int64_t first,
                       std::int64_t last) {
  const Dtype dtype = p.shape.dtype;
  const std::int64_t size = tiling.size, neurons = p.shape.neurons, T = p.shape.timesteps;
  for (std::int64_t begin = first * size; first < last; ++first, begin += size) {
    const std::int64_t n = std::min(size, neurons - begin);
    Rows<F> rows(size, 2 * T + 10 + Neurons<F, false>::kRows);
    F* const v[2] = {rows.take(T), rows.take(T)};
    F* const u[2] = {rows.take(), rows.take()};  // then dL/dv
    F* const x[2] = {rows.take(), rows.take()};
    F* const gs[2] = {rows.take(), rows.take()};
    F* const buffer[2] = {rows.take(), rows.take()};
    F *const grad_decay = rows.take(), *const grad_threshold = rows.take();
    const auto load = [&](const Steps& tensor, std::int64_t t, F* to) {
      return load_rows(dtype, tensor.data, t * tensor.step + begin, 0, 1, n, to).data;
    };
    with_neurons(
        p.dynamics, begin, n, size, rows.take(Neurons<F, false>::kRows),
        [&]<Reset kReset>(Constant<kReset>, const auto& own) {
          for (F* const end : u) std::fill_n(end, n, p.v_init);
          for (std::int64_t t = 0; t < T; ++t) {
            membrane_row<kReset>(n, own, load(p.x[0], t, x[0]), load(p.x[1], t, x[1]), u[0], u[1],
                                 v[0] + t * size, v[1] + t * size);
          }
          for (F* const sum : {u[0], u[1], grad_decay, grad_threshold}) std::fill_n(sum, n, F(0));
          with_surrogate<F>(p.surrogate.kind, p.surrogate.args, [&](const auto& derivative) {
            for (std::int64_t t = T - 1; t >= 0; --t) {
              EndRows<F> at{};
              for (int end = 0; end < 2; ++end) {
                at.v[end] = v[end] + t * size;
                if (t + 1 < T) at.x_next[end] = load(p.x[end], t + 1, x[end]);
                at.grad_spikes[end] = load(p.grad_spikes[end], t, gs[end]);
                if (p.grad_v[end].data) {
                  at.grad_v[end] =
                      static_cast<const F*>(p.grad_v[end].data) + t * p.grad_v[end].step + begin;
                }
                at.g[end] = u[end];
              }
              at.grad_decay = grad_decay;
              at.grad_threshold = grad_threshold;
              interval_gradient_row<kReset>(n, own, derivative, p.surrogate.normalized, at);
              for (int end = 0; end < 2; ++end) {
                const std::int64_t to = t * neurons + begin;
                const auto target = target_rows(dtype, p.grad_x[end], to, 0, n, buffer[end]);
                std::copy_n(u[end], n, target.data);
                store_rows(dtype, target, p.grad_x[end], to, 0, 1, n);
              }
            }
          });
          for (std::int64_t i = 0; i < n; ++i) {
            start_gradient<kReset>(u[0][i] + u[1][i], p.v_init, own[i], grad_decay[i],
                                   grad_threshold[i]);
          }
        });
    if (p.neuron_grad_decay) std::copy_n(grad_decay, n, p.neuron_grad_decay + begin);
    if (p.neuron_grad_threshold) std::copy_n(grad_threshold, n, p.neuron_grad_threshold + begin);
  }
}

template <class F>
void relax(const Relaxation<F>& p, const Tiling& tiling, std::int64_t first, std::int64_t last) {
  const std::int64_t size = tiling.size, neurons = p.shape.neurons, T = p.shape.timesteps;
  for (; first < last; ++first) {
    const std::int64_t row = first / tiling.count();
    const std::int64_t begin = first % tiling.count() * size;
    const std::int64_t n = std::min(size, neurons - begin);
    Rows<F> rows(size, 1 + Neurons<F, false>::kRows);
    F* const nothing = rows.take();
    std::fill_n(nothing, n, F(0));
    double* const bias = p.bias + row * neurons + begin;
    std::fill_n(bias, n, 0.0);
    const auto bounds = [&](int end, std::int64_t t) {
      return static_cast<const F*>(p.v[end].data) + t * p.v[end].step + begin;
    };
    with_neurons(p.dynamics, begin, n, size, rows.take(Neurons<F, false>::kRows),
                 [&]<Reset kReset>(Constant<kReset>, const auto& own) {
                   with_slope(p.slope, [&]<Slope kSlope>(Constant<kSlope>) {
                     const F* after = p.after ? p.after + row * neurons + begin : nothing;
                     for (std::int64_t t = T - 1; t >= 0; --t) {
                       const std::int64_t at = (row * T + t) * neurons + begin;
                       line_row<kReset, kSlope>(
                           n, own, p.v_init,
                           LineRows<F>{p.weights + at, bounds(0, t), bounds(1, t),
                                       t > 0 ? bounds(0, t - 1) : nullptr,
                                       t > 0 ? bounds(1, t - 1) : nullptr, after,
                                       p.slopes ? p.slopes + at : nullptr, p.lines + at, bias});
                       after = p.lines + at;
                     }
                     for (std::int64_t i = 0; i < n; ++i) {
                       add_start<kReset>(after[i], p.v_init, own[i], bias[i]);
                     }
                   });
                 });
  }
}

template <class F>
void relax_backward(const RelaxationBackward<F>& p, const Tiling& tiling, std::int64_t first,
                    std::int64_t last) {
  const std::int64_t size = tiling.size, neurons = p.shape.neurons, T = p.shape.timesteps;
  for (; first < last; ++first) {
    const std::int64_t begin = first * size, n = std::min(size, neurons - begin);
    // The first rows for numbers of type F, the others for double.
    constexpr std::int64_t kOwn = 1 + Neurons<F, false>::kRows;
    Rows<double> rows(size, kOwn + 2 * T + 4);
    F* const nothing = reinterpret_cast<F*>(rows.take(kOwn));
    std::fill_n(nothing, n, F(0));
    double* const of_ends[2] = {rows.take(T), rows.take(T)};
    double *const grad_decay = rows.take(), *const grad_threshold = rows.take();
    double *const g = rows.take(), *const grad_bias = rows.take();
    std::fill_n(of_ends[0], (2 * T + 2) * size, 0.0);
    const auto bounds = [&](int end, std::int64_t t) {
      return static_cast<const F*>(p.v[end].data) + t * p.v[end].step + begin;
    };
    with_neurons(
        p.dynamics, begin, n, size, nothing + size,
        [&]<Reset kReset>(Constant<kReset>, const auto& own) {
          with_slope(p.slope, [&]<Slope kSlope>(Constant<kSlope>) {
            for (std::int64_t row = 0; row < p.rows; ++row) {
              Parameter<double> upstream = p.grad_bias;
              upstream.data += row * p.bias_step;
              fill_row(upstream, begin, begin + n, grad_bias);
              const std::int64_t of_row = row * T * neurons + begin;
              for (std::int64_t i = 0; i < n; ++i) {
                g[i] = line_start_gradient<kReset>(grad_bias[i], p.lines[of_row + i], p.v_init,
                                                   own[i], grad_decay[i], grad_threshold[i]);
              }
              const F* const last_step = p.after ? p.after + row * neurons + begin : nothing;
              for (std::int64_t t = 0; t < T; ++t) {
                const std::int64_t at = of_row + t * neurons;
                line_gradient_row<kReset, kSlope>(
                    n, own,
                    LineGradientRows<F>{
                        p.weights + at, bounds(0, t), bounds(1, t),
                        t + 1 < T ? p.lines + at + neurons : last_step,
                        p.slopes ? p.slopes + at : nullptr, p.lines + at, p.grad_lines + at,
                        grad_bias, g, p.grad_weights + at, p.slopes ? p.grad_slopes + at : nullptr,
                        of_ends[0] + t * size, of_ends[1] + t * size, grad_decay, grad_threshold});
              }
              if (p.after) std::copy_n(g, n, p.grad_after + row * neurons + begin);
            }
          });
        });
    for (int end = 0; end < 2; ++end) {
      for (std::int64_t t = 0; t < T; ++t) {
        std::copy_n(of_ends[end] + t * size, n, p.grad_v[end] + t * neurons + begin);
      }
    }
    if (p.neuron_grad_decay) std::copy_n(grad_decay, n, p.neuron_grad_decay + begin);
    if (p.neuron_grad_threshold) std::copy_n(grad_threshold, n, p.neuron_grad_threshold + begin);
  }
}

template void interval_forward(const IntervalForward<float>&, const Tiling&, std::int64_t,
                               std::int64_t);
template void interval_forward(const IntervalForward<double>&, const Tiling&, std::int64_t,
                               std::int64_t);
template void interval_backward(const IntervalBackward<float>&, const Tiling&, std::int64_t,
                                std::int64_t);
template void interval_backward(const IntervalBackward<double>&, const Tiling&, std::int64_t,
                                std::int64_t);
template void relax(const Relaxation<float>&, const Tiling&, std::int64_t, std::int64_t);
template void relax(const Relaxation<double>&, const Tiling&, std::int64_t, std::int64_t);
template void relax_backward(const RelaxationBackward<float>&, const Tiling&, std::int64_t,
                             std::int64_t);
template void relax_backward(const RelaxationBackward<double>&, const Tiling&, std::int64_t,
                             std::int64_t);

}  // namespace snnkern::cpu
