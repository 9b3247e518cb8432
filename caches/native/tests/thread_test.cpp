// Many threads in one index, built under AddressSanitizer or ThreadSanitizer.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <iterator>
#include <thread>
#include <vector>

#include "draft_index.hpp"
#include "segments.hpp"
#include "testing.hpp"

namespace paceline {
namespace {

// The requests of one thread in test_threads: drafts, commits and turns of a session.
void serve(DraftIndex& index, ScopeId scope, std::uint32_t seed) {
  Random random(seed);
  Tokens prompt = some_tokens(random, 40, 3);
  for (int turn = 0; turn < 40; ++turn) {
    const auto opened = index.begin(prompt, std::vector{scope}, scope, seed);
    const std::vector handles{opened.handle};
    for (int step = 0; step < 10; ++step) {
      const DraftBatch batch = index.propose(handles, std::vector<std::int32_t>{8});
      Tokens committed = batch.token_ids;
      committed.push_back(below(random, 3));
      const std::vector offsets{std::int64_t{0}, std::ssize(committed)};
      index.propose_behind(handles, std::vector<std::int32_t>{8}, committed, offsets);
      index.commit(handles, committed, offsets);
      prompt.insert(prompt.end(), committed.begin(), committed.end());
    }
    index.truncate(opened.handle, index.num_tokens(opened.handle) - 1);
    index.finish(opened.handle);
    prompt.resize(std::min<std::size_t>(prompt.size(), 200));
  }
}

// Requests of several threads and a writer that fills and drops scopes leave the index whole.
void test_threads() {
  DraftIndex index({.shared_capacity = 200'000, .max_sessions = 4, .max_session_tokens = 1000});
  const ScopeId scope = index.scope("kept");
  std::vector<std::thread> threads;
  for (std::uint32_t seed = 1; seed <= 3; ++seed) threads.emplace_back(serve, std::ref(index), scope, seed);
  Random random(9);
  for (int i = 0; i < 200; ++i) {
    const auto key = static_cast<SequenceKey>(i % 16 + 1);
    index.append_shared(scope, some_tokens(random, 2'000, 3), key, i);
    if (i % 8 == 0) index.delete_sequence(scope, key);
    if (i % 50 == 0) index.evict_before(scope, i - 10);
    const ScopeId passing = index.scope("passing");
    index.append_shared(passing, some_tokens(random, 30, 3));
    index.drop_scope(passing);
    if (i % 20 == 0) expect_whole(index.check());
  }
  for (std::thread& thread : threads) thread.join();
  expect_whole(index.check());
  expect(index.stats().requests == 0, "every request was finished");
  expect(index.stats().drafts.accepted[static_cast<std::size_t>(Source::kWorkload)] > 0, "drafts were accepted");
}

// A ring wraps under requests that draft from it, and its chain gets more heads, while nothing waits.
void test_readers_of_a_wrapping_ring() {
  for (const std::int64_t capacity : {64, 5'000}) {
    DraftIndex index({.shared_capacity = capacity});
    const ScopeId scope = index.scope("ring");
    std::atomic<bool> is_over{false};
    std::thread writer([&] {
      Random random(6);
      for (int i = 0; i < 2'000; ++i) index.append_shared(scope, some_tokens(random, 50, 4));
      is_over = true;
    });
    Random random(7);
    const std::vector handles{index.begin(Tokens{1, 2, 3}, std::vector{scope}, -1, 0).handle};
    while (!is_over) {
      const DraftBatch batch = index.propose(handles, std::vector<std::int32_t>{16});
      expect(std::ranges::all_of(batch.token_ids, [](Token token) { return token >= 0 && token < 4; }),
             "only tokens of the ring are drafted");
      const Tokens committed = some_tokens(random, 3, 4);
      index.commit(handles, committed, std::vector{std::int64_t{0}, std::ssize(committed)});
    }
    writer.join();
    expect_whole(index.check());
  }
}

// Corpora are replaced under requests that draft from them; what was detached is freed, the rest is drafted from.
void test_readers_of_changing_corpora() {
  DraftIndex index({});
  const ScopeId scope = index.scope("corpora");
  Random random(10);
  std::atomic<bool> is_over{false};
  std::thread changer([&] {
    Random own(11);
    for (int i = 0; i < 60; ++i) {
      CorpusSegments segments;
      for (int left = i % 3; left > 0; --left) segments.push_back(some_segment(own, 4, 500));
      index.attach_corpora(scope, std::move(segments));
    }
    is_over = true;
  });
  const std::vector handles{index.begin(Tokens{1, 2, 3}, std::vector{scope}, -1, 0).handle};
  index.attach_corpora(scope, {some_segment(random, 4, 500)});
  while (!is_over) {
    const DraftBatch batch = index.propose(handles, std::vector<std::int32_t>{16});
    expect(std::ranges::all_of(batch.token_ids, [](Token token) { return token >= 0 && token < 4; }),
           "only tokens of the corpora are drafted");
    const Tokens committed = some_tokens(random, 3, 4);
    index.commit(handles, committed, std::vector{std::int64_t{0}, std::ssize(committed)});
    expect(index.scope_stats(scope).segments <= 2, "a scope has the segments attached last");
  }
  changer.join();
  expect_whole(index.check());
  expect(index.stats().drafts.drafted[static_cast<std::size_t>(Source::kCorpus)] > 0, "corpora were drafted from");
}

// Proposals share the index's lock, so two may meet in one request: both get its draft.
void test_two_draft_for_one_request() {
  DraftIndex index({});
  const Tokens loop{1, 2, 3, 1, 2, 3, 1, 2, 3};
  const std::vector handles{index.begin(loop, {}, -1, 0).handle};
  const auto draft = [&] {
    for (int i = 0; i < 10'000; ++i) {
      const DraftBatch batch = index.propose(handles, std::vector<std::int32_t>{i % 2 == 0 ? 3 : 60});
      expect(batch.token_ids.size() >= 3 && batch.token_ids[0] == 1, "the loop goes on");
    }
  };
  std::thread other(draft);
  draft();
  other.join();
  expect_whole(index.check());
}

}  // namespace
}  // namespace paceline

int main() {
  using namespace paceline;
  test_threads();
  test_readers_of_a_wrapping_ring();
  test_readers_of_changing_corpora();
  test_two_draft_for_one_request();
  std::puts("all thread tests passed");
  return 0;
}
