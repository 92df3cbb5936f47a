// Gather and scatter on device addresses.  Calls only enqueue work; the GIL is dropped while the driver takes it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/parts.h"
#include "gather/cuda_gather.h"
#include "gather/refusal.h"

namespace py = pybind11;

namespace headrace::bindings {
namespace {

Element element_from(const std::string& name) {
  const std::optional<Element> element = element_named(name);
  if (!element) throw UnsupportedConversion("There is no element type " + name + ".");
  return *element;
}

// (address, number of rows)
using PlainBlock = std::pair<std::uintptr_t, std::ptrdiff_t>;

cuda::Block block_from(const PlainBlock& plain) { return {plain.first, plain.second}; }

std::vector<cuda::Block> blocks_from(const std::vector<PlainBlock>& plain) {
  std::vector<cuda::Block> blocks;
  blocks.reserve(plain.size());
  for (const PlainBlock& block : plain) blocks.push_back(block_from(block));
  return blocks;
}

std::ptrdiff_t enqueue_without_gil(const cuda::Copy& copy, std::uintptr_t stream) {
  const py::gil_scoped_release release;  // a full launch queue makes the driver wait
  cuda::enqueue(copy, stream);
  return copy.num_rows;
}

std::ptrdiff_t cuda_gather(const std::vector<PlainBlock>& sources, const std::string& source_type,
                           const PlainBlock& into, const std::string& into_type, std::ptrdiff_t row_elements,
                           std::uintptr_t stream) {
  return enqueue_without_gil(cuda::plan_gather(blocks_from(sources), element_from(source_type), block_from(into),
                                   element_from(into_type), row_elements),
                 stream);
}

std::ptrdiff_t cuda_scatter(const PlainBlock& batch, const std::string& batch_type,
                            const std::vector<PlainBlock>& into, const std::string& into_type,
                            std::ptrdiff_t row_elements, std::uintptr_t stream) {
  return enqueue_without_gil(cuda::plan_scatter(block_from(batch), element_from(batch_type), blocks_from(into),
                                    element_from(into_type), row_elements),
                 stream);
}

py::tuple cuda_device_count() {
  cuda::Devices devices{};
  {
    const py::gil_scoped_release release;  // the first call loads the driver
    devices = cuda::devices();
  }
  return py::make_tuple(devices.count, devices.reason);
}

py::tuple cuda_device(int number) {
  cuda::Device device{};
  {
    const py::gil_scoped_release release;  // the first call loads the driver
    device = cuda::device(number);
  }
  return py::make_tuple(device.name, device.major, device.minor);
}

py::tuple cuda_memory(int device) {
  cuda::Memory memory{};
  {
    const py::gil_scoped_release release;  // the first call makes a context
    memory = cuda::memory(device);
  }
  return py::make_tuple(memory.free_bytes, memory.total_bytes);
}

}  // namespace

void bind_cuda_gather(py::module_& module) {
  module.attr("cuda_built") = cuda::is_built();
  module.def("cuda_device_count", &cuda_device_count, "The number of CUDA devices, and why there are none.");
  module.def("cuda_device", &cuda_device, py::arg("number"),
             "The name of a CUDA device, and its compute capability, major and minor.");
  module.def("cuda_memory", &cuda_memory, py::arg("device"), "The free and all bytes of a CUDA device.");
  module.def("cuda_gather", &cuda_gather, py::arg("sources"), py::arg("source_type"), py::arg("into"),
             py::arg("into_type"), py::arg("row_elements"), py::arg("stream"),
             "Enqueue a gather of device memory on a stream; return the number of rows.");
  module.def("cuda_scatter", &cuda_scatter, py::arg("batch"), py::arg("batch_type"), py::arg("into"),
             py::arg("into_type"), py::arg("row_elements"), py::arg("stream"),
             "Enqueue a scatter of device memory on a stream; return the number of rows.");
}

}  // namespace headrace::bindings
