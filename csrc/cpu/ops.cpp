// The CPU kernels as operators: checks that protect memory, allocation, threads, registration.
// What a caller may pass is decided in snnkern/functional.py; nothing is decided twice here.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "../layout.h"
#include "lif.h"
#include "pack.h"

namespace snnkern::cpu {
namespace {

// Below this many neuron-steps a thread costs more than it brings.
constexpr int64_t kGrain = 1 << 15;
constexpr int64_t kElementwiseTile = 8192;

template <class Run>
void parallel_tiles(const Tiling& tiling, int64_t timesteps, const Run& run) {
  const int64_t grain = std::max<int64_t>(1, kGrain / (tiling.size * timesteps));
  torch::stable::parallel_for(0, tiling.count(), grain, run);
}

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
int64_t timesteps_of(const Tensor& x, int64_t held) {
  STD_TORCH_CHECK(held == 0 || x.size(0) == 1, "snnkern: x has ", x.size(0),
                  " steps, expected one that is held");
  return held ? held : x.size(0);
}

LifShape shape_of(const Tensor& x, const Tensor& steps, const StepLayout& layout,
                  int64_t timesteps) {
  STD_TORCH_CHECK(timesteps >= 1 && (x.size(0) == timesteps || x.size(0) == 1), "snnkern: x has ",
                  x.size(0), " steps, expected ", timesteps, " or 1");
  return {dtype_of(x), timesteps, layout.numel(), time_stride(steps)};
}

std::optional<Tensor> state_in(const std::optional<Tensor>& state, const Tensor& x,
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

Tensor nothing(ScalarType dtype, const Tensor& like) {
  return empty_strided({0}, {1}, dtype, like);
}

// Formats of spikes, in the order of snnkern.reference.SPIKE_FORMATS.
enum class SpikeFormat : int64_t { kInput = 0, kUint8 = 1, kBits = 2 };

using OptionalTensor = std::optional<Tensor>;
using Spikes = std::tuple<Tensor, Tensor, Tensor>;

Spikes forward(const Tensor& x, int64_t held, const OptionalTensor& scale,
               const OptionalTensor& shift, const NeuronArguments& neurons, int64_t spike_format,
               bool return_state) {
  const StepLayout layout(x);
  const int64_t timesteps = timesteps_of(x, held);
  const Tensor steps = layout.steps(x);
  const OptionalTensor init = state_in(neurons.v_init, x, layout);
  const OptionalTensor current = state_in(neurons.current_init, x, layout);
  const ScalarType state_type = state_type_of(x);
  const auto format = static_cast<SpikeFormat>(spike_format);
  STD_TORCH_CHECK(spike_format >= 0 && spike_format <= 2, "snnkern: unknown spike format ",
                  spike_format);
  const int64_t bytes = (layout.numel() + 7) / 8;
  Tensor spikes =
      format == SpikeFormat::kBits
          ? empty_strided({timesteps, bytes}, {bytes, 1}, ScalarType::Byte, x)
          : layout.empty_steps(
                timesteps, format == SpikeFormat::kUint8 ? ScalarType::Byte : x.scalar_type(), x);
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
        format == SpikeFormat::kBits    ? Dtype::kBit
        : format == SpikeFormat::kUint8 ? Dtype::kUint8
                                        : dtype_of(x),
        format == SpikeFormat::kBits ? 8 * bytes : layout.numel(),
        spikes.mutable_data_ptr(),
        return_state ? static_cast<F*>(state.mutable_data_ptr()) : nullptr,
        return_current ? static_cast<F*>(final_current.mutable_data_ptr()) : nullptr,
    };
    const Tiling tiling = tiling_of(p);
    parallel_tiles(tiling, timesteps,
                   [&](int64_t first, int64_t last) { lif_forward(p, tiling, first, last); });
  });
  return {spikes, state, final_current};
}

Spikes lif_forward_op(const Tensor& x, int64_t held, const Tensor& decay, const Tensor& threshold,
                      const OptionalTensor& synapse_decay, const OptionalTensor& v_init,
                      const OptionalTensor& current_init, int64_t charge, double v_rest,
                      double gain, int64_t synapse, int64_t reset, double v_reset, bool strict,
                      bool delayed_spike, int64_t spike_format, bool return_state) {
  return forward(x, held, std::nullopt, std::nullopt,
                 {decay, threshold, synapse_decay, v_init, current_init, charge, v_rest, gain,
                  synapse, reset, v_reset, strict, delayed_spike},
                 spike_format, return_state);
}

Spikes norm_lif_forward_op(const Tensor& x, const Tensor& scale, const Tensor& shift,
                           const Tensor& decay, const Tensor& threshold,
                           const OptionalTensor& synapse_decay, const OptionalTensor& v_init,
                           const OptionalTensor& current_init, int64_t charge, double v_rest,
                           double gain, int64_t synapse, int64_t reset, double v_reset, bool strict,
                           bool delayed_spike, int64_t spike_format, bool return_state) {
  return forward(x, 0, scale, shift,
                 {decay, threshold, synapse_decay, v_init, current_init, charge, v_rest, gain,
                  synapse, reset, v_reset, strict, delayed_spike},
                 spike_format, return_state);
}

// One surrogate for all samples, or one each: rows of (kind, arg, arg, normalized).
std::vector<SurrogateChoice> surrogates_of(int64_t kind, const std::vector<double>& args,
                                           bool normalized, const std::optional<Tensor>& table) {
  std::vector<SurrogateChoice> choices;
  if (!table) {
    STD_TORCH_CHECK(args.size() == 2, "snnkern: a surrogate takes two numbers, given ",
                    args.size());
    choices.push_back({static_cast<Surrogate>(kind), {args[0], args[1]}, normalized});
  } else {
    STD_TORCH_CHECK(table->scalar_type() == ScalarType::Double && table->is_contiguous() &&
                        table->dim() == 2 && table->size(1) == 4 && table->is_cpu(),
                    "snnkern: surrogates are a contiguous float64 tensor [N, 4] on the CPU");
    const auto* row = static_cast<const double*>(table->const_data_ptr());
    for (int64_t i = 0; i < table->size(0); ++i, row += 4) {
      choices.push_back(
          {static_cast<Surrogate>(static_cast<int>(row[0])), {row[1], row[2]}, row[3] != 0});
    }
  }
  for (const auto& choice : choices) {
    const bool known = static_cast<int>(choice.kind) >= 0 && choice.kind <= Surrogate::kRate;
    STD_TORCH_CHECK(known && (!table || choice.kind != Surrogate::kRate), "snnkern: surrogate ",
                    static_cast<int>(choice.kind), " is unknown, or not one for single samples");
  }
  return choices;
}

struct SurrogateArguments {
  int64_t kind;
  const std::vector<double>& args;
  bool normalized;
  const OptionalTensor& table;
};

// A normalised input, see Affine and NormSums.
struct NormArguments {
  const OptionalTensor& scale;
  const OptionalTensor& shift;
  const OptionalTensor& mean;
  bool sums;
};

struct Gradients {
  Tensor x, decay, threshold, synapse_decay, v_init, current_init, sum, dot;
};

Gradients backward(const Tensor& grad_spikes, const OptionalTensor& grad_state,
                   const OptionalTensor& grad_current, const Tensor& x, int64_t held,
                   const NormArguments& norm, const NeuronArguments& neurons, bool detach_reset,
                   const SurrogateArguments& surrogate, bool parameter_gradients) {
  const StepLayout layout(x);
  const int64_t timesteps = timesteps_of(x, held);
  const auto choices =
      surrogates_of(surrogate.kind, surrogate.args, surrogate.normalized, surrogate.table);
  const auto samples = static_cast<int64_t>(choices.size());
  STD_TORCH_CHECK(samples == 1 || samples == x.size(1), "snnkern: ", samples,
                  " surrogates for a batch of ", x.size(1));
  STD_TORCH_CHECK(grad_spikes.scalar_type() == x.scalar_type() &&
                      layout.has_shape_of(grad_spikes, 1) && grad_spikes.size(0) == timesteps,
                  "snnkern: grad_spikes needs the dtype of x and the shape of the spikes");
  const Tensor steps = layout.steps(x);
  const Tensor grads = layout.steps(grad_spikes);
  const OptionalTensor init = state_in(neurons.v_init, x, layout);
  const OptionalTensor current = state_in(neurons.current_init, x, layout);
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
  const Tensor neuron_decay = per_neuron(parameter_gradients);
  const Tensor neuron_threshold = per_neuron(parameter_gradients);
  const Tensor neuron_synapse = per_neuron(synapse_gradient);
  const Tensor neuron_sum = per_neuron(norm.sums);
  const Tensor neuron_dot = per_neuron(norm.sums);
  with_state_type(dtype_of(x), [&]<class F>(F) {
    const auto mutable_or_null = [](const Tensor& t, bool wanted) {
      return wanted ? static_cast<F*>(t.mutable_data_ptr()) : nullptr;
    };
    const auto channels = [&](const OptionalTensor& t) { return channels_of<F>(t, layout, x); };
    const LifBackward<F> p{
        shape_of(x, steps, layout, timesteps),
        neurons.dynamics<F>(x, layout),
        {channels(norm.scale), channels(norm.shift)},
        {channels(norm.mean), mutable_or_null(neuron_sum, norm.sums),
         mutable_or_null(neuron_dot, norm.sums)},
        steps.const_data_ptr(),
        data_or_null<F>(init),
        data_or_null<F>(current),
        grads.const_data_ptr(),
        time_stride(grads),
        data_or_null<F>(grad_final),
        data_or_null<F>(grad_final_current),
        detach_reset,
        choices.data(),
        samples,
        layout.sample_stride(),
        held != 0,
        out.x.mutable_data_ptr(),
        mutable_or_null(out.v_init, init.has_value()),
        mutable_or_null(out.current_init, current.has_value()),
        mutable_or_null(neuron_decay, parameter_gradients),
        mutable_or_null(neuron_threshold, parameter_gradients),
        mutable_or_null(neuron_synapse, synapse_gradient),
    };
    const Tiling tiling = tiling_of(p);
    parallel_tiles(tiling, timesteps,
                   [&](int64_t first, int64_t last) { lif_backward(p, tiling, first, last); });
    const auto reduce = [&](const F* neuron_grad, const Parameter<F>& parameter, Tensor& grad) {
      if (!neuron_grad) return;
      reduce_to_parameter(neuron_grad, p.shape.neurons, parameter.count, parameter.repeat,
                          static_cast<F*>(grad.mutable_data_ptr()));
    };
    reduce(p.neuron_grad_decay, p.dynamics.decay, out.decay);
    reduce(p.neuron_grad_threshold, p.dynamics.threshold, out.threshold);
    reduce(p.neuron_grad_synapse, p.dynamics.synapse_decay, out.synapse_decay);
    reduce(p.norm.neuron_sum, p.affine.scale, out.sum);
    reduce(p.norm.neuron_dot, p.affine.scale, out.dot);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lif_backward_op(
    const Tensor& grad_spikes, const OptionalTensor& grad_state, const OptionalTensor& grad_current,
    const Tensor& x, int64_t held, const Tensor& decay, const Tensor& threshold,
    const OptionalTensor& synapse_decay, const OptionalTensor& v_init,
    const OptionalTensor& current_init, int64_t charge, double v_rest, double gain, int64_t synapse,
    int64_t reset, double v_reset, bool strict, bool delayed_spike, bool detach_reset,
    int64_t surrogate, const std::vector<double>& surrogate_args, bool normalized,
    const OptionalTensor& surrogate_table, bool parameter_gradients) {
  const OptionalTensor none;
  const Gradients g = backward(
      grad_spikes, grad_state, grad_current, x, held, {none, none, none, false},
      {decay, threshold, synapse_decay, v_init, current_init, charge, v_rest, gain, synapse, reset,
       v_reset, strict, delayed_spike},
      detach_reset, {surrogate, surrogate_args, normalized, surrogate_table}, parameter_gradients);
  return {g.x, g.decay, g.threshold, g.synapse_decay, g.v_init, g.current_init};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> norm_lif_backward_op(
    const Tensor& grad_spikes, const OptionalTensor& grad_state, const OptionalTensor& grad_current,
    const Tensor& x, const Tensor& scale, const Tensor& shift, const Tensor& mean,
    const Tensor& decay, const Tensor& threshold, const OptionalTensor& synapse_decay,
    const OptionalTensor& v_init, const OptionalTensor& current_init, int64_t charge, double v_rest,
    double gain, int64_t synapse, int64_t reset, double v_reset, bool strict, bool delayed_spike,
    bool detach_reset, int64_t surrogate, const std::vector<double>& surrogate_args,
    bool normalized, const OptionalTensor& surrogate_table, bool parameter_gradients, bool sums) {
  const Gradients g = backward(
      grad_spikes, grad_state, grad_current, x, 0, {scale, shift, mean, sums},
      {decay, threshold, synapse_decay, v_init, current_init, charge, v_rest, gain, synapse, reset,
       v_reset, strict, delayed_spike},
      detach_reset, {surrogate, surrogate_args, normalized, surrogate_table}, parameter_gradients);
  return {g.x, g.sum, g.dot, g.decay, g.threshold, g.synapse_decay, g.v_init, g.current_init};
}

std::tuple<Tensor, Tensor> channel_moments_op(const Tensor& x, const Tensor& centre) {
  const StepLayout layout(x);
  const Tensor steps = layout.steps(x);
  const ScalarType state_type = state_type_of(x);
  const Tensor neuron_sum = layout.empty_step(state_type, x);
  const Tensor neuron_square = layout.empty_step(state_type, x);
  Tensor sum = torch::stable::empty_like(centre);
  Tensor square = torch::stable::empty_like(centre);
  with_state_type(dtype_of(x), [&]<class F>(F) {
    const LifShape shape = shape_of(x, steps, layout, x.size(0));
    const Parameter<F> centres = parameter_of<F>(centre, layout, x);
    F* const sums = static_cast<F*>(neuron_sum.mutable_data_ptr());
    F* const squares = static_cast<F*>(neuron_square.mutable_data_ptr());
    const Tiling tiling = Tiling::of(shape, 1, kElementwiseTile);
    parallel_tiles(tiling, shape.timesteps, [&](int64_t first, int64_t last) {
      moments(shape, steps.const_data_ptr(), centres, sums, squares, tiling, first, last);
    });
    reduce_to_parameter(sums, shape.neurons, centres.count, centres.repeat,
                        static_cast<F*>(sum.mutable_data_ptr()));
    reduce_to_parameter(squares, shape.neurons, centres.count, centres.repeat,
                        static_cast<F*>(square.mutable_data_ptr()));
  });
  return {sum, square};
}

// In place of g, which lies in memory as lif_backward made it: like x, time outermost.
void norm_backward_op(Tensor g, const Tensor& x, const Tensor& mean, const Tensor& from_g,
                      const Tensor& from_x, const Tensor& constant) {
  const StepLayout layout(x);
  const Tensor steps = layout.steps(x);
  STD_TORCH_CHECK(g.scalar_type() == x.scalar_type() && layout.has_shape_of(g, 1) &&
                      layout.holds(g, 1) && g.size(0) == x.size(0) &&
                      (g.size(0) == 1 || g.stride(0) == layout.numel()),
                  "snnkern: g needs the dtype, shape and layout of x");
  with_state_type(dtype_of(x), [&]<class F>(F) {
    const LifShape shape = shape_of(x, steps, layout, x.size(0));
    const auto channels = [&](const Tensor& t) { return parameter_of<F>(t, layout, x); };
    const Tiling tiling = Tiling::of(shape, 1, kElementwiseTile);
    parallel_tiles(tiling, shape.timesteps, [&](int64_t first, int64_t last) {
      norm_backward(shape, steps.const_data_ptr(), channels(mean), channels(from_g),
                    channels(from_x), channels(constant), g.mutable_data_ptr(), tiling, first,
                    last);
    });
  });
}

// Spikes may also be bytes.
Dtype spike_dtype_of(ScalarType dtype, const Tensor& spikes) {
  return dtype == ScalarType::Byte || dtype == ScalarType::Bool ? Dtype::kUint8 : dtype_of(spikes);
}

template <class Run>
void parallel_pieces(const BitRows& shape, const Run& run) {
  const int64_t neurons = std::max<int64_t>(1, std::min(shape.neurons, BitRows::kPiece));
  torch::stable::parallel_for(0, shape.pieces(), std::max<int64_t>(1, kGrain / neurons), run);
}

std::tuple<Tensor, Tensor> pack_spikes_op(const Tensor& spikes) {
  const StepLayout layout(spikes);
  const Tensor steps = layout.steps(spikes);
  const BitRows shape{spikes.size(0), layout.numel()};
  const Dtype dtype = spike_dtype_of(spikes.scalar_type(), spikes);
  const Tensor packed =
      empty_strided({shape.rows, shape.bytes()}, {shape.bytes(), 1}, ScalarType::Byte, spikes);
  auto* const bits = static_cast<uint8_t*>(packed.mutable_data_ptr());
  const void* const data = steps.const_data_ptr();
  constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> stray{kNone};
  parallel_pieces(shape, [&](int64_t first, int64_t last) {
    const int64_t place = pack_spikes(shape, dtype, data, time_stride(steps), bits, first, last);
    if (place < 0) return;
    int64_t before = stray.load();
    while (place < before && !stray.compare_exchange_weak(before, place)) {
    }
  });
  const Tensor value = empty_strided({}, {}, ScalarType::Double, spikes);
  const int64_t place = stray.load();
  const int64_t at =
      place == kNone ? 0 : place / shape.neurons * time_stride(steps) + place % shape.neurons;
  *static_cast<double*>(value.mutable_data_ptr()) =
      place == kNone ? 0.0 : value_at(dtype, data, at);
  return {packed, value};
}

// To steps that lie in memory as those of a tensor of this size and these strides.
Tensor unpack_spikes_op(const Tensor& packed, const std::vector<int64_t>& size,
                        const std::vector<int64_t>& stride, ScalarType dtype) {
  const StepLayout layout(size, stride);
  const BitRows shape{size[0], layout.numel()};
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Byte && packed.is_contiguous() &&
                      packed.dim() == 2 && packed.size(0) == shape.rows &&
                      packed.size(1) == shape.bytes(),
                  "snnkern: packed spikes need a byte for eight neurons of a step, contiguous");
  const Tensor spikes = layout.empty_steps(shape.rows, dtype, packed);
  const auto* const bits = static_cast<const uint8_t*>(packed.const_data_ptr());
  void* const data = spikes.mutable_data_ptr();
  const Dtype to = spike_dtype_of(dtype, spikes);
  parallel_pieces(shape, [&](int64_t first, int64_t last) {
    unpack_spikes(shape, to, bits, data, first, last);
  });
  return spikes;
}

}  // namespace
}  // namespace snnkern::cpu

STABLE_TORCH_LIBRARY_IMPL(snnkern, CPU, m) {
  m.impl("lif_forward", TORCH_BOX(&snnkern::cpu::lif_forward_op));
  m.impl("lif_backward", TORCH_BOX(&snnkern::cpu::lif_backward_op));
  m.impl("norm_lif_forward", TORCH_BOX(&snnkern::cpu::norm_lif_forward_op));
  m.impl("norm_lif_backward", TORCH_BOX(&snnkern::cpu::norm_lif_backward_op));
  m.impl("norm_backward_", TORCH_BOX(&snnkern::cpu::norm_backward_op));
  m.impl("channel_moments", TORCH_BOX(&snnkern::cpu::channel_moments_op));
  m.impl("pack_spikes", TORCH_BOX(&snnkern::cpu::pack_spikes_op));
  m.impl("unpack_spikes", TORCH_BOX(&snnkern::cpu::unpack_spikes_op));
}
