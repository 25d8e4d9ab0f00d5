// snnkern._C: importing it registers the kernels; build_info() tells how it was built.
#include <pybind11/pybind11.h>

#include "neuron.h"
#include "surrogate.h"

namespace py = pybind11;

namespace {

template <std::size_t kCount>
py::tuple names(const char* const (&table)[kCount]) {
  py::tuple result(kCount);
  for (std::size_t i = 0; i < kCount; ++i) result[i] = py::str(table[i]);
  return result;
}

py::dict build_info() {
  py::dict info;
  info["version"] = SNNKERN_VERSION;
  info["torch"] = SNNKERN_TORCH_BUILT;
  info["cuda_archs"] = SNNKERN_CUDA_ARCHS;
  info["cuda_absent"] = SNNKERN_CUDA_ABSENT;  // why CUDA kernels are not in; empty where they are
#if defined(__VERSION__)
  info["compiler"] = __VERSION__;
#endif
  info["charges"] = names(snnkern::kChargeNames);
  info["synapses"] = names(snnkern::kSynapseNames);
  info["resets"] = names(snnkern::kResetNames);
  info["surrogates"] = names(snnkern::kSurrogateNames);
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("build_info", &build_info, "How this extension was built, and the names of its options.");
}
