// The ops that pack spikes, for any device. A Device, as in lif_ops.h, runs the kernels:
//   pack(shape, dtype, spikes, step, bits, stray)   `stray`: the first value that is neither 0 nor
//   1 unpack(shape, dtype, bits, spikes)
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "layout.h"
#include "pack.h"

namespace snnkern {

// Spikes may also be bytes.
inline Dtype spike_dtype_of(const Tensor& spikes) {
  const ScalarType dtype = spikes.scalar_type();
  return dtype == ScalarType::Byte || dtype == ScalarType::Bool ? Dtype::kUint8 : dtype_of(spikes);
}

template <class Device>
std::tuple<Tensor, Tensor> pack_spikes_op(const Tensor& spikes) {
  const Device device(spikes);
  const StepLayout layout(spikes);
  const Tensor steps = layout.steps(spikes);
  const BitRows shape{spikes.size(0), layout.numel()};
  const Tensor packed =
      empty_strided({shape.rows, shape.bytes()}, {shape.bytes(), 1}, ScalarType::Byte, spikes);
  const Tensor stray = empty_strided({}, {}, ScalarType::Double, spikes);
  device.pack(shape, spike_dtype_of(spikes), steps.const_data_ptr(), time_stride(steps),
              static_cast<uint8_t*>(packed.mutable_data_ptr()),
              static_cast<double*>(stray.mutable_data_ptr()));
  return {packed, stray};
}

// To steps that lie in memory as those of a tensor of this size and these strides.
template <class Device>
Tensor unpack_spikes_op(const Tensor& packed, const std::vector<int64_t>& size,
                        const std::vector<int64_t>& stride, ScalarType dtype) {
  const Device device(packed);
  const StepLayout layout(size, stride);
  const BitRows shape{size[0], layout.numel()};
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Byte && packed.is_contiguous() &&
                      packed.dim() == 2 && packed.size(0) == shape.rows &&
                      packed.size(1) == shape.bytes(),
                  "snnkern: packed spikes need a byte for eight neurons of a step, contiguous");
  const Tensor spikes = layout.empty_steps(shape.rows, dtype, packed);
  device.unpack(shape, spike_dtype_of(spikes), static_cast<const uint8_t*>(packed.const_data_ptr()),
                spikes.mutable_data_ptr());
  return spikes;
}

template <class Device, class Library>
void register_pack(Library& m) {
  m.impl("pack_spikes", TORCH_BOX(&pack_spikes_op<Device>));
  m.impl("unpack_spikes", TORCH_BOX(&unpack_spikes_op<Device>));
}

}  // namespace snnkern
