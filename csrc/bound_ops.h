// The ops of certification for any device. A Device, as in lif_ops.h, runs the kernels:
//   interval(p), interval_backward(p), relax(p), relax_backward(p)
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "bounds.h"
#include "lif_ops.h"

namespace snnkern {

template <class F>
LifDynamics<F> bounded_dynamics(const Tensor& decay, const Tensor& threshold, int64_t reset,
                                double v_reset, bool strict, const StepLayout& layout,
                                const Tensor& x) {
  STD_TORCH_CHECK(reset >= 0 && reset <= static_cast<int64_t>(Reset::kNone),
                  "snnkern: unknown reset ", reset);
  return {Charge::kLeak,
          static_cast<Reset>(reset),
          Synapse::kNone,
          strict,
          false,
          F(0),
          static_cast<F>(v_reset),
          F(1),
          parameter_of<F>(decay, layout, x),
          parameter_of<F>(threshold, layout, x),
          {nullptr, 1, 1}};
}

// Both ends of an interval of tensors like x, in the layout of its steps.
inline void check_like(const Tensor& t, const Tensor& x, ScalarType dtype,
                       const StepLayout& layout) {
  STD_TORCH_CHECK(t.scalar_type() == dtype && layout.has_shape_of(t, 1) && t.size(0) == x.size(0),
                  "snnkern: an end of an interval needs the shape and dtype of the other");
}

inline Steps steps_of(const Tensor& t) { return {t.const_data_ptr(), time_stride(t)}; }

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> interval_lif_forward_op(
    const Tensor& lower, const Tensor& upper, const Tensor& decay, const Tensor& threshold,
    double v_init, int64_t reset, double v_reset, bool strict, bool return_membranes) {
  const Device device(lower);
  const StepLayout layout(lower);
  check_like(upper, lower, lower.scalar_type(), layout);
  const Tensor low = layout.steps(lower), high = layout.steps(upper);
  const int64_t timesteps = lower.size(0);
  const ScalarType state_type = state_type_of(lower);
  const auto spikes = [&] { return layout.empty_steps(timesteps, lower.scalar_type(), lower); };
  const auto membranes = [&] {
    return return_membranes ? layout.empty_steps(timesteps, state_type, lower)
                            : nothing(state_type, lower);
  };
  const Tensor spikes_lower = spikes(), spikes_upper = spikes();
  const Tensor v_lower = membranes(), v_upper = membranes();
  with_state_type(dtype_of(lower), [&]<class F>(F) {
    const auto state = [&](const Tensor& t) {
      return return_membranes ? static_cast<F*>(t.mutable_data_ptr()) : nullptr;
    };
    device.interval(IntervalForward<F>{
        shape_of(lower, low, layout, timesteps), time_stride(high),
        bounded_dynamics<F>(decay, threshold, reset, v_reset, strict, layout, lower),
        static_cast<F>(v_init), low.const_data_ptr(), high.const_data_ptr(),
        spikes_lower.mutable_data_ptr(), spikes_upper.mutable_data_ptr(), state(v_lower),
        state(v_upper)});
  });
  return {spikes_lower, spikes_upper, v_lower, v_upper};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> interval_lif_backward_op(
    const Tensor& grad_spikes_lower, const Tensor& grad_spikes_upper,
    const OptionalTensor& grad_v_lower, const OptionalTensor& grad_v_upper, const Tensor& lower,
    const Tensor& upper, const Tensor& decay, const Tensor& threshold, double v_init, int64_t reset,
    double v_reset, bool strict, int64_t surrogate, const std::vector<double>& surrogate_args,
    bool normalized, bool parameter_gradients) {
  const Device device(lower);
  const StepLayout layout(lower);
  const ScalarType state_type = state_type_of(lower);
  STD_TORCH_CHECK(surrogate_args.size() == 2, "snnkern: a surrogate takes two numbers, given ",
                  surrogate_args.size());
  const SurrogateChoice choice{
      static_cast<Surrogate>(surrogate), {surrogate_args[0], surrogate_args[1]}, normalized};
  check_known(choice);
  STD_TORCH_CHECK(choice.kind != Surrogate::kSpikeTime, "snnkern: bounds have no spike times");
  for (const Tensor* t : {&upper, &grad_spikes_lower, &grad_spikes_upper}) {
    check_like(*t, lower, lower.scalar_type(), layout);
  }
  const Tensor low = layout.steps(lower), high = layout.steps(upper);
  const Tensor grads_low = layout.steps(grad_spikes_lower);
  const Tensor grads_high = layout.steps(grad_spikes_upper);
  const auto of_membranes = [&](const OptionalTensor& t) -> OptionalTensor {
    if (!t) return std::nullopt;
    check_like(*t, lower, state_type, layout);
    return layout.steps(*t);
  };
  const OptionalTensor grads_v_low = of_membranes(grad_v_lower);
  const OptionalTensor grads_v_high = of_membranes(grad_v_upper);
  const int64_t timesteps = lower.size(0);
  const Tensor out_low = layout.empty_steps(timesteps, lower.scalar_type(), lower);
  const Tensor out_high = layout.empty_steps(timesteps, lower.scalar_type(), lower);
  const auto like = [&](const Tensor& t) {
    return parameter_gradients ? torch::stable::empty_like(t) : nothing(state_type, lower);
  };
  const Tensor grad_decay = like(decay), grad_threshold = like(threshold);
  with_state_type(dtype_of(lower), [&]<class F>(F) {
    const LifDynamics<F> dynamics =
        bounded_dynamics<F>(decay, threshold, reset, v_reset, strict, layout, lower);
    const Sums<F, Device> decays(device, dynamics.decay, parameter_gradients, layout, lower);
    const Sums<F, Device> thresholds(device, dynamics.threshold, parameter_gradients, layout,
                                     lower);
    const auto steps_or_none = [](const OptionalTensor& t) {
      return t ? steps_of(*t) : Steps{nullptr, 0};
    };
    device.interval_backward(IntervalBackward<F>{
        shape_of(lower, low, layout, timesteps),
        dynamics,
        static_cast<F>(v_init),
        {steps_of(low), steps_of(high)},
        {steps_of(grads_low), steps_of(grads_high)},
        {steps_or_none(grads_v_low), steps_or_none(grads_v_high)},
        choice,
        {out_low.mutable_data_ptr(), out_high.mutable_data_ptr()},
        decays.data(),
        thresholds.data(),
    });
    decays.reduce_to(grad_decay);
    thresholds.reduce_to(grad_threshold);
  });
  return {out_low, out_high, grad_decay, grad_threshold};
}

// [R, T, ...] with its steps in the layout, one after the other: itself where they are, else a
// copy.
inline Tensor stacked(const Tensor& rows, const StepLayout& layout, int64_t timesteps,
                      ScalarType dtype, const Tensor& like, bool copy) {
  std::vector<int64_t> sizes{rows.sizes().begin(), rows.sizes().end()};
  const Tensor step = layout.empty_step(dtype, like);
  std::vector<int64_t> strides{timesteps * layout.numel(), layout.numel()};
  strides.insert(strides.end(), step.strides().begin(), step.strides().end());
  sizes[1] = timesteps;
  if (copy && layout.holds(rows, 2) && rows.stride(0) == strides[0] &&
      rows.stride(1) == strides[1]) {
    return rows;
  }
  Tensor out = empty_strided(sizes, strides, dtype, like);
  if (copy) torch::stable::copy_(out, rows);
  return out;
}

// What relax_lif is given, in the layout of the membranes.
struct StackedRows {
  const Tensor& v_lower;
  StepLayout layout;
  int64_t timesteps;
  ScalarType dtype;
  Tensor low, high, weights;
  OptionalTensor slopes, after;

  StackedRows(const Tensor& rows, const Tensor& v_lower, const Tensor& v_upper, int64_t slope,
              const OptionalTensor& slopes, const OptionalTensor& after)
      : v_lower(v_lower),
        layout(v_lower),
        timesteps(v_lower.size(0)),
        dtype(v_lower.scalar_type()),
        low(layout.steps(v_lower)),
        high(layout.steps(checked(v_upper, v_lower, layout))),
        weights(like(rows, rows)) {
    STD_TORCH_CHECK(slope >= 0 && slope <= static_cast<int64_t>(Slope::kMixed) &&
                        (slope >= static_cast<int64_t>(Slope::kGiven)) == slopes.has_value(),
                    "snnkern: unknown slope ", slope, ", or slopes that do not fit it");
    if (slopes) this->slopes = like(*slopes, rows);
    if (after) {
      STD_TORCH_CHECK(after->scalar_type() == dtype && layout.has_shape_of(*after, 1) &&
                          after->size(0) == rows.size(0),
                      "snnkern: weights of the membrane after need the dtype and shape of a step "
                      "of the rows");
      this->after = stacked(torch::stable::unsqueeze(*after, 1), layout, 1, dtype, v_lower, true);
    }
  }

  static const Tensor& checked(const Tensor& v_upper, const Tensor& v_lower,
                               const StepLayout& layout) {
    check_like(v_upper, v_lower, v_lower.scalar_type(), layout);
    return v_upper;
  }

  // A tensor shaped like the rows.
  Tensor like(const Tensor& t, const Tensor& rows) const {
    STD_TORCH_CHECK(state_type_of(v_lower) == dtype && t.scalar_type() == dtype &&
                        layout.has_shape_of(t, 2) && t.size(0) == rows.size(0) &&
                        t.size(1) == timesteps,
                    "snnkern: rows and slopes need the dtype and shape of the membranes, for every "
                    "row");
    return stacked(t, layout, timesteps, dtype, v_lower, true);
  }

  // An uninitialised one.
  Tensor empty() const { return stacked(weights, layout, timesteps, dtype, v_lower, false); }

  LifShape shape() const { return shape_of(v_lower, low, layout, timesteps); }
};

template <class Device>
std::tuple<Tensor, Tensor> relax_lif_op(const Tensor& rows, const Tensor& v_lower,
                                        const Tensor& v_upper, const Tensor& decay,
                                        const Tensor& threshold, double v_init, int64_t reset,
                                        double v_reset, bool strict, int64_t slope,
                                        const OptionalTensor& slopes, const OptionalTensor& after) {
  const Device device(v_lower);
  const StackedRows given(rows, v_lower, v_upper, slope, slopes, after);
  const StepLayout& layout = given.layout;
  const Tensor lines = given.empty();
  const Tensor biases = stacked(rows, layout, 1, ScalarType::Double, v_lower, false);
  const Tensor bias = torch::stable::select(biases, 1, 0);
  with_state_type(dtype_of(v_lower), [&]<class F>(F) {
    device.relax(Relaxation<F>{
        given.shape(),
        bounded_dynamics<F>(decay, threshold, reset, v_reset, strict, layout, v_lower),
        static_cast<F>(v_init),
        {steps_of(given.low), steps_of(given.high)},
        rows.size(0),
        static_cast<Slope>(slope),
        static_cast<const F*>(given.weights.const_data_ptr()),
        data_or_null<F>(given.after),
        data_or_null<F>(given.slopes),
        static_cast<F*>(lines.mutable_data_ptr()),
        static_cast<double*>(biases.mutable_data_ptr()),
    });
  });
  return {lines, bias};
}

// Values per row and neuron [R, ...] as a parameter of the first row: one per sample where a sum
// over neurons has expanded them, else one per neuron, in the layout.
inline Tensor per_sample_or_neuron(const Tensor& t, const StepLayout& layout, const Tensor& like) {
  bool expanded = t.dim() > 2;
  for (int64_t d = 2; d < t.dim(); ++d) expanded = expanded && (t.size(d) == 1 || t.stride(d) == 0);
  if (!expanded) {
    return stacked(torch::stable::unsqueeze(t, 1), layout, 1, ScalarType::Double, like, true);
  }
  Tensor narrow = t;
  for (int64_t d = 2; d < t.dim(); ++d) narrow = torch::stable::select(narrow, 2, 0);
  return torch::stable::contiguous(narrow);
}

using LineGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class Device>
LineGradients relax_lif_backward_op(const Tensor& grad_lines, const Tensor& grad_bias,
                                    const Tensor& rows, const Tensor& lines, const Tensor& v_lower,
                                    const Tensor& v_upper, const Tensor& decay,
                                    const Tensor& threshold, double v_init, int64_t reset,
                                    double v_reset, bool strict, int64_t slope,
                                    const OptionalTensor& slopes, const OptionalTensor& after,
                                    bool parameter_gradients) {
  const Device device(v_lower);
  const StackedRows given(rows, v_lower, v_upper, slope, slopes, after);
  const StepLayout& layout = given.layout;
  STD_TORCH_CHECK(grad_bias.scalar_type() == ScalarType::Double &&
                      layout.has_shape_of(grad_bias, 1) && grad_bias.size(0) == rows.size(0),
                  "snnkern: the gradient of a bias needs its shape, in float64");
  const Tensor line = given.like(lines, rows), of_lines = given.like(grad_lines, rows);
  const Tensor of_bias = per_sample_or_neuron(grad_bias, layout, v_lower);
  const int64_t of_a_row = of_bias.numel() / rows.size(0);
  const bool per_neuron = of_bias.dim() > 2;
  const auto none = [&] { return nothing(given.dtype, v_lower); };
  const Tensor of_rows = given.empty();
  const Tensor of_slopes = slopes ? given.empty() : none();
  const Tensor of_after = after ? stacked(rows, layout, 1, given.dtype, v_lower, false) : none();
  const Tensor of_low = layout.empty_steps(given.timesteps, given.dtype, v_lower);
  const Tensor of_high = layout.empty_steps(given.timesteps, given.dtype, v_lower);
  const auto like = [&](const Tensor& t) {
    return parameter_gradients ? torch::stable::empty_like(t) : nothing(given.dtype, v_lower);
  };
  const Tensor of_decay = like(decay), of_threshold = like(threshold);
  with_state_type(dtype_of(v_lower), [&]<class F>(F) {
    const LifDynamics<F> dynamics =
        bounded_dynamics<F>(decay, threshold, reset, v_reset, strict, layout, v_lower);
    const Sums<F, Device> decays(device, dynamics.decay, parameter_gradients, layout, v_lower);
    const Sums<F, Device> thresholds(device, dynamics.threshold, parameter_gradients, layout,
                                     v_lower);
    const auto data = [](const Tensor& t) { return static_cast<F*>(t.mutable_data_ptr()); };
    device.relax_backward(RelaxationBackward<F>{
        given.shape(),
        dynamics,
        static_cast<F>(v_init),
        {steps_of(given.low), steps_of(given.high)},
        rows.size(0),
        static_cast<Slope>(slope),
        static_cast<const F*>(given.weights.const_data_ptr()),
        data_or_null<F>(given.after),
        data_or_null<F>(given.slopes),
        static_cast<const F*>(line.const_data_ptr()),
        static_cast<const F*>(of_lines.const_data_ptr()),
        {static_cast<const double*>(of_bias.const_data_ptr()), of_a_row,
         per_neuron ? 1 : layout.sample_stride()},
        of_a_row,
        data(of_rows),
        {data(of_low), data(of_high)},
        data(of_slopes),
        data(of_after),
        decays.data(),
        thresholds.data(),
    });
    decays.reduce_to(of_decay);
    thresholds.reduce_to(of_threshold);
  });
  return {of_rows,
          of_low,
          of_high,
          of_decay,
          of_threshold,
          of_slopes,
          after ? torch::stable::select(of_after, 1, 0) : of_after};
}

template <class Device, class Library>
void register_bounds(Library& m) {
  m.impl("interval_lif_forward", TORCH_BOX(&interval_lif_forward_op<Device>));
  m.impl("interval_lif_backward", TORCH_BOX(&interval_lif_backward_op<Device>));
  m.impl("relax_lif", TORCH_BOX(&relax_lif_op<Device>));
  m.impl("relax_lif_backward", TORCH_BOX(&relax_lif_backward_op<Device>));
}

}  // namespace snnkern
