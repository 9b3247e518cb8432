// Tests of the core without Python, built under AddressSanitizer and UndefinedBehaviorSanitizer: what the Python tests
// can't reach (renumbering, ring slots, forgetting) and whatever only a sanitizer sees.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <iterator>
#include <random>
#include <source_location>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "calibration.hpp"
#include "draft_index.hpp"
#include "lookup.hpp"
#include "token_log.hpp"

namespace paceline {
namespace {

using Tokens = std::vector<Token>;
using Random = std::mt19937;

void expect(bool holds, const char* what, std::source_location where = std::source_location::current()) {
  if (holds) return;
  std::fprintf(stderr, "%s:%u: expected that %s\n", where.file_name(), static_cast<unsigned>(where.line()), what);
  std::exit(1);
}

void expect_whole(const std::string& fault, std::source_location where = std::source_location::current()) {
  expect(fault.empty(), ("nothing is broken, but: " + fault).c_str(), where);
}

Token below(Random& random, Token limit) { return std::uniform_int_distribution<Token>(0, limit - 1)(random); }

Tokens some_tokens(Random& random, Token most, Token vocabulary) {
  Tokens tokens(static_cast<std::size_t>(below(random, most + 1)));
  for (Token& token : tokens) token = below(random, vocabulary);
  return tokens;
}

Tokens held(const TokenLog& log) {
  Tokens tokens;
  for (Position at = log.begin(); at < log.end(); ++at) tokens.push_back(log.at(at));
  return tokens;
}

// A ring holds the newest tokens in order, through wraps and renumberings.
void test_ring() {
  Random random(1);
  for (const std::size_t capacity : {2, 3, 5, 16, 61}) {
    TokenLog log(capacity, 150);
    std::deque<Token> newest;
    for (int i = 0; i < 400; ++i) {
      const Tokens sequence = some_tokens(random, 20, 4);
      log.append_sequence(sequence);
      newest.insert(newest.end(), sequence.begin(), sequence.end());
      if (!sequence.empty()) newest.push_back(kBorder);
      while (newest.size() > capacity) newest.pop_front();
      expect(std::ranges::equal(held(log), newest), "the ring holds the newest tokens");
      expect_whole(log.check());
    }
    expect(log.epoch() > 3, "positions were renumbered");
  }
}

// Places found in a renumbered log are those of a log that never was.
void test_renumbering_keeps_places() {
  Random random(2);
  TokenLog renumbered(50, 120);
  TokenLog other(50);
  for (int i = 0; i < 300; ++i) {
    const Tokens sequence = some_tokens(random, 12, 3);
    renumbered.append_sequence(sequence);
    other.append_sequence(sequence);
    const Tokens context = some_tokens(random, 8, 3);
    std::vector<Candidate> found;
    std::vector<Candidate> wanted;
    find_candidates(renumbered, 1, false, context, 64, found);
    find_candidates(other, 1, false, context, 64, wanted);
    expect(std::ranges::equal(found, wanted, [&](const Candidate& a, const Candidate& b) {
      return a.next - renumbered.begin() == b.next - other.begin() && a.match_length == b.match_length;
    }), "both logs offer the same places");
  }
  expect(renumbered.epoch() > other.epoch(), "only one was renumbered");
}

// A cursor from before a renumbering is given up.
void test_cursors_end_with_their_epoch() {
  TokenLog log(8, 32);
  log.append_sequence(Tokens{1, 2, 3});
  Cursor cursor{.log = 1, .epoch = log.epoch(), .next = log.begin() + 1, .num_matched = 1};
  Cursor same = cursor;
  expect(advance(same, log, 2), "a cursor goes on where it guessed right");
  while (log.epoch() == cursor.epoch) log.append_sequence(Tokens{1, 2, 3});
  cursor.next = log.begin() + 1;
  expect(!advance(cursor, log, log.at(cursor.next)), "a cursor of another epoch is void");
}

// Taking tokens back and appending others leaves the chains as if they had never been there.
void test_truncation() {
  Random random(3);
  TokenLog log(0);
  Tokens kept;
  for (int i = 0; i < 600; ++i) {
    const Tokens more = some_tokens(random, 9, 3);
    log.append(more);
    kept.insert(kept.end(), more.begin(), more.end());
    const auto size = static_cast<std::size_t>(below(random, static_cast<Token>(kept.size()) + 1));
    if (i % 2 == 0 && size + 20 > kept.size()) {
      log.truncate(static_cast<Position>(size));
      kept.resize(size);
    }
    expect(std::ranges::equal(log.tokens(), kept), "the log holds what was kept");
    expect_whole(log.check());
  }
}

// A log that is full says so and stays as it was.
void test_unbounded_log_refuses_to_pass_its_end() {
  TokenLog log(0, 16);
  log.append(Tokens{1, 2, 3});
  bool refused = false;
  try {
    log.append(Tokens(20, 1));
  } catch (const std::length_error&) {
    refused = true;
  }
  expect(refused, "a full log refuses tokens");
  expect(log.size() == 3, "a refused append changes nothing");
  expect_whole(log.check());
}

// A cell follows what it sees, and an old habit is outweighed in a bounded number of trials.
void test_calibration_forgets() {
  Calibration calibration;
  const std::size_t cell = Calibration::trust_cell(Source::kShared, 0, 8);
  for (int i = 0; i < 100'000; ++i) calibration.trust.record(cell, true);
  expect(calibration.trust.probability(cell) > 0.99, "a cell that is always right is believed");
  for (int i = 0; i < 5'000; ++i) calibration.trust.record(cell, false);
  expect(calibration.trust.probability(cell) < 0.5, "a cell forgets");
  expect_whole(calibration.trust.check());
}

// Priors are probabilities, and grow with the match.
void test_priors() {
  const Calibration calibration;
  for (unsigned agreement = 0; agreement < kNumAgreements; ++agreement) {
    double previous = 0;
    for (const unsigned length : {0u, 1u, 2u, 3u, 4u, 6u, 9u, 13u, 21u, 32u, kMaxMatch}) {
      const double prior = calibration.acceptance.probability(
          Calibration::acceptance_cell(Source::kContext, 0, length, agreement, 0));
      expect(prior > previous && prior < 1, "a longer match is believed more, and none entirely");
      previous = prior;
    }
  }
}

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
      index.commit(handles, committed, std::vector{std::int64_t{0}, std::ssize(committed)});
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
    index.append_shared(scope, some_tokens(random, 2'000, 3));
    const ScopeId passing = index.scope("passing");
    index.append_shared(passing, some_tokens(random, 30, 3));
    index.drop_scope(passing);
    if (i % 20 == 0) expect_whole(index.check());
  }
  for (std::thread& thread : threads) thread.join();
  expect_whole(index.check());
  expect(index.stats().requests == 0, "every request was finished");
  expect(index.stats().accepted > 0, "drafts were accepted");
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
  test_ring();
  test_renumbering_keeps_places();
  test_cursors_end_with_their_epoch();
  test_truncation();
  test_unbounded_log_refuses_to_pass_its_end();
  test_calibration_forgets();
  test_priors();
  test_threads();
  test_two_draft_for_one_request();
  std::puts("all core tests passed");
  return 0;
}
