// Tiles: stretches of neighbouring neurons that one thread takes through all time steps, with their
// parameters and working memory at hand.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>

#include "lif.h"
#include "rows.h"

namespace snnkern::cpu {

inline constexpr std::int64_t kCacheLine = 64;

// Below this many neuron-steps a thread costs more than it brings.
inline constexpr std::int64_t kGrain = 1 << 15;

// Working memory for one tile, handed out row by row. A thread keeps it between calls: fresh pages
// would cost more than the kernel.
template <class F>
class Rows {
 public:
  Rows(std::int64_t length, std::int64_t count)
      : next_(static_cast<F*>(memory_of_this_thread(sizeof(F) * length * count))),
        length_(length) {}

  F* take(std::int64_t count = 1) {
    F* const rows = next_;
    next_ += count * length_;
    return rows;
  }

 private:
  struct Free {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t(kCacheLine)); }
  };

  static void* memory_of_this_thread(std::size_t bytes) {
    static thread_local std::unique_ptr<std::byte, Free> memory;
    static thread_local std::size_t size = 0;
    if (bytes > size) {
      memory.reset(static_cast<std::byte*>(::operator new(bytes, std::align_val_t(kCacheLine))));
      size = bytes;
    }
    return memory.get();
  }

  F* next_;
  std::int64_t length_;
};

// The smallest membrane that fires, see Neuron.
template <class F>
F fires_from(F threshold, bool strict) {
  return strict ? std::nextafter(threshold, std::numeric_limits<F>::infinity()) : threshold;
}

// The neurons of a tile: one and the same for all, or rows of parameters. `kUniform` decides at
// compile time, so that the usual case keeps its constants in registers.
template <class F, bool kUniform>
struct Neurons {
  static constexpr std::int64_t kRows = 4;

  const F* decay;
  const F* threshold;
  const F* fire_at;
  const F* inverse;  // 1 / threshold
  F v_rest;
  F v_reset;

  SNN_HD Neuron<F> operator[](std::int64_t i) const {
    const std::int64_t j = kUniform ? 0 : i;
    return {decay[j], threshold[j], fire_at[j], v_rest, v_reset};
  }
  SNN_HD SurrogateArgument<F> argument(std::int64_t i, bool normalized) const {
    const std::int64_t j = kUniform ? 0 : i;
    return SurrogateArgument<F>::of(threshold[j], inverse[j], normalized);
  }
};

// The values of neurons [begin, end).
template <class F>
void fill_row(const Parameter<F>& parameter, std::int64_t begin, std::int64_t end, F* row) {
  if (parameter.repeat == 1) {  // channels last: neighbours have neighbouring values
    for (std::int64_t p = begin, index = begin % parameter.count; p < end; index = 0) {
      const std::int64_t n = std::min(end - p, parameter.count - index);
      row = std::copy_n(parameter.data + index, n, row);
      p += n;
    }
    return;
  }
  parameter.for_each_stretch(
      begin, end, [&](std::int64_t index, std::int64_t p, std::int64_t stop) {
        std::fill(row + (p - begin), row + (stop - begin), parameter.data[index]);
      });
}

// The neurons [begin, end), their parameters in Neurons::kRows rows of `length` from `rows` on; a
// number each if uniform.
template <bool kUniform, class F>
Neurons<F, kUniform> gather_neurons(const LifDynamics<F>& dynamics, std::int64_t begin,
                                    std::int64_t end, std::int64_t length, F* rows) {
  F* const decay = rows;
  F* const threshold = rows + length;
  F* const fire_at = rows + 2 * length;
  F* const inverse = rows + 3 * length;
  if constexpr (kUniform) end = begin + 1;
  fill_row(dynamics.decay, begin, end, decay);
  fill_row(dynamics.threshold, begin, end, threshold);
  for (std::int64_t i = 0; i < end - begin; ++i) {
    fire_at[i] = fires_from(threshold[i], dynamics.strict);
    inverse[i] = F(1) / threshold[i];
  }
  return {decay, threshold, fire_at, inverse, dynamics.v_rest, dynamics.v_reset};
}

// A row of the state before the first step; zero where there is none.
template <class F>
void start_from(const F* init, std::int64_t begin, std::int64_t n, F* row) {
  if (init) {
    std::copy_n(init + begin, n, row);
  } else {
    std::fill_n(row, n, F(0));
  }
}

// Steps that are taken at a time, in registers.
inline constexpr std::int64_t kBlock = 4;

constexpr std::int64_t blocks_of(std::int64_t timesteps) {
  return timesteps / kBlock + timesteps % kBlock;
}

// Calls f(steps, t) for block number `block`: as many whole blocks as fit, then single steps.
template <class Call>
void visit_block(std::int64_t timesteps, std::int64_t block, Call&& f) {
  const std::int64_t whole = timesteps / kBlock;
  if (block < whole) {
    f(Constant<std::int64_t{kBlock}>{}, block * kBlock);
  } else {
    f(Constant<std::int64_t{1}>{}, whole * kBlock + block - whole);
  }
}

// What passes through a buffer on its way (conversions, normalisation) does so in strips of a row,
// which stay in the first cache while the rows themselves are long.
inline constexpr std::int64_t kStrip = 2048;

// The currents of a tile as the neurons see them: rows of x, converted to the state's type and
// scaled and shifted where that is asked for.
template <class F>
class Currents {
 public:
  static constexpr std::int64_t rows_needed(std::int64_t steps) { return 2 * steps + 2; }

  // `steps`: the most that are asked for at a time.
  Currents(const LifShape& shape, const void* x, const Affine<F>& affine, std::int64_t begin,
           std::int64_t n, std::int64_t steps, Rows<F>& rows)
      : shape_(shape), x_(x), affine_(affine), begin_(begin) {
    converted_ = rows.take(steps);
    seen_ = rows.take(steps);
    scale_ = rows.take();
    shift_ = rows.take();
    if (affine_) {
      fill_row(affine_.scale, begin, begin + n, scale_);
      fill_row(affine_.shift, begin, begin + n, shift_);
    }
  }

  // Neurons [from, from + count) of rows t, ..., t + steps - 1 of x itself.
  RowsOf<const F> raw(std::int64_t t, std::int64_t steps, std::int64_t from,
                      std::int64_t count) const {
    const std::int64_t at = t * shape_.x_step + begin_ + from;
    return load_rows(shape_.dtype, x_, at, shape_.x_step, steps, count, converted_);
  }

  RowsOf<const F> rows(std::int64_t t, std::int64_t steps, std::int64_t from,
                       std::int64_t count) const {
    const auto x = raw(t, steps, from, count);
    if (!affine_) return x;
    for (std::int64_t k = 0; k < steps; ++k) {
      affine_row(count, scale_ + from, shift_ + from, x.data + k * x.step, seen_ + k * count);
    }
    return {seen_, count};
  }

  // For kernels that scale and shift by themselves what `raw` gives them.
  AffineRow<F> affine(std::int64_t from) const { return {scale_ + from, shift_ + from}; }

 private:
  const LifShape& shape_;
  const void* x_;
  const Affine<F>& affine_;
  std::int64_t begin_;
  F *converted_, *seen_, *scale_, *shift_;
};

// Where the gradient of a tile's currents goes, some steps and neurons at a time: into the tensor;
// added up where the input is constant in time; and, where x is normalised, into the sums that the
// normalisation's own gradient needs.
template <class F>
class InputGradient {
 public:
  static constexpr std::int64_t rows_needed(std::int64_t steps) { return steps + 3; }

  InputGradient(const LifBackward<F>& p, const Currents<F>& currents, std::int64_t begin,
                std::int64_t n, std::int64_t steps, Rows<F>& rows)
      : p_(p), currents_(currents), begin_(begin), n_(n) {
    buffer_ = rows.take(steps);
    sum_ = rows.take();
    dot_ = rows.take();
    mean_ = rows.take();
    std::fill_n(sum_, n_, F(0));
    if (p_.affine) {
      std::fill_n(dot_, n_, F(0));
      fill_row(p_.norm.mean, begin_, begin_ + n_, mean_);
    }
  }

  RowsOf<F> target(std::int64_t t, std::int64_t from, std::int64_t count) const {
    if (p_.sum_over_time) return {buffer_, count};
    return target_rows(p_.shape.dtype, p_.grad_x, offset(t, from), p_.grad_x_step, count, buffer_);
  }

  // For kernels that add up by themselves what the normalisation needs; else `store` does.
  NormSumRows<F> norm_sums(std::int64_t from) const {
    return {mean_ + from, sum_ + from, dot_ + from};
  }

  void store(const RowsOf<F>& rows, std::int64_t t, std::int64_t steps, std::int64_t from,
             std::int64_t count, bool summed = false) const {
    if (p_.norm.neuron_sum && !summed) {
      const auto x = currents_.raw(t, steps, from, count);
      for (std::int64_t k = steps - 1; k >= 0; --k) {
        sums_row(count, rows.data + k * rows.step, x.data + k * x.step, norm_sums(from));
      }
    }
    if (p_.sum_over_time) {
      for (std::int64_t k = steps - 1; k >= 0; --k) {
        add_row(count, rows.data + k * rows.step, sum_ + from);
      }
    } else {
      store_rows(p_.shape.dtype, rows, p_.grad_x, offset(t, from), p_.grad_x_step, steps, count);
    }
  }

  // After the last step.
  void finish() const {
    if (p_.norm.neuron_sum) {
      std::copy_n(sum_, n_, p_.norm.neuron_sum + begin_);
      std::copy_n(dot_, n_, p_.norm.neuron_dot + begin_);
    }
    if (!p_.sum_over_time) return;
    const auto target = target_rows(p_.shape.dtype, p_.grad_x, begin_, 0, n_, sum_);
    if (target.data != sum_) std::copy_n(sum_, n_, target.data);
    store_rows(p_.shape.dtype, target, p_.grad_x, begin_, 0, 1, n_);
  }

 private:
  std::int64_t offset(std::int64_t t, std::int64_t from) const {
    return t * p_.grad_x_step + begin_ + from;
  }

  const LifBackward<F>& p_;
  const Currents<F>& currents_;
  std::int64_t begin_, n_;
  F *buffer_, *sum_, *dot_, *mean_;
};

// The two ways through a tile [begin, begin + n): in blocks of steps, for neurons that share their
// parameters (lif_blocks.cpp), and step by step (lif_steps.cpp). Compiled in blocks are the neurons
// that libraries have.
constexpr bool runs_in_blocks(Charge charge, Reset reset, Synapse synapse) {
  const bool at_once = reset == Reset::kHard || reset == Reset::kSoft;
  switch (synapse) {
    case Synapse::kNone:
      return charge == Charge::kLeak || at_once;
    case Synapse::kCharged:  // snnTorch
      return charge == Charge::kLeak && !at_once;
    case Synapse::kDecayed:  // sinabs
      return charge == Charge::kLeak && at_once;
    case Synapse::kJump:  // Norse
      return charge == Charge::kEuler && reset == Reset::kHard;
  }
  return false;
}

void forward_in_blocks(const LifForward<float>& p, std::int64_t begin, std::int64_t n,
                       std::int64_t length);
void backward_in_blocks(const LifBackward<float>& p, std::int64_t begin, std::int64_t n,
                        std::int64_t length);
template <class F>
void forward_by_steps(const LifForward<F>& p, std::int64_t begin, std::int64_t n,
                      std::int64_t length);
template <class F>
void backward_by_steps(const LifBackward<F>& p, std::int64_t begin, std::int64_t n,
                       std::int64_t length);

inline bool same(const SurrogateChoice& a, const SurrogateChoice& b) {
  return a.kind == b.kind && a.args[0] == b.args[0] && a.args[1] == b.args[1] &&
         a.normalized == b.normalized;
}

// Calls f(choice, from, stop) for every run of neurons in [begin, end) that has one surrogate.
template <class F, class Call>
void for_each_surrogate(const LifBackward<F>& p, std::int64_t begin, std::int64_t end, Call&& f) {
  if (p.samples == 1) return f(p.surrogates[0], begin, end);
  const SurrogateChoice* choice = nullptr;
  std::int64_t from = begin;
  const Parameter<F> samples{nullptr, p.samples, p.sample_stride};
  samples.for_each_stretch(begin, end, [&](std::int64_t sample, std::int64_t start, std::int64_t) {
    const SurrogateChoice* const next = p.surrogates + sample;
    if (choice && !same(*choice, *next)) {
      f(*choice, from, start);
      from = start;
    }
    choice = next;
  });
  if (choice) f(*choice, from, end);  // none where there are no neurons
}

}  // namespace snnkern::cpu
