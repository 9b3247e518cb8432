#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "buffer.hpp"
#include "gram_chain.hpp"

namespace paceline {

inline constexpr Token kBorder = -1;                // stands between two sequences of a log
inline constexpr Position kMaxEnd = 0xF0000000u;    // positions are renumbered before they pass this
inline constexpr unsigned kLongGram = 3;               // chosen by replaying agent traces
inline constexpr unsigned kShortGram = 1;             // matches of a single token still pay
inline constexpr unsigned kMaxGram = kLongGram;

// Runs a change while nobody reads the log.
using Alone = std::function<void(const std::function<void()>&)>;
void run_alone(const std::function<void()>& change);  // where there is no reader to keep out

// Tokens in the order of their arrival with two chains of k-grams over them.
//
// With a capacity it is a ring of sequences: the oldest tokens are overwritten. Without one (capacity 0) it is one
// sequence that keeps everything and can take tokens back at its end. Positions are absolute and never reused until a
// renumbering, so that a position below begin() is known to be dead.
//
// A ring may be read while one thread appends to it: its slots never move, tokens are written before they are linked,
// and what has to move goes through Alone. What such a reader finds was in the ring when it began; if the ring wraps
// meanwhile, places that are overwritten may read as other tokens of the ring, and differently each time. blank(),
// forget_before() and everything on a log without a capacity need the log alone.
class TokenLog {
 public:
  explicit TokenLog(std::size_t capacity, Position max_end = kMaxEnd);

  std::size_t capacity() const { return capacity_; }
  Position begin() const { return peek(begin_); }
  Position end() const { return peek(end_, std::memory_order_acquire); }
  // Slots that there is memory for.
  std::size_t num_slots() const { return num_slots_; }
  std::size_t size() const { return end() - begin(); }
  // How often positions were renumbered: a position remembered under another epoch is void.
  std::uint32_t epoch() const { return epoch_; }
  bool empty() const { return size() == 0; }

  // Token at a live position.
  Token at(Position position) const { return peek(tokens_[slot(position)]); }
  // Cell of a live position, and how many cells up to it lie side by side with it.
  struct Run {
    const Token* last;
    std::size_t num_cells;
  };
  Run run_to(Position position) const {
    const std::size_t into = slot(position);
    return {&tokens_[into], into + 1};
  }
  // All tokens; only without a capacity, where slots are positions.
  std::span<const Token> tokens() const { return {tokens_.data(), end_}; }

  // Whether the model said the token at a live position, rather than read it.
  bool was_said(Position position) const {
    const std::size_t at = slot(position);
    return (peek(said_[at / kSaidBits]) >> (at % kSaidBits) & 1) != 0;
  }

  // Appends tokens, which the model said or read, to the sequence; only without a capacity. O(n) amortised. Throws
  // std::bad_alloc or std::length_error and changes nothing.
  void append(std::span<const Token> tokens, bool said = false);
  // Drops all tokens and keeps the memory; only without a capacity. O(heads).
  void clear();
  // Drops the tokens from `size` on; only without a capacity. O(dropped).
  void truncate(Position size);

  // Appends a sequence of its own (of one longer than the capacity, its end), then a border; only with a capacity. The
  // model read its first `num_read` tokens and said the others.
  // O(n): the chains are rebuilt with more heads a few positions for each token appended. Returns by how much the
  // positions of what the log held have sunk, 0 unless they were renumbered.
  Position append_sequence(std::span<const Token> tokens, std::size_t num_read = 0, const Alone& alone = run_alone);
  // Makes the whole sequences in [begin, end) borders. Chains still pass through their positions. O(end - begin).
  void blank(Position begin, Position end);
  // Forgets everything before `begin`; only with a capacity. O(1).
  void forget_before(Position begin);

  const GramChain& long_chain() const { return long_.chain; }
  const GramChain& short_chain() const { return short_.chain; }
  // Newest position at which a gram of the chain's bucket `of` the tokens before `last + 1` ends; kNone if none does.
  Position newest(const GramChain& chain, const Token* last) const {
    if (chain.num_heads() == 0) return kNone;
    const Position found = chain.newest(chain.bucket(last));
    return found != kNone && found >= begin() ? found : kNone;
  }
  // Next older position of the same bucket; kNone at the end of the chain.
  Position older(const GramChain& chain, Position position) const {
    const Position found = chain.previous(slot(position));
    return found < position && found >= begin() ? found : kNone;
  }

  // Asks for the newest positions of the grams that end at *last, of which `num_tokens` may be read.
  void prefetch_newest(const Token* last, std::size_t num_tokens) const {
    for (const Indexed* indexed : {&long_, &short_}) {
      const GramChain& chain = indexed->chain;
      if (chain.num_heads() != 0 && num_tokens >= chain.gram()) chain.prefetch(chain.bucket(last));
    }
  }
  // Asks for what looking at a live position reads.
  void prefetch(Position position) const {
    const std::size_t at = slot(position);
    __builtin_prefetch(&tokens_[at]);
    __builtin_prefetch(&said_[at / kSaidBits]);
  }

  // Most bytes that a log of that capacity ever uses, a chain being widened included. Grows with the capacity.
  static std::size_t most_bytes(std::size_t capacity);
  // Bytes of the slots written so far and of the heads.
  std::size_t num_bytes() const;
  // Empty if every invariant holds, else the first that does not. O(size).
  std::string check() const;

 private:
  static constexpr std::size_t kSaidBits = 64;
  static constexpr std::size_t num_said_words(std::size_t num_slots) { return (num_slots + kSaidBits - 1) / kSaidBits; }

  // A chain and, while it gets more heads, the wider chain that is being built from it.
  struct Indexed {
    explicit Indexed(unsigned gram) : chain(gram) {}

    GramChain chain;
    std::unique_ptr<GramChain> wider;
    Position num_rebuilt = 0;  // positions from 0 to here are in `wider`
    std::size_t run = 0;       // tokens since the last border before there
  };

  std::size_t slot(Position position) const {
    const std::size_t lap = peek(lap_);
    const std::size_t found = position >= lap ? position - lap : position + capacity_ - lap;
    return found < num_slots_ ? found : 0;  // only where the ring wrapped while it was read
  }
  void reserve(std::size_t extra);
  Position make_room(std::size_t extra, const Alone& alone);
  void write(Token token, bool said);
  void prefer_huge_pages();
  void index_run(GramChain& chain, Position first, std::size_t count, std::size_t run);
  void widen(Indexed& indexed, std::size_t extra, const Alone& alone);
  void rebuild(Indexed& indexed, std::size_t num_positions);
  void adopt(Indexed& indexed, const Alone& alone);
  void refill(GramChain& chain, unsigned bits);
  Position renumber();
  std::string check_chain(const GramChain& chain) const;
  std::uint32_t bucket_at(const GramChain& chain, Position position) const;
  unsigned run_at(Position position) const;

  std::size_t capacity_;  // 0: unbounded
  std::size_t num_slots_ = 0;
  Position max_end_;
  Position begin_ = 0;
  Position end_ = 0;
  Position lap_ = 0;           // position of slot 0 in the lap being written
  Position num_written_ = 0;   // slots ever written
  std::uint32_t epoch_ = 0;
  std::size_t wider_bytes_ = 0;  // of chains being built
  Buffer<Token> tokens_;
  Buffer<std::uint64_t> said_;  // a bit a slot
  Indexed long_{kLongGram};
  Indexed short_{kShortGram};
};

}  // namespace paceline
