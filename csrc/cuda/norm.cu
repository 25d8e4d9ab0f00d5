#include "launch.h"
#include "lif.h"
#include "neurons.h"

namespace snnkern::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kCount = 4;
constexpr int kBlock = 4;

template <Dtype kDtype, class F>
SNN_HD void moments_of(const LifShape& shape, const void* x, const Parameter<F>& centre, F* sum,
                       F* square, bool aligned, std::int64_t thread) {
  const auto place = Place<kCount>::of(thread, shape.neurons, aligned);
  if (place.present <= 0) return;
  F centres[kCount], sums[kCount] = {}, squares[kCount] = {};
  place.load_parameter(centre, centres);
  const int T = static_cast<int>(shape.timesteps);
  for (int t = 0; t < T; t += kBlock) {
    const auto loads = Loads<kDtype, kCount, kBlock>::of(place, x, shape.x_step, t, 1, kBlock, T);
#pragma unroll
    for (int k = 0; k < kBlock; ++k) {
      if (t + k >= T) break;
      F values[kCount];
      loads.get(k, values);
      for (int i = 0; i < kCount; ++i) {
        const F d = values[i] - centres[i];
        sums[i] += d;
        squares[i] += d * d;
      }
    }
  }
  place.store_state(sums, sum);
  place.store_state(squares, square);
}

template <class F>
struct NormBackward {
  LifShape shape;
  const void* x;
  Parameter<F> mean, from_g, from_x, constant;
  void* g;
};

template <Dtype kDtype, class F>
SNN_HD void norm_backward_of(const NormBackward<F>& p, bool aligned, std::int64_t thread) {
  const auto place = Place<kCount>::of(thread, p.shape.neurons, aligned);
  if (place.present <= 0) return;
  F mean[kCount], from_g[kCount], from_x[kCount], constant[kCount];
  place.load_parameter(p.mean, mean);
  place.load_parameter(p.from_g, from_g);
  place.load_parameter(p.from_x, from_x);
  place.load_parameter(p.constant, constant);
  const int T = static_cast<int>(p.shape.timesteps);
  for (int t = 0; t < T; t += kBlock) {
    const auto xs = Loads<kDtype, kCount, kBlock>::of(place, p.x, p.shape.x_step, t, 1, kBlock, T);
    const auto gs = Loads<kDtype, kCount, kBlock>::of(place, p.g, p.shape.neurons, t, 1, kBlock, T);
#pragma unroll
    for (int k = 0; k < kBlock; ++k) {
      if (t + k >= T) break;
      F x[kCount], g[kCount];
      xs.get(k, x);
      gs.get(k, g);
      Pack<Element<kDtype>, kCount> pack;
      for (int i = 0; i < kCount; ++i) {
        pack.e[i] =
            to_element<kDtype>(from_g[i] * g[i] + from_x[i] * (x[i] - mean[i]) + constant[i]);
      }
      place.store(pack, static_cast<Element<kDtype>*>(p.g) + (t + k) * p.shape.neurons);
    }
  }
}

template <Dtype kDtype, class F>
__global__ void __launch_bounds__(kThreads)
    moments_kernel(LifShape shape, const void* x, Parameter<F> centre, F* sum, F* square,
                   bool aligned) {
  moments_of<kDtype>(shape, x, centre, sum, square, aligned, this_thread());
}

template <Dtype kDtype, class F>
__global__ void __launch_bounds__(kThreads) norm_backward_kernel(NormBackward<F> p, bool aligned) {
  norm_backward_of<kDtype>(p, aligned, this_thread());
}

// Calls f with the dtype of x as a constant.
template <class F, class Call>
cudaError_t with_dtype(Dtype dtype, Call&& f) {
  if constexpr (std::is_same_v<F, double>) {
    return f(Constant<Dtype::kFloat64>{});
  } else if (dtype == Dtype::kFloat16) {
    return f(Constant<Dtype::kFloat16>{});
  } else if (dtype == Dtype::kBFloat16) {
    return f(Constant<Dtype::kBFloat16>{});
  } else {
    return f(Constant<Dtype::kFloat32>{});
  }
}

std::int64_t threads_for(const LifShape& shape) { return (shape.neurons + kCount - 1) / kCount; }

}  // namespace

template <class F>
cudaError_t moments(const LifShape& shape, const void* x, const Parameter<F>& centre, F* sum,
                    F* square, cudaStream_t stream) {
  const bool aligned = loads_as_one(x, shape.x_step, size_of(shape.dtype), kCount);
  return with_dtype<F>(shape.dtype, [&]<Dtype kDtype>(Constant<kDtype>) {
    return launch(moments_kernel<kDtype, F>, threads_for(shape), kThreads, 0, stream, shape, x,
                  centre, sum, square, aligned);
  });
}

template <class F>
cudaError_t norm_backward(const LifShape& shape, const void* x, const Parameter<F>& mean,
                          const Parameter<F>& from_g, const Parameter<F>& from_x,
                          const Parameter<F>& constant, void* g, cudaStream_t stream) {
  const std::int64_t size = size_of(shape.dtype);
  const bool aligned =
      loads_as_one(x, shape.x_step, size, kCount) && loads_as_one(g, shape.neurons, size, kCount);
  const NormBackward<F> p{shape, x, mean, from_g, from_x, constant, g};
  return with_dtype<F>(shape.dtype, [&]<Dtype kDtype>(Constant<kDtype>) {
    return launch(norm_backward_kernel<kDtype, F>, threads_for(shape), kThreads, 0, stream, p,
                  aligned);
  });
}

template cudaError_t moments(const LifShape&, const void*, const Parameter<float>&, float*, float*,
                             cudaStream_t);
template cudaError_t moments(const LifShape&, const void*, const Parameter<double>&, double*,
                             double*, cudaStream_t);
template cudaError_t norm_backward(const LifShape&, const void*, const Parameter<float>&,
                                   const Parameter<float>&, const Parameter<float>&,
                                   const Parameter<float>&, void*, cudaStream_t);
template cudaError_t norm_backward(const LifShape&, const void*, const Parameter<double>&,
                                   const Parameter<double>&, const Parameter<double>&,
                                   const Parameter<double>&, void*, cudaStream_t);

}  // namespace snnkern::cuda
