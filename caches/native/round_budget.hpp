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

// What a round takes and yields before anything is drafted; seconds of 0 are not known.
struct RoundBase {
  double tokens = 0.0;
  double seconds = 0.0;
  double token_seconds = 0.0;  // of one more verified token
};

struct RoundChoice {
  std::vector<std::int64_t> num_kept;  // of each request, its first nodes
  std::vector<double> expected;        // of each request, nodes that are accepted if all are verified
  double price = 0.0;                  // chance of being accepted up to which a node is not worth verifying
  double tokens = 0.0;                 // that the round is expected to yield
};

// The nodes that make the batch's tokens a second the most: those whose chance of being accepted, all before them
// included, is worth more than their time (TETRIS, arXiv 2502.15197). O(n log n).
RoundChoice choose_nodes(const DraftBatch& drafts, const RoundBase& base);

// Of each request, its first nodes that are all likelier than that. O(n).
std::vector<std::int64_t> count_likelier(const DraftBatch& drafts, double price);

}  // namespace paceline
