#include "corpus_lookup.hpp"

#include <algorithm>
#include <cmath>

namespace paceline {
namespace {

constexpr std::uint32_t kMostPlaces = 16;

// As of a log: of the kMaxSimilar tokens before the match and the one that ended it, how many are equal.
unsigned num_similar(const CorpusSegment& segment, const SegmentPlace& place, std::span<const Token> context) {
  const std::size_t limit = std::min<std::size_t>({place.match_length + 1 + kMaxSimilar, context.size(), place.next});
  const Token* last = context.data() + context.size() - 1;
  unsigned equal = 0;
  for (std::size_t i = place.match_length + 1; i < limit; ++i) {
    equal += segment.at(place.next - 1 - static_cast<Position>(i)) == *(last - i) ? 1 : 0;
  }
  return equal;
}

}  // namespace

void find_in_corpora(const Reading& reading, std::span<const Token> context, unsigned max_candidates,
                     std::vector<Candidate>& found, std::vector<SegmentPlace>& places) {
  places.clear();
  for (std::size_t i = 0; i < reading.segments.size(); ++i) {
    const CorpusSegment& segment = *reading.segments[i];
    const std::size_t first = places.size();
    segment.spread(context, max_candidates, places);
    for (const SegmentPlace& place : std::span(places).subspan(first)) {
      found.push_back({.log = static_cast<std::uint32_t>(reading.logs.size() + i),
                       .next = place.next,
                       .match_length = place.match_length,
                       .num_similar = num_similar(segment, place, context),
                       .guess = segment.at(place.next)});
    }
  }
}

float evidence_of(const SegmentPlace& place) {
  const double places = static_cast<double>(place.count) * std::min(place.total, kMostPlaces);
  return static_cast<float>(std::log(places / (static_cast<double>(place.total) * place.num_alike)));
}

}  // namespace paceline
