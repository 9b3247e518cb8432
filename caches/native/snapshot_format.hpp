#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace paceline {

// A snapshot that cannot be read: truncated, altered, of another byte order or from a newer version.
class BrokenSnapshot : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// The file: a header (magic, byte-order mark, version, length, checksum of all that follows, number of sections), a
// table of sections (kind, offset, length), the sections. Numbers are in the writer's byte order.
// Versions 1 and 2 were never released.
inline constexpr std::uint32_t kSnapshotVersion = 3;

enum class SectionKind : std::uint32_t { kScopes = 1, kContexts = 2, kLearned = 3 };

// Appends values to a section.
class SectionWriter {
 public:
  template <typename T>
  void put(T value) {
    static_assert(std::is_arithmetic_v<T>);
    put_bytes(&value, sizeof value);
  }
  // A count, then the values.
  template <typename T>
  void put_all(std::span<const T> values) {
    static_assert(std::is_arithmetic_v<T>);
    put<std::uint64_t>(values.size());
    put_bytes(values.data(), values.size_bytes());
  }
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  void put_bytes(const void* data, std::size_t size) {
    const auto* first = static_cast<const std::byte*>(data);
    bytes_.insert(bytes_.end(), first, first + size);
  }

  std::vector<std::byte> bytes_;
};

// Takes values from a section in the order in which they were put; throws BrokenSnapshot where it ends too early.
class SectionReader {
 public:
  explicit SectionReader(std::span<const std::byte> bytes) : rest_(bytes) {}

  template <typename T>
  T get() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  template <typename T>
  std::vector<T> get_all() {
    const auto count = get<std::uint64_t>();
    if (count > rest_.size() / sizeof(T)) {
      throw BrokenSnapshot("the snapshot is broken: a list is longer than its section");
    }
    std::vector<T> values(count);
    const auto bytes = take(count * sizeof(T));
    if (count > 0) std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }
  // A count of things of which each takes `least_bytes` or more.
  std::size_t get_count(std::size_t least_bytes);
  void expect_end() const;

 private:
  std::span<const std::byte> take(std::size_t size);

  std::span<const std::byte> rest_;
};

// A whole snapshot of sections, and back. Reading checks everything that can be checked before a section is looked at.
std::vector<std::byte> join_sections(std::span<const SectionWriter> sections, std::span<const SectionKind> kinds);
// The section of that kind; empty if there is none.
class SnapshotView {
 public:
  explicit SnapshotView(std::span<const std::byte> file);
  SectionReader section(SectionKind kind) const;

 private:
  struct Entry {
    std::uint32_t kind;
    std::span<const std::byte> bytes;
  };
  std::vector<Entry> entries_;
};

}  // namespace paceline
