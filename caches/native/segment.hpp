#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "segment_file.hpp"

namespace paceline {

// An earlier place of a corpus whose next token is a guess at the context's next token, for all places like it.
struct SegmentPlace {
  Position next = 0;           // position of the guessed token; Segment.at(next), at(next + 1), ... go on to a border
  unsigned match_length = 0;   // tokens before it that equal the context's last ones, at most kMaxSegmentMatch
  std::uint32_t count = 0;     // places with that match length whose next token this is
  std::uint32_t total = 0;     // places with that match length
  std::uint32_t num_alike = 1; // places found beside this one, itself included, with its match and next token
};

// All places whose preceding `match_length` tokens are the same: entries first to last (exclusive) of the sorted places.
struct SegmentInterval {
  Position first = 0;
  Position last = 0;
  unsigned match_length = 0;

  std::uint32_t size() const { return last - first; }
  bool empty() const { return first == last; }
};

// A frozen corpus: every earlier place that ends like a context, with the true counts of what came next.
//
// Places are sorted by the tokens before them read backwards, as in the suffix array (Manber and Myers 1993) of the
// reversed text, so that those that match a context's last k tokens lie together for every k. One binary search finds
// the longest match; the array of agreements between neighbours (their LCP) gives the interval of each shorter one
// without touching the text again (Abouelhoda, Kurtz and Ohlebusch 2004). Immutable; any number of threads may read.
class CorpusSegment : public std::enable_shared_from_this<CorpusSegment> {
 public:
  // Maps and checks a file. Throws SegmentError, or std::system_error if it cannot be read. O(bytes).
  explicit CorpusSegment(const std::string& path);

  std::size_t num_tokens() const { return counts_.num_tokens; }
  // Positions are below this.
  std::size_t size() const { return arrays_.tokens.size(); }
  std::size_t num_bytes() const { return file_.num_bytes(); }
  // Token at a position, kBorder between sequences and past the end.
  Token at(Position position) const { return position < size() ? arrays_.tokens[position] : kBorder; }
  bool is_border(Position position) const { return at(position) == kBorder; }

  // Places that agree with the end of `context` for longest, at most kMaxSegmentMatch tokens; empty if its last token
  // occurs nowhere with a token after it. O(log n) comparisons.
  SegmentInterval locate(std::span<const Token> context) const;
  // The next larger interval around a non-empty one, with the longest shorter match; empty past one of a single token.
  SegmentInterval back_off(const SegmentInterval& interval) const;
  // Places whose preceding tokens are the interval's and then `token`: where drafting stands after `token`. O(log n)
  // comparisons. Its size is how often `token` came next, less the times that nothing came after it.
  SegmentInterval extend(const SegmentInterval& interval, Token token) const;

  // Appends to `found` the at most `max_candidates` (64 counts as the most) likeliest places for the next token: the
  // distinct next tokens of the longest match, most frequent first, then those that only shorter matches add. Counts
  // are exact up to kMaxCounted places and estimated from kNumSamples of them, evenly spread, in larger intervals.
  // Bounded work: one search and at most kMaxCounted + kMaxSampled * kNumSamples entries read.
  void find(std::span<const Token> context, unsigned max_candidates, std::vector<SegmentPlace>& found) const;
  // The same, but several places for a next token that many places share, so that what follows after it is counted too:
  // of each match length about kPlacesPerMatch places, in proportion to how often their tokens come next, evenly spread
  // over the places of a token; rarer tokens are left out. At most `max_places` in all (64 counts as the most).
  void spread(std::span<const Token> context, unsigned max_places, std::vector<SegmentPlace>& found) const;
  // As find(), from an interval already known, without backing off: the next tokens of the interval.
  void count_next(const SegmentInterval& interval, unsigned max_candidates, std::vector<SegmentPlace>& found) const;

  // Empty if the file is what write_segment makes of its text, else the first fault. O(n) and comparisons.
  std::string check() const;

  static constexpr unsigned kMaxFound = 64;
  static constexpr unsigned kMaxCounted = 256;
  static constexpr unsigned kNumSamples = 32;
  static constexpr unsigned kMaxSampled = 1;  // intervals that are sampled in one call
  static constexpr unsigned kMaxBackOffs = 16;
  static constexpr unsigned kPlacesPerMatch = 8;

 private:
  template <typename Collector>
  void collect(std::span<const Token> context, Collector&& collector) const;
  SegmentInterval around(Position entry, unsigned match_length) const;
  Position first_below(Position entry, unsigned length) const;
  Position last_below(Position entry, unsigned length) const;

  SegmentFile file_;
  SegmentCounts counts_;
  SegmentArrays arrays_;
  // levels_[0] is arrays_.shared; each next level holds the least of every kFanOut of the one below.
  std::vector<std::span<const std::uint8_t>> levels_;
  std::vector<std::vector<std::uint8_t>> minima_;
};

}  // namespace paceline
