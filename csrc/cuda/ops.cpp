// The CUDA kernels as operators: device, stream, working memory, registration.
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "../bound_ops.h"
#include "../lif_ops.h"
#include "../pack_ops.h"
#include "bounds.h"
#include "lif.h"
#include "pack.h"

namespace snnkern::cuda {
namespace {

void check(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess,
                  "snnkern: a CUDA kernel did not start: ", cudaGetErrorString(error),
                  " (built for GPUs ", SNNKERN_CUDA_ARCHS, ")");
}

// See lif_ops.h. While it lives, the device of the tensor is the current one.
class Cuda {
 public:
  static constexpr bool kReadsSamplesApart = false;

  explicit Cuda(const Tensor& x) : like_(x) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_create_cuda_guard(x.get_device_index(), &guard_));
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  Cuda(const Cuda&) = delete;
  Cuda& operator=(const Cuda&) = delete;
  ~Cuda() { aoti_torch_delete_cuda_guard(guard_); }

  template <class F>
  void forward(const LifForward<F>& p) const {
    check(lif_forward(p, stream_));
  }

  template <class F>
  void backward(LifBackward<F> p, const OptionalTensor& table) const {
    if (table) p.samples = table->size(0);
    const auto numbers = Segments::of(p, table.has_value()).workspace(p.shape.neurons);
    const Tensor states = workspace<F>(numbers);
    check(lif_backward(p, table ? static_cast<SurrogateTable>(table->const_data_ptr()) : nullptr,
                       static_cast<F*>(states.mutable_data_ptr()), stream_));
  }

  template <class F>
  void moments(const LifShape& shape, const void* x, const Parameter<F>& centre, F* sum,
               F* square) const {
    check(cuda::moments(shape, x, centre, sum, square, stream_));
  }

  template <class F>
  void norm_backward(const LifShape& shape, const void* x, const Parameter<F>& mean,
                     const Parameter<F>& from_g, const Parameter<F>& from_x,
                     const Parameter<F>& constant, void* g) const {
    check(cuda::norm_backward(shape, x, mean, from_g, from_x, constant, g, stream_));
  }

  template <class F>
  void reduce(const F* sums, const Parameter<F>& parameter, int64_t neurons, F* grad) const {
    const Tensor partial = workspace<double>(reduce_workspace(parameter, neurons));
    check(cuda::reduce(sums, parameter, neurons, static_cast<double*>(partial.mutable_data_ptr()),
                       grad, stream_));
  }

  template <class F>
  void interval(const IntervalForward<F>& p) const {
    check(interval_forward(p, stream_));
  }

  template <class F>
  void interval_backward(const IntervalBackward<F>& p) const {
    const Tensor membranes = workspace<F>(2 * p.shape.timesteps * p.shape.neurons);
    check(cuda::interval_backward(p, static_cast<F*>(membranes.mutable_data_ptr()), stream_));
  }

  template <class F>
  void relax(const Relaxation<F>& p) const {
    check(cuda::relax(p, stream_));
  }

  template <class F>
  void relax_backward(const RelaxationBackward<F>& p) const {
    const Tensor sums = workspace<double>(p.rows > 1 ? 2 * p.shape.timesteps * p.shape.neurons : 0);
    check(cuda::relax_backward(p, static_cast<double*>(sums.mutable_data_ptr()), stream_));
  }

  void pack(const BitRows& shape, Dtype dtype, const void* spikes, int64_t step, uint8_t* bits,
            double* stray) const {
    const Tensor place = empty_strided({1}, {1}, ScalarType::Long, like_);
    check(pack_spikes(shape, dtype, spikes, step, bits,
                      static_cast<long long*>(place.mutable_data_ptr()), stray, stream_));
  }

  void unpack(const BitRows& shape, Dtype dtype, const uint8_t* bits, void* spikes) const {
    check(unpack_spikes(shape, dtype, bits, spikes, stream_));
  }

 private:
  template <class F>
  Tensor workspace(int64_t numbers) const {
    constexpr auto kType = sizeof(F) == 8 ? ScalarType::Double : ScalarType::Float;
    return empty_strided({numbers}, {1}, kType, like_);
  }

  const Tensor& like_;
  CUDAGuardHandle guard_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

}  // namespace
}  // namespace snnkern::cuda

STABLE_TORCH_LIBRARY_IMPL(snnkern, CUDA, m) {
  snnkern::register_lif<snnkern::cuda::Cuda>(m);
  snnkern::register_pack<snnkern::cuda::Cuda>(m);
  snnkern::register_bounds<snnkern::cuda::Cuda>(m);
}
