// How a tensor [T, N, ...] lies in memory, and tensors made to lie the same way. For the two
// ops.cpp; kernels see only pointers.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <numeric>
#include <vector>

#include "dispatch.h"

namespace snnkern {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::Double:
      return Dtype::kFloat64;
    case ScalarType::Half:
      return Dtype::kFloat16;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    default:
      STD_TORCH_CHECK(false, "snnkern: x has dtype ", toString(x.scalar_type()),
                      ", expected float16, bfloat16, float32 or float64");
  }
}

inline ScalarType state_type_of(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                            ScalarType dtype, const Tensor& like) {
  int32_t device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  const auto dtype_code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                  strides.data(), dtype_code, device_type,
                                                  like.get_device_index(), &handle));
  return Tensor(handle);
}

// Samples of so many neurons or more are read in place where each lies with all its steps.
inline constexpr int64_t kSampleApart = 1024;

// The layout of a tensor's steps: its dimensions after the first, in any dense permutation.
class StepLayout {
 public:
  explicit StepLayout(const Tensor& x)
      : StepLayout({x.sizes().begin(), x.sizes().end()}, {x.strides().begin(), x.strides().end()}) {
  }

  // Of a tensor of these sizes and strides.
  StepLayout(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
    STD_TORCH_CHECK(!sizes.empty() && sizes.size() == strides.size(),
                    "snnkern: x has no dimension, expected [T, ...]");
    sizes_.assign(sizes.begin() + 1, sizes.end());
    strides_.assign(strides.begin() + 1, strides.end());
    numel_ = std::accumulate(sizes_.begin(), sizes_.end(), int64_t{1}, std::multiplies<>());
    std::vector<std::size_t> order(sizes_.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](auto a, auto b) { return strides_[a] < strides_[b]; });
    int64_t expected = 1;
    for (const auto d : order) {
      if (sizes_[d] != 1) {
        dense_ = dense_ && strides_[d] == expected;
        expected *= sizes_[d];
      }
    }
    if (!dense_) {
      expected = 1;
      for (std::size_t d = sizes_.size(); d-- > 0;) {
        strides_[d] = expected;
        expected *= sizes_[d];
      }
    }
  }

  // The same, or batch first [N, T, ...] where x has its samples apart; contiguous each.
  // snnkern/_layout.py says the same in Python.
  static StepLayout or_batch_first(const Tensor& x) {
    StepLayout layout(x);
    if (layout.sizes_.size() < 2 || x.size(0) < 2 || x.size(1) < 2) return layout;
    const int64_t sample = layout.numel_ / x.size(1);
    int64_t expected = sample;
    for (std::size_t d = 2; d < layout.sizes_.size() + 1; ++d) {
      const auto dim = static_cast<int64_t>(d);
      if (x.size(dim) == 0) return layout;
      expected /= x.size(dim);
      if (x.size(dim) != 1 && x.stride(dim) != expected) return layout;
    }
    if (sample >= kSampleApart && x.stride(0) == sample && x.stride(1) >= x.size(0) * sample) {
      layout.samples_ = x.size(1);
    }
    return layout;
  }

  int64_t numel() const { return numel_; }

  // Samples that lie apart; 1 where a step lies together.
  int64_t samples() const { return samples_; }

  // Elements from one sample of t to the next, if they lie apart.
  int64_t sample_step(const Tensor& t) const { return samples_ == 1 ? 0 : t.stride(1); }

  // Neurons between two neighbouring samples (dimension 1 of x, dimension 0 of a step).
  int64_t sample_stride() const { return sizes_.empty() || sizes_[0] == 1 ? numel_ : strides_[0]; }

  // Neurons between two neighbouring channels (dimension 2 of x, dimension 1 of a step).
  int64_t channel_stride() const {
    return sizes_.size() < 2 || sizes_[1] == 1 ? numel_ : strides_[1];
  }

  // Whether t, from dimension `first_dim` on, has the shape of a step.
  bool has_shape_of(const Tensor& t, std::size_t first_dim) const {
    const auto sizes = t.sizes();
    return sizes.size() == first_dim + sizes_.size() &&
           std::equal(sizes_.begin(), sizes_.end(), sizes.begin() + first_dim);
  }

  // Whether such a t lies in memory like a step.
  bool holds(const Tensor& t, std::size_t first_dim) const {
    const auto strides = t.strides();
    for (std::size_t d = 0; d < sizes_.size(); ++d) {
      if (sizes_[d] != 1 && strides[d + first_dim] != strides_[d]) return false;
    }
    return true;
  }

  Tensor empty_steps(int64_t timesteps, ScalarType dtype, const Tensor& like) const {
    std::vector<int64_t> strides = with_time(numel_ / samples_, strides_);
    if (samples_ != 1) strides[1] = timesteps * strides[0];
    return empty_strided(with_time(timesteps, sizes_), strides, dtype, like);
  }

  Tensor empty_step(ScalarType dtype, const Tensor& like) const {
    return empty_strided(sizes_, strides_, dtype, like);
  }

  // [T, ...] with its steps in this layout: itself where they are, else a copy. A tensor that is
  // constant in time stays one step long, with time stride 0.
  Tensor steps(const Tensor& t) const {
    if (holds_steps(t)) return t;
    Tensor distinct = t;
    if (t.stride(0) == 0) distinct = torch::stable::narrow(distinct, 0, 0, 1);
    Tensor copy = empty_steps(distinct.size(0), t.scalar_type(), t);
    torch::stable::copy_(copy, distinct);
    return copy;
  }

  // One step [...] in this layout: itself where it is, else a copy.
  Tensor step(const Tensor& t) const {
    if (holds(t, 0)) return t;
    Tensor copy = empty_step(t.scalar_type(), t);
    torch::stable::copy_(copy, t);
    return copy;
  }

 private:
  bool holds_steps(const Tensor& t) const {
    if (samples_ == 1) return holds(t, 1);
    for (std::size_t d = 1; d < sizes_.size(); ++d) {
      if (sizes_[d] != 1 && t.stride(static_cast<int64_t>(d) + 1) != strides_[d]) return false;
    }
    return true;
  }

  static std::vector<int64_t> with_time(int64_t first, const std::vector<int64_t>& rest) {
    std::vector<int64_t> all{first};
    all.insert(all.end(), rest.begin(), rest.end());
    return all;
  }

  std::vector<int64_t> sizes_, strides_;
  int64_t numel_ = 1;
  int64_t samples_ = 1;
  bool dense_ = true;
};

// Elements from one step to the next, 0 where a tensor is constant in time.
inline int64_t time_stride(const Tensor& steps) { return steps.size(0) == 1 ? 0 : steps.stride(0); }

}  // namespace snnkern
