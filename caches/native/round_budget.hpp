#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace paceline {

// The drafts of a batch: request i has the nodes offsets[i]:offsets[i + 1], likeliest path first.
struct DraftBatch {
  std::span<const std::int64_t> offsets;
  std::span<const std::int32_t> parent;  // within a request; -1: continues the context
  std::span<const float> prob;           // P(accepted | parent accepted)
};

// What a round yields before anything is drafted, and takes with 0, 1, 2... verified tokens more; seconds of 0 are not
// known.
struct RoundBase {
  double tokens = 0.0;
  std::span<const double> seconds;
  double token_seconds = 0.0;  // of one more verified token, where `seconds` end
};

struct RoundChoice {
  std::vector<std::int64_t> num_kept;  // of each request, its first nodes
  std::vector<double> expected;        // of each request, nodes that are accepted if all are verified
  double price = 0.0;                  // tokens that the time of one more verified token is worth, around the choice
  double tokens = 0.0;                 // that the round is expected to yield
};

// The nodes that make the batch's tokens a second the most: as many of the likeliest, all before them included, as are
// worth their time together (TETRIS, arXiv 2502.15197, with times that need not go up evenly). O(n log n).
RoundChoice choose_nodes(const DraftBatch& drafts, const RoundBase& base);

// Of each request, its first nodes that are all likelier than that. O(n).
std::vector<std::int64_t> count_likelier(const DraftBatch& drafts, double price);

}  // namespace paceline
