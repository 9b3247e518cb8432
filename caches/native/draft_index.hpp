#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "calibration.hpp"
#include "drafter.hpp"
#include "sessions.hpp"
#include "spare_contexts.hpp"
#include "token_log.hpp"

namespace paceline {

class CorpusSegment;
class ScopeNumbers;
class SectionReader;
class SectionWriter;

using Handle = std::int64_t;
using CorpusSegments = std::vector<std::shared_ptr<const CorpusSegment>>;

// A handle that is not open.
class UnknownHandle : public std::out_of_range {
 public:
  using std::out_of_range::out_of_range;
};

struct IndexSettings {
  std::int64_t shared_capacity = 4'194'304;
  std::int64_t max_sessions = 1024;
  std::int64_t max_session_tokens = 33'554'432;
  std::int64_t max_candidates = 12;
  double min_probability = 0.1;
};

// Whether others may draft from a request's prompt as soon as it has begun, and when that is.
struct PromptSharing {
  bool is_early = false;
  double time = 0;
};

// Tokens handed out and tokens accepted, by source.
struct DraftStats {
  SourceCounts drafted{}, accepted{};
};

struct IndexStats {
  std::size_t requests = 0, sessions = 0, scopes = 0, sequences = 0, shared_tokens = 0, context_tokens = 0;
  std::size_t segments = 0, corpus_tokens = 0, bytes = 0;
  DraftStats drafts;
};

struct ScopeStats {
  std::size_t sequences = 0, shared_tokens = 0, segments = 0, corpus_tokens = 0, bytes = 0;
  DraftStats drafts;  // of requests that read the scope first
};

// Counts drafts from any thread.
class DraftCounters {
 public:
  void add_drafted(const SourceCounts& more) { add(drafted_, more); }
  void add_accepted(const SourceCounts& more) { add(accepted_, more); }
  DraftStats read() const {
    DraftStats stats;  // what was accepted first: it never passes what was drafted
    for (std::size_t i = 0; i < kNumSources; ++i) stats.accepted[i] = accepted_[i];
    for (std::size_t i = 0; i < kNumSources; ++i) stats.drafted[i] = drafted_[i];
    return stats;
  }
  // False if more was accepted than drafted.
  bool check() const {
    const DraftStats stats = read();
    for (std::size_t i = 0; i < kNumSources; ++i) {
      if (stats.accepted[i] > stats.drafted[i]) return false;
    }
    return true;
  }

 private:
  using Counters = std::array<std::atomic<std::uint64_t>, kNumSources>;
  static void add(Counters& counters, const SourceCounts& more) {
    for (std::size_t i = 0; i < kNumSources; ++i) {
      if (more[i] > 0) counters[i] += more[i];
    }
  }

  Counters drafted_{};
  Counters accepted_{};
};

// Drafts for a batch: the tree of request i is the slice offsets[i]:offsets[i + 1] of the flat arrays.
struct DraftBatch {
  std::vector<std::int64_t> offsets;
  std::vector<Token> token_ids;
  std::vector<std::int32_t> parent;
  std::vector<float> prob;
  std::vector<std::uint8_t> source;

  void reserve(std::size_t num_requests, std::span<const std::int32_t> max_tokens);
  void add(const Draft& draft);
};

// The draft memory of one engine worker. Every method may be called from any thread. Wrong input throws
// std::invalid_argument or UnknownHandle and changes nothing.
//
// Locks, in the order in which a thread may take them: a scope's `writing`, `mutex_`, a request's `in_use`,
// `sessions_mutex_` or what was learned. Drafting holds `mutex_` shared and its request. What adds tokens to a scope
// holds that scope's `writing` and keeps nobody from drafting: a shared log may be read while it grows. `mutex_` alone
// is for the few instructions in which tables of scopes and requests change, and for deleting and evicting.
class DraftIndex {
 public:
  struct Opened {
    Handle handle;
    std::int64_t num_reused;
  };
  struct Finished {
    std::vector<Token> new_tokens;
    std::int64_t num_prompt;
  };

  explicit DraftIndex(const IndexSettings& settings);
  ~DraftIndex();

  ScopeId scope(std::string_view name, std::int64_t capacity = 0);
  std::size_t drop_scope(ScopeId scope_id);
  void append_shared(ScopeId scope_id, std::span<const Token> token_ids, SequenceKey key = 0, double time = 0,
                     std::int64_t num_prompt = 0);
  std::size_t delete_sequence(ScopeId scope_id, SequenceKey key);
  std::size_t evict_before(ScopeId scope_id, double time);
  std::size_t evict_contexts_before(double time);
  // Requests that read the scope, open ones too, draft from these segments and no longer from those that were attached
  // to it before. Segments are shared with whoever else holds them.
  void attach_corpora(ScopeId scope_id, CorpusSegments segments);

  // read_sources: of each read scope, Source::kWorkload or kTenant; kWorkload for all if there are none.
  Opened begin(std::span<const Token> prompt_ids, std::span<const ScopeId> read_scopes, ScopeId write_scope,
               SessionKey session, SequenceKey key = 0, PromptSharing sharing = {},
               std::span<const std::uint8_t> read_sources = {});
  void commit(std::span<const Handle> handles, std::span<const Token> token_ids,
              std::span<const std::int64_t> offsets);
  // The same without waiting for who changes the tables: false or nothing if they would have to.
  bool try_commit(std::span<const Handle> handles, std::span<const Token> token_ids,
                  std::span<const std::int64_t> offsets);
  std::optional<DraftBatch> try_propose(std::span<const Handle> handles, std::span<const std::int32_t> max_tokens,
                                        std::int64_t max_branches = 1);
  void truncate(Handle handle, std::int64_t num_tokens);
  std::int64_t num_tokens(Handle handle) const;
  DraftBatch propose(std::span<const Handle> handles, std::span<const std::int32_t> max_tokens,
                     std::int64_t max_branches = 1);
  // What `propose` would draft for handles[i] if token_ids[offsets[i]:offsets[i + 1]] were committed first. Nothing is
  // learned or counted, and what `propose` has drafted stays what the next commit is scored against. A handle may be
  // given several times.
  DraftBatch propose_behind(std::span<const Handle> handles, std::span<const std::int32_t> max_tokens,
                            std::span<const Token> token_ids, std::span<const std::int64_t> offsets,
                            std::int64_t max_branches = 1);
  Finished finish(Handle handle, double time = 0);

  // What requests of that reach have learned, and what they go on from. Throws std::invalid_argument if `state` is none.
  std::vector<float> calibration(std::span<const ScopeId> read_scopes, ScopeId write_scope);
  void set_calibration(std::span<const ScopeId> read_scopes, ScopeId write_scope, std::span<const float> state);

  // Everything remembered and learned, not what is open. O(size). Sequences that are added meanwhile may be missing.
  std::vector<std::byte> snapshot() const;
  // Replaces everything by what a snapshot holds; scopes get new ids. Throws BrokenSnapshot, or std::invalid_argument
  // while requests are open, and changes nothing. O(size).
  void restore(std::span<const std::byte> file);

  const IndexSettings& settings() const { return settings_; }
  IndexStats stats() const;
  ScopeStats scope_stats(ScopeId scope_id) const;
  // Empty if every invariant holds, else the first that does not. O(everything held).
  std::string check() const;

 private:
  struct Learned;
  struct Request;
  struct Restored;
  struct Scope;

  void commit_locked(std::span<const Handle> handles, std::span<const Token> token_ids,
                     std::span<const std::int64_t> offsets);
  DraftBatch propose_locked(std::span<const Handle> handles, std::span<const std::int32_t> max_tokens,
                            std::int64_t max_branches);
  Request& request(Handle handle) const;
  Scope& open_scope(ScopeId scope_id) const;
  std::shared_ptr<Scope> held_scope(ScopeId scope_id) const;
  std::vector<std::shared_ptr<Scope>> held_scopes() const;
  void check_scopes(const Reach& reach) const;
  bool reaches_dropped_scope(const Reach& reach) const;
  std::shared_ptr<Learned> learned_of(const Reach& reach);
  Scope* read_by(const Request& request, Reading& reading) const;
  Handle open(std::unique_ptr<Request> opened, std::size_t num_deletions);
  void append_to(Scope& scope, std::span<const Token> tokens, std::size_t num_read, SequenceKey key, double time);
  void keep(Request& closed, double time, std::size_t num_deletions);
  void put_scopes(SectionWriter& section, ScopeNumbers& numbers) const;
  void put_contexts(SectionWriter& section, const ScopeNumbers& numbers) const;
  void put_learned(SectionWriter& section, const ScopeNumbers& numbers) const;
  void get_scopes(SectionReader section, Restored& restored) const;
  static void get_contexts(SectionReader section, Restored& restored);
  static void get_learned(SectionReader section, Restored& restored);

  IndexSettings settings_;
  Drafter drafter_;
  mutable std::shared_mutex mutex_;
  std::unordered_map<std::string, ScopeId> scope_ids_;
  std::unordered_map<ScopeId, std::shared_ptr<Scope>> scopes_;
  ScopeId next_scope_id_ = 0;
  std::unordered_map<Handle, std::unique_ptr<Request>> requests_;
  Handle next_handle_ = 1;
  std::size_t num_deletions_ = 0;
  mutable std::mutex sessions_mutex_;
  SessionStore sessions_;
  SpareContexts spares_;
  std::map<Reach, std::shared_ptr<Learned>> learned_;
  DraftCounters counters_;
};

}  // namespace paceline
