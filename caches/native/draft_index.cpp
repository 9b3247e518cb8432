#include "draft_index.hpp"

#include <algorithm>
#include <utility>

#include "request.hpp"
#include "validation.hpp"

namespace paceline {
namespace {

constexpr std::int64_t kMaxBranches = 16;
constexpr std::int32_t kMaxReserved = 256;  // nodes of a tree; larger ones grow
constexpr std::size_t kPlacesReserved = 64;

const IndexSettings& checked(const IndexSettings& settings) {
  check_range("shared_capacity", settings.shared_capacity, kMinCapacity, "give 2 to 2147483648 tokens", kMaxCapacity);
  check_range("max_sessions", settings.max_sessions, 0, "give 0 (keep none) or more");
  check_range("max_session_tokens", settings.max_session_tokens, 0, "give 0 (keep none) or more");
  check_range("max_candidates", settings.max_candidates, 1, "give 1 to 256 places", 256);
  check_probability("min_probability", settings.min_probability);
  return settings;
}

void check_key(SequenceKey key) {
  if (key == 0) refuse("key", "0", "give the positive key that the sequence was added under");
}

void check_sources(std::span<const std::uint8_t> read_sources, std::size_t num_scopes) {
  if (!read_sources.empty() && read_sources.size() != num_scopes) {
    refuse("the number of read_sources", std::to_string(read_sources.size()),
           "give one for each of the " + std::to_string(num_scopes) + " read scopes, or none");
  }
  for (std::size_t i = 0; i < read_sources.size(); ++i) {
    const auto source = static_cast<Source>(read_sources[i]);
    if (source != Source::kWorkload && source != Source::kTenant) {
      refuse("read_sources[" + std::to_string(i) + "]", std::to_string(read_sources[i]),
             "give 1 (WORKLOAD) or 3 (TENANT)");
    }
  }
}

// While it lives a context ends with tokens that nobody has committed.
class Supposition {
 public:
  Supposition(TokenLog& context, std::span<const Token> tokens) : context_(context), end_(context.end()) {
    context_.append(tokens, true);
  }
  ~Supposition() { context_.truncate(end_); }
  Supposition(const Supposition&) = delete;
  Supposition& operator=(const Supposition&) = delete;

 private:
  TokenLog& context_;
  Position end_;
};

// Repeated scopes are read once, as their first mention says: they would vote twice.
std::vector<ReadScope> distinct(std::span<const ScopeId> read_scopes, std::span<const std::uint8_t> read_sources) {
  check_sources(read_sources, read_scopes.size());
  std::vector<ReadScope> reads;
  for (std::size_t i = 0; i < read_scopes.size(); ++i) {
    const auto is_same = [&](const ReadScope& known) { return known.id == read_scopes[i]; };
    if (std::any_of(reads.begin(), reads.end(), is_same)) continue;
    reads.push_back({read_scopes[i], read_sources.empty() ? Source::kWorkload : static_cast<Source>(read_sources[i])});
  }
  return reads;
}

// Which of its scopes a request reads beside the first may change from turn to turn: neither its session's context nor
// what its drafts have learned shall be lost for that.
Reach reach_of(std::span<const ReadScope> reads, ScopeId write_scope) {
  return {.first = reads.empty() ? ReadScope{} : reads.front(), .write_scope = write_scope};
}

}  // namespace

void DraftBatch::reserve(std::size_t num_requests, std::span<const std::int32_t> max_tokens) {
  std::size_t most = 0;
  for (const std::int32_t limit : max_tokens) most += static_cast<std::size_t>(std::min(limit, kMaxReserved));
  offsets.reserve(num_requests + 1);
  token_ids.reserve(most);
  parent.reserve(most);
  prob.reserve(most);
  source.reserve(most);
}

void DraftBatch::add(const Draft& draft) {
  for (const std::uint32_t n : draft.issue_order) {
    const Draft::Node& node = draft.nodes[n];
    token_ids.push_back(node.token);
    parent.push_back(node.parent < 0 ? -1 : draft.nodes[static_cast<std::size_t>(node.parent)].issued);
    prob.push_back(node.probability);
    source.push_back(static_cast<std::uint8_t>(node.source));
  }
  offsets.push_back(static_cast<std::int64_t>(token_ids.size()));
}

DraftIndex::DraftIndex(const IndexSettings& settings)
    : settings_(checked(settings)),
      drafter_({static_cast<unsigned>(settings.max_candidates), settings.min_probability}),
      sessions_(static_cast<std::size_t>(settings.max_sessions),
                static_cast<std::size_t>(settings.max_session_tokens)) {}

DraftIndex::~DraftIndex() = default;

ScopeId DraftIndex::scope(std::string_view name, std::int64_t capacity) {
  if (capacity != 0) {
    check_range("capacity", capacity, kMinCapacity, "give 2 to 2147483648 tokens, or 0 for the default", kMaxCapacity);
  }
  const std::string key(name);
  const std::unique_lock lock(mutex_);
  if (const auto found = scope_ids_.find(key); found != scope_ids_.end()) {
    const std::size_t held = scopes_.at(found->second)->shared.log().capacity();
    if (capacity != 0 && held != static_cast<std::size_t>(capacity)) {
      refuse("capacity", std::to_string(capacity),
             "scope " + key + " is open with " + std::to_string(held) + "; drop it first");
    }
    return found->second;
  }
  const std::int64_t wanted = capacity != 0 ? capacity : settings_.shared_capacity;
  auto opened = std::make_shared<Scope>(key, capacity, static_cast<std::size_t>(wanted));
  const ScopeId id = next_scope_id_;
  scopes_.emplace(id, std::move(opened));
  scope_ids_.emplace(key, id);
  ++next_scope_id_;
  return id;
}

std::size_t DraftIndex::drop_scope(ScopeId scope_id) {
  std::shared_ptr<Scope> dropped;  // both are freed after the lock is gone
  std::list<SessionStore::Kept> contexts;
  const std::unique_lock lock(mutex_);
  const std::size_t num_shared = open_scope(scope_id).shared.log().size();
  const auto found = scopes_.find(scope_id);
  dropped = std::move(found->second);
  scopes_.erase(found);
  scope_ids_.erase(dropped->name);
  std::erase_if(learned_, [scope_id](const auto& entry) { return entry.first.touches(scope_id); });
  const std::scoped_lock keeping(sessions_mutex_);
  return num_shared + sessions_.drop_scope(scope_id, contexts);
}

void DraftIndex::append_shared(ScopeId scope_id, std::span<const Token> token_ids, SequenceKey key, double time,
                               std::int64_t num_prompt) {
  check_tokens("token_ids", token_ids);
  check_time(time);
  check_range("num_prompt", num_prompt, 0, "give 0 to the number of tokens",
              static_cast<std::int64_t>(token_ids.size()));
  const std::shared_ptr<Scope> scope = held_scope(scope_id);
  const std::scoped_lock writing(scope->writing);
  append_to(*scope, token_ids, static_cast<std::size_t>(num_prompt), key, time);
}

std::size_t DraftIndex::delete_sequence(ScopeId scope_id, SequenceKey key) {
  check_key(key);
  const std::shared_ptr<Scope> scope = held_scope(scope_id);
  const std::scoped_lock writing(scope->writing);
  std::list<SessionStore::Kept> contexts;  // freed after the lock is gone
  const std::unique_lock lock(mutex_);
  const std::size_t num_shared = scope->shared.erase(key);
  ++num_deletions_;
  for (const auto& [handle, open] : requests_) {
    if (!open->reach.touches(scope_id)) continue;
    open->is_tainted |= std::find(open->keys.begin(), open->keys.end(), key) != open->keys.end();
    open->is_erased |= open->keys.back() == key;
  }
  const std::scoped_lock keeping(sessions_mutex_);
  return num_shared + sessions_.drop_sequence(scope_id, key, contexts);
}

std::size_t DraftIndex::evict_before(ScopeId scope_id, double time) {
  check_time(time);
  const std::shared_ptr<Scope> scope = held_scope(scope_id);
  const std::scoped_lock writing(scope->writing);
  std::list<SessionStore::Kept> contexts;  // freed after the lock is gone
  const std::unique_lock lock(mutex_);
  const std::size_t num_shared = scope->shared.evict_before(time);
  const std::scoped_lock keeping(sessions_mutex_);
  return num_shared + sessions_.drop_before(time, scope_id, contexts);
}

std::size_t DraftIndex::evict_contexts_before(double time) {
  check_time(time);
  std::list<SessionStore::Kept> contexts;  // freed after the lock is gone
  const std::scoped_lock keeping(sessions_mutex_);
  return sessions_.drop_before(time, std::nullopt, contexts);
}

void DraftIndex::attach_corpora(ScopeId scope_id, CorpusSegments segments) {
  const std::unique_lock lock(mutex_);  // let go before `segments`, which then holds the former ones
  open_scope(scope_id).segments.swap(segments);
}

DraftIndex::Opened DraftIndex::begin(std::span<const Token> prompt_ids, std::span<const ScopeId> read_scopes,
                                     ScopeId write_scope, SessionKey session, SequenceKey key,
                                     PromptSharing sharing, std::span<const std::uint8_t> read_sources) {
  check_tokens("prompt_ids", prompt_ids);
  check_time(sharing.time);
  auto opened = std::make_unique<Request>();
  opened->session = session;
  opened->reads = distinct(read_scopes, read_sources);
  opened->reach = reach_of(opened->reads, write_scope);
  std::size_t num_deletions = 0;
  SessionStore::Match match{TokenLog(0), {}, {}};
  opened->learned = learned_of(opened->reach);
  {
    const std::shared_lock lock(mutex_);
    for (const ReadScope& read : opened->reads) open_scope(read.id);
    num_deletions = num_deletions_;
    const std::scoped_lock keeping(sessions_mutex_);
    sessions_.take(session, opened->reach, prompt_ids, match);
  }
  // Nobody else sees this request yet: its prompt is indexed without a lock.
  const std::size_t num_reused = match.overlap.num_reused();
  opened->context = num_reused > 0 ? std::move(match.context) : spares_.take(prompt_ids.size());
  opened->keys = std::move(match.keys);
  opened->keys.push_back(key);
  if (match.overlap.num_slid > 0) {
    opened->seam = static_cast<Position>(match.overlap.num_prefix);
    opened->shift = static_cast<Position>(opened->context.size() - num_reused);
  } else {
    opened->context.truncate(static_cast<Position>(num_reused));
  }
  opened->new_begin = opened->context.end();
  opened->context.append(prompt_ids.subspan(num_reused));
  opened->prompt_end = opened->context.end();
  std::shared_ptr<Scope> scope;
  std::unique_lock<std::mutex> writing;  // a deletion sees the request either in its table or in the log
  if (sharing.is_early && write_scope != -1) {
    scope = held_scope(write_scope);
    writing = std::unique_lock(scope->writing);
    opened->has_shared_prompt = true;
  }
  const Handle handle = open(std::move(opened), num_deletions);
  if (scope != nullptr) {
    const auto read = prompt_ids.subspan(num_reused);
    append_to(*scope, read, read.size(), key, sharing.time);
  }
  return {handle, static_cast<std::int64_t>(num_reused)};
}

Handle DraftIndex::open(std::unique_ptr<Request> opened, std::size_t num_deletions) {
  const std::unique_lock lock(mutex_);
  // A deletion meanwhile could not see this request: better to lose its context than to keep what was deleted.
  opened->is_tainted = num_deletions_ != num_deletions;
  const Handle handle = next_handle_++;
  requests_.emplace(handle, std::move(opened));
  return handle;
}

void DraftIndex::commit(std::span<const Handle> handles, std::span<const Token> token_ids,
                        std::span<const std::int64_t> offsets) {
  const std::shared_lock lock(mutex_);
  commit_locked(handles, token_ids, offsets);
}

bool DraftIndex::try_commit(std::span<const Handle> handles, std::span<const Token> token_ids,
                            std::span<const std::int64_t> offsets) {
  const std::shared_lock lock(mutex_, std::try_to_lock);
  if (lock) commit_locked(handles, token_ids, offsets);
  return lock.owns_lock();
}

void DraftIndex::commit_locked(std::span<const Handle> handles, std::span<const Token> token_ids,
                               std::span<const std::int64_t> offsets) {
  check_tokens("token_ids", token_ids);
  check_offsets(offsets, handles.size(), token_ids.size());
  Reading reading;
  for (const Handle handle : handles) request(handle);
  for (std::size_t i = 0; i < handles.size(); ++i) {
    const auto committed = token_ids.subspan(static_cast<std::size_t>(offsets[i]),
                                             static_cast<std::size_t>(offsets[i + 1] - offsets[i]));
    if (committed.empty()) continue;
    Request& open = request(handles[i]);
    const std::scoped_lock in_use(open.in_use);
    Scope* const first = read_by(open, reading);
    SourceCounts accepted;
    {
      const std::unique_lock learning(open.learned->mutex);
      accepted = Drafter::score(open.draft, committed, open.learned->calibration, open.trail, reading.logs);
    }
    counters_.add_accepted(accepted);
    if (first != nullptr) first->counters.add_accepted(accepted);
    open.context.append(committed, true);
    Drafter::follow(open.trail, reading.logs, committed);
  }
}

void DraftIndex::truncate(Handle handle, std::int64_t num_tokens) {
  const std::shared_lock lock(mutex_);
  Request& open = request(handle);
  const std::scoped_lock in_use(open.in_use);
  if (num_tokens < 0 || static_cast<std::size_t>(num_tokens) > open.num_tokens()) {
    refuse("num_tokens", std::to_string(num_tokens),
           "give 0 to the " + std::to_string(open.num_tokens()) + " tokens of the context");
  }
  open.truncate(static_cast<std::size_t>(num_tokens));
}

std::int64_t DraftIndex::num_tokens(Handle handle) const {
  const std::shared_lock lock(mutex_);
  Request& open = request(handle);
  const std::scoped_lock in_use(open.in_use);
  return static_cast<std::int64_t>(open.num_tokens());
}

DraftBatch DraftIndex::propose(std::span<const Handle> handles, std::span<const std::int32_t> max_tokens,
                               std::int64_t max_branches) {
  const std::shared_lock lock(mutex_);
  return propose_locked(handles, max_tokens, max_branches);
}

std::optional<DraftBatch> DraftIndex::try_propose(std::span<const Handle> handles,
                                                  std::span<const std::int32_t> max_tokens,
                                                  std::int64_t max_branches) {
  const std::shared_lock lock(mutex_, std::try_to_lock);
  if (!lock) return std::nullopt;
  return propose_locked(handles, max_tokens, max_branches);
}

DraftBatch DraftIndex::propose_locked(std::span<const Handle> handles, std::span<const std::int32_t> max_tokens,
                                      std::int64_t max_branches) {
  check_range("max_branches", max_branches, 1, "give 1 (chains) to 16", kMaxBranches);
  check_limits(max_tokens, handles.size());
  DraftBatch batch;
  batch.reserve(handles.size(), max_tokens);
  batch.offsets.push_back(0);
  Reading reading;
  DraftScratch scratch(kPlacesReserved);
  for (const Handle handle : handles) request(handle);
  for (std::size_t i = 0; i < handles.size(); ++i) {
    Request& open = request(handles[i]);
    const std::scoped_lock in_use(open.in_use);
    Scope* const first = read_by(open, reading);
    {
      const std::shared_lock drafting(open.learned->mutex);
      drafter_.draft(reading, open.trail, open.learned->calibration, static_cast<unsigned>(max_tokens[i]),
                     static_cast<unsigned>(max_branches), scratch, open.draft);
    }
    const SourceCounts drafted = open.draft.num_issued();
    counters_.add_drafted(drafted);
    if (first != nullptr) first->counters.add_drafted(drafted);
    batch.add(open.draft);
  }
  return batch;
}

DraftBatch DraftIndex::propose_behind(std::span<const Handle> handles, std::span<const std::int32_t> max_tokens,
                                      std::span<const Token> token_ids, std::span<const std::int64_t> offsets,
                                      std::int64_t max_branches) {
  check_range("max_branches", max_branches, 1, "give 1 (chains) to 16", kMaxBranches);
  check_limits(max_tokens, handles.size());
  check_tokens("token_ids", token_ids);
  check_offsets(offsets, handles.size(), token_ids.size());
  DraftBatch batch;
  batch.reserve(handles.size(), max_tokens);
  batch.offsets.push_back(0);
  Reading reading;
  DraftScratch scratch(kPlacesReserved);
  Draft draft;
  const std::shared_lock lock(mutex_);
  for (const Handle handle : handles) request(handle);
  for (std::size_t i = 0; i < handles.size(); ++i) {
    const auto supposed = token_ids.subspan(static_cast<std::size_t>(offsets[i]),
                                            static_cast<std::size_t>(offsets[i + 1] - offsets[i]));
    Request& open = request(handles[i]);
    const std::scoped_lock in_use(open.in_use);
    read_by(open, reading);
    const Supposition supposition(open.context, supposed);
    const Trail trail =
        supposed.empty() ? open.trail : Drafter::foresee(open.draft, open.trail, reading.logs, supposed);
    {
      const std::shared_lock drafting(open.learned->mutex);
      drafter_.draft(reading, trail, open.learned->calibration, static_cast<unsigned>(max_tokens[i]),
                     static_cast<unsigned>(max_branches), scratch, draft);
    }
    batch.add(draft);
  }
  return batch;
}

DraftIndex::Finished DraftIndex::finish(Handle handle, double time) {
  check_time(time);
  std::shared_ptr<Scope> scope;
  {
    const std::shared_lock lock(mutex_);
    const auto found = scopes_.find(request(handle).reach.write_scope);
    if (found != scopes_.end()) scope = found->second;
  }
  // Taken before the request leaves its table: a deletion sees it either there or in the log.
  std::unique_lock<std::mutex> writing;
  if (scope != nullptr) writing = std::unique_lock(scope->writing);
  std::unique_ptr<Request> closed;
  std::size_t num_deletions = 0;
  {
    const std::unique_lock lock(mutex_);
    request(handle);
    num_deletions = num_deletions_;
    closed = std::move(requests_.find(handle)->second);
    requests_.erase(handle);
  }
  Finished finished;
  const auto own = closed->context.tokens().subspan(closed->new_begin);
  finished.new_tokens.assign(own.begin(), own.end());
  finished.num_prompt = closed->prompt_end - closed->new_begin;
  if (scope != nullptr && !closed->is_erased) {
    const auto unshared = closed->unshared();
    const std::size_t num_said = closed->context.end() - closed->prompt_end;
    append_to(*scope, unshared, unshared.size() - num_said, closed->keys.back(), time);
    writing.unlock();
  }
  if (!closed->is_tainted) keep(*closed, time, num_deletions);
  spares_.give(std::move(closed->context));  // what is left of it, if it was kept
  return finished;
}

void DraftIndex::keep(Request& closed, double time, std::size_t num_deletions) {
  std::list<SessionStore::Kept> dropped;
  {
    const std::shared_lock lock(mutex_);
    if (num_deletions != num_deletions_ || reaches_dropped_scope(closed.reach)) return;
    const std::scoped_lock keeping(sessions_mutex_);
    sessions_.keep({closed.session, std::move(closed.reach), std::exchange(closed.context, TokenLog(0)),
                    std::move(closed.keys), time},
                   dropped);
  }
  for (SessionStore::Kept& old : dropped) spares_.give(std::move(old.context));
}

void DraftIndex::append_to(Scope& scope, std::span<const Token> tokens, std::size_t num_read, SequenceKey key,
                           double time) {
  scope.shared.append(tokens, num_read, key, time, [this](const std::function<void()>& change) {
    const std::unique_lock lock(mutex_);
    change();
  });
}

std::vector<float> DraftIndex::calibration(std::span<const ScopeId> read_scopes, ScopeId write_scope) {
  const std::shared_ptr<Learned> learned = learned_of(reach_of(distinct(read_scopes, {}), write_scope));
  const std::shared_lock reading(learned->mutex);
  const auto state = learned->calibration.state();
  return {state.begin(), state.end()};
}

void DraftIndex::set_calibration(std::span<const ScopeId> read_scopes, ScopeId write_scope,
                                 std::span<const float> state) {
  const std::shared_ptr<Learned> learned = learned_of(reach_of(distinct(read_scopes, {}), write_scope));
  const std::unique_lock learning(learned->mutex);
  if (!learned->calibration.restore(state)) {
    refuse("state", "of " + std::to_string(state.size()) + " values",
           "give what calibration() returns: " + std::to_string(learned->calibration.state().size()) +
               " finite ones, and no more hits than trials");
  }
}

IndexStats DraftIndex::stats() const {
  const std::shared_lock lock(mutex_);
  IndexStats stats{.requests = requests_.size(), .scopes = scopes_.size(), .drafts = counters_.read()};
  {
    const std::scoped_lock keeping(sessions_mutex_);
    stats.sessions = sessions_.size();
    stats.context_tokens = sessions_.num_tokens();
    stats.bytes = sessions_.num_bytes();
  }
  stats.bytes += spares_.num_bytes();
  for (const auto& [id, scope] : scopes_) {
    stats.sequences += scope->shared.num_sequences();
    stats.shared_tokens += scope->shared.log().size();
    stats.bytes += scope->shared.num_bytes();
    for (const auto& segment : scope->segments) {
      ++stats.segments;
      stats.corpus_tokens += segment->num_tokens();
    }
  }
  for (const auto& [reach, learned] : learned_) stats.bytes += learned->calibration.num_bytes();
  for (const auto& [handle, open] : requests_) {
    const std::scoped_lock in_use(open->in_use);
    stats.context_tokens += open->context.size();
    stats.bytes += open->context.num_bytes();
  }
  return stats;
}

ScopeStats DraftIndex::scope_stats(ScopeId scope_id) const {
  const std::shared_lock lock(mutex_);
  const Scope& scope = open_scope(scope_id);
  ScopeStats stats{.sequences = scope.shared.num_sequences(), .shared_tokens = scope.shared.log().size(),
                   .segments = scope.segments.size(), .bytes = scope.shared.num_bytes(),
                   .drafts = scope.counters.read()};
  for (const auto& segment : scope.segments) stats.corpus_tokens += segment->num_tokens();
  return stats;
}

std::string DraftIndex::check() const {
  for (const std::shared_ptr<Scope>& scope : held_scopes()) {
    const std::scoped_lock writing(scope->writing);
    if (std::string fault = scope->shared.check(); !fault.empty()) return "scope " + scope->name + ": " + fault;
  }
  const std::shared_lock lock(mutex_);
  if (scope_ids_.size() != scopes_.size()) return "scopes and their names differ in number";
  for (const auto& [id, scope] : scopes_) {
    const auto named = scope_ids_.find(scope->name);
    if (named == scope_ids_.end() || named->second != id) return "scope " + std::to_string(id) + " lost its name";
    if (!scope->counters.check()) return "more tokens were accepted than drafted in scope " + scope->name;
  }
  for (const auto& [handle, open] : requests_) {
    const std::scoped_lock in_use(open->in_use);
    if (std::string fault = open->check(); !fault.empty()) {
      return "request " + std::to_string(handle) + ": " + fault;
    }
  }
  {
    const std::scoped_lock keeping(sessions_mutex_);
    if (std::string fault = sessions_.check(); !fault.empty()) return fault;
  }
  if (!counters_.check()) return "more tokens were accepted than drafted";
  for (const auto& [reach, learned] : learned_) {
    const std::shared_lock reading(learned->mutex);
    if (std::string fault = learned->calibration.check(); !fault.empty()) return fault;
    if (reaches_dropped_scope(reach)) return "a calibration outlived its scope";
  }
  return {};
}

std::string DraftIndex::Request::check() const {
  if (std::string fault = context.check(); !fault.empty()) return fault;
  if (new_begin > prompt_end || prompt_end > context.end()) return "its own tokens lie outside its context";
  if (shift > context.end()) return "it slid further than its context is long";
  if (draft.issue_order.size() > draft.nodes.size()) return "it handed out more nodes than it drafted";
  return {};
}

DraftIndex::Request& DraftIndex::request(Handle handle) const {
  const auto found = requests_.find(handle);
  if (found == requests_.end()) {
    throw UnknownHandle("handle " + std::to_string(handle) + " is not open (" + std::to_string(requests_.size()) +
                        " are); it was finished or never came from begin");
  }
  return *found->second;
}

DraftIndex::Scope& DraftIndex::open_scope(ScopeId scope_id) const {
  const auto found = scopes_.find(scope_id);
  if (found == scopes_.end()) {
    refuse("scope_id", std::to_string(scope_id), "no scope of that id is open; get one from scope(name)");
  }
  return *found->second;
}

std::shared_ptr<DraftIndex::Scope> DraftIndex::held_scope(ScopeId scope_id) const {
  const std::shared_lock lock(mutex_);
  open_scope(scope_id);
  return scopes_.at(scope_id);
}

std::vector<std::shared_ptr<DraftIndex::Scope>> DraftIndex::held_scopes() const {
  const std::shared_lock lock(mutex_);
  std::vector<std::shared_ptr<Scope>> scopes;
  for (const auto& [id, scope] : scopes_) scopes.push_back(scope);
  return scopes;
}

void DraftIndex::check_scopes(const Reach& reach) const {
  for (const ScopeId scope_id : {reach.first.id, reach.write_scope}) {
    if (scope_id != -1) open_scope(scope_id);
  }
}

bool DraftIndex::reaches_dropped_scope(const Reach& reach) const {
  const auto dropped = [this](ScopeId scope_id) { return scope_id >= 0 && !scopes_.contains(scope_id); };
  return dropped(reach.first.id) || dropped(reach.write_scope);
}

// A request that reads and writes no scope shares with no one, and learns for itself alone.
std::shared_ptr<DraftIndex::Learned> DraftIndex::learned_of(const Reach& reach) {
  {
    const std::shared_lock lock(mutex_);
    check_scopes(reach);
    if (const auto known = learned_.find(reach); known != learned_.end()) return known->second;
  }
  auto fresh = std::make_shared<Learned>();
  if (reach == Reach{}) return fresh;
  const std::unique_lock lock(mutex_);
  check_scopes(reach);
  return learned_.try_emplace(reach, std::move(fresh)).first->second;
}

// Fills `reading` with what a request may draft from now; returns the first scope it reads, if it is there. A segment
// that several scopes share is read once.
DraftIndex::Scope* DraftIndex::read_by(const Request& request, Reading& reading) const {
  reading.clear();
  reading.logs.push_back(&request.context);
  reading.reads = request.reads;
  Scope* first = nullptr;
  for (std::size_t i = 0; i < request.reads.size(); ++i) {
    const auto found = scopes_.find(request.reads[i].id);
    Scope* const scope = found == scopes_.end() ? nullptr : found->second.get();
    reading.logs.push_back(scope == nullptr ? nullptr : &scope->shared.log());
    if (i == 0) first = scope;
    if (scope == nullptr) continue;
    for (const auto& segment : scope->segments) {
      const auto known = std::find(reading.segments.begin(), reading.segments.end(), segment.get());
      if (known == reading.segments.end()) reading.segments.push_back(segment.get());
    }
  }
  return first;
}

}  // namespace paceline
