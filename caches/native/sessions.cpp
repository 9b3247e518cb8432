#include "sessions.hpp"

#include <algorithm>
#include <utility>

namespace paceline {
namespace {

constexpr std::size_t kMaxContextsPerSession = 4;
constexpr std::size_t kMinSlide = 32;  // fewer equal tokens may be chance

// Tokens of `rest` that equal the end of `context` (or all of `rest` inside it), if its start is found there.
std::size_t slid_tokens(std::span<const Token> context, std::span<const Token> rest) {
  if (rest.size() < kMinSlide) return 0;
  const auto anchor = rest.first(kMinSlide);
  auto from = context.begin();
  while (true) {
    const auto found = std::search(from, context.end(), anchor.begin(), anchor.end());
    if (found == context.end()) return 0;
    const auto num_left = static_cast<std::size_t>(context.end() - found);
    if (num_left <= rest.size() && std::equal(found, context.end(), rest.begin())) return num_left;
    from = found + 1;
  }
}

}  // namespace

Overlap overlap_of(std::span<const Token> context, std::span<const Token> prompt) {
  const auto [end, unused] = std::mismatch(context.begin(), context.end(), prompt.begin(), prompt.end());
  Overlap overlap{.num_prefix = static_cast<std::size_t>(end - context.begin())};
  if (overlap.num_prefix < context.size()) {
    overlap.num_slid = slid_tokens(context.subspan(overlap.num_prefix), prompt.subspan(overlap.num_prefix));
  }
  return overlap;
}

bool SessionStore::take(SessionKey session, const Reach& reach, std::span<const Token> prompt, Match& match) {
  const auto entry = by_session_.find(session);
  if (session == 0 || entry == by_session_.end()) return false;
  Overlap best;
  const Place* chosen = nullptr;
  for (const Place& place : entry->second) {
    if (place->reach != reach) continue;
    const Overlap overlap = overlap_of(place->context.tokens(), prompt);
    if (chosen == nullptr || overlap.num_reused() >= best.num_reused()) {
      best = overlap;
      chosen = &place;
    }
  }
  if (chosen == nullptr) return false;
  // A prompt that shares little with the context is another conversation: leave the context to its own.
  const std::size_t shorter = std::min(prompt.size(), (*chosen)->context.size());
  if (best.num_slid == 0 && best.num_prefix * 2 < shorter) return false;
  std::list<Kept> taken;
  remove(*chosen, taken);
  match.context = std::move(taken.front().context);
  match.overlap = best;
  match.keys = std::move(taken.front().keys);
  return true;
}

void SessionStore::keep(Kept finished, std::list<Kept>& dropped) {
  if (finished.session == 0 || max_contexts_ == 0 || finished.context.empty()) {
    dropped.push_back(std::move(finished));
    return;
  }
  auto& places = by_session_[finished.session];
  num_tokens_ += finished.context.size();
  kept_.push_back(std::move(finished));
  places.push_back(std::prev(kept_.end()));
  if (places.size() > kMaxContextsPerSession) remove(places.front(), dropped);
  while (kept_.size() > max_contexts_ || (num_tokens_ > max_tokens_ && !kept_.empty())) {
    remove(kept_.begin(), dropped);
  }
}

std::size_t SessionStore::drop_scope(ScopeId scope, std::list<Kept>& dropped) {
  return drop_if([scope](const Kept& kept) { return kept.reach.touches(scope); }, dropped);
}

std::size_t SessionStore::drop_sequence(ScopeId scope, SequenceKey key, std::list<Kept>& dropped) {
  return drop_if(
      [scope, key](const Kept& kept) {
        return kept.reach.touches(scope) && std::find(kept.keys.begin(), kept.keys.end(), key) != kept.keys.end();
      },
      dropped);
}

std::size_t SessionStore::drop_before(double time, std::optional<ScopeId> scope, std::list<Kept>& dropped) {
  return drop_if(
      [time, scope](const Kept& kept) {
        return kept.finished_at < time && (!scope.has_value() || kept.reach.touches(*scope));
      },
      dropped);
}

template <typename Predicate>
std::size_t SessionStore::drop_if(Predicate is_dropped, std::list<Kept>& dropped) {
  std::size_t num_dropped = 0;
  for (Place place = kept_.begin(); place != kept_.end();) {
    const Place next = std::next(place);
    if (is_dropped(*place)) {
      num_dropped += place->context.size();
      remove(place, dropped);
    }
    place = next;
  }
  return num_dropped;
}

void SessionStore::remove(Place place, std::list<Kept>& dropped) {
  const auto entry = by_session_.find(place->session);
  std::erase(entry->second, place);
  if (entry->second.empty()) by_session_.erase(entry);
  num_tokens_ -= place->context.size();
  dropped.splice(dropped.end(), kept_, place);
}

std::size_t SessionStore::num_bytes() const {
  std::size_t bytes = 0;
  for (const Kept& kept : kept_) {
    bytes += kept.context.num_bytes() + kept.keys.size() * sizeof(SequenceKey);
  }
  return bytes;
}

std::string SessionStore::check() const {
  std::size_t tokens = 0;
  std::size_t listed = 0;
  for (const Kept& kept : kept_) {
    if (std::string fault = kept.context.check(); !fault.empty()) return "kept context: " + fault;
    tokens += kept.context.size();
  }
  for (const auto& [session, places] : by_session_) {
    listed += places.size();
    for (const Place& place : places) {
      if (place->session != session) return "a kept context is listed under another session";
    }
  }
  if (listed != kept_.size()) return "kept contexts and their lists by session differ in number";
  if (tokens != num_tokens_) return "kept tokens do not add up";
  if (kept_.size() > max_contexts_ || tokens > max_tokens_) return "more contexts are kept than allowed";
  return {};
}

}  // namespace paceline
