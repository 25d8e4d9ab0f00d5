// Convolutions of spikes by their events, on raw memory: rows of weights are summed where an input
// was active, and rows of the output's gradient for the gradient of the weight.
#pragma once

#include <algorithm>
#include <cstdint>

#include "row_sums.h"

namespace snnkern::cpu {

// A dimension of maps: their extent, before and after, and how the kernel goes over it.
struct ConvAxis {
  std::int64_t in, out, kernel, stride, padding, dilation;

  // The input that tap k of output o sees.
  std::int64_t seen(std::int64_t o, std::int64_t k) const {
    return o * stride - padding + k * dilation;
  }

  struct Range {
    std::int64_t begin, end;
    std::int64_t size() const { return end - begin; }
  };
  // Of the outputs [begin, end) those for which tap k lies on the map.
  Range outputs(std::int64_t k, std::int64_t begin, std::int64_t end) const {
    while (begin < end && seen(begin, k) < 0) ++begin;
    while (begin < end && seen(end - 1, k) >= in) --end;
    return {begin, end};
  }
};

// Elements between neighbours of maps [images, channels, height, width].
struct MapStrides {
  std::int64_t image, channel, row, column;
};

struct SpikeConv {
  std::int64_t images, channels, out_channels;
  ConvAxis height, width;
  bool channels_last;  // of the bits; else channels first
  std::int64_t block;  // output channels whose weights lie together, a multiple of kRowUnit
  // Maps of spikes, channels last, may be larger by these: what falls into one position is added
  // up, to a graded spike.
  std::int64_t pool_height = 1, pool_width = 1;
  bool pools() const { return pool_height * pool_width > 1; }

  std::int64_t positions() const { return height.in * width.in; }
  // Of what lies as the bits do.
  MapStrides strides() const {
    const std::int64_t image = positions() * channels, row = width.in;
    return channels_last ? MapStrides{image, 1, row * channels, channels}
                         : MapStrides{image, positions(), row, 1};
  }
  // Of an image's bits.
  std::int64_t bytes() const { return (positions() * pool_height * pool_width * channels + 7) / 8; }
  std::int64_t blocks() const { return (out_channels + block - 1) / block; }
  // Columns to the left of the first output that some tap reaches, and columns of a map row with
  // all that taps reach.
  std::int64_t left() const { return std::max<std::int64_t>(0, width.kernel - 1 - width.padding); }
  std::int64_t columns() const { return left() + std::max(width.out, width.in + width.padding); }
  // Where the column that the last tap of input column 0 reaches lies among these.
  std::int64_t reached() const { return left() + width.padding - (width.kernel - 1); }
  // From one input channel's weights of a row of taps to the next channel's.
  std::int64_t row() const { return width.kernel * block; }
  std::int64_t rows_size() const { return blocks() * height.kernel * channels * row(); }
};

// How many bits of [first, last) are 1.
std::int64_t count_bits(const std::uint8_t* bits, std::int64_t first, std::int64_t last);

// A sum over words [first, last) of 16 or 32 bits, modulo 2^64, that other words, or the same in
// another order, do not have but by chance.
template <class Word>
std::uint64_t fingerprint(const Word* words, std::int64_t first, std::int64_t last);

// Blocks [first, last) of the weight [out_channels, channels, kernel, kernel] as the rows that
// spike_conv sums: [block, tap in height, channel, tap in width from the last to the first,
// out_channel of the block], zero where there is none.
void spike_rows(const SpikeConv& p, const float* weight, float* rows, std::int64_t first,
                std::int64_t last);

// Where the values of each of `count` words begin, to `starts`; how many there are in all.
std::int64_t start_values(const std::uint64_t* words, std::int64_t count, std::int64_t* starts);

// Forward. Inputs as words of kWord channels, [group, image, height, width].
std::int64_t input_words(const SpikeConv& p);
// Images [first, last).
void fill_inputs(const SpikeConv& p, const std::uint8_t* bits, std::uint64_t* words,
                 std::int64_t first, std::int64_t last);

// How many of those that are pooled each of their events is.
void fill_input_counts(const SpikeConv& p, const std::uint8_t* bits, const std::uint64_t* words,
                       const std::int64_t* starts, float* values, std::int64_t first,
                       std::int64_t last);
// The values of their events, of spikes that lie as their bits do, none pooled.
void fill_input_values(const SpikeConv& p, const float* spikes, const std::uint64_t* words,
                       const std::int64_t* starts, float* values, std::int64_t first,
                       std::int64_t last);

// Tasks: blocks of outputs times stretches of output rows.
std::int64_t output_tasks(const SpikeConv& p);
// Output [image, height, width, out_channel]. `bias` [out_channels] may be null.
void spike_conv(const SpikeConv& p, const Events& inputs, const float* rows, const float* bias,
                float* out, std::int64_t first, std::int64_t last);

// The weight's gradient, of stride and dilation 1. Stretches of map rows of the whole batch, whose
// gradients stay in the first cache; their inputs as words of positions, [stretch, channel, word].
std::int64_t stretches(const SpikeConv& p);
std::int64_t channel_words(const SpikeConv& p);
// Stretches [first, last).
void fill_channels(const SpikeConv& p, const std::uint8_t* bits, std::uint64_t* words,
                   std::int64_t first, std::int64_t last);

// The values of their events, of spikes that lie as their bits do.
void fill_channel_values(const SpikeConv& p, const float* spikes, const std::uint8_t* bits,
                         const std::int64_t* starts, float* values, std::int64_t first,
                         std::int64_t last);

// Tasks: blocks times parts of the channels.
std::int64_t weight_tasks(const SpikeConv& p);

// `strides` are those of `grad`, [images, out_channels, height, width].
void spike_conv_weight(const SpikeConv& p, const Events& inputs, const float* grad,
                       const MapStrides& strides, float* grad_weight, std::int64_t first,
                       std::int64_t last);

}  // namespace snnkern::cpu
