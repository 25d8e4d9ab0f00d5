// The CPU kernels as operators: tiles, threads, registration.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <limits>
#include <tuple>
#include <vector>

#include "../lif_ops.h"
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
  snnkern::register_lif<snnkern::cpu::Cpu>(m);
  m.impl("pack_spikes", TORCH_BOX(&snnkern::cpu::pack_spikes_op));
  m.impl("unpack_spikes", TORCH_BOX(&snnkern::cpu::unpack_spikes_op));
}
