#include "validation.hpp"

#include <cmath>
#include <stdexcept>

namespace paceline {
namespace {

std::string number(double value) {
  std::string text = std::to_string(value);
  text.erase(text.find_last_not_of('0') + 1);
  return text.back() == '.' ? text + "0" : text;
}

std::string element(const char* name, std::size_t i) { return std::string(name) + "[" + std::to_string(i) + "]"; }

}  // namespace

void refuse(const std::string& what, const std::string& value, const std::string& fix) {
  throw std::invalid_argument(what + " is " + value + "; " + fix);
}

void check_range(const char* name, std::int64_t value, std::int64_t least, const std::string& fix,
                 std::int64_t most) {
  if (value < least || value > most) refuse(name, std::to_string(value), fix);
}

void check_probability(const char* name, double value) {
  if (!(value > 0 && value <= 1)) refuse(name, number(value), "give a probability above 0 and at most 1");
}

void check_time(double time) {
  if (!std::isfinite(time)) refuse("time", number(time), "give finite seconds");
}

void check_tokens(const char* name, std::span<const Token> tokens) {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0) {
      refuse(element(name, i), std::to_string(tokens[i]), "give token ids of 0 or more (cut padding off first)");
    }
  }
}

void check_offsets(std::span<const std::int64_t> offsets, std::size_t num_rows, std::size_t num_tokens) {
  if (offsets.size() != num_rows + 1) {
    refuse("the number of offsets", std::to_string(offsets.size()),
           "give one more than the " + std::to_string(num_rows) + " handles");
  }
  for (std::size_t i = 0; i < offsets.size(); ++i) {
    const std::int64_t earliest = i == 0 ? 0 : offsets[i - 1];
    if (offsets[i] < earliest || offsets[i] > static_cast<std::int64_t>(num_tokens)) {
      refuse(element("offsets", i), std::to_string(offsets[i]),
             "give rising offsets from 0 to the " + std::to_string(num_tokens) + " tokens");
    }
  }
}

void check_limits(std::span<const std::int32_t> max_tokens, std::size_t num_rows) {
  if (max_tokens.size() != num_rows) {
    refuse("the number of max_tokens", std::to_string(max_tokens.size()),
           "give one for each of the " + std::to_string(num_rows) + " handles");
  }
  for (std::size_t i = 0; i < max_tokens.size(); ++i) {
    if (max_tokens[i] < 0) refuse(element("max_tokens", i), std::to_string(max_tokens[i]), "give 0 or more");
  }
}

}  // namespace paceline
