#include "launch.h"
#include "lif.h"
#include "neurons.h"

namespace snnkern::cuda {
namespace {

constexpr int kThreads = 128;

// Writes whether the neurons fired: into bytes eight at a time, else one element each.
template <Dtype kDtype, int kCount>
SNN_HD void store_spikes(const bool (&fired)[kCount], const Place<kCount>& place, Dtype format,
                         void* spikes, std::int64_t offset) {
  if (format == Dtype::kBit) {
    if constexpr (kCount == 8) {
      unsigned bits = 0;
      for (int i = 0; i < kCount; ++i) bits |= unsigned(fired[i] && i < place.present) << i;
      static_cast<std::uint8_t*>(spikes)[(offset + place.first) / 8] =
          static_cast<std::uint8_t>(bits);
    }
  } else if (format == Dtype::kUint8) {
    Pack<std::uint8_t, kCount> pack;
    for (int i = 0; i < kCount; ++i) pack.e[i] = fired[i];
    place.store(pack, static_cast<std::uint8_t*>(spikes) + offset);
  } else {
    using E = Element<kDtype>;
    using F = std::conditional_t<kDtype == Dtype::kFloat64, double, float>;
    Pack<E, kCount> pack;
    for (int i = 0; i < kCount; ++i) {
      pack.e[i] = fired[i] ? to_element<kDtype>(F(1)) : to_element<kDtype>(F(0));
    }
    place.store(pack, static_cast<E*>(spikes) + offset);
  }
}

template <Dtype kDtype, class Neurons, class F>
SNN_HD void forward(const LifForward<F>& p, bool aligned, std::int64_t thread) {
  constexpr int kCount = Neurons::kCount, kBlock = Neurons::kBlock;
  const auto place = Place<kCount>::of(thread, p.shape.neurons, aligned);
  if (place.present <= 0) return;
  const Neurons neurons(p.dynamics, place);
  const Seen<F, kCount> seen(p.affine, place);
  const int T = static_cast<int>(p.shape.timesteps);
  const auto x_from = [&](int t) {
    return Loads<kDtype, kCount, kBlock>::of(place, p.x, p.shape.x_step, t, 1, T - t, T);
  };
  auto next = x_from(0);
  State<F, kCount> state;
  place.load_state(p.v_init, state.u);
  place.load_state(p.current_init, state.c);
  const int delay = p.membranes ? 0 : neurons.delay();
  const auto emit = [&](int t, const F(&v)[kCount]) {
    if (p.membranes) return place.store_state(v, static_cast<F*>(p.spikes) + t * p.spikes_step);
    bool fired[kCount];
    for (int i = 0; i < kCount; ++i) fired[i] = fires(v[i], neurons.neuron(i));
    store_spikes<kDtype>(fired, place, p.spike_dtype, p.spikes, t * p.spikes_step);
  };
  // A delayed spike leaves one step late: the first row is what the state before the first step
  // fires, the last spikes are seen by nobody.
  if (delay) emit(0, state.u);
  for (int t = 0; t < T; t += kBlock) {
    const auto loads = next;
    if (t + kBlock < T) next = x_from(t + kBlock);
#pragma unroll
    for (int k = 0; k < kBlock; ++k) {
      if (t + k >= T) break;
      F x[kCount], v[kCount];
      loads.get(k, x);
      seen.apply(x);
      step(neurons, x, state, v);
      if (t + k + delay < T) emit(t + k + delay, v);
    }
  }
  place.store_state(state.u, p.state);
  place.store_state(state.c, p.current);
}

template <Dtype kDtype, class Neurons, class F>
__global__ void __launch_bounds__(kThreads) forward_kernel(LifForward<F> p, bool aligned) {
  forward<kDtype, Neurons>(p, aligned, this_thread());
}

template <Dtype kDtype, class Neurons, class F>
cudaError_t run(const LifForward<F>& p, cudaStream_t stream) {
  constexpr int kCount = Neurons::kCount;
  const std::int64_t size = size_of(p.shape.dtype);
  const bool bits = p.spike_dtype == Dtype::kBit;
  const bool aligned =
      loads_as_one(p.x, p.shape.x_step, size, kCount) &&
      (bits || loads_as_one(p.spikes, p.spikes_step, size_of(p.spike_dtype), kCount)) &&
      loads_as_one(p.v_init, 0, sizeof(F), kCount) &&
      loads_as_one(p.current_init, 0, sizeof(F), kCount);
  const std::int64_t threads = (p.shape.neurons + kCount - 1) / kCount;
  return launch(forward_kernel<kDtype, Neurons, F>, threads, kThreads, 0, stream, p, aligned);
}

template <Dtype kDtype, int kCount, class F>
cudaError_t run(const LifForward<F>& p, cudaStream_t stream) {
  if constexpr (std::is_same_v<F, float>) {
    if (fits_plain(p.dynamics)) {
      cudaError_t error = cudaSuccess;
      with_reset(p.dynamics.reset, [&]<Reset kReset>(Constant<kReset>) {
        error = run<kDtype, Plain<F, kCount, kReset>>(p, stream);
      });
      return error;
    }
  }
  return run<kDtype, Any<F, kCount>>(p, stream);
}

}  // namespace

template <>
cudaError_t lif_forward(const LifForward<float>& p, cudaStream_t stream) {
  switch (p.shape.dtype) {
    case Dtype::kFloat16:
      return run<Dtype::kFloat16, 8>(p, stream);
    case Dtype::kBFloat16:
      return run<Dtype::kBFloat16, 8>(p, stream);
    default:
      return p.spike_dtype == Dtype::kBit ? run<Dtype::kFloat32, 8>(p, stream)
                                          : run<Dtype::kFloat32, 4>(p, stream);
  }
}

template <>
cudaError_t lif_forward(const LifForward<double>& p, cudaStream_t stream) {
  return run<Dtype::kFloat64, 8>(p, stream);
}

}  // namespace snnkern::cuda
