// Stands in for the CUDA runtime, so that the CUDA kernels can be tested without a GPU: they are
// compiled by the host's compiler, and a launch runs the threads of its grid one after another.
// Memory that threads share is filled with NaN before each of them: no kernel of ours hands
// anything from one thread to another but by atomicMin.
#pragma once

#include <cstddef>
#include <cstring>

#define __global__
#define __device__
#define __shared__
#define __launch_bounds__(...)

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = void*;

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned size = 1) : x(size) {}
};

struct alignas(16) double2 {
  double x, y;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

inline dim3 gridDim, blockDim, blockIdx, threadIdx;

inline long long atomicMin(long long* place, long long value) {
  const long long before = *place;
  *place = value < before ? value : before;
  return before;
}

// What kernels declare as extern __shared__ double2 shared[].
namespace snnkern::cuda {
inline constexpr std::size_t kSharedBytes = 48 * 1024;
inline double2 shared[kSharedBytes / sizeof(double2)];
}  // namespace snnkern::cuda

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const bool fits = config->gridDim.x > 0 && config->blockDim.x > 0 && config->blockDim.x <= 1024 &&
                    config->dynamicSmemBytes <= snnkern::cuda::kSharedBytes;
  if (!fits) return cudaErrorInvalidConfiguration;
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
    for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) {
      std::memset(snnkern::cuda::shared, 0xff, config->dynamicSmemBytes);
      kernel(arguments...);
    }
  }
  return cudaSuccess;
}
