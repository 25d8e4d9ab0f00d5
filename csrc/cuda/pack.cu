#include "pack.h"

#include <limits>

#include "launch.h"

namespace snnkern::cuda {
namespace {

constexpr int kThreads = 256;
constexpr long long kNone = std::numeric_limits<long long>::max();

// Eight neighbours, moved 16 bytes at a time where they lie so.
template <class U>
struct alignas(sizeof(U) == 1 ? 8 : 16) Eight {
  U e[8];
};

template <class U>
SNN_HD bool moves_as_one(const U* at) {
  return reinterpret_cast<std::uintptr_t>(at) % alignof(Eight<U>) == 0;
}

__global__ void no_stray_kernel(long long* place) { *place = kNone; }

// The smallest place is the same in whatever order threads find theirs.
template <class U>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(BitRows shape, Pattern<U> pattern, const U* spikes, std::int64_t step,
                std::uint8_t* bits, long long* place) {
  const std::int64_t thread = this_thread();
  if (thread >= shape.rows * shape.bytes()) return;
  const std::int64_t row = thread / shape.bytes();
  const std::int64_t first = (thread - row * shape.bytes()) * 8;
  const U* const in = spikes + row * step + first;
  const std::int64_t count = shape.neurons - first;
  Eight<U> values{};
  if (count >= 8 && moves_as_one(in)) {
    values = *reinterpret_cast<const Eight<U>*>(in);
  } else {
    for (int i = 0; i < 8; ++i) {
      if (i < count) values.e[i] = in[i];
    }
  }
  unsigned byte = 0;
  for (int i = 7; i >= 0; --i) {
    byte |= unsigned(pattern.is_spike(values.e[i])) << i;
    if (pattern.is_stray(values.e[i])) atomicMin(place, row * shape.neurons + first + i);
  }
  bits[thread] = static_cast<std::uint8_t>(byte);
}

__global__ void stray_kernel(BitRows shape, Dtype dtype, const void* spikes, std::int64_t step,
                             const long long* place, double* stray) {
  const std::int64_t row = *place / shape.neurons;
  *stray =
      *place == kNone ? 0.0 : value_at(dtype, spikes, row * step + (*place - row * shape.neurons));
}

template <class U>
__global__ void __launch_bounds__(kThreads)
    unpack_kernel(BitRows shape, U one, const std::uint8_t* bits, U* spikes) {
  const std::int64_t thread = this_thread();
  if (thread >= shape.rows * shape.bytes()) return;
  const std::int64_t row = thread / shape.bytes();
  const std::int64_t first = (thread - row * shape.bytes()) * 8;
  U* const out = spikes + row * shape.neurons + first;
  const std::int64_t count = shape.neurons - first;
  const unsigned byte = bits[thread];
  Eight<U> values;
  for (int i = 0; i < 8; ++i) values.e[i] = byte >> i & 1 ? one : U(0);
  if (count >= 8 && moves_as_one(out)) {
    *reinterpret_cast<Eight<U>*>(out) = values;
  } else {
    for (int i = 0; i < 8; ++i) {
      if (i < count) out[i] = values.e[i];
    }
  }
}

}  // namespace

cudaError_t pack_spikes(const BitRows& shape, Dtype dtype, const void* spikes, std::int64_t step,
                        std::uint8_t* bits, long long* place, double* stray, cudaStream_t stream) {
  cudaError_t error = launch(no_stray_kernel, 1, 1, 0, stream, place);
  if (error != cudaSuccess) return error;
  error = with_pattern(dtype, [&]<class U>(Pattern<U> pattern) {
    return launch(pack_kernel<U>, shape.rows * shape.bytes(), kThreads, 0, stream, shape, pattern,
                  static_cast<const U*>(spikes), step, bits, place);
  });
  if (error != cudaSuccess) return error;
  return launch(stray_kernel, 1, 1, 0, stream, shape, dtype, spikes, step, place, stray);
}

cudaError_t unpack_spikes(const BitRows& shape, Dtype dtype, const std::uint8_t* bits, void* spikes,
                          cudaStream_t stream) {
  return with_pattern(dtype, [&]<class U>(Pattern<U> pattern) {
    return launch(unpack_kernel<U>, shape.rows * shape.bytes(), kThreads, 0, stream, shape,
                  pattern.one, bits, static_cast<U*>(spikes));
  });
}

}  // namespace snnkern::cuda
