#include "gram_chain.hpp"

#include <algorithm>
#include <utility>

namespace paceline {
namespace {

constexpr unsigned kMinHeadBits = 4;
constexpr std::size_t kPositionsPerHead = 2;  // most k-grams repeat, so buckets stay near one gram each
constexpr unsigned kMaxTokenBits = 18;        // a head for every token of the largest vocabularies

// Fibonacci hashing over the tokens (Knuth, The Art of Computer Programming 3, 6.4): the high bits are well mixed.
constexpr std::uint64_t kMultiplier = 0x9E3779B97F4A7C15ull;

}  // namespace

std::uint32_t GramChain::bucket(const Token* last) const {
  // A single token is its own perfect hash, and frequent tokens, which have low ids, share cache lines.
  if (gram_ == 1) return static_cast<std::uint32_t>(*last) & static_cast<std::uint32_t>(heads_.size() - 1);
  std::uint64_t hash = 0;
  for (unsigned i = 0; i < gram_; ++i) {
    hash = (hash ^ static_cast<std::uint32_t>(*(last - i))) * kMultiplier;
    hash ^= hash >> 32;
  }
  return static_cast<std::uint32_t>((hash * kMultiplier) >> (64 - bits_));
}

unsigned GramChain::bits_for(std::size_t num_positions) const {
  const unsigned most = gram_ == 1 ? kMaxTokenBits : 32;
  unsigned bits = kMinHeadBits;
  while (bits < most && (kPositionsPerHead << bits) < num_positions) ++bits;
  return bits;
}

void GramChain::clear(unsigned bits) {
  Buffer<Position> heads;
  heads.resize(std::size_t{1} << bits);
  std::fill_n(heads.data(), heads.size(), kNone);
  heads_ = std::move(heads);
  bits_ = bits;
}

void GramChain::renumber(Position shift, std::size_t num_slots) {
  const auto renumber_all = [shift](Buffer<Position>& positions, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      Position& position = positions[i];
      position = position == kNone || position < shift ? kNone : position - shift;
    }
  };
  renumber_all(heads_, heads_.size());
  renumber_all(previous_, num_slots);
}

}  // namespace paceline
