#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "calibration.hpp"
#include "shared_log.hpp"
#include "token_log.hpp"

namespace paceline {

using SessionKey = std::uint64_t;  // 0: no session
using ScopeId = std::int32_t;      // -1: no scope

// A scope that a request reads, and what it is to the request.
struct ReadScope {
  ScopeId id = -1;
  Source source = Source::kWorkload;

  auto operator<=>(const ReadScope&) const = default;
};

// The scope that a request reads first and the one where its tokens go. Contexts, and what drafts have learned, pass only
// between equal ones.
struct Reach {
  ReadScope first;
  ScopeId write_scope = -1;

  bool touches(ScopeId scope) const { return first.id == scope || write_scope == scope; }
  auto operator<=>(const Reach&) const = default;
};

// How a prompt lies on a kept context: its first `num_prefix` tokens are the context's first ones, and the
// `num_slid` after those are the context's last ones. num_slid > 0 where the engine's side of the conversation
// dropped its middle (a sliding window of messages); the context keeps that middle.
struct Overlap {
  std::size_t num_prefix = 0;
  std::size_t num_slid = 0;

  std::size_t num_reused() const { return num_prefix + num_slid; }
};

// O(prompt + context).
Overlap overlap_of(std::span<const Token> context, std::span<const Token> prompt);

// Contexts of finished requests, kept for the next turn of their session; least recently finished out first.
// Several of one session are kept apart: agents run side conversations under one session id. Not thread-safe.
class SessionStore {
 public:
  struct Kept {
    SessionKey session;
    Reach reach;
    TokenLog context;
    std::vector<SequenceKey> keys;  // of the requests whose tokens it may hold
    double finished_at = 0;         // the last of them, in seconds
  };
  struct Match {
    TokenLog context;
    Overlap overlap;
    std::vector<SequenceKey> keys;
  };

  SessionStore(std::size_t max_contexts, std::size_t max_tokens)
      : max_contexts_(max_contexts), max_tokens_(max_tokens) {}

  // Takes the kept context of `session` that `prompt` continues best into `match`; false if none is worth it.
  bool take(SessionKey session, const Reach& reach, std::span<const Token> prompt, Match& match);
  // Keeps a context; what falls out to make room is moved to `dropped`, to be freed without the lock.
  void keep(Kept finished, std::list<Kept>& dropped);
  // Moves every context that may read or write `scope` to `dropped`; returns how many tokens they held.
  std::size_t drop_scope(ScopeId scope, std::list<Kept>& dropped);
  // Moves the contexts that touch `scope` and may hold tokens of the sequence `key` to `dropped`; returns how many
  // tokens they held.
  std::size_t drop_sequence(ScopeId scope, SequenceKey key, std::list<Kept>& dropped);

  // Moves the contexts that were finished before `time`, and touch `scope` if one is given, to `dropped`; returns how
  // many tokens they held.
  std::size_t drop_before(double time, std::optional<ScopeId> scope, std::list<Kept>& dropped);

  // Least recently finished first.
  const std::list<Kept>& kept() const { return kept_; }
  std::size_t max_contexts() const { return max_contexts_; }
  std::size_t max_tokens() const { return max_tokens_; }
  std::size_t size() const { return kept_.size(); }
  std::size_t num_tokens() const { return num_tokens_; }
  std::size_t num_bytes() const;
  std::string check() const;

 private:
  using Place = std::list<Kept>::iterator;
  void remove(Place place, std::list<Kept>& dropped);
  template <typename Predicate>
  std::size_t drop_if(Predicate is_dropped, std::list<Kept>& dropped);

  std::size_t max_contexts_;
  std::size_t max_tokens_;
  std::size_t num_tokens_ = 0;
  std::list<Kept> kept_;  // least recently finished first
  std::unordered_map<SessionKey, std::vector<Place>> by_session_;  // each oldest first
};

}  // namespace paceline
