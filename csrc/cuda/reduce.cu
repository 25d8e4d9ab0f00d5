// Sums [outer, count, repeat] to [count], in a few passes that each add up stretches of a fixed
// length. Which numbers are added in which order depends on the shape alone.
#include <algorithm>
#include <tuple>
#include <utility>

#include "launch.h"
#include "lif.h"

namespace snnkern::cuda {
namespace {

constexpr int kThreads = 128;
constexpr std::int64_t kLanes = 32;        // neighbouring threads that read neighbouring numbers
constexpr std::int64_t kEnough = 1 << 15;  // threads that keep a GPU busy
constexpr std::int64_t kAddends = 32;      // of one thread, at least, where there are so many

// Every thread sums a column of a part: in[part * length + lane + i * lanes], i = 0, 1, ...
struct Pass {
  std::int64_t total;   // numbers in all
  std::int64_t length;  // of a part; the last one may be shorter
  std::int64_t lanes;

  std::int64_t parts() const { return (total + length - 1) / length; }
  std::int64_t sums() const { return parts() * lanes; }
};

template <class In, class Out>
SNN_HD void sum_columns(const Pass& pass, const In* in, Out* out, std::int64_t sums,
                        std::int64_t thread) {
  if (thread >= sums) return;
  const std::int64_t part = thread / pass.lanes;
  const std::int64_t begin = part * pass.length;
  const std::int64_t end = begin + pass.length < pass.total ? begin + pass.length : pass.total;
  double total = 0;
#pragma unroll 4
  for (std::int64_t i = begin + (thread - part * pass.lanes); i < end; i += pass.lanes) {
    total += in[i];
  }
  out[thread] = static_cast<Out>(total);
}

template <class In, class Out>
__global__ void __launch_bounds__(kThreads)
    sum_columns_kernel(Pass pass, const In* in, Out* out, std::int64_t sums) {
  sum_columns(pass, in, out, sums, this_thread());
}

// What is still to be summed: [outer, count, repeat].
struct Rest {
  std::int64_t outer, count, repeat;

  template <class F>
  static Rest of(const Parameter<F>& parameter, std::int64_t neurons) {
    if (parameter.count == 1) return {1, 1, neurons};
    return {neurons / (parameter.count * parameter.repeat), parameter.count, parameter.repeat};
  }

  // The next pass; what it leaves.
  std::pair<Pass, Rest> next() const {
    const std::int64_t total = outer * count * repeat, columns = count * repeat;
    if (repeat > kLanes || outer == 1) {
      const std::int64_t wanted = kEnough / (outer * count) / kLanes * kLanes;
      std::int64_t lanes = std::min(std::max(wanted, kLanes), repeat / kAddends / kLanes * kLanes);
      if (lanes < kLanes) lanes = repeat > kLanes ? kLanes : 1;
      return {{total, repeat, lanes}, {outer, count, lanes}};
    }
    const std::int64_t rows = std::max(kAddends, outer * columns / kEnough);
    const Pass pass{total, std::min(rows, outer) * columns, columns};
    return {pass, {pass.parts(), count, repeat}};
  }
  bool done() const { return outer == 1 && repeat == 1; }
};

}  // namespace

template <class F>
std::int64_t reduce_workspace(const Parameter<F>& parameter, std::int64_t neurons) {
  std::int64_t all = 0;
  for (auto [pass, rest] = Rest::of(parameter, neurons).next(); !rest.done();
       std::tie(pass, rest) = rest.next()) {
    all += pass.sums();
  }
  return all;
}

template <class F>
cudaError_t reduce(const F* sums, const Parameter<F>& parameter, std::int64_t neurons,
                   double* workspace, F* grad, cudaStream_t stream) {
  auto [pass, rest] = Rest::of(parameter, neurons).next();
  const auto run = [&](const auto* in, auto* out) {
    using In = std::remove_cvref_t<decltype(*in)>;
    using Out = std::remove_cvref_t<decltype(*out)>;
    return launch(sum_columns_kernel<In, Out>, pass.sums(), kThreads, 0, stream, pass, in, out,
                  pass.sums());
  };
  if (rest.done()) return run(sums, grad);
  cudaError_t error = run(sums, workspace);
  while (error == cudaSuccess) {
    const double* const in = workspace;
    workspace += pass.sums();
    std::tie(pass, rest) = rest.next();
    if (rest.done()) return run(in, grad);
    error = run(in, workspace);
  }
  return error;
}

template std::int64_t reduce_workspace(const Parameter<float>&, std::int64_t);
template std::int64_t reduce_workspace(const Parameter<double>&, std::int64_t);
template cudaError_t reduce(const float*, const Parameter<float>&, std::int64_t, double*, float*,
                            cudaStream_t);
template cudaError_t reduce(const double*, const Parameter<double>&, std::int64_t, double*, double*,
                            cudaStream_t);

}  // namespace snnkern::cuda
