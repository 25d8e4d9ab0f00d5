#include "lif.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <memory>
#include <new>
#include <numeric>

#include "clones.h"

namespace snnkern::cpu {
namespace {

constexpr std::int64_t kCacheLine = 64;
// Long rows: at every new row of a tensor the processor's prefetching starts over. Rows that are
// converted pass through buffers, which should stay in the first caches.
constexpr std::int64_t kLargestTile = 32768;
constexpr std::int64_t kLargestConvertedTile = 4096;
constexpr std::int64_t kStatesKept = 1 << 20;  // of the neurons of a tile over all steps
constexpr std::int64_t kSmallestTile = 256;
constexpr std::int64_t kTilesWanted = 16;  // enough to share out among threads where rows are short

// Working memory that a thread keeps between calls: fresh pages would cost more than the kernel.
class Scratch {
 public:
  template <class F>
  F* numbers(std::int64_t count) {
    const std::size_t bytes = sizeof(F) * static_cast<std::size_t>(count);
    if (bytes > size_) {
      memory_.reset(static_cast<std::byte*>(::operator new(bytes, std::align_val_t(kCacheLine))));
      size_ = bytes;
    }
    return reinterpret_cast<F*>(memory_.get());
  }

  static Scratch& of_this_thread() {
    static thread_local Scratch scratch;
    return scratch;
  }

 private:
  struct Free {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t(kCacheLine)); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::size_t size_ = 0;
};

// The neurons of a tile: one and the same for all, or rows of parameters. `kUniform` decides at
// compile time, so that the usual case keeps its constants in registers.
template <class F, bool kUniform>
struct Neurons {
  static constexpr std::int64_t kRows = 4;

  const F* leak;
  const F* threshold;
  const F* fire_at;
  const F* inverse;  // 1 / threshold
  F v_reset;

  SNN_HD Neuron<F> operator[](std::int64_t i) const {
    const std::int64_t j = kUniform ? 0 : i;
    return {leak[j], threshold[j], fire_at[j], v_reset};
  }
  SNN_HD SurrogateArgument<F> argument(std::int64_t i, bool normalized) const {
    const std::int64_t j = kUniform ? 0 : i;
    return SurrogateArgument<F>::of(threshold[j], inverse[j], normalized);
  }
};

template <class F>
void fill_row(const Parameter<F>& parameter, std::int64_t begin, std::int64_t end, F* row) {
  parameter.for_each_stretch(
      begin, end, [&](std::int64_t index, std::int64_t p, std::int64_t stop) {
        std::fill(row + (p - begin), row + (stop - begin), parameter.data[index]);
      });
}

// Fills rows, `length` apart, with the parameters of neurons [begin, end).
template <class F>
Neurons<F, false> gather_neurons(const LifDynamics<F>& dynamics, std::int64_t begin,
                                 std::int64_t end, std::int64_t length, F* rows) {
  F* const leak = rows;
  F* const threshold = rows + length;
  F* const fire_at = rows + 2 * length;
  F* const inverse = rows + 3 * length;
  fill_row(dynamics.leak, begin, end, leak);
  fill_row(dynamics.threshold, begin, end, threshold);
  for (std::int64_t i = 0; i < end - begin; ++i) {
    fire_at[i] = dynamics.strict ? std::nextafter(threshold[i], std::numeric_limits<F>::infinity())
                                 : threshold[i];
    inverse[i] = F(1) / threshold[i];
  }
  return {leak, threshold, fire_at, inverse, dynamics.v_reset};
}

// Steps that a block takes with the state in registers; the state is written down between blocks.
constexpr std::int64_t kBlock = 4;

// A tile of neurons, and the cut of its time into blocks: blocks of kBlock steps where the neurons
// share their parameters (compiled for float), then single steps.
template <class F>
class Tile {
 public:
  static constexpr std::int64_t kRows = Neurons<F, false>::kRows;

  // `rows`: working memory, kRows of `length`.
  Tile(const LifDynamics<F>& dynamics, std::int64_t timesteps, std::int64_t begin, std::int64_t end,
       std::int64_t length, F* rows)
      : timesteps_(timesteps), whole_(0) {
    const bool uniform = dynamics.leak.count == 1 && dynamics.threshold.count == 1;
    if (std::is_same_v<F, float> && uniform) whole_ = timesteps / kBlock * kBlock;
    const std::int64_t filled = whole_ == timesteps ? 1 : end - begin;
    each_ = gather_neurons(dynamics, begin, begin + filled, length, rows);
    shared_ = {each_.leak, each_.threshold, each_.fire_at, each_.inverse, each_.v_reset};
  }

  // The neurons one by one; only the first is filled in where `uniform`.
  const Neurons<F, false>& each() const { return each_; }
  bool uniform() const { return whole_ == timesteps_; }

  std::int64_t blocks() const { return whole_ / kBlock + (timesteps_ - whole_); }

  // Calls f(neurons, steps, t) for block number `block`.
  template <class Call>
  void visit(std::int64_t block, Call&& f) const {
    if constexpr (std::is_same_v<F, float>) {
      if (block < whole_ / kBlock) return f(shared_, Constant<kBlock>{}, block * kBlock);
    }
    f(each_, Constant<std::int64_t{1}>{}, whole_ + block - whole_ / kBlock);
  }

 private:
  std::int64_t timesteps_, whole_;
  Neurons<F, false> each_;
  Neurons<F, true> shared_;
};

// kSteps steps of a row of neurons, from the carried state u_in to u_out. Rows of x and of spikes
// lie `x_step` and `spikes_step` apart. Without kSpikes only the state moves on.
template <Reset kReset, std::int64_t kSteps, bool kSpikes, class F, bool kUniform>
SNN_CLONES void step_rows(std::int64_t n, const Neurons<F, kUniform> neurons, const F* __restrict x,
                          std::int64_t x_step, const F* u_in, F* u_out, F* __restrict spikes,
                          std::int64_t spikes_step) {
  const Neuron<F> shared = neurons[0];
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) {
    const Neuron<F> neuron = kUniform ? shared : neurons[i];
    F u = u_in[i];
#pragma GCC unroll 4
    for (std::int64_t k = 0; k < kSteps; ++k) {
      const F v = charge<kReset>(u, x[i + k * x_step], neuron);
      const bool s = fires(v, neuron);
      u = reset<kReset>(v, s, neuron);
      if constexpr (kSpikes) spikes[i + k * spikes_step] = s ? F(1) : F(0);
    }
    u_out[i] = u;
  }
}

// The rows that a block of the backward scan works on.
template <class F>
struct GradientRows {
  const F *x, *u, *gs;  // currents; the state before the block; dL/ds
  F* gx;                // dL/dx
  F* grad_v;            // dL/dv of the step after the block; becomes that of its first step
  F *grad_leak, *grad_threshold;  // sums over time
  std::int64_t x_step, gs_step, gx_step;
};

// kSteps steps of the backward scan over a row of neurons: the membranes are recomputed going
// forward, then the gradient goes back. `after_end`: grad_v holds dL/du of the last step instead.
template <Reset kReset, bool kParameterGradients, std::int64_t kSteps, class F, bool kUniform,
          class Derivative>
SNN_CLONES void step_gradient_rows(std::int64_t n, const Neurons<F, kUniform> neurons,
                                   const Derivative derivative, const F attached,
                                   const bool normalized, const bool after_end,
                                   const GradientRows<F> rows) {
  const F* __restrict x = rows.x;
  const F* __restrict u_in = rows.u;
  const F* __restrict gs = rows.gs;
  F* __restrict gx = rows.gx;
  F* __restrict grad_v = rows.grad_v;
  F* __restrict grad_leak = rows.grad_leak;
  F* __restrict grad_threshold = rows.grad_threshold;
  const std::int64_t x_step = rows.x_step, gs_step = rows.gs_step, gx_step = rows.gx_step;
  const Neuron<F> shared = neurons[0];
  const SurrogateArgument<F> shared_z = neurons.argument(0, normalized);
  const F share = after_end ? F(0) : F(1);
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) {
    const Neuron<F> neuron = kUniform ? shared : neurons[i];
    const SurrogateArgument<F> z = kUniform ? shared_z : neurons.argument(i, normalized);
    // All is read before anything is written: rows of different tensors often lie a multiple of 4
    // KB apart, where the processor takes a read for one of what was just written.
    F v[kSteps], g_spike[kSteps], g_x[kSteps];
    F u = u_in[i];
#pragma GCC unroll 4
    for (std::int64_t k = 0; k < kSteps; ++k) {
      g_spike[k] = gs[i + k * gs_step];
      v[k] = charge<kReset>(u, x[i + k * x_step], neuron);
      u = reset<kReset>(v[k], fires(v[k], neuron), neuron);
    }
    F gu = (after_end ? F(1) : neuron.leak) * grad_v[i];
    F g_next = share * grad_v[i];
    F leak = F(0), threshold = F(0);
#pragma GCC unroll 4
    for (std::int64_t k = kSteps - 1; k >= 0; --k) {
      const StepGradient<F> g =
          step_gradient<kReset>(v[k], g_spike[k], gu, g_next, attached, neuron, z, derivative);
      g_next = g.v;
      gu = neuron.leak * g_next;
      leak += g.leak;
      threshold += g.threshold;
      g_x[k] = g.v;
    }
#pragma GCC unroll 4
    for (std::int64_t k = 0; k < kSteps; ++k) gx[i + k * gx_step] = g_x[k];
    grad_v[i] = g_next;
    if constexpr (kParameterGradients) {
      grad_leak[i] += leak;
      grad_threshold[i] += threshold;
    }
  }
}

// BPTR: the layer passes the gradient of a neuron's rate on to its current at every step, where the
// neuron fired at all. Nothing depends on time; state and parameters get no gradient.
template <class F>
SNN_CLONES void rate_gate_row(std::int64_t n, const F* __restrict fired, const F* __restrict gs,
                              F* __restrict gx) {
  for (std::int64_t i = 0; i < n; ++i) gx[i] = fired[i] > F(0) ? gs[i] : F(0);
}

template <class F>
SNN_CLONES void largest_row(std::int64_t n, const F* __restrict row, F* __restrict largest) {
  for (std::int64_t i = 0; i < n; ++i) largest[i] = row[i] > largest[i] ? row[i] : largest[i];
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

// Working memory for one tile, row by row.
template <class F>
class Rows {
 public:
  Rows(std::int64_t length, std::int64_t count)
      : next_(Scratch::of_this_thread().numbers<F>(length * count)), length_(length) {}
  F* take(std::int64_t count = 1) {
    F* const rows = next_;
    next_ += count * length_;
    return rows;
  }

 private:
  F* next_;
  std::int64_t length_;
};

template <class F>
void start_from(const F* v_init, std::int64_t begin, std::int64_t n, F* u) {
  if (v_init) {
    std::copy_n(v_init + begin, n, u);
  } else {
    std::fill_n(u, n, F(0));
  }
}

}  // namespace

Tiling Tiling::of(const LifShape& shape) {
  const bool converted = shape.dtype == Dtype::kFloat16 || shape.dtype == Dtype::kBFloat16;
  const std::int64_t largest =
      std::min(converted ? kLargestConvertedTile : kLargestTile, kStatesKept / shape.timesteps);
  const std::int64_t share = (shape.neurons + kTilesWanted - 1) / kTilesWanted;
  const std::int64_t size = std::clamp(share, kSmallestTile, std::max(largest, kSmallestTile));
  return {shape.neurons, (size + kCacheLine - 1) / kCacheLine * kCacheLine};
}

template <class F>
void lif_forward(const LifForward<F>& p, const Tiling& tiling, std::int64_t first,
                 std::int64_t last) {
  const auto [dtype, T, N, x_step] = p.shape;
  const std::int64_t length = tiling.size;
  Rows<F> rows(length, 1 + 2 * kBlock + Tile<F>::kRows);
  F* const u = rows.take();
  F* const x_buffer = rows.take(kBlock);
  F* const s_buffer = rows.take(kBlock);
  F* const parameters = rows.take(Tile<F>::kRows);
  with_reset(p.dynamics.reset, [&]<Reset kReset>(Constant<kReset>) {
    for (std::int64_t index = first; index < last; ++index) {
      const std::int64_t begin = index * length;
      const std::int64_t n = std::min(length, N - begin);
      const Tile<F> tile(p.dynamics, T, begin, begin + n, length, parameters);
      start_from(p.v_init, begin, n, u);
      for (std::int64_t block = 0; block < tile.blocks(); ++block) {
        tile.visit(block, [&](const auto& neurons, auto steps, std::int64_t t) {
          const std::int64_t to = t * N + begin;
          const auto x = load_rows(dtype, p.x, t * x_step + begin, x_step, steps, n, x_buffer);
          const auto s = target_rows(dtype, p.spikes, to, N, n, s_buffer);
          step_rows<kReset, steps, true>(n, neurons, x.data, x.step, u, u, s.data, s.step);
          store_rows(dtype, s, p.spikes, to, N, steps, n);
        });
      }
      if (p.state) std::copy_n(u, n, p.state + begin);
    }
  });
}

namespace {

// The working memory of a tile in the backward pass.
template <class F>
struct BackwardRows {
  F *states, *x, *gs, *gx, *grad_v, *grad_leak, *grad_threshold, *parameters;

  BackwardRows(std::int64_t timesteps, std::int64_t length) {
    Rows<F> rows(length, timesteps + 3 * kBlock + 3 + Tile<F>::kRows);
    states = rows.take(timesteps);  // before every block; there are never more blocks than steps
    x = rows.take(kBlock);
    gs = rows.take(kBlock);
    gx = rows.take(kBlock);
    grad_v = rows.take();
    grad_leak = rows.take();
    grad_threshold = rows.take();
    parameters = rows.take(Tile<F>::kRows);
  }
};

// Backpropagation through time over one tile.
template <Reset kReset, class F, class Derivative>
void scan_back(const LifBackward<F>& p, const Tile<F>& tile, const Derivative& derivative,
               std::int64_t length, std::int64_t begin, std::int64_t n,
               const BackwardRows<F>& rows) {
  const auto [dtype, T, N, x_step] = p.shape;
  const bool parameter_gradients = p.neuron_grad_leak || p.neuron_grad_threshold;
  const F attached = p.detach_reset ? F(0) : F(1);
  const std::int64_t blocks = tile.blocks();
  start_from(p.v_init, begin, n, rows.states);
  for (std::int64_t block = 0; block + 1 < blocks; ++block) {
    tile.visit(block, [&](const auto& neurons, auto steps, std::int64_t t) {
      const auto x = load_rows(dtype, p.x, t * x_step + begin, x_step, steps, n, rows.x);
      F* const state = rows.states + block * length;
      step_rows<kReset, steps, false>(n, neurons, x.data, x.step, state, state + length,
                                      static_cast<F*>(nullptr), 0);
    });
  }
  start_from(p.grad_state, begin, n, rows.grad_v);
  std::fill_n(rows.grad_leak, n, F(0));
  std::fill_n(rows.grad_threshold, n, F(0));
  for (std::int64_t block = blocks - 1; block >= 0; --block) {
    const bool after_end = p.grad_state && block == blocks - 1;
    tile.visit(block, [&](const auto& neurons, auto steps, std::int64_t t) {
      const std::int64_t to = t * N + begin;
      const auto x = load_rows(dtype, p.x, t * x_step + begin, x_step, steps, n, rows.x);
      const auto gs =
          load_rows(dtype, p.grad_spikes, t * p.grad_step + begin, p.grad_step, steps, n, rows.gs);
      const auto gx = target_rows(dtype, p.grad_x, to, N, n, rows.gx);
      const GradientRows<F> at{
          x.data,         rows.states + block * length, gs.data, gx.data, rows.grad_v,
          rows.grad_leak, rows.grad_threshold,          x.step,  gs.step, gx.step};
      // Single steps are rare enough not to be compiled without parameter gradients as well.
      with_bool(parameter_gradients || steps == 1, [&]<bool kGradients>(Constant<kGradients>) {
        if constexpr (kGradients || steps != 1) {
          step_gradient_rows<kReset, kGradients, steps>(n, neurons, derivative, attached,
                                                        p.normalized, after_end, at);
        }
      });
      store_rows(dtype, gx, p.grad_x, to, N, steps, n);
    });
  }
  if (!p.grad_v_init && !parameter_gradients) return;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t j = tile.uniform() ? 0 : i;
    const Neuron<F> neuron = tile.each()[j];
    const F u = p.v_init ? p.v_init[begin + i] : F(0);
    const F g_next = rows.grad_v[i];
    StepGradient<F> g{neuron.leak * g_next, g_next * u, F(0)};
    if constexpr (kReset == Reset::kDelayedSoft) {
      // The state before the first step is looked at by the first reset, like a step without spike.
      g = step_gradient<kReset>(u, F(0), neuron.leak * g_next, g_next, attached, neuron,
                                tile.each().argument(j, p.normalized), derivative);
    }
    if (p.grad_v_init) p.grad_v_init[begin + i] = g.v;
    if (p.neuron_grad_leak) p.neuron_grad_leak[begin + i] = rows.grad_leak[i] + g.leak;
    if (p.neuron_grad_threshold) {
      p.neuron_grad_threshold[begin + i] = rows.grad_threshold[i] + g.threshold;
    }
  }
}

// Backpropagation through the rate over one tile.
template <Reset kReset, class F>
void gate_by_rate(const LifBackward<F>& p, const Tile<F>& tile, std::int64_t begin, std::int64_t n,
                  const BackwardRows<F>& rows) {
  const auto [dtype, T, N, x_step] = p.shape;
  F* const fired = rows.grad_v;
  std::fill_n(fired, n, F(0));
  start_from(p.v_init, begin, n, rows.states);
  for (std::int64_t block = 0; block < tile.blocks(); ++block) {
    tile.visit(block, [&](const auto& neurons, auto steps, std::int64_t t) {
      const auto x = load_rows(dtype, p.x, t * x_step + begin, x_step, steps, n, rows.x);
      step_rows<kReset, steps, true>(n, neurons, x.data, x.step, rows.states, rows.states, rows.gs,
                                     n);
      for (std::int64_t k = 0; k < steps; ++k) largest_row(n, rows.gs + k * n, fired);
    });
  }
  for (std::int64_t t = 0; t < T; ++t) {
    const std::int64_t to = t * N + begin;
    const auto gs =
        load_rows(dtype, p.grad_spikes, t * p.grad_step + begin, p.grad_step, 1, n, rows.gs);
    const auto gx = target_rows(dtype, p.grad_x, to, N, n, rows.gx);
    rate_gate_row(n, fired, gs.data, gx.data);
    store_rows(dtype, gx, p.grad_x, to, N, 1, n);
  }
  for (F* const none : {p.grad_v_init, p.neuron_grad_leak, p.neuron_grad_threshold}) {
    if (none) std::fill_n(none + begin, n, F(0));
  }
}

}  // namespace

template <class F>
void lif_backward(const LifBackward<F>& p, const Tiling& tiling, std::int64_t first,
                  std::int64_t last) {
  const auto [dtype, T, N, x_step] = p.shape;
  const std::int64_t length = tiling.size;
  const BackwardRows<F> rows(T, length);
  with_reset(p.dynamics.reset, [&]<Reset kReset>(Constant<kReset>) {
    for (std::int64_t index = first; index < last; ++index) {
      const std::int64_t begin = index * length;
      const std::int64_t n = std::min(length, N - begin);
      const Tile<F> tile(p.dynamics, T, begin, begin + n, length, rows.parameters);
      const bool has_derivative =
          with_surrogate<F>(p.surrogate, p.surrogate_args, [&](const auto& derivative) {
            scan_back<kReset>(p, tile, derivative, length, begin, n, rows);
          });
      if (!has_derivative) gate_by_rate<kReset>(p, tile, begin, n, rows);
    }
  });
}

template <class F>
void reduce_to_parameter(const F* neuron_grad, std::int64_t neurons, std::int64_t count,
                         std::int64_t repeat, F* grad) {
  const auto sums = std::make_unique<double[]>(static_cast<std::size_t>(count));
  const Parameter<F> parameter{nullptr, count, repeat};
  parameter.for_each_stretch(
      0, neurons, [&](std::int64_t index, std::int64_t p, std::int64_t stop) {
        sums[static_cast<std::size_t>(index)] += sum(neuron_grad + p, stop - p);
      });
  std::transform(sums.get(), sums.get() + count, grad, [](double total) { return F(total); });
}

template void lif_forward(const LifForward<float>&, const Tiling&, std::int64_t, std::int64_t);
template void lif_forward(const LifForward<double>&, const Tiling&, std::int64_t, std::int64_t);
template void lif_backward(const LifBackward<float>&, const Tiling&, std::int64_t, std::int64_t);
template void lif_backward(const LifBackward<double>&, const Tiling&, std::int64_t, std::int64_t);
template void reduce_to_parameter(const float*, std::int64_t, std::int64_t, std::int64_t, float*);
template void reduce_to_parameter(const double*, std::int64_t, std::int64_t, std::int64_t, double*);

}  // namespace snnkern::cpu
