#include "round_budget.hpp"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <span>

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

// Nodes around the choice over which a token's price is taken: times go up in steps.
constexpr std::size_t kPriceReach = 3;

double seconds_with(const RoundBase& base, std::size_t num_more) {
  const std::size_t last = base.seconds.size() - 1;
  if (num_more <= last) return base.seconds[num_more];
  return base.seconds[last] + base.token_seconds * static_cast<double>(num_more - last);
}

// Nodes by falling chance; of equal ones the earlier first, so that those of a request are its first ones.
std::vector<std::size_t> likeliest_first(const std::vector<double>& chances) {
  std::vector<std::size_t> order(chances.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return chances[a] > chances[b]; });
  return order;
}

// Of each request, its first nodes up to one that is not among the chosen.
std::vector<std::int64_t> count_chosen(const DraftBatch& drafts, std::span<const std::size_t> chosen) {
  std::vector<bool> is_chosen(drafts.prob.size());
  for (const std::size_t node : chosen) is_chosen[node] = true;
  std::vector<std::int64_t> counts;
  for (std::size_t i = 0; i + 1 < drafts.offsets.size(); ++i) {
    auto n = drafts.offsets[i];
    while (n < drafts.offsets[i + 1] && is_chosen[static_cast<std::size_t>(n)]) ++n;
    counts.push_back(n - drafts.offsets[i]);
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
  const std::vector<std::size_t> order = likeliest_first(chances);
  const bool is_known = base.seconds.front() > 0.0;
  choice.tokens = base.tokens;
  double tokens = base.tokens;
  double seconds = base.seconds.front();
  std::size_t num_chosen = 0;
  for (std::size_t n = 1; n <= order.size(); ++n) {
    tokens += chances[order[n - 1]];
    const double with = is_known ? seconds_with(base, n) : 0.0;
    if (tokens * seconds >= choice.tokens * with) {  // of equal ones the most
      num_chosen = n;
      choice.tokens = tokens;
      seconds = with;
    }
  }
  if (is_known) {
    const std::size_t low = num_chosen - std::min(num_chosen, kPriceReach);
    const std::size_t high = num_chosen + kPriceReach;
    const double more = seconds_with(base, high) - seconds_with(base, low);
    choice.price = std::max(0.0, choice.tokens / seconds * more / static_cast<double>(high - low));
  }
  choice.num_kept = count_chosen(drafts, std::span(order).first(num_chosen));
  return choice;
}

std::vector<std::int64_t> count_likelier(const DraftBatch& drafts, double price) {
  return count_from(drafts, chances_of(drafts), price);
}

}  // namespace paceline
