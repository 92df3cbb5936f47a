// Gather and scatter on NumPy arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/parts.h"
#include "gather/gather.h"
#include "gather/refusal.h"

namespace py = pybind11;

namespace headrace::bindings {
namespace {

static_assert(std::is_same_v<py::ssize_t, std::ptrdiff_t>, "NumPy's shapes are read in place");

// Below this, moving the bytes takes some ten microseconds, and getting the GIL back from a busy thread up to five
// milliseconds (Python's switch interval).
constexpr std::size_t kSmallestCopyWithoutGil = 64 * 1024;

const char* name_of(InstructionSet instruction_set) {
  switch (instruction_set) {
    case InstructionSet::kAvx512: return "avx512";
    case InstructionSet::kAvx2: return "avx2";
    default: return "portable";
  }
}

InstructionSet instruction_set_named(const std::string& name) {
  if (name.empty()) return instruction_sets().front();
  for (const InstructionSet instruction_set : instruction_sets()) {
    if (name == name_of(instruction_set)) return instruction_set;
  }
  throw Refusal("This processor has no instruction set " + name + ".");
}

Element element_of(const py::array& array) {
  const std::optional<Element> element = find_element(array);
  if (!element) throw UnsupportedConversion("Arrays of " + std::string(py::str(array.dtype())) + " are not copied.");
  return *element;
}

py::array as_array(py::handle object, const char* name) {
  if (!py::isinstance<py::array>(object)) {
    throw py::type_error(std::string(name) + " must be a NumPy array, not " + Py_TYPE(object.ptr())->tp_name + ".");
  }
  return py::reinterpret_borrow<py::array>(object);
}

template <class Byte>
Rows<Byte> rows_of(const py::array& array, Byte* first) {
  if (array.ndim() == 0) throw Refusal("A single value has no rows: an array needs at least one axis.");
  return {first,
          element_of(array),
          array.shape(0),
          array.strides(0),
          static_cast<std::size_t>(array.ndim() - 1),
          array.shape() + 1,
          array.strides() + 1};
}

Source source_of(const py::array& array) { return rows_of(array, static_cast<const std::byte*>(array.data())); }

Target target_of(const py::array& array) {
  if (!array.writeable()) throw Refusal("The array to write into is read-only.");
  // py::array::mutable_data() would check once more.
  return rows_of(array, static_cast<std::byte*>(const_cast<void*>(array.data())));
}

void run(const Plan& plan) {
  if (plan.size_bytes() < kSmallestCopyWithoutGil) return plan.run();
  const py::gil_scoped_release release;
  plan.run();
}

// The sequence as a tuple: it keeps every array alive while the GIL is released, whatever happens to a list.
py::tuple as_tuple(const py::object& sequence) {
  if (!PySequence_Check(sequence.ptr())) throw py::type_error("The arrays must come as a sequence.");
  auto tuple = py::reinterpret_steal<py::tuple>(PySequence_Tuple(sequence.ptr()));
  if (!tuple) throw py::error_already_set();
  return tuple;
}

py::ssize_t gather(const py::object& sources, const py::object& into, const std::string& instruction_set) {
  const py::tuple arrays = as_tuple(sources);
  std::vector<Source> blocks;
  blocks.reserve(arrays.size());
  for (const py::handle array : arrays) blocks.push_back(source_of(as_array(array, "A source")));
  const py::array batch = as_array(into, "The batch");
  const Plan plan = Plan::gather(blocks, target_of(batch), instruction_set_named(instruction_set));
  run(plan);
  return plan.num_rows();
}

py::ssize_t scatter(const py::object& source, const py::object& into, const std::string& instruction_set) {
  const py::tuple arrays = as_tuple(into);
  std::vector<Target> blocks;
  blocks.reserve(arrays.size());
  for (const py::handle array : arrays) blocks.push_back(target_of(as_array(array, "A target")));
  const py::array batch = as_array(source, "The batch");
  const Plan plan = Plan::scatter(source_of(batch), blocks, instruction_set_named(instruction_set));
  run(plan);
  return plan.num_rows();
}

}  // namespace

void bind_gather(py::module_& module) {
  py::tuple names(instruction_sets().size());
  for (std::size_t i = 0; i < names.size(); ++i) names[i] = name_of(instruction_sets()[i]);
  module.attr("instruction_sets") = names;
  module.def("gather", &gather, py::arg("sources"), py::arg("into"), py::kw_only(), py::arg("instruction_set") = "",
             "Write the rows of all sources into the first rows of a batch; return how many.");
  module.def("scatter", &scatter, py::arg("batch"), py::arg("into"), py::kw_only(), py::arg("instruction_set") = "",
             "Write the first rows of a batch into each array in turn; return how many.");
}

}  // namespace headrace::bindings
