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
enum class Kind : char { kSigned = 'i', kUnsigned = 'u', kFloat = 'f' };  // as NumPy calls them
template <typename T>
inline constexpr Kind kKindOf = std::floating_point<T>    ? Kind::kFloat
                                : std::signed_integral<T> ? Kind::kSigned
                                                          : Kind::kUnsigned;
// Cells of a contiguous array of one dimension of that type; throws std::invalid_argument.
Cells cells_of(const char* name, NumpyArray array, Kind kind, std::size_t num_bytes);

// A new array whose `cells` are to be written. Throws nanobind::python_error.
nanobind::object make(Kind kind, std::size_t num_bytes, std::size_t size, void*& cells);

}  // namespace numpy

// Views an array in place. The array must outlive the view.
template <typename T>
std::span<const T> view(const char* name, NumpyArray array) {
  const numpy::Cells cells = numpy::cells_of(name, array, numpy::kKindOf<T>, sizeof(T));
  return {static_cast<const T*>(cells.data), cells.size};
}

// A new array with a copy of the values.
template <typename T>
nanobind::object to_numpy(const std::vector<T>& values) {
  void* cells = nullptr;
  nanobind::object array = numpy::make(numpy::kKindOf<T>, sizeof(T), values.size(), cells);
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
