// The usual neurons: float, one value of every parameter for the whole layer. Several steps are
// taken at a time with the state in registers; it is written down only between blocks.
//
// A leak alone goes backward in one pass. What others have on top of it adds passes, over strips of
// a row that stay in the cache, instead of multiplying with all resets and surrogates.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "clones.h"
#include "tile.h"

namespace snnkern::cpu {
namespace {

// The neuron that all neurons of a layer are.
struct Layer {
  Neuron<float> neuron;
  float synapse_decay, gain;
  float du, dx;  // derivatives of the charge

  static Layer of(const LifDynamics<float>& d) {
    const float threshold = d.threshold.data[0];
    Layer layer{{d.decay.data[0], threshold, fires_from(threshold, d.strict), d.v_rest, d.v_reset},
                d.synapse == Synapse::kNone ? 0.0f : d.synapse_decay.data[0],
                d.gain,
                0.0f,
                0.0f};
    with_charge(d.charge, [&]<Charge kCharge>(Constant<kCharge>) {
      layer.du = charge_du<kCharge>(layer.neuron);
      layer.dx = charge_dx<kCharge>(layer.neuron);
    });
    return layer;
  }

  SurrogateArgument<float> argument(bool normalized) const {
    return SurrogateArgument<float>::of(neuron.threshold, 1.0f / neuron.threshold, normalized);
  }
};

template <Charge kCharge_, Reset kReset_, Synapse kSynapse_>
struct Model {
  static constexpr Charge kCharge = kCharge_;
  static constexpr Reset kReset = kReset_;
  static constexpr Synapse kSynapse = kSynapse_;
};

template <class Call>
void with_model(const LifDynamics<float>& dynamics, Call&& f) {
  with_charge(dynamics.charge, [&]<Charge kCharge>(Constant<kCharge>) {
    with_reset(dynamics.reset, [&]<Reset kReset>(Constant<kReset>) {
      with_synapse(dynamics.synapse, [&]<Synapse kSynapse>(Constant<kSynapse>) {
        if constexpr (runs_in_blocks(kCharge, kReset, kSynapse)) {
          f(Model<kCharge, kReset, kSynapse>{});
        }
      });
    });
  });
}

// How neuron i sees its input: as it is, normalised, or times the gain.
struct AsItIs {
  static constexpr bool kNormalised = false, kGiven = false, kScaled = false;
  SNN_HD AsItIs operator[](std::int64_t) const { return {}; }
  SNN_HD float operator()(float x) const { return x; }
};

struct Normalised {
  static constexpr bool kNormalised = true, kGiven = false, kScaled = false;
  struct Channel {
    float scale, shift;
    SNN_HD float operator()(float x) const { return scale * x + shift; }
  };
  AffineRow<float> rows;
  SNN_HD Channel operator[](std::int64_t i) const { return {rows.scale[i], rows.shift[i]}; }
};

struct Gained {
  static constexpr bool kNormalised = false, kGiven = false, kScaled = true;
  float gain;
  SNN_HD Gained operator[](std::int64_t) const { return *this; }
  SNN_HD float operator()(float x) const { return gain * x; }
};

// No input: the membranes are given.
struct Given {
  static constexpr bool kNormalised = false, kGiven = true, kScaled = true;
};

// In place of a surrogate: ds/dz of every step is given.
struct GivenDerivatives {};

// What a pass over steps leaves in its rows.
enum class Leave { kNothing, kSpikes, kMembranes, kMembranesAlone };

struct StepRows {
  const float* x;     // currents
  const float* u_in;  // the carried state before the block, and after it
  float* u_out;
  const float* c_in;  // the same of the synapse
  float* c_out;
  float* out;
  std::int64_t x_step, out_step;
};

// kSteps steps of a row of neurons.
template <class Model, std::int64_t kSteps, Leave kLeave, class Input>
SNN_CLONES void step_rows(std::int64_t n, const Layer layer, const Input input,
                          const StepRows rows) {
  constexpr bool kConducts = Model::kSynapse != Synapse::kNone;
  const float* __restrict x = rows.x;
  const float* u_in = rows.u_in;
  float* u_out = rows.u_out;
  const float* c_in = rows.c_in;
  float* c_out = rows.c_out;
  float* __restrict out = rows.out;
  const std::int64_t x_step = rows.x_step, out_step = rows.out_step;
  const Neuron<float> neuron = layer.neuron;
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) {
    const auto see = input[i];
    float u = u_in[i];
    float c = kConducts ? c_in[i] : 0.0f;
#pragma GCC unroll 4
    for (std::int64_t k = 0; k < kSteps; ++k) {
      const float current =
          conduct<Model::kSynapse>(c, see(x[i + k * x_step]), layer.synapse_decay);
      const float v = charge<Model::kCharge, Model::kReset>(u, current, neuron);
      const bool s = fires(v, neuron);
      u = reset<Model::kReset>(v, s, neuron);
      if constexpr (kLeave == Leave::kSpikes) out[i + k * out_step] = s ? 1.0f : 0.0f;
      if constexpr (kLeave == Leave::kMembranes || kLeave == Leave::kMembranesAlone) {
        out[i + k * out_step] = v;
      }
    }
    if constexpr (kLeave != Leave::kMembranesAlone) {
      u_out[i] = u;
      if constexpr (kConducts) c_out[i] = c;
    }
  }
}

// The rows that a block of the backward scan works on.
struct GradientRows {
  const float *x, *u, *c;  // currents; state and synapse before the block
  float* v;                // membranes
  const float* gs;         // dL/ds
  float* gx;               // dL/dx
  float* grad_v;           // dL/dv of the step after the block, then of its first step
  float* grad_c;           // the same of the synapse's current
  float *grad_decay, *grad_threshold, *grad_synapse;  // sums over time
  NormSumRows<float> norm;                            // sums over time that normalisation needs
  std::int64_t x_step, v_step, gs_step, gx_step;
  const float* derivatives;  // ds/dz, where it is given
  std::int64_t derivatives_step;
};

// kSteps steps of the backward scan over a row of neurons, to dL/dv and the threshold's share.
// Membranes are recomputed on the way, from the input as `Input` shows it, or given. What is left
// in rows.gx is dL/dv, times `factor` where the input is scaled or the membranes are given.
// `after_end`: grad_v holds dL/du of the last step instead.
template <Charge kCharge, Reset kReset, bool kAttached, std::int64_t kSteps, class Input,
          class Derivative, class Argument>
SNN_CLONES void step_gradient_rows(std::int64_t n, const Layer layer, const float factor,
                                   const Input input, const Derivative derivative, const Argument z,
                                   const bool after_end, const GradientRows rows) {
  const float* __restrict x = rows.x;
  const float* __restrict u_in = rows.u;
  const float* __restrict v_in = rows.v;
  const float* __restrict gs = rows.gs;
  float* __restrict gx = rows.gx;
  float* __restrict grad_v = rows.grad_v;
  float* __restrict grad_threshold = rows.grad_threshold;
  const std::int64_t x_step = rows.x_step, v_step = rows.v_step;
  const std::int64_t gs_step = rows.gs_step, gx_step = rows.gx_step;
  constexpr bool kGiven = std::is_same_v<Derivative, GivenDerivatives>;
  const float* __restrict derivatives = rows.derivatives;
  const std::int64_t derivatives_step = rows.derivatives_step;
  const Neuron<float> neuron = layer.neuron;
  const float du = layer.du;
  const float last_du = after_end ? 1.0f : du;
  const float last_delayed = after_end ? 0.0f : 1.0f;
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) {
    // All is read before anything is written: rows of different tensors often lie a multiple of 4
    // KB apart, where the processor takes a read for one of what was just written.
    float current[kSteps], v[kSteps], g_spike[kSteps], g_v[kSteps], slope[kSteps];
    if constexpr (kGiven) {
#pragma GCC unroll 4
      for (std::int64_t k = 0; k < kSteps; ++k) slope[k] = derivatives[i + k * derivatives_step];
    }
    if constexpr (Input::kGiven) {
#pragma GCC unroll 4
      for (std::int64_t k = 0; k < kSteps; ++k) {
        g_spike[k] = gs[i + k * gs_step];
        v[k] = v_in[i + k * v_step];
      }
    } else {
      const auto see = input[i];
      float u = u_in[i];
#pragma GCC unroll 4
      for (std::int64_t k = 0; k < kSteps; ++k) {
        g_spike[k] = gs[i + k * gs_step];
        current[k] = x[i + k * x_step];
        v[k] = charge<kCharge, kReset>(u, see(current[k]), neuron);
        u = reset<kReset>(v[k], fires(v[k], neuron), neuron);
      }
    }
    float g_next = grad_v[i];
    float threshold = 0.0f, sum = 0.0f, dot = 0.0f;
#pragma GCC unroll 4
    for (std::int64_t k = kSteps - 1; k >= 0; --k) {
      const bool last = k == kSteps - 1;
      if constexpr (!kGiven) slope[k] = derivative(z(v[k]));
      const StepGradient<float> g = step_gradient<kReset, kAttached>(
          v[k], slope[k] * z.scale, g_spike[k], g_next, last ? last_du : du,
          last ? last_delayed : 1.0f, neuron, z);
      g_next = g.v;
      threshold += g.threshold;
      if constexpr (Input::kNormalised) {
        sum += g.v;
        dot += g.v * (current[k] - rows.norm.mean[i]);
      }
      g_v[k] = g.v;
    }
#pragma GCC unroll 4
    for (std::int64_t k = 0; k < kSteps; ++k) {
      gx[i + k * gx_step] = Input::kScaled ? factor * g_v[k] : g_v[k];
    }
    grad_v[i] = g_next;
    if constexpr (Input::kGiven) grad_threshold[i] += threshold;
    if constexpr (Input::kNormalised) {
      rows.norm.sum[i] += sum;
      rows.norm.dot[i] += dot;
    }
  }
}

// From the dL/dv of kSteps steps, in rows.gx, to dL/dx in their place, back through gain, synapse
// and charge; and with kParameterGradients to the shares of decay and synapse, for which the steps
// are taken once more.
template <class Model, bool kParameterGradients, std::int64_t kSteps>
SNN_CLONES void input_gradient_rows(std::int64_t n, const Layer layer, const GradientRows rows) {
  constexpr bool kConducts = Model::kSynapse != Synapse::kNone;
  const float* __restrict x = rows.x;
  const float* __restrict u_in = rows.u;
  const float* __restrict c_in = rows.c;
  const float* __restrict v_in = rows.v;
  float* __restrict gx = rows.gx;
  float* __restrict grad_c = rows.grad_c;
  float* __restrict grad_decay = rows.grad_decay;
  float* __restrict grad_synapse = rows.grad_synapse;
  const std::int64_t x_step = rows.x_step, v_step = rows.v_step, gx_step = rows.gx_step;
  const float decay_of_synapse = layer.synapse_decay, gain = layer.gain, dx = layer.dx;
  const Neuron<float> neuron = layer.neuron;
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) {
    float g[kSteps], current[kSteps] = {}, conducted[kSteps], u[kSteps], c[kSteps] = {};
#pragma GCC unroll 4
    for (std::int64_t k = 0; k < kSteps; ++k) g[k] = gx[i + k * gx_step];
    if constexpr (kParameterGradients) {
      float u_next = u_in[i];
      float c_next = kConducts ? c_in[i] : 0.0f;
#pragma GCC unroll 4
      for (std::int64_t k = 0; k < kSteps; ++k) {
        u[k] = u_next;
        c[k] = c_next;
        current[k] = gain * x[i + k * x_step];
        conducted[k] = conduct<Model::kSynapse>(c_next, current[k], decay_of_synapse);
        const float v = v_in[i + k * v_step];
        u_next = reset<Model::kReset>(v, fires(v, neuron), neuron);
      }
    }
    float gc = kConducts ? grad_c[i] : 0.0f;
    float decay = 0.0f, synapse = 0.0f;
#pragma GCC unroll 4
    for (std::int64_t k = kSteps - 1; k >= 0; --k) {
      if constexpr (kParameterGradients) {
        decay += g[k] * charge_ddecay<Model::kCharge>(u[k], conducted[k], neuron);
      }
      g[k] = gain * conduct_gradient<Model::kSynapse>(dx * g[k], gc, c[k], current[k],
                                                      decay_of_synapse, synapse);
    }
#pragma GCC unroll 4
    for (std::int64_t k = 0; k < kSteps; ++k) gx[i + k * gx_step] = g[k];
    if constexpr (kConducts) grad_c[i] = gc;
    if constexpr (kParameterGradients) {
      grad_decay[i] += decay;
      if constexpr (kConducts) grad_synapse[i] += synapse;
    }
  }
}

// From dL/dv of the first step to what reaches the state u before it, in place, and, for a delayed
// reset that looks at it, the threshold.
template <Reset kReset, bool kAttached, class Derivative>
SNN_CLONES void start_gradient_rows(std::int64_t n, const Layer layer, const Derivative derivative,
                                    const SurrogateArgument<float> z, const float* __restrict u,
                                    const float* __restrict derivatives, float* __restrict grad_v,
                                    float* __restrict grad_threshold) {
  const Neuron<float> neuron = layer.neuron;
  const float du = layer.du;
  for (std::int64_t i = 0; i < n; ++i) {
    if constexpr (kReset == Reset::kDelayedSoft) {
      float slope;
      if constexpr (std::is_same_v<Derivative, GivenDerivatives>) {
        slope = derivatives[i];
      } else {
        slope = derivative(z(u[i]));
      }
      const StepGradient<float> g = step_gradient<kReset, kAttached>(
          u[i], slope * z.scale, 0.0f, grad_v[i], du, 1.0f, neuron, z);
      grad_v[i] = g.v;
      grad_threshold[i] += g.threshold;
    } else {
      grad_v[i] *= du;
    }
  }
}

// Calls f(from, count) for strips of a row of n neurons that passes through buffers, or once.
template <class Call>
void for_each_strip(bool buffered, std::int64_t n, Call&& f) {
  const std::int64_t strip = buffered ? kStrip : n;
  for (std::int64_t from = 0; from < n; from += strip) f(from, std::min(strip, n - from));
}

// A tile's neurons and their currents.
class Tile {
 public:
  static constexpr std::int64_t kRows = Currents<float>::rows_needed(kBlock);

  template <class P>
  Tile(const P& p, std::int64_t begin, std::int64_t n, Rows<float>& rows)
      : dynamics_(p.dynamics),
        affine_(p.affine),
        currents_(p.shape, p.x, p.affine, begin, n, kBlock, rows),
        layer_(Layer::of(p.dynamics)) {}

  const Currents<float>& currents() const { return currents_; }
  bool conducts() const { return dynamics_.synapse != Synapse::kNone; }

  // A leak alone, which takes its input as it lies and normalises it on the way.
  bool plain() const {
    return dynamics_.charge == Charge::kLeak && !conducts() && dynamics_.gain == 1.0f;
  }

  // Whether the backward scan of these neurons is one pass, unless parameters want gradients.
  // Compiled so are plain ones and, of others without a synapse, what SpikingJelly, BrainCog and
  // sinabs have.
  bool in_one_pass() const {
    const bool at_once = dynamics_.reset == Reset::kHard || dynamics_.reset == Reset::kSoft;
    const bool charged = dynamics_.charge == Charge::kLeak || dynamics_.charge == Charge::kEuler;
    return plain() || (charged && at_once && !conducts() && !affine_);
  }

  // `steps` rows of the input: as they lie, or as the neurons see them.
  RowsOf<const float> input(bool as_it_lies, std::int64_t t, std::int64_t steps, std::int64_t from,
                            std::int64_t count) const {
    return as_it_lies ? currents_.raw(t, steps, from, count)
                      : currents_.rows(t, steps, from, count);
  }

  // kSteps steps forward.
  template <Leave kLeave, std::int64_t kSteps>
  void step(bool plain, std::int64_t from, std::int64_t count, const StepRows& rows) const {
    if (plain) {
      with_reset(dynamics_.reset, [&]<Reset kReset>(Constant<kReset>) {
        with_input(from, [&](const auto& input) {
          step_rows<Model<Charge::kLeak, kReset, Synapse::kNone>, kSteps, kLeave>(count, layer_,
                                                                                  input, rows);
        });
      });
    } else {
      step_any<kLeave, kSteps>(count, rows);
    }
  }

  // kSteps steps backward in one pass.
  template <std::int64_t kSteps>
  void gradient_in_one_pass(const LifBackward<float>& p, std::int64_t from, std::int64_t count,
                            bool after_end, const GradientRows& rows) const {
    const DistanceToThreshold<float> z{layer_.neuron.threshold};
    const float factor = layer_.gain * layer_.dx;
    with_gradient(p, [&]<Reset kReset, bool kAttached>(const auto& derivative) {
      const auto run = [&]<Charge kCharge>(Constant<kCharge>, const auto& input) {
        step_gradient_rows<kCharge, kReset, kAttached, kSteps>(count, layer_, factor, input,
                                                               derivative, z, after_end, rows);
      };
      if (plain()) {
        with_input(from, [&](const auto& input) { run(Constant<Charge::kLeak>{}, input); });
      } else if constexpr (kReset == Reset::kHard || kReset == Reset::kSoft) {
        const Gained input{layer_.gain};
        if (dynamics_.charge == Charge::kLeak) {
          run(Constant<Charge::kLeak>{}, input);
        } else {
          run(Constant<Charge::kEuler>{}, input);
        }
      }
    });
  }

  // To the state before the first step.
  void start_gradient(const LifBackward<float>& p, std::int64_t n, const float* u,
                      const float* derivatives, float* grad_v, float* grad_threshold) const {
    const SurrogateArgument<float> z = layer_.argument(p.surrogates[0].normalized);
    with_gradient(p, [&]<Reset kReset, bool kAttached>(const auto& derivative) {
      if constexpr (kReset == Reset::kDelayedSoft) {
        start_gradient_rows<kReset, kAttached>(n, layer_, derivative, z, u, derivatives, grad_v,
                                               grad_threshold);
      } else {
        start_gradient_rows<Reset::kNone, false>(n, layer_, StraightThrough<float>{}, z, u, nullptr,
                                                 grad_v, grad_threshold);
      }
    });
  }

  // kSteps steps backward, for any tile, in passes.
  template <std::int64_t kSteps>
  void gradient(const LifBackward<float>& p, bool parameter_gradients, std::int64_t count,
                bool after_end, const GradientRows& rows) const {
    const bool last_pass = conducts() || parameter_gradients;
    step_any<Leave::kMembranesAlone, kSteps>(
        count, {rows.x, rows.u, nullptr, rows.c, nullptr, rows.v, rows.x_step, rows.v_step});
    with_gradient(p, [&]<Reset kReset, bool kAttached>(const auto& derivative) {
      step_gradient_rows<Charge::kLeak, kReset, kAttached, kSteps>(
          count, layer_, last_pass ? 1.0f : layer_.gain * layer_.dx, Given{}, derivative,
          layer_.argument(p.surrogates[0].normalized), after_end, rows);
    });
    if (parameter_gradients) {
      with_model(dynamics_, [&](auto model) {
        input_gradient_rows<decltype(model), true, kSteps>(count, layer_, rows);
      });
    } else if (conducts()) {
      with_synapse(dynamics_.synapse, [&]<Synapse kSynapse>(Constant<kSynapse>) {
        // Without gradients of parameters, neither charge nor reset has a part in it.
        input_gradient_rows<Model<Charge::kLeak, Reset::kNone, kSynapse>, false, kSteps>(
            count, layer_, rows);
      });
    }
  }

 private:
  template <Leave kLeave, std::int64_t kSteps>
  void step_any(std::int64_t count, const StepRows& rows) const {
    with_model(dynamics_, [&](auto model) {
      step_rows<decltype(model), kSteps, kLeave>(count, layer_, Gained{layer_.gain}, rows);
    });
  }

  template <class Call>
  void with_input(std::int64_t from, Call&& f) const {
    if (affine_) {
      f(Normalised{currents_.affine(from)});
    } else {
      f(AsItIs{});
    }
  }

  template <class Call>
  void with_gradient(const LifBackward<float>& p, Call&& f) const {
    const SurrogateChoice& surrogate = p.surrogates[0];
    const auto with_derivative = [&](const auto& derivative) {
      with_reset(dynamics_.reset, [&]<Reset kReset>(Constant<kReset>) {
        with_bool(!p.detach_reset, [&]<bool kAttached>(Constant<kAttached>) {
          f.template operator()<kReset, kAttached>(derivative);
        });
      });
    };
    if (p.derivatives) {
      with_derivative(GivenDerivatives{});
    } else {
      with_surrogate<float>(surrogate.kind, surrogate.args, with_derivative);
    }
  }

  const LifDynamics<float>& dynamics_;
  const Affine<float>& affine_;
  Currents<float> currents_;
  Layer layer_;
};

}  // namespace

void forward_in_blocks(const LifForward<float>& p, std::int64_t begin, std::int64_t n,
                       std::int64_t length) {
  const std::int64_t T = p.shape.timesteps;
  Rows<float> rows(length, 2 + kBlock + Tile::kRows);
  float* const u = rows.take();
  float* const c = rows.take();
  float* const s_buffer = rows.take(kBlock);
  const Tile tile(p, begin, n, rows);
  const bool plain = tile.plain();
  const bool strips = p.spike_dtype != Dtype::kFloat32 || (p.affine && !plain);
  start_from(p.v_init, begin, n, u);
  start_from(p.current_init, begin, n, c);
  for (std::int64_t block = 0; block < blocks_of(T); ++block) {
    visit_block(T, block, [&](auto steps, std::int64_t t) {
      for_each_strip(strips, n, [&](std::int64_t from, std::int64_t count) {
        const std::int64_t to = t * p.spikes_step + begin + from;
        const auto x = tile.input(plain, t, steps, from, count);
        const auto s = target_rows(p.spike_dtype, p.spikes, to, p.spikes_step, count, s_buffer);
        const StepRows at{x.data, u + from, u + from, c + from, c + from, s.data, x.step, s.step};
        if (p.membranes) {
          tile.step<Leave::kMembranes, steps>(plain, from, count, at);
        } else {
          tile.step<Leave::kSpikes, steps>(plain, from, count, at);
        }
        store_rows(p.spike_dtype, s, p.spikes, to, p.spikes_step, steps, count);
      });
    });
  }
  if (p.state) std::copy_n(u, n, p.state + begin);
  if (p.current) std::copy_n(c, n, p.current + begin);
}

void backward_in_blocks(const LifBackward<float>& p, std::int64_t begin, std::int64_t n,
                        std::int64_t length) {
  const std::int64_t T = p.shape.timesteps;
  const SurrogateChoice& surrogate = p.surrogates[0];
  const std::int64_t blocks = blocks_of(T);
  const bool parameter_gradients = p.neuron_grad_decay || p.neuron_grad_threshold;
  const bool buffered = p.sum_over_time || p.shape.dtype != Dtype::kFloat32;
  const std::int64_t kept = p.dynamics.synapse == Synapse::kNone ? 1 : 2;
  Rows<float> rows(length, kept * blocks + 2 * kBlock + 5 + Tile::kRows +
                               InputGradient<float>::rows_needed(kBlock));
  float* const states = rows.take(blocks);                 // before every block
  float* const synapses = rows.take((kept - 1) * blocks);  // likewise
  float* const membranes = rows.take(kBlock);
  float* const gs_buffer = rows.take(kBlock);
  float* const grad_v = rows.take();
  float* const grad_c = rows.take();
  float* const grad_decay = rows.take();
  float* const grad_threshold = rows.take();
  float* const grad_synapse = rows.take();
  const Tile tile(p, begin, n, rows);
  const InputGradient<float> grad_x(p, tile.currents(), begin, n, kBlock, rows);
  const bool plain = tile.plain(), conducts = tile.conducts();
  const float* const given = p.derivatives ? p.derivatives + begin : nullptr;
  const bool one_pass = tile.in_one_pass() && !parameter_gradients && !surrogate.normalized;

  start_from(p.v_init, begin, n, states);
  if (conducts) start_from(p.current_init, begin, n, synapses);
  for (std::int64_t block = 0; block + 1 < blocks; ++block) {
    visit_block(T, block, [&](auto steps, std::int64_t t) {
      for_each_strip(
          buffered || (p.affine && !plain), n, [&](std::int64_t from, std::int64_t count) {
            const auto x = tile.input(plain, t, steps, from, count);
            float* const u = states + block * length + from;
            float* const c = conducts ? synapses + block * length + from : nullptr;
            const StepRows at{x.data,  u,      u + length, c, c + (conducts ? length : 0),
                              nullptr, x.step, 0};
            tile.step<Leave::kNothing, steps>(plain, from, count, at);
          });
    });
  }

  start_from(p.grad_state, begin, n, grad_v);
  start_from(p.grad_current, begin, n, grad_c);
  for (float* const sum : {grad_decay, grad_threshold, grad_synapse}) std::fill_n(sum, n, 0.0f);
  for (std::int64_t block = blocks - 1; block >= 0; --block) {
    const bool after_end = p.grad_state && block == blocks - 1;
    visit_block(T, block, [&](auto steps, std::int64_t t) {
      const bool fused = one_pass && steps != 1;
      for_each_strip(buffered || !fused, n, [&](std::int64_t from, std::int64_t count) {
        const auto x = tile.input(fused, t, steps, from, count);
        const auto gs = load_rows(p.shape.dtype, p.grad_spikes, t * p.grad_step + begin + from,
                                  p.grad_step, steps, count, gs_buffer);
        const auto gx = grad_x.target(t, from, count);
        const std::int64_t before = block * length + from;
        const GradientRows at{x.data,
                              states + before,
                              conducts ? synapses + before : nullptr,
                              membranes,
                              gs.data,
                              gx.data,
                              grad_v + from,
                              grad_c + from,
                              grad_decay + from,
                              grad_threshold + from,
                              grad_synapse + from,
                              grad_x.norm_sums(from),
                              x.step,
                              count,
                              gs.step,
                              gx.step,
                              given ? given + t * p.derivatives_step + from : nullptr,
                              p.derivatives_step};
        if (fused) {
          if constexpr (steps != 1) tile.gradient_in_one_pass<steps>(p, from, count, after_end, at);
        } else {
          tile.gradient<steps>(p, parameter_gradients, count, after_end, at);
        }
        grad_x.store(gx, t, steps, from, count, fused && p.affine);
      });
    });
  }
  if (p.grad_v_init || parameter_gradients) {
    const float* const at_start = given ? given - p.derivatives_step : nullptr;
    tile.start_gradient(p, n, states, at_start, grad_v, grad_threshold);
  }
  const auto keep = [&](const float* row, float* tensor) {
    if (tensor) std::copy_n(row, n, tensor + begin);
  };
  keep(grad_v, p.grad_v_init);
  keep(grad_c, p.grad_current_init);
  keep(grad_decay, p.neuron_grad_decay);
  keep(grad_threshold, p.neuron_grad_threshold);
  keep(grad_synapse, p.neuron_grad_synapse);
  grad_x.finish();
}

}  // namespace snnkern::cpu
