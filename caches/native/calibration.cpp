#include "calibration.hpp"

namespace paceline {
namespace {

constexpr std::array<unsigned, kNumLengths> kLengthBounds{0, 1, 2, 3, 4, 6, 9, 13, 21, 32, kMaxMatch};
constexpr float kPriorHits = 4.0f;
constexpr float kPriorTotal = 8.0f;
constexpr float kCellLimit = 4000.0f;

}  // namespace

unsigned length_bucket(unsigned match_length) {
  unsigned bucket = 0;
  while (bucket + 1 < kNumLengths && match_length >= kLengthBounds[bucket + 1]) ++bucket;
  return bucket;
}

unsigned agreement_bucket(bool contested, unsigned num_votes, double share) {
  if (!contested) return num_votes >= 4 ? 3 : num_votes >= 2 ? 2 : 1;
  if (share > 0.9) return 4;
  if (share > 0.7) return 5;
  return share > 0.5 ? 6 : 0;
}

unsigned depth_bucket(unsigned depth) {
  if (depth == 0) return 0;
  return depth < 3 ? 1 : depth < 8 ? 2 : 3;
}

FrequencyTable::FrequencyTable(std::size_t num_cells) : cells_(num_cells, Cell{kPriorHits, kPriorTotal}) {}

void FrequencyTable::record(std::size_t cell, bool hit) {
  Cell& counts = cells_[cell];
  counts.hits += hit ? 1.0f : 0.0f;
  counts.total += 1.0f;
  if (counts.total >= kCellLimit) {
    counts.hits *= 0.5f;
    counts.total *= 0.5f;
  }
}

std::string FrequencyTable::check() const {
  for (std::size_t i = 0; i < cells_.size(); ++i) {
    const Cell& cell = cells_[i];
    if (!(cell.hits >= 0 && cell.hits <= cell.total && cell.total > 0)) {
      return "calibration cell " + std::to_string(i) + " has more hits than trials";
    }
  }
  return {};
}

std::size_t Calibration::trust_cell(Source source, unsigned misses, unsigned match_length) {
  const std::size_t origin = static_cast<std::size_t>(source) * (kMaxMisses + 1) + misses;
  return origin * kNumLengths + length_bucket(match_length);
}

std::size_t Calibration::acceptance_cell(Source source, unsigned misses, unsigned match_length,
                                         unsigned agreement, unsigned depth) {
  const std::size_t evidence = trust_cell(source, misses, match_length) * kNumAgreements + agreement;
  return evidence * kNumDepths + depth_bucket(depth);
}

}  // namespace paceline
