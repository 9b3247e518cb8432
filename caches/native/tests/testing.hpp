#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <source_location>
#include <string>
#include <vector>

#include "token_log.hpp"

namespace paceline {

using Tokens = std::vector<Token>;
using Random = std::mt19937;

inline void expect(bool holds, const char* what, std::source_location where = std::source_location::current()) {
  if (holds) return;
  std::fprintf(stderr, "%s:%u: expected that %s\n", where.file_name(), static_cast<unsigned>(where.line()), what);
  std::exit(1);
}

inline void expect_whole(const std::string& fault, std::source_location where = std::source_location::current()) {
  expect(fault.empty(), ("nothing is broken, but: " + fault).c_str(), where);
}

inline Token below(Random& random, Token limit) { return std::uniform_int_distribution<Token>(0, limit - 1)(random); }

inline Tokens some_tokens(Random& random, Token most, Token vocabulary) {
  Tokens tokens(static_cast<std::size_t>(below(random, most + 1)));
  for (Token& token : tokens) token = below(random, vocabulary);
  return tokens;
}

}  // namespace paceline
