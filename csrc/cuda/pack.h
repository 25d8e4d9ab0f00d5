// Spikes as bits and back on the GPU: a thread for every byte. See lif.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../pack.h"

namespace snnkern::cuda {

// `place` has room for one number; `stray` gets the first value that is neither 0 nor 1, else 0.
cudaError_t pack_spikes(const BitRows& shape, Dtype dtype, const void* spikes, std::int64_t step,
                        std::uint8_t* bits, long long* place, double* stray, cudaStream_t stream);

cudaError_t unpack_spikes(const BitRows& shape, Dtype dtype, const std::uint8_t* bits, void* spikes,
                          cudaStream_t stream);

}  // namespace snnkern::cuda
