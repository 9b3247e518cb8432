#include "calibration.hpp"

#include <algorithm>
#include <cmath>

#include "calibration_prior.hpp"

namespace paceline {
namespace {

constexpr std::array<unsigned, 15> kLengthBounds{0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 24, 32, 48, kMaxMatch};
constexpr unsigned kNumLengths = kLengthBounds.size();
constexpr unsigned kNumRanks = 8;
constexpr unsigned kNumGaps = 6;       // how much shorter than the longest match
constexpr unsigned kNumFollowed = 8;
constexpr unsigned kNumAges = 10;
constexpr unsigned kNumDistances = 6;
constexpr unsigned kNumCrowds = 4;     // how many candidates there are

// Weights of each trait that belong to one source, in the order of PlaceFeatures.
constexpr std::array<unsigned, kNumFeatures> kFamilies{2 * kNumLengths,
                                                       kNumRanks,
                                                       kNumGaps * kNumLengths,
                                                       (kMaxSimilar + 1) * kNumLengths,
                                                       (kMaxMisses + 1) * kNumFollowed,
                                                       kNumDistances * kNumAges};

// Where each family of weights begins in a table with weights for that many sources.
constexpr unsigned family_begin(unsigned family, unsigned num_sources) {
  unsigned begin = 0;
  for (unsigned before = 0; before < family; ++before) begin += kFamilies[before] * num_sources;
  return begin;
}
constexpr unsigned kLengthWeights = family_begin(0, kNumRanked);
constexpr unsigned kRankWeights = family_begin(1, kNumRanked);
constexpr unsigned kGapWeights = family_begin(2, kNumRanked);
constexpr unsigned kSimilarWeights = family_begin(3, kNumRanked);
constexpr unsigned kFollowedWeights = family_begin(4, kNumRanked);
constexpr unsigned kPlaceWeights = family_begin(5, kNumRanked);
constexpr unsigned kEscapeWeights = family_begin(kNumFeatures, kNumRanked);
constexpr unsigned kMap = kEscapeWeights + kNumLengths * kNumCrowds;
constexpr unsigned kNumFitted = 2;  // sources that the priors were fitted for: the context and its workload

constexpr unsigned kNumDepths = 4;
constexpr unsigned kNumNodeRanks = 4;
constexpr unsigned kNumMapLengths = 5;
constexpr unsigned kNumContexts = kNumDepths * kNumNodeRanks * 2 * kNumMapLengths * 2 * 2;
constexpr unsigned kNumKnots = 25;  // at every half of a logit from -6 to 6
constexpr double kKnotsPerLogit = 2.0;
constexpr float kPriorTrials = 16.0f;
constexpr float kMostTrials = 2000.0f;
constexpr std::size_t kTableSize = kMap + std::size_t{2} * kNumContexts * kNumKnots;

const std::array<std::uint8_t, kMaxMatch + 1> kLengthBuckets = [] {
  std::array<std::uint8_t, kMaxMatch + 1> buckets{};
  for (unsigned length = 0; length <= kMaxMatch; ++length) {
    const auto above = std::upper_bound(kLengthBounds.begin(), kLengthBounds.end(), length);
    buckets[length] = static_cast<std::uint8_t>(above - kLengthBounds.begin() - 1);
  }
  return buckets;
}();

unsigned gap_bucket(unsigned gap) {
  if (gap < 2) return gap;
  return gap < 4 ? 2 : gap < 8 ? 3 : gap < 16 ? 4 : 5;
}

unsigned age_bucket(std::uint32_t age) {
  unsigned bucket = 0;
  for (; age > 16 && bucket + 1 < kNumAges; age /= 4) ++bucket;
  return bucket;
}

unsigned distance_bucket(const PlaceTraits& traits) {
  if (!traits.has_anchor) return 0;
  if (traits.distance >= 0) return traits.distance < 8 ? 1 : traits.distance < 256 ? 2 : traits.distance < 4096 ? 3 : 5;
  return traits.distance > -2048 ? 4 : 5;
}

// Of a corpus: how many places speak, and which part of them for this token.
unsigned evidence_cell(std::uint32_t count, std::uint32_t total) {
  const unsigned crowd = total < 2 ? 0 : total < 4 ? 1 : total < 8 ? 2 : total < 32 ? 3 : total < 256 ? 4 : 5;
  const std::uint64_t tenths = std::uint64_t{count} * (kNumAges - 1) / std::max(total, 1u);
  return crowd * kNumAges + static_cast<unsigned>(std::min<std::uint64_t>(tenths, kNumAges - 1));
}
static_assert(kNumDistances == 6);  // as many as there are crowds

// Of a share in the units of knots, from the first of a context on.
double place_of(double share) {
  const double p = std::clamp(share, 1e-4, 1.0 - 1e-4);
  return std::clamp(std::log(p / (1.0 - p)) * kKnotsPerLogit + (kNumKnots - 1) / 2.0, 0.0,
                    static_cast<double>(kNumKnots - 1) - 1e-3);
}

constexpr std::size_t kHits = std::size_t{kNumContexts} * kNumKnots;

}  // namespace

PlaceFeatures features_of(const PlaceTraits& traits) {
  const unsigned source = ranked_number(traits.source);
  const unsigned length = kLengthBuckets[traits.match_length];
  const unsigned gap = gap_bucket(traits.longest - traits.match_length);
  const unsigned followed = std::min(kNumFollowed - 1, traits.num_followed / 4 + (traits.num_followed > 0 ? 1 : 0));
  const unsigned place = traits.source == Source::kCorpus ? evidence_cell(traits.count, traits.total)
                                                          : distance_bucket(traits) * kNumAges + age_bucket(traits.age);
  const auto index = [](unsigned value) { return static_cast<std::uint16_t>(value); };
  return {
      index(kLengthWeights + (source * 2 + (traits.was_said ? 1 : 0)) * kNumLengths + length),
      index(kRankWeights + source * kNumRanks + std::min(traits.rank, kNumRanks - 1)),
      index(kGapWeights + (source * kNumGaps + gap) * kNumLengths + length),
      index(kSimilarWeights + (source * (kMaxSimilar + 1) + traits.num_similar) * kNumLengths + length),
      index(kFollowedWeights + (source * (kMaxMisses + 1) + traits.misses) * kNumFollowed + followed),
      index(kPlaceWeights + source * kFamilies[5] + place),
  };
}

std::vector<std::uint32_t> Calibration::fitted_weights() {
  std::vector<std::uint32_t> places;
  for (unsigned family = 0; family < kNumFeatures; ++family) {
    for (unsigned i = 0; i < kNumFitted * kFamilies[family]; ++i) places.push_back(family_begin(family, kNumRanked) + i);
  }
  for (unsigned i = kEscapeWeights; i < kMap; ++i) places.push_back(i);
  return places;
}

Calibration::Calibration() : table_(kTableSize, 0.0f) {
  static_assert(prior::kWeights.size() == family_begin(kNumFeatures, kNumFitted) + kNumLengths * kNumCrowds);
  static_assert(prior::kOffsets.size() == kNumContexts);
  const std::vector<std::uint32_t> fitted = fitted_weights();
  for (std::size_t i = 0; i < fitted.size(); ++i) table_[fitted[i]] = prior::kWeights[i];
  for (unsigned family = 0; family < kNumFeatures; ++family) {  // the others start as the workload's
    const auto weights = [&](Source source) {
      return table_.begin() + family_begin(family, kNumRanked) + ranked_number(source) * kFamilies[family];
    };
    std::copy_n(weights(Source::kWorkload), kFamilies[family], weights(Source::kTenant));
    // Places of a corpus have evidence where others have age and distance.
    if (family + 1 < kNumFeatures) std::copy_n(weights(Source::kWorkload), kFamilies[family], weights(Source::kCorpus));
  }
  for (unsigned context = 0; context < kNumContexts; ++context) {
    for (unsigned knot = 0; knot < kNumKnots; ++knot) {
      const std::size_t trials = kMap + std::size_t{context} * kNumKnots + knot;
      const double logit = (knot - (kNumKnots - 1) / 2.0) / kKnotsPerLogit;
      const auto offset = static_cast<double>(prior::kOffsets[context]);
      const double wanted = offset + static_cast<double>(prior::kSlopes[context]) * logit;
      table_[trials] = kPriorTrials;
      table_[trials + kHits] = static_cast<float>(kPriorTrials / (1.0 + std::exp(-wanted)));
    }
  }
}

float Calibration::score(const PlaceFeatures& features) const {
  float sum = 0.0f;
  for (const std::uint16_t feature : features) sum += table_[feature];
  return sum;
}

void Calibration::shift(const PlaceFeatures& features, double step) {
  for (const std::uint16_t feature : features) {
    table_[feature] = static_cast<float>(static_cast<double>(table_[feature]) + step);
  }
}

void Calibration::shift_escape(unsigned longest, std::size_t num_candidates, double step) {
  float& weight = table_[escape_index(longest, num_candidates)];
  weight = static_cast<float>(static_cast<double>(weight) + step);
}

std::size_t Calibration::escape_index(unsigned longest, std::size_t num_candidates) {
  const auto crowd = static_cast<unsigned>(std::min<std::size_t>(kNumCrowds - 1, num_candidates / 6));
  return kEscapeWeights + kLengthBuckets[longest] * kNumCrowds + crowd;
}

unsigned Calibration::map_context(const NodeTraits& traits) {
  const unsigned level = traits.depth == 0 ? 0 : traits.depth < 3 ? 1 : traits.depth < 8 ? 2 : 3;
  const unsigned place = level * kNumNodeRanks + std::min(traits.rank, kNumNodeRanks - 1);
  const unsigned votes = place * 2 + (traits.num_votes > 1 ? 1 : 0);
  const unsigned length = votes * kNumMapLengths + kLengthBuckets[traits.match_length] / 3;
  return (length * 2 + (traits.is_own ? 1 : 0)) * 2 + (traits.was_said ? 1 : 0);
}

Calibration::Knot Calibration::knot_of(unsigned context, double share) {
  // Most nodes below the root stand alone.
  static const double kWhole = place_of(1.0);
  const double place = share == 1.0 ? kWhole : place_of(share);
  const auto whole = static_cast<unsigned>(place);
  return {kMap + context * kNumKnots + whole, place - static_cast<double>(whole)};
}

double Calibration::probability(const Knot& knot) const {
  const auto frequency = [this](std::size_t at) {
    return static_cast<double>(table_[at + kHits]) / static_cast<double>(table_[at]);
  };
  return (1.0 - knot.part) * frequency(knot.index) + knot.part * frequency(knot.index + 1);
}

void Calibration::record(const Knot& knot, bool hit) {
  const double parts[] = {1.0 - knot.part, knot.part};
  for (std::size_t i = 0; i < 2; ++i) {
    float& trials = table_[knot.index + i];
    float& hits = table_[knot.index + i + kHits];
    trials = static_cast<float>(static_cast<double>(trials) + parts[i]);
    if (hit) hits = static_cast<float>(static_cast<double>(hits) + parts[i]);
    if (trials > kMostTrials) {
      trials *= 0.5f;
      hits *= 0.5f;
    }
  }
}

Calibration::Shape Calibration::shape() { return {kMap, kRankWeights, kNumLengths, kNumContexts, kNumKnots}; }

bool Calibration::restore(std::span<const float> state) {
  if (state.size() != table_.size()) return false;
  std::vector<float> before(state.begin(), state.end());
  table_.swap(before);
  if (check().empty()) return true;
  table_.swap(before);
  return false;
}

std::string Calibration::check() const {
  for (std::size_t i = 0; i < kMap; ++i) {
    if (!std::isfinite(table_[i])) return "weight " + std::to_string(i) + " is no number";
  }
  for (std::size_t i = kMap; i < kMap + kHits; ++i) {
    const float trials = table_[i];
    const float hits = table_[i + kHits];
    if (!(trials > 0 && trials <= kMostTrials + 1 && hits >= 0 && hits <= trials * 1.001f)) {
      return "the probability map has more hits than trials at " + std::to_string(i - kMap);
    }
  }
  return {};
}

}  // namespace paceline
