#include "bindings/arrays.h"

#include <array>
#include <cstddef>

namespace py = pybind11;

namespace headrace::bindings {
namespace {

// The numbers that NumPy gave to the types of ml_dtypes when that module was first imported.
struct ExtensionTypes {
  int bf16, fp8_e4m3, fp8_e5m2;
};

const ExtensionTypes& extension_types() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<ExtensionTypes> storage;
  return storage
      .call_once_and_store_result([] {
        const py::module_ module = py::module_::import("ml_dtypes");
        const auto number = [&](const char* name) { return py::dtype::from_args(module.attr(name)).num(); };
        return ExtensionTypes{number("bfloat16"), number("float8_e4m3fn"), number("float8_e5m2")};
      })
      .get_stored();
}

std::optional<Element> builtin_element(int type_number) {
  using Api = py::detail::npy_api;
  switch (type_number) {
    case Api::NPY_FLOAT_: return Element::kFp32;
    case Api::NPY_DOUBLE_: return Element::kFp64;
    case 23: return Element::kFp16;  // NPY_HALF
    case Api::NPY_BOOL_: return Element::kBool;
    default: break;
  }
  if (type_number == Api::NPY_INT8_) return Element::kInt8;
  if (type_number == Api::NPY_INT16_) return Element::kInt16;
  if (type_number == Api::NPY_INT32_) return Element::kInt32;
  if (type_number == Api::NPY_INT64_) return Element::kInt64;
  if (type_number == Api::NPY_UINT8_) return Element::kUint8;
  if (type_number == Api::NPY_UINT16_) return Element::kUint16;
  if (type_number == Api::NPY_UINT32_) return Element::kUint32;
  if (type_number == Api::NPY_UINT64_) return Element::kUint64;
  return std::nullopt;
}

std::optional<Element> extension_element(int type_number) {
  constexpr int kFirstUserType = 256;
  if (type_number < kFirstUserType) return std::nullopt;
  const ExtensionTypes& types = extension_types();
  if (type_number == types.bf16) return Element::kBf16;
  if (type_number == types.fp8_e4m3) return Element::kFp8E4M3;
  if (type_number == types.fp8_e5m2) return Element::kFp8E5M2;
  return std::nullopt;
}

std::array<py::dtype, kElements.size()> make_dtypes() {
  std::array<py::dtype, kElements.size()> dtypes;
  const py::module_ module = py::module_::import("ml_dtypes");
  constexpr std::array<const char*, kElements.size()> kNames{
      "float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8", "int16",
      "int32",   "int64",   "uint8",   "uint16",   "uint32",        "uint64",      "bool"};
  for (std::size_t i = 0; i < dtypes.size(); ++i) {
    const auto element = static_cast<Element>(i);
    const bool is_extension =
        element == Element::kBf16 || element == Element::kFp8E4M3 || element == Element::kFp8E5M2;
    dtypes[i] = py::dtype::from_args(is_extension ? py::object(module.attr(kNames[i])) : py::str(kNames[i]));
  }
  return dtypes;
}

}  // namespace

std::optional<Element> find_element(const py::array& array) {
  const py::dtype dtype = array.dtype();
  if (dtype.byteorder() == '>') return std::nullopt;
  std::optional<Element> element = builtin_element(dtype.num());
  if (!element) element = builtin_element(dtype.normalized_num());
  if (!element) element = extension_element(dtype.num());
  return element;
}

py::dtype dtype_of(Element element) {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<std::array<py::dtype, kElements.size()>> storage;
  return storage.call_once_and_store_result(make_dtypes).get_stored()[static_cast<std::size_t>(element)];
}

py::array array_over(Element element, const std::vector<std::int64_t>& shape, const void* data,
                     const py::handle& base) {
  return py::array(dtype_of(element), std::vector<py::ssize_t>(shape.begin(), shape.end()), data, base);
}

py::array array_of(const batching::Output& output) {
  return array_over(*output.element, output.shape, output.data, keeper_of(output.owner));
}

}  // namespace headrace::bindings
