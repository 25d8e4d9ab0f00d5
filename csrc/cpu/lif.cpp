#include "lif.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <memory>
#include <numeric>
#include <type_traits>

#include "clones.h"
#include "tile.h"

namespace snnkern::cpu {
namespace {

// Long rows: at every new row of a tensor the processor's prefetching starts over.
constexpr std::int64_t kLargestTile = 32768;
constexpr std::int64_t kLargestStepsTile = 2048;
constexpr std::int64_t kNumbersKept = 1 << 20;  // by a tile, over all its steps
constexpr std::int64_t kSmallestTile = 256;
constexpr std::int64_t kTilesWanted = 16;  // enough to share out among threads

template <class F>
bool fits_blocks(const LifDynamics<F>& d) {
  return std::is_same_v<F, float> && runs_in_blocks(d.charge, d.reset, d.synapse) &&
         !d.delayed_spike && d.decay.count == 1 && d.threshold.count == 1 &&
         d.synapse_decay.count == 1;
}

template <class F>
bool fits_blocks(const LifBackward<F>& p) {
  if (!fits_blocks(p.dynamics)) return false;
  std::int64_t runs = 0;
  bool pointwise = true;
  for_each_surrogate(p, 0, p.shape.neurons,
                     [&](const SurrogateChoice& choice, std::int64_t, std::int64_t) {
                       ++runs;
                       pointwise = pointwise && choice.kind != Surrogate::kSpikeTime;
                     });
  // Where samples lie apart, in short stretches, the step by step kernel is faster.
  return pointwise && (runs == 1 || p.shape.neurons / runs >= kSmallestTile);
}

// The sum of a stretch in an order of its own: eight running sums, so that it vectorises.
template <class F>
double sum(const F* values, std::int64_t n) {
  constexpr std::int64_t kLanes = 8;
  double lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += values[i + lane];
  }
  for (; i < n; ++i) lanes[i % kLanes] += values[i];
  return std::accumulate(std::begin(lanes), std::end(lanes), 0.0);
}

template <class F>
SNN_CLONES void add_to_sums(std::int64_t n, const F* __restrict values, double* __restrict sums) {
  for (std::int64_t i = 0; i < n; ++i) sums[i] += values[i];
}

}  // namespace

Tiling Tiling::of(const LifShape& shape, std::int64_t kept, std::int64_t largest) {
  largest = std::clamp(kNumbersKept / (kept * shape.timesteps), kSmallestTile, largest);
  const std::int64_t share = (shape.neurons + kTilesWanted - 1) / kTilesWanted;
  const std::int64_t size = std::clamp(share, kSmallestTile, largest);
  return {shape.neurons / shape.samples, (size + kCacheLine - 1) / kCacheLine * kCacheLine,
          shape.samples};
}

namespace {

template <class P>
Tiling tiling_of_pass(const P& p, bool in_blocks, std::int64_t kept) {
  return in_blocks ? Tiling::of(p.shape, 1, kLargestTile)
                   : Tiling::of(p.shape, kept, kLargestStepsTile);
}

}  // namespace

template <class F>
Tiling tiling_of(const LifForward<F>& p) {
  return tiling_of_pass(p, fits_blocks(p.dynamics), 1);
}

template <class F>
Tiling tiling_of(const LifBackward<F>& p) {
  return tiling_of_pass(p, fits_blocks(p), 5);
}

namespace {

// A pass over a single one of the samples that lie apart.
template <class Pass>
class Sample {
 public:
  Sample(const Pass& pass, std::int64_t number)
      : p(pass), number_(number), neurons_(pass.shape.neurons / pass.shape.samples) {
    if (pass.shape.samples == 1) return;
    move(p.x, p.shape.dtype, p.shape.x_sample);
    move(p.v_init);
    move(p.current_init);
    move(p.dynamics.decay);
    move(p.dynamics.threshold);
    move(p.dynamics.synapse_decay);
    of_its_own(p);
    p.shape.neurons = neurons_;
    p.shape.samples = 1;
  }

  Pass p;

 private:
  template <class F>
  void of_its_own(LifForward<F>& pass) const {
    move(pass.spikes, pass.spike_dtype, pass.spikes_sample);
    move(pass.state);
    move(pass.current);
  }

  template <class F>
  void of_its_own(LifBackward<F>& pass) const {
    move(pass.grad_spikes, pass.shape.dtype, pass.grad_sample);
    move(pass.grad_state);
    move(pass.grad_current);
    move(pass.grad_x, pass.shape.dtype, pass.grad_x_sample);
    if (pass.derivatives) pass.derivatives += number_ * pass.derivatives_sample;
    move(pass.grad_v_init);
    move(pass.grad_current_init);
    move(pass.neuron_grad_decay);
    move(pass.neuron_grad_threshold);
    move(pass.neuron_grad_synapse);
    if (pass.samples != 1) pass.surrogates += number_;
    pass.samples = 1;
  }

  // A value for each neuron, of all samples.
  template <class F>
  void move(F*& values) const {
    if (values) values += number_ * neurons_;
  }

  template <class F>
  void move(Parameter<F>& parameter) const {
    if (parameter.count == p.shape.neurons) move(parameter.data);
  }

  // A tensor over time.
  template <class Memory>
  void move(Memory*& memory, Dtype dtype, std::int64_t step) const {
    using Byte = std::conditional_t<std::is_const_v<Memory>, const std::byte, std::byte>;
    memory = static_cast<Byte*>(memory) + number_ * step * bytes_of(dtype);
  }

  std::int64_t number_, neurons_;
};

// Calls f(pass over a sample, begin, n) for tiles [first, last).
template <class Pass, class Call>
void for_each_tile(const Pass& p, const Tiling& tiling, std::int64_t first, std::int64_t last,
                   Call&& f) {
  const std::int64_t per_sample = tiling.per_sample();
  for (; first < last; ++first) {
    const std::int64_t begin = first % per_sample * tiling.size;
    f(Sample<Pass>(p, first / per_sample).p, begin, std::min(tiling.size, tiling.neurons - begin));
  }
}

}  // namespace

template <class F>
void lif_forward(const LifForward<F>& p, const Tiling& tiling, std::int64_t first,
                 std::int64_t last) {
  for_each_tile(p, tiling, first, last,
                [&](const LifForward<F>& of_sample, std::int64_t begin, std::int64_t n) {
                  if constexpr (std::is_same_v<F, float>) {
                    if (fits_blocks(p.dynamics)) {
                      return forward_in_blocks(of_sample, begin, n, tiling.size);
                    }
                  }
                  forward_by_steps(of_sample, begin, n, tiling.size);
                });
}

template <class F>
void lif_backward(const LifBackward<F>& p, const Tiling& tiling, std::int64_t first,
                  std::int64_t last) {
  const bool in_blocks = fits_blocks(p);
  for_each_tile(p, tiling, first, last,
                [&](const LifBackward<F>& of_sample, std::int64_t begin, std::int64_t n) {
                  if constexpr (std::is_same_v<F, float>) {
                    if (in_blocks) {
                      return for_each_surrogate(
                          of_sample, begin, begin + n,
                          [&](const SurrogateChoice& choice, std::int64_t from, std::int64_t stop) {
                            LifBackward<F> run = of_sample;
                            run.surrogates = &choice;
                            run.samples = 1;
                            backward_in_blocks(run, from, stop - from, tiling.size);
                          });
                    }
                  }
                  backward_by_steps(of_sample, begin, n, tiling.size);
                });
}

template <class F>
void reduce_to_parameter(const F* neuron_grad, std::int64_t neurons, std::int64_t count,
                         std::int64_t repeat, F* grad) {
  const auto sums = std::make_unique<double[]>(static_cast<std::size_t>(count));
  if (repeat == 1) {  // channels last: neighbours have neighbouring sums
    for (std::int64_t p = 0; p < neurons; p += count) {
      add_to_sums(std::min(count, neurons - p), neuron_grad + p, sums.get());
    }
  } else {
    const Parameter<F> parameter{nullptr, count, repeat};
    parameter.for_each_stretch(
        0, neurons, [&](std::int64_t index, std::int64_t p, std::int64_t stop) {
          sums[static_cast<std::size_t>(index)] += sum(neuron_grad + p, stop - p);
        });
  }
  std::transform(sums.get(), sums.get() + count, grad, [](double total) { return F(total); });
}

template Tiling tiling_of(const LifForward<float>&);
template Tiling tiling_of(const LifForward<double>&);
template Tiling tiling_of(const LifBackward<float>&);
template Tiling tiling_of(const LifBackward<double>&);
template void lif_forward(const LifForward<float>&, const Tiling&, std::int64_t, std::int64_t);
template void lif_forward(const LifForward<double>&, const Tiling&, std::int64_t, std::int64_t);
template void lif_backward(const LifBackward<float>&, const Tiling&, std::int64_t, std::int64_t);
template void lif_backward(const LifBackward<double>&, const Tiling&, std::int64_t, std::int64_t);
template void reduce_to_parameter(const float*, std::int64_t, std::int64_t, std::int64_t, float*);
template void reduce_to_parameter(const double*, std::int64_t, std::int64_t, std::int64_t, double*);

}  // namespace snnkern::cpu
