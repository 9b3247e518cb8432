#include "draft_index.hpp"

#include <algorithm>
#include <utility>

#include "shared_log.hpp"
#include "validation.hpp"

namespace paceline {
namespace {

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

// Repeated scopes are read once: they would vote twice.
Reach reach_of(std::span<const ScopeId> read_scopes, ScopeId write_scope) {
  Reach reach{.read_scopes = {}, .write_scope = write_scope};
  for (const ScopeId scope_id : read_scopes) {
    if (std::find(reach.read_scopes.begin(), reach.read_scopes.end(), scope_id) == reach.read_scopes.end()) {
      reach.read_scopes.push_back(scope_id);
    }
  }
  return reach;
}

}  // namespace

struct DraftIndex::Scope {
  Scope(std::string scope_name, std::size_t capacity) : name(std::move(scope_name)), shared(capacity) {}

  std::string name;
  SharedLog shared;
};

// An open request. Where the prompt slid over the kept context, the engine's token i >= seam is the log's token
// i + shift; before the seam, and where nothing slid, the two count alike.
struct DraftIndex::Request {
  std::mutex drafting;  // proposals hold the index's lock shared, so two may meet in one request
  SessionKey session = 0;
  Reach reach;
  std::shared_ptr<Calibration> calibration;
  std::vector<SequenceKey> keys;  // of the requests whose tokens the context may hold, its own last
  bool is_erased = false;         // its own sequence was deleted: nobody else gets its tokens
  bool is_tainted = false;        // a sequence that its context may hold was deleted: the context is not kept
  TokenLog context{0};
  Position seam = 0;
  Position shift = 0;
  Position new_begin = 0;   // of the log: tokens from here on are this request's own
  Position prompt_end = 0;  // of the log
  std::vector<Cursor> cursors;
  Draft draft;

  std::size_t num_tokens() const { return context.end() - shift; }
  void truncate(std::size_t num_tokens) {
    const auto wanted = static_cast<Position>(num_tokens);
    if (wanted < seam) shift = 0;
    context.truncate(wanted + shift);
    new_begin = std::min(new_begin, context.end());
    prompt_end = std::min(prompt_end, context.end());
    cursors.clear();
    draft.clear();
  }
};

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
  auto opened = std::make_unique<Scope>(key, static_cast<std::size_t>(wanted));
  const ScopeId id = next_scope_id_;
  scopes_.emplace(id, std::move(opened));
  scope_ids_.emplace(key, id);
  ++next_scope_id_;
  return id;
}

std::size_t DraftIndex::drop_scope(ScopeId scope_id) {
  std::unique_ptr<Scope> dropped;  // both are freed after the lock is gone
  std::list<SessionStore::Kept> contexts;
  const std::unique_lock lock(mutex_);
  const std::size_t num_shared = open_scope(scope_id).shared.log().size();
  const auto found = scopes_.find(scope_id);
  dropped = std::move(found->second);
  scopes_.erase(found);
  scope_ids_.erase(dropped->name);
  std::erase_if(calibrations_, [scope_id](const auto& entry) { return entry.first.touches(scope_id); });
  return num_shared + sessions_.drop_scope(scope_id, contexts);
}

void DraftIndex::append_shared(ScopeId scope_id, std::span<const Token> token_ids, SequenceKey key, double time) {
  check_tokens("token_ids", token_ids);
  check_time(time);
  const std::unique_lock lock(mutex_);
  open_scope(scope_id).shared.append(token_ids, key, time);
}

std::size_t DraftIndex::delete_sequence(ScopeId scope_id, SequenceKey key) {
  check_key(key);
  std::list<SessionStore::Kept> contexts;  // freed after the lock is gone
  const std::unique_lock lock(mutex_);
  const std::size_t num_shared = open_scope(scope_id).shared.erase(key);
  for (const auto& [handle, open] : requests_) {
    if (!open->reach.touches(scope_id)) continue;
    open->is_tainted |= std::find(open->keys.begin(), open->keys.end(), key) != open->keys.end();
    open->is_erased |= open->keys.back() == key;
  }
  return num_shared + sessions_.drop_sequence(scope_id, key, contexts);
}

std::size_t DraftIndex::evict_before(ScopeId scope_id, double time) {
  check_time(time);
  const std::unique_lock lock(mutex_);
  return open_scope(scope_id).shared.evict_before(time);
}

DraftIndex::Opened DraftIndex::begin(std::span<const Token> prompt_ids, std::span<const ScopeId> read_scopes,
                                     ScopeId write_scope, SessionKey session, SequenceKey key) {
  check_tokens("prompt_ids", prompt_ids);
  auto opened = std::make_unique<Request>();
  opened->session = session;
  opened->reach = reach_of(read_scopes, write_scope);
  SessionStore::Match match{TokenLog(0), {}, {}};
  {
    const std::unique_lock lock(mutex_);
    check_scopes(opened->reach);
    sessions_.take(session, opened->reach, prompt_ids, match);
    opened->calibration = calibration_of(opened->reach);
  }
  // Nobody else sees this request yet: its prompt is indexed without the lock.
  const std::size_t num_reused = match.overlap.num_reused();
  opened->context = std::move(match.context);
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
  const std::unique_lock lock(mutex_);
  const Handle handle = next_handle_++;
  requests_.emplace(handle, std::move(opened));
  return {handle, static_cast<std::int64_t>(num_reused)};
}

void DraftIndex::commit(std::span<const Handle> handles, std::span<const Token> token_ids,
                        std::span<const std::int64_t> offsets) {
  check_tokens("token_ids", token_ids);
  check_offsets(offsets, handles.size(), token_ids.size());
  const std::unique_lock lock(mutex_);
  for (const Handle handle : handles) request(handle);
  std::vector<const TokenLog*> logs;
  for (std::size_t i = 0; i < handles.size(); ++i) {
    Request& open = request(handles[i]);
    const auto committed = token_ids.subspan(static_cast<std::size_t>(offsets[i]),
                                             static_cast<std::size_t>(offsets[i + 1] - offsets[i]));
    if (committed.empty()) continue;
    num_accepted_ += Drafter::score(open.draft, committed, *open.calibration);
    open.context.append(committed);
    logs_of(open, logs);
    Drafter::follow(open.draft, open.cursors, logs, committed);
  }
}

void DraftIndex::truncate(Handle handle, std::int64_t num_tokens) {
  const std::unique_lock lock(mutex_);
  Request& open = request(handle);
  if (num_tokens < 0 || static_cast<std::size_t>(num_tokens) > open.num_tokens()) {
    refuse("num_tokens", std::to_string(num_tokens),
           "give 0 to the " + std::to_string(open.num_tokens()) + " tokens of the context");
  }
  open.truncate(static_cast<std::size_t>(num_tokens));
}

std::int64_t DraftIndex::num_tokens(Handle handle) const {
  const std::shared_lock lock(mutex_);
  return static_cast<std::int64_t>(request(handle).num_tokens());
}

DraftBatch DraftIndex::propose(std::span<const Handle> handles, std::span<const std::int32_t> max_tokens) {
  check_limits(max_tokens, handles.size());
  DraftBatch batch;
  batch.offsets.push_back(0);
  std::vector<const TokenLog*> logs;
  const std::shared_lock lock(mutex_);
  for (const Handle handle : handles) request(handle);
  for (std::size_t i = 0; i < handles.size(); ++i) {
    Request& open = request(handles[i]);
    const std::scoped_lock drafting(open.drafting);
    logs_of(open, logs);
    drafter_.draft(logs, open.cursors, *open.calibration, static_cast<unsigned>(max_tokens[i]),
                   open.draft);
    for (std::size_t n = 0; n < open.draft.num_issued; ++n) {
      const Draft::Node& node = open.draft.nodes[n];
      batch.token_ids.push_back(node.token);
      batch.parent.push_back(static_cast<std::int32_t>(n) - 1);
      batch.prob.push_back(node.probability);
      batch.source.push_back(static_cast<std::uint8_t>(node.source));
    }
    batch.offsets.push_back(static_cast<std::int64_t>(batch.token_ids.size()));
  }
  num_drafted_ += batch.token_ids.size();
  return batch;
}

DraftIndex::Finished DraftIndex::finish(Handle handle, double time) {
  check_time(time);
  std::unique_ptr<Request> closed;
  std::list<SessionStore::Kept> dropped;
  Finished finished;
  const std::unique_lock lock(mutex_);
  const auto own = request(handle).context.tokens().subspan(request(handle).new_begin);
  finished.new_tokens.assign(own.begin(), own.end());
  finished.num_prompt = request(handle).prompt_end - request(handle).new_begin;
  closed = std::move(requests_.find(handle)->second);
  requests_.erase(handle);
  const auto scope = scopes_.find(closed->reach.write_scope);
  if (scope != scopes_.end() && !closed->is_erased) {
    scope->second->shared.append(finished.new_tokens, closed->keys.back(), time);
  }
  if (!closed->is_tainted && !reaches_dropped_scope(closed->reach)) {
    sessions_.keep({closed->session, std::move(closed->reach), std::move(closed->context), std::move(closed->keys)},
                   dropped);
  }
  return finished;
}

IndexStats DraftIndex::stats() const {
  const std::shared_lock lock(mutex_);
  IndexStats stats{.requests = requests_.size(),
                   .sessions = sessions_.size(),
                   .scopes = scopes_.size(),
                   .shared_tokens = 0,
                   .context_tokens = sessions_.num_tokens(),
                   .bytes = sessions_.num_bytes(),
                   .drafted = num_drafted_,
                   .accepted = num_accepted_};
  for (const auto& [id, scope] : scopes_) {
    stats.shared_tokens += scope->shared.log().size();
    stats.bytes += scope->shared.num_bytes();
  }
  for (const auto& [reach, calibration] : calibrations_) stats.bytes += calibration->num_bytes();
  for (const auto& [handle, open] : requests_) {
    stats.context_tokens += open->context.size();
    stats.bytes += open->context.num_bytes();
  }
  return stats;
}

std::string DraftIndex::check() const {
  const std::unique_lock lock(mutex_);
  if (scope_ids_.size() != scopes_.size()) return "scopes and their names differ in number";
  for (const auto& [id, scope] : scopes_) {
    const auto named = scope_ids_.find(scope->name);
    if (named == scope_ids_.end() || named->second != id) return "scope " + std::to_string(id) + " lost its name";
    if (std::string fault = scope->shared.check(); !fault.empty()) return "scope " + scope->name + ": " + fault;
  }
  for (const auto& [handle, open] : requests_) {
    const std::string who = "request " + std::to_string(handle) + ": ";
    if (std::string fault = open->context.check(); !fault.empty()) return who + fault;
    if (open->new_begin > open->prompt_end || open->prompt_end > open->context.end()) {
      return who + "its own tokens lie outside its context";
    }
    if (open->shift > open->context.end()) return who + "it slid further than its context is long";
    if (open->draft.num_issued > open->draft.nodes.size() && !open->draft.nodes.empty()) {
      return who + "it handed out more nodes than it drafted";
    }
  }
  if (std::string fault = sessions_.check(); !fault.empty()) return fault;
  if (num_accepted_ > num_drafted_) return "more tokens were accepted than drafted";
  for (const auto& [reach, calibration] : calibrations_) {
    if (std::string fault = calibration->check(); !fault.empty()) return fault;
    if (reaches_dropped_scope(reach)) return "a calibration outlived its scope";
  }
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

void DraftIndex::check_scopes(const Reach& reach) const {
  for (const ScopeId scope_id : reach.read_scopes) open_scope(scope_id);
  if (reach.write_scope != -1) open_scope(reach.write_scope);
}

bool DraftIndex::reaches_dropped_scope(const Reach& reach) const {
  const auto dropped = [this](ScopeId scope_id) { return scope_id >= 0 && !scopes_.contains(scope_id); };
  return dropped(reach.write_scope) || std::any_of(reach.read_scopes.begin(), reach.read_scopes.end(), dropped);
}

// A request that reads and writes no scope shares with no one, and learns for itself alone.
std::shared_ptr<Calibration> DraftIndex::calibration_of(const Reach& reach) {
  if (reach == Reach{}) return std::make_shared<Calibration>();
  std::shared_ptr<Calibration>& known = calibrations_[reach];
  if (known == nullptr) known = std::make_shared<Calibration>();
  return known;
}

void DraftIndex::logs_of(const Request& request, std::vector<const TokenLog*>& logs) const {
  logs.assign(1, &request.context);
  for (const ScopeId scope_id : request.reach.read_scopes) {
    const auto found = scopes_.find(scope_id);
    logs.push_back(found == scopes_.end() ? nullptr : &found->second->shared.log());
  }
}

}  // namespace paceline
