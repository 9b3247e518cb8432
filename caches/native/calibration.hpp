#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace paceline {

// Who drafted a node. Values are those of paceline.caches.tree.Source.
enum class Source : std::uint8_t { kContext = 0, kShared = 1 };
inline constexpr unsigned kNumSources = 2;

inline constexpr unsigned kMaxMatch = 64;   // longer matches count as this
inline constexpr unsigned kMaxMisses = 3;   // mismatches a cursor survives
inline constexpr unsigned kNumLengths = 11;
inline constexpr unsigned kNumAgreements = 7;
inline constexpr unsigned kNumDepths = 4;

unsigned length_bucket(unsigned match_length);
// How far the candidates agree on a token: `num_votes` of them for it, `share` of all weight, alone or contested.
unsigned agreement_bucket(bool contested, unsigned num_votes, double share);
unsigned depth_bucket(unsigned depth);

// Observed frequency of being right, one per cell, starting from prior odds that weigh as much as kPriorTotal trials and
// forgetting slowly: when a cell's count reaches kCellLimit both counts are halved. probability() and record() are O(1).
class FrequencyTable {
 public:
  FrequencyTable(std::size_t num_cells, double (*prior_odds)(std::size_t cell));
  double probability(std::size_t cell) const {
    return static_cast<double>(cells_[cell].hits / cells_[cell].total);
  }
  void record(std::size_t cell, bool hit);
  std::size_t num_bytes() const { return cells_.size() * sizeof(Cell); }
  // The counts as numbers, and back; `state` has state_size() of them.
  std::size_t state_size() const { return 2 * cells_.size(); }
  void append_state(std::vector<float>& state) const;
  void restore_state(std::span<const float> state);
  // Empty if every cell holds 0 <= hits <= total, else the first that does not.
  std::string check() const;

 private:
  struct Cell {
    float hits;
    float total;
  };
  std::vector<Cell> cells_;
};

// What drafting has learned of itself, shared by requests of equal reach alone: how far others are drafted for must not
// show how well a tenant's drafts went.
//
// `trust` says how often a single candidate is right about the next token; it weighs the votes. `acceptance` says how
// often the winner of a vote is right given that the draft was right so far; it is the probability of a node. Both
// are filled by the tokens that the target commits, whether or not it verified the draft.
struct Calibration {
  static std::size_t trust_cell(Source source, unsigned misses, unsigned match_length);
  static std::size_t acceptance_cell(Source source, unsigned misses, unsigned match_length,
                                     unsigned agreement, unsigned depth);

  Calibration();
  std::size_t num_bytes() const { return trust.num_bytes() + acceptance.num_bytes(); }
  // Empty if both tables are whole, else what is wrong.
  std::string check() const;

  FrequencyTable trust;
  FrequencyTable acceptance;
};

}  // namespace paceline
