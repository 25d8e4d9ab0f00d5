// What normalisation over time, batch and space adds to the neurons: its statistics, and its own
// share of the gradient.
#include <algorithm>
#include <cstdint>

#include "clones.h"
#include "tile.h"

namespace snnkern::cpu {
namespace {

// sum += x - centre, square += (x - centre)^2, over kSteps rows of x.
template <std::int64_t kSteps, class F>
SNN_CLONES void moments_rows(std::int64_t n, const F* __restrict x, const std::int64_t x_step,
                             const F* __restrict centre, F* __restrict sum, F* __restrict square) {
  for (std::int64_t i = 0; i < n; ++i) {
    F total = F(0), squares = F(0);
#pragma GCC unroll 4
    for (std::int64_t k = 0; k < kSteps; ++k) {
      const F d = x[i + k * x_step] - centre[i];
      total += d;
      squares += d * d;
    }
    sum[i] += total;
    square[i] += squares;
  }
}

// Rows of the gradient of normalisation: from_g * g + from_x * (x - mean) + constant.
template <class F>
struct NormGradientRows {
  const F *mean, *from_g, *from_x, *constant;
};

// kSteps rows of g become gx.
template <std::int64_t kSteps, class F>
SNN_CLONES void norm_gradient_rows(std::int64_t n, const NormGradientRows<F> of,
                                   const F* __restrict x, const std::int64_t x_step, const F* g,
                                   const std::int64_t g_step, F* gx, const std::int64_t gx_step) {
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) {
    const F mean = of.mean[i], from_g = of.from_g[i], from_x = of.from_x[i];
    const F constant = of.constant[i];
    F result[kSteps];
#pragma GCC unroll 4
    for (std::int64_t k = 0; k < kSteps; ++k) {
      result[k] = from_g * g[i + k * g_step] + from_x * (x[i + k * x_step] - mean) + constant;
    }
#pragma GCC unroll 4
    for (std::int64_t k = 0; k < kSteps; ++k) gx[i + k * gx_step] = result[k];
  }
}

}  // namespace

template <class F>
void moments(const LifShape& shape, const void* x, const Parameter<F>& centre, F* neuron_sum,
             F* neuron_square, const Tiling& tiling, std::int64_t first, std::int64_t last) {
  Rows<F> rows(tiling.size, 1 + kBlock);
  F* const centres = rows.take();
  F* const buffer = rows.take(kBlock);
  for (std::int64_t begin = first * tiling.size; first < last; ++first, begin += tiling.size) {
    const std::int64_t n = std::min(tiling.size, tiling.neurons - begin);
    F* const sum = neuron_sum + begin;
    F* const square = neuron_square + begin;
    fill_row(centre, begin, begin + n, centres);
    std::fill_n(sum, n, F(0));
    std::fill_n(square, n, F(0));
    for (std::int64_t block = 0; block < blocks_of(shape.timesteps); ++block) {
      visit_block(shape.timesteps, block, [&](auto steps, std::int64_t t) {
        const auto row =
            load_rows(shape.dtype, x, t * shape.x_step + begin, shape.x_step, steps, n, buffer);
        moments_rows<steps>(n, row.data, row.step, centres, sum, square);
      });
    }
  }
}

template <class F>
void norm_backward(const LifShape& shape, const void* x, const Parameter<F>& mean,
                   const Parameter<F>& from_g, const Parameter<F>& from_x,
                   const Parameter<F>& constant, void* g, const Tiling& tiling, std::int64_t first,
                   std::int64_t last) {
  const std::int64_t length = tiling.size;
  Rows<F> rows(length, 4 + 2 * kBlock);
  F* const means = rows.take();
  F* const of_g = rows.take();
  F* const of_x = rows.take();
  F* const constants = rows.take();
  F* const x_buffer = rows.take(kBlock);
  F* const g_buffer = rows.take(kBlock);
  for (std::int64_t begin = first * length; first < last; ++first, begin += length) {
    const std::int64_t n = std::min(length, tiling.neurons - begin);
    fill_row(mean, begin, begin + n, means);
    fill_row(from_g, begin, begin + n, of_g);
    fill_row(from_x, begin, begin + n, of_x);
    fill_row(constant, begin, begin + n, constants);
    for (std::int64_t block = 0; block < blocks_of(shape.timesteps); ++block) {
      visit_block(shape.timesteps, block, [&](auto steps, std::int64_t t) {
        const std::int64_t at = t * shape.neurons + begin;
        const auto xs =
            load_rows(shape.dtype, x, t * shape.x_step + begin, shape.x_step, steps, n, x_buffer);
        const auto gs = load_rows<F>(shape.dtype, g, at, shape.neurons, steps, n, g_buffer);
        const auto out = target_rows(shape.dtype, g, at, shape.neurons, n, g_buffer);
        norm_gradient_rows<steps, F>(n, {means, of_g, of_x, constants}, xs.data, xs.step, gs.data,
                                     gs.step, out.data, out.step);
        store_rows(shape.dtype, out, g, at, shape.neurons, steps, n);
      });
    }
  }
}

template void moments(const LifShape&, const void*, const Parameter<float>&, float*, float*,
                      const Tiling&, std::int64_t, std::int64_t);
template void moments(const LifShape&, const void*, const Parameter<double>&, double*, double*,
                      const Tiling&, std::int64_t, std::int64_t);
template void norm_backward(const LifShape&, const void*, const Parameter<float>&,
                            const Parameter<float>&, const Parameter<float>&,
                            const Parameter<float>&, void*, const Tiling&, std::int64_t,
                            std::int64_t);
template void norm_backward(const LifShape&, const void*, const Parameter<double>&,
                            const Parameter<double>&, const Parameter<double>&,
                            const Parameter<double>&, void*, const Tiling&, std::int64_t,
                            std::int64_t);

}  // namespace snnkern::cpu
