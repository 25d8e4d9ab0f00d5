// The CPU kernels as operators: tiles, threads, registration.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "../lif_ops.h"
#include "lif.h"

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

std::vector<SurrogateChoice> choices_of(const Tensor& table) {
  std::vector<SurrogateChoice> choices;
  const auto* row = static_cast<const double*>(table.const_data_ptr());
  for (int64_t i = 0; i < table.size(0); ++i, row += 4) {
    choices.push_back(
        {static_cast<Surrogate>(static_cast<int>(row[0])), {row[1], row[2]}, row[3] != 0});
    check_known(choices.back());
    STD_TORCH_CHECK(choices.back().kind != Surrogate::kRate, "snnkern: surrogate ", row[0],
                    " is not one for single samples");
  }
  return choices;
}

// See lif_ops.h.
struct Cpu {
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
};

}  // namespace
}  // namespace snnkern::cpu

STABLE_TORCH_LIBRARY_IMPL(snnkern, CPU, m) { snnkern::register_lif<snnkern::cpu::Cpu>(m); }
