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
#include "row_sums.h"
#include "spike_conv.h"

namespace snnkern::cpu {
namespace {

// Below this many neuron-steps a thread costs more than it brings.
constexpr int64_t kGrain = 1 << 15;
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

// Of spikes [N, C, H, W] of this size and these strides as bits, and a kernel [height, width].
SpikeConv spike_conv_of(const Tensor& packed, const std::vector<int64_t>& size,
                        const std::vector<int64_t>& strides, const std::vector<int64_t>& kernel,
                        const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                        const std::vector<int64_t>& dilation, int64_t out_channels, int64_t block,
                        const std::vector<int64_t>& pool = {1, 1}) {
  STD_TORCH_CHECK(size.size() == 4 && strides.size() == 4,
                  "snnkern: size and strides of spikes are those of [N, C, H, W]");
  STD_TORCH_CHECK(
      kernel.size() == 2 && stride.size() == 2 && padding.size() == 2 && dilation.size() == 2,
      "snnkern: kernel, stride, padding and dilation are of height and width");
  const auto axis = [&](std::size_t d) {
    STD_TORCH_CHECK(pool[d] > 0 && size[d + 2] % pool[d] == 0,
                    "snnkern: a pool that does not divide the maps");
    const int64_t in = size[d + 2] / pool[d], reach = dilation[d] * (kernel[d] - 1) + 1;
    STD_TORCH_CHECK(kernel[d] > 0 && stride[d] > 0 && padding[d] >= 0 && dilation[d] > 0 &&
                        in + 2 * padding[d] >= reach,
                    "snnkern: a kernel that does not fit the maps");
    const int64_t out = (in + 2 * padding[d] - reach) / stride[d] + 1;
    return ConvAxis{in, out, kernel[d], stride[d], padding[d], dilation[d]};
  };
  const auto lies = [&](std::size_t a, std::size_t b, std::size_t c) {
    const int64_t inner = size[c], middle = size[b];
    return (size[c] == 1 || strides[c] == 1) && (middle == 1 || strides[b] == inner) &&
           (size[a] == 1 || strides[a] == inner * middle);
  };
  const bool channels_last = lies(2, 3, 1);
  STD_TORCH_CHECK(channels_last || lies(1, 2, 3),
                  "snnkern: images of spikes are contiguous, channels first or last");
  const SpikeConv p{size[0],       size[1], out_channels, axis(0), axis(1),
                    channels_last, block,   pool[0],      pool[1]};
  STD_TORCH_CHECK(channels_last || (pool[0] == 1 && pool[1] == 1),
                  "snnkern: what is pooled lies channels last");
  STD_TORCH_CHECK(block > 0 && block % kRowUnit == 0, "snnkern: block is no multiple of ",
                  kRowUnit);
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Byte && packed.is_contiguous() &&
                      packed.dim() == 2 && packed.size(0) == p.images &&
                      packed.size(1) == p.bytes(),
                  "snnkern: packed spikes need a byte for eight neurons of an image, contiguous");
  constexpr int64_t kMost = std::numeric_limits<uint32_t>::max();
  STD_TORCH_CHECK(p.images > 0 && p.channels > 0 && p.out_channels > 0 && p.positions() > 0,
                  "snnkern: spikes and weights are not empty");
  STD_TORCH_CHECK(p.images * p.positions() * pool[0] * pool[1] * p.channels < kMost &&
                      p.channels * p.row() < kMost,
                  "snnkern: more spikes than 32 bits can count");
  return p;
}

const float* floats(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, "snnkern: ", name, " is not of float32");
  return static_cast<const float*>(t.const_data_ptr());
}

class OwnedEvents {
 public:
  // `per_part`: inputs of one part. Count and fill take parts [first, last).
  template <class Count, class Fill>
  OwnedEvents(int64_t parts, int64_t cells, int64_t per_part, const Count& count, const Fill& fill)
      : starts_(std::make_unique<uint32_t[]>(static_cast<std::size_t>(cells) + 1)) {
    const int64_t grain = std::max<int64_t>(1, 4 * kGrain / std::max<int64_t>(1, per_part));
    torch::stable::parallel_for(
        0, parts, grain, [&](int64_t first, int64_t last) { count(starts_.get(), first, last); });
    uint32_t sum = 0;
    for (int64_t cell = 0; cell <= cells; ++cell) sum += std::exchange(starts_[cell], sum);
    offsets_ = std::make_unique_for_overwrite<uint32_t[]>(sum);
    torch::stable::parallel_for(0, parts, grain, [&](int64_t first, int64_t last) {
      fill(starts_.get(), offsets_.get(), first, last);
    });
  }

  Events get() const { return {starts_.get(), offsets_.get()}; }

 private:
  std::unique_ptr<uint32_t[]> starts_, offsets_;
};

Tensor count_spikes_op(const Tensor& packed) {
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Byte && packed.is_contiguous(),
                  "snnkern: packed spikes are bytes, contiguous");
  const Tensor result = empty_strided({}, {}, ScalarType::Long, packed);
  const auto* const bits = static_cast<const uint8_t*>(packed.const_data_ptr());
  std::atomic<int64_t> sum{0};
  torch::stable::parallel_for(0, packed.numel(), kGrain, [&](int64_t first, int64_t last) {
    sum += count_bits(bits, first, last);
  });
  *static_cast<int64_t*>(result.mutable_data_ptr()) = sum;
  return result;
}

Tensor spike_rows_op(const Tensor& weight, int64_t block) {
  STD_TORCH_CHECK(weight.dim() == 4 && weight.is_contiguous() && block > 0 && block % kRowUnit == 0,
                  "snnkern: weight is [K, C, H, W], contiguous, block a multiple of ", kRowUnit);
  SpikeConv p{};
  p.out_channels = weight.size(0), p.channels = weight.size(1), p.block = block;
  p.height.kernel = weight.size(2), p.width.kernel = weight.size(3);
  const float* const from = floats(weight, "weight");
  const int64_t of_block = p.rows_size() / std::max<int64_t>(1, p.blocks());
  const Tensor rows =
      empty_strided({p.blocks(), p.height.kernel, p.channels, p.width.kernel, block},
                    {of_block, p.channels * p.row(), p.row(), block, 1}, ScalarType::Float, weight);
  auto* const to = static_cast<float*>(rows.mutable_data_ptr());
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, of_block));
  torch::stable::parallel_for(0, p.blocks(), grain, [&](int64_t first, int64_t last) {
    spike_rows(p, from, to, first, last);
  });
  return rows;
}

// To `out`, [image, height, width, out_channel].
void convolve(const SpikeConv& p, const uint8_t* bits, const float* rows, const float* bias,
              float* out) {
  const OwnedEvents inputs(
      p.images, p.images * p.positions() * SpikePasses::of(p).groups, p.positions() * p.channels,
      [&](uint32_t* counts, int64_t first, int64_t last) {
        count_inputs(p, bits, counts, first, last);
      },
      [&](const uint32_t* starts, uint32_t* offsets, int64_t first, int64_t last) {
        fill_inputs(p, bits, starts, offsets, first, last);
      });
  const int64_t work = p.positions() * p.channels * p.height.kernel * p.row() / 16;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, work));
  torch::stable::parallel_for(0, p.blocks() * p.images, grain, [&](int64_t first, int64_t last) {
    spike_conv(p, inputs.get(), rows, bias, out, first, last);
  });
}

Tensor spike_conv2d_op(const Tensor& packed, const std::vector<int64_t>& size,
                       const std::vector<int64_t>& strides, const Tensor& rows,
                       const OptionalTensor& bias, int64_t out_channels,
                       const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                       const std::vector<int64_t>& dilation) {
  STD_TORCH_CHECK(rows.dim() == 5 && rows.is_contiguous(), "snnkern: rows are those of spike_rows");
  const SpikeConv p = spike_conv_of(packed, size, strides, {rows.size(1), rows.size(3)}, stride,
                                    padding, dilation, out_channels, rows.size(4));
  STD_TORCH_CHECK(rows.size(0) == p.blocks() && rows.size(2) == p.channels,
                  "snnkern: rows are for ", rows.size(2), " channels and ",
                  rows.size(0) * rows.size(4), " outputs, expected ", p.channels, " and ",
                  p.out_channels);
  STD_TORCH_CHECK(!bias || (bias->numel() == out_channels && bias->is_contiguous()),
                  "snnkern: bias needs a number for every output");
  const float* const from = floats(rows, "rows");
  const float* const start = bias ? floats(*bias, "bias") : nullptr;
  const int64_t of_row = p.width.out * out_channels, of_image = p.height.out * of_row;
  const Tensor out = empty_strided({p.images, out_channels, p.height.out, p.width.out},
                                   {of_image, 1, of_row, out_channels}, ScalarType::Float, packed);
  convolve(p, static_cast<const uint8_t*>(packed.const_data_ptr()), from, start,
           static_cast<float*>(out.mutable_data_ptr()));
  return out;
}

// Numbers of a chunk of samples, which stay in cache between a convolution and its neurons.
constexpr int64_t kChunk = 1 << 18;

// Convolution and neurons of samples [N * T, C, H, W], channels last, to [N * T, bytes]. Parameters
// and states repeat over an image's outputs, channels last; `current` comes on top of the
// convolution's.
Tensor spike_conv2d_lif_op(const Tensor& packed, int64_t timesteps,
                           const std::vector<int64_t>& size, const std::vector<int64_t>& pool,
                           const Tensor& rows, const Tensor& bias, const OptionalTensor& current,
                           const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                           const std::vector<int64_t>& dilation, const Tensor& decay,
                           const Tensor& threshold, const OptionalTensor& synapse_decay,
                           const OptionalTensor& v_init, const OptionalTensor& current_init,
                           int64_t charge, double v_rest, double gain, int64_t synapse,
                           int64_t reset, double v_reset, bool strict, bool delayed_spike) {
  STD_TORCH_CHECK(size.size() == 4 && rows.dim() == 5 && rows.is_contiguous() &&
                      bias.is_contiguous() && timesteps > 0 && size[0] % timesteps == 0,
                  "snnkern: size is [N * T, C, H, W], rows are those of spike_rows");
  const int64_t channels = size[1], width = size[3];
  const SpikeConv p = spike_conv_of(
      packed, size, {size[2] * width * channels, 1, width * channels, channels},
      {rows.size(1), rows.size(3)}, stride, padding, dilation, bias.numel(), rows.size(4), pool);
  STD_TORCH_CHECK(rows.size(0) == p.blocks() && rows.size(2) == p.channels,
                  "snnkern: rows are for another convolution");
  const int64_t neurons = p.height.out * p.width.out * p.out_channels, bytes = (neurons + 7) / 8;
  const auto parameter = [&](const Tensor& t) {
    const int64_t count = t.numel();
    STD_TORCH_CHECK(
        t.is_contiguous() && (count == 1 || count == p.out_channels || count == neurons),
        "snnkern: a parameter needs one value, one per channel, or one per neuron");
    return Parameter<float>{floats(t, "a parameter"), count, count == 1 ? neurons : 1};
  };
  const auto state = [&](const OptionalTensor& t) {
    STD_TORCH_CHECK(!t || (t->is_contiguous() && t->numel() == neurons),
                    "snnkern: a state needs one value per neuron");
    return t ? floats(*t, "a state") : nullptr;
  };
  STD_TORCH_CHECK(!current || (current->is_contiguous() && current->numel() == size[0] * neurons),
                  "snnkern: current is [N * T, H, W, K], contiguous");
  const LifDynamics<float> dynamics{
      static_cast<Charge>(charge),
      static_cast<Reset>(reset),
      static_cast<Synapse>(synapse),
      strict,
      delayed_spike,
      static_cast<float>(v_rest),
      static_cast<float>(v_reset),
      static_cast<float>(gain),
      parameter(decay),
      parameter(threshold),
      synapse_decay ? parameter(*synapse_decay) : Parameter<float>{nullptr, 1, 1}};
  const float *const weights = floats(rows, "rows"), *const start = floats(bias, "bias");
  const float *const v = state(v_init), *const c = state(current_init);
  const float* const more = current ? floats(*current, "current") : nullptr;
  const auto* const bits = static_cast<const uint8_t*>(packed.const_data_ptr());
  Tensor spikes = empty_strided({p.images, bytes}, {bytes, 1}, ScalarType::Byte, packed);
  auto* const out = static_cast<uint8_t*>(spikes.mutable_data_ptr());
  const int64_t of_sample = timesteps * neurons, samples = size[0] / timesteps;
  const int64_t most = std::clamp<int64_t>(kChunk / std::max<int64_t>(1, of_sample), 1, samples);
  const auto chunk = std::make_unique_for_overwrite<float[]>(most * of_sample);
  for (int64_t sample = 0; sample < samples; sample += most) {
    const int64_t here = std::min(most, samples - sample), image = sample * timesteps;
    SpikeConv of_chunk = p;
    of_chunk.images = here * timesteps;
    convolve(of_chunk, bits + image * p.bytes(), weights, start, chunk.get());
    if (more) {
      torch::stable::parallel_for(0, here * of_sample, kGrain, [&](int64_t first, int64_t last) {
        const float* const in = more + sample * of_sample;
        for (int64_t i = first; i < last; ++i) chunk[i] += in[i];
      });
    }
    const auto forward = [&](int64_t s) {
      return LifForward<float>{{Dtype::kFloat32, timesteps, neurons, neurons, 1, 0},
                               dynamics,
                               {},
                               chunk.get() + s * of_sample,
                               v,
                               c,
                               Dtype::kBit,
                               8 * bytes,
                               0,
                               out + (image + s * timesteps) * bytes,
                               nullptr,
                               nullptr};
    };
    const Tiling tiling = tiling_of(forward(0));
    const int64_t grain = std::max<int64_t>(1, kGrain / (tiling.size * timesteps));
    torch::stable::parallel_for(0, here * tiling.count(), grain, [&](int64_t first, int64_t last) {
      for (int64_t tile = first; tile < last; ++tile) {
        const int64_t at = tile % tiling.count();
        lif_forward(forward(tile / tiling.count()), tiling, at, at + 1);
      }
    });
  }
  return spikes;
}

Tensor spike_conv2d_weight_op(const Tensor& grad, const Tensor& packed,
                              const std::vector<int64_t>& size, const std::vector<int64_t>& strides,
                              const std::vector<int64_t>& kernel,
                              const std::vector<int64_t>& padding, int64_t block) {
  STD_TORCH_CHECK(grad.dim() == 4, "snnkern: grad is [N, K, H, W]");
  const SpikeConv p =
      spike_conv_of(packed, size, strides, kernel, {1, 1}, padding, {1, 1}, grad.size(1), block);
  STD_TORCH_CHECK(
      grad.size(0) == p.images && grad.size(2) == p.height.out && grad.size(3) == p.width.out,
      "snnkern: grad has another shape than the output");
  const float* const from = floats(grad, "grad");
  const int64_t of_channel = kernel[0] * kernel[1], of_output = p.channels * of_channel;
  const Tensor result =
      empty_strided({p.out_channels, p.channels, kernel[0], kernel[1]},
                    {of_output, of_channel, kernel[1], 1}, ScalarType::Float, grad);
  const auto* const bits = static_cast<const uint8_t*>(packed.const_data_ptr());
  const int64_t parts = stretches(p), inputs = p.images * p.positions() * p.channels;
  const OwnedEvents channels(
      parts, parts * p.channels, inputs / std::max<int64_t>(1, parts),
      [&](uint32_t* counts, int64_t first, int64_t last) {
        count_channels(p, bits, counts, first, last);
      },
      [&](const uint32_t* starts, uint32_t* offsets, int64_t first, int64_t last) {
        fill_channels(p, bits, starts, offsets, first, last);
      });
  auto* const to = static_cast<float*>(result.mutable_data_ptr());
  const MapStrides layout{grad.stride(0), grad.stride(1), grad.stride(2), grad.stride(3)};
  torch::stable::parallel_for(0, weight_tasks(p), 1, [&](int64_t first, int64_t last) {
    spike_conv_weight(p, channels.get(), from, layout, to, first, last);
  });
  return result;
}

}  // namespace
}  // namespace snnkern::cpu

STABLE_TORCH_LIBRARY_IMPL(snnkern, CPU, m) {
  snnkern::register_lif<snnkern::cpu::Cpu>(m);
  snnkern::register_pack<snnkern::cpu::Cpu>(m);
  snnkern::register_bounds<snnkern::cpu::Cpu>(m);
  m.impl("count_spikes", TORCH_BOX(&snnkern::cpu::count_spikes_op));
  m.impl("spike_rows", TORCH_BOX(&snnkern::cpu::spike_rows_op));
  m.impl("spike_conv2d", TORCH_BOX(&snnkern::cpu::spike_conv2d_op));
  m.impl("spike_conv2d_lif", TORCH_BOX(&snnkern::cpu::spike_conv2d_lif_op));
  m.impl("spike_conv2d_weight", TORCH_BOX(&snnkern::cpu::spike_conv2d_weight_op));
}
