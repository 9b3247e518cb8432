#include "round_sums_binding.hpp"

#include <nanobind/stl/array.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "round_sums.hpp"
#include "validation.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace paceline {
namespace {

using Numbers = std::vector<std::int64_t>;
using Row = std::tuple<Numbers, Numbers, Numbers, std::vector<double>, double, double>;

std::vector<std::vector<RoundSum>> sum_rounds(const std::vector<Row>& rounds, std::int64_t num_places, Numbers caps) {
  check_range("num_places", num_places, 0, "give how many there are", INT32_MAX);
  RoundSums sums(static_cast<std::size_t>(num_places), std::move(caps));
  for (const auto& [places, drafted, committed, more_seconds, base_seconds, token_seconds] : rounds) {
    sums.add({places, drafted, committed, more_seconds, base_seconds, token_seconds});
  }
  return sums.by_place();
}

}  // namespace

void bind_round_sums(nb::module_& module) {
  // The contract is in _native.pyi.
  module.def("sum_rounds", &sum_rounds, "rounds"_a, "num_places"_a, "caps"_a);
}

}  // namespace paceline
