// The ops of a layer for any device: checks that protect memory, allocation, and the kernels'
// arguments. What a caller may pass is decided in snnkern/functional; nothing is decided twice
// here.
//
// A Device is made for the tensor that an op is called with and runs the kernels:
//   forward(p), backward(p, table)     one pass; `table`: surrogates of single samples
//   moments(shape, x, centre, sum, square), norm_backward(shape, x, mean, ..., g)
//   reduce(sums, parameter, neurons, grad)   from the neurons' sums to a parameter's gradient
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>
#include <vector>

#include "layout.h"
#include "lif.h"

namespace snnkern {

using OptionalTensor = std::optional<Tensor>;

template <class F>
Parameter<F> parameter_of(const Tensor& values, const StepLayout& layout, const Tensor& x) {
  const int64_t count = values.numel();
  const void* const data = values.const_data_ptr();
  STD_TORCH_CHECK(values.scalar_type() == state_type_of(x),
                  "snnkern: a parameter needs the dtype of the state");
  if (count == 1) return {static_cast<const F*>(data), 1, layout.numel()};
  if (values.dim() == 1 && x.dim() > 2 && count == x.size(2) && values.is_contiguous()) {
    return {static_cast<const F*>(data), count, layout.channel_stride()};
  }
  STD_TORCH_CHECK(layout.has_shape_of(values, 0) && layout.holds(values, 0),
                  "snnkern: a parameter needs one value, one per channel, or one per neuron in the "
                  "layout of the steps of x");
  return {static_cast<const F*>(data), count, 1};
}

// What describes the neurons of a layer, as the ops take it.
struct NeuronArguments {
  const Tensor& decay;
  const Tensor& threshold;
  const std::optional<Tensor>& synapse_decay;
  const std::optional<Tensor>& v_init;
  const std::optional<Tensor>& current_init;
  int64_t charge;
  double v_rest, gain;
  int64_t synapse, reset;
  double v_reset;
  bool strict, delayed_spike;

  // Whether the state before the first step may fire.
  bool looks_at_start() const {
    return reset == static_cast<int64_t>(Reset::kDelayedSoft) || delayed_spike;
  }

  template <class F>
  LifDynamics<F> dynamics(const Tensor& x, const StepLayout& layout) const {
    STD_TORCH_CHECK(charge >= 0 && charge <= static_cast<int64_t>(Charge::kDecay) && reset >= 0 &&
                        reset <= static_cast<int64_t>(Reset::kNone) && synapse >= 0 &&
                        synapse <= static_cast<int64_t>(Synapse::kJump) &&
                        (synapse == 0 || synapse_decay.has_value()),
                    "snnkern: unknown charge ", charge, ", reset ", reset, " or synapse ", synapse);
    return {
        static_cast<Charge>(charge),
        static_cast<Reset>(reset),
        static_cast<Synapse>(synapse),
        strict,
        delayed_spike,
        static_cast<F>(v_rest),
        static_cast<F>(v_reset),
        static_cast<F>(gain),
        parameter_of<F>(decay, layout, x),
        parameter_of<F>(threshold, layout, x),
        synapse_decay ? parameter_of<F>(*synapse_decay, layout, x) : Parameter<F>{nullptr, 1, 1}};
  }
};

// A value per channel that may not be there.
template <class F>
Parameter<F> channels_of(const std::optional<Tensor>& values, const StepLayout& layout,
                         const Tensor& x) {
  return values ? parameter_of<F>(*values, layout, x) : Parameter<F>{nullptr, 1, 1};
}

// `held` is 0 where x has all its time steps, and their number where its one step is held.
inline int64_t timesteps_of(const Tensor& x, int64_t held) {
  STD_TORCH_CHECK(held == 0 || x.size(0) == 1, "snnkern: x has ", x.size(0),
                  " steps, expected one that is held");
  return held ? held : x.size(0);
}

inline LifShape shape_of(const Tensor& x, const Tensor& steps, const StepLayout& layout,
                         int64_t timesteps) {
  STD_TORCH_CHECK(timesteps >= 1 && (x.size(0) == timesteps || x.size(0) == 1), "snnkern: x has ",
                  x.size(0), " steps, expected ", timesteps, " or 1");
  return {dtype_of(x),        timesteps,        layout.numel(),
          time_stride(steps), layout.samples(), layout.sample_step(steps)};
}

inline std::optional<Tensor> state_in(const std::optional<Tensor>& state, const Tensor& x,
                                      const StepLayout& layout) {
  if (!state) return std::nullopt;
  STD_TORCH_CHECK(state->scalar_type() == state_type_of(x) && layout.has_shape_of(*state, 0),
                  "snnkern: a state needs the dtype of the state and the shape of x[0]");
  return layout.step(*state);
}

template <class F>
const F* data_or_null(const std::optional<Tensor>& t) {
  return t ? static_cast<const F*>(t->const_data_ptr()) : nullptr;
}

inline Tensor nothing(ScalarType dtype, const Tensor& like) {
  return empty_strided({0}, {1}, dtype, like);
}

// Formats of spikes, in the order of snnkern.reference.SPIKE_FORMATS.
enum class SpikeFormat : int64_t { kInput = 0, kUint8 = 1, kBits = 2, kMembranes = 3 };

using Spikes = std::tuple<Tensor, Tensor, Tensor>;

template <class Device>
StepLayout layout_of(const Tensor& x, bool samples_apart) {
  return Device::kReadsSamplesApart && samples_apart ? StepLayout::or_batch_first(x)
                                                     : StepLayout(x);
}

template <class Device>
Spikes forward(const Tensor& x, int64_t held, const OptionalTensor& scale,
               const OptionalTensor& shift, const NeuronArguments& neurons, int64_t spike_format,
               bool return_state) {
  const Device device(x);
  const int64_t timesteps = timesteps_of(x, held);
  const auto format = static_cast<SpikeFormat>(spike_format);
  STD_TORCH_CHECK(spike_format >= 0 && spike_format <= 3, "snnkern: unknown spike format ",
                  spike_format);
  const StepLayout layout = layout_of<Device>(x, !scale && !held && format != SpikeFormat::kBits);
  const Tensor steps = layout.steps(x);
  const OptionalTensor init = state_in(neurons.v_init, x, layout);
  const OptionalTensor current = state_in(neurons.current_init, x, layout);
  const ScalarType state_type = state_type_of(x);
  const int64_t bytes = (layout.numel() + 7) / 8;
  Tensor spikes = format == SpikeFormat::kBits
                      ? empty_strided({timesteps, bytes}, {bytes, 1}, ScalarType::Byte, x)
                      : layout.empty_steps(timesteps,
                                           format == SpikeFormat::kUint8       ? ScalarType::Byte
                                           : format == SpikeFormat::kMembranes ? state_type
                                                                               : x.scalar_type(),
                                           x);
  Tensor state = return_state ? layout.empty_step(state_type, x) : nothing(state_type, x);
  const bool return_current = return_state && neurons.synapse != 0;
  Tensor final_current = return_current ? layout.empty_step(state_type, x) : nothing(state_type, x);
  with_state_type(dtype_of(x), [&]<class F>(F) {
    const LifForward<F> p{
        shape_of(x, steps, layout, timesteps),
        neurons.dynamics<F>(x, layout),
        {channels_of<F>(scale, layout, x), channels_of<F>(shift, layout, x)},
        steps.const_data_ptr(),
        data_or_null<F>(init),
        data_or_null<F>(current),
        format == SpikeFormat::kBits        ? Dtype::kBit
        : format == SpikeFormat::kUint8     ? Dtype::kUint8
        : format == SpikeFormat::kMembranes ? (sizeof(F) == 8 ? Dtype::kFloat64 : Dtype::kFloat32)
                                            : dtype_of(x),
        format == SpikeFormat::kBits ? 8 * bytes : spikes.stride(0),
        layout.sample_step(spikes),
        spikes.mutable_data_ptr(),
        return_state ? static_cast<F*>(state.mutable_data_ptr()) : nullptr,
        return_current ? static_cast<F*>(final_current.mutable_data_ptr()) : nullptr,
        format == SpikeFormat::kMembranes,
    };
    device.forward(p);
  });
  return {spikes, state, final_current};
}

template <class Device>
Spikes lif_forward_op(const Tensor& x, int64_t held, const Tensor& decay, const Tensor& threshold,
                      const OptionalTensor& synapse_decay, const OptionalTensor& v_init,
                      const OptionalTensor& current_init, int64_t charge, double v_rest,
                      double gain, int64_t synapse, int64_t reset, double v_reset, bool strict,
                      bool delayed_spike, int64_t spike_format, bool return_state) {
  return forward<Device>(x, held, std::nullopt, std::nullopt,
                         {decay, threshold, synapse_decay, v_init, current_init, charge, v_rest,
                          gain, synapse, reset, v_reset, strict, delayed_spike},
                         spike_format, return_state);
}

template <class Device>
Spikes norm_lif_forward_op(const Tensor& x, const Tensor& scale, const Tensor& shift,
                           const Tensor& decay, const Tensor& threshold,
                           const OptionalTensor& synapse_decay, const OptionalTensor& v_init,
                           const OptionalTensor& current_init, int64_t charge, double v_rest,
                           double gain, int64_t synapse, int64_t reset, double v_reset, bool strict,
                           bool delayed_spike, int64_t spike_format, bool return_state) {
  return forward<Device>(x, 0, scale, shift,
                         {decay, threshold, synapse_decay, v_init, current_init, charge, v_rest,
                          gain, synapse, reset, v_reset, strict, delayed_spike},
                         spike_format, return_state);
}

inline void check_known(const SurrogateChoice& choice) {
  const auto kind = static_cast<int>(choice.kind);
  STD_TORCH_CHECK(kind >= 0 && choice.kind <= Surrogate::kSpikeTime, "snnkern: unknown surrogate ",
                  kind);
}

// A surrogate for every sample: rows of (kind, arg, arg, normalized).
inline void check_table(const Tensor& table, const Tensor& x) {
  STD_TORCH_CHECK(table.scalar_type() == ScalarType::Double && table.is_contiguous() &&
                      table.dim() == 2 && table.size(1) == 4 && table.is_cpu() == x.is_cpu() &&
                      x.dim() > 1 && table.size(0) == x.size(1),
                  "snnkern: surrogates of single samples are a contiguous float64 tensor [N, 4] on "
                  "the device of x, for a batch of N");
}

struct SurrogateArguments {
  int64_t kind;
  const std::vector<double>& args;
  bool normalized;
  const OptionalTensor& table;
  const OptionalTensor& derivatives;

  // Of every step, in the layout of those of x; see LifBackward.
  OptionalTensor given(const Tensor& x, const StepLayout& layout, int64_t steps) const {
    if (!derivatives) return std::nullopt;
    STD_TORCH_CHECK(!table && derivatives->scalar_type() == state_type_of(x) &&
                        layout.has_shape_of(*derivatives, 1) && derivatives->size(0) == steps,
                    "snnkern: derivatives need the dtype of the state and the shape of ", steps,
                    " steps, and no surrogates of single samples beside them");
    return layout.steps(*derivatives);
  }
};

// A normalised input, see Affine and NormSums.
struct NormArguments {
  const OptionalTensor& scale;
  const OptionalTensor& shift;
  const OptionalTensor& mean;
  bool sums;
};

// What a pass leaves for a parameter of the neurons, to be made its gradient.
template <class F, class Device>
class Sums {
 public:
  Sums(const Device& device, const Parameter<F>& parameter, bool wanted, const StepLayout& layout,
       const Tensor& x)
      : device_(device), parameter_(parameter), neurons_(layout.numel()) {
    if (wanted) {
      sums_ = layout.empty_step(state_type_of(x), x);
    }
  }

  // Null where the gradient is not wanted.
  F* data() const { return sums_ ? static_cast<F*>(sums_->mutable_data_ptr()) : nullptr; }

  void reduce_to(const Tensor& grad) const {
    if (!sums_) return;
    device_.reduce(data(), parameter_, neurons_, static_cast<F*>(grad.mutable_data_ptr()));
  }

 private:
  const Device& device_;
  Parameter<F> parameter_;
  int64_t neurons_;
  OptionalTensor sums_;
};

struct Gradients {
  Tensor x, decay, threshold, synapse_decay, v_init, current_init, sum, dot;
};

template <class Device>
Gradients backward(const Tensor& grad_spikes, const OptionalTensor& grad_state,
                   const OptionalTensor& grad_current, const Tensor& x, int64_t held,
                   const NormArguments& norm, const NeuronArguments& neurons, bool detach_reset,
                   const SurrogateArguments& surrogate, bool parameter_gradients) {
  const Device device(x);
  const StepLayout layout = layout_of<Device>(x, !norm.scale && !held);
  const int64_t timesteps = timesteps_of(x, held);
  STD_TORCH_CHECK(surrogate.args.size() == 2, "snnkern: a surrogate takes two numbers, given ",
                  surrogate.args.size());
  const SurrogateChoice choice{static_cast<Surrogate>(surrogate.kind),
                               {surrogate.args[0], surrogate.args[1]},
                               surrogate.normalized};
  check_known(choice);
  if (surrogate.table) check_table(*surrogate.table, x);
  STD_TORCH_CHECK(grad_spikes.scalar_type() == x.scalar_type() &&
                      layout.has_shape_of(grad_spikes, 1) && grad_spikes.size(0) == timesteps,
                  "snnkern: grad_spikes needs the dtype of x and the shape of the spikes");
  const Tensor steps = layout.steps(x);
  const Tensor grads = layout.steps(grad_spikes);
  const OptionalTensor init = state_in(neurons.v_init, x, layout);
  const OptionalTensor current = state_in(neurons.current_init, x, layout);
  const int64_t before = neurons.looks_at_start() ? 1 : 0;
  const OptionalTensor derivatives = surrogate.given(x, layout, timesteps + before);
  const int64_t derivatives_step = derivatives ? time_stride(*derivatives) : 0;
  const OptionalTensor grad_final = state_in(grad_state, x, layout);
  const OptionalTensor grad_final_current = state_in(grad_current, x, layout);
  const ScalarType state_type = state_type_of(x);
  const auto like = [&](const Tensor& t, bool wanted) {
    return wanted ? torch::stable::empty_like(t) : nothing(state_type, x);
  };
  const auto per_neuron = [&](bool wanted) {
    return wanted ? layout.empty_step(state_type, x) : nothing(state_type, x);
  };
  const bool synapse_gradient = parameter_gradients && neurons.synapse != 0;
  Gradients out{
      layout.empty_steps(x.size(0), x.scalar_type(), x),
      like(neurons.decay, parameter_gradients),
      like(neurons.threshold, parameter_gradients),
      synapse_gradient ? torch::stable::empty_like(*neurons.synapse_decay) : nothing(state_type, x),
      per_neuron(init.has_value()),
      per_neuron(current.has_value()),
      norm.sums ? torch::stable::empty_like(*norm.scale) : nothing(state_type, x),
      norm.sums ? torch::stable::empty_like(*norm.scale) : nothing(state_type, x),
  };
  with_state_type(dtype_of(x), [&]<class F>(F) {
    const LifDynamics<F> dynamics = neurons.dynamics<F>(x, layout);
    const auto channels = [&](const OptionalTensor& t) { return channels_of<F>(t, layout, x); };
    const Affine<F> affine{channels(norm.scale), channels(norm.shift)};
    const Sums<F, Device> decay(device, dynamics.decay, parameter_gradients, layout, x);
    const Sums<F, Device> threshold(device, dynamics.threshold, parameter_gradients, layout, x);
    const Sums<F, Device> synapse(device, dynamics.synapse_decay, synapse_gradient, layout, x);
    const Sums<F, Device> sum(device, affine.scale, norm.sums, layout, x);
    const Sums<F, Device> dot(device, affine.scale, norm.sums, layout, x);
    device.backward(
        LifBackward<F>{
            shape_of(x, steps, layout, timesteps),
            dynamics,
            affine,
            {channels(norm.mean), sum.data(), dot.data()},
            steps.const_data_ptr(),
            data_or_null<F>(init),
            data_or_null<F>(current),
            grads.const_data_ptr(),
            time_stride(grads),
            layout.sample_step(grads),
            data_or_null<F>(grad_final),
            data_or_null<F>(grad_final_current),
            detach_reset,
            &choice,
            1,
            layout.sample_stride(),
            derivatives ? data_or_null<F>(derivatives) + before * derivatives_step : nullptr,
            derivatives_step,
            derivatives ? layout.sample_step(*derivatives) : 0,
            held != 0,
            out.x.mutable_data_ptr(),
            out.x.stride(0),
            layout.sample_step(out.x),
            init ? static_cast<F*>(out.v_init.mutable_data_ptr()) : nullptr,
            current ? static_cast<F*>(out.current_init.mutable_data_ptr()) : nullptr,
            decay.data(),
            threshold.data(),
            synapse.data(),
        },
        surrogate.table);
    decay.reduce_to(out.decay);
    threshold.reduce_to(out.threshold);
    synapse.reduce_to(out.synapse_decay);
    sum.reduce_to(out.sum);
    dot.reduce_to(out.dot);
  });
  return out;
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lif_backward_op(
    const Tensor& grad_spikes, const OptionalTensor& grad_state, const OptionalTensor& grad_current,
    const Tensor& x, int64_t held, const Tensor& decay, const Tensor& threshold,
    const OptionalTensor& synapse_decay, const OptionalTensor& v_init,
    const OptionalTensor& current_init, int64_t charge, double v_rest, double gain, int64_t synapse,
    int64_t reset, double v_reset, bool strict, bool delayed_spike, bool detach_reset,
    int64_t surrogate, const std::vector<double>& surrogate_args, bool normalized,
    const OptionalTensor& surrogate_table, const OptionalTensor& derivatives,
    bool parameter_gradients) {
  const OptionalTensor none;
  const Gradients g = backward<Device>(
      grad_spikes, grad_state, grad_current, x, held, {none, none, none, false},
      {decay, threshold, synapse_decay, v_init, current_init, charge, v_rest, gain, synapse, reset,
       v_reset, strict, delayed_spike},
      detach_reset, {surrogate, surrogate_args, normalized, surrogate_table, derivatives},
      parameter_gradients);
  return {g.x, g.decay, g.threshold, g.synapse_decay, g.v_init, g.current_init};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> norm_lif_backward_op(
    const Tensor& grad_spikes, const OptionalTensor& grad_state, const OptionalTensor& grad_current,
    const Tensor& x, const Tensor& scale, const Tensor& shift, const Tensor& mean,
    const Tensor& decay, const Tensor& threshold, const OptionalTensor& synapse_decay,
    const OptionalTensor& v_init, const OptionalTensor& current_init, int64_t charge, double v_rest,
    double gain, int64_t synapse, int64_t reset, double v_reset, bool strict, bool delayed_spike,
    bool detach_reset, int64_t surrogate, const std::vector<double>& surrogate_args,
    bool normalized, const OptionalTensor& surrogate_table, const OptionalTensor& derivatives,
    bool parameter_gradients, bool sums) {
  const Gradients g = backward<Device>(
      grad_spikes, grad_state, grad_current, x, 0, {scale, shift, mean, sums},
      {decay, threshold, synapse_decay, v_init, current_init, charge, v_rest, gain, synapse, reset,
       v_reset, strict, delayed_spike},
      detach_reset, {surrogate, surrogate_args, normalized, surrogate_table, derivatives},
      parameter_gradients);
  return {g.x, g.sum, g.dot, g.decay, g.threshold, g.synapse_decay, g.v_init, g.current_init};
}

template <class Device>
std::tuple<Tensor, Tensor> channel_moments_op(const Tensor& x, const Tensor& centre) {
  const Device device(x);
  const StepLayout layout(x);
  const Tensor steps = layout.steps(x);
  Tensor sum = torch::stable::empty_like(centre);
  Tensor square = torch::stable::empty_like(centre);
  with_state_type(dtype_of(x), [&]<class F>(F) {
    const Parameter<F> centres = parameter_of<F>(centre, layout, x);
    const Sums<F, Device> sums(device, centres, true, layout, x);
    const Sums<F, Device> squares(device, centres, true, layout, x);
    device.moments(shape_of(x, steps, layout, x.size(0)), steps.const_data_ptr(), centres,
                   sums.data(), squares.data());
    sums.reduce_to(sum);
    squares.reduce_to(square);
  });
  return {sum, square};
}

// In place of g, which lies in memory as lif_backward made it: like x, time outermost.
template <class Device>
void norm_backward_op(Tensor g, const Tensor& x, const Tensor& mean, const Tensor& from_g,
                      const Tensor& from_x, const Tensor& constant) {
  const Device device(x);
  const StepLayout layout(x);
  const Tensor steps = layout.steps(x);
  STD_TORCH_CHECK(g.scalar_type() == x.scalar_type() && layout.has_shape_of(g, 1) &&
                      layout.holds(g, 1) && g.size(0) == x.size(0) &&
                      (g.size(0) == 1 || g.stride(0) == layout.numel()),
                  "snnkern: g needs the dtype, shape and layout of x");
  with_state_type(dtype_of(x), [&]<class F>(F) {
    const auto channels = [&](const Tensor& t) { return parameter_of<F>(t, layout, x); };
    device.norm_backward(shape_of(x, steps, layout, x.size(0)), steps.const_data_ptr(),
                         channels(mean), channels(from_g), channels(from_x), channels(constant),
                         g.mutable_data_ptr());
  });
}

// The registration of them all, for STABLE_TORCH_LIBRARY_IMPL(snnkern, <device>, m).
template <class Device, class Library>
void register_lif(Library& m) {
  m.impl("lif_forward", TORCH_BOX(&lif_forward_op<Device>));
  m.impl("lif_backward", TORCH_BOX(&lif_backward_op<Device>));
  m.impl("norm_lif_forward", TORCH_BOX(&norm_lif_forward_op<Device>));
  m.impl("norm_lif_backward", TORCH_BOX(&norm_lif_backward_op<Device>));
  m.impl("norm_backward_", TORCH_BOX(&norm_backward_op<Device>));
  m.impl("channel_moments", TORCH_BOX(&channel_moments_op<Device>));
}

}  // namespace snnkern
