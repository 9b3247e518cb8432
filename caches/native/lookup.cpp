#include "lookup.hpp"

#include <algorithm>

#include "calibration.hpp"

namespace paceline {
namespace {

constexpr unsigned kLinksPerVisit = 2;           // room for links of other grams in the same bucket
constexpr unsigned kSpareLinks = 240;            // and for what has been made borders
constexpr unsigned kMatchedToForgetMisses = 16;  // a copy that went on this long is no longer an edited one

// The tokens before a position of a log, newest first, without a slot to compute for each.
class Backwards {
 public:
  Backwards(const TokenLog& log, Position next, std::size_t limit) : log_(log), next_(next) {
    if (limit > 0) run_ = log.run_to(next - 1);
  }
  Token operator[](std::size_t i) const {
    return i < run_.num_cells ? peek(*(run_.last - i)) : log_.at(next_ - 1 - static_cast<Position>(i));
  }

 private:
  const TokenLog& log_;
  Position next_;
  TokenLog::Run run_{nullptr, 0};
};

class ChainWalk {
 public:
  ChainWalk(const TokenLog& log, std::uint32_t log_number, bool own, std::span<const Token> context,
            unsigned max_candidates, std::vector<Candidate>& found)
      : log_(log), log_number_(log_number), own_(own), context_(context), max_candidates_(max_candidates),
        first_(found.size()), found_(found) {}

  // Collects places with shortest <= match length < below along one chain.
  void collect(const GramChain& chain, unsigned shortest, unsigned below) {
    if (context_.size() < chain.gram()) return;
    auto visits = static_cast<unsigned>(max_candidates_ - (found_.size() - first_));
    unsigned links = visits * kLinksPerVisit + kSpareLinks;
    // The context's own last gram is the newest of its chain and has nothing after it yet.
    Position at = own_ ? log_.older(chain, log_.end() - 1) : log_.newest(chain, &context_.back());
    unsigned rank = 0;
    for (; at != kNone && visits > 0 && links > 0; at = log_.older(chain, at), --links) {
      const unsigned length = match_length(log_, at + 1, context_);
      if (length < shortest) continue;
      --visits;
      const Token guess = log_.at(at + 1);
      if (length < below && guess != kBorder) {
        found_.push_back({.log = log_number_,
                          .next = at + 1,
                          .match_length = length,
                          .num_similar = num_similar(log_, at + 1, context_, length),
                          .rank = rank++,
                          .guess = guess});
      }
    }
  }

 private:
  const TokenLog& log_;
  std::uint32_t log_number_;
  bool own_;
  std::span<const Token> context_;
  unsigned max_candidates_;
  std::size_t first_;
  std::vector<Candidate>& found_;
};

}  // namespace

unsigned match_length(const TokenLog& log, Position next, std::span<const Token> context) {
  const std::size_t limit = std::min<std::size_t>({kMaxMatch, context.size(), next - log.begin()});
  const Backwards before(log, next, limit);
  const Token* last = context.data() + context.size() - 1;
  std::size_t length = 0;
  while (length < limit && before[length] == *(last - length)) ++length;
  return static_cast<unsigned>(length);
}

unsigned num_similar(const TokenLog& log, Position next, std::span<const Token> context, unsigned match_length) {
  const std::size_t limit =
      std::min<std::size_t>({match_length + 1 + kMaxSimilar, context.size(), next - log.begin()});
  const Backwards before(log, next, limit);
  const Token* last = context.data() + context.size() - 1;
  unsigned equal = 0;
  for (std::size_t i = match_length + 1; i < limit; ++i) equal += before[i] == *(last - i) ? 1 : 0;
  return equal;
}

// Asks for what find_candidates will read, both chains at once: each link waits for memory, and so does what it leads
// to.
void prefetch_places(const TokenLog& log, std::span<const Token> context, unsigned num_places) {
  const auto newest = [&](const GramChain& chain) {
    return context.size() < chain.gram() ? kNone : log.newest(chain, &context.back());
  };
  Position of_long = newest(log.long_chain());
  Position of_short = newest(log.short_chain());
  for (unsigned i = 0; i < num_places && (of_long != kNone || of_short != kNone); ++i) {
    if (of_long != kNone) {
      log.prefetch(of_long);
      of_long = log.older(log.long_chain(), of_long);
    }
    if (of_short != kNone) {
      log.prefetch(of_short);
      of_short = log.older(log.short_chain(), of_short);
    }
  }
}

void find_candidates(const TokenLog& log, std::uint32_t log_number, bool own, std::span<const Token> context,
                     unsigned max_candidates, std::vector<Candidate>& found) {
  if (context.empty() || log.empty()) return;
  if (!own) prefetch_places(log, context, max_candidates);
  ChainWalk walk(log, log_number, own, context, max_candidates, found);
  walk.collect(log.long_chain(), kLongGram, kMaxMatch + 1);
  walk.collect(log.short_chain(), kShortGram, kLongGram);
}

bool advance(Cursor& cursor, const TokenLog& log, Token committed) {
  if (cursor.epoch != log.epoch() || cursor.next < log.begin() || cursor.next >= log.end()) return false;
  const Token guess = log.at(cursor.next);
  if (guess == kBorder) return false;  // what comes after it is another sequence, no edited copy
  if (guess == committed) {
    ++cursor.num_matched;
    if (cursor.num_matched > kMatchedToForgetMisses) cursor.misses = 0;
  } else {
    if (cursor.misses >= kMaxMisses || cursor.num_matched == 0) return false;
    ++cursor.misses;
    cursor.num_matched = 0;
  }
  ++cursor.next;
  return true;
}

}  // namespace paceline
