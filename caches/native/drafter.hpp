#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "calibration.hpp"
#include "lookup.hpp"
#include "token_log.hpp"

namespace paceline {

struct DraftSettings {
  unsigned max_candidates = 16;
  double min_probability = 0.1;
};

// One request's last draft and what it takes to score it.
struct Draft {
  struct Node {
    Token token = 0;
    float probability = 0;
    Source source = Source::kContext;
    std::uint32_t cell = 0;  // of Calibration::acceptance
  };
  struct Vote {
    Token token = 0;
    std::uint32_t cell = 0;  // of Calibration::trust
  };

  std::vector<Node> nodes;     // a chain; the first num_issued were handed out, the rest only serve calibration
  std::vector<Vote> votes;     // every candidate's guess at the first token
  std::size_t num_issued = 0;
  std::size_t num_scored = 0;  // nodes already compared with committed tokens
  bool has_lead = false;
  Cursor lead;                 // the place whose guess won the first vote

  void clear();
};

// Drafts chains for one request from the logs it may read: logs[0] is its own context.
//
// Candidates vote for the next token with the squared odds of their trust, discounted by rank; those that agree with
// the winner vote for the token after it, and so on. A chain stops before its cumulative acceptance probability falls
// below min_probability. O(num logs * max_candidates * (kMaxMatch + max_tokens)).
class Drafter {
 public:
  explicit Drafter(const DraftSettings& settings) : settings_(settings) {}

  // Replaces `draft` by one of at most max_tokens nodes. Reads logs and calibration, writes `draft` only.
  void draft(std::span<const TokenLog* const> logs, std::span<const Cursor> cursors, const Calibration& calibration,
             unsigned max_tokens, Draft& draft) const;

  // Scores the draft against tokens that were committed after it. Call before the context grows.
  static std::size_t score(Draft& draft, std::span<const Token> committed, Calibration& calibration);

  // Moves the request's cursors, the draft's lead first, past committed tokens. Call after the context grew.
  static void follow(Draft& draft, std::vector<Cursor>& cursors, std::span<const TokenLog* const> logs,
                     std::span<const Token> committed);

 private:
  DraftSettings settings_;
};

}  // namespace paceline
