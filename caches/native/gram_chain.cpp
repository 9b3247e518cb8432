#include "gram_chain.hpp"

#include <algorithm>
#include <utility>

namespace paceline {
namespace {

constexpr unsigned kMinHeadBits = 4;
constexpr std::size_t kPositionsPerHead = 2;  // most k-grams repeat, so buckets stay near one gram each
constexpr std::size_t kLeastHugeBytes = std::size_t{4} << 20;
constexpr unsigned kMaxTokenBits = 18;        // a head for every token of the largest vocabularies

}  // namespace

unsigned GramChain::bits_for(std::size_t num_positions) const {
  const unsigned most = gram_ == 1 ? kMaxTokenBits : 32;
  unsigned bits = kMinHeadBits;
  while (bits < most && (kPositionsPerHead << bits) < num_positions) ++bits;
  return bits;
}

void GramChain::clear(unsigned bits) {
  if (heads_.size() != std::size_t{1} << bits) {
    Buffer<Position> heads;
    heads.resize(std::size_t{1} << bits);
    if (heads.num_bytes() >= kLeastHugeBytes) heads.prefer_huge_pages();
    heads_ = std::move(heads);
    bits_ = bits;
  }
  std::fill_n(heads_.data(), heads_.size(), kNone);
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
