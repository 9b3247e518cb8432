#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "calibration.hpp"
#include "lookup.hpp"
#include "segment.hpp"
#include "sessions.hpp"

namespace paceline {

// Everything that one request may draft from. Pointers live for one call.
struct Reading {
  std::vector<const TokenLog*> logs;  // logs[0]: its own context; null: a scope that was dropped
  std::span<const ReadScope> reads;   // of each log after the first, what it is to the request
  std::vector<const CorpusSegment*> segments;

  // A candidate's `log` names a log, or past those a segment.
  bool is_corpus(std::uint32_t log) const { return log >= logs.size(); }
  const CorpusSegment& segment(std::uint32_t log) const { return *segments[log - logs.size()]; }
  Source source(std::uint32_t log) const {
    if (log == 0) return Source::kContext;
    return is_corpus(log) ? Source::kCorpus : reads[log - 1].source;
  }
  void clear() {
    logs.clear();
    segments.clear();
  }
};

// Appends to `found` at most `max_candidates` places of every segment, and to `places` what each of them stands for.
void find_in_corpora(const Reading& reading, std::span<const Token> context, unsigned max_candidates,
                     std::vector<Candidate>& found, std::vector<SegmentPlace>& places);

// What a place of a corpus adds to its score: the log of how many places it stands for. Counts weigh as much as the
// most candidates of a log would, and no more: a frequent next token is not a certain one.
float evidence_of(const SegmentPlace& place);

}  // namespace paceline
