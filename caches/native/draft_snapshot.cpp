// Snapshots of a DraftIndex: what it remembers and has learned, not what is open. Chains are not stored but built anew,
// at the cost of appending: a snapshot takes 4 bytes a token instead of 16, holds nothing that could be inconsistent,
// and is read by versions that hash otherwise.
#include <algorithm>
#include <cmath>
#include <utility>

#include "draft_index.hpp"
#include "request.hpp"
#include "snapshot_format.hpp"
#include "validation.hpp"

namespace paceline {

constexpr std::size_t kLeastRecordBytes = 8;  // of any record: a count

// Scopes are named by their place in the snapshot; -1: none.
class ScopeNumbers {
 public:
  void add(ScopeId scope_id) { ids_.push_back(scope_id); }
  bool knows(const Reach& reach) const {
    return (reach.write_scope < 0 || has(reach.write_scope)) && (reach.first.id < 0 || has(reach.first.id));
  }
  std::int32_t number(ScopeId scope_id) const {
    if (scope_id < 0) return -1;
    return static_cast<std::int32_t>(std::find(ids_.begin(), ids_.end(), scope_id) - ids_.begin());
  }
  ScopeId id(std::int32_t number) const {
    if (number == -1) return -1;
    if (number < 0 || static_cast<std::size_t>(number) >= ids_.size()) {
      throw BrokenSnapshot("the snapshot is broken: it names scope " + std::to_string(number) + " of " +
                           std::to_string(ids_.size()));
    }
    return ids_[static_cast<std::size_t>(number)];
  }

 private:
  bool has(ScopeId scope_id) const { return std::find(ids_.begin(), ids_.end(), scope_id) != ids_.end(); }

  std::vector<ScopeId> ids_;
};

namespace {

void put_reach(const Reach& reach, const ScopeNumbers& numbers, SectionWriter& section) {
  std::vector<std::int32_t> reads;
  std::vector<std::uint8_t> sources;
  if (reach.first.id >= 0) {
    reads.push_back(numbers.number(reach.first.id));
    sources.push_back(static_cast<std::uint8_t>(reach.first.source));
  }
  section.put_all<std::int32_t>(reads);
  section.put_all<std::uint8_t>(sources);
  section.put(numbers.number(reach.write_scope));
}

Reach get_reach(const ScopeNumbers& numbers, SectionReader& section) {
  Reach reach;
  const std::vector<std::int32_t> reads = section.get_all<std::int32_t>();
  const std::vector<std::uint8_t> sources = section.get_all<std::uint8_t>();
  if (sources.size() != reads.size()) {
    throw BrokenSnapshot("the snapshot is broken: a reach has more scopes than sources, or fewer");
  }
  if (!reads.empty()) reach.first = {numbers.id(reads.front()), static_cast<Source>(sources.front())};
  if (reach.first.source != Source::kWorkload && reach.first.source != Source::kTenant) {
    throw BrokenSnapshot("the snapshot is broken: a scope is read as source " + std::to_string(sources.front()));
  }
  reach.write_scope = numbers.id(section.get<std::int32_t>());
  return reach;
}

std::vector<Token> get_tokens(SectionReader& section) {
  std::vector<Token> tokens = section.get_all<Token>();
  check_tokens("the snapshot is broken: token_ids", tokens);
  return tokens;
}

// How many tokens were read, then said, then read and so on.
std::vector<std::uint32_t> runs_of(const TokenLog& context) {
  std::vector<std::uint32_t> runs{0};
  bool said = false;
  for (Position at = context.begin(); at < context.end(); ++at) {
    if (context.was_said(at) != said) {
      runs.push_back(0);
      said = !said;
    }
    ++runs.back();
  }
  return runs;
}

void append_runs(TokenLog& context, std::span<const Token> tokens, std::span<const std::uint32_t> runs) {
  bool said = false;
  for (const std::uint32_t run : runs) {
    if (run > tokens.size()) throw BrokenSnapshot("the snapshot is broken: a context is shorter than its parts");
    context.append(tokens.first(run), said);
    tokens = tokens.subspan(run);
    said = !said;
  }
  if (!tokens.empty()) throw BrokenSnapshot("the snapshot is broken: a context is longer than its parts");
}

}  // namespace

// What a snapshot holds, whole or not at all.
struct DraftIndex::Restored {
  std::vector<std::shared_ptr<Scope>> scopes;
  ScopeNumbers numbers;  // of the ids they will get
  SessionStore sessions;
  std::map<Reach, std::shared_ptr<Learned>> learned;
};

std::vector<std::byte> DraftIndex::snapshot() const {
  std::vector<SectionWriter> sections(3);
  ScopeNumbers numbers;
  put_scopes(sections[0], numbers);
  put_contexts(sections[1], numbers);
  put_learned(sections[2], numbers);
  const SectionKind kinds[] = {SectionKind::kScopes, SectionKind::kContexts, SectionKind::kLearned};
  return join_sections(sections, kinds);
}

void DraftIndex::put_scopes(SectionWriter& section, ScopeNumbers& numbers) const {
  std::map<ScopeId, std::shared_ptr<Scope>> scopes;
  {
    const std::shared_lock lock(mutex_);
    scopes.insert(scopes_.begin(), scopes_.end());
  }
  section.put<std::uint64_t>(scopes.size());
  for (const auto& [id, scope] : scopes) {
    numbers.add(id);
    const std::scoped_lock writing(scope->writing);
    section.put_all<char>(scope->name);
    section.put(scope->own_capacity);
    section.put<std::uint64_t>(scope->shared.num_sequences());
    scope->shared.for_each([&section](SequenceKey key, double time, std::size_t num_read,
                                      std::span<const Token> tokens) {
      section.put(key);
      section.put(time);
      section.put<std::uint64_t>(num_read);
      section.put_all(tokens);
    });
  }
}

void DraftIndex::put_contexts(SectionWriter& section, const ScopeNumbers& numbers) const {
  const std::shared_lock lock(mutex_);
  const std::scoped_lock keeping(sessions_mutex_);
  std::vector<const SessionStore::Kept*> kept;
  for (const SessionStore::Kept& context : sessions_.kept()) {
    if (numbers.knows(context.reach)) kept.push_back(&context);  // a scope may have been opened since
  }
  section.put<std::uint64_t>(kept.size());
  for (const SessionStore::Kept* context : kept) {
    section.put(context->session);
    put_reach(context->reach, numbers, section);
    section.put_all<SequenceKey>(context->keys);
    section.put(context->finished_at);
    section.put_all(context->context.tokens());
    section.put_all<std::uint32_t>(runs_of(context->context));
  }
}

void DraftIndex::put_learned(SectionWriter& section, const ScopeNumbers& numbers) const {
  const std::shared_lock lock(mutex_);
  std::vector<std::pair<Reach, std::shared_ptr<Learned>>> known;
  for (const auto& entry : learned_) {
    if (numbers.knows(entry.first)) known.emplace_back(entry);
  }
  section.put<std::uint64_t>(known.size());
  for (const auto& [reach, learned] : known) {
    const std::shared_lock reading(learned->mutex);
    put_reach(reach, numbers, section);
    section.put_all<float>(learned->calibration.state());
  }
}

void DraftIndex::restore(std::span<const std::byte> file) {
  const SnapshotView view(file);
  Restored restored{{}, {}, SessionStore(sessions_.max_contexts(), sessions_.max_tokens()), {}};
  get_scopes(view.section(SectionKind::kScopes), restored);
  get_contexts(view.section(SectionKind::kContexts), restored);
  get_learned(view.section(SectionKind::kLearned), restored);
  std::unordered_map<ScopeId, std::shared_ptr<Scope>> scopes;  // what was there is freed after the locks are gone
  const std::unique_lock lock(mutex_);
  if (!requests_.empty()) {
    refuse("the number of open requests", std::to_string(requests_.size()), "finish them before restoring a snapshot");
  }
  // Ids that were handed out stay void: they may be remembered.
  std::unordered_map<std::string, ScopeId> scope_ids;
  for (const auto& scope : restored.scopes) {
    scope_ids.emplace(scope->name, next_scope_id_);
    scopes.emplace(next_scope_id_++, scope);
  }
  scopes.swap(scopes_);
  scope_ids.swap(scope_ids_);
  learned_.swap(restored.learned);
  const std::scoped_lock keeping(sessions_mutex_);
  std::swap(sessions_, restored.sessions);
}

void DraftIndex::get_scopes(SectionReader section, Restored& restored) const {
  ScopeId next = 0;
  {
    const std::shared_lock lock(mutex_);
    next = next_scope_id_;
  }
  for (std::size_t left = section.get_count(kLeastRecordBytes); left > 0; --left) {
    const std::vector<char> name = section.get_all<char>();
    const auto own_capacity = section.get<std::int64_t>();
    const std::int64_t capacity = own_capacity != 0 ? own_capacity : settings_.shared_capacity;
    check_range("the snapshot is broken: capacity", capacity, kMinCapacity, "it must be 2 to 2147483648", kMaxCapacity);
    auto scope = std::make_shared<Scope>(std::string(name.begin(), name.end()), own_capacity,
                                         static_cast<std::size_t>(capacity));
    for (std::size_t sequences = section.get_count(kLeastRecordBytes); sequences > 0; --sequences) {
      const auto key = section.get<SequenceKey>();
      const auto time = section.get<double>();
      check_time(time);
      const auto num_read = section.get<std::uint64_t>();
      scope->shared.append(get_tokens(section), num_read, key, time);
    }
    for (const auto& other : restored.scopes) {
      if (other->name == scope->name) throw BrokenSnapshot("the snapshot is broken: two scopes have one name");
    }
    restored.scopes.push_back(std::move(scope));
    restored.numbers.add(next++);
  }
  section.expect_end();
}

void DraftIndex::get_contexts(SectionReader section, Restored& restored) {
  std::list<SessionStore::Kept> dropped;
  for (std::size_t left = section.get_count(kLeastRecordBytes); left > 0; --left) {
    SessionStore::Kept kept{section.get<SessionKey>(), get_reach(restored.numbers, section), TokenLog(0), {}, 0};
    kept.keys = section.get_all<SequenceKey>();
    kept.finished_at = section.get<double>();
    check_time(kept.finished_at);
    const std::vector<Token> tokens = get_tokens(section);
    append_runs(kept.context, tokens, section.get_all<std::uint32_t>());
    restored.sessions.keep(std::move(kept), dropped);
    dropped.clear();
  }
  section.expect_end();
}

void DraftIndex::get_learned(SectionReader section, Restored& restored) {
  for (std::size_t left = section.get_count(kLeastRecordBytes); left > 0; --left) {
    Reach reach = get_reach(restored.numbers, section);
    auto learned = std::make_shared<Learned>();
    // A state of another version's calibration is no reason to lose the memory: it starts from its priors.
    learned->calibration.restore(section.get_all<float>());
    restored.learned.emplace(std::move(reach), std::move(learned));
  }
  section.expect_end();
}

}  // namespace paceline
