#include "calibration.hpp"

namespace paceline {
namespace {

constexpr std::array<unsigned, kNumLengths> kLengthBounds{0, 1, 2, 3, 4, 6, 9, 13, 21, 32, kMaxMatch};
constexpr float kPriorTotal = 4.0f;
constexpr float kCellLimit = 4000.0f;

constexpr std::size_t kNumTrustCells = std::size_t{kNumSources} * (kMaxMisses + 1) * kNumLengths;
constexpr std::size_t kNumAcceptanceCells = kNumTrustCells * kNumAgreements * kNumDepths;

// The priors are fitted to replayed agent traces: odds of being right grow about linearly with the match length. The
// source matters little. A cursor that came through misses has shown that its copy goes on.
double trust_odds(std::size_t cell) {
  const double length = kLengthBounds[cell % kNumLengths];
  const double misses = static_cast<double>(cell / kNumLengths % (kMaxMisses + 1));
  return (length + 0.3) * (1.0 + 2.0 * misses) / 4.0;
}

// Odds of a vote's winner by how far the voters agree: at a match of no token, and what each matched token adds. A
// fifth lower than what was observed: a young memory is right less often than the old one they were fitted to.
struct OddsLine {
  double start;
  double per_token;
};
constexpr std::array<OddsLine, kNumAgreements> kAcceptanceOdds{
    {{0.2, 0.0025}, {0.4, 0.4}, {0.8, 0.6}, {2.4, 2.4}, {1.4, 0.16}, {0.6, 0.04}, {0.3, 0.016}}};

double acceptance_odds(std::size_t cell) {
  const std::size_t evidence = cell / kNumDepths;
  const OddsLine& line = kAcceptanceOdds[evidence % kNumAgreements];
  return line.start + line.per_token * kLengthBounds[evidence / kNumAgreements % kNumLengths];
}

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

FrequencyTable::FrequencyTable(std::size_t num_cells, double (*prior_odds)(std::size_t cell)) {
  cells_.reserve(num_cells);
  for (std::size_t cell = 0; cell < num_cells; ++cell) {
    const double odds = prior_odds(cell);
    cells_.push_back({static_cast<float>(odds / (1.0 + odds)) * kPriorTotal, kPriorTotal});
  }
}

void FrequencyTable::record(std::size_t cell, bool hit) {
  Cell& counts = cells_[cell];
  counts.hits += hit ? 1.0f : 0.0f;
  counts.total += 1.0f;
  if (counts.total >= kCellLimit) {
    counts.hits *= 0.5f;
    counts.total *= 0.5f;
  }
}

void FrequencyTable::append_state(std::vector<float>& state) const {
  for (const Cell& cell : cells_) state.insert(state.end(), {cell.hits, cell.total});
}

void FrequencyTable::restore_state(std::span<const float> state) {
  for (std::size_t i = 0; i < cells_.size(); ++i) cells_[i] = {state[2 * i], state[2 * i + 1]};
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

Calibration::Calibration()
    : trust(kNumTrustCells, &trust_odds), acceptance(kNumAcceptanceCells, &acceptance_odds) {}

std::string Calibration::check() const {
  if (std::string fault = trust.check(); !fault.empty()) return "trust: " + fault;
  if (std::string fault = acceptance.check(); !fault.empty()) return "acceptance: " + fault;
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
