#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "token_log.hpp"

namespace paceline {

// An earlier place whose next token is a guess at the context's next token.
struct Candidate {
  std::uint32_t log = 0;      // 0: the request's own context, i: the i-th scope it reads, beyond: a corpus segment
  Position next = 0;          // position of the guessed token
  unsigned match_length = 0;  // tokens before `next` that equal the context's last ones, at most kMaxMatch
  unsigned num_similar = 0;   // of the kMaxSimilar tokens before the match, those equal at the same distance
  unsigned rank = 0;          // among the places found in the same chain, newest first
  unsigned misses = 0;        // mismatches a cursor came through on its way here; 0 for a place found by lookup
  unsigned num_followed = 0;  // tokens by which a cursor has followed it; 0 for a place found by lookup
  Token guess = kBorder;      // the token drafted next; kBorder: it has none
  float share = 0;            // of the probability that falls to it
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

// Of the kMaxSimilar tokens before a match (of `match_length` tokens) and the one that ended it, how many are equal.
unsigned num_similar(const TokenLog& log, Position next, std::span<const Token> context, unsigned match_length);

// Appends to `found` the at most `max_candidates` newest places of `log` whose preceding long gram equals the end of
// `context`, newest first, and, if there is room, then those that match by at least the short gram but not the long.
// Each place of a chain that matches takes one of max_candidates visits, also where it is no candidate. `own`: the log
// is the context itself.
void find_candidates(const TokenLog& log, std::uint32_t log_number, bool own, std::span<const Token> context,
                     unsigned max_candidates, std::vector<Candidate>& found);

// Moves a cursor past one committed token: on if it guessed it; past the edit if not. False: give the cursor up.
bool advance(Cursor& cursor, const TokenLog& log, Token committed);

}  // namespace paceline
