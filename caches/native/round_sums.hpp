#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace paceline {

// Some requests of one round; each span has an entry for each, or is empty.
struct RoundRows {
  std::span<const std::int64_t> places;     // whose sums a request belongs to; below 0: nobody's
  std::span<const std::int64_t> drafted;    // tokens that were verified
  std::span<const std::int64_t> committed;  // tokens that came of it; below 1: counts for nothing
  std::span<const double> more_seconds;     // of the round, for one request; empty: none for all
  double base_seconds = 0.0;                // of the round without drafts
  double token_seconds = 0.0;               // of one drafted token
};

// Tokens, seconds and rounds.
using RoundSum = std::array<double, 3>;

// What shorter drafts of at most so many tokens would have made of the rows: as many tokens, in as many more rounds.
// The row of a place is its sums by cap. O(rows * caps).
class RoundSums {
 public:
  RoundSums(std::size_t num_places, std::vector<std::int64_t> caps);

  // Throws std::invalid_argument, and has then added nothing, where spans differ in length or a place is none.
  void add(const RoundRows& rows);
  const std::vector<std::vector<RoundSum>>& by_place() const { return sums_; }

 private:
  std::vector<std::int64_t> caps_;
  std::vector<std::vector<RoundSum>> sums_;
};

}  // namespace paceline
