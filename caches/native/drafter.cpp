#include "drafter.hpp"

#include <algorithm>

namespace paceline {
namespace {

constexpr std::size_t kMaxCursors = 4;
constexpr unsigned kShadowNodes = 4;  // drafted past the stop, so that cells that fell low can rise again
constexpr double kRankDiscount = 0.8;
constexpr double kOddsFloor = 1e-3;

Source source_of(const Candidate& candidate) {
  return candidate.log == 0 ? Source::kContext : Source::kShared;
}

// The drafting of one chain: the candidates still in agreement with it and the votes of the current depth.
class Chain {
 public:
  Chain(std::span<const TokenLog* const> logs, const Calibration& calibration, Draft& draft)
      : logs_(logs), calibration_(calibration), draft_(draft) {}

  void gather(std::span<const Cursor> cursors, unsigned max_candidates) {
    const std::span<const Token> context = logs_[0]->tokens();
    for (const Cursor& cursor : cursors) add_cursor(cursor, context);
    const std::size_t num_cursors = candidates_.size();
    for (std::uint32_t i = 0; i < logs_.size(); ++i) {
      if (logs_[i] == nullptr) continue;
      find_candidates(*logs_[i], i, i == 0, context, max_candidates, candidates_);
    }
    drop_repeats(num_cursors);
    weigh();
  }

  // Adds the winner of the vote at this depth to the draft; false if no candidate has a guess.
  bool extend() {
    count_votes();
    if (ballot_.empty()) return false;
    const unsigned depth = static_cast<unsigned>(draft_.nodes.size());
    std::size_t winner = 0;
    double total = 0;
    for (std::size_t i = 0; i < ballot_.size(); ++i) {
      total += ballot_[i].weight;
      if (ballot_[i].weight > ballot_[winner].weight) winner = i;
    }
    const Ballot& won = ballot_[winner];
    const Candidate best = candidates_[won.best];
    const unsigned agreement = agreement_bucket(ballot_.size() > 1, won.num_votes, won.weight / total);
    const std::size_t cell = Calibration::acceptance_cell(
        source_of(best), best.misses, std::min(won.match_length + depth, kMaxMatch), agreement, depth);
    if (depth == 0) lead_with(best);
    keep_voters_of(won.token);
    draft_.nodes.push_back({.token = won.token,
                            .probability = static_cast<float>(calibration_.acceptance.probability(cell)),
                            .source = source_of(best),
                            .cell = static_cast<std::uint32_t>(cell)});
    return true;
  }

 private:
  struct Ballot {
    Token token;
    unsigned num_votes;
    unsigned match_length;  // longest of its voters
    double weight;
    std::size_t best;  // its heaviest voter
  };

  void add_cursor(const Cursor& cursor, std::span<const Token> context) {
    const TokenLog* log = logs_[cursor.log];
    if (log == nullptr || cursor.epoch != log->epoch() || cursor.next < log->begin() ||
        cursor.next >= log->end() || log->at(cursor.next) == kBorder) {
      return;
    }
    candidates_.push_back({.log = cursor.log,
                           .next = cursor.next,
                           .match_length = match_length(*log, cursor.next, context),
                           .misses = cursor.misses});
  }

  void drop_repeats(std::size_t num_cursors) {
    const auto cursors = std::span(candidates_).first(num_cursors);
    const auto is_repeat = [&](const Candidate& found) {
      return std::any_of(cursors.begin(), cursors.end(), [&](const Candidate& cursor) {
        return cursor.log == found.log && cursor.next == found.next;
      });
    };
    const auto first = candidates_.begin() + static_cast<std::ptrdiff_t>(num_cursors);
    candidates_.erase(std::remove_if(first, candidates_.end(), is_repeat), candidates_.end());
  }

  void weigh() {
    double discount[kNumSources] = {1.0, 1.0};
    for (Candidate& candidate : candidates_) {
      const Source source = source_of(candidate);
      const std::size_t cell = Calibration::trust_cell(source, candidate.misses, candidate.match_length);
      const double trust = calibration_.trust.probability(cell);
      const double odds = trust / (1.0 - trust + kOddsFloor);
      double& rank = discount[static_cast<std::size_t>(source)];
      candidate.weight = odds * odds * rank;
      rank *= kRankDiscount;
      draft_.votes.push_back({logs_[candidate.log]->at(candidate.next), static_cast<std::uint32_t>(cell)});
    }
  }

  // Next token of a candidate, kBorder if it has none. A copy that reaches the end of the context goes on in the
  // draft itself, as LZ77 copies do: so that a loop is drafted for as long as it may last.
  Token guess(const Candidate& candidate) const {
    const TokenLog& log = *logs_[candidate.log];
    if (candidate.next < log.end()) return log.at(candidate.next);
    const std::size_t beyond = candidate.next - log.end();
    return candidate.log == 0 && beyond < draft_.nodes.size() ? draft_.nodes[beyond].token : kBorder;
  }

  void count_votes() {
    ballot_.clear();
    for (std::size_t i = 0; i < candidates_.size(); ++i) {
      const Candidate& candidate = candidates_[i];
      const Token token = guess(candidate);
      if (token == kBorder) continue;
      auto entry = std::find_if(ballot_.begin(), ballot_.end(), [&](const Ballot& b) { return b.token == token; });
      if (entry == ballot_.end()) {
        ballot_.push_back({token, 0, 0, 0.0, i});
        entry = ballot_.end() - 1;
      }
      ++entry->num_votes;
      entry->match_length = std::max(entry->match_length, candidate.match_length);
      entry->weight += candidate.weight;
      if (candidate.weight > candidates_[entry->best].weight) entry->best = i;
    }
  }

  void lead_with(const Candidate& best) {
    draft_.has_lead = true;
    draft_.lead = {.log = best.log,
                   .epoch = logs_[best.log]->epoch(),
                   .next = best.next,
                   .num_matched = best.match_length,
                   .misses = best.misses};
  }

  void keep_voters_of(Token token) {
    std::size_t kept = 0;
    for (const Candidate& candidate : candidates_) {
      if (guess(candidate) == token) candidates_[kept++] = candidate;
    }
    candidates_.resize(kept);
    for (Candidate& candidate : candidates_) ++candidate.next;
  }

  std::span<const TokenLog* const> logs_;
  const Calibration& calibration_;
  Draft& draft_;
  std::vector<Candidate> candidates_;
  std::vector<Ballot> ballot_;
};

}  // namespace

void Draft::clear() {
  nodes.clear();
  votes.clear();
  num_issued = 0;
  num_scored = 0;
  has_lead = false;
}

void Drafter::draft(std::span<const TokenLog* const> logs, std::span<const Cursor> cursors,
                    const Calibration& calibration, unsigned max_tokens, Draft& draft) const {
  draft.clear();
  if (max_tokens == 0) return;
  Chain chain(logs, calibration, draft);
  chain.gather(cursors, settings_.max_candidates);
  double cumulative = 1.0;
  unsigned num_shadows = 0;
  while (draft.nodes.size() < max_tokens && num_shadows < kShadowNodes && chain.extend()) {
    cumulative *= calibration.acceptance.probability(draft.nodes.back().cell);
    if (num_shadows > 0 || cumulative < settings_.min_probability) {
      ++num_shadows;
    } else {
      ++draft.num_issued;
    }
  }
}

std::size_t Drafter::score(Draft& draft, std::span<const Token> committed, Calibration& calibration) {
  if (committed.empty()) return 0;
  for (const Draft::Vote& vote : draft.votes) calibration.trust.record(vote.cell, vote.token == committed[0]);
  draft.votes.clear();
  std::size_t num_accepted = 0;
  for (const Token token : committed) {
    if (draft.num_scored >= draft.nodes.size()) break;
    const bool issued = draft.num_scored < draft.num_issued;
    const Draft::Node& node = draft.nodes[draft.num_scored++];
    const bool right = node.token == token;
    calibration.acceptance.record(node.cell, right);
    if (!right) {
      draft.nodes.clear();
      break;
    }
    num_accepted += issued ? 1 : 0;
  }
  return num_accepted;
}

void Drafter::follow(Draft& draft, std::vector<Cursor>& cursors, std::span<const TokenLog* const> logs,
                     std::span<const Token> committed) {
  if (draft.has_lead) cursors.insert(cursors.begin(), draft.lead);
  draft.has_lead = false;
  std::size_t kept = 0;
  for (std::size_t i = 0; i < cursors.size() && kept < kMaxCursors; ++i) {
    Cursor cursor = cursors[i];
    const TokenLog* log = logs[cursor.log];
    const bool alive = log != nullptr && std::all_of(committed.begin(), committed.end(), [&](Token token) {
      return advance(cursor, *log, token);
    });
    const bool repeated = std::any_of(cursors.begin(), cursors.begin() + static_cast<std::ptrdiff_t>(kept),
                                      [&](const Cursor& other) {
                                        return other.log == cursor.log && other.next == cursor.next;
                                      });
    if (alive && !repeated) cursors[kept++] = cursor;
  }
  cursors.resize(kept);
}

}  // namespace paceline
