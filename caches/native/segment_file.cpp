#include "segment_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <limits>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

namespace paceline {
namespace {

static_assert(std::endian::native == std::endian::little, "segments are little endian");

constexpr std::array<char, 8> kMagic{'P', 'A', 'C', 'E', 'S', 'E', 'G', '\n'};
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kAlignment = 64;
constexpr std::uint64_t kMaxPositions = kMaxEnd;

// The first bytes of the file. The arrays follow in the order of SegmentArrays, each padded with zeros to kAlignment.
struct Header {
  std::array<char, 8> magic = kMagic;
  std::uint32_t version = kVersion;
  std::uint32_t max_match = kMaxSegmentMatch;
  SegmentCounts counts;
  std::uint64_t body_checksum = 0;
  std::array<std::uint64_t, 8> reserved{};
  std::uint64_t header_checksum = 0;  // of everything before it
};
static_assert(std::is_trivially_copyable_v<Header> && sizeof(Header) == 2 * kAlignment);
static_assert(std::has_unique_object_representations_v<Header>);

// Checksum of a stream of 64-bit words in four lanes, which a processor runs side by side. Each step is a bijection of
// a lane, so that a change of one word always shows. It finds damage, not malice: entries are checked besides.
class Checksum {
 public:
  static constexpr std::uint64_t kStep = 32;

  void add(const void* data, std::size_t num_bytes) {
    const auto* bytes = static_cast<const unsigned char*>(data);
    std::array<std::uint64_t, 4> words;
    for (; num_bytes >= sizeof words; bytes += sizeof words, num_bytes -= sizeof words) {
      std::memcpy(words.data(), bytes, sizeof words);
      mix(words);
    }
    if (num_bytes == 0) return;
    words = {};
    std::memcpy(words.data(), bytes, num_bytes);
    mix(words);
  }

  std::uint64_t value() const {
    std::uint64_t sum = 0;
    for (const std::uint64_t lane : lanes_) sum = (std::rotl(sum, 23) ^ lane) * kFactor;
    return sum ^ (sum >> 32);
  }

 private:
  static constexpr std::uint64_t kFactor = 0x9E3779B97F4A7C15u;  // 2^64 / golden ratio, odd

  void mix(const std::array<std::uint64_t, 4>& words) {
    for (std::size_t i = 0; i < words.size(); ++i) lanes_[i] = std::rotl(lanes_[i] ^ words[i], 29) * kFactor;
  }

  std::array<std::uint64_t, 4> lanes_{1, 2, 3, 4};
};

std::uint64_t header_checksum(const Header& header) {
  Checksum sum;
  sum.add(&header, offsetof(Header, header_checksum));
  return sum.value();
}

std::uint64_t padded(std::uint64_t num_bytes) { return (num_bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Bytes of each array, unpadded, in file order.
std::array<std::uint64_t, 5> array_bytes(const SegmentCounts& counts) {
  return {counts.num_positions * sizeof(Token), counts.num_places * sizeof(Position),
          counts.num_places * sizeof(Token), counts.num_places + 1,
          (counts.vocabulary + 1) * sizeof(Position)};
}

[[noreturn]] void fail_system(int code, const std::string& what) {
  throw std::system_error(code, std::generic_category(), what);
}

// A file under a passing name that takes its own at the end, or goes away.
class NewFile {
 public:
  explicit NewFile(const std::string& path) : path_(path), part_(path + ".part-" + std::to_string(::getpid())) {
    descriptor_ = ::open(part_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (descriptor_ < 0) fail_system(errno, part_);
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;
  ~NewFile() {
    if (descriptor_ < 0) return;
    ::close(descriptor_);
    ::unlink(part_.c_str());
  }

  void write(const void* data, std::size_t num_bytes) {
    const auto* bytes = static_cast<const char*>(data);
    while (num_bytes > 0) {
      const ssize_t written = ::write(descriptor_, bytes, num_bytes);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail_system(errno, part_);
      bytes += written;
      num_bytes -= static_cast<std::size_t>(written);
    }
  }

  void publish() {
    if (::fsync(descriptor_) != 0) fail_system(errno, part_);
    if (::rename(part_.c_str(), path_.c_str()) != 0) fail_system(errno, path_);
    ::close(std::exchange(descriptor_, -1));
  }

 private:
  std::string path_;
  std::string part_;
  int descriptor_;
};

SegmentCounts count(std::span<const Token> text) {
  const std::string ends = "; a text starts and ends with a border (-1)";
  if (text.size() < 2 || text.front() != kBorder || text.back() != kBorder) {
    throw std::invalid_argument("token_ids holds " + std::to_string(text.size()) + " entries" + ends);
  }
  if (text.size() > kMaxPositions) {
    throw std::invalid_argument("token_ids holds " + std::to_string(text.size()) + " entries, a segment at most " +
                                std::to_string(kMaxPositions) + "; split it");
  }
  SegmentCounts counts{.num_positions = text.size()};
  for (std::size_t at = 0; at < text.size(); ++at) {
    if (text[at] == kBorder) continue;
    if (text[at] < 0 || text[at] == std::numeric_limits<Token>::max()) {
      throw std::invalid_argument("token_ids[" + std::to_string(at) + "] is " + std::to_string(text[at]) +
                                  "; give ids from 0 to 2147483646, or -1 for a border");
    }
    ++counts.num_tokens;
    counts.num_places += text[at - 1] != kBorder;
    counts.vocabulary = std::max<std::uint64_t>(counts.vocabulary, static_cast<std::uint64_t>(text[at]) + 1);
  }
  return counts;
}

struct Built {
  std::vector<Token> next;
  std::vector<std::uint8_t> shared;
  std::vector<Position> first;
};

// Fills the arrays beside text and places, and makes sure that `places` are the text's places, each once, in order.
Built build(std::span<const Token> text, std::span<const Position> places, const SegmentCounts& counts) {
  if (places.size() != counts.num_places) {
    throw std::invalid_argument("places has " + std::to_string(places.size()) + " entries, the text " +
                                std::to_string(counts.num_places) + " places");
  }
  Built built;
  built.next.resize(places.size());
  built.shared.assign(places.size() + 1, 0);
  built.first.assign(counts.vocabulary + 1, 0);
  std::vector<bool> seen(text.size(), false);
  for (std::size_t i = 0; i < places.size(); ++i) {
    const Position place = places[i];
    const auto refuse = [&](const char* why) {
      throw std::invalid_argument("places[" + std::to_string(i) + "] is " + std::to_string(place) + why);
    };
    if (place < 1 || place >= text.size() || text[place] == kBorder || text[place - 1] == kBorder) {
      refuse(", which is no place of the text");
    }
    if (seen[place]) refuse(" a second time");
    seen[place] = true;
    built.next[i] = text[place];
    ++built.first[static_cast<std::size_t>(text[place - 1]) + 1];
    if (i == 0) continue;
    const unsigned length = shared_length(text, places[i - 1], place, kMaxSegmentMatch);
    // At the first difference a border sorts before every token; beyond kMaxSegmentMatch any order will do.
    if (length < kMaxSegmentMatch && text[places[i - 1] - 1 - length] > text[place - 1 - length]) {
      refuse(", which sorts before the entry in front of it");
    }
    built.shared[i] = static_cast<std::uint8_t>(length);
  }
  for (std::size_t token = 1; token < built.first.size(); ++token) built.first[token] += built.first[token - 1];
  return built;
}

}  // namespace

SegmentFile::SegmentFile(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) fail_system(errno, path);
  struct stat status {};
  const bool known = ::fstat(descriptor, &status) == 0;
  const int error = errno;
  num_bytes_ = known && S_ISREG(status.st_mode) ? static_cast<std::size_t>(status.st_size) : 0;
  void* mapped = num_bytes_ > 0 ? ::mmap(nullptr, num_bytes_, PROT_READ, MAP_SHARED, descriptor, 0) : nullptr;
  const int map_error = errno;
  ::close(descriptor);
  if (!known) fail_system(error, path);
  if (mapped == MAP_FAILED) fail_system(map_error, path);
  if (mapped == nullptr) throw SegmentError(path + " is empty or no plain file; build the segment again");
  data_ = static_cast<const std::byte*>(mapped);
  try {
    check_header(path);
    check_entries(path);
  } catch (...) {
    ::munmap(mapped, num_bytes_);
    throw;
  }
}

SegmentFile::~SegmentFile() { ::munmap(const_cast<std::byte*>(data_), num_bytes_); }

void SegmentFile::check_header(const std::string& path) {
  Header header;
  if (num_bytes_ < sizeof header || std::memcmp(data_, kMagic.data(), kMagic.size()) != 0) {
    throw SegmentError(path + " is no corpus segment; give a file that `paceline corpus add` wrote");
  }
  std::memcpy(&header, data_, sizeof header);
  if (header.version > kVersion) {
    throw SegmentError(path + " has version " + std::to_string(header.version) + ", this Paceline reads up to " +
                       std::to_string(kVersion) + "; update Paceline or build the segment again");
  }
  const std::string remedy = "; build the segment again";
  counts_ = header.counts;
  if (header.header_checksum != header_checksum(header) || header.version == 0 ||
      header.max_match != kMaxSegmentMatch || counts_.num_positions > kMaxPositions ||
      counts_.num_places >= counts_.num_positions || counts_.num_tokens >= counts_.num_positions ||
      counts_.vocabulary > std::numeric_limits<Token>::max()) {
    throw SegmentError(path + " has a damaged header" + remedy);
  }
  std::uint64_t end = sizeof header;
  const auto sizes = array_bytes(counts_);
  std::array<const std::byte*, 5> start;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    start[i] = data_ + std::min<std::uint64_t>(end, num_bytes_);
    end += padded(sizes[i]);
  }
  if (end != num_bytes_) {
    throw SegmentError(path + " has " + std::to_string(num_bytes_) + " bytes, its header says " +
                       std::to_string(end) + remedy);
  }
  Checksum sum;
  sum.add(data_ + sizeof header, num_bytes_ - sizeof header);
  if (sum.value() != header.body_checksum) throw SegmentError(path + " is damaged: wrong checksum" + remedy);
  arrays_ = {.tokens = {reinterpret_cast<const Token*>(start[0]), counts_.num_positions},
             .places = {reinterpret_cast<const Position*>(start[1]), counts_.num_places},
             .next = {reinterpret_cast<const Token*>(start[2]), counts_.num_places},
             .shared = {reinterpret_cast<const std::uint8_t*>(start[3]), counts_.num_places + 1},
             .first = {reinterpret_cast<const Position*>(start[4]), counts_.vocabulary + 1}};
}

// What look-ups rely on: no index leaves its array, and every run of tokens ends at a border. Whether the order is
// right is CorpusSegment::check()'s to say; a wrong one gives wrong drafts, nothing worse.
void SegmentFile::check_entries(const std::string& path) const {
  const auto& [tokens, places, next, shared, first] = arrays_;
  const auto vocabulary = static_cast<Token>(counts_.vocabulary);
  bool sound = !tokens.empty() && tokens.front() == kBorder && tokens.back() == kBorder;
  for (const Token token : tokens) sound &= token >= kBorder && token < vocabulary;
  for (const Position place : places) sound &= place >= 2 && place < tokens.size() - 1;
  for (const Token token : next) sound &= token >= 0 && token < vocabulary;
  for (const std::uint8_t length : shared) sound &= length <= kMaxSegmentMatch;
  sound &= shared.front() == 0 && shared.back() == 0;
  sound &= first.front() == 0 && first.back() == places.size() && std::is_sorted(first.begin(), first.end());
  if (!sound) throw SegmentError(path + " holds impossible entries; build the segment again");
}

void write_segment(const std::string& path, std::span<const Token> text, std::span<const Position> places) {
  Header header;
  header.counts = count(text);
  const Built built = build(text, places, header.counts);
  const std::array<const void*, 5> arrays{text.data(), places.data(), built.next.data(), built.shared.data(),
                                          built.first.data()};
  const auto sizes = array_bytes(header.counts);
  const std::array<std::byte, kAlignment> zeros{};
  Checksum sum;
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    sum.add(arrays[i], sizes[i]);  // counts zeros up to a whole step
    sum.add(zeros.data(), padded(sizes[i]) - (sizes[i] + Checksum::kStep - 1) / Checksum::kStep * Checksum::kStep);
  }
  header.body_checksum = sum.value();
  header.header_checksum = header_checksum(header);
  NewFile file(path);
  file.write(&header, sizeof header);
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    file.write(arrays[i], sizes[i]);
    file.write(zeros.data(), padded(sizes[i]) - sizes[i]);
  }
  file.publish();
}

void reseal_segment(std::span<char> file) {
  Header header;
  std::memcpy(&header, file.data(), sizeof header);
  Checksum sum;
  sum.add(file.data() + sizeof header, file.size() - sizeof header);
  header.body_checksum = sum.value();
  header.header_checksum = header_checksum(header);
  std::memcpy(file.data(), &header, sizeof header);
}

}  // namespace paceline
