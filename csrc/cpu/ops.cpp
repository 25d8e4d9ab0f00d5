// The CPU kernels as operators: checks that protect memory, allocation, threads, registration.
// What a caller may pass is decided in snnkern/functional.py; nothing is decided twice here.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../layout.h"
#include "lif.h"

namespace snnkern::cpu {
namespace {

// Below this many neuron-steps a thread costs more than it brings.
constexpr int64_t kGrain = 1 << 15;

template <class Run>
void parallel_tiles(const Tiling& tiling, int64_t timesteps, const Run& run) {
  const int64_t grain = std::max<int64_t>(1, kGrain / (tiling.size * timesteps));
  torch::stable::parallel_for(0, tiling.count(), grain, run);
}

template <class F>
Parameter<F> parameter_of(const Tensor& values, const StepLayout& layout, const Tensor& x) {
  const int64_t count = values.numel();
  STD_TORCH_CHECK(values.scalar_type() == state_type_of(x) && values.is_contiguous() &&
                      (count == 1 || (x.dim() > 2 && count == x.size(2))),
                  "snnkern: a parameter needs the dtype of the state and one value, or one per "
                  "channel, contiguous");
  return {static_cast<const F*>(values.const_data_ptr()), count,
          count == 1 ? layout.numel() : layout.channel_stride()};
}

template <class F>
LifDynamics<F> dynamics_of(const Tensor& x, const StepLayout& layout, const Tensor& leak,
                           const Tensor& threshold, double v_reset, int64_t reset, bool strict) {
  STD_TORCH_CHECK(reset >= 0 && reset <= static_cast<int64_t>(Reset::kNone),
                  "snnkern: unknown reset ", reset);
  return {static_cast<Reset>(reset), strict, static_cast<F>(v_reset),
          parameter_of<F>(leak, layout, x), parameter_of<F>(threshold, layout, x)};
}

LifShape shape_of(const Tensor& x, const Tensor& steps, const StepLayout& layout) {
  return {dtype_of(x), x.size(0), layout.numel(), time_stride(steps)};
}

std::optional<Tensor> state_in(const std::optional<Tensor>& state, const Tensor& x,
                               const StepLayout& layout) {
  if (!state) return std::nullopt;
  STD_TORCH_CHECK(state->scalar_type() == state_type_of(x) && state->dim() == x.dim() - 1 &&
                      state->numel() == layout.numel(),
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

std::tuple<Tensor, Tensor> lif_forward_op(const Tensor& x, const Tensor& leak,
                                          const Tensor& threshold,
                                          const std::optional<Tensor>& v_init, double v_reset,
                                          int64_t reset, bool strict, bool return_state) {
  const StepLayout layout(x);
  const Tensor steps = layout.steps(x);
  const std::optional<Tensor> init = state_in(v_init, x, layout);
  Tensor spikes = layout.empty_steps(x.size(0), x.scalar_type(), x);
  Tensor state =
      return_state ? layout.empty_step(state_type_of(x), x) : nothing(state_type_of(x), x);
  with_state_type(dtype_of(x), [&]<class F>(F) {
    const LifForward<F> p{
        shape_of(x, steps, layout),
        dynamics_of<F>(x, layout, leak, threshold, v_reset, reset, strict),
        steps.const_data_ptr(),
        data_or_null<F>(init),
        spikes.mutable_data_ptr(),
        return_state ? static_cast<F*>(state.mutable_data_ptr()) : nullptr,
    };
    const Tiling tiling = Tiling::of(p.shape);
    parallel_tiles(tiling, p.shape.timesteps,
                   [&](int64_t first, int64_t last) { lif_forward(p, tiling, first, last); });
  });
  return {spikes, state};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> lif_backward_op(
    const Tensor& grad_spikes, const std::optional<Tensor>& grad_state, const Tensor& x,
    const Tensor& leak, const Tensor& threshold, const std::optional<Tensor>& v_init,
    double v_reset, int64_t reset, bool strict, bool detach_reset, int64_t surrogate,
    const std::vector<double>& surrogate_args, bool normalized, bool parameter_gradients) {
  STD_TORCH_CHECK(surrogate >= 0 && surrogate <= static_cast<int64_t>(Surrogate::kRate) &&
                      surrogate_args.size() == 2,
                  "snnkern: unknown surrogate ", surrogate);
  STD_TORCH_CHECK(grad_spikes.scalar_type() == x.scalar_type() && grad_spikes.numel() == x.numel(),
                  "snnkern: grad_spikes needs the dtype and shape of x");
  const StepLayout layout(x);
  const Tensor steps = layout.steps(x);
  const Tensor grads = layout.steps(grad_spikes);
  const std::optional<Tensor> init = state_in(v_init, x, layout);
  const std::optional<Tensor> grad_final = state_in(grad_state, x, layout);
  const ScalarType state_type = state_type_of(x);
  Tensor grad_x = layout.empty_steps(x.size(0), x.scalar_type(), x);
  Tensor grad_v_init = init ? layout.empty_step(state_type, x) : nothing(state_type, x);
  Tensor grad_leak = parameter_gradients ? torch::stable::empty_like(leak) : nothing(state_type, x);
  Tensor grad_threshold =
      parameter_gradients ? torch::stable::empty_like(threshold) : nothing(state_type, x);
  Tensor neuron_leak = nothing(state_type, x);
  Tensor neuron_threshold = nothing(state_type, x);
  if (parameter_gradients) {
    neuron_leak = layout.empty_step(state_type, x);
    neuron_threshold = layout.empty_step(state_type, x);
  }
  with_state_type(dtype_of(x), [&]<class F>(F) {
    const auto mutable_or_null = [](const Tensor& t, bool wanted) {
      return wanted ? static_cast<F*>(t.mutable_data_ptr()) : nullptr;
    };
    const LifBackward<F> p{
        shape_of(x, steps, layout),
        dynamics_of<F>(x, layout, leak, threshold, v_reset, reset, strict),
        steps.const_data_ptr(),
        data_or_null<F>(init),
        grads.const_data_ptr(),
        time_stride(grads),
        data_or_null<F>(grad_final),
        detach_reset,
        static_cast<Surrogate>(surrogate),
        surrogate_args.data(),
        normalized,
        grad_x.mutable_data_ptr(),
        mutable_or_null(grad_v_init, init.has_value()),
        mutable_or_null(neuron_leak, parameter_gradients),
        mutable_or_null(neuron_threshold, parameter_gradients),
    };
    const Tiling tiling = Tiling::of(p.shape);
    parallel_tiles(tiling, p.shape.timesteps,
                   [&](int64_t first, int64_t last) { lif_backward(p, tiling, first, last); });
    if (parameter_gradients) {
      const auto& [leaks, thresholds] = std::tie(p.dynamics.leak, p.dynamics.threshold);
      reduce_to_parameter(p.neuron_grad_leak, p.shape.neurons, leaks.count, leaks.repeat,
                          static_cast<F*>(grad_leak.mutable_data_ptr()));
      reduce_to_parameter(p.neuron_grad_threshold, p.shape.neurons, thresholds.count,
                          thresholds.repeat, static_cast<F*>(grad_threshold.mutable_data_ptr()));
    }
  });
  return {grad_x, grad_leak, grad_threshold, grad_v_init};
}

}  // namespace
}  // namespace snnkern::cpu

STABLE_TORCH_LIBRARY_IMPL(snnkern, CPU, m) {
  m.impl("lif_forward", TORCH_BOX(&snnkern::cpu::lif_forward_op));
  m.impl("lif_backward", TORCH_BOX(&snnkern::cpu::lif_backward_op));
}
