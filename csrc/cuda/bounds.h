// The passes of bounds.h on the GPU; see lif.h for what all of them have in common.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../bounds.h"

namespace snnkern::cuda {

template <class F>
cudaError_t interval_forward(const IntervalForward<F>& p, cudaStream_t stream);

// `membranes` has room for both ends of all steps: 2 * timesteps * neurons numbers.
template <class F>
cudaError_t interval_backward(const IntervalBackward<F>& p, F* membranes, cudaStream_t stream);

template <class F>
cudaError_t relax(const Relaxation<F>& p, cudaStream_t stream);

// `sums`, over the rows, has room for 2 * timesteps * neurons numbers.
template <class F>
cudaError_t relax_backward(const RelaxationBackward<F>& p, double* sums, cudaStream_t stream);

}  // namespace snnkern::cuda
