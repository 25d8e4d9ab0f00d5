// Convolutions of spikes by their events, on raw memory: rows of weights are summed where an input
// was active, and rows of the output's gradient for the gradient of the weight.
#pragma once

#include <cstdint>

namespace snnkern::cpu {

// A dimension of maps: their extent, before and after, and how the kernel goes over it.
struct ConvAxis {
  std::int64_t in, out, kernel, stride, padding, dilation;

  // The input that tap k of output o sees.
  std::int64_t seen(std::int64_t o, std::int64_t k) const {
    return o * stride - padding + k * dilation;
  }
};

struct SpikeConv {
  std::int64_t images, channels, out_channels;
  ConvAxis height, width;
  bool channels_last;  // of the bits; else channels first
  std::int64_t block;  // output channels whose weights lie together, a multiple of kRowUnit
  // Maps of spikes, channels last, may be larger by these: what falls into one position is added
  // up.
  std::int64_t pool_height = 1, pool_width = 1;

  std::int64_t positions() const { return height.in * width.in; }
  // Of an image's bits.
  std::int64_t bytes() const { return (positions() * pool_height * pool_width * channels + 7) / 8; }
  std::int64_t blocks() const { return (out_channels + block - 1) / block; }
  // From one input channel's weights of a row of taps to the next channel's.
  std::int64_t row() const { return width.kernel * block; }
  std::int64_t rows_size() const { return blocks() * height.kernel * channels * row(); }
};

// How many bits of [first, last) are 1.
std::int64_t count_bits(const std::uint8_t* bits, std::int64_t first, std::int64_t last);

// Blocks [first, last) of the weight [out_channels, channels, kernel, kernel] as the rows that
// spike_conv sums: [block, tap in height, channel, tap in width from the last to the first,
// out_channel of the block], zero where there is none.
void spike_rows(const SpikeConv& p, const float* weight, float* rows, std::int64_t first,
                std::int64_t last);

// Where the bits of a batch are 1: for every cell, a group of channels at a position or a channel
// in a stretch of map rows, offsets of what is to be summed. Cells of one part (image or stretch)
// are neighbours, so that parts are counted and filled on their own.
struct Events {
  const std::uint32_t* starts;  // [cells + 1]
  const std::uint32_t* offsets;
};

// How the input channels and taps of a layer are cut, so that the weights of a pass stay in cache.
struct SpikePasses {
  std::int64_t channels;  // of a group
  std::int64_t groups;
  std::int64_t taps;  // rows of taps

  static SpikePasses of(const SpikeConv& p);
};

// Forward, cells [image, position, group]: counts, to be summed up to starts, then offsets.
void count_inputs(const SpikeConv& p, const std::uint8_t* bits, std::uint32_t* counts,
                  std::int64_t first, std::int64_t last);
void fill_inputs(const SpikeConv& p, const std::uint8_t* bits, const std::uint32_t* starts,
                 std::uint32_t* offsets, std::int64_t first, std::int64_t last);

// Output [image, height, width, out_channel] of tasks [first, last): blocks times images.
// `bias` [out_channels] may be null.
void spike_conv(const SpikeConv& p, const Events& inputs, const float* rows, const float* bias,
                float* out, std::int64_t first, std::int64_t last);

// The weight's gradient, of stride and dilation 1. Stretches of map rows of the whole batch, whose
// gradients stay in cache; cells [stretch, channel].
std::int64_t stretches(const SpikeConv& p);
void count_channels(const SpikeConv& p, const std::uint8_t* bits, std::uint32_t* counts,
                    std::int64_t first, std::int64_t last);
void fill_channels(const SpikeConv& p, const std::uint8_t* bits, const std::uint32_t* starts,
                   std::uint32_t* offsets, std::int64_t first, std::int64_t last);

// Tasks: blocks times parts of the channels.
std::int64_t weight_tasks(const SpikeConv& p);

// Elements between neighbours of a gradient [images, out_channels, height, width].
struct MapStrides {
  std::int64_t image, channel, row, column;
};
void spike_conv_weight(const SpikeConv& p, const Events& channels, const float* grad,
                       const MapStrides& strides, float* grad_weight, std::int64_t first,
                       std::int64_t last);

}  // namespace snnkern::cpu
