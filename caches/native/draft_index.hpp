#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "calibration.hpp"
#include "drafter.hpp"
#include "segment.hpp"
#include "sessions.hpp"
#include "token_log.hpp"

namespace paceline {

using Handle = std::int64_t;

// A handle that is not open.
class UnknownHandle : public std::out_of_range {
 public:
  using std::out_of_range::out_of_range;
};

struct IndexSettings {
  std::int64_t shared_capacity = 4'194'304;
  std::int64_t max_sessions = 1024;
  std::int64_t max_session_tokens = 33'554'432;
  std::int64_t max_candidates = 16;
  double min_probability = 0.1;
};

struct IndexStats {
  std::size_t requests, sessions, scopes, shared_tokens, context_tokens, bytes, drafted, accepted;
};

// Drafts for a batch: the tree of request i is the slice offsets[i]:offsets[i + 1] of the flat arrays.
struct DraftBatch {
  std::vector<std::int64_t> offsets;
  std::vector<Token> token_ids;
  std::vector<std::int32_t> parent;
  std::vector<float> prob;
  std::vector<std::uint8_t> source;
};

// The draft memory of one engine worker. Every method may be called from any thread: proposals share the lock,
// whatever writes holds it alone. Wrong input throws std::invalid_argument or UnknownHandle and changes nothing.
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

  ScopeId scope(std::string_view name);
  std::size_t drop_scope(ScopeId scope_id);
  void append_shared(ScopeId scope_id, std::span<const Token> token_ids);
  void attach_segment(ScopeId scope_id, std::shared_ptr<const CorpusSegment> segment);
  std::size_t detach_segments(ScopeId scope_id);

  Opened begin(std::span<const Token> prompt_ids, std::span<const ScopeId> read_scopes, ScopeId write_scope,
               SessionKey session);
  void commit(std::span<const Handle> handles, std::span<const Token> token_ids,
              std::span<const std::int64_t> offsets);
  void truncate(Handle handle, std::int64_t num_tokens);
  std::int64_t num_tokens(Handle handle) const;
  DraftBatch propose(std::span<const Handle> handles, std::span<const std::int32_t> max_tokens);
  Finished finish(Handle handle);

  IndexStats stats() const;
  // Empty if every invariant holds, else the first that does not. O(everything held).
  std::string check() const;

 private:
  struct Request;
  struct Scope;

  Request& request(Handle handle) const;
  Scope& open_scope(ScopeId scope_id) const;
  void check_scopes(const Reach& reach) const;
  bool reaches_dropped_scope(const Reach& reach) const;
  std::shared_ptr<Calibration> calibration_of(const Reach& reach);
  void logs_of(const Request& request, std::vector<const TokenLog*>& logs) const;

  IndexSettings settings_;
  Drafter drafter_;
  mutable std::shared_mutex mutex_;
  std::unordered_map<std::string, ScopeId> scope_ids_;
  std::unordered_map<ScopeId, std::unique_ptr<Scope>> scopes_;
  ScopeId next_scope_id_ = 0;
  std::unordered_map<Handle, std::unique_ptr<Request>> requests_;
  Handle next_handle_ = 1;
  SessionStore sessions_;
  std::map<Reach, std::shared_ptr<Calibration>> calibrations_;
  std::atomic<std::size_t> num_drafted_{0};
  std::size_t num_accepted_ = 0;
};

}  // namespace paceline
