#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <span>
#include <string>
#include <vector>

#include "calibration.hpp"
#include "draft_index.hpp"
#include "drafter.hpp"
#include "segment.hpp"
#include "sessions.hpp"
#include "shared_log.hpp"
#include "token_log.hpp"

namespace paceline {

// What drafting has learned within a reach. Drafts read it, whatever scores them writes it.
struct DraftIndex::Learned {
  std::shared_mutex mutex;
  Calibration calibration;
};

struct DraftIndex::Scope {
  Scope(std::string scope_name, std::int64_t own, std::size_t capacity)
      : name(std::move(scope_name)), own_capacity(own), shared(capacity) {}

  std::string name;
  std::int64_t own_capacity;  // 0: the index's
  std::mutex writing;         // held by whoever changes `shared`
  SharedLog shared;
  CorpusSegments segments;    // changes under the index's lock alone
  DraftCounters counters;     // of requests that read this scope first
};

// An open request. Where the prompt slid over the kept context, the engine's token i >= seam is the log's token
// i + shift; before the seam, and where nothing slid, the two count alike.
struct DraftIndex::Request {
  std::mutex in_use;  // held by whoever reads or changes what follows
  SessionKey session = 0;
  Reach reach;
  std::vector<ReadScope> reads;  // the first is that of the reach
  std::shared_ptr<Learned> learned;
  std::vector<SequenceKey> keys;  // of the requests whose tokens the context may hold, its own last
  bool is_erased = false;         // its own sequence was deleted: nobody else gets its tokens
  bool is_tainted = false;        // a sequence that its context may hold was deleted: the context is not kept
  bool has_shared_prompt = false;
  TokenLog context{0};
  Position seam = 0;
  Position shift = 0;
  Position new_begin = 0;   // of the log: tokens from here on are this request's own
  Position prompt_end = 0;  // of the log
  Trail trail;
  Draft draft;

  std::size_t num_tokens() const { return context.end() - shift; }
  void truncate(std::size_t num_tokens) {
    const auto wanted = static_cast<Position>(num_tokens);
    if (wanted < seam) shift = 0;
    context.truncate(wanted + shift);
    new_begin = std::min(new_begin, context.end());
    prompt_end = std::min(prompt_end, context.end());
    trail.clear();
    draft.clear();
  }
  // What the request adds to its write scope when it finishes: all that is its own, or, where the prompt is there
  // already, the reply and enough of the prompt to find the place where the one turns into the other.
  std::span<const Token> unshared() const {
    Position first = new_begin;
    if (has_shared_prompt && prompt_end > new_begin + kMaxMatch) first = prompt_end - kMaxMatch;
    if (has_shared_prompt && prompt_end == context.end()) first = prompt_end;
    return context.tokens().subspan(first);
  }
  // Empty if every invariant holds, else the first that does not.
  std::string check() const;
};

}  // namespace paceline
