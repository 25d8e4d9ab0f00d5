#include "spike_conv.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "clones.h"
#include "tile.h"

namespace snnkern::cpu {
namespace {

// Bytes that are read again and again: those that are to stay in the first cache beside what
// passes through it, and those that are to stay in the second.
constexpr std::int64_t kFirst = 26 << 10, kSecond = 1 << 19;

// Parts into which threads share at least.
constexpr std::int64_t kShares = 8;

// Input channels of a task of the weight's gradient: many, since each part gathers the gradient
// anew, and few enough that threads have something to share.
std::int64_t part_of_channels(const SpikeConv& p) {
  const std::int64_t shared = p.channels * p.blocks() / kShares;
  return std::min(p.channels, std::clamp<std::int64_t>(shared, 32, 256));
}

// Bits [begin, begin + count), at most kWord of them and at least one.
std::uint64_t word_at(const std::uint8_t* bits, std::int64_t begin, std::int64_t count) {
  const std::int64_t byte = begin / 8, shift = begin % 8, bytes = (shift + count + 7) / 8;
  std::uint64_t word = 0;
  std::memcpy(&word, bits + byte, static_cast<std::size_t>(std::min<std::int64_t>(8, bytes)));
  word >>= shift;
  if (bytes > 8) word |= std::uint64_t{bits[byte + 8]} << (kWord - shift);
  return word & ~std::uint64_t{0} >> (kWord - count);
}

// Calls f(k) where bit begin + k is 1, for k in [0, count).
template <class Call>
void for_each_bit(const std::uint8_t* bits, std::int64_t begin, std::int64_t count, Call&& f) {
  for (std::int64_t done = 0; done < count; done += kWord) {
    std::uint64_t word = word_at(bits, begin + done, std::min(kWord, count - done));
    for (; word; word &= word - 1) f(done + std::countr_zero(word));
  }
}

// Calls f(channel, row, column) for the spikes of map rows [begin, end) of an image.
template <class Call>
void for_each_spike(const SpikeConv& p, const std::uint8_t* image, std::int64_t begin,
                    std::int64_t end, Call&& f) {
  const std::int64_t width = p.width.in;
  if (p.channels_last) {
    std::int64_t bit = begin * width * p.channels;
    for (std::int64_t h = begin; h < end; ++h) {
      for (std::int64_t w = 0; w < width; ++w, bit += p.channels) {
        for_each_bit(image, bit, p.channels, [&](std::int64_t c) { f(c, h, w); });
      }
    }
    return;
  }
  for (std::int64_t c = 0; c < p.channels; ++c) {
    std::int64_t bit = (c * p.height.in + begin) * width;
    for (std::int64_t h = begin; h < end; ++h, bit += width) {
      for_each_bit(image, bit, width, [&](std::int64_t w) { f(c, h, w); });
    }
  }
}

// Calls f(word) for the positions that are pooled to position `at` of an image: kWord channels of
// each, from c on.
template <class Call>
void for_each_pooled(const SpikeConv& p, const std::uint8_t* image, std::int64_t c, std::int64_t at,
                     Call&& f) {
  const std::int64_t count = std::min(kWord, p.channels - c);
  const std::int64_t h = at / p.width.in * p.pool_height, w = at % p.width.in * p.pool_width;
  for (std::int64_t i = h; i < h + p.pool_height; ++i) {
    for (std::int64_t k = w; k < w + p.pool_width; ++k) {
      f(word_at(image, (i * p.width.in * p.pool_width + k) * p.channels + c, count));
    }
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

  static std::int64_t most_rows(const SpikeConv& p) {
    const std::int64_t cached = kFirst / (p.columns() * p.block * 4);
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
  // Words of a channel in any stretch.
  static std::int64_t words(const SpikeConv& p) {
    return (most_slots(p) * p.columns() + kWord - 1) / kWord;
  }
  static std::int64_t most_slots(const SpikeConv& p) {
    const std::int64_t rows = most_rows(p);
    return rows + ((rows - 2) / p.height.in + 2) * (p.height.kernel - 1);
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
    const std::int64_t of_row = p.columns() * p.block;
    std::fill_n(out, slots() * of_row, 0.0f);
    for_each_image([&](std::int64_t n, std::int64_t first, std::int64_t last) {
      const std::int64_t top = first + p.height.padding - (p.height.kernel - 1);
      float* row = out + slot(n, first) * of_row + p.left() * p.block;
      const std::int64_t rows = last - first + p.height.kernel - 1;
      for (std::int64_t o = top; o < top + rows; ++o, row += of_row) {
        if (o < 0 || o >= p.height.out) continue;
        const float* const in =
            grad + n * strides.image + o * strides.row + channel * strides.channel;
        if (strides.channel == 1) {
          for (std::int64_t w = 0; w < p.width.out; ++w) {
            std::copy_n(in + w * strides.column, count, row + w * p.block);
          }
        } else {
          for (std::int64_t k = 0; k < count; ++k) {
            for (std::int64_t w = 0; w < p.width.out; ++w) {
              row[w * p.block + k] = in[k * strides.channel + w * strides.column];
            }
          }
        }
      }
    });
  }
};

// Output rows whose sums stay in the second cache: of whole images, or of a part of one.
struct OutputRows {
  std::int64_t images, rows;

  static OutputRows of(const SpikeConv& p) {
    const std::int64_t most = kSecond / (columns_of_sums(p) * p.block * 4);
    const std::int64_t shared = (p.images * p.blocks() + kShares - 1) / kShares;
    return {std::clamp<std::int64_t>(most / p.height.out, 1, shared),
            std::clamp<std::int64_t>(most, 1, p.height.out)};
  }
  // Whether one input's taps reach neighbouring outputs: then their rows lie together, and so do
  // the sums.
  static bool neighbouring(const SpikeConv& p) {
    return p.width.stride == 1 && p.width.dilation == 1;
  }
  static std::int64_t columns_of_sums(const SpikeConv& p) {
    return neighbouring(p) ? p.columns() : p.width.out;
  }
  std::int64_t of_images(const SpikeConv& p) const { return (p.images + images - 1) / images; }
  std::int64_t of_image(const SpikeConv& p) const { return (p.height.out + rows - 1) / rows; }
};

}  // namespace

// Of each word and its place one number, whose upper half is mixed into the lower: a linear sum is
// the same for weights that exchange their places, or that all halve.
template <class Word>
SNN_CLONES std::uint64_t fingerprint(const Word* words, std::int64_t first, std::int64_t last) {
  std::uint64_t sum = 0;
  for (std::int64_t i = first; i < last; ++i) {
    const auto word = static_cast<std::uint64_t>(std::int64_t{words[i]});
    const auto place = static_cast<std::uint64_t>(i);
    const std::uint64_t mixed = word * 0x9e3779b97f4a7c15 + place * 0xc2b2ae3d27d4eb4f;
    sum += mixed ^ mixed >> 32;
  }
  return sum;
}
template std::uint64_t fingerprint(const std::int16_t*, std::int64_t, std::int64_t);
template std::uint64_t fingerprint(const std::int32_t*, std::int64_t, std::int64_t);

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

std::int64_t input_words(const SpikeConv& p) {
  return (p.channels + kWord - 1) / kWord * p.images * p.positions();
}

void fill_inputs(const SpikeConv& p, const std::uint8_t* bits, std::uint64_t* words,
                 std::int64_t first, std::int64_t last) {
  const std::int64_t positions = p.positions();
  for (std::int64_t n = first; n < last; ++n) {
    const std::uint8_t* const image = bits + n * p.bytes();
    for (std::int64_t c = 0; c < p.channels; c += kWord) {
      std::uint64_t* const group = words + (c / kWord * p.images + n) * positions;
      const std::int64_t count = std::min(kWord, p.channels - c);
      if (!p.channels_last) {
        std::fill_n(group, positions, std::uint64_t{0});
        for (std::int64_t k = 0; k < count; ++k) {
          for_each_bit(image, (c + k) * positions, positions,
                       [&](std::int64_t at) { group[at] |= std::uint64_t{1} << k; });
        }
      } else if (p.pools()) {
        for (std::int64_t at = 0; at < positions; ++at) {
          std::uint64_t any = 0;
          for_each_pooled(p, image, c, at, [&](std::uint64_t word) { any |= word; });
          group[at] = any;
        }
      } else {
        for (std::int64_t at = 0; at < positions; ++at) {
          group[at] = word_at(image, at * p.channels + c, count);
        }
      }
    }
  }
}

std::int64_t start_values(const std::uint64_t* words, std::int64_t count, std::int64_t* starts) {
  std::int64_t values = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    starts[i] = values;
    values += std::popcount(words[i]);
  }
  return values;
}

void fill_input_counts(const SpikeConv& p, const std::uint8_t* bits, const std::uint64_t* words,
                       const std::int64_t* starts, float* values, std::int64_t first,
                       std::int64_t last) {
  for (std::int64_t n = first; n < last; ++n) {
    for (std::int64_t c = 0; c < p.channels; c += kWord) {
      const std::int64_t group = (c / kWord * p.images + n) * p.positions();
      for (std::int64_t at = 0; at < p.positions(); ++at) {
        float* const counts = values + starts[group + at];
        const std::uint64_t any = words[group + at];
        std::fill_n(counts, std::popcount(any), 0.0f);
        for_each_pooled(p, bits + n * p.bytes(), c, at, [&](std::uint64_t word) {
          float* count = counts;
          for (std::uint64_t left = any; left; left &= left - 1, ++count) {
            *count += static_cast<float>(word >> std::countr_zero(left) & 1);
          }
        });
      }
    }
  }
}

void fill_input_values(const SpikeConv& p, const float* spikes, const std::uint64_t* words,
                       const std::int64_t* starts, float* values, std::int64_t first,
                       std::int64_t last) {
  const MapStrides step = p.strides();
  for (std::int64_t n = first; n < last; ++n) {
    for (std::int64_t c = 0; c < p.channels; c += kWord) {
      const std::int64_t group = (c / kWord * p.images + n) * p.positions();
      const float* const in = spikes + n * step.image + c * step.channel;
      for (std::int64_t at = 0; at < p.positions(); ++at) {
        float* out = values + starts[group + at];
        for (std::uint64_t word = words[group + at]; word; word &= word - 1) {
          *out++ = in[at * step.column + std::countr_zero(word) * step.channel];
        }
      }
    }
  }
}

std::int64_t output_tasks(const SpikeConv& p) {
  const OutputRows stretch = OutputRows::of(p);
  return p.blocks() * stretch.of_images(p) * stretch.of_image(p);
}

void spike_conv(const SpikeConv& p, const Events& inputs, const float* rows, const float* bias,
                float* out, std::int64_t first, std::int64_t last) {
  const ConvAxis &height = p.height, &width = p.width;
  const OutputRows stretch = OutputRows::of(p);
  const std::int64_t parts = stretch.of_image(p), stretches = stretch.of_images(p) * parts;
  const bool together = OutputRows::neighbouring(p);
  const std::int64_t left = together ? p.left() : 0, block = p.block;
  const std::int64_t line = OutputRows::columns_of_sums(p) * block;
  Rows<float> memory(line, stretch.images * stretch.rows);
  float* const sums = memory.take(stretch.images * stretch.rows);

  for (std::int64_t task = first; task < last; ++task) {
    const std::int64_t b = task / stretches, part = task % stretches;
    const std::int64_t n0 = part / parts * stretch.images, o0 = part % parts * stretch.rows;
    const std::int64_t images = std::min(stretch.images, p.images - n0);
    const std::int64_t lines = std::min(stretch.rows, height.out - o0);
    const std::int64_t channel = b * block, count = std::min(block, p.out_channels - channel);
    std::fill_n(sums, images * lines * line, 0.0f);
    if (bias) {
      for (float* sum = sums; sum != sums + images * lines * line; sum += block) {
        std::copy_n(bias + channel, count, sum);
      }
    }

    // Adds the weights of tap row k and, where each stands alone, tap column w.
    const auto add_taps = [&](std::int64_t c, std::int64_t k, std::int64_t w) {
      const ConvAxis::Range seen = height.outputs(k, o0, o0 + lines);
      ConvAxis::Range columns{0, width.in};
      if (!together) columns = width.outputs(w, 0, width.out);
      if (seen.size() <= 0 || columns.size() <= 0) return;
      const float* const from = rows + ((b * height.kernel + k) * p.channels + c) * p.row() +
                                (together ? 0 : width.kernel - 1 - w) * block;
      const std::int64_t row = height.seen(seen.begin, k);
      const std::int64_t column = together ? 0 : width.seen(columns.begin, w);
      const std::int64_t at = together ? p.reached() : columns.begin;
      RowSums lines_of_image{.lines = seen.size(),
                             .cells = columns.size(),
                             .words = 1,
                             .bit_step = p.row(),
                             .word_step = 0,
                             .events = {},
                             .line_words = height.stride * width.in,
                             .cell_words = together ? 1 : width.stride,
                             .sums = nullptr,
                             .line_sums = line,
                             .cell_sums = block};
      const std::int64_t of_image = p.positions();
      const Events events = inputs.from((c / kWord * p.images + n0) * of_image);
      // Where images have one line, or all of theirs are seen, they follow each other.
      const bool all_seen = seen.size() == height.in && lines == height.in && height.stride == 1;
      const bool as_one = lines == 1 || all_seen;
      if (lines == 1) lines_of_image.line_words = of_image;
      if (as_one) lines_of_image.lines *= images;
      for (std::int64_t n = 0; n < (as_one ? 1 : images); ++n) {
        lines_of_image.events = events.from(n * of_image + row * width.in + column);
        lines_of_image.sums = sums + (n * lines + seen.begin - o0) * line + at * block;
        add_rows(together ? p.row() : block, from, lines_of_image);
      }
    };
    for (std::int64_t c = 0; c < p.channels; c += kWord) {
      for (std::int64_t k = 0; k < height.kernel; ++k) {
        for (std::int64_t w = 0; w < (together ? 1 : width.kernel); ++w) add_taps(c, k, w);
      }
    }
    for (std::int64_t n = 0; n < images; ++n) {
      for (std::int64_t o = 0; o < lines; ++o) {
        const float* const sum = sums + (n * lines + o) * line + left * block;
        float* const row =
            out + ((n0 + n) * height.out + o0 + o) * width.out * p.out_channels + channel;
        for (std::int64_t x = 0; x < width.out; ++x) {
          std::copy_n(sum + x * block, count, row + x * p.out_channels);
        }
      }
    }
  }
}

std::int64_t stretches(const SpikeConv& p) {
  const std::int64_t rows = Stretch::most_rows(p);
  return (p.images * p.height.in + rows - 1) / rows;
}

std::int64_t channel_words(const SpikeConv& p) {
  return stretches(p) * p.channels * Stretch::words(p);
}

void fill_channels(const SpikeConv& p, const std::uint8_t* bits, std::uint64_t* words,
                   std::int64_t first, std::int64_t last) {
  const std::int64_t of_channel = Stretch::words(p), columns = p.columns();
  for (std::int64_t index = first; index < last; ++index) {
    const Stretch stretch = Stretch::of(p, index);
    std::uint64_t* const of_stretch = words + index * p.channels * of_channel;
    std::fill_n(of_stretch, p.channels * of_channel, std::uint64_t{0});
    stretch.for_each_image([&](std::int64_t n, std::int64_t begin, std::int64_t end) {
      const std::int64_t start = stretch.slot(n, begin) * columns + p.reached();
      for_each_spike(p, bits + n * p.bytes(), begin, end,
                     [&](std::int64_t c, std::int64_t h, std::int64_t w) {
                       const std::int64_t bit = start + (h - begin) * columns + w;
                       of_stretch[c * of_channel + bit / kWord] |= std::uint64_t{1} << bit % kWord;
                     });
    });
  }
}

void fill_channel_values(const SpikeConv& p, const float* spikes, const std::uint8_t* bits,
                         const std::int64_t* starts, float* values, std::int64_t first,
                         std::int64_t last) {
  const MapStrides step = p.strides();
  std::vector<float*> next(
      static_cast<std::size_t>(p.channels));  // a channel's spikes come in order
  for (std::int64_t index = first; index < last; ++index) {
    for (std::int64_t c = 0; c < p.channels; ++c) {
      next[static_cast<std::size_t>(c)] =
          values + starts[(index * p.channels + c) * Stretch::words(p)];
    }
    Stretch::of(p, index).for_each_image([&](std::int64_t n, std::int64_t begin, std::int64_t end) {
      const float* const in = spikes + n * step.image;
      for_each_spike(p, bits + n * p.bytes(), begin, end,
                     [&](std::int64_t c, std::int64_t h, std::int64_t w) {
                       *next[static_cast<std::size_t>(c)]++ =
                           in[c * step.channel + h * step.row + w * step.column];
                     });
    });
  }
}

std::int64_t weight_tasks(const SpikeConv& p) {
  return p.blocks() * ((p.channels + part_of_channels(p) - 1) / part_of_channels(p));
}

void spike_conv_weight(const SpikeConv& p, const Events& inputs, const float* grad,
                       const MapStrides& strides, float* grad_weight, std::int64_t first,
                       std::int64_t last) {
  const std::int64_t part = part_of_channels(p), parts = weight_tasks(p) / p.blocks(),
                     count = stretches(p), of_words = Stretch::words(p);
  const std::int64_t taps = p.height.kernel, of_channel = taps * p.row();
  const std::int64_t of_row = p.columns() * p.block, most = Stretch::most_slots(p) * of_row;
  Rows<float> memory(kRowUnit, (most + part * of_channel) / kRowUnit);
  float* const gathered = memory.take(most / kRowUnit);
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
      for (std::int64_t tap = 0; tap < taps; ++tap) {
        add_rows(p.row(), gathered + (taps - 1 - tap) * of_row,
                 {.lines = 1,
                  .cells = end - begin,
                  .words = of_words,
                  .bit_step = p.block,
                  .word_step = kWord * p.block,
                  .events = inputs.from((index * p.channels + begin) * of_words),
                  .line_words = 0,
                  .cell_words = of_words,
                  .sums = sums + tap * p.row(),
                  .line_sums = 0,
                  .cell_sums = of_channel});
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
