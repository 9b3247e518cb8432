#pragma once

#include <algorithm>
#include <cstddef>
#include <mutex>
#include <utility>
#include <vector>

#include "token_log.hpp"

namespace paceline {

// Emptied contexts whose memory serves the next long prompts: asking the system for pages costs as much as indexing
// what is written into them. Thread-safe.
class SpareContexts {
 public:
  // An empty context; one that has room for `num_tokens`, and not much more, if there is any.
  TokenLog take(std::size_t num_tokens) {
    if (num_tokens < kLeastTokens) return TokenLog(0);
    const std::scoped_lock lock(mutex_);
    auto best = spares_.end();
    for (auto spare = spares_.begin(); spare != spares_.end(); ++spare) {
      const bool fits = spare->num_slots() >= num_tokens && spare->num_slots() <= kMostTimes * num_tokens;
      if (fits && (best == spares_.end() || spare->num_slots() < best->num_slots())) best = spare;
    }
    if (best == spares_.end()) return TokenLog(0);
    TokenLog taken = std::move(*best);
    spares_.erase(best);
    taken.clear();
    return taken;
  }

  // Keeps the memory of a context that nobody needs, if it is worth it.
  void give(TokenLog context) {
    if (context.num_slots() < kLeastTokens || context.num_slots() > kMostTokens) return;
    const std::scoped_lock lock(mutex_);
    spares_.push_back(std::move(context));
    if (spares_.size() > kMostSpares) spares_.erase(spares_.begin());
  }

  std::size_t num_bytes() const {
    const std::scoped_lock lock(mutex_);
    std::size_t bytes = 0;
    for (const TokenLog& spare : spares_) bytes += spare.num_bytes();
    return bytes;
  }

 private:
  static constexpr std::size_t kLeastTokens = 8'192;
  static constexpr std::size_t kMostTokens = 1'048'576;
  static constexpr std::size_t kMostTimes = 4;
  static constexpr std::size_t kMostSpares = 8;

  mutable std::mutex mutex_;
  std::vector<TokenLog> spares_;
};

}  // namespace paceline
