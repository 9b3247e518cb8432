#include "segment_binding.hpp"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <cerrno>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include "numpy_arrays.hpp"
#include "segment.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace paceline {
namespace {

nb::tuple columns(const std::vector<SegmentPlace>& places) {
  std::vector<std::int64_t> next;
  std::vector<std::int32_t> match_length;
  std::vector<std::int64_t> count;
  std::vector<std::int64_t> total;
  for (const SegmentPlace& place : places) {
    next.push_back(place.next);
    match_length.push_back(static_cast<std::int32_t>(place.match_length));
    count.push_back(place.count);
    total.push_back(place.total);
  }
  return nb::make_tuple(to_numpy(next), to_numpy(match_length), to_numpy(count),
                        to_numpy(total));
}

void build(const std::string& path, NumpyArray token_ids, NumpyArray places) {
  const auto text = view<Token>("token_ids", token_ids);
  const auto sorted = view<Position>("places", places);
  const nb::gil_scoped_release released;
  write_segment(path, text, sorted);
}

nb::tuple find(const CorpusSegment& segment, NumpyArray context, std::int64_t max_candidates) {
  if (max_candidates < 1 || max_candidates > CorpusSegment::kMaxFound) {
    throw std::invalid_argument("max_candidates is " + std::to_string(max_candidates) + "; give 1 to " +
                                std::to_string(CorpusSegment::kMaxFound));
  }
  const auto tokens = view<Token>("context", context);
  std::vector<SegmentPlace> found;
  {
    const nb::gil_scoped_release released;
    segment.find(tokens, static_cast<unsigned>(max_candidates), found);
  }
  return columns(found);
}

// Follows drafted tokens from the longest match of a context on: (match length, places) after each.
nb::list follow(const CorpusSegment& segment, NumpyArray context, NumpyArray drafted) {
  nb::list result;
  SegmentInterval interval = segment.locate(view<Token>("context", context));
  result.append(nb::make_tuple(interval.match_length, interval.size()));
  for (const Token token : view<Token>("drafted", drafted)) {
    interval = segment.extend(interval, token);
    result.append(nb::make_tuple(interval.match_length, interval.size()));
  }
  return result;
}

nb::object read(const CorpusSegment& segment, std::int64_t start, std::int64_t stop) {
  const auto end = static_cast<std::int64_t>(segment.size());
  if (start < 0 || stop < start || stop > end) {
    throw std::invalid_argument("positions " + std::to_string(start) + " to " + std::to_string(stop) +
                                " are not within 0 to " + std::to_string(end));
  }
  std::vector<Token> tokens;
  for (std::int64_t at = start; at < stop; ++at) tokens.push_back(segment.at(static_cast<Position>(at)));
  return to_numpy(tokens);
}

void check_integrity(const CorpusSegment& segment) {
  std::string fault;
  {
    const nb::gil_scoped_release released;
    fault = segment.check();
  }
  if (!fault.empty()) throw std::runtime_error("the segment is broken: " + fault);
}

// Damaged files are Paceline's RecordError, unreadable ones Python's OSError.
void translate(const std::exception_ptr& thrown, void*) {
  try {
    std::rethrow_exception(thrown);
  } catch (const SegmentError& error) {
    const nb::object kind = nb::module_::import_("paceline.errors").attr("RecordError");
    PyErr_SetString(kind.ptr(), error.what());
  } catch (const std::system_error& error) {
    // Called with a number and a text, OSError makes itself a FileNotFoundError and so on.
    const nb::object raised = nb::borrow(PyExc_OSError)(error.code().value(), error.what());
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(raised.ptr())), raised.ptr());
  }
}

}  // namespace

void bind_segment(nb::module_& module) {
  const auto no_gil = nb::call_guard<nb::gil_scoped_release>();
  nb::register_exception_translator(translate);
  // The contract of every method is in _native.pyi.
  nb::class_<CorpusSegment>(module, "CorpusSegment")
      // Held by shared pointers from the start: the last one to let go unmaps the file, without Python's lock if it is
      // not Python.
      .def(nb::new_([](const std::string& path) {
             const nb::gil_scoped_release released;
             return std::make_shared<CorpusSegment>(path);
           }),
           "path"_a)
      .def_static("build", &build, "path"_a, "token_ids"_a.noconvert(), "places"_a.noconvert())
      .def_prop_ro("num_tokens", &CorpusSegment::num_tokens)
      .def_prop_ro("num_positions", &CorpusSegment::size)
      .def_prop_ro("num_bytes", &CorpusSegment::num_bytes)
      .def("find", &find, "context"_a.noconvert(), nb::kw_only(), "max_candidates"_a = 16)
      .def("follow", &follow, "context"_a.noconvert(), "drafted"_a.noconvert())
      .def("read", &read, "start"_a, "stop"_a)
      .def("check_integrity", &check_integrity);
}

}  // namespace paceline
