#include "shared_log.hpp"

#include <algorithm>

namespace paceline {

std::size_t SharedLog::capacity_for(std::size_t num_bytes) {
  std::size_t fits = 0;
  for (std::size_t step = std::size_t{1} << 31; step > 0; step /= 2) {
    if (TokenLog::most_bytes(fits + step) <= num_bytes) fits += step;
  }
  return fits;
}

void SharedLog::append(std::span<const Token> tokens, std::size_t num_read, SequenceKey key, double time,
                       const Alone& alone) {
  if (tokens.empty()) return;
  const Position sunk = log_.append_sequence(tokens, num_read, alone);
  if (sunk > 0) {
    for (Sequence& sequence : sequences_) {
      sequence.begin -= sunk;
      sequence.end -= sunk;
    }
  }
  drop_overwritten();
  const auto num_held = static_cast<Position>(std::min(tokens.size() + 1, log_.size()));
  sequences_.push_back({key, time, log_.end() - num_held, log_.end()});
  count_sequences();
}

std::size_t SharedLog::erase(SequenceKey key) {
  return blank_if([key](const Sequence& sequence) { return sequence.key == key; });
}

std::size_t SharedLog::evict_before(double time) {
  std::size_t num_forgotten = 0;
  for (; !sequences_.empty() && sequences_.front().time < time; sequences_.pop_front()) {
    num_forgotten += sequences_.front().num_tokens();
    log_.forget_before(sequences_.front().end);
  }
  count_sequences();
  return num_forgotten + blank_if([time](const Sequence& sequence) { return sequence.time < time; });
}

void SharedLog::drop_overwritten() {
  while (!sequences_.empty() && sequences_.front().end <= log_.begin() + 1) sequences_.pop_front();
  if (!sequences_.empty()) sequences_.front().begin = std::max(sequences_.front().begin, log_.begin());
}

template <typename Predicate>
std::size_t SharedLog::blank_if(Predicate is_forgotten) {
  std::size_t num_forgotten = 0;
  std::erase_if(sequences_, [&](const Sequence& sequence) {
    if (!is_forgotten(sequence)) return false;
    log_.blank(sequence.begin, sequence.end);
    num_forgotten += sequence.num_tokens();
    return true;
  });
  count_sequences();
  return num_forgotten;
}

std::string SharedLog::check() const {
  if (std::string fault = log_.check(); !fault.empty()) return fault;
  Position at = log_.begin();
  const auto is_blank = [this](Position from, Position to) {
    while (from < to && log_.at(from) == kBorder) ++from;
    return from == to;
  };
  for (const Sequence& sequence : sequences_) {
    const std::string where = "sequence at " + std::to_string(sequence.begin);
    if (sequence.begin < at || sequence.end <= sequence.begin || sequence.end > log_.end()) {
      return where + " lies outside the log or in another";
    }
    if (!is_blank(at, sequence.begin)) return "tokens before the " + where + " belong to none";
    for (Position inside = sequence.begin; inside + 1 < sequence.end; ++inside) {
      if (log_.at(inside) == kBorder) return where + " holds a border";
    }
    if (log_.at(sequence.end - 1) != kBorder) return where + " ends without a border";
    at = sequence.end;
  }
  return is_blank(at, log_.end()) ? "" : "tokens at the end belong to no sequence";
}

}  // namespace paceline
