// How kernels are started.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace snnkern::cuda {

// One thread for each of `threads`, in blocks of `block`, every thread with `shared` bytes of its
// own. The kernel has to look after the threads that fill up the last block.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), std::int64_t threads, int block,
                   std::int64_t shared, cudaStream_t stream, const Arguments&... arguments) {
  if (threads == 0) return cudaSuccess;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>((threads + block - 1) / block));
  config.blockDim = dim3(static_cast<unsigned>(block));
  config.dynamicSmemBytes = static_cast<std::size_t>(shared * block);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// The memory that a launch gives to a block.
extern __shared__ double2 shared[];

// The number of the calling thread in the grid.
__device__ inline std::int64_t this_thread() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

}  // namespace snnkern::cuda
