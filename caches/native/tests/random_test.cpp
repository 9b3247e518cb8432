// Random operations on one index, with everything checked every now and then. The number of operations and the seed may
// be given: `paceline_random_test 1000000 7`.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <string>
#include <vector>

#include "draft_index.hpp"
#include "segments.hpp"
#include "testing.hpp"

namespace paceline {
namespace {

constexpr std::size_t kMaxRequests = 6;
constexpr Token kVocabulary = 5;
constexpr std::int64_t kMostTokens = 400;  // of a context

// One index under random calls, all of them valid.
class Player {
 public:
  explicit Player(std::uint32_t seed)
      : random_(seed),
        index_({.shared_capacity = 50 + below(random_, 3'000), .max_sessions = 5, .max_session_tokens = 2'000}) {
    for (const std::size_t length : {10, 300, 2'000}) segments_.push_back(some_segment(random_, kVocabulary, length));
  }

  void play(std::int64_t num_operations) {
    for (std::int64_t i = 0; i < num_operations; ++i) {
      step();
      if (i % 100 == 0) expect_whole(index_.check());
    }
    expect_whole(index_.check());
  }

 private:
  struct Open {
    Handle handle;
    Tokens tokens;
  };

  void step() {
    switch (below(random_, 17)) {
      case 0:
      case 1: return index_.append_shared(scope(), tokens(60), key(), time());
      case 2: return begin();
      case 3: return finish();
      case 4: index_.delete_sequence(scope(), key() + 1); return;
      case 5:
        if (below(random_, 8) == 0) index_.evict_before(scope(), time());
        if (below(random_, 16) == 0) index_.evict_contexts_before(time());
        return;
      case 6: return truncate();
      case 7:
        if (below(random_, 30) == 0) drop_scope();
        return;
      case 8:
        if (below(random_, 40) == 0) restore();
        return;
      case 9: return attach();
      default: return decode();
    }
  }

  Tokens tokens(Token most) { return some_tokens(random_, most, kVocabulary); }
  ScopeId scope() { return index_.scope(scopes_[pick(scopes_.size())]); }
  SequenceKey key() { return static_cast<SequenceKey>(below(random_, 10)); }
  double time() { return below(random_, 10); }
  std::size_t pick(std::size_t count) { return static_cast<std::size_t>(below(random_, static_cast<Token>(count))); }

  // A prompt that goes on from what was said before, or a new one.
  void begin() {
    if (open_.size() >= kMaxRequests) return finish();
    Tokens prompt = below(random_, 3) == 0 ? Tokens{} : said_;
    if (below(random_, 4) == 0 && prompt.size() > 80) prompt.erase(prompt.begin() + 20, prompt.begin() + 30);
    const Tokens more = tokens(40);
    prompt.insert(prompt.end(), more.begin(), more.end());
    std::vector<ScopeId> reads(static_cast<std::size_t>(below(random_, 3)));
    std::vector<std::uint8_t> sources;
    for (ScopeId& read : reads) {
      read = scope();
      sources.push_back(static_cast<std::uint8_t>(below(random_, 2) == 0 ? Source::kWorkload : Source::kTenant));
    }
    const ScopeId writes = below(random_, 4) == 0 ? -1 : scope();
    const auto session = static_cast<SessionKey>(below(random_, 4));
    open_.push_back({index_.begin(prompt, reads, writes, session, key(),
                                   {.is_early = below(random_, 3) == 0, .time = time()}, sources)
                         .handle,
                     prompt});
  }

  void finish() {
    if (open_.empty()) return;
    const std::size_t which = pick(open_.size());
    index_.finish(open_[which].handle, time());
    said_ = std::move(open_[which].tokens);
    if (std::ssize(said_) > kMostTokens) said_.clear();
    open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(which));
  }

  void truncate() {
    if (open_.empty()) return;
    Open& open = open_[pick(open_.size())];
    open.tokens.resize(pick(open.tokens.size() + 1));
    index_.truncate(open.handle, std::ssize(open.tokens));
  }

  void drop_scope() {
    const std::size_t which = pick(scopes_.size());
    index_.drop_scope(index_.scope(scopes_[which]));
    scopes_[which] = "scope " + std::to_string(num_scopes_++);
    index_.scope(scopes_[which], below(random_, 2) == 0 ? 0 : 40);
  }

  // Corpora come, are replaced and go, under open requests too.
  void attach() {
    CorpusSegments segments;
    for (Token left = below(random_, 3); left > 0; --left) segments.push_back(segments_[pick(segments_.size())]);
    const std::size_t num_segments = segments.size();
    const ScopeId where = scope();
    index_.attach_corpora(where, std::move(segments));
    expect(index_.scope_stats(where).segments == num_segments, "a scope has the segments attached last");
  }

  // Everything goes through a snapshot; what is restored is as large as what was saved, but for what was deleted.
  void restore() {
    while (!open_.empty()) finish();
    const std::vector<std::byte> saved = index_.snapshot();
    const IndexStats before = index_.stats();
    index_.restore(saved);
    const IndexStats after = index_.stats();
    expect(after.scopes == before.scopes && after.sessions == before.sessions, "scopes and contexts are restored");
    expect(after.shared_tokens <= before.shared_tokens, "nothing was added");
    expect(index_.snapshot() == saved, "a restored index gives the same snapshot");
  }

  // A round of the whole batch: the target says some of each draft and a token of its own.
  void decode() {
    std::vector<Handle> handles;
    for (const Open& open : open_) handles.push_back(open.handle);
    const DraftBatch batch = index_.propose(handles, std::vector<std::int32_t>(handles.size(), below(random_, 20)));
    // What would follow each whole draft: contexts are as long afterwards as before.
    index_.propose_behind(handles, std::vector<std::int32_t>(handles.size(), 8), batch.token_ids, batch.offsets, 2);
    Tokens committed;
    std::vector<std::int64_t> offsets{0};
    for (std::size_t i = 0; i < open_.size(); ++i) {
      const auto first = batch.token_ids.begin() + batch.offsets[i];
      const auto length = static_cast<std::size_t>(batch.offsets[i + 1] - batch.offsets[i]);
      Tokens row(first, first + static_cast<std::ptrdiff_t>(pick(length + 1)));
      row.push_back(below(random_, kVocabulary));
      committed.insert(committed.end(), row.begin(), row.end());
      offsets.push_back(std::ssize(committed));
      open_[i].tokens.insert(open_[i].tokens.end(), row.begin(), row.end());
    }
    index_.commit(handles, committed, offsets);
    for (const Open& open : open_) {
      expect(index_.num_tokens(open.handle) == std::ssize(open.tokens), "a context is as long as what was said");
    }
    if (!open_.empty() && std::ssize(open_.back().tokens) > kMostTokens) finish();
  }

  Random random_;
  DraftIndex index_;
  std::vector<std::string> scopes_{"a", "b"};
  CorpusSegments segments_;
  std::vector<Open> open_;
  Tokens said_;
  int num_scopes_ = 0;
};

}  // namespace
}  // namespace paceline

int main(int num_arguments, char** arguments) {
  using namespace paceline;
  const std::int64_t num_operations = num_arguments > 1 ? std::atoll(arguments[1]) : 20'000;
  const auto seed = static_cast<std::uint32_t>(num_arguments > 2 ? std::atoll(arguments[2]) : 1);
  constexpr std::int64_t kPerIndex = 5'000;  // then another one, of another capacity
  for (std::int64_t done = 0; done < num_operations; done += kPerIndex) {
    Player(seed + static_cast<std::uint32_t>(done / kPerIndex)).play(std::min(kPerIndex, num_operations - done));
  }
  std::printf("%lld random operations passed\n", static_cast<long long>(num_operations));
  return 0;
}
