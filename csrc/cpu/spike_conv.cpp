#include "spike_conv.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "row_sums.h"
#include "tile.h"

namespace snnkern::cpu {
namespace {

// Bytes that are read again and again, which are to stay in the second cache.
constexpr std::int64_t kCached = 1 << 19;

// Input channels of a task of the weight's gradient: many, since each part gathers the gradient
// anew, and few enough that threads have something to share.
std::int64_t part_of_channels(const SpikeConv& p) {
  const std::int64_t shared = p.channels * p.blocks() / 4;
  return std::min(p.channels, std::clamp<std::int64_t>(shared, 32, 128));
}

// Calls f(k) where bit begin + k is 1, for k in [0, count).
template <class Call>
void for_each_bit(const std::uint8_t* bits, std::int64_t begin, std::int64_t count, Call&& f) {
  constexpr std::int64_t kWord = 56;  // that many of 64 are left behind any first bit of a byte
  const std::int64_t bytes = (begin + count + 7) / 8;
  for (std::int64_t done = 0; done < count; done += kWord) {
    const std::int64_t at = begin + done, byte = at / 8;
    std::uint64_t word = 0;
    std::memcpy(&word, bits + byte,
                static_cast<std::size_t>(std::min<std::int64_t>(8, bytes - byte)));
    word = word >> (at % 8) & ~std::uint64_t{0} >> (64 - std::min(kWord, count - done));
    for (; word; word &= word - 1) f(done + std::countr_zero(word));
  }
}

// Calls f(channel, position) for the spikes of map rows [begin, end) of an image.
template <class Call>
void for_each_spike(const SpikeConv& p, const std::uint8_t* image, std::int64_t begin,
                    std::int64_t end, Call&& f) {
  if (p.channels_last) {
    std::int64_t bit = begin * p.pool_height * p.width.in * p.pool_width * p.channels;
    for (std::int64_t row = begin * p.pool_height; row < end * p.pool_height; ++row) {
      const std::int64_t left = row / p.pool_height * p.width.in;
      for (std::int64_t at = left; at < left + p.width.in; ++at) {
        for (std::int64_t k = 0; k < p.pool_width; ++k, bit += p.channels) {
          for_each_bit(image, bit, p.channels, [&](std::int64_t c) { f(c, at); });
        }
      }
    }
    return;
  }
  const std::int64_t first = begin * p.width.in, count = (end - begin) * p.width.in;
  for (std::int64_t c = 0; c < p.channels; ++c) {
    for_each_bit(image, c * p.positions() + first, count, [&](std::int64_t k) { f(c, first + k); });
  }
}

// Calls f(cell, offset) for the spikes of images [first, last), cells from that of `first` on.
template <class Call>
void for_each_input(const SpikeConv& p, const std::uint8_t* bits, std::int64_t first,
                    std::int64_t last, Call&& f) {
  const SpikePasses passes = SpikePasses::of(p);
  const std::int64_t row = p.row(), groups = passes.groups, of_group = passes.channels;
  for (std::int64_t n = first; n < last; ++n) {
    const std::int64_t cell = n * p.positions() * groups;
    for_each_spike(p, bits + n * p.bytes(), 0, p.height.in, [&](std::int64_t c, std::int64_t at) {
      f(cell + at * groups + (groups == 1 ? 0 : c / of_group), static_cast<std::uint32_t>(c * row));
    });
  }
}

struct Tile {
  std::int64_t begin, end;
};

// Calls f(tile of [0, outputs), tile of [0, channels)) such that what is transposed stays in the
// first cache: kRowUnit outputs, of which each has `of_channel` elements per channel.
constexpr std::int64_t kTransposed = 1 << 8;
template <class Call>
void for_tiles(std::int64_t outputs, std::int64_t channels, std::int64_t of_channel, Call&& f) {
  const std::int64_t step = std::max<std::int64_t>(1, kTransposed / of_channel);
  for (std::int64_t k = 0; k < outputs; k += kRowUnit) {
    for (std::int64_t c = 0; c < channels; c += step) {
      f(Tile{k, std::min(k + kRowUnit, outputs)}, Tile{c, std::min(c + step, channels)});
    }
  }
}

// The gradient of a stretch of map rows: those rows of it that their taps see, between zeros.
struct Stretch {
  const SpikeConv& p;
  std::int64_t begin, end;  // rows of the batch, image by image

  static std::int64_t columns(const SpikeConv& p) {
    return p.width.in + p.width.padding + p.width.kernel - 1;
  }
  static std::int64_t most_rows(const SpikeConv& p) {
    const std::int64_t cached = kCached / (columns(p) * p.block * 4);
    const std::int64_t image = p.height.in + p.height.kernel - 1;
    const std::int64_t rows =
        cached >= image ? cached / image * p.height.in : cached - (p.height.kernel - 1);
    return std::clamp<std::int64_t>(rows, 1, std::max<std::int64_t>(1, p.images * p.height.in));
  }
  static Stretch of(const SpikeConv& p, std::int64_t index) {
    const std::int64_t rows = most_rows(p);
    return {p, index * rows, std::min((index + 1) * rows, p.images * p.height.in)};
  }

  // Rows begin .. end of images, and rows of taps behind those of each.
  std::int64_t slot(std::int64_t n, std::int64_t h) const {
    return n * p.height.in + h - begin + (n - begin / p.height.in) * (p.height.kernel - 1);
  }
  std::int64_t slots() const {
    return slot((end - 1) / p.height.in, (end - 1) % p.height.in) + p.height.kernel;
  }
  // Calls f(image, first map row, last + 1).
  template <class Call>
  void for_each_image(Call&& f) const {
    for (std::int64_t row = begin; row < end;) {
      const std::int64_t n = row / p.height.in, h = row % p.height.in;
      const std::int64_t count = std::min(end - row, p.height.in - h);
      f(n, h, h + count);
      row += count;
    }
  }

  // Out channels [channel, channel + count) to columns of `block`.
  void gather(const float* grad, const MapStrides& strides, std::int64_t channel,
              std::int64_t count, float* out) const {
    const std::int64_t left = p.width.kernel - 1, of_row = columns(p) * p.block;
    std::fill_n(out, slots() * of_row, 0.0f);
    for_each_image([&](std::int64_t n, std::int64_t first, std::int64_t last) {
      const std::int64_t top = first + p.height.padding - (p.height.kernel - 1);
      float* row = out + slot(n, first) * of_row + left * p.block;
      const std::int64_t rows = last - first + p.height.kernel - 1;
      for (std::int64_t o = top; o < top + rows; ++o, row += of_row) {
        if (o < 0 || o >= p.height.out) continue;
        const float* const in =
            grad + n * strides.image + o * strides.row + channel * strides.channel;
        const std::int64_t seen = std::min(p.width.out, columns(p) - left);
        if (strides.channel == 1) {
          for (std::int64_t w = 0; w < seen; ++w) {
            std::copy_n(in + w * strides.column, count, row + w * p.block);
          }
        } else {
          for (std::int64_t k = 0; k < count; ++k) {
            for (std::int64_t w = 0; w < seen; ++w) {
              row[w * p.block + k] = in[k * strides.channel + w * strides.column];
            }
          }
        }
      }
    });
  }
};

// Calls f(cell, offset) for the spikes of stretches [first, last).
template <class Call>
void for_each_of_channels(const SpikeConv& p, const std::uint8_t* bits, std::int64_t first,
                          std::int64_t last, Call&& f) {
  for (std::int64_t index = first; index < last; ++index) {
    const Stretch stretch = Stretch::of(p, index);
    const std::int64_t columns = Stretch::columns(p);
    stretch.for_each_image([&](std::int64_t n, std::int64_t begin, std::int64_t end) {
      // Of position `at` of the image, in columns: its row times what rows are longer here.
      const std::int64_t width = p.width.in;
      const std::int64_t image = stretch.slot(n, 0) * columns + p.width.padding;
      const auto wider = static_cast<std::uint32_t>(columns - width);
      for_each_spike(p, bits + n * p.bytes(), begin, end, [&](std::int64_t c, std::int64_t at) {
        const std::uint32_t h = static_cast<std::uint32_t>(at) / static_cast<std::uint32_t>(width);
        f(index * p.channels + c, static_cast<std::uint32_t>((image + at + h * wider) * p.block));
      });
    });
  }
}

}  // namespace

std::int64_t count_bits(const std::uint8_t* bits, std::int64_t first, std::int64_t last) {
  std::int64_t count = 0;
  for (; first + 8 <= last; first += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bits + first, sizeof(word));
    count += std::popcount(word);
  }
  for (; first < last; ++first) count += std::popcount(bits[first]);
  return count;
}

void spike_rows(const SpikeConv& p, const float* weight, float* rows, std::int64_t first,
                std::int64_t last) {
  const std::int64_t taps = p.width.kernel, of_channel = p.height.kernel * taps;
  const std::int64_t of_tap_row = p.channels * p.row(), of_output = p.channels * of_channel;
  Rows<float> memory(kRowUnit, std::max(kTransposed, of_channel));
  float* const tile = memory.take();
  for (std::int64_t b = first; b < last; ++b) {
    const std::int64_t begin = b * p.block, count = std::min(p.block, p.out_channels - begin);
    float* const block = rows + b * p.height.kernel * of_tap_row;
    if (count < p.block) std::fill_n(block, p.height.kernel * of_tap_row, 0.0f);
    for_tiles(count, p.channels, of_channel, [&](Tile k, Tile c) {
      // Read along outputs and written along inputs, by way of a small copy.
      const std::int64_t size = (c.end - c.begin) * of_channel;
      for (std::int64_t o = k.begin; o < k.end; ++o) {
        const float* const in = weight + (begin + o) * of_output + c.begin * of_channel;
        for (std::int64_t i = 0; i < size; ++i) tile[i * kRowUnit + o - k.begin] = in[i];
      }
      for (std::int64_t i = 0; i < size; ++i) {
        const std::int64_t channel = c.begin + i / of_channel, tap = i % of_channel;
        float* const out =
            block + tap / taps * of_tap_row + channel * p.row() + (taps - 1 - tap % taps) * p.block;
        std::copy_n(tile + i * kRowUnit, k.end - k.begin, out + k.begin);
      }
    });
  }
}

SpikePasses SpikePasses::of(const SpikeConv& p) {
  const std::int64_t bytes = p.row() * 4;  // of a channel
  const std::int64_t groups = (p.channels * bytes + kCached - 1) / kCached;
  const std::int64_t channels = (p.channels + groups - 1) / std::max<std::int64_t>(1, groups);
  if (groups > 1) return {channels, groups, 1};
  const std::int64_t taps = kCached / std::max<std::int64_t>(1, p.channels * bytes);
  return {p.channels, 1, std::clamp<std::int64_t>(taps, 1, p.height.kernel)};
}

void count_inputs(const SpikeConv& p, const std::uint8_t* bits, std::uint32_t* counts,
                  std::int64_t first, std::int64_t last) {
  for_each_input(p, bits, first, last, [&](std::int64_t cell, std::uint32_t) { ++counts[cell]; });
}

void fill_inputs(const SpikeConv& p, const std::uint8_t* bits, const std::uint32_t* starts,
                 std::uint32_t* offsets, std::int64_t first, std::int64_t last) {
  const std::int64_t cells = p.positions() * SpikePasses::of(p).groups;
  std::vector<std::uint32_t> next(starts + first * cells, starts + last * cells);
  for_each_input(p, bits, first, last, [&](std::int64_t cell, std::uint32_t offset) {
    offsets[next[cell - first * cells]++] = offset;
  });
}

void count_channels(const SpikeConv& p, const std::uint8_t* bits, std::uint32_t* counts,
                    std::int64_t first, std::int64_t last) {
  for_each_of_channels(p, bits, first, last,
                       [&](std::int64_t cell, std::uint32_t) { ++counts[cell]; });
}

void fill_channels(const SpikeConv& p, const std::uint8_t* bits, const std::uint32_t* starts,
                   std::uint32_t* offsets, std::int64_t first, std::int64_t last) {
  std::vector<std::uint32_t> next(starts + first * p.channels, starts + last * p.channels);
  for_each_of_channels(p, bits, first, last, [&](std::int64_t cell, std::uint32_t offset) {
    offsets[next[cell - first * p.channels]++] = offset;
  });
}

void spike_conv(const SpikeConv& p, const Events& inputs, const float* rows, const float* bias,
                float* out, std::int64_t first, std::int64_t last) {
  const SpikePasses passes = SpikePasses::of(p);
  const ConvAxis &height = p.height, &width = p.width;
  const bool windows = width.stride == 1 && width.dilation == 1;
  const std::int64_t block = p.block, of_tap_row = p.channels * p.row();
  Rows<float> memory(width.out * block, 1);
  float* const sums = memory.take();
  std::fill_n(sums, width.out * block, 0.0f);  // the last block may have fewer outputs
  std::vector<RowRun> runs(passes.taps * width.kernel);

  // Weight rows of tap row k, from column tap w on, for the active inputs at (h, q).
  const auto run_of = [&](const float* of_block, std::int64_t n, std::int64_t g, std::int64_t k,
                          std::int64_t w, std::int64_t h, std::int64_t q) {
    const std::int64_t cell = ((n * height.in + h) * width.in + q) * passes.groups + g;
    return RowRun{of_block + k * of_tap_row + (width.kernel - 1 - w) * block,
                  inputs.offsets + inputs.starts[cell], inputs.offsets + inputs.starts[cell + 1]};
  };

  const auto add_row = [&](const float* of_block, std::int64_t n, std::int64_t g, std::int64_t o,
                           std::int64_t tap, std::int64_t last_tap) {
    // Rows of taps that lie on the map.
    while (tap < last_tap && height.seen(o, tap) < 0) ++tap;
    while (tap < last_tap && height.seen(o, last_tap - 1) >= height.in) --last_tap;
    if (tap == last_tap) return;
    if (windows) {
      // One input's taps reach neighbouring outputs: their rows lie together, and so do the sums.
      for (std::int64_t q = 0; q < width.in; ++q) {
        const std::int64_t newest = std::min(q + width.padding, width.out - 1);
        const std::int64_t oldest = std::max<std::int64_t>(q + width.padding - width.kernel + 1, 0);
        if (newest < oldest) continue;
        std::int64_t count = 0;
        for (std::int64_t k = tap; k < last_tap; ++k) {
          runs[count++] =
              run_of(of_block, n, g, k, q + width.padding - oldest, height.seen(o, k), q);
        }
        add_rows((newest - oldest + 1) * block, runs.data(), count, sums + oldest * block);
      }
      return;
    }
    for (std::int64_t x = 0; x < width.out; ++x) {
      std::int64_t count = 0;
      for (std::int64_t k = tap; k < last_tap; ++k) {
        for (std::int64_t w = 0; w < width.kernel; ++w) {
          const std::int64_t q = width.seen(x, w);
          if (q >= 0 && q < width.in) {
            runs[count++] = run_of(of_block, n, g, k, w, height.seen(o, k), q);
          }
        }
      }
      add_rows(block, runs.data(), count, sums + x * block);
    }
  };

  for (std::int64_t task = first; task < last;) {
    // The images of one block.
    const std::int64_t b = task / p.images, begin = task % p.images;
    const std::int64_t end = std::min(p.images, begin + last - task);
    task += end - begin;
    const float* const of_block = rows + b * height.kernel * of_tap_row;
    const std::int64_t channel = b * block, count = std::min(block, p.out_channels - channel);
    for (std::int64_t g = 0; g < passes.groups; ++g) {
      for (std::int64_t tap = 0; tap < height.kernel; tap += passes.taps) {
        const bool fresh = g == 0 && tap == 0;
        const std::int64_t last_tap = std::min(tap + passes.taps, height.kernel);
        for (std::int64_t n = begin; n < end; ++n) {
          for (std::int64_t o = 0; o < height.out; ++o) {
            float* const row = out + (n * height.out + o) * width.out * p.out_channels + channel;
            for (std::int64_t x = 0; x < width.out; ++x) {
              float* const sum = sums + x * block;
              if (!fresh) {
                std::copy_n(row + x * p.out_channels, count, sum);
              } else if (bias) {
                std::copy_n(bias + channel, count, sum);
              } else {
                std::fill_n(sum, count, 0.0f);
              }
            }
            add_row(of_block, n, g, o, tap, last_tap);
            for (std::int64_t x = 0; x < width.out; ++x) {
              std::copy_n(sums + x * block, count, row + x * p.out_channels);
            }
          }
        }
      }
    }
  }
}

std::int64_t stretches(const SpikeConv& p) {
  const std::int64_t rows = Stretch::most_rows(p);
  return (p.images * p.height.in + rows - 1) / rows;
}

std::int64_t weight_tasks(const SpikeConv& p) {
  return p.blocks() * ((p.channels + part_of_channels(p) - 1) / part_of_channels(p));
}

void spike_conv_weight(const SpikeConv& p, const Events& channels, const float* grad,
                       const MapStrides& strides, float* grad_weight, std::int64_t first,
                       std::int64_t last) {
  const std::int64_t part = part_of_channels(p), parts = weight_tasks(p) / p.blocks(),
                     count = stretches(p);
  const std::int64_t taps = p.height.kernel, of_channel = taps * p.row();
  const std::int64_t of_row = Stretch::columns(p) * p.block;
  const std::int64_t most =
      (Stretch::most_rows(p) / p.height.in + 2) * (taps - 1) + Stretch::most_rows(p);
  Rows<float> memory(kRowUnit, (most * of_row + part * of_channel + kRowUnit - 1) / kRowUnit);
  float* const gathered = memory.take(most * of_row / kRowUnit);
  float* const sums = memory.take(part * of_channel / kRowUnit);
  for (std::int64_t task = first; task < last; ++task) {
    const std::int64_t channel = task / parts * p.block;
    const std::int64_t wide = std::min(p.block, p.out_channels - channel);
    const std::int64_t begin = task % parts * part;
    const std::int64_t end = std::min(begin + part, p.channels);
    std::fill_n(sums, (end - begin) * of_channel, 0.0f);
    for (std::int64_t index = 0; index < count; ++index) {
      const Stretch stretch = Stretch::of(p, index);
      stretch.gather(grad, strides, channel, wide, gathered);
      for (std::int64_t c = begin; c < end; ++c) {
        const std::uint32_t* const starts = channels.starts + index * p.channels + c;
        for (std::int64_t tap = 0; tap < taps; ++tap) {
          const RowRun run{gathered + (taps - 1 - tap) * of_row, channels.offsets + starts[0],
                           channels.offsets + starts[1]};
          add_rows(p.row(), &run, 1, sums + (c - begin) * of_channel + tap * p.row());
        }
      }
    }
    const std::int64_t columns = p.width.kernel;
    for_tiles(wide, end - begin, taps * columns, [&](Tile k, Tile c) {
      for (std::int64_t o = k.begin; o < k.end; ++o) {
        float* out = grad_weight + ((channel + o) * p.channels + begin + c.begin) * taps * columns;
        for (std::int64_t row = c.begin * taps; row < c.end * taps; ++row) {
          for (std::int64_t w = columns; w-- > 0;) {
            *out++ = sums[(row * columns + w) * p.block + o];
          }
        }
      }
    });
  }
}

}  // namespace snnkern::cpu
