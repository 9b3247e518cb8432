// Tests of the core without Python, built under AddressSanitizer and UndefinedBehaviorSanitizer: what the Python tests
// can't reach (renumbering, ring slots, forgetting) and whatever only a sanitizer sees.
#include <algorithm>
#include <cstdio>
#include <deque>
#include <iterator>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "calibration.hpp"
#include "lookup.hpp"
#include "shared_log.hpp"
#include "testing.hpp"
#include "token_log.hpp"

namespace paceline {
namespace {

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

// Ending sequences in place, at the tail or within, leaves chains that find the rest and nothing of them.
void test_forgetting() {
  Random random(4);
  SharedLog shared(300);
  for (SequenceKey key = 1; key < 500; ++key) {
    shared.append(some_tokens(random, 30, 3), 5, key, static_cast<double>(key % 7));
    const SequenceKey doomed = key - std::min<SequenceKey>(key - 1, static_cast<SequenceKey>(below(random, 12)));
    shared.erase(doomed);
    expect(shared.erase(doomed) == 0, "a sequence is erased once");
    if (key % 40 == 0) shared.evict_before(3.0);
    expect_whole(shared.check());
  }
  shared.evict_before(8.0);
  expect(shared.num_sequences() == 0, "everything is older than that");
  expect(shared.log().empty() || shared.log().at(shared.log().begin()) == kBorder, "no token is left");
}

// A ring that a chain is widened in, a few positions at a time, ends up as one that had the heads from the start.
void test_widening() {
  Random random(5);
  TokenLog log(20'000);
  for (int i = 0; i < 3'000; ++i) {
    log.append_sequence(some_tokens(random, 20, 50));
    if (i % 100 == 0) expect_whole(log.check());
  }
  expect_whole(log.check());
  expect(log.size() == 20'000 && log.long_chain().bits() == log.long_chain().bits_for(20'000),
         "the chain has the heads that its log needs");
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

// The map follows what it sees, and an old habit is outweighed in a bounded number of trials.
void test_the_map_forgets() {
  Calibration calibration;
  const unsigned context = Calibration::map_context({.num_votes = 1, .match_length = 8});
  for (int i = 0; i < 100'000; ++i) calibration.record(Calibration::knot_of(context, 0.5), true);
  expect(calibration.probability(Calibration::knot_of(context, 0.5)) > 0.99, "a share that is always right is believed");
  for (int i = 0; i < 5'000; ++i) calibration.record(Calibration::knot_of(context, 0.5), false);
  expect(calibration.probability(Calibration::knot_of(context, 0.5)) < 0.5, "a habit is forgotten");
  expect_whole(calibration.check());
}

// A fresh map gives probabilities, and greater ones for greater shares.
void test_a_fresh_map_rises() {
  const Calibration calibration;
  const unsigned context = Calibration::map_context({.depth = 2, .rank = 1, .num_votes = 3, .match_length = 17});
  double previous = 0;
  for (double share = 0.01; share < 1.0; share += 0.01) {
    const double probability = calibration.probability(Calibration::knot_of(context, share));
    expect(probability > previous && probability < 1, "a greater share is believed more, and none entirely");
    previous = probability;
  }
}

// Longer matches count for more before anything was learned, and every trait has a weight.
void test_a_fresh_ranking_prefers_long_matches() {
  const Calibration calibration;
  float previous = -100.0f;
  for (const unsigned length : {0u, 1u, 4u, 32u, kMaxMatch}) {
    const float score = calibration.score(features_of({.match_length = length, .longest = length})) -
                        calibration.escape_score(length, 1);
    expect(score > previous, "a longer match leaves less to the case that no place is right");
    previous = score;
  }
  const PlaceTraits extreme{.source = Source::kWorkload, .match_length = 0, .longest = kMaxMatch, .rank = 1000,
                            .num_similar = kMaxSimilar, .num_followed = 100'000, .misses = kMaxMisses,
                            .age = 0xFFFFFFFFu, .has_anchor = true, .distance = -5'000'000};
  for (const std::uint16_t feature : features_of(extreme)) {
    expect(feature < calibration.state().size(), "the most extreme traits have weights");
  }
}

// Each source that is ranked has weights of its own; before anything was learned the tenant's are the workload's.
void test_sources_have_weights_of_their_own() {
  Calibration calibration;
  const auto features = [](Source source) {
    return features_of({.source = source, .match_length = 9, .longest = 20, .rank = 2, .num_similar = 3, .age = 900});
  };
  expect(calibration.score(features(Source::kTenant)) == calibration.score(features(Source::kWorkload)),
         "a tenant's place counts as a workload's at first");
  expect(calibration.score(features(Source::kContext)) != calibration.score(features(Source::kWorkload)),
         "the context has been fitted apart");
  const float before = calibration.score(features(Source::kWorkload));
  calibration.shift(features(Source::kTenant), 1.0);
  calibration.shift(features(Source::kCorpus), 1.0);
  expect(calibration.score(features(Source::kWorkload)) == before, "what is learned of one source stays with it");
  expect(calibration.score(features(Source::kTenant)) > before + 5.9f, "every trait has learned");
}

// The traits of a corpus's places: whatever the counts, there is a weight, and more evidence has another.
void test_evidence_of_corpora() {
  const Calibration calibration;
  for (const std::uint32_t total : {1u, 2u, 5u, 31u, 255u, 0xFFFFFFFFu}) {
    const auto certain = features_of({.source = Source::kCorpus, .count = total, .total = total});
    const auto open = features_of({.source = Source::kCorpus, .count = 1, .total = total});
    for (const std::uint16_t feature : certain) expect(feature < calibration.state().size(), "there is a weight");
    expect(total == 1 || certain != open, "a part of the places is told from all of them");
  }
}

// What was learned comes back from its numbers; numbers that learning cannot reach are refused.
void test_state_round_trip() {
  Calibration learned;
  const PlaceFeatures features = features_of({.match_length = 3, .longest = 7});
  learned.shift(features, 0.25);
  learned.record(Calibration::knot_of(Calibration::map_context({.depth = 1, .num_votes = 1, .match_length = 4}), 0.3), true);
  Calibration restored;
  expect(restored.restore(learned.state()), "a state is restored");
  expect(std::ranges::equal(restored.state(), learned.state()), "it is the same");
  std::vector<float> broken(learned.state().begin(), learned.state().end());
  broken.back() = broken.front() + 1e9f;
  expect(!restored.restore(broken), "more hits than trials are refused");
  broken.pop_back();
  expect(!restored.restore(broken), "another size is refused");
  expect(std::ranges::equal(restored.state(), learned.state()), "a refused state changes nothing");
}

}  // namespace
}  // namespace paceline

int main() {
  using namespace paceline;
  test_ring();
  test_renumbering_keeps_places();
  test_cursors_end_with_their_epoch();
  test_truncation();
  test_forgetting();
  test_widening();
  test_unbounded_log_refuses_to_pass_its_end();
  test_the_map_forgets();
  test_a_fresh_map_rises();
  test_a_fresh_ranking_prefers_long_matches();
  test_sources_have_weights_of_their_own();
  test_evidence_of_corpora();
  test_state_round_trip();
  std::puts("all core tests passed");
  return 0;
}
