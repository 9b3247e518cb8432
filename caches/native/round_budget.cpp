#include "round_budget.hpp"

#include <algorithm>
#include <cstddef>
#include <functional>

namespace paceline {
namespace {

// Of every node, the chance that it and all before it are accepted.
std::vector<double> chances_of(const DraftBatch& drafts) {
  std::vector<double> chances(drafts.prob.size());
  for (std::size_t i = 0; i + 1 < drafts.offsets.size(); ++i) {
    const auto first = static_cast<std::size_t>(drafts.offsets[i]);
    const auto end = static_cast<std::size_t>(drafts.offsets[i + 1]);
    for (std::size_t n = first; n < end; ++n) {
      const std::int32_t parent = drafts.parent[n];
      const double before = parent < 0 ? 1.0 : chances[first + static_cast<std::size_t>(parent)];
      chances[n] = before * static_cast<double>(drafts.prob[n]);
    }
  }
  return chances;
}

std::vector<std::int64_t> count_from(const DraftBatch& drafts, const std::vector<double>& chances, double price) {
  std::vector<std::int64_t> counts;
  for (std::size_t i = 0; i + 1 < drafts.offsets.size(); ++i) {
    const auto begin = chances.begin() + drafts.offsets[i];
    const auto end = chances.begin() + drafts.offsets[i + 1];
    counts.push_back(std::find_if(begin, end, [price](double chance) { return chance <= price; }) - begin);
  }
  return counts;
}

}  // namespace

RoundChoice choose_nodes(const DraftBatch& drafts, const RoundBase& base) {
  const std::vector<double> chances = chances_of(drafts);
  RoundChoice choice;
  for (std::size_t i = 0; i + 1 < drafts.offsets.size(); ++i) {
    double sum = 0.0;
    for (auto n = drafts.offsets[i]; n < drafts.offsets[i + 1]; ++n) sum += chances[static_cast<std::size_t>(n)];
    choice.expected.push_back(sum);
  }
  choice.tokens = base.tokens;
  std::vector<double> likeliest = chances;
  std::sort(likeliest.begin(), likeliest.end(), std::greater<>());
  double seconds = base.seconds;
  const bool is_known = base.seconds > 0.0 && base.token_seconds > 0.0;
  for (const double chance : likeliest) {
    if (is_known && chance * seconds <= choice.tokens * base.token_seconds) break;
    choice.tokens += chance;
    seconds += base.token_seconds;
  }
  if (is_known) choice.price = choice.tokens / seconds * base.token_seconds;
  choice.num_kept = count_from(drafts, chances, is_known ? choice.price : -1.0);
  return choice;
}

std::vector<std::int64_t> count_likelier(const DraftBatch& drafts, double price) {
  return count_from(drafts, chances_of(drafts), price);
}

}  // namespace paceline
