#include "round_sums.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "validation.hpp"

namespace paceline {

RoundSums::RoundSums(std::size_t num_places, std::vector<std::int64_t> caps)
    : caps_(std::move(caps)), sums_(num_places, std::vector<RoundSum>(caps_.size())) {
  for (const std::int64_t cap : caps_) check_range("caps", cap, 0, "give numbers of tokens", INT32_MAX);
}

void RoundSums::add(const RoundRows& rows) {
  const std::size_t num = rows.places.size();
  for (const std::size_t size : {rows.drafted.size(), rows.committed.size()}) {
    if (size != num) refuse("rows", std::to_string(size) + " long", "give one for each of " + std::to_string(num));
  }
  if (!rows.more_seconds.empty() && rows.more_seconds.size() != num) {
    refuse("more_seconds", std::to_string(rows.more_seconds.size()) + " long", "give " + std::to_string(num) + " or none");
  }
  for (const std::int64_t place : rows.places) {
    check_range("places", place, INT64_MIN, "give more places", static_cast<std::int64_t>(sums_.size()) - 1);
  }
  for (std::size_t i = 0; i < num; ++i) {
    const std::int64_t committed = rows.committed[i];
    if (rows.places[i] < 0 || committed < 1) continue;
    std::vector<RoundSum>& sums = sums_[static_cast<std::size_t>(rows.places[i])];
    const double base_seconds = rows.base_seconds + (rows.more_seconds.empty() ? 0.0 : rows.more_seconds[i]);
    for (std::size_t c = 0; c < caps_.size(); ++c) {
      // all but the last of these rounds are drafted for as far as the cap lets them, and all of it is right
      const std::int64_t cap = caps_[c];
      const std::int64_t full_rounds = (committed - 1) / (cap + 1);
      const std::int64_t last = std::clamp<std::int64_t>(rows.drafted[i] - full_rounds * (cap + 1), 0, cap);
      const auto num_rounds = static_cast<double>(full_rounds + 1);
      const auto num_drafted = static_cast<double>(full_rounds * cap + last);
      sums[c][0] += static_cast<double>(committed);
      sums[c][1] += num_rounds * base_seconds + num_drafted * rows.token_seconds;
      sums[c][2] += num_rounds;
    }
  }
}

}  // namespace paceline
