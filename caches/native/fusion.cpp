#include "fusion.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "validation.hpp"

namespace paceline {
namespace {

constexpr double kLearningRate = 0.02;
constexpr double kMostLogit = 8.0;
constexpr double kLeastGuess = 1e-6;
// Weights before anything is learned: both opinions count about half where they meet.
constexpr std::array<float, Mixer::kNumMixes * Mixer::kNumWeights> kPrior{
    0.6f, 0.6f, 0.0f,  // agreed: memory's logit, the drafter's, one
    0.5f, 0.4f, 0.0f,  // doubted: memory's, the most that the drafter can give it
    0.8f, 0.4f, 0.0f,  // rival: the drafter's, what memory leaves to others
    0.9f, 0.0f, 0.0f,  // alone: the drafter's
};

double logit(double p) {
  const double bounded = std::clamp(p, 1e-4, 1.0 - 1e-4);
  return std::clamp(std::log(bounded / (1.0 - bounded)), -kMostLogit, kMostLogit);
}

void check_probability_of(const char* name, std::size_t i, float p) {
  if (p >= 0.0f && p <= 1.0f) return;
  refuse(name + ("[" + std::to_string(i) + "]"), std::to_string(p), "give probabilities from 0 to 1");
}

void check_parent(const char* name, std::size_t i, std::int32_t parent, std::int32_t least) {
  if (parent >= least && parent < static_cast<std::int32_t>(i)) return;
  refuse(name + ("[" + std::to_string(i) + "]"), std::to_string(parent),
         "give " + std::to_string(least) + " to " + std::to_string(static_cast<std::int64_t>(i) - 1) +
             ": a parent comes before its children");
}

void check_length(const char* name, std::size_t length, std::size_t wanted) {
  if (length != wanted) refuse(name, std::to_string(length) + " long", "give " + std::to_string(wanted));
}

void check(const RetrievedTree& tree) {
  check_length("parent", tree.parent.size(), tree.token.size());
  check_length("prob", tree.prob.size(), tree.token.size());
  check_length("source", tree.source.size(), tree.token.size());
  for (std::size_t i = 0; i < tree.token.size(); ++i) {
    check_parent("parent", i, tree.parent[i], -1);
    check_probability_of("prob", i, tree.prob[i]);
  }
}

void check(const DrafterView& view) {
  const std::size_t num_places = view.parent.size();
  check_length("place_token", view.token.size(), num_places);
  check_length("top_prob", view.top_prob.size(), view.top_token.size());
  check_length("top_token", view.top_token.size(), num_places * view.width());
  for (std::size_t i = 0; i < num_places; ++i) {
    if (i == 0 && view.parent[0] != -1) {
      refuse("place_parent[0]", std::to_string(view.parent[0]), "give -1: the first place is the context");
    }
    if (i > 0) check_parent("place_parent", i, view.parent[i], 0);
  }
  for (std::size_t i = 0; i < view.top_prob.size(); ++i) check_probability_of("top_prob", i, view.top_prob[i]);
}

bool is_worth_a_place(const FusedDraft::Node& node, const FusionLimits& limits) {
  return node.path_probability > 0 && node.path_probability >= limits.min_probability;
}

// The making of one tree.
class Merge {
 public:
  Merge(const RetrievedTree& retrieved, const DrafterView& view, FusedDraft& fused)
      : retrieved_(retrieved), view_(view), fused_(fused) {
    fused_.nodes.clear();
    fused_.issue_order.clear();
    fused_.first_root = -1;
  }

  void add_retrieved() {
    std::vector<std::int32_t> at(retrieved_.token.size());
    for (std::size_t i = 0; i < at.size(); ++i) {
      const std::int32_t parent = retrieved_.parent[i];
      at[i] = child(parent < 0 ? -1 : at[static_cast<std::size_t>(parent)], retrieved_.token[i]);
      FusedDraft::Node& node = fused_.nodes[static_cast<std::size_t>(at[i])];
      if (node.retrieved >= 0 || retrieved_.source[i] == kModelSource) continue;
      node.retrieved = retrieved_.prob[i];
      node.source = retrieved_.source[i];
    }
  }

  void add_places() {
    std::vector<std::int32_t> at(view_.parent.size(), -1);  // the node of each; -1: the context
    for (std::size_t i = 1; i < at.size(); ++i) {
      at[i] = child(at[static_cast<std::size_t>(view_.parent[i])], view_.token[i]);
      fused_.nodes[static_cast<std::size_t>(at[i])].place = static_cast<std::int32_t>(i);
    }
  }

  // Adds what the drafter lists, and gives each node its probability from what is known of its siblings; as far as paths
  // are worth a place: most places of a drafter that reads memory's whole tree are not.
  void grow(const Mixer& mixer, const FusionLimits& limits) {
    grow_behind(-1, view_.parent.empty() ? -1 : 0, mixer);
    for (std::size_t i = 0; i < fused_.nodes.size(); ++i) {  // children come after their parent
      if (!is_worth_a_place(fused_.nodes[i], limits)) continue;
      grow_behind(static_cast<std::int32_t>(i), fused_.nodes[i].place, mixer);
    }
  }

 private:
  void grow_behind(std::int32_t parent, std::int32_t place, const Mixer& mixer) {
    if (place >= 0) {
      const std::size_t width = view_.width();
      const std::size_t begin = static_cast<std::size_t>(place) * width;
      for (std::size_t j = begin; j < begin + width; ++j) {
        FusedDraft::Node& node = fused_.nodes[static_cast<std::size_t>(child(parent, view_.top_token[j]))];
        if (node.guessed < 0) node.guessed = view_.top_prob[j];
      }
    }
    const std::int32_t first =
        parent < 0 ? fused_.first_root : fused_.nodes[static_cast<std::size_t>(parent)].first_child;
    weigh_children(parent, first, place, mixer);
  }

  std::int32_t child(std::int32_t parent, Token token) {
    std::int32_t* link =
        parent < 0 ? &fused_.first_root : &fused_.nodes[static_cast<std::size_t>(parent)].first_child;
    while (*link >= 0) {
      FusedDraft::Node& sibling = fused_.nodes[static_cast<std::size_t>(*link)];
      if (sibling.token == token) return *link;
      link = &sibling.next_sibling;
    }
    const auto made = static_cast<std::int32_t>(fused_.nodes.size());
    *link = made;
    FusedDraft::Node& node = fused_.nodes.emplace_back();
    node.token = token;
    node.parent = parent;
    return made;
  }

  void weigh_children(std::int32_t parent, std::int32_t first, std::int32_t place, const Mixer& mixer) {
    double left = 1.0;  // of memory's probability, to tokens that it does not draft
    bool has_retrieved = false;
    for (std::int32_t i = first; i >= 0; i = next(i)) {
      const float retrieved = fused_.nodes[static_cast<std::size_t>(i)].retrieved;
      if (retrieved < 0) continue;
      has_retrieved = true;
      left -= static_cast<double>(retrieved);
    }
    const double unlisted = place < 0 ? 0.0 : most_unlisted(static_cast<std::size_t>(place));
    double total = 0;
    for (std::int32_t i = first; i >= 0; i = next(i)) {
      FusedDraft::Node& node = fused_.nodes[static_cast<std::size_t>(i)];
      const double guessed = node.guessed >= 0 ? static_cast<double>(node.guessed) : unlisted;
      if (place < 0) {
        node.evidence = Evidence::kUnread;
        node.probability = std::max(0.0, static_cast<double>(node.retrieved));
      } else if (node.retrieved >= 0) {
        node.evidence = node.guessed >= 0 ? Evidence::kAgreed : Evidence::kDoubted;
        node.one = logit(static_cast<double>(node.retrieved));
        node.other = logit(guessed);
      } else {
        node.evidence = has_retrieved ? Evidence::kRival : Evidence::kAlone;
        node.one = logit(guessed);
        node.other = has_retrieved ? logit(left) : 0.0;
      }
      if (place >= 0) node.probability = mixer.probability(node.evidence, node.one, node.other);
      total += node.probability;
    }
    const double above = parent < 0 ? 1.0 : fused_.nodes[static_cast<std::size_t>(parent)].path_probability;
    for (std::int32_t i = first; i >= 0; i = next(i)) {
      FusedDraft::Node& node = fused_.nodes[static_cast<std::size_t>(i)];
      if (total > 1.0) node.probability /= total;
      node.path_probability = above * node.probability;
    }
  }

  // The most that the drafter can give a token which is not among its likeliest.
  double most_unlisted(std::size_t place) const {
    const std::size_t width = view_.width();
    double rest = 1.0;
    double least = 1.0;
    for (std::size_t j = place * width; j < (place + 1) * width; ++j) {
      const auto p = static_cast<double>(view_.top_prob[j]);
      rest -= p;
      least = std::min(least, p);
    }
    return std::max(kLeastGuess, std::min(rest, least));
  }

  std::int32_t next(std::int32_t node) const { return fused_.nodes[static_cast<std::size_t>(node)].next_sibling; }

  const RetrievedTree& retrieved_;
  const DrafterView& view_;
  FusedDraft& fused_;
};

void issue(FusedDraft& fused, std::size_t node) {
  fused.nodes[node].issued = static_cast<std::int32_t>(fused.issue_order.size());
  fused.issue_order.push_back(static_cast<std::uint32_t>(node));
}

// The path of the greatest expected accepted length: the sum of the probabilities of its beginnings.
void issue_chain(FusedDraft& fused, const FusionLimits& limits) {
  const std::size_t num_nodes = fused.nodes.size();
  std::vector<std::size_t> depth(num_nodes);
  for (std::size_t i = 0; i < num_nodes; ++i) {
    const std::int32_t parent = fused.nodes[i].parent;
    depth[i] = parent < 0 ? 1 : depth[static_cast<std::size_t>(parent)] + 1;
  }
  std::vector<double> below(num_nodes, 0.0);  // most that a child's path adds
  std::vector<std::int32_t> best(num_nodes, -1);
  double most = 0.0;
  std::int32_t first = -1;
  for (std::size_t i = num_nodes; i-- > 0;) {
    const FusedDraft::Node& node = fused.nodes[i];
    if (depth[i] > limits.max_tokens || !is_worth_a_place(node, limits)) continue;
    const double worth = node.path_probability + below[i];
    // Going backwards, of equal ones the earlier node is seen last: it wins.
    double& held = node.parent < 0 ? most : below[static_cast<std::size_t>(node.parent)];
    if (worth < held) continue;
    held = worth;
    (node.parent < 0 ? first : best[static_cast<std::size_t>(node.parent)]) = static_cast<std::int32_t>(i);
  }
  for (std::int32_t i = first; i >= 0; i = best[static_cast<std::size_t>(i)]) issue(fused, static_cast<std::size_t>(i));
}

struct Open {
  double path_probability;
  std::int32_t node;
  bool operator<(const Open& other) const {
    if (path_probability != other.path_probability) return path_probability < other.path_probability;
    return node > other.node;
  }
};

// The likeliest paths (Wang et al., OPT-Tree, 2024).
void issue_tree(FusedDraft& fused, const FusionLimits& limits) {
  std::vector<Open> frontier;
  std::vector<Open> siblings;
  const auto open_children = [&](std::int32_t first) {
    siblings.clear();
    for (std::int32_t i = first; i >= 0; i = fused.nodes[static_cast<std::size_t>(i)].next_sibling) {
      const FusedDraft::Node& node = fused.nodes[static_cast<std::size_t>(i)];
      if (is_worth_a_place(node, limits)) siblings.push_back({node.path_probability, i});
    }
    std::sort(siblings.begin(), siblings.end(), [](const Open& a, const Open& b) { return b < a; });
    if (siblings.size() > limits.max_branches) siblings.resize(limits.max_branches);
    for (const Open& sibling : siblings) {
      frontier.push_back(sibling);
      std::push_heap(frontier.begin(), frontier.end());
    }
  };
  open_children(fused.first_root);
  while (!frontier.empty() && fused.issue_order.size() < limits.max_tokens) {
    std::pop_heap(frontier.begin(), frontier.end());
    const auto node = static_cast<std::size_t>(frontier.back().node);
    frontier.pop_back();
    issue(fused, node);
    open_children(fused.nodes[node].first_child);
  }
}

}  // namespace

Mixer::Mixer() : weights_(kPrior) {}

double Mixer::probability(Evidence evidence, double one, double other) const {
  const std::size_t first = (static_cast<std::size_t>(evidence) - 1) * kNumWeights;
  const double sum = static_cast<double>(weights_[first]) * one + static_cast<double>(weights_[first + 1]) * other +
                     static_cast<double>(weights_[first + 2]);
  return 1.0 / (1.0 + std::exp(-sum));
}

void Mixer::learn(Evidence evidence, double one, double other, bool hit) {
  const double step = kLearningRate * ((hit ? 1.0 : 0.0) - probability(evidence, one, other));
  const std::size_t first = (static_cast<std::size_t>(evidence) - 1) * kNumWeights;
  const std::array<double, kNumWeights> inputs{one, other, 1.0};
  for (std::size_t i = 0; i < kNumWeights; ++i) {
    weights_[first + i] = static_cast<float>(static_cast<double>(weights_[first + i]) + step * inputs[i]);
  }
}

bool Mixer::restore(std::span<const float> state) {
  if (state.size() != weights_.size()) return false;
  if (!std::all_of(state.begin(), state.end(), [](float weight) { return std::isfinite(weight); })) return false;
  std::copy(state.begin(), state.end(), weights_.begin());
  return true;
}

void fuse(const RetrievedTree& retrieved, const DrafterView& view, const Mixer& mixer, const FusionLimits& limits,
          FusedDraft& fused) {
  check(retrieved);
  check(view);
  Merge merge(retrieved, view, fused);
  merge.add_retrieved();
  merge.add_places();
  merge.grow(mixer, limits);
  if (limits.max_branches == 1) {
    issue_chain(fused, limits);
  } else {
    issue_tree(fused, limits);
  }
}

std::size_t learn(const FusedDraft& fused, std::span<const Token> committed, Mixer& mixer) {
  std::size_t num_accepted = 0;
  std::int32_t first = fused.first_root;
  bool is_issued = true;
  for (const Token token : committed) {
    std::int32_t following = -1;
    for (std::int32_t i = first; i >= 0; i = fused.nodes[static_cast<std::size_t>(i)].next_sibling) {
      const FusedDraft::Node& node = fused.nodes[static_cast<std::size_t>(i)];
      if (node.token == token) following = i;
      if (node.evidence != Evidence::kUnread) mixer.learn(node.evidence, node.one, node.other, node.token == token);
    }
    if (following < 0) break;
    const FusedDraft::Node& node = fused.nodes[static_cast<std::size_t>(following)];
    is_issued = is_issued && node.issued >= 0;
    if (is_issued) ++num_accepted;
    first = node.first_child;
  }
  return num_accepted;
}

}  // namespace paceline
