// The passes of lif.h on the GPU: a thread takes a few neighbouring neurons through all time steps.
//
// Every function starts its kernels on `stream` and returns at once; memory is the caller's. No
// thread looks at what another one does, so results do not depend on how they are scheduled.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../lif.h"

namespace snnkern::cuda {

template <class F>
cudaError_t lif_forward(const LifForward<F>& p, cudaStream_t stream);

// How the backward pass divides time: the membranes of a segment are kept on the chip, going
// forward, until they are needed, going back. With more than one segment, the state before each but
// the first is kept in a workspace.
struct Segments {
  int length;
  int count;
  int rows;        // numbers per neuron that are kept of a step
  int state_rows;  // numbers per neuron that make up a state

  template <class F>
  static Segments of(const LifBackward<F>& p, bool table);
  std::int64_t workspace(std::int64_t neurons) const {
    return std::int64_t{count - 1} * state_rows * neurons;
  }
};

// A surrogate for every sample: p.samples rows of (kind, arg, arg, normalized) in memory of the
// GPU, or null: p.surrogates has the one for all.
using SurrogateTable = const double*;

// `workspace` has room for Segments::workspace numbers.
template <class F>
cudaError_t lif_backward(const LifBackward<F>& p, SurrogateTable table, F* workspace,
                         cudaStream_t stream);

// See cpu/lif.h.
template <class F>
cudaError_t moments(const LifShape& shape, const void* x, const Parameter<F>& centre, F* sum,
                    F* square, cudaStream_t stream);
template <class F>
cudaError_t norm_backward(const LifShape& shape, const void* x, const Parameter<F>& mean,
                          const Parameter<F>& from_g, const Parameter<F>& from_x,
                          const Parameter<F>& constant, void* g, cudaStream_t stream);

// Adds up the sums of the neurons that share a parameter value, in float64 and always in the same
// order; `grad` is [parameter.count]. The workspace has room for reduce_workspace numbers.
template <class F>
std::int64_t reduce_workspace(const Parameter<F>& parameter, std::int64_t neurons);
template <class F>
cudaError_t reduce(const F* sums, const Parameter<F>& parameter, std::int64_t neurons,
                   double* workspace, F* grad, cudaStream_t stream);

}  // namespace snnkern::cuda
