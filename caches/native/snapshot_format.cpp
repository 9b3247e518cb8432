#include "snapshot_format.hpp"

#include <algorithm>
#include <bit>

namespace paceline {
namespace {

constexpr char kMagic[8] = {'P', 'A', 'C', 'E', 'S', 'N', 'A', 'P'};
constexpr std::uint32_t kByteOrder = 0x01020304u;
constexpr std::uint32_t kForeignByteOrder = 0x04030201u;

struct Header {
  char magic[8];
  std::uint32_t byte_order;
  std::uint32_t version;
  std::uint64_t num_bytes;  // of the file
  std::uint64_t checksum;   // of what follows the header
  std::uint64_t num_sections;
};
static_assert(sizeof(Header) == 40);

struct TableEntry {
  std::uint32_t kind;
  std::uint32_t reserved;
  std::uint64_t offset;  // in the file
  std::uint64_t num_bytes;
};
static_assert(sizeof(TableEntry) == 24);

[[noreturn]] void broken(const std::string& how) { throw BrokenSnapshot("the snapshot is broken: " + how); }

// Against damage, not against forgery: every word is mixed in by steps that can be undone, so that no changed word
// leaves the sum as it was.
std::uint64_t checksum(std::span<const std::byte> bytes) {
  constexpr std::uint64_t kMultiplier = 0x9E3779B97F4A7C15ull;
  std::uint64_t sum = bytes.size();
  while (!bytes.empty()) {
    std::uint64_t word = 0;
    const std::size_t size = std::min(sizeof word, bytes.size());
    std::memcpy(&word, bytes.data(), size);
    sum = std::rotl((sum ^ word) * kMultiplier, 29);
    bytes = bytes.subspan(size);
  }
  return (sum ^ (sum >> 32)) * kMultiplier;
}

Header header_of(std::span<const std::byte> file) {
  Header header;
  if (file.size() < sizeof header) broken("it has " + std::to_string(file.size()) + " bytes and no header");
  std::memcpy(&header, file.data(), sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) {
    throw BrokenSnapshot("this is no snapshot of a draft memory (its first bytes are not PACESNAP)");
  }
  if (header.byte_order == kForeignByteOrder) {
    throw BrokenSnapshot("the snapshot was written on a machine of another byte order; write it anew on this one");
  }
  if (header.byte_order != kByteOrder) broken("its byte-order mark is damaged");
  if (header.version != kSnapshotVersion) {
    throw BrokenSnapshot("the snapshot has version " + std::to_string(header.version) + ", this Paceline reads " +
                         std::to_string(kSnapshotVersion) + (header.version > kSnapshotVersion ? "; upgrade it, or" : ";") +
                         " start without the snapshot");
  }
  if (header.num_bytes != file.size()) {
    broken("it has " + std::to_string(file.size()) + " bytes instead of " + std::to_string(header.num_bytes));
  }
  if (header.checksum != checksum(file.subspan(sizeof header))) broken("its checksum is wrong");
  return header;
}

}  // namespace

std::size_t SectionReader::get_count(std::size_t least_bytes) {
  const auto count = get<std::uint64_t>();
  if (count > rest_.size() / least_bytes) broken("a count is larger than its section");
  return count;
}

void SectionReader::expect_end() const {
  if (!rest_.empty()) broken(std::to_string(rest_.size()) + " bytes are left over at a section's end");
}

std::span<const std::byte> SectionReader::take(std::size_t size) {
  if (size > rest_.size()) broken("a section ends too early");
  const auto taken = rest_.first(size);
  rest_ = rest_.subspan(size);
  return taken;
}

std::vector<std::byte> join_sections(std::span<const SectionWriter> sections, std::span<const SectionKind> kinds) {
  std::uint64_t num_bytes = sizeof(Header) + sections.size() * sizeof(TableEntry);
  std::vector<TableEntry> table;
  for (std::size_t i = 0; i < sections.size(); ++i) {
    table.push_back({static_cast<std::uint32_t>(kinds[i]), 0, num_bytes, sections[i].bytes().size()});
    num_bytes += sections[i].bytes().size();
  }
  std::vector<std::byte> file;
  file.reserve(num_bytes);
  const auto append = [&file](const void* data, std::size_t size) {
    const auto* first = static_cast<const std::byte*>(data);
    file.insert(file.end(), first, first + size);
  };
  Header header{{}, kByteOrder, kSnapshotVersion, num_bytes, 0, sections.size()};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  append(&header, sizeof header);
  append(table.data(), table.size() * sizeof(TableEntry));
  for (const SectionWriter& section : sections) append(section.bytes().data(), section.bytes().size());
  header.checksum = checksum(std::span(file).subspan(sizeof header));
  std::memcpy(file.data(), &header, sizeof header);
  return file;
}

SnapshotView::SnapshotView(std::span<const std::byte> file) {
  const Header header = header_of(file);
  if (header.num_sections > (file.size() - sizeof header) / sizeof(TableEntry)) broken("its table of sections is cut");
  SectionReader table(file.subspan(sizeof header));
  for (std::uint64_t i = 0; i < header.num_sections; ++i) {
    const auto kind = table.get<std::uint32_t>();
    table.get<std::uint32_t>();
    const auto offset = table.get<std::uint64_t>();
    const auto num_bytes = table.get<std::uint64_t>();
    if (offset > file.size() || num_bytes > file.size() - offset) broken("a section lies outside the file");
    entries_.push_back({kind, file.subspan(offset, num_bytes)});
  }
}

SectionReader SnapshotView::section(SectionKind kind) const {
  for (const Entry& entry : entries_) {
    if (entry.kind == static_cast<std::uint32_t>(kind)) return SectionReader(entry.bytes);
  }
  broken("section " + std::to_string(static_cast<std::uint32_t>(kind)) + " is missing");
}

}  // namespace paceline
