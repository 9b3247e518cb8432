#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "buffer.hpp"

namespace paceline {

using Token = std::int32_t;
using Position = std::uint32_t;

inline constexpr Token kBorder = -1;                // stands between two sequences of a log
inline constexpr Position kNone = 0xFFFFFFFFu;      // no position
inline constexpr Position kMaxEnd = 0xF0000000u;    // positions are renumbered before they pass this
inline constexpr unsigned kLongGram = 4;               // chosen by replaying agent traces
inline constexpr unsigned kShortGram = 1;             // matches of a single token still pay
inline constexpr unsigned kMaxGram = kLongGram;

// One family of hashed k-gram chains over the positions of a log, as in LZ77 match finders (zlib's hash chains).
// heads[h] is the newest position whose k-gram hashes to h; previous[slot] the next older one of the same bucket.
class GramChain {
 public:
  explicit GramChain(unsigned gram) : gram_(gram) {}

  unsigned gram() const { return gram_; }
  // Bucket of the k-gram that ends at *last (the k - 1 tokens before it must be readable). Needs grow() first.
  std::uint32_t bucket(const Token* last) const;
  Position newest(std::uint32_t bucket) const { return heads_[bucket]; }
  Position previous(std::size_t slot) const { return previous_[slot]; }

 private:
  friend class TokenLog;
  unsigned gram_;
  unsigned bits_ = 0;  // log2 of the number of heads
  Buffer<Position> heads_;
  Buffer<Position> previous_;
};

// Tokens in the order of their arrival with two chains of k-grams over them.
//
// With a capacity it is a ring: the oldest tokens are overwritten. Without one (capacity 0) it keeps everything and
// can take tokens back at its end. Positions are absolute and never reused until renumber(), so that a position
// below begin() is known to be dead. Not thread-safe; DraftIndex locks.
class TokenLog {
 public:
  explicit TokenLog(std::size_t capacity, Position max_end = kMaxEnd);

  std::size_t capacity() const { return capacity_; }
  Position begin() const { return begin_; }
  Position end() const { return end_; }
  std::size_t size() const { return end_ - begin_; }
  // How often positions were renumbered: a position remembered under another epoch is void.
  std::uint32_t epoch() const { return epoch_; }
  bool empty() const { return begin_ == end_; }

  // Token at a live position.
  Token at(Position position) const { return tokens_[slot(position)]; }
  // All tokens; only without a capacity, where slots are positions.
  std::span<const Token> tokens() const { return {tokens_.data(), end_}; }

  // Appends tokens to the sequence at the end. O(n) amortised. Throws std::bad_alloc and changes nothing.
  void append(std::span<const Token> tokens);
  // Appends a sequence of its own (of one longer than the capacity, its end), then a border.
  void append_sequence(std::span<const Token> tokens);
  // Drops the tokens from `size` on; only without a capacity. O(dropped).
  void truncate(Position size);
  // Makes the whole sequences in [begin, end) borders. Chains still pass through their positions. O(end - begin).
  void blank(Position begin, Position end);
  // Forgets everything before `begin`; only with a capacity. O(1).
  void forget_before(Position begin);

  const GramChain& long_chain() const { return long_; }
  const GramChain& short_chain() const { return short_; }
  // Newest position at which a gram of the chain's bucket `of` the tokens before `last + 1` ends; kNone if none does.
  Position newest(const GramChain& chain, const Token* last) const;
  // Next older position of the same bucket; kNone at the end of the chain.
  Position older(const GramChain& chain, Position position) const {
    const Position found = chain.previous(slot(position));
    return found != kNone && found >= begin_ ? found : kNone;
  }

  std::size_t num_bytes() const;
  // Empty if every invariant holds, else the first that does not. O(size).
  std::string check() const;

 private:
  std::size_t slot(Position position) const {
    // The capacity is added first: in 32 bits `position - lap_` would wrap round below 0.
    return position >= lap_ ? position - lap_ : position + capacity_ - lap_;
  }
  void reserve(std::size_t extra);
  void push(Token token);
  void index(GramChain& chain, Position position);
  void unindex(GramChain& chain, Position position);
  void resize_heads(GramChain& chain, unsigned bits);
  bool has_gram(unsigned gram) const { return run_ >= gram; }
  void renumber();
  std::string check_chain(const GramChain& chain) const;
  std::uint32_t bucket_at(const GramChain& chain, Position position) const;
  unsigned run_at(Position position) const;

  std::size_t capacity_;  // 0: unbounded
  Position max_end_;
  Position begin_ = 0;
  Position end_ = 0;
  Position lap_ = 0;           // position of slot 0 in the lap being written
  std::uint32_t epoch_ = 0;
  unsigned run_ = 0;           // tokens since the last border, counted up to kMaxGram
  Buffer<Token> tokens_;
  GramChain long_{kLongGram};
  GramChain short_{kShortGram};
};

}  // namespace paceline
