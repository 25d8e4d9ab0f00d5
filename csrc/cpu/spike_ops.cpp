// Convolutions of spikes as operators: checks, threads, registration.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <memory>
#include <vector>

#include "../lif_ops.h"
#include "lif.h"
#include "spike_conv.h"
#include "tile.h"

namespace snnkern::cpu {
namespace {

// Of what describes a kernel, so that no product of two overflows.
constexpr int64_t kMost = int64_t{1} << 30;

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
    STD_TORCH_CHECK(std::max({kernel[d], stride[d], padding[d], dilation[d]}) < kMost,
                    "snnkern: a kernel, stride, padding or dilation beyond all maps");
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
  STD_TORCH_CHECK(block > 0 && block % kRowUnit == 0 && block < kMost,
                  "snnkern: block is no multiple of ", kRowUnit, ", or too large a one");
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Byte && packed.is_contiguous() &&
                      packed.dim() == 2 && packed.size(0) == p.images &&
                      packed.size(1) == p.bytes(),
                  "snnkern: packed spikes need a byte for eight neurons of an image, contiguous");
  STD_TORCH_CHECK(p.images > 0 && p.channels > 0 && p.out_channels > 0 && p.positions() > 0,
                  "snnkern: spikes and weights are not empty");
  return p;
}

const float* floats(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, "snnkern: ", name, " is not of float32");
  return static_cast<const float*>(t.const_data_ptr());
}

// Graded spikes, null where there are none.
const float* graded(const SpikeConv& p, const OptionalTensor& spikes) {
  if (!spikes) return nullptr;
  const MapStrides step = p.strides();
  const int64_t size[] = {p.images, p.channels, p.height.in, p.width.in};
  const int64_t strides[] = {step.image, step.channel, step.row, step.column};
  for (int d = 0; d < 4; ++d) {
    STD_TORCH_CHECK(spikes->dim() == 4 && spikes->size(d) == size[d] &&
                        (size[d] == 1 || spikes->stride(d) == strides[d]),
                    "snnkern: graded spikes have the shape and the layout of their bits");
  }
  return floats(*spikes, "graded");
}

// Calls run(first, last) for parts of work, in threads where there are enough neuron-steps.
template <class Run>
void share(int64_t parts, int64_t neurons_of_a_part, const Run& run) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, neurons_of_a_part));
  torch::stable::parallel_for(0, parts, grain, run);
}

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

Tensor fingerprint_op(const Tensor& words) {
  const bool wide = words.scalar_type() == ScalarType::Int;
  STD_TORCH_CHECK((wide || words.scalar_type() == ScalarType::Short) && words.is_contiguous(),
                  "snnkern: words are int16 or int32, contiguous");
  const Tensor result = empty_strided({}, {}, ScalarType::Long, words);
  const void* const from = words.const_data_ptr();
  std::atomic<uint64_t> sum{0};
  torch::stable::parallel_for(0, words.numel(), kGrain, [&](int64_t first, int64_t last) {
    sum += wide ? fingerprint(static_cast<const int32_t*>(from), first, last)
                : fingerprint(static_cast<const int16_t*>(from), first, last);
  });
  *static_cast<int64_t*>(result.mutable_data_ptr()) = static_cast<int64_t>(sum.load());
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
  share(p.blocks(), of_block,
        [&](int64_t first, int64_t last) { spike_rows(p, from, to, first, last); });
  return rows;
}

// The memory of events.
class EventWords {
 public:
  explicit EventWords(int64_t count)
      : count_(count), words_(std::make_unique_for_overwrite<uint64_t[]>(count)) {}

  uint64_t* words() { return words_.get(); }
  const int64_t* starts() const { return starts_.get(); }
  float* values() { return values_.get(); }
  Events events() const { return {words_.get(), starts_.get(), values_.get()}; }

  // Once the words are there, for events that are worth something each.
  void make_room_for_values() {
    starts_ = std::make_unique_for_overwrite<int64_t[]>(count_);
    values_ =
        std::make_unique_for_overwrite<float[]>(start_values(words_.get(), count_, starts_.get()));
  }

 private:
  int64_t count_;
  std::unique_ptr<uint64_t[]> words_;
  std::unique_ptr<int64_t[]> starts_;
  std::unique_ptr<float[]> values_;
};

// To `out`, [image, height, width, out_channel]; `spikes` are graded ones, else null.
void convolve(const SpikeConv& p, const uint8_t* bits, const float* spikes, const float* rows,
              const float* bias, float* out) {
  EventWords inputs(input_words(p));
  const int64_t of_image = p.positions() * p.channels / kWord;
  share(p.images, of_image,
        [&](int64_t first, int64_t last) { fill_inputs(p, bits, inputs.words(), first, last); });
  if (spikes || p.pools()) {
    inputs.make_room_for_values();
    share(p.images, of_image, [&](int64_t first, int64_t last) {
      if (spikes) {
        fill_input_values(p, spikes, inputs.words(), inputs.starts(), inputs.values(), first, last);
      } else {
        fill_input_counts(p, bits, inputs.words(), inputs.starts(), inputs.values(), first, last);
      }
    });
  }
  const int64_t tasks = output_tasks(p), sums = p.images * p.height.out * p.width.out * p.block;
  const int64_t work = sums * p.blocks() / tasks * p.channels * p.height.kernel * p.width.kernel;
  share(tasks, work / 16, [&](int64_t first, int64_t last) {
    spike_conv(p, inputs.events(), rows, bias, out, first, last);
  });
}

Tensor spike_conv2d_op(const Tensor& packed, const OptionalTensor& values,
                       const std::vector<int64_t>& size, const std::vector<int64_t>& strides,
                       const Tensor& rows, const OptionalTensor& bias, int64_t out_channels,
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
  convolve(p, static_cast<const uint8_t*>(packed.const_data_ptr()), graded(p, values), from, start,
           static_cast<float*>(out.mutable_data_ptr()));
  return out;
}

// Numbers of a chunk of samples, which stay in cache between a convolution and its neurons.
constexpr int64_t kChunk = 1 << 20;

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
    convolve(of_chunk, bits + image * p.bytes(), nullptr, weights, start, chunk.get());
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
    share(here * tiling.count(), tiling.size * timesteps, [&](int64_t first, int64_t last) {
      for (int64_t tile = first; tile < last; ++tile) {
        const int64_t at = tile % tiling.count();
        lif_forward(forward(tile / tiling.count()), tiling, at, at + 1);
      }
    });
  }
  return spikes;
}

Tensor spike_conv2d_weight_op(const Tensor& grad, const Tensor& packed,
                              const OptionalTensor& values, const std::vector<int64_t>& size,
                              const std::vector<int64_t>& strides,
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
  const float* const spikes = graded(p, values);
  EventWords inputs(channel_words(p));
  const int64_t parts = stretches(p);
  const int64_t inputs_of_part = p.images * p.positions() * p.channels / parts / 4;
  share(parts, inputs_of_part,
        [&](int64_t first, int64_t last) { fill_channels(p, bits, inputs.words(), first, last); });
  if (spikes) {
    inputs.make_room_for_values();
    share(parts, inputs_of_part, [&](int64_t first, int64_t last) {
      fill_channel_values(p, spikes, bits, inputs.starts(), inputs.values(), first, last);
    });
  }
  auto* const to = static_cast<float*>(result.mutable_data_ptr());
  const MapStrides layout{grad.stride(0), grad.stride(1), grad.stride(2), grad.stride(3)};
  torch::stable::parallel_for(0, weight_tasks(p), 1, [&](int64_t first, int64_t last) {
    spike_conv_weight(p, inputs.events(), from, layout, to, first, last);
  });
  return result;
}

}  // namespace
}  // namespace snnkern::cpu

STABLE_TORCH_LIBRARY_IMPL(snnkern, CPU, m) {
  m.impl("count_spikes", TORCH_BOX(&snnkern::cpu::count_spikes_op));
  m.impl("fingerprint", TORCH_BOX(&snnkern::cpu::fingerprint_op));
  m.impl("spike_rows", TORCH_BOX(&snnkern::cpu::spike_rows_op));
  m.impl("spike_conv2d", TORCH_BOX(&snnkern::cpu::spike_conv2d_op));
  m.impl("spike_conv2d_lif", TORCH_BOX(&snnkern::cpu::spike_conv2d_lif_op));
  m.impl("spike_conv2d_weight", TORCH_BOX(&snnkern::cpu::spike_conv2d_weight_op));
}
