// The usual neurons: float, one leak and one threshold for the whole layer. Several steps are taken
// at a time with the state in registers; it is written down only between blocks.
#include <algorithm>
#include <cstdint>

#include "clones.h"
#include "tile.h"

namespace snnkern::cpu {
namespace {

using Uniform = Neurons<float, true>;

// How neuron i sees its input: as it is, or normalised.
struct AsItIs {
  static constexpr bool kNormalised = false;
  SNN_HD AsItIs operator[](std::int64_t) const { return {}; }
  SNN_HD float operator()(float x) const { return x; }
};

struct Normalised {
  static constexpr bool kNormalised = true;
  struct Channel {
    float scale, shift;
    SNN_HD float operator()(float x) const { return scale * x + shift; }
  };
  AffineRow<float> rows;
  SNN_HD Channel operator[](std::int64_t i) const { return {rows.scale[i], rows.shift[i]}; }
};

template <class Call>
void with_input(const Currents<float>& currents, bool normalised, std::int64_t from, Call&& f) {
  if (normalised) {
    f(Normalised{currents.affine(from)});
  } else {
    f(AsItIs{});
  }
}

// kSteps steps of a row of neurons, from the carried state u_in to u_out. Rows of x and of spikes
// lie `x_step` and `spikes_step` apart. Without kSpikes only the state moves on.
template <Reset kReset, std::int64_t kSteps, bool kSpikes, class Input>
SNN_CLONES void step_rows(std::int64_t n, const Uniform neurons, const Input input,
                          const float* __restrict x, std::int64_t x_step, const float* u_in,
                          float* u_out, float* __restrict spikes, std::int64_t spikes_step) {
  const Neuron<float> neuron = neurons[0];
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) {
    const auto see = input[i];
    float u = u_in[i];
#pragma GCC unroll 4
    for (std::int64_t k = 0; k < kSteps; ++k) {
      const float v = charge<Charge::kLeak, kReset>(u, see(x[i + k * x_step]), neuron);
      const bool s = fires(v, neuron);
      u = reset<kReset>(v, s, neuron);
      if constexpr (kSpikes) spikes[i + k * spikes_step] = s ? 1.0f : 0.0f;
    }
    u_out[i] = u;
  }
}

// The rows that a block of the backward scan works on.
struct GradientRows {
  const float *x, *u, *gs;             // currents; the state before the block; dL/ds
  float* gx;                           // dL/dx
  float* grad_v;                       // dL/dv of the step after the block, then of its first step
  float *grad_decay, *grad_threshold;  // sums over time
  NormSumRows<float> norm;             // sums over time that normalisation needs
  std::int64_t x_step, gs_step, gx_step;
};

// kSteps steps of the backward scan over a row of neurons: the membranes are recomputed going
// forward, then the gradient goes back. `after_end`: grad_v holds dL/du of the last step instead.
template <Reset kReset, bool kAttached, bool kParameterGradients, std::int64_t kSteps, class Input,
          class Derivative, class Argument>
SNN_CLONES void step_gradient_rows(std::int64_t n, const Uniform neurons, const Input input,
                                   const Derivative derivative, const Argument z,
                                   const bool after_end, const GradientRows rows) {
  const float* __restrict x = rows.x;
  const float* __restrict u_in = rows.u;
  const float* __restrict gs = rows.gs;
  float* __restrict gx = rows.gx;
  float* __restrict grad_v = rows.grad_v;
  float* __restrict grad_decay = rows.grad_decay;
  float* __restrict grad_threshold = rows.grad_threshold;
  const std::int64_t x_step = rows.x_step, gs_step = rows.gs_step, gx_step = rows.gx_step;
  const Neuron<float> neuron = neurons[0];
  const float last_du = after_end ? 1.0f : neuron.decay;
  const float last_delayed = after_end ? 0.0f : 1.0f;
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) {
    // All is read before anything is written: rows of different tensors often lie a multiple of 4
    // KB apart, where the processor takes a read for one of what was just written.
    float current[kSteps], v[kSteps], u_before[kSteps], g_spike[kSteps], g_v[kSteps];
    const auto see = input[i];
    float u = u_in[i];
#pragma GCC unroll 4
    for (std::int64_t k = 0; k < kSteps; ++k) {
      g_spike[k] = gs[i + k * gs_step];
      u_before[k] = u;
      current[k] = x[i + k * x_step];
      v[k] = charge<Charge::kLeak, kReset>(u, see(current[k]), neuron);
      u = reset<kReset>(v[k], fires(v[k], neuron), neuron);
    }
    float g_next = grad_v[i];
    float decay = 0.0f, threshold = 0.0f, sum = 0.0f, dot = 0.0f;
#pragma GCC unroll 4
    for (std::int64_t k = kSteps - 1; k >= 0; --k) {
      const bool last = k == kSteps - 1;
      const StepGradient<float> g = step_gradient<kReset, kAttached>(
          v[k], derivative(z(v[k])) * z.scale, g_spike[k], g_next, last ? last_du : neuron.decay,
          last ? last_delayed : 1.0f, neuron, z);
      g_next = g.v;
      decay += g.v * u_before[k];
      threshold += g.threshold;
      if constexpr (Input::kNormalised) {
        sum += g.v;
        dot += g.v * (current[k] - rows.norm.mean[i]);
      }
      g_v[k] = g.v;
    }
#pragma GCC unroll 4
    for (std::int64_t k = 0; k < kSteps; ++k) gx[i + k * gx_step] = g_v[k];
    grad_v[i] = g_next;
    if constexpr (kParameterGradients) {
      grad_decay[i] += decay;
      grad_threshold[i] += threshold;
    }
    if constexpr (Input::kNormalised) {
      rows.norm.sum[i] += sum;
      rows.norm.dot[i] += dot;
    }
  }
}

// What reaches the state before the first step, and, for a delayed reset that looks at it, the
// threshold.
template <Reset kReset, bool kAttached, class Derivative>
void init_gradient(const LifBackward<float>& p, const Neuron<float>& neuron,
                   const Derivative& derivative, const SurrogateArgument<float>& z,
                   std::int64_t begin, std::int64_t n, const float* grad_v, float* grad_threshold) {
  for (std::int64_t i = 0; i < n; ++i) {
    StepGradient<float> g{neuron.decay * grad_v[i], 0.0f};
    if constexpr (kReset == Reset::kDelayedSoft) {
      const float u = p.v_init ? p.v_init[begin + i] : 0.0f;
      g = step_gradient<kReset, kAttached>(u, derivative(z(u)) * z.scale, 0.0f, grad_v[i],
                                           neuron.decay, 1.0f, neuron, z);
    }
    if (p.grad_v_init) p.grad_v_init[begin + i] = g.v;
    grad_threshold[i] += g.threshold;
  }
}

// Calls f(from, count) for strips of a row of n neurons that passes through buffers, or once.
template <class Call>
void for_each_strip(bool buffered, std::int64_t n, Call&& f) {
  const std::int64_t strip = buffered ? kStrip : n;
  for (std::int64_t from = 0; from < n; from += strip) f(from, std::min(strip, n - from));
}

}  // namespace

void forward_in_blocks(const LifForward<float>& p, std::int64_t begin, std::int64_t n,
                       std::int64_t length) {
  const std::int64_t T = p.shape.timesteps;
  const bool buffered = p.spike_dtype != Dtype::kFloat32;
  Rows<float> rows(length, 1 + kBlock + Uniform::kRows + Currents<float>::rows_needed(kBlock));
  float* const u = rows.take();
  float* const s_buffer = rows.take(kBlock);
  const Uniform neurons =
      gather_neurons<true>(p.dynamics, begin, begin + n, length, rows.take(Uniform::kRows));
  const Currents<float> currents(p.shape, p.x, p.affine, begin, n, kBlock, rows);
  start_from(p.v_init, begin, n, u);
  with_reset(p.dynamics.reset, [&]<Reset kReset>(Constant<kReset>) {
    for (std::int64_t block = 0; block < blocks_of(T); ++block) {
      visit_block(T, block, [&](auto steps, std::int64_t t) {
        for_each_strip(buffered, n, [&](std::int64_t from, std::int64_t count) {
          const std::int64_t to = t * p.spikes_step + begin + from;
          const auto x = currents.raw(t, steps, from, count);
          const auto s = target_rows(p.spike_dtype, p.spikes, to, p.spikes_step, count, s_buffer);
          with_input(currents, bool(p.affine), from, [&](const auto& input) {
            step_rows<kReset, steps, true>(count, neurons, input, x.data, x.step, u + from,
                                           u + from, s.data, s.step);
          });
          store_rows(p.spike_dtype, s, p.spikes, to, p.spikes_step, steps, count);
        });
      });
    }
  });
  if (p.state) std::copy_n(u, n, p.state + begin);
}

void backward_in_blocks(const LifBackward<float>& p, std::int64_t begin, std::int64_t n,
                        std::int64_t length) {
  const std::int64_t T = p.shape.timesteps;
  const SurrogateChoice& surrogate = p.surrogates[0];
  const std::int64_t blocks = blocks_of(T);
  const bool parameter_gradients = p.neuron_grad_decay || p.neuron_grad_threshold;
  // Not every combination is compiled for whole blocks: what is rare does more than it must.
  const bool usual = !parameter_gradients && !surrogate.normalized;
  const bool buffered = p.sum_over_time || p.shape.dtype != Dtype::kFloat32;
  Rows<float> rows(length, blocks + kBlock + 3 + Uniform::kRows +
                               Currents<float>::rows_needed(kBlock) +
                               InputGradient<float>::rows_needed(kBlock));
  float* const states = rows.take(blocks);  // before every block
  float* const gs_buffer = rows.take(kBlock);
  float* const grad_v = rows.take();
  float* const grad_decay = rows.take();
  float* const grad_threshold = rows.take();
  const Uniform neurons =
      gather_neurons<true>(p.dynamics, begin, begin + n, length, rows.take(Uniform::kRows));
  const Currents<float> currents(p.shape, p.x, p.affine, begin, n, kBlock, rows);
  const InputGradient<float> grad_x(p, currents, begin, n, kBlock, rows);
  start_from(p.v_init, begin, n, states);
  with_reset(p.dynamics.reset, [&]<Reset kReset>(Constant<kReset>) {
    for (std::int64_t block = 0; block + 1 < blocks; ++block) {
      visit_block(T, block, [&](auto steps, std::int64_t t) {
        for_each_strip(buffered, n, [&](std::int64_t from, std::int64_t count) {
          const auto x = currents.raw(t, steps, from, count);
          float* const u = states + block * length + from;
          with_input(currents, bool(p.affine), from, [&](const auto& input) {
            step_rows<kReset, steps, false>(count, neurons, input, x.data, x.step, u, u + length,
                                            nullptr, 0);
          });
        });
      });
    }
    start_from(p.grad_state, begin, n, grad_v);
    std::fill_n(grad_decay, n, 0.0f);
    std::fill_n(grad_threshold, n, 0.0f);
    const SurrogateArgument<float> z = neurons.argument(0, surrogate.normalized);
    with_surrogate<float>(surrogate.kind, surrogate.args, [&](const auto& derivative) {
      with_bool(!p.detach_reset, [&]<bool kAttached>(Constant<kAttached>) {
        for (std::int64_t block = blocks - 1; block >= 0; --block) {
          const bool after_end = p.grad_state && block == blocks - 1;
          visit_block(T, block, [&](auto steps, std::int64_t t) {
            const bool fused = usual && steps != 1;
            const bool strips = buffered || (p.affine && !fused);
            for_each_strip(strips, n, [&](std::int64_t from, std::int64_t count) {
              const auto x = fused ? currents.raw(t, steps, from, count)
                                   : currents.rows(t, steps, from, count);
              const auto gs =
                  load_rows(p.shape.dtype, p.grad_spikes, t * p.grad_step + begin + from,
                            p.grad_step, steps, count, gs_buffer);
              const auto gx = grad_x.target(t, from, count);
              const GradientRows at{x.data,
                                    states + block * length + from,
                                    gs.data,
                                    gx.data,
                                    grad_v + from,
                                    grad_decay + from,
                                    grad_threshold + from,
                                    grad_x.norm_sums(from),
                                    x.step,
                                    gs.step,
                                    gx.step};
              if (!fused) {
                step_gradient_rows<kReset, kAttached, true, steps>(count, neurons, AsItIs{},
                                                                   derivative, z, after_end, at);
              } else if constexpr (steps != 1) {
                with_input(currents, bool(p.affine), from, [&](const auto& input) {
                  step_gradient_rows<kReset, kAttached, false, steps>(
                      count, neurons, input, derivative, DistanceToThreshold<float>{z.shift},
                      after_end, at);
                });
              }
              grad_x.store(gx, t, steps, from, count, fused && p.affine);
            });
          });
        }
        if (p.grad_v_init || parameter_gradients) {
          init_gradient<kReset, kAttached>(p, neurons[0], derivative, z, begin, n, grad_v,
                                           grad_threshold);
        }
      });
    });
    if (p.neuron_grad_decay) std::copy_n(grad_decay, n, p.neuron_grad_decay + begin);
    if (p.neuron_grad_threshold) std::copy_n(grad_threshold, n, p.neuron_grad_threshold + begin);
  });
  grad_x.finish();
}

}  // namespace snnkern::cpu
