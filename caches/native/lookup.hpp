#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "token_log.hpp"

namespace paceline {

// An earlier place whose next token is a guess at the context's next token.
struct Candidate {
  std::uint32_t log = 0;     // 0: the request's own context, i: the i-th scope it reads
  Position next = 0;         // position of the guessed token
  unsigned match_length = 0; // tokens before `next` that equal the context's last ones, at most kMaxMatch
  unsigned misses = 0;       // mismatches a cursor came through on its way here; 0 for a place found by lookup
  double weight = 0;
};

// A place that drafting follows from round to round, through small edits.
struct Cursor {
  std::uint32_t log = 0;
  std::uint32_t epoch = 0;
  Position next = 0;
  unsigned num_matched = 0;  // since the last mismatch
  unsigned misses = 0;
};

// Number of tokens, at most kMaxMatch, by which the log before `next` equals the end of `context`.
unsigned match_length(const TokenLog& log, Position next, std::span<const Token> context);

// Appends to `found` the at most `max_candidates` newest places of `log` whose preceding long gram equals the end of
// `context`, newest first, and, if there is room, then those that match by at least the short gram but not the long.
// Visits at most a fixed multiple of max_candidates links. `own`: the log is the context itself.
void find_candidates(const TokenLog& log, std::uint32_t log_number, bool own, std::span<const Token> context,
                     unsigned max_candidates, std::vector<Candidate>& found);

// Moves a cursor past one committed token: on if it guessed it; past the edit if not. False: give the cursor up.
bool advance(Cursor& cursor, const TokenLog& log, Token committed);

}  // namespace paceline
