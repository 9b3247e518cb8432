#include "fusion_binding.hpp"

#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "columns.hpp"
#include "fusion.hpp"
#include "validation.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace paceline {
namespace {

using Key = std::int64_t;

// The drafts of one `fuse`, kept until their outcome is known.
struct FusedBatch {
  std::vector<Key> keys;
  std::vector<FusedDraft> drafts;
};

// One mixer for each key.
class Fusion {
 public:
  explicit Fusion(double min_probability) : min_probability_(min_probability) {
    check_probability("min_probability", min_probability);
  }

  nb::tuple fuse_batch(const Column<std::int64_t>& offsets, const Column<Token>& token_ids,
                       const Column<std::int32_t>& parent, const Column<float>& prob,
                       const Column<std::uint8_t>& source, const Column<std::int64_t>& place_offsets,
                       const Column<std::int32_t>& place_parent, const Column<Token>& place_token,
                       const Column<Token>& top_token, const Column<float>& top_prob, const Column<Key>& keys,
                       const Column<std::int32_t>& max_tokens, std::int64_t max_branches) {
    const std::size_t num_requests = keys.shape(0);
    const auto rows = view<std::int64_t>(offsets);
    const auto places = view<std::int64_t>(place_offsets);
    const auto budgets = view<std::int32_t>(max_tokens);
    check_offsets(rows, num_requests, token_ids.shape(0));
    check_offsets(places, num_requests, place_parent.shape(0));
    check_limits(budgets, num_requests);
    check_range("max_branches", max_branches, 1, "give 1 (chains) to 16", 16);
    const std::size_t num_places = place_parent.shape(0);
    const std::size_t width = num_places == 0 ? 0 : top_token.shape(0) / num_places;
    check_same("parent", parent.shape(0), token_ids.shape(0));
    check_same("prob", prob.shape(0), token_ids.shape(0));
    check_same("source", source.shape(0), token_ids.shape(0));
    check_same("place_token", place_token.shape(0), num_places);
    check_same("top_token", top_token.shape(0), num_places * width);
    check_same("top_prob", top_prob.shape(0), num_places * width);
    FusedBatch batch;
    Arrays arrays;
    {
      const nb::gil_scoped_release released;
      batch.keys.assign(keys.data(), keys.data() + num_requests);
      batch.drafts.resize(num_requests);
      arrays.offsets.push_back(0);
      for (std::size_t i = 0; i < num_requests; ++i) {
        const auto a = static_cast<std::size_t>(rows[i]);
        const auto n = static_cast<std::size_t>(rows[i + 1]) - a;
        const auto c = static_cast<std::size_t>(places[i]);
        const auto m = static_cast<std::size_t>(places[i + 1]) - c;
        const RetrievedTree tree{view<Token>(token_ids).subspan(a, n), view<std::int32_t>(parent).subspan(a, n),
                                 view<float>(prob).subspan(a, n), view<std::uint8_t>(source).subspan(a, n)};
        const DrafterView seen{view<std::int32_t>(place_parent).subspan(c, m), view<Token>(place_token).subspan(c, m),
                               view<Token>(top_token).subspan(c * width, m * width),
                               view<float>(top_prob).subspan(c * width, m * width)};
        const FusionLimits limits{static_cast<std::size_t>(budgets[i]), static_cast<std::size_t>(max_branches),
                                  min_probability_};
        fuse(tree, seen, mixer(batch.keys[i]), limits, batch.drafts[i]);
        arrays.add(batch.drafts[i]);
      }
    }
    return nb::make_tuple(to_numpy(std::move(arrays.offsets)), to_numpy(std::move(arrays.token_ids)),
                          to_numpy(std::move(arrays.parent)), to_numpy(std::move(arrays.prob)),
                          to_numpy(std::move(arrays.source)), std::move(batch));
  }

  nb::object learn_batch(const FusedBatch& batch, const Column<Token>& token_ids,
                         const Column<std::int64_t>& offsets) {
    const auto rows = view<std::int64_t>(offsets);
    const auto tokens = view<Token>(token_ids);
    check_offsets(rows, batch.drafts.size(), tokens.size());
    std::vector<std::int32_t> accepted;
    const std::scoped_lock lock(mutex_);
    for (std::size_t i = 0; i < batch.drafts.size(); ++i) {
      const auto committed = tokens.subspan(static_cast<std::size_t>(rows[i]),
                                            static_cast<std::size_t>(rows[i + 1] - rows[i]));
      accepted.push_back(static_cast<std::int32_t>(learn(batch.drafts[i], committed, mixers_[batch.keys[i]])));
    }
    return nb::cast(to_numpy(std::move(accepted)));
  }

  void forget(Key key) {
    const std::scoped_lock lock(mutex_);
    mixers_.erase(key);
  }

  std::vector<float> state(Key key) const {
    const Mixer held = mixer(key);
    return {held.state().begin(), held.state().end()};
  }

  void restore(Key key, const Column<float>& state) {
    Mixer restored;
    if (!restored.restore(view<float>(state))) {
      refuse("state", std::to_string(state.shape(0)) + " long", "give what `state` returned, finite numbers");
    }
    const std::scoped_lock lock(mutex_);
    mixers_[key] = restored;
  }

 private:
  struct Arrays {
    std::vector<std::int64_t> offsets;
    std::vector<Token> token_ids;
    std::vector<std::int32_t> parent;
    std::vector<float> prob;
    std::vector<std::uint8_t> source;

    void add(const FusedDraft& draft) {
      for (const std::uint32_t n : draft.issue_order) {
        const FusedDraft::Node& node = draft.nodes[n];
        token_ids.push_back(node.token);
        parent.push_back(node.parent < 0 ? -1 : draft.nodes[static_cast<std::size_t>(node.parent)].issued);
        prob.push_back(static_cast<float>(node.probability));
        source.push_back(node.source);
      }
      offsets.push_back(static_cast<std::int64_t>(token_ids.size()));
    }
  };

  static void check_same(const char* name, std::size_t length, std::size_t wanted) {
    if (length != wanted) refuse(name, std::to_string(length) + " long", "give " + std::to_string(wanted));
  }

  Mixer mixer(Key key) const {
    const std::scoped_lock lock(mutex_);
    const auto found = mixers_.find(key);
    return found == mixers_.end() ? Mixer() : found->second;
  }

  double min_probability_;
  mutable std::mutex mutex_;
  std::map<Key, Mixer> mixers_;
};

}  // namespace

void bind_fusion(nb::module_& module) {
  // The contract of every method is in _native.pyi.
  nb::class_<FusedBatch>(module, "FusedBatch").def("__len__", [](const FusedBatch& batch) {
    return batch.drafts.size();
  });
  nb::class_<Fusion>(module, "Fusion")
      .def(nb::init<double>(), nb::kw_only(), "min_probability"_a = 0.1)
      .def("fuse", &Fusion::fuse_batch, "offsets"_a, "token_ids"_a, "parent"_a, "prob"_a, "source"_a,
           "place_offsets"_a, "place_parent"_a, "place_token"_a, "top_token"_a, "top_prob"_a, nb::kw_only(), "keys"_a,
           "max_tokens"_a, "max_branches"_a = 1)
      .def("learn", &Fusion::learn_batch, "batch"_a, "token_ids"_a, "offsets"_a)
      .def("forget", &Fusion::forget, "key"_a)
      .def("state", [](const Fusion& fusion, Key key) { return to_numpy(fusion.state(key)); }, "key"_a)
      .def("restore", &Fusion::restore, "key"_a, "state"_a);
}

}  // namespace paceline
