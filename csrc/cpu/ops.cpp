// The CPU kernels as operators: tiles, threads, registration.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "../bound_ops.h"
#include "../lif_ops.h"
#include "../pack_ops.h"
#include "bounds.h"
#include "lif.h"
#include "pack.h"
#include "tile.h"

namespace snnkern::cpu {
namespace {

constexpr int64_t kElementwiseTile = 8192;
constexpr int64_t kBoundsTile = 2048;
constexpr int64_t kRowsTile = 1024;

template <class Run>
void parallel_tiles(const Tiling& tiling, int64_t timesteps, const Run& run) {
  const int64_t grain = std::max<int64_t>(1, kGrain / (tiling.size * timesteps));
  torch::stable::parallel_for(0, tiling.count(), grain, run);
}

std::vector<SurrogateChoice> choices_of(const Tensor& table) {
  std::vector<SurrogateChoice> choices;
  const auto* row = static_cast<const double*>(table.const_data_ptr());
  for (int64_t i = 0; i < table.size(0); ++i, row += 4) {
    choices.push_back(
        {static_cast<Surrogate>(static_cast<int>(row[0])), {row[1], row[2]}, row[3] != 0});
    check_known(choices.back());
  }
  return choices;
}

// See lif_ops.h.
struct Cpu {
  static constexpr bool kReadsSamplesApart = true;

  explicit Cpu(const Tensor&) {}

  template <class F>
  void forward(const LifForward<F>& p) const {
    const Tiling tiling = tiling_of(p);
    parallel_tiles(tiling, p.shape.timesteps,
                   [&](int64_t first, int64_t last) { lif_forward(p, tiling, first, last); });
  }

  template <class F>
  void backward(LifBackward<F> p, const OptionalTensor& table) const {
    std::vector<SurrogateChoice> choices;
    if (table) {
      choices = choices_of(*table);
      p.surrogates = choices.data();
      p.samples = table->size(0);
    }
    const Tiling tiling = tiling_of(p);
    parallel_tiles(tiling, p.shape.timesteps,
                   [&](int64_t first, int64_t last) { lif_backward(p, tiling, first, last); });
  }

  template <class F>
  void moments(const LifShape& shape, const void* x, const Parameter<F>& centre, F* sum,
               F* square) const {
    const Tiling tiling = Tiling::of(shape, 1, kElementwiseTile);
    parallel_tiles(tiling, shape.timesteps, [&](int64_t first, int64_t last) {
      cpu::moments(shape, x, centre, sum, square, tiling, first, last);
    });
  }

  template <class F>
  void norm_backward(const LifShape& shape, const void* x, const Parameter<F>& mean,
                     const Parameter<F>& from_g, const Parameter<F>& from_x,
                     const Parameter<F>& constant, void* g) const {
    const Tiling tiling = Tiling::of(shape, 1, kElementwiseTile);
    parallel_tiles(tiling, shape.timesteps, [&](int64_t first, int64_t last) {
      cpu::norm_backward(shape, x, mean, from_g, from_x, constant, g, tiling, first, last);
    });
  }

  template <class F>
  void reduce(const F* sums, const Parameter<F>& parameter, int64_t neurons, F* grad) const {
    reduce_to_parameter(sums, neurons, parameter.count, parameter.repeat, grad);
  }

  template <class F>
  void interval(const IntervalForward<F>& p) const {
    const Tiling tiling = Tiling::of(p.shape, 1, kBoundsTile);
    parallel_tiles(tiling, p.shape.timesteps,
                   [&](int64_t first, int64_t last) { interval_forward(p, tiling, first, last); });
  }

  template <class F>
  void interval_backward(const IntervalBackward<F>& p) const {
    const Tiling tiling = Tiling::of(p.shape, 4, kBoundsTile);
    parallel_tiles(tiling, p.shape.timesteps, [&](int64_t first, int64_t last) {
      cpu::interval_backward(p, tiling, first, last);
    });
  }

  template <class F>
  void relax(const Relaxation<F>& p) const {
    const Tiling tiling = Tiling::of(p.shape, 1, kBoundsTile);
    const int64_t grain = std::max<int64_t>(1, kGrain / (tiling.size * p.shape.timesteps));
    torch::stable::parallel_for(
        0, p.rows * tiling.count(), grain,
        [&](int64_t first, int64_t last) { cpu::relax(p, tiling, first, last); });
  }

  template <class F>
  void relax_backward(const RelaxationBackward<F>& p) const {
    const Tiling tiling = Tiling::of(p.shape, 4, kRowsTile);
    parallel_tiles(tiling, p.shape.timesteps * p.rows, [&](int64_t first, int64_t last) {
      cpu::relax_backward(p, tiling, first, last);
    });
  }

  void pack(const BitRows& shape, Dtype dtype, const void* spikes, int64_t step, uint8_t* bits,
            double* stray) const {
    constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
    std::atomic<int64_t> first_stray{kNone};
    parallel_pieces(shape, [&](int64_t first, int64_t last) {
      const int64_t place = pack_spikes(shape, dtype, spikes, step, bits, first, last);
      if (place < 0) return;
      int64_t before = first_stray.load();
      while (place < before && !first_stray.compare_exchange_weak(before, place)) {
      }
    });
    const int64_t place = first_stray.load();
    *stray = place == kNone
                 ? 0.0
                 : value_at(dtype, spikes, place / shape.neurons * step + place % shape.neurons);
  }

  void unpack(const BitRows& shape, Dtype dtype, const uint8_t* bits, void* spikes) const {
    parallel_pieces(shape, [&](int64_t first, int64_t last) {
      unpack_spikes(shape, dtype, bits, spikes, first, last);
    });
  }

 private:
  template <class Run>
  static void parallel_pieces(const BitRows& shape, const Run& run) {
    const int64_t neurons = std::max<int64_t>(1, std::min(shape.neurons, kPiece));
    torch::stable::parallel_for(0, shape.rows * pieces_of_a_row(shape),
                                std::max<int64_t>(1, kGrain / neurons), run);
  }
};

}  // namespace
}  // namespace snnkern::cpu

STABLE_TORCH_LIBRARY_IMPL(snnkern, CPU, m) {
  snnkern::register_lif<snnkern::cpu::Cpu>(m);
  snnkern::register_pack<snnkern::cpu::Cpu>(m);
  snnkern::register_bounds<snnkern::cpu::Cpu>(m);
}
