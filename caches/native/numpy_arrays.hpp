#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace paceline {

// One-dimensional NumPy arrays in and out by NumPy's own C interface. nanobind's exchange (DLPack, then a call of
// numpy.asarray) takes 2.3 us for the two arrays that `propose` gets and the five that it returns: a third of its time.

// An argument that is some NumPy array; view() says whether it is the right one.
struct NumpyArray {
  PyObject* array = nullptr;  // lives as long as the call
};

// To be called once, when the module is loaded. Throws nanobind::python_error if NumPy is missing or too old.
void import_numpy();

bool is_numpy_array(PyObject* object) noexcept;

namespace numpy {

struct Cells {
  const void* data;
  std::size_t size;
};
// Cells of a contiguous array of one dimension of signed integers of `num_bytes` each; throws std::invalid_argument.
Cells signed_cells(const char* name, NumpyArray array, std::size_t num_bytes);

enum class Kind { kSigned, kUnsigned, kFloat };
// A new array whose `cells` are to be written. Throws nanobind::python_error.
nanobind::object make(Kind kind, std::size_t num_bytes, std::size_t size, void*& cells);

}  // namespace numpy

// Views an array in place. The array must outlive the view.
template <std::signed_integral T>
std::span<const T> view(const char* name, NumpyArray array) {
  const numpy::Cells cells = numpy::signed_cells(name, array, sizeof(T));
  return {static_cast<const T*>(cells.data), cells.size};
}

// A new array with a copy of the values.
template <typename T>
nanobind::object to_numpy(const std::vector<T>& values) {
  constexpr numpy::Kind kind = std::floating_point<T>    ? numpy::Kind::kFloat
                               : std::signed_integral<T> ? numpy::Kind::kSigned
                                                         : numpy::Kind::kUnsigned;
  void* cells = nullptr;
  nanobind::object array = numpy::make(kind, sizeof(T), values.size(), cells);
  std::copy(values.begin(), values.end(), static_cast<T*>(cells));
  return array;
}

}  // namespace paceline

template <>
struct nanobind::detail::type_caster<paceline::NumpyArray> {
  NB_TYPE_CASTER(paceline::NumpyArray, const_name("numpy.ndarray"))

  bool from_python(handle source, std::uint8_t, cleanup_list*) noexcept {
    if (!paceline::is_numpy_array(source.ptr())) return false;
    value.array = source.ptr();
    return true;
  }
};
