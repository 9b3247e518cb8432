#include "round_budget_binding.hpp"

#include <cstddef>
#include <cstdint>
#include <string>

#include "numpy_arrays.hpp"
#include "round_budget.hpp"
#include "validation.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace paceline {
namespace {

DraftBatch checked(NumpyArray offsets, NumpyArray parent, NumpyArray prob) {
  const DraftBatch drafts{view<std::int64_t>("offsets", offsets), view<std::int32_t>("parent", parent),
                          view<float>("prob", prob)};
  if (drafts.offsets.empty()) refuse("offsets", "empty", "give one more than there are requests");
  check_offsets(drafts.offsets, drafts.offsets.size() - 1, drafts.prob.size());
  if (drafts.parent.size() != drafts.prob.size()) {
    refuse("parent", std::to_string(drafts.parent.size()) + " long", "give " + std::to_string(drafts.prob.size()));
  }
  for (std::size_t i = 0; i + 1 < drafts.offsets.size(); ++i) {
    for (auto n = drafts.offsets[i]; n < drafts.offsets[i + 1]; ++n) {
      const auto at = static_cast<std::size_t>(n);
      const std::int32_t parent_of_it = drafts.parent[at];
      if (parent_of_it < -1 || parent_of_it >= n - drafts.offsets[i]) {
        refuse("parent", std::to_string(parent_of_it) + " at " + std::to_string(n), "give -1 or an earlier node");
      }
      const float chance = drafts.prob[at];
      if (!(chance >= 0.0F && chance <= 1.0F)) {  // nor NaN
        refuse("prob", std::to_string(chance) + " at " + std::to_string(n), "give probabilities, not logits");
      }
    }
  }
  return drafts;
}

nb::tuple choose(NumpyArray offsets, NumpyArray parent, NumpyArray prob, double base_tokens, NumpyArray seconds,
                 double token_seconds) {
  const RoundBase base{base_tokens, view<double>("seconds", seconds), token_seconds};
  if (base.seconds.empty()) refuse("seconds", "empty", "give those of the round without drafts at least");
  for (const double each : base.seconds) {
    if (!(each >= 0.0)) refuse("seconds", std::to_string(each), "give 0 or more");  // nor NaN
  }
  const RoundChoice choice = choose_nodes(checked(offsets, parent, prob), base);
  return nb::make_tuple(to_numpy(choice.num_kept), to_numpy(choice.expected), choice.price, choice.tokens);
}

nb::object likelier(NumpyArray offsets, NumpyArray parent, NumpyArray prob, double price) {
  return to_numpy(count_likelier(checked(offsets, parent, prob), price));
}

}  // namespace

void bind_round_budget(nb::module_& module) {
  // The contract of every function is in _native.pyi.
  module.def("choose_nodes", &choose, "offsets"_a, "parent"_a, "prob"_a, nb::kw_only(), "base_tokens"_a,
             "seconds"_a, "token_seconds"_a);
  module.def("count_likelier", &likelier, "offsets"_a, "parent"_a, "prob"_a, "price"_a);
}

}  // namespace paceline
