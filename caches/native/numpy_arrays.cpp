#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION

#include "numpy_arrays.hpp"

#include <numpy/arrayobject.h>

#include <stdexcept>
#include <string>

namespace nb = nanobind;

namespace paceline {
namespace {

PyArrayObject* as_array(NumpyArray array) { return reinterpret_cast<PyArrayObject*>(array.array); }

int type_number(numpy::Kind kind, std::size_t num_bytes) {
  if (kind == numpy::Kind::kFloat) return num_bytes == 4 ? NPY_FLOAT32 : NPY_FLOAT64;
  if (kind == numpy::Kind::kUnsigned) return num_bytes == 1 ? NPY_UINT8 : num_bytes == 4 ? NPY_UINT32 : NPY_UINT64;
  return num_bytes == 4 ? NPY_INT32 : NPY_INT64;
}

}  // namespace

void import_numpy() {
  if (PyArray_ImportNumPyAPI() < 0) throw nb::python_error();
}

bool is_numpy_array(PyObject* object) noexcept { return PyArray_Check(object); }

numpy::Cells numpy::cells_of(const char* name, NumpyArray array, Kind kind, std::size_t num_bytes) {
  PyArrayObject* const cells = as_array(array);
  const auto refuse = [&](const std::string& fault) {
    throw std::invalid_argument(std::string(name) + " has " + fault + "; give a contiguous " +
                                (kind == Kind::kFloat ? "float" : kind == Kind::kSigned ? "int" : "uint") +
                                std::to_string(8 * num_bytes) + " array of one dimension");
  };
  const PyArray_Descr* const type = PyArray_DESCR(cells);
  if (type->kind != static_cast<char>(kind) || PyArray_ITEMSIZE(cells) != static_cast<npy_intp>(num_bytes) ||
      !PyArray_ISBEHAVED_RO(cells)) {
    refuse("another dtype, byte order or alignment");
  }
  if (PyArray_NDIM(cells) != 1) refuse(std::to_string(PyArray_NDIM(cells)) + " dimensions");
  const npy_intp size = PyArray_DIM(cells, 0);
  const npy_intp stride = PyArray_STRIDE(cells, 0) / static_cast<npy_intp>(num_bytes);
  if (size > 1 && stride != 1) refuse("stride " + std::to_string(stride));
  return {PyArray_DATA(cells), static_cast<std::size_t>(size)};
}

nb::object numpy::make(Kind kind, std::size_t num_bytes, std::size_t size, void*& cells) {
  npy_intp shape = static_cast<npy_intp>(size);
  PyObject* const array = PyArray_SimpleNew(1, &shape, type_number(kind, num_bytes));
  if (array == nullptr) throw nb::python_error();
  cells = PyArray_DATA(reinterpret_cast<PyArrayObject*>(array));
  return nb::steal(array);
}

}  // namespace paceline
