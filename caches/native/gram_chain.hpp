#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "buffer.hpp"

namespace paceline {

using Token = std::int32_t;
using Position = std::uint32_t;

inline constexpr Position kNone = 0xFFFFFFFFu;      // no position

// A cell that one thread writes while others read it.
template <typename T>
T peek(const T& cell, std::memory_order order = std::memory_order_relaxed) {
  return std::atomic_ref<T>(const_cast<T&>(cell)).load(order);
}
template <typename T>
void poke(T& cell, T value, std::memory_order order = std::memory_order_relaxed) {
  std::atomic_ref<T>(cell).store(value, order);
}

// Odd, and with bits well spread: 2^64 over the golden ratio, and digits of pi.
inline constexpr std::array<std::uint64_t, 4> kMultipliers{0x9E3779B97F4A7C15ull, 0x243F6A8885A308D3ull,
                                                           0x13198A2E03707345ull, 0xA4093822299F31D1ull};

// One family of hashed k-gram chains over the positions of a log, as in LZ77 match finders (zlib's hash chains).
// heads[h] is the newest position whose k-gram hashes to h; previous[slot] the next older one of the same bucket.
class GramChain {
 public:
  explicit GramChain(unsigned gram) : gram_(gram) {}

  unsigned gram() const { return gram_; }
  std::size_t num_heads() const { return heads_.size(); }
  std::size_t num_slots() const { return previous_.size(); }
  // Bucket of the k-gram that ends at *last (the k - 1 tokens before it must be readable). Needs heads.
  //
  // A single token is its own perfect hash, and frequent tokens, which have low ids, share cache lines. Longer grams
  // are hashed by multiplication (Knuth, The Art of Computer Programming 3, 6.4), whose high bits are well mixed.
  std::uint32_t bucket(const Token* last) const {
    if (gram_ == 1) return static_cast<std::uint32_t>(*last) & static_cast<std::uint32_t>(heads_.size() - 1);
    std::uint64_t hash = 0;
    for (unsigned i = 0; i < gram_; ++i) {
      // Products of one gram don't wait for each other.
      hash += static_cast<std::uint32_t>(*(last - i)) * kMultipliers[i % kMultipliers.size()];
    }
    hash ^= hash >> 32;
    return static_cast<std::uint32_t>((hash * kMultipliers[0]) >> (64 - bits_));
  }
  Position newest(std::uint32_t bucket) const { return peek(heads_[bucket], std::memory_order_acquire); }
  Position previous(std::size_t slot) const { return peek(previous_[slot]); }

  // How many heads, as a power of two, suit a log of that many positions.
  unsigned bits_for(std::size_t num_positions) const;
  unsigned bits() const { return bits_; }
  // Empties the chain and gives it 2^bits heads.
  void clear(unsigned bits);
  void resize_slots(std::size_t num_slots) { previous_.resize(num_slots); }
  void prefer_huge_pages() { previous_.prefer_huge_pages(); }
  void map_slots(std::size_t num_slots) { previous_ = Buffer<Position>::mapped(num_slots); }

  void prefetch(std::uint32_t bucket) const { __builtin_prefetch(&heads_[bucket]); }
  void prefetch_to_link(std::uint32_t bucket) const { __builtin_prefetch(&heads_[bucket], 1); }
  // The position becomes the newest of its bucket. Readers that find it see what was written before.
  void link(std::uint32_t bucket, Position position, std::size_t slot) {
    poke(previous_[slot], heads_[bucket]);
    poke(heads_[bucket], position, std::memory_order_release);
  }
  void unlink_newest(std::uint32_t bucket, std::size_t slot) { heads_[bucket] = previous_[slot]; }
  void set_unlinked(std::size_t slot) { poke(previous_[slot], kNone); }
  // Takes `shift` off every position; those below it are gone. `num_slots`: how many slots are in use.
  void renumber(Position shift, std::size_t num_slots);

 private:
  unsigned gram_;
  unsigned bits_ = 0;  // log2 of the number of heads
  Buffer<Position> heads_;
  Buffer<Position> previous_;
};

}  // namespace paceline
