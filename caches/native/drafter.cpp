#include "drafter.hpp"

#include <algorithm>
#include <cmath>

namespace paceline {
namespace {

constexpr std::size_t kMaxCursors = 4;
// Once a copy has gone on for this long, hardly any other place has a say: fewer are looked for.
constexpr unsigned kFollowedLong = 16;
constexpr unsigned kCandidatesBeside = 4;
constexpr double kLearningRate = 0.05;
constexpr float kLeastShare = 0.01f;  // of a place that votes: those with less cost time and change nothing
// Nodes down to this part of min_probability are kept and learned from: what fell silent can rise again.
constexpr double kConsidered = 0.3;

bool is_alive(const TokenLog* log, std::uint32_t epoch, Position next) {
  return log != nullptr && epoch == log->epoch() && next >= log->begin() && next < log->end();
}

// The drafting of one tree.
class Growth {
 public:
  Growth(const Reading& reading, const Trail& trail, const Calibration& calibration, DraftScratch& scratch,
         Draft& draft)
      : reading_(reading), logs_(reading.logs), trail_(trail), calibration_(calibration), draft_(draft),
        found_(scratch.found), corpus_places_(scratch.corpus_places), weights_(scratch.weights),
        voters_(scratch.voters), ballot_(scratch.ballot), frontier_(scratch.frontier) {
    found_.clear();
    weights_.clear();
    voters_.clear();
    frontier_.clear();
  }

  void gather(unsigned max_candidates) {
    const std::span<const Token> context = logs_[0]->tokens();
    for (const TokenLog* log : logs_.subspan(1)) {
      if (log != nullptr && !context.empty()) log->prefetch_newest(&context.back(), context.size());
    }
    const bool follows_long = !trail_.cursors.empty() && trail_.cursors.front().num_matched >= kFollowedLong;
    if (follows_long) max_candidates = std::min(max_candidates, kCandidatesBeside);
    for (const Cursor& cursor : trail_.cursors) add_cursor(cursor, context);
    const std::size_t num_cursors = found_.size();
    for (std::uint32_t i = 0; i < logs_.size(); ++i) {
      if (logs_[i] != nullptr) find_candidates(*logs_[i], i, i == 0, context, max_candidates, found_);
    }
    drop_repeats(num_cursors);
    find_in_corpora(reading_, context, max_candidates, found_, corpus_places_);
    rank();
  }

  void grow(unsigned max_tokens, unsigned max_branches, double min_probability) {
    expand(-1, max_branches, min_probability);
    while (!frontier_.empty() && draft_.issue_order.size() < max_tokens) {
      std::pop_heap(frontier_.begin(), frontier_.end());
      const std::uint32_t node = frontier_.back().node;
      frontier_.pop_back();
      draft_.nodes[node].issued = static_cast<std::int32_t>(draft_.issue_order.size());
      draft_.issue_order.push_back(node);
      if (draft_.issue_order.size() < max_tokens) {
        expand(static_cast<std::int32_t>(node), max_branches, min_probability);
      }
    }
  }

 private:
  void add_cursor(const Cursor& cursor, std::span<const Token> context) {
    const TokenLog* log = logs_[cursor.log];
    if (!is_alive(log, cursor.epoch, cursor.next)) return;
    const Token guess = log->at(cursor.next);
    if (guess == kBorder) return;
    const unsigned length = match_length(*log, cursor.next, context);
    found_.push_back({.log = cursor.log,
                      .next = cursor.next,
                      .match_length = length,
                      .num_similar = num_similar(*log, cursor.next, context, length),
                      .misses = cursor.misses,
                      .num_followed = cursor.num_matched,
                      .guess = guess});
  }

  void drop_repeats(std::size_t num_cursors) {
    const auto cursors = std::span(found_).first(num_cursors);
    const auto is_repeat = [&](const Candidate& found) {
      return std::any_of(cursors.begin(), cursors.end(), [&](const Candidate& cursor) {
        return cursor.log == found.log && cursor.next == found.next;
      });
    };
    const auto first = found_.begin() + static_cast<std::ptrdiff_t>(num_cursors);
    found_.erase(std::remove_if(first, found_.end(), is_repeat), found_.end());
  }

  // Shares of the candidates and of the event that none is right: a softmax of their scores.
  void rank() {
    draft_.longest = 0;
    for (const Candidate& candidate : found_) draft_.longest = std::max(draft_.longest, candidate.match_length);
    const float escape = calibration_.escape_score(draft_.longest, found_.size());
    float highest = escape;
    const std::size_t num_in_logs = found_.size() - corpus_places_.size();
    for (std::size_t i = 0; i < found_.size(); ++i) {
      Candidate& candidate = found_[i];
      const SegmentPlace* place = i < num_in_logs ? nullptr : &corpus_places_[i - num_in_logs];
      const PlaceFeatures features = features_of(place == nullptr ? traits_of(candidate) : traits_of(candidate, *place));
      candidate.share = calibration_.score(features) + (place == nullptr ? 0.0f : evidence_of(*place));
      highest = std::max(highest, candidate.share);
      draft_.places.push_back({candidate, features});
    }
    double total = std::exp(static_cast<double>(escape - highest));
    draft_.escape_share = total;
    for (Draft::Place& place : draft_.places) {
      weights_.push_back(std::exp(static_cast<double>(place.candidate.share - highest)));
      total += weights_.back();
    }
    draft_.escape_share /= total;
    for (std::size_t i = 0; i < weights_.size(); ++i) {
      Candidate& place = draft_.places[i].candidate;
      place.share = static_cast<float>(weights_[i] / total);
      if (place.share < kLeastShare) continue;
      voters_.push_back({place.log, place.next, place.guess, place.share, place.match_length});
    }
  }

  PlaceTraits traits_of(const Candidate& candidate) const {
    const TokenLog& log = *logs_[candidate.log];
    PlaceTraits traits{.source = reading_.source(candidate.log),
                       .was_said = log.was_said(candidate.next),
                       .match_length = candidate.match_length,
                       .longest = draft_.longest,
                       .rank = candidate.rank,
                       .num_similar = candidate.num_similar,
                       .num_followed = candidate.num_followed,
                       .misses = candidate.misses,
                       .age = log.end() - candidate.next};
    if (candidate.log < trail_.anchors.size()) {
      const Anchor& anchor = trail_.anchors[candidate.log];
      if (anchor.next != kNone && anchor.epoch == log.epoch()) {
        traits.has_anchor = true;
        traits.distance = static_cast<std::int64_t>(candidate.next) - static_cast<std::int64_t>(anchor.next);
      }
    }
    return traits;
  }

  PlaceTraits traits_of(const Candidate& candidate, const SegmentPlace& place) const {
    return {.source = Source::kCorpus,
            .match_length = candidate.match_length,
            .longest = draft_.longest,
            .num_similar = candidate.num_similar,
            .count = place.count,
            .total = place.total};
  }

  // Considers the continuations of a node (-1: of the context): one child for each token its voters guess.
  void expand(std::int32_t parent, unsigned max_branches, double min_probability) {
    unsigned depth = 0;
    std::uint32_t first = 0;
    auto last = static_cast<std::uint32_t>(voters_.size());
    double path = 1.0;
    double unlikely = draft_.escape_share;
    if (parent >= 0) {
      const Draft::Node& node = draft_.nodes[static_cast<std::size_t>(parent)];
      depth = node.depth + 1;
      first = node.first;
      last = node.last;
      path = node.path_probability;
      unlikely = 0;
      advance_voters(parent, first, last);
    }
    ballot_.clear();
    double total = unlikely;
    for (std::uint32_t at = first; at < last;) at = next_group(at, last, total);
    sort_ballot();
    if (ballot_.size() > max_branches) ballot_.resize(max_branches);
    for (unsigned rank = 0; rank < ballot_.size(); ++rank) consider(parent, depth, rank, total, path, min_probability);
  }

  // Heaviest first, of equal ones the earlier. By insertion: a ballot is short, and std::stable_sort allocates.
  void sort_ballot() {
    for (auto group = ballot_.begin(); group != ballot_.end(); ++group) {
      const auto place = std::upper_bound(ballot_.begin(), group, *group,
                                          [](const auto& a, const auto& b) { return a.weight > b.weight; });
      std::rotate(place, group, group + 1);
    }
  }

  // Gathers the voters that guess the same token as the one at `at` behind it; returns the end of the group.
  std::uint32_t next_group(std::uint32_t at, std::uint32_t last, double& total) {
    DraftScratch::Voter* const voters = voters_.data();
    const Token token = voters[at].guess;
    DraftScratch::Group group{token, at, at, 0, 0.0, at};
    for (std::uint32_t i = at; i < last; ++i) {
      if (voters[i].guess != token) continue;
      if (i != group.last) std::rotate(voters + group.last, voters + i, voters + i + 1);  // the others keep their order
      const DraftScratch::Voter& voter = voters[group.last];
      if (group.weight == 0.0 || voter.share > voters[group.best].share) group.best = group.last;
      group.weight += static_cast<double>(voter.share);
      group.match_length = std::max(group.match_length, voter.match_length);
      ++group.last;
    }
    if (token != kBorder) {
      total += group.weight;
      ballot_.push_back(group);
    }
    return group.last;
  }

  void consider(std::int32_t parent, unsigned depth, unsigned rank, double total, double path, double min_probability) {
    const DraftScratch::Group& group = ballot_[rank];
    const double share = group.weight / total;
    const DraftScratch::Voter& best = voters_[group.best];
    const NodeTraits traits{.depth = depth,
                            .rank = rank,
                            .num_votes = group.last - group.first,
                            .match_length = std::min(group.match_length + depth, kMaxMatch),
                            .is_own = best.log == 0,
                            .was_said = was_said(best)};
    const Calibration::Knot knot = Calibration::knot_of(Calibration::map_context(traits), share);
    const double probability = calibration_.probability(knot);
    const double reached = path * probability;
    if (reached < min_probability * kConsidered) return;
    draft_.nodes.push_back({.token = group.token,
                            .parent = parent,
                            .depth = depth,
                            .probability = static_cast<float>(probability),
                            .source = reading_.source(best.log),
                            .knot = knot,
                            .path_probability = reached,
                            .first = group.first,
                            .last = group.last});
    if (reached < min_probability) return;
    frontier_.push_back({reached, static_cast<std::uint32_t>(draft_.nodes.size() - 1)});
    std::push_heap(frontier_.begin(), frontier_.end());
  }

  // What is copied from the draft itself is what the model would say.
  bool was_said(const DraftScratch::Voter& voter) const {
    if (reading_.is_corpus(voter.log)) return false;
    const TokenLog& log = *logs_[voter.log];
    return voter.next >= log.end() || log.was_said(voter.next);
  }

  // Moves a node's voters past its token. A copy that reaches the end of the context goes on in the draft itself, as
  // LZ77 copies do, so that a loop is drafted for as long as it may last.
  void advance_voters(std::int32_t node, std::uint32_t first, std::uint32_t last) {
    for (std::uint32_t i = first; i < last; ++i) {
      DraftScratch::Voter& voter = voters_[i];
      ++voter.next;
      if (reading_.is_corpus(voter.log)) {
        voter.guess = reading_.segment(voter.log).at(voter.next);
        continue;
      }
      const TokenLog& log = *logs_[voter.log];
      if (voter.next < log.end()) {
        voter.guess = log.at(voter.next);
      } else {
        voter.guess = voter.log == 0 ? drafted(node, voter.next - log.end()) : kBorder;
      }
    }
  }

  // The `at`-th token of the path to `node`; kBorder past its end.
  Token drafted(std::int32_t node, std::size_t at) const {
    const std::size_t depth = draft_.nodes[static_cast<std::size_t>(node)].depth;
    if (at > depth) return kBorder;
    for (std::size_t up = depth - at; up > 0; --up) node = draft_.nodes[static_cast<std::size_t>(node)].parent;
    return draft_.nodes[static_cast<std::size_t>(node)].token;
  }

  const Reading& reading_;
  std::span<const TokenLog* const> logs_;
  const Trail& trail_;
  const Calibration& calibration_;
  Draft& draft_;
  std::vector<Candidate>& found_;
  std::vector<SegmentPlace>& corpus_places_;
  std::vector<double>& weights_;
  std::vector<DraftScratch::Voter>& voters_;
  std::vector<DraftScratch::Group>& ballot_;
  std::vector<DraftScratch::Open>& frontier_;
};

// One step of stochastic gradient ascent on the log-likelihood of the committed token.
void learn_ranking(const Draft& draft, Token committed, Calibration& calibration) {
  double right = 0;
  for (const Draft::Place& place : draft.places) {
    if (place.candidate.guess == committed) right += static_cast<double>(place.candidate.share);
  }
  const bool found = right > 0;
  for (const Draft::Place& place : draft.places) {
    const auto share = static_cast<double>(place.candidate.share);
    const double wanted = found && place.candidate.guess == committed ? share / right : 0.0;
    calibration.shift(place.features, kLearningRate * (wanted - share));
  }
  calibration.shift_escape(draft.longest, draft.places.size(),
                           kLearningRate * ((found ? 0.0 : 1.0) - draft.escape_share));
}

// Puts the places of logs worth following first: the likeliest that was right, then the likeliest.
void lead_with(const Draft& draft, Token committed, Trail& trail, std::span<const TokenLog* const> logs) {
  const Candidate* right = nullptr;
  const Candidate* best = nullptr;
  for (const Draft::Place& place : draft.places) {
    const Candidate& candidate = place.candidate;
    if (candidate.log >= logs.size()) continue;
    if (best == nullptr || candidate.share > best->share) best = &candidate;
    if (candidate.guess == committed && (right == nullptr || candidate.share > right->share)) right = &candidate;
  }
  const auto put = [&](const Candidate* lead) {
    if (lead == nullptr || logs[lead->log] == nullptr) return;  // its scope may have been dropped since the draft
    const auto repeats = [lead](const Cursor& c) { return c.log == lead->log && c.next == lead->next; };
    std::erase_if(trail.cursors, repeats);
    trail.cursors.insert(trail.cursors.begin(), {.log = lead->log,
                                                 .epoch = logs[lead->log]->epoch(),
                                                 .next = lead->next,
                                                 .num_matched = std::max(lead->match_length, lead->num_followed),
                                                 .misses = lead->misses});
  };
  if (best != right) put(best);
  put(right);
}

}  // namespace

void Draft::clear() {
  nodes.clear();
  issue_order.clear();
  places.clear();
  at = -1;
  alive = false;
}

SourceCounts Draft::num_issued() const {
  SourceCounts counts{};
  for (const std::uint32_t node : issue_order) ++counts[static_cast<std::size_t>(nodes[node].source)];
  return counts;
}

void Drafter::draft(const Reading& reading, const Trail& trail, const Calibration& calibration, unsigned max_tokens,
                    unsigned max_branches, DraftScratch& scratch, Draft& draft) const {
  draft.clear();
  if (max_tokens == 0) return;
  Growth growth(reading, trail, calibration, scratch, draft);
  growth.gather(settings_.max_candidates);
  if (draft.places.empty()) return;
  draft.alive = true;
  growth.grow(max_tokens, max_branches, settings_.min_probability);
}

SourceCounts Drafter::score(Draft& draft, std::span<const Token> committed, Calibration& calibration, Trail& trail,
                            std::span<const TokenLog* const> logs) {
  SourceCounts accepted{};
  if (committed.empty()) return accepted;
  if (!draft.places.empty()) {
    learn_ranking(draft, committed[0], calibration);
    lead_with(draft, committed[0], trail, logs);
    draft.places.clear();
  }
  for (const Token token : committed) {
    if (!draft.alive) break;
    std::int32_t next = -1;
    for (std::size_t i = static_cast<std::size_t>(draft.at + 1); i < draft.nodes.size(); ++i) {
      const Draft::Node& node = draft.nodes[i];
      if (node.parent != draft.at) continue;
      calibration.record(node.knot, node.token == token);
      if (node.token == token) next = static_cast<std::int32_t>(i);
    }
    draft.alive = next >= 0;
    draft.at = next;
    if (next < 0) continue;
    const Draft::Node& node = draft.nodes[static_cast<std::size_t>(next)];
    if (node.issued >= 0) ++accepted[static_cast<std::size_t>(node.source)];
  }
  return accepted;
}

Trail Drafter::foresee(const Draft& draft, const Trail& trail, std::span<const TokenLog* const> logs,
                       std::span<const Token> supposed) {
  Trail foreseen = trail;
  if (!draft.places.empty()) lead_with(draft, supposed[0], foreseen, logs);
  follow(foreseen, logs, supposed);
  return foreseen;
}

void Drafter::follow(Trail& trail, std::span<const TokenLog* const> logs, std::span<const Token> committed) {
  trail.anchors.resize(logs.size());
  std::size_t kept = 0;
  for (std::size_t i = 0; i < trail.cursors.size() && kept < kMaxCursors; ++i) {
    Cursor cursor = trail.cursors[i];
    const TokenLog* log = logs[cursor.log];
    const bool alive = log != nullptr && std::all_of(committed.begin(), committed.end(), [&](Token token) {
      const unsigned matched = cursor.num_matched;
      if (!advance(cursor, *log, token)) return false;
      if (kept == 0 && cursor.num_matched > matched) trail.anchors[cursor.log] = {log->epoch(), cursor.next};
      return true;
    });
    const bool repeated = std::any_of(trail.cursors.begin(), trail.cursors.begin() + static_cast<std::ptrdiff_t>(kept),
                                      [&](const Cursor& other) {
                                        return other.log == cursor.log && other.next == cursor.next;
                                      });
    if (alive && !repeated) trail.cursors[kept++] = cursor;
  }
  trail.cursors.resize(kept);
}

}  // namespace paceline
