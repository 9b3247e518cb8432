#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include "token_log.hpp"

namespace paceline {

using SequenceKey = std::uint64_t;  // 0: none

// A ring of token sequences that can be forgotten one by one: a token log beside a table of what lies where in it.
//
// A forgotten sequence becomes borders in place: nothing is found, matched or followed there from then on, while the
// chains keep its positions as stepping stones until the ring overwrites them. The log may be read while one thread
// appends; erase() and evict_before() need it alone, and so does check() need every writer away.
class SharedLog {
 public:
  explicit SharedLog(std::size_t capacity) : log_(capacity) {}

  // Largest capacity of a log that never uses more bytes, but for 24 for each of its sequences; 0 if there is none.
  static std::size_t capacity_for(std::size_t num_bytes);

  const TokenLog& log() const { return log_; }
  std::size_t num_sequences() const { return peek(num_sequences_); }

  // Appends one sequence (its end, if it is longer than the capacity), of which the model read the first `num_read`
  // tokens and said the others. Several may share a key. O(tokens) amortised.
  void append(std::span<const Token> tokens, std::size_t num_read, SequenceKey key, double time,
              const Alone& alone = run_alone);
  // Forgets every sequence of `key`; returns how many tokens that were. O(sequences + tokens forgotten).
  std::size_t erase(SequenceKey key);
  // Forgets every sequence appended under an earlier time; returns how many tokens that were. The ring gets their
  // room back as far as they are its oldest. O(sequences + tokens forgotten).
  std::size_t evict_before(double time);

  // Calls visit(key, time, num_read, tokens) for every sequence, oldest first; the tokens live for the call. O(tokens).
  template <typename Visit>
  void for_each(Visit visit) const {
    std::vector<Token> tokens;
    for (const Sequence& sequence : sequences_) {
      tokens.clear();
      std::size_t num_read = 0;
      for (Position at = sequence.begin; at + 1 < sequence.end; ++at) {
        tokens.push_back(log_.at(at));
        num_read += log_.was_said(at) ? 0 : 1;
      }
      visit(sequence.key, sequence.time, num_read, std::span<const Token>(tokens));
    }
  }

  std::size_t num_bytes() const { return log_.num_bytes() + num_sequences() * sizeof(Sequence); }
  // Empty if every invariant holds, else the first that does not. O(size).
  std::string check() const;

 private:
  struct Sequence {
    SequenceKey key;
    double time;
    Position begin;
    Position end;  // after its border

    std::size_t num_tokens() const { return end - begin - 1; }
  };
  void drop_overwritten();
  void count_sequences() { poke(num_sequences_, sequences_.size()); }
  template <typename Predicate>
  std::size_t blank_if(Predicate is_forgotten);

  TokenLog log_;
  std::size_t num_sequences_ = 0;   // of the table, for whoever asks beside the writer
  std::deque<Sequence> sequences_;  // those not forgotten, in the order of their positions
};

}  // namespace paceline
