// Stands in for cuda_gather.cu in a build without CUDA.
#include "gather/cuda_gather.h"

namespace headrace::cuda {

bool is_built() { return false; }

Devices devices() { return {0, "this build has no CUDA code: nvcc was not found, or HEADRACE_CUDA was OFF"}; }

Device device(int) { throw CudaUnavailable("No CUDA device: " + devices().reason + "."); }

Memory memory(int) { throw CudaUnavailable("No CUDA device: " + devices().reason + "."); }

void enqueue(const Copy&, std::uintptr_t) { throw CudaUnavailable("No CUDA device: " + devices().reason + "."); }

}  // namespace headrace::cuda
