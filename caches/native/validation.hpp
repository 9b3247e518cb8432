#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "token_log.hpp"

namespace paceline {

// Refusals of wrong input: std::invalid_argument naming the value, its limit and the fix.

inline constexpr std::int64_t kMinCapacity = 2;  // a token and its border
inline constexpr std::int64_t kMaxCapacity = std::int64_t{1} << 31;

[[noreturn]] void refuse(const std::string& what, const std::string& value, const std::string& fix);
void check_range(const char* name, std::int64_t value, std::int64_t least, const std::string& fix,
                 std::int64_t most = INT64_MAX);
void check_probability(const char* name, double value);
void check_time(double time);
void check_tokens(const char* name, std::span<const Token> tokens);
// Offsets of `num_rows` rows into `num_tokens` tokens: rising, within them.
void check_offsets(std::span<const std::int64_t> offsets, std::size_t num_rows, std::size_t num_tokens);
void check_limits(std::span<const std::int32_t> max_tokens, std::size_t num_rows);

}  // namespace paceline
