#include "token_log.hpp"

#include <algorithm>
#include <array>
#include <cassert>
#include <stdexcept>
#include <utility>

namespace paceline {
namespace {

constexpr unsigned kMinHeadBits = 4;
constexpr std::size_t kPositionsPerHead = 2;  // most k-grams repeat, so buckets stay near one gram each

// Fibonacci hashing over the tokens (Knuth, The Art of Computer Programming 3, 6.4): the high bits are well mixed.
constexpr std::uint64_t kMultiplier = 0x9E3779B97F4A7C15ull;

}  // namespace

std::uint32_t GramChain::bucket(const Token* last) const {
  std::uint64_t hash = 0;
  for (unsigned i = 0; i < gram_; ++i) {
    hash = (hash ^ static_cast<std::uint32_t>(*(last - i))) * kMultiplier;
    hash ^= hash >> 32;
  }
  return static_cast<std::uint32_t>((hash * kMultiplier) >> (64 - bits_));
}

TokenLog::TokenLog(std::size_t capacity, Position max_end) : capacity_(capacity), max_end_(max_end) {}

void TokenLog::append(std::span<const Token> tokens) {
  reserve(tokens.size());
  for (const Token token : tokens) push(token);
}

void TokenLog::append_sequence(std::span<const Token> tokens) {
  if (tokens.empty()) return;
  if (capacity_ != 0 && tokens.size() >= capacity_) tokens = tokens.last(capacity_ - 1);
  reserve(tokens.size() + 1);
  for (const Token token : tokens) push(token);
  push(kBorder);
}

void TokenLog::truncate(Position size) {
  assert(capacity_ == 0 && size <= end_);
  while (end_ > size) {
    const Position last = end_ - 1;
    run_ = run_at(last);
    if (has_gram(long_.gram())) unindex(long_, last);
    if (has_gram(short_.gram())) unindex(short_, last);
    end_ = last;
  }
  run_ = end_ > begin_ ? run_at(end_ - 1) : 0;
}

void TokenLog::blank(Position begin, Position end) {
  assert(begin >= begin_ && end <= end_ && at(end - 1) == kBorder);
  for (Position position = begin; position < end; ++position) tokens_[slot(position)] = kBorder;
}

void TokenLog::forget_before(Position begin) {
  assert(capacity_ != 0 && begin <= end_);
  begin_ = std::max(begin_, begin);
}

Position TokenLog::newest(const GramChain& chain, const Token* last) const {
  if (chain.heads_.size() == 0) return kNone;
  const Position found = chain.newest(chain.bucket(last));
  return found != kNone && found >= begin_ ? found : kNone;
}

std::size_t TokenLog::num_bytes() const {
  return tokens_.num_bytes() + long_.heads_.num_bytes() + long_.previous_.num_bytes() +
         short_.heads_.num_bytes() + short_.previous_.num_bytes();
}

void TokenLog::reserve(std::size_t extra) {
  const std::size_t wanted = end_ + extra;
  if (wanted >= max_end_) {
    if (capacity_ == 0 || size() + extra >= max_end_) throw std::length_error("token log is full");
    renumber();
  }
  std::size_t slots = static_cast<std::size_t>(end_) + extra;
  if (capacity_ != 0) slots = std::min(slots, capacity_);
  if (slots > tokens_.size()) {
    slots = std::max(slots, tokens_.size() + tokens_.size() / 4);
    if (capacity_ != 0) slots = std::min(slots, capacity_);
    tokens_.resize(slots);
  }
  for (GramChain* chain : {&long_, &short_}) {
    if (chain->previous_.size() < tokens_.size()) chain->previous_.resize(tokens_.size());
    unsigned bits = std::max(chain->bits_, kMinHeadBits);
    while ((kPositionsPerHead << bits) < std::min(slots, size() + extra)) ++bits;
    if (bits != chain->bits_) resize_heads(*chain, bits);
  }
}

void TokenLog::push(Token token) {
  if (capacity_ != 0) {
    if (size() == capacity_) ++begin_;
    if (end_ - lap_ == capacity_) lap_ = end_;
  }
  const Position position = end_++;
  tokens_[slot(position)] = token;
  run_ = token == kBorder ? 0 : static_cast<unsigned>(std::min<std::size_t>({run_ + 1u, kMaxGram, size()}));
  for (GramChain* chain : {&long_, &short_}) {
    if (has_gram(chain->gram())) {
      index(*chain, position);
    } else {
      chain->previous_[slot(position)] = kNone;
    }
  }
}

std::uint32_t TokenLog::bucket_at(const GramChain& chain, Position position) const {
  std::array<Token, kMaxGram> gram;
  for (unsigned i = 0; i < chain.gram(); ++i) gram[kMaxGram - 1 - i] = at(position - i);
  return chain.bucket(&gram[kMaxGram - 1]);
}

void TokenLog::index(GramChain& chain, Position position) {
  Position& head = chain.heads_[bucket_at(chain, position)];
  chain.previous_[slot(position)] = head;
  head = position;
}

void TokenLog::unindex(GramChain& chain, Position position) {
  Position& head = chain.heads_[chain.bucket(&tokens_[position])];
  assert(head == position);
  head = chain.previous_[position];
}

void TokenLog::resize_heads(GramChain& chain, unsigned bits) {
  Buffer<Position> heads;
  heads.resize(std::size_t{1} << bits);
  std::fill_n(heads.data(), heads.size(), kNone);
  chain.heads_ = std::move(heads);
  chain.bits_ = bits;
  unsigned run = 0;
  for (Position position = begin_; position < end_; ++position) {
    run = at(position) == kBorder ? 0 : run + 1;
    if (run >= chain.gram()) index(chain, position);
  }
}

void TokenLog::renumber() {
  const Position shift = begin_;
  const auto renumbered = [shift](Position position) {
    return position == kNone || position < shift ? kNone : position - shift;
  };
  for (GramChain* chain : {&long_, &short_}) {
    for (std::size_t i = 0; i < chain->heads_.size(); ++i) {
      chain->heads_[i] = renumbered(chain->heads_[i]);
    }
    for (Position position = begin_; position < end_; ++position) {
      Position& previous = chain->previous_[slot(position)];
      previous = renumbered(previous);
    }
  }
  begin_ = 0;
  end_ -= shift;
  lap_ -= shift;
  ++epoch_;
}

unsigned TokenLog::run_at(Position position) const {
  unsigned run = 0;
  while (run < kMaxGram && position - begin_ + 1 > run && at(position - run) != kBorder) ++run;
  return run;
}

std::string TokenLog::check() const {
  if (begin_ > end_) return "the log begins after its end";
  if (capacity_ != 0 && size() > capacity_) return "the log holds more tokens than its capacity";
  if (std::min<std::size_t>(size(), capacity_ ? capacity_ : size()) > tokens_.size()) {
    return "the log holds more tokens than it has slots";
  }
  if (capacity_ != 0 && (lap_ > end_ || end_ - lap_ > capacity_)) return "the lap lies outside the ring";
  for (Position position = begin_; position < end_; ++position) {
    if (at(position) < kBorder) return "position " + std::to_string(position) + " holds no token";
  }
  if (run_ != (empty() ? 0 : run_at(end_ - 1))) return "the run since the last border is wrong";
  for (const GramChain* chain : {&long_, &short_}) {
    if (std::string fault = check_chain(*chain); !fault.empty()) return fault;
  }
  return {};
}

std::string TokenLog::check_chain(const GramChain& chain) const {
  const std::string name = std::to_string(chain.gram()) + "-gram chain: ";
  if (empty() && chain.heads_.size() == 0) return {};
  if (chain.heads_.size() != std::size_t{1} << chain.bits_) return name + "heads are no power of two";
  if (chain.previous_.size() != tokens_.size()) return name + "links and slots differ in number";
  std::size_t num_grams = 0;
  unsigned run = 0;
  for (Position position = begin_; position < end_; ++position) {
    run = at(position) == kBorder ? 0 : run + 1;
    if (run >= chain.gram()) ++num_grams;
  }
  // A gram that begins before the ring's tail is as good as dead, though its last token is alive.
  const Position first = begin_ + chain.gram() - 1;
  std::size_t num_linked = 0;
  for (std::size_t bucket = 0; bucket < chain.heads_.size(); ++bucket) {
    Position newer = end_;
    for (Position at_link = chain.heads_[bucket]; at_link != kNone && at_link >= first;
         at_link = chain.previous_[slot(at_link)]) {
      const std::string where = name + "the link to position " + std::to_string(at_link);
      if (at_link >= newer) return where + " leads to no older position";
      newer = at_link;
      if (at(at_link) == kBorder) continue;  // a stepping stone: its sequence was made borders
      if (run_at(at_link) < chain.gram()) return where + " leads to no gram";
      if (bucket_at(chain, at_link) != bucket) return where + " lies in another gram's bucket";
      ++num_linked;
    }
  }
  if (num_linked != num_grams) {
    return name + std::to_string(num_grams) + " grams, but " + std::to_string(num_linked) + " in their buckets";
  }
  return {};
}

}  // namespace paceline
