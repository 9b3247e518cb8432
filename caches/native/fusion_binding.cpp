#include "fusion_binding.hpp"

#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fusion.hpp"
#include "numpy_arrays.hpp"
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

  nb::tuple fuse_batch(NumpyArray offsets, NumpyArray token_ids,
                       NumpyArray parent, NumpyArray prob,
                       NumpyArray source, NumpyArray place_offsets,
                       NumpyArray place_parent, NumpyArray place_token,
                       NumpyArray top_token, NumpyArray top_prob, NumpyArray keys,
                       NumpyArray max_tokens, std::int64_t max_branches) {
    const auto rows = view<std::int64_t>("offsets", offsets);
    const RetrievedTree trees{view<Token>("token_ids", token_ids), view<std::int32_t>("parent", parent),
                              view<float>("prob", prob), view<std::uint8_t>("source", source)};
    const auto places = view<std::int64_t>("place_offsets", place_offsets);
    const DrafterView seen{view<std::int32_t>("place_parent", place_parent), view<Token>("place_token", place_token),
                           view<Token>("top_token", top_token), view<float>("top_prob", top_prob)};
    const auto owners = view<Key>("keys", keys);
    const auto budgets = view<std::int32_t>("max_tokens", max_tokens);
    check_offsets(rows, owners.size(), trees.token.size());
    check_offsets(places, owners.size(), seen.parent.size());
    check_limits(budgets, owners.size());
    check_range("max_branches", max_branches, 1, "give 1 (chains) to 16", 16);
    check_same("parent", trees.parent.size(), trees.token.size());
    check_same("prob", trees.prob.size(), trees.token.size());
    check_same("source", trees.source.size(), trees.token.size());
    check_same("place_token", seen.token.size(), seen.parent.size());
    check_same("top_token", seen.top_token.size(), seen.parent.size() * seen.width());
    check_same("top_prob", seen.top_prob.size(), seen.top_token.size());
    FusedBatch batch;
    Arrays arrays;
    {
      const nb::gil_scoped_release released;
      batch.keys.assign(owners.begin(), owners.end());
      batch.drafts.resize(owners.size());
      arrays.offsets.push_back(0);
      for (std::size_t i = 0; i < owners.size(); ++i) {
        const FusionLimits limits{static_cast<std::size_t>(budgets[i]), static_cast<std::size_t>(max_branches),
                                  min_probability_};
        fuse(part(trees, rows[i], rows[i + 1]), part(seen, places[i], places[i + 1]), mixer(owners[i]), limits,
             batch.drafts[i]);
        arrays.add(batch.drafts[i]);
      }
    }
    return nb::make_tuple(to_numpy(arrays.offsets), to_numpy(arrays.token_ids),
                          to_numpy(arrays.parent), to_numpy(arrays.prob),
                          to_numpy(arrays.source), std::move(batch));
  }

  nb::object learn_batch(const FusedBatch& batch, NumpyArray token_ids,
                         NumpyArray offsets) {
    const auto rows = view<std::int64_t>("offsets", offsets);
    const auto tokens = view<Token>("token_ids", token_ids);
    check_offsets(rows, batch.drafts.size(), tokens.size());
    std::vector<std::int32_t> accepted;
    const std::scoped_lock lock(mutex_);
    for (std::size_t i = 0; i < batch.drafts.size(); ++i) {
      const auto committed = tokens.subspan(static_cast<std::size_t>(rows[i]),
                                            static_cast<std::size_t>(rows[i + 1] - rows[i]));
      accepted.push_back(static_cast<std::int32_t>(learn(batch.drafts[i], committed, mixers_[batch.keys[i]])));
    }
    return to_numpy(accepted);
  }

  void forget(Key key) {
    const std::scoped_lock lock(mutex_);
    mixers_.erase(key);
  }

  std::vector<float> state(Key key) const {
    const Mixer held = mixer(key);
    return {held.state().begin(), held.state().end()};
  }

  void restore(Key key, NumpyArray state) {
    Mixer restored;
    if (!restored.restore(view<float>("state", state))) {
      refuse("state", std::to_string(view<float>("state", state).size()) + " long", "give what `state` returned, finite numbers");
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

  static RetrievedTree part(const RetrievedTree& all, std::int64_t begin, std::int64_t end) {
    const auto first = static_cast<std::size_t>(begin);
    const std::size_t length = static_cast<std::size_t>(end) - first;
    return {all.token.subspan(first, length), all.parent.subspan(first, length), all.prob.subspan(first, length),
            all.source.subspan(first, length)};
  }

  static DrafterView part(const DrafterView& all, std::int64_t begin, std::int64_t end) {
    const auto first = static_cast<std::size_t>(begin);
    const std::size_t length = static_cast<std::size_t>(end) - first;
    const std::size_t width = all.width();
    return {all.parent.subspan(first, length), all.token.subspan(first, length),
            all.top_token.subspan(first * width, length * width), all.top_prob.subspan(first * width, length * width)};
  }

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
