#include "segment.hpp"

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

namespace paceline {
namespace {

constexpr Position kFanOut = 64;

// Distinct next tokens of the entries shown so far, with counts. Lives on the stack of one call.
class NextCounts {
 public:
  static constexpr std::size_t kCapacity =
      CorpusSegment::kMaxCounted + CorpusSegment::kMaxSampled * CorpusSegment::kNumSamples;

  struct Entry {
    Token token;
    Position index;       // first entry with this token
    std::uint32_t count;
  };

  void add(Token token, Position index) {
    std::size_t slot = (static_cast<std::uint32_t>(token) * 0x9E3779B1u) >> (32 - kBits);
    for (; slots_[slot] != 0; slot = (slot + 1) % kSlots) {
      Entry& known = entries_[slots_[slot] - 1u];
      if (known.token == token) {
        ++known.count;
        return;
      }
    }
    entries_[size_] = {token, index, 1};
    slots_[slot] = static_cast<std::uint16_t>(++size_);
  }

  std::size_t size() const { return size_; }
  const Entry& operator[](std::size_t number) const { return entries_[number]; }

 private:
  static constexpr unsigned kBits = 10;
  static constexpr std::size_t kSlots = std::size_t{1} << kBits;
  static_assert(kCapacity * 2 <= kSlots);

  std::size_t size_ = 0;
  std::array<Entry, kCapacity> entries_;
  std::array<std::uint16_t, kSlots> slots_{};
};

// Collects places for one call, from the longest match outwards.
class Collector {
 public:
  // places_per_match: 0 for one place for each next token.
  Collector(const SegmentArrays& arrays, unsigned max_places, unsigned places_per_match,
            std::vector<SegmentPlace>& found)
      : arrays_(arrays), room_(std::min(max_places, CorpusSegment::kMaxFound)), places_per_match_(places_per_match),
        found_(found) {}

  // Takes in an interval that holds the one before it; false when nothing more may be collected.
  bool take(const SegmentInterval& interval) {
    const std::size_t known = counts_.size();
    std::uint64_t scale = 1;
    std::uint64_t per = 1;
    if (interval.size() <= CorpusSegment::kMaxCounted && num_sampled_ == 0) {
      // A token first shown here occurs only in what the interval adds to the one before it.
      const bool inner = !counted_.empty();
      for (Position i = interval.first; i < (inner ? counted_.first : interval.last); ++i) add(i);
      for (Position i = inner ? counted_.last : interval.last; i < interval.last; ++i) add(i);
      counted_ = interval;
    } else {
      if (num_sampled_ == CorpusSegment::kMaxSampled) return false;
      ++num_sampled_;
      scale = interval.size();
      per = CorpusSegment::kNumSamples;
      sample(interval);
    }
    emit(known, interval, scale, per);
    return room_ > 0;
  }

 private:
  void add(Position index) { counts_.add(arrays_.next[index], index); }

  void sample(const SegmentInterval& interval) {
    std::array<Token, CorpusSegment::kNumSamples> tokens;  // read first and counted then: the reads wait side by side
    const auto index = [&](std::uint64_t i) {
      return interval.first + static_cast<Position>(i * interval.size() / tokens.size());
    };
    for (std::uint64_t i = 0; i < tokens.size(); ++i) tokens[i] = arrays_.next[index(i)];
    for (std::uint64_t i = 0; i < tokens.size(); ++i) counts_.add(tokens[i], index(i));
  }

  // The tokens first shown since `known` of them were, likeliest first. Their numbers are sorted, not the entries, which
  // are found by number.
  void emit(std::size_t known, const SegmentInterval& interval, std::uint64_t scale, std::uint64_t per) {
    std::array<std::uint16_t, NextCounts::kCapacity> numbers;
    const std::span fresh(numbers.data(), counts_.size() - known);
    std::iota(fresh.begin(), fresh.end(), static_cast<std::uint16_t>(known));
    const std::size_t num_taken = std::min<std::size_t>(room_, fresh.size());
    const auto likelier = [this](std::uint16_t a, std::uint16_t b) {
      return counts_[a].count != counts_[b].count ? counts_[a].count > counts_[b].count
                                                  : counts_[a].index < counts_[b].index;
    };
    std::partial_sort(fresh.begin(), fresh.begin() + static_cast<std::ptrdiff_t>(num_taken), fresh.end(), likelier);
    for (const std::uint16_t number : fresh.first(num_taken)) {
      const NextCounts::Entry& entry = counts_[number];
      const auto count = static_cast<std::uint32_t>(entry.count * scale / per);
      const std::uint32_t num_alike = share_of(entry.count, count, interval.size());
      if (num_alike == 0) break;  // the rest are rarer still
      const SegmentPlace place{.next = arrays_.places[entry.index],
                               .match_length = interval.match_length,
                               .count = count,
                               .total = interval.size(),
                               .num_alike = num_alike};
      found_.push_back(place);
      if (num_alike > 1) add_alike(entry, place, interval, per);
      room_ -= num_alike;
    }
  }

  // How many places stand for a token that was seen `num_seen` times in what was counted, `count` times in all.
  std::uint32_t share_of(std::uint32_t num_seen, std::uint32_t count, std::uint32_t total) const {
    if (room_ == 0) return 0;
    if (places_per_match_ == 0) return 1;
    const std::uint64_t wanted = (std::uint64_t{2} * count * places_per_match_ + total) / (std::uint64_t{2} * total);
    return static_cast<std::uint32_t>(std::min<std::uint64_t>({wanted, num_seen, room_}));
  }

  // The token's other places, evenly spread over those that were counted or, of a sampled interval, looked at.
  void add_alike(const NextCounts::Entry& entry, SegmentPlace place, const SegmentInterval& interval,
                 std::uint64_t num_samples) {
    const bool is_sampled = num_samples > 1;
    const std::uint64_t num_entries = is_sampled ? num_samples : interval.size();
    std::uint64_t seen = 0;
    for (std::uint64_t i = 0; i < num_entries; ++i) {
      const Position index = interval.first + static_cast<Position>(is_sampled ? i * interval.size() / num_samples : i);
      if (arrays_.next[index] != entry.token) continue;
      if (seen > 0 && seen * place.num_alike / entry.count != (seen - 1) * place.num_alike / entry.count) {
        place.next = arrays_.places[index];
        found_.push_back(place);
      }
      ++seen;
    }
  }

  const SegmentArrays& arrays_;
  unsigned room_;
  unsigned places_per_match_;
  std::vector<SegmentPlace>& found_;
  NextCounts counts_;
  SegmentInterval counted_;
  unsigned num_sampled_ = 0;
};

// Where a pattern falls among sorted places: the first entry not below it, and how many of the pattern's tokens the
// entries on both sides of that border have.
struct Fall {
  Position entry;
  unsigned below;  // agreement of entry - 1, 0 if that is outside the range
  unsigned above;  // agreement of entry, 0 if that is outside the range
};

// Binary search among the entries first to last, which all agree with the pattern's first token; both ends' agreements
// are carried along, so that no token is compared twice on the way (Manber and Myers). `token_at(k)` is the pattern's
// token k, read backwards, never a border.
template <typename TokenAt>
Fall fall(const SegmentArrays& arrays, Position first, Position last, unsigned length, TokenAt token_at) {
  Position low = first;
  Position high = last;
  unsigned below = 1;
  unsigned above = 1;
  while (low < high) {
    const Position middle = low + (high - low) / 2;
    const Position place = arrays.places[middle];
    __builtin_prefetch(arrays.places.data() + low + (middle - low) / 2);  // one of these two is next
    __builtin_prefetch(arrays.places.data() + middle + 1 + (high - middle - 1) / 2);
    const Token* before = arrays.tokens.data() + place - 1;
    // In a file in order the text's first border ends every comparison; `limit` does in one that only claims to be.
    const unsigned limit = std::min(length, place);
    unsigned k = std::min(below, above);
    while (k < limit && *(before - k) == token_at(k)) ++k;
    if (k >= length || (k < limit && *(before - k) > token_at(k))) {
      high = middle;
      above = k;
    } else {
      low = middle + 1;
      below = k;
    }
  }
  return {low, low > first ? below : 0, low < last ? above : 0};
}

}  // namespace

CorpusSegment::CorpusSegment(const std::string& path)
    : file_(path), counts_(file_.counts()), arrays_(file_.arrays()) {
  levels_.push_back(arrays_.shared);
  while (levels_.back().size() > kFanOut) {
    const auto lower = levels_.back();
    std::vector<std::uint8_t> minima;
    minima.reserve(lower.size() / kFanOut + 1);
    for (std::size_t at = 0; at < lower.size(); at += kFanOut) {
      minima.push_back(std::ranges::min(lower.subspan(at, std::min<std::size_t>(kFanOut, lower.size() - at))));
    }
    minima_.push_back(std::move(minima));
    levels_.push_back(minima_.back());
  }
}

// First entry from `entry` on that shares fewer than `length` >= 1 tokens with the one before it; there is one, as the
// end shares 0. O(log n).
Position CorpusSegment::first_below(Position entry, unsigned length) const {
  std::size_t level = 0;
  std::size_t at = entry;
  while (levels_[level][at] >= length) {
    ++at;
    while (at % kFanOut == 0 && level + 1 < levels_.size()) {
      at /= kFanOut;
      ++level;
    }
  }
  for (; level > 0; --level) {
    at *= kFanOut;
    while (levels_[level - 1][at] >= length) ++at;
  }
  return static_cast<Position>(at);
}

// Last entry up to `entry` that shares fewer than `length` >= 1 tokens with the one before it; the first one does.
Position CorpusSegment::last_below(Position entry, unsigned length) const {
  std::size_t level = 0;
  std::size_t at = entry;
  while (levels_[level][at] >= length) {
    while (at % kFanOut == 0 && level + 1 < levels_.size()) {
      at /= kFanOut;
      ++level;
    }
    --at;
  }
  for (; level > 0; --level) {
    at = std::min((at + 1) * kFanOut, levels_[level - 1].size()) - 1;
    while (levels_[level - 1][at] >= length) --at;
  }
  return static_cast<Position>(at);
}

SegmentInterval CorpusSegment::around(Position entry, unsigned match_length) const {
  return {last_below(entry, match_length), first_below(entry + 1, match_length), match_length};
}

SegmentInterval CorpusSegment::locate(std::span<const Token> context) const {
  if (context.empty() || context.back() < 0 || static_cast<std::uint64_t>(context.back()) >= counts_.vocabulary) {
    return {};
  }
  const auto token = static_cast<std::size_t>(context.back());
  const Position first = arrays_.first[token];
  const Position last = arrays_.first[token + 1];
  if (first == last) return {};
  const auto limit = static_cast<unsigned>(std::min<std::size_t>(context.size(), kMaxSegmentMatch));
  const Token* newest = context.data() + context.size() - 1;
  unsigned length = 1;
  while (length < limit && *(newest - length) >= 0) ++length;  // a context does not go on across a border
  const Fall found = fall(arrays_, first, last, length, [=](unsigned k) { return *(newest - k); });
  if (found.above >= found.below) return around(found.entry, found.above);
  return around(found.entry - 1, found.below);
}

SegmentInterval CorpusSegment::back_off(const SegmentInterval& interval) const {
  const unsigned shorter = std::max(arrays_.shared[interval.first], arrays_.shared[interval.last]);
  if (interval.empty() || shorter == 0) return {};
  return around(interval.first, shorter);
}

SegmentInterval CorpusSegment::extend(const SegmentInterval& interval, Token token) const {
  if (interval.empty() || token < 0 || static_cast<std::uint64_t>(token) >= counts_.vocabulary) return {};
  const Position first = arrays_.first[static_cast<std::size_t>(token)];
  const Position last = arrays_.first[static_cast<std::size_t>(token) + 1];
  const Position place = arrays_.places[interval.first];
  const unsigned length = std::min({interval.match_length + 1, kMaxSegmentMatch, place + 1});
  const Token* newest = arrays_.tokens.data() + place - 1;
  const Fall found = fall(arrays_, first, last, length,
                          [=](unsigned k) { return k == 0 ? token : *(newest - (k - 1)); });
  return found.above == length ? around(found.entry, length) : SegmentInterval{};
}

template <typename Collector>
void CorpusSegment::collect(std::span<const Token> context, Collector&& collector) const {
  SegmentInterval interval = locate(context);
  for (unsigned i = 0; i <= kMaxBackOffs && !interval.empty() && collector.take(interval); ++i) {
    interval = back_off(interval);
  }
}

void CorpusSegment::find(std::span<const Token> context, unsigned max_candidates,
                         std::vector<SegmentPlace>& found) const {
  if (max_candidates > 0) collect(context, Collector(arrays_, max_candidates, 0, found));
}

void CorpusSegment::spread(std::span<const Token> context, unsigned max_places,
                           std::vector<SegmentPlace>& found) const {
  if (max_places > 0) collect(context, Collector(arrays_, max_places, kPlacesPerMatch, found));
}

void CorpusSegment::count_next(const SegmentInterval& interval, unsigned max_candidates,
                               std::vector<SegmentPlace>& found) const {
  if (interval.empty() || max_candidates == 0) return;
  Collector(arrays_, max_candidates, 0, found).take(interval);
}

std::string CorpusSegment::check() const {
  const auto& [tokens, places, next, shared, first] = arrays_;
  const auto broken = [](const char* what, std::size_t i) { return std::string(what) + " " + std::to_string(i); };
  std::vector<bool> seen(tokens.size(), false);
  for (std::size_t i = 0; i < places.size(); ++i) {
    const Position place = places[i];
    const Token last = tokens[place - 1];
    if (last == kBorder || tokens[place] == kBorder || seen[place]) return broken("no place of its own at entry", i);
    seen[place] = true;
    if (next[i] != tokens[place]) return broken("wrong next token at entry", i);
    const auto token = static_cast<std::size_t>(last);
    if (i < first[token] || i >= first[token + 1]) return broken("entry outside its last token's range:", i);
    if (i == 0) continue;
    const unsigned length = shared_length(tokens, places[i - 1], place, kMaxSegmentMatch);
    if (shared[i] != length) return broken("wrong agreement at entry", i);
    if (length < kMaxSegmentMatch && tokens[places[i - 1] - 1 - length] > tokens[place - 1 - length]) {
      return broken("out of order: entry", i);
    }
  }
  std::size_t num_places = 0;
  std::size_t num_tokens = 0;
  for (std::size_t at = 1; at < tokens.size(); ++at) {
    num_tokens += tokens[at] != kBorder;
    num_places += tokens[at] != kBorder && tokens[at - 1] != kBorder;
  }
  if (num_places != places.size() || num_tokens != counts_.num_tokens) return "the header's counts are not the text's";
  return {};
}

}  // namespace paceline
