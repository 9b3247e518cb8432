#include "token_log.hpp"

#include <algorithm>
#include <array>
#include <cassert>
#include <stdexcept>
#include <utility>

namespace paceline {
namespace {

// A wider chain is built this many positions for each token appended: done before the log has grown by a third.
constexpr std::size_t kRebuiltPerToken = 4;
constexpr unsigned kWidening = 2;  // in bits
constexpr std::size_t kIndexedAhead = 32;
constexpr Position kSlotsBeforeHugePages = 1u << 20;

}  // namespace

void run_alone(const std::function<void()>& change) { change(); }

TokenLog::TokenLog(std::size_t capacity, Position max_end) : capacity_(capacity), max_end_(max_end) {
  if (capacity_ == 0) return;
  // Mapped at once, so that readers never see a slot move. Memory is used as slots are written.
  num_slots_ = capacity_;
  tokens_ = Buffer<Token>::mapped(num_slots_);
  said_ = Buffer<std::uint64_t>::mapped(num_said_words(num_slots_));
  for (Indexed* indexed : {&long_, &short_}) {
    indexed->chain.map_slots(num_slots_);
    indexed->chain.clear(indexed->chain.bits_for(0));
  }
}

void TokenLog::append(std::span<const Token> tokens, bool said) {
  assert(capacity_ == 0);
  reserve(tokens.size());
  const Position first = end_;
  for (const Token token : tokens) write(token, said);
  for (Indexed* indexed : {&long_, &short_}) index_run(indexed->chain, first, tokens.size(), first);
}

void TokenLog::clear() {
  assert(capacity_ == 0);
  end_ = 0;
  for (Indexed* indexed : {&long_, &short_}) indexed->chain.clear(indexed->chain.bits_for(num_slots_));
}

void TokenLog::truncate(Position size) {
  assert(capacity_ == 0 && size <= end_);
  while (end_ > size) {
    const Position last = end_ - 1;
    for (Indexed* indexed : {&long_, &short_}) {
      GramChain& chain = indexed->chain;
      if (end_ >= chain.gram()) chain.unlink_newest(chain.bucket(&tokens_[last]), last);
    }
    end_ = last;
  }
}

Position TokenLog::append_sequence(std::span<const Token> tokens, std::size_t num_read, const Alone& alone) {
  assert(capacity_ != 0);
  if (tokens.empty()) return 0;
  num_read = std::min(num_read, tokens.size());
  if (tokens.size() >= capacity_) {
    const std::size_t num_cut = tokens.size() - (capacity_ - 1);
    tokens = tokens.subspan(num_cut);
    num_read -= std::min(num_read, num_cut);
  }
  const Position sunk = make_room(tokens.size() + 1, alone);
  for (Indexed* indexed : {&long_, &short_}) widen(*indexed, tokens.size(), alone);
  const Position first = end_;
  for (const Token token : tokens.first(num_read)) write(token, false);
  for (const Token token : tokens.subspan(num_read)) write(token, true);
  write(kBorder, false);
  for (Indexed* indexed : {&long_, &short_}) {
    index_run(indexed->chain, first, tokens.size(), 0);
    indexed->chain.set_unlinked(slot(end_ - 1));
    if (indexed->wider == nullptr) continue;
    rebuild(*indexed, kRebuiltPerToken * tokens.size());
    if (indexed->num_rebuilt == end_) adopt(*indexed, alone);
  }
  return sunk;
}

void TokenLog::blank(Position begin, Position end) {
  assert(begin >= begin_ && end <= end_ && at(end - 1) == kBorder);
  for (Position position = begin; position < end; ++position) tokens_[slot(position)] = kBorder;
}

void TokenLog::forget_before(Position begin) {
  assert(capacity_ != 0 && begin <= end_);
  begin_ = std::max(begin_, begin);
}

std::size_t TokenLog::num_bytes() const {
  std::size_t per_slot = sizeof(Token);
  std::size_t heads = 0;
  for (const Indexed* indexed : {&long_, &short_}) {
    per_slot += sizeof(Position);
    heads += indexed->chain.num_heads();
  }
  const std::size_t num_written = peek(num_written_);
  return num_written * per_slot + num_written / 8 + heads * sizeof(Position) + peek(wider_bytes_);
}

std::size_t TokenLog::most_bytes(std::size_t capacity) {
  std::size_t bytes = capacity * sizeof(Token) + capacity / 8;
  for (const unsigned gram : {kLongGram, kShortGram}) {
    const std::size_t num_heads = std::size_t{1} << GramChain(gram).bits_for(capacity);
    bytes += 2 * (capacity + num_heads) * sizeof(Position);  // a chain, and the wider one that replaces it
  }
  return bytes;
}

// Grows a log without a capacity. The headroom is indexed for at once: a chat goes on after its prompt.
void TokenLog::reserve(std::size_t extra) {
  const std::size_t wanted = end_ + extra;
  if (wanted >= max_end_) throw std::length_error("token log is full");
  if (wanted > num_slots_) {
    const std::size_t slots = std::max(wanted, wanted + wanted / 8 + 64);
    tokens_.resize(slots);
    said_.resize(num_said_words(slots));
    for (Indexed* indexed : {&long_, &short_}) indexed->chain.resize_slots(slots);
    num_slots_ = slots;
  }
  for (Indexed* indexed : {&long_, &short_}) {
    const unsigned bits = indexed->chain.bits_for(num_slots_);
    if (bits > indexed->chain.bits()) refill(indexed->chain, bits);
  }
}

// Makes the ring's oldest tokens those that `extra` more will not overwrite. Returns how far positions sank.
Position TokenLog::make_room(std::size_t extra, const Alone& alone) {
  Position sunk = 0;
  if (static_cast<std::size_t>(end_) + extra >= max_end_) {
    if (capacity_ + extra >= max_end_) throw std::length_error("token log is full");
    alone([this, &sunk] { sunk = renumber(); });
  }
  const std::size_t num_held = size() + extra;
  if (num_held > capacity_) poke(begin_, begin_ + static_cast<Position>(num_held - capacity_));
  return sunk;
}

void TokenLog::write(Token token, bool said) {
  const Position position = end_;
  if (capacity_ != 0 && position - lap_ == capacity_) poke(lap_, position);
  const std::size_t into = slot(position);
  poke(tokens_[into], token);
  std::uint64_t& word = said_[into / kSaidBits];
  const std::uint64_t bit = std::uint64_t{1} << into % kSaidBits;
  poke(word, said ? word | bit : word & ~bit);
  if (into >= num_written_) {
    poke(num_written_, static_cast<Position>(into + 1));
    if (capacity_ != 0 && num_written_ == kSlotsBeforeHugePages) prefer_huge_pages();
  }
  poke(end_, position + 1, std::memory_order_release);
}

// What a small ring would waste, a large one saves in walks: see Buffer.
void TokenLog::prefer_huge_pages() {
  tokens_.prefer_huge_pages();
  for (Indexed* indexed : {&long_, &short_}) {
    indexed->chain.prefer_huge_pages();
    if (indexed->wider != nullptr) indexed->wider->prefer_huge_pages();
  }
}

std::uint32_t TokenLog::bucket_at(const GramChain& chain, Position position) const {
  std::array<Token, kMaxGram> gram;
  for (unsigned i = 0; i < chain.gram(); ++i) gram[kMaxGram - 1 - i] = at(position - i);
  return chain.bucket(&gram[kMaxGram - 1]);
}

// Links the `count` tokens of one sequence from `first` on, of which `run` go before. Heads are fetched ahead, as
// they lie anywhere.
void TokenLog::index_run(GramChain& chain, Position first, std::size_t count, std::size_t run) {
  std::array<std::uint32_t, kIndexedAhead> buckets;
  std::size_t into = slot(first);
  while (count > 0) {
    const std::size_t ahead = std::min({count, kIndexedAhead, num_slots_ - into});
    for (std::size_t i = 0; i < ahead; ++i) {
      if (run + i + 1 < chain.gram()) continue;
      const bool is_whole = into + i + 1 >= chain.gram();  // else the gram begins at the ring's last slots
      buckets[i] = is_whole ? chain.bucket(&tokens_[into + i]) : bucket_at(chain, first + static_cast<Position>(i));
      chain.prefetch_to_link(buckets[i]);
    }
    for (std::size_t i = 0; i < ahead; ++i, ++first) {
      if (++run < chain.gram()) {
        chain.set_unlinked(into + i);
      } else {
        chain.link(buckets[i], first, into + i);
      }
    }
    count -= ahead;
    into = into + ahead == num_slots_ ? 0 : into + ahead;
  }
}

// Begins to give a ring's chain more heads if `extra` more tokens need them.
void TokenLog::widen(Indexed& indexed, std::size_t extra, const Alone& alone) {
  const std::size_t num_held = std::min(size() + extra, capacity_);
  const unsigned bits = indexed.chain.bits_for(num_held);
  if (indexed.wider != nullptr || bits <= indexed.chain.bits()) return;
  auto wider = std::make_unique<GramChain>(indexed.chain.gram());
  wider->map_slots(num_slots_);
  if (num_written_ >= kSlotsBeforeHugePages) wider->prefer_huge_pages();
  wider->clear(std::min(bits + kWidening - 1, indexed.chain.bits_for(capacity_)));
  indexed.wider = std::move(wider);
  indexed.num_rebuilt = begin_;
  indexed.run = 0;
  poke(wider_bytes_, wider_bytes_ + (num_written_ + indexed.wider->num_heads()) * sizeof(Position));
  if (size() > kRebuiltPerToken * extra) return;
  rebuild(indexed, size());
  adopt(indexed, alone);
}

void TokenLog::rebuild(Indexed& indexed, std::size_t num_positions) {
  if (indexed.num_rebuilt < begin_) {
    indexed.num_rebuilt = begin_;
    indexed.run = 0;
  }
  GramChain& wider = *indexed.wider;
  const auto last = static_cast<Position>(std::min<std::size_t>(end_, indexed.num_rebuilt + num_positions));
  while (indexed.num_rebuilt < last) {
    const Position first = indexed.num_rebuilt;
    Position border = first;
    while (border < last && at(border) != kBorder) ++border;
    index_run(wider, first, border - first, indexed.run);
    indexed.run += border - first;
    indexed.num_rebuilt = border;
    if (border == last) break;
    wider.set_unlinked(slot(border));
    indexed.run = 0;
    ++indexed.num_rebuilt;
  }
}

void TokenLog::adopt(Indexed& indexed, const Alone& alone) {
  alone([&indexed] { std::swap(indexed.chain, *indexed.wider); });
  indexed.wider.reset();  // the narrow one is freed beside the readers
  if (long_.wider == nullptr && short_.wider == nullptr) poke(wider_bytes_, std::size_t{0});
}

void TokenLog::refill(GramChain& chain, unsigned bits) {
  chain.clear(bits);
  index_run(chain, 0, end_, 0);
}

Position TokenLog::renumber() {
  const Position shift = std::min(begin_, lap_);  // slot 0 keeps a position, though nothing before begin is alive
  for (Indexed* indexed : {&long_, &short_}) {
    indexed->chain.renumber(shift, num_written_);
    indexed->wider.reset();  // it is begun again when more tokens come
  }
  wider_bytes_ = 0;
  begin_ -= shift;
  end_ -= shift;
  lap_ -= shift;
  ++epoch_;
  return shift;
}

unsigned TokenLog::run_at(Position position) const {
  unsigned run = 0;
  while (run < kMaxGram && position - begin_ + 1 > run && at(position - run) != kBorder) ++run;
  return run;
}

std::string TokenLog::check() const {
  if (begin_ > end_) return "the log begins after its end";
  if (capacity_ != 0 && size() > capacity_) return "the log holds more tokens than its capacity";
  if (size() > num_written_ || num_written_ > num_slots_) return "the log holds more tokens than it has slots";
  if (num_slots_ != tokens_.size()) return "the log counts its slots wrong";
  if (capacity_ != 0 && (lap_ > end_ || end_ - lap_ > capacity_)) return "the lap lies outside the ring";
  for (Position position = begin_; position < end_; ++position) {
    if (at(position) < kBorder) return "position " + std::to_string(position) + " holds no token";
  }
  for (const Indexed* indexed : {&long_, &short_}) {
    if (std::string fault = check_chain(indexed->chain); !fault.empty()) return fault;
  }
  return {};
}

std::string TokenLog::check_chain(const GramChain& chain) const {
  const std::string name = std::to_string(chain.gram()) + "-gram chain: ";
  if (empty() && chain.num_heads() == 0) return {};
  if (chain.num_heads() != std::size_t{1} << chain.bits()) return name + "heads are no power of two";
  if (chain.num_slots() != num_slots_) return name + "links and slots differ in number";
  std::size_t num_grams = 0;
  unsigned run = 0;
  for (Position position = begin_; position < end_; ++position) {
    run = at(position) == kBorder ? 0 : run + 1;
    if (run >= chain.gram()) ++num_grams;
  }
  // A gram that begins before the ring's tail is as good as dead, though its last token is alive.
  const Position first = begin_ + chain.gram() - 1;
  std::size_t num_linked = 0;
  for (std::uint32_t bucket = 0; bucket < chain.num_heads(); ++bucket) {
    Position newer = end_;
    for (Position link = chain.newest(bucket); link != kNone && link >= first; link = chain.previous(slot(link))) {
      const std::string where = name + "the link to position " + std::to_string(link);
      if (link >= newer) return where + " leads to no older position";
      newer = link;
      if (at(link) == kBorder) continue;  // a stepping stone: its sequence was made borders
      if (run_at(link) < chain.gram()) return where + " leads to no gram";
      if (bucket_at(chain, link) != bucket) return where + " lies in another gram's bucket";
      ++num_linked;
    }
  }
  if (num_linked != num_grams) {
    return name + std::to_string(num_grams) + " grams, but " + std::to_string(num_linked) + " in their buckets";
  }
  return {};
}

}  // namespace paceline
