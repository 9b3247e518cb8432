#include "draft_index.hpp"

#include <algorithm>
#include <utility>

namespace paceline {
namespace {

constexpr std::int64_t kMaxCapacity = std::int64_t{1} << 31;

std::string number(double value) {
  std::string text = std::to_string(value);
  text.erase(text.find_last_not_of('0') + 1);
  return text.back() == '.' ? text + "0" : text;
}

[[noreturn]] void refuse(const std::string& what, const std::string& value, const std::string& fix) {
  throw std::invalid_argument(what + " is " + value + "; " + fix);
}

const IndexSettings& checked(const IndexSettings& settings) {
  if (settings.shared_capacity < 2 || settings.shared_capacity > kMaxCapacity) {
    refuse("shared_capacity", std::to_string(settings.shared_capacity), "give 2 to 2147483648 tokens");
  }
  if (settings.max_sessions < 0) {
    refuse("max_sessions", std::to_string(settings.max_sessions), "give 0 (keep none) or more");
  }
  if (settings.max_session_tokens < 0) {
    refuse("max_session_tokens", std::to_string(settings.max_session_tokens), "give 0 (keep none) or more");
  }
  if (settings.max_candidates < 1 || settings.max_candidates > 256) {
    refuse("max_candidates", std::to_string(settings.max_candidates), "give 1 to 256 places");
  }
  if (!(settings.min_probability > 0 && settings.min_probability <= 1)) {
    refuse("min_probability", number(settings.min_probability), "give a probability above 0 and at most 1");
  }
  return settings;
}

void check_tokens(const char* name, std::span<const Token> tokens) {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0) {
      refuse(std::string(name) + "[" + std::to_string(i) + "]", std::to_string(tokens[i]),
             "give token ids of 0 or more (cut padding off first)");
    }
  }
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
  Scope(std::string scope_name, std::size_t capacity) : name(std::move(scope_name)), log(capacity) {}

  std::string name;
  TokenLog log;
  std::vector<std::shared_ptr<const CorpusSegment>> segments;
};

// An open request. Where the prompt slid over the kept context, the engine's token i >= seam is the log's token
// i + shift; before the seam, and where nothing slid, the two count alike.
struct DraftIndex::Request {
  std::mutex drafting;  // proposals hold the index's lock shared, so two may meet in one request
  SessionKey session = 0;
  Reach reach;
  std::shared_ptr<Calibration> calibration;
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

ScopeId DraftIndex::scope(std::string_view name) {
  const std::string key(name);
  const std::unique_lock lock(mutex_);
  if (const auto found = scope_ids_.find(key); found != scope_ids_.end()) return found->second;
  auto opened = std::make_unique<Scope>(key, static_cast<std::size_t>(settings_.shared_capacity));
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
  const std::size_t num_shared = open_scope(scope_id).log.size();
  const auto found = scopes_.find(scope_id);
  dropped = std::move(found->second);
  scopes_.erase(found);
  scope_ids_.erase(dropped->name);
  std::erase_if(calibrations_, [scope_id](const auto& entry) { return entry.first.touches(scope_id); });
  return num_shared + sessions_.drop_scope(scope_id, contexts);
}

void DraftIndex::append_shared(ScopeId scope_id, std::span<const Token> token_ids) {
  check_tokens("token_ids", token_ids);
  const std::unique_lock lock(mutex_);
  open_scope(scope_id).log.append_sequence(token_ids);
}

void DraftIndex::attach_segment(ScopeId scope_id, std::shared_ptr<const CorpusSegment> segment) {
  const std::unique_lock lock(mutex_);
  open_scope(scope_id).segments.push_back(std::move(segment));
}

std::size_t DraftIndex::detach_segments(ScopeId scope_id) {
  std::vector<std::shared_ptr<const CorpusSegment>> detached;  // unmapped after the lock is gone
  const std::unique_lock lock(mutex_);
  detached.swap(open_scope(scope_id).segments);
  return detached.size();
}

DraftIndex::Opened DraftIndex::begin(std::span<const Token> prompt_ids, std::span<const ScopeId> read_scopes,
                                     ScopeId write_scope, SessionKey session) {
  check_tokens("prompt_ids", prompt_ids);
  auto opened = std::make_unique<Request>();
  opened->session = session;
  opened->reach = reach_of(read_scopes, write_scope);
  SessionStore::Match match{TokenLog(0), {}};
  {
    const std::unique_lock lock(mutex_);
    check_scopes(opened->reach);
    sessions_.take(session, opened->reach, prompt_ids, match);
    opened->calibration = calibration_of(opened->reach);
  }
  // Nobody else sees this request yet: its prompt is indexed without the lock.
  const std::size_t num_reused = match.overlap.num_reused();
  opened->context = std::move(match.context);
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
  if (offsets.size() != handles.size() + 1) {
    refuse("the number of offsets", std::to_string(offsets.size()),
           "give one more than the " + std::to_string(handles.size()) + " handles");
  }
  for (std::size_t i = 0; i < offsets.size(); ++i) {
    const std::int64_t earliest = i == 0 ? 0 : offsets[i - 1];
    if (offsets[i] < earliest || offsets[i] > static_cast<std::int64_t>(token_ids.size())) {
      refuse("offsets[" + std::to_string(i) + "]", std::to_string(offsets[i]),
             "give rising offsets from 0 to the " + std::to_string(token_ids.size()) + " tokens");
    }
  }
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
  if (max_tokens.size() != handles.size()) {
    refuse("the number of max_tokens", std::to_string(max_tokens.size()),
           "give one for each of the " + std::to_string(handles.size()) + " handles");
  }
  for (std::size_t i = 0; i < max_tokens.size(); ++i) {
    if (max_tokens[i] < 0) {
      refuse("max_tokens[" + std::to_string(i) + "]", std::to_string(max_tokens[i]), "give 0 or more");
    }
  }
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

DraftIndex::Finished DraftIndex::finish(Handle handle) {
  std::unique_ptr<Request> closed;
  std::list<SessionStore::Kept> dropped;
  Finished finished;
  const std::unique_lock lock(mutex_);
  const auto own = request(handle).context.tokens().subspan(request(handle).new_begin);
  finished.new_tokens.assign(own.begin(), own.end());
  finished.num_prompt = request(handle).prompt_end - request(handle).new_begin;
  const auto scope = scopes_.find(request(handle).reach.write_scope);
  if (scope != scopes_.end()) scope->second->log.append_sequence(finished.new_tokens);
  closed = std::move(requests_.find(handle)->second);
  requests_.erase(handle);
  if (!reaches_dropped_scope(closed->reach)) {
    sessions_.keep(closed->session, std::move(closed->reach), std::move(closed->context), dropped);
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
    stats.shared_tokens += scope->log.size();
    stats.bytes += scope->log.num_bytes();
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
    if (std::string fault = scope->log.check(); !fault.empty()) return "scope " + scope->name + ": " + fault;
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
    logs.push_back(found == scopes_.end() ? nullptr : &found->second->log);
  }
}

}  // namespace paceline
