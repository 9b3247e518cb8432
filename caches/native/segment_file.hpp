#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>

#include "token_log.hpp"

namespace paceline {

inline constexpr unsigned kMaxSegmentMatch = 64;  // places are sorted by this many of the tokens before them

// A file that is not a segment this build can use: foreign, newer, truncated or damaged.
class SegmentError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct SegmentCounts {
  std::uint64_t num_positions = 0;  // tokens and borders
  std::uint64_t num_places = 0;     // positions at which a token follows a token
  std::uint64_t num_tokens = 0;
  std::uint64_t vocabulary = 0;     // largest token id + 1
};

// The arrays of a segment, wherever they lie. A *place* is a position whose token and whose predecessor are both real.
//
//   tokens  the text; a border before, between and after its sequences
//   places  all places, sorted by the tokens before them read backwards (a suffix array of the reversed text)
//   next    next[i] is the token at places[i]: what came next, in an order in which equal contexts lie together
//   shared  shared[i]: tokens before places[i - 1] and places[i] that agree, counted back to the first that differs or
//           to a border, at most kMaxSegmentMatch; 0 at both ends (num_places + 1 entries)
//   first   places with token t before them are first[t] to first[t + 1] (vocabulary + 1 entries)
struct SegmentArrays {
  std::span<const Token> tokens;
  std::span<const Position> places;
  std::span<const Token> next;
  std::span<const std::uint8_t> shared;
  std::span<const Position> first;
};

// Writes the segment of a text, all or nothing: to a file beside `path` that is then renamed. O(n) apart from comparing
// neighbours. Throws std::invalid_argument unless `text` starts and ends with a border and `places` are all its places
// in order, std::system_error if it cannot be written.
void write_segment(const std::string& path, std::span<const Token> text, std::span<const Position> places);

// Gives the bytes of a segment's file, changed by hand, checksums that fit: for tests of what opening checks besides.
void reseal_segment(std::span<char> file);

// A segment's file, mapped read-only. Opening reads it once and checks it: after that every entry is a valid index, so
// that no look-up needs a bound of its own. The file must not be written to while it is mapped; it may be unlinked.
class SegmentFile {
 public:
  // Throws SegmentError, or std::system_error if the file cannot be read.
  explicit SegmentFile(const std::string& path);
  ~SegmentFile();
  SegmentFile(const SegmentFile&) = delete;
  SegmentFile& operator=(const SegmentFile&) = delete;

  const SegmentCounts& counts() const { return counts_; }
  const SegmentArrays& arrays() const { return arrays_; }
  std::size_t num_bytes() const { return num_bytes_; }

 private:
  void check_header(const std::string& path);
  void check_entries(const std::string& path) const;

  const std::byte* data_ = nullptr;
  std::size_t num_bytes_ = 0;
  SegmentCounts counts_;
  SegmentArrays arrays_;
};

// Tokens, at most `limit`, by which the text before `a` and before `b` agrees; a border agrees with nothing. The text
// must start with a border.
inline unsigned shared_length(std::span<const Token> tokens, Position a, Position b, unsigned limit) {
  unsigned length = 0;
  while (length < limit) {
    const Token token = tokens[a - 1 - length];
    if (token == kBorder || token != tokens[b - 1 - length]) break;
    ++length;
  }
  return length;
}

}  // namespace paceline
