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

template <class F>
void fill_row(const Parameter<F>& parameter, std::int64_t begin, std::int64_t end, F* row) {
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
    fire_at[i] = dynamics.strict ? std::nextafter(threshold[i], std::numeric_limits<F>::infinity())
                                 : threshold[i];
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

// A stretch of the gradient of the input, `steps` rows of it at a time: into the tensor, or, where
// the input is constant in time, added up.
template <class F>
class InputGradient {
 public:
  InputGradient(const LifBackward<F>& p, std::int64_t begin, std::int64_t n, F* buffer, F* sum)
      : p_(p), begin_(begin), n_(n), buffer_(buffer), sum_(sum) {
    if (p_.sum_over_time) std::fill_n(sum_, n_, F(0));
  }

  RowsOf<F> target(std::int64_t t) const {
    if (p_.sum_over_time) return {buffer_, n_};
    return target_rows(p_.shape.dtype, p_.grad_x, offset(t), p_.shape.neurons, n_, buffer_);
  }

  void store(const RowsOf<F>& rows, std::int64_t t, std::int64_t steps) const {
    if (!p_.sum_over_time) {
      store_rows(p_.shape.dtype, rows, p_.grad_x, offset(t), p_.shape.neurons, steps, n_);
      return;
    }
    for (std::int64_t k = steps - 1; k >= 0; --k) add_row(n_, rows.data + k * rows.step, sum_);
  }

  // After the last step.
  void finish() const {
    if (!p_.sum_over_time) return;
    const auto target = target_rows(p_.shape.dtype, p_.grad_x, begin_, 0, n_, sum_);
    if (target.data != sum_) std::copy_n(sum_, n_, target.data);
    store_rows(p_.shape.dtype, target, p_.grad_x, begin_, 0, 1, n_);
  }

 private:
  std::int64_t offset(std::int64_t t) const { return t * p_.shape.neurons + begin_; }

  const LifBackward<F>& p_;
  std::int64_t begin_, n_;
  F* buffer_;
  F* sum_;
};

// Backpropagation through the rate (BPTR) over one tile: the gradient of a spike passes on to the
// current of its step where the neuron fired at all (`fired` above 0). Nothing else gets any.
template <class F>
void gate_by_rate(const LifBackward<F>& p, const F* fired, const InputGradient<F>& grad_x,
                  std::int64_t begin, std::int64_t n, F* buffer) {
  for (std::int64_t t = p.shape.timesteps - 1; t >= 0; --t) {
    const auto gs =
        load_rows(p.shape.dtype, p.grad_spikes, t * p.grad_step + begin, p.grad_step, 1, n, buffer);
    const auto gx = grad_x.target(t);
    gate_row(n, fired, gs.data, gx.data);
    grad_x.store(gx, t, 1);
  }
  for (F* const none : {p.grad_v_init, p.grad_current_init, p.neuron_grad_decay,
                        p.neuron_grad_threshold, p.neuron_grad_synapse}) {
    if (none) std::fill_n(none + begin, n, F(0));
  }
}

// The two ways through a tile [begin, begin + n): in blocks of steps, for neurons that share their
// parameters and have nothing unusual about them (lif_blocks.cpp), and step by step
// (lif_steps.cpp).
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

}  // namespace snnkern::cpu
