#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "token_log.hpp"

namespace paceline {

inline constexpr std::uint8_t kModelSource = 2;  // paceline.caches.tree.Source.MODEL

// A draft from memory: a parent precedes its children; of children of one node with the same token the first counts.
// A node of kModelSource is none of memory's: it leads to what memory drafts behind the model's tokens.
struct RetrievedTree {
  std::span<const Token> token;
  std::span<const std::int32_t> parent;  // -1: continues the context
  std::span<const float> prob;           // P(accepted | parent accepted)
  std::span<const std::uint8_t> source;
};

// What a model drafter has read of what may come, and its likeliest next tokens after each place.
struct DrafterView {
  std::span<const std::int32_t> parent;  // (places,): the place that this one extends; -1 for the first, the context
  std::span<const Token> token;          // (places,): by this token; ignored for the first
  std::span<const Token> top_token;      // (places * width,): likeliest first
  std::span<const float> top_prob;       // (places * width,)
  std::size_t width() const { return parent.empty() ? 0 : top_token.size() / parent.size(); }
};

// What is known of a node.
enum class Evidence : std::uint8_t {
  kUnread,   // retrieved, at a place that the drafter has not read
  kAgreed,   // retrieved, and among the drafter's likeliest
  kDoubted,  // retrieved, not among the drafter's likeliest
  kRival,    // among the drafter's likeliest, where memory drafts other tokens
  kAlone,    // among the drafter's likeliest, where memory drafts nothing
};

// Probabilities from two opinions: one logistic mix for each kind of evidence, learned online from what the target
// commits (the gated mixing of context-mixing compressors: Mattern, 2012; Mahoney, PAQ). Shared by requests of equal
// reach alone.
class Mixer {
 public:
  static constexpr std::size_t kNumMixes = 4;
  static constexpr std::size_t kNumWeights = 3;  // of the two logits and of one

  Mixer();
  double probability(Evidence evidence, double one, double other) const;
  void learn(Evidence evidence, double one, double other, bool hit);
  std::span<const float> state() const { return weights_; }
  // False, and nothing changed, if `state` has another size or holds what is no number.
  bool restore(std::span<const float> state);

 private:
  std::array<float, kNumMixes * kNumWeights> weights_;
};

// Both drafts as one tree, and the part of it that is handed out.
struct FusedDraft {
  struct Node {
    Token token = 0;
    std::int32_t parent = -1;
    std::int32_t first_child = -1;
    std::int32_t next_sibling = -1;
    std::int32_t issued = -1;  // index among the nodes handed out; -1: considered only
    std::int32_t place = -1;   // of the drafter's view; -1: not read
    std::uint8_t source = kModelSource;
    Evidence evidence = Evidence::kUnread;
    float retrieved = -1;      // memory's probability; negative: it has none
    float guessed = -1;        // the drafter's; negative: it has none
    double one = 0, other = 0; // the mix's inputs
    double probability = 0;    // P(accepted | parent accepted)
    double path_probability = 0;
  };
  std::vector<Node> nodes;  // a parent precedes its children
  std::int32_t first_root = -1;
  std::vector<std::uint32_t> issue_order;
};

struct FusionLimits {
  std::size_t max_tokens = 0;
  std::size_t max_branches = 1;   // nodes handed out that continue one; 1: a chain
  double min_probability = 0;     // of a path
};

// Fuses a retrieval draft with a model drafter's view into one tree within a budget (RASD, arXiv 2503.03434: branches
// that the drafter finds implausible go, the rest is merged by common prefix). Where RASD cuts at a rank, here each
// node's probability comes from both opinions, and budget goes to the likeliest paths: what memory knows and the
// drafter does not displaces the drafter's deep, unlikely tokens, and the other way round (Graft, arXiv 2605.20104).
// A chain (max_branches 1) is the one of the greatest expected accepted length, whoever drafted its parts.
// What the drafter lists behind a path that is not worth a place is left out, and not learned from. Ties go to retrieved
// nodes, in their order, then to the drafter's. O(retrieved + places + nodes * (siblings + log nodes)).
// Throws std::invalid_argument for drafts that are none.
void fuse(const RetrievedTree& retrieved, const DrafterView& view, const Mixer& mixer, const FusionLimits& limits,
          FusedDraft& fused);

// Learns from the tokens committed after a fused draft; returns how many nodes handed out were accepted. O(committed *
// siblings).
std::size_t learn(const FusedDraft& fused, std::span<const Token> committed, Mixer& mixer);

}  // namespace paceline
