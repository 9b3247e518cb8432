#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace paceline {

// Who drafted a node. Values are those of paceline.caches.tree.Source.
enum class Source : std::uint8_t { kContext = 0, kWorkload = 1, kModel = 2, kTenant = 3, kCorpus = 4 };
inline constexpr unsigned kNumSources = 5;
// A number for each source.
using SourceCounts = std::array<std::uint64_t, kNumSources>;

// Sources whose places are ranked here have weights of their own: all but the model, which ranks by itself.
inline constexpr unsigned kNumRanked = 4;
constexpr unsigned ranked_number(Source source) {
  return source == Source::kContext ? 0 : source == Source::kWorkload ? 1 : source == Source::kTenant ? 2 : 3;
}

inline constexpr unsigned kMaxMatch = 64;   // longer matches count as this
inline constexpr unsigned kMaxMisses = 3;   // mismatches a cursor survives
inline constexpr unsigned kMaxSimilar = 16; // tokens before the match that are compared one by one

// What is known of an earlier place when it is ranked.
struct PlaceTraits {
  Source source = Source::kContext;
  bool was_said = false;       // whether the model said its next token, rather than read it
  unsigned match_length = 0;   // at most kMaxMatch
  unsigned longest = 0;        // match length of the longest candidate
  unsigned rank = 0;           // 0: the newest of its log
  unsigned num_similar = 0;    // of the kMaxSimilar tokens before the match, those equal at the same distance
  unsigned num_followed = 0;   // tokens by which a cursor has followed it; 0: found by lookup
  unsigned misses = 0;         // mismatches the cursor came through
  std::uint32_t age = 0;       // tokens that came after it
  bool has_anchor = false;     // whether its log was copied from in this request before
  std::int64_t distance = 0;   // from the place last copied rightly
  std::uint32_t count = 0;     // of a corpus: places of that match with that next token,
  std::uint32_t total = 0;     // of all places of that match; these take the place of age and distance
};

// What is known of a node when its share becomes a probability.
struct NodeTraits {
  unsigned depth = 0;         // 0: continues the context
  unsigned rank = 0;          // among its siblings, likeliest first
  unsigned num_votes = 0;     // places behind it
  unsigned match_length = 0;  // of the longest of them, its own path included; at most kMaxMatch
  bool is_own = false;        // whether the heaviest of them lies in the request's own context
  bool was_said = false;      // whether the model said the token there
};

inline constexpr unsigned kNumFeatures = 6;
using PlaceFeatures = std::array<std::uint16_t, kNumFeatures>;

// Indices of the weights that belong to a place.
PlaceFeatures features_of(const PlaceTraits& traits);

// What drafting has learned, shared by requests of equal reach alone: how far others are drafted for must not show how
// well a tenant's drafts went. Two tables of floats, learned online from what the target commits:
//
// *Weights* rank places: a conditional logit (McFadden, 1974) over the candidates and the event that none is right. A
// place's score is the sum of one weight for each trait; P(token) is the share of the places that guess it in the sum
// of exp(score). The first token committed after a draft is one step of gradient on its log-likelihood.
//
// *The probability map* turns such a share into an observed frequency, by depth, rank, agreement, match and kind of text: the adaptive
// probability map of context-mixing compressors (Mahoney, PAQ).
class Calibration {
 public:
  Calibration();

  float score(const PlaceFeatures& features) const;
  // Score of "none of the candidates is right".
  float escape_score(unsigned longest, std::size_t num_candidates) const {
    return table_[escape_index(longest, num_candidates)];
  }
  // Adds `step` to every weight of a place (or of the escape).
  void shift(const PlaceFeatures& features, double step);
  void shift_escape(unsigned longest, std::size_t num_candidates, double step);

  // Where in the probability map a share lies: between two knots.
  struct Knot {
    std::uint32_t index = 0;  // of the trials of the lower one; its hits come after all the trials
    double part = 0;          // of a trial that falls to the upper one
  };
  static Knot knot_of(unsigned context, double share);
  // Context of the probability map for a node.
  static unsigned map_context(const NodeTraits& traits);
  double probability(const Knot& knot) const;
  void record(const Knot& knot, bool hit);

  // How the state is laid out: the weights (first those of match lengths, each kind's by rising length), then of each context of the map the trials at its knots, then their hits.
  struct Shape {
    std::size_t num_weights, num_length_weights, num_lengths, num_contexts, num_knots;
  };
  static Shape shape();
  // Where in the state the weights lie that priors are fitted for (of the context and the workload, and of the escape),
  // in the order in which the priors have them.
  static std::vector<std::uint32_t> fitted_weights();
  // Everything learned, to be kept and restored.
  std::span<const float> state() const { return table_; }
  // False, and nothing changed, if `state` has another size or holds no such table.
  bool restore(std::span<const float> state);
  std::size_t num_bytes() const { return table_.size() * sizeof(float); }
  // Empty if every value is one that learning can reach, else what is wrong.
  std::string check() const;

 private:
  static std::size_t escape_index(unsigned longest, std::size_t num_candidates);

  std::vector<float> table_;
};

}  // namespace paceline
