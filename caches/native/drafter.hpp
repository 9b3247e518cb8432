#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "calibration.hpp"
#include "corpus_lookup.hpp"
#include "lookup.hpp"
#include "token_log.hpp"

namespace paceline {

struct DraftSettings {
  unsigned max_candidates = 12;  // a log; fewer beside a copy that goes on for long
  double min_probability = 0.1;
};

// The place of a log that was last copied from rightly.
struct Anchor {
  std::uint32_t epoch = 0;
  Position next = kNone;  // kNone: none yet
};

// What a request carries from round to round beside its context.
struct Trail {
  std::vector<Cursor> cursors;  // best first
  std::vector<Anchor> anchors;  // by log number
  void clear() {
    cursors.clear();
    anchors.clear();
  }
};

// One request's last draft and what it takes to learn from it.
struct Draft {
  struct Node {
    Token token = 0;
    std::int32_t parent = -1;        // -1: continues the context
    std::int32_t issued = -1;        // index among the nodes handed out; -1: considered only
    std::uint32_t depth = 0;         // 0: continues the context
    float probability = 0;           // P(accepted | parent accepted)
    Source source = Source::kContext;
    Calibration::Knot knot;          // of the probability map
    double path_probability = 0;
    std::uint32_t first = 0;         // its voters
    std::uint32_t last = 0;
  };
  struct Place {
    Candidate candidate;  // as found at the root
    PlaceFeatures features;
  };

  std::vector<Node> nodes;                // a parent precedes its children, which lie side by side
  std::vector<std::uint32_t> issue_order; // nodes handed out, likeliest path first
  std::vector<Place> places;              // the root's candidates
  double escape_share = 0;                // P(no candidate is right) at the root
  unsigned longest = 0;                   // match length of the longest candidate
  std::int32_t at = -1;                   // node that the committed tokens have led to
  bool alive = false;                     // whether they still follow the draft
  void clear();
  // Nodes handed out, by source.
  SourceCounts num_issued() const;
};

// What drafting needs for the length of a call, kept for the next.
struct DraftScratch {
  // A place that votes on: what it takes to copy on from there.
  struct Voter {
    std::uint32_t log;
    Position next;          // position of its guess
    Token guess;            // kBorder: it has none
    float share;
    unsigned match_length;  // at the root
  };
  // The voters of one node that guess the same token: `voters` from first to last.
  struct Group {
    Token token;
    std::uint32_t first, last;
    unsigned match_length;  // longest of its voters
    double weight;
    std::uint32_t best;     // its heaviest voter
  };
  // A node that may be handed out: the likelier path is the greater, of equal ones the earlier node.
  struct Open {
    double path_probability;
    std::uint32_t node;
    bool operator<(const Open& other) const {
      if (path_probability != other.path_probability) return path_probability < other.path_probability;
      return node > other.node;
    }
  };

  explicit DraftScratch(std::size_t max_places) {
    found.reserve(max_places);
    weights.reserve(max_places);
    voters.reserve(max_places);
    ballot.reserve(max_places);
  }

  std::vector<Candidate> found;
  std::vector<SegmentPlace> corpus_places;  // of the last of `found`
  std::vector<double> weights;
  std::vector<Voter> voters;
  std::vector<Group> ballot;
  std::vector<Open> frontier;  // a heap
};

// Drafts trees for one request from the logs and corpora it may read.
//
// Every candidate place is scored (Calibration) and holds a share of the probability of the next token; places that
// guess the same token stand behind one node and vote on for the token after it. Nodes are handed out in the order of
// the probability of their path, likeliest first, as long as it is at least min_probability (Wang et al., OPT-Tree,
// 2024: for true probabilities such a tree has the greatest expected accepted length of all of its size). At most
// `max_branches` nodes continue one node; 1 gives a chain. O(candidates * (kMaxMatch + max_tokens)).
class Drafter {
 public:
  explicit Drafter(const DraftSettings& settings) : settings_(settings) {}

  // Replaces `draft` by one of at most max_tokens nodes handed out. Writes `draft` and `scratch` only.
  void draft(const Reading& reading, const Trail& trail, const Calibration& calibration, unsigned max_tokens,
             unsigned max_branches, DraftScratch& scratch, Draft& draft) const;

  // Learns from tokens that were committed after the draft; returns how many of its nodes were accepted, by source. Call
  // before the context grows. Corpora may have come and gone since the draft, logs not.
  static SourceCounts score(Draft& draft, std::span<const Token> committed, Calibration& calibration, Trail& trail,
                            std::span<const TokenLog* const> logs);

  // The trail as `score` and `follow` would leave it if these tokens, at least one, were committed. Call after the
  // context grew by them.
  static Trail foresee(const Draft& draft, const Trail& trail, std::span<const TokenLog* const> logs,
                       std::span<const Token> supposed);

  // Moves the request's cursors past committed tokens. Call after the context grew.
  static void follow(Trail& trail, std::span<const TokenLog* const> logs, std::span<const Token> committed);

 private:
  DraftSettings settings_;
};

}  // namespace paceline
