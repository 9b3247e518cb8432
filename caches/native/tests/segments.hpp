#pragma once

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "segment.hpp"
#include "testing.hpp"

namespace paceline {

// A folder that goes away with its files.
class Folder {
 public:
  Folder() : path_(std::filesystem::temp_directory_path() / "paceline-segment-XXXXXX") {
    std::string name = path_;
    expect(::mkdtemp(name.data()) != nullptr, "a folder can be made");
    path_ = name;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string file(const char* name) const { return path_ / name; }
  bool holds_only(const char* name) const {
    for (const auto& entry : std::filesystem::directory_iterator(path_)) {
      if (entry.path().filename() != name) return false;
    }
    return true;
  }

 private:
  std::filesystem::path path_;
};

// All places of a text that starts and ends with a border, as a segment has them.
inline std::vector<Position> sorted_places(const std::vector<Token>& text) {
  std::vector<Position> places;
  for (Position at = 1; at < text.size(); ++at) {
    if (text[at] != kBorder && text[at - 1] != kBorder) places.push_back(at);
  }
  std::ranges::sort(places, [&](Position a, Position b) {
    const unsigned length = shared_length(text, a, b, kMaxSegmentMatch);
    if (length == kMaxSegmentMatch) return a < b;
    const Token x = text[a - 1 - length];
    const Token y = text[b - 1 - length];
    return x != y ? x < y : a < b;
  });
  return places;
}

// A segment of random text whose file is gone already.
inline std::shared_ptr<const CorpusSegment> some_segment(Random& random, Token vocabulary, std::size_t length) {
  const Folder folder;
  Tokens text{kBorder};
  while (text.size() < length) text.push_back(below(random, 20) == 0 ? kBorder : below(random, vocabulary));
  text.push_back(kBorder);
  write_segment(folder.file("s"), text, sorted_places(text));
  return std::make_shared<const CorpusSegment>(folder.file("s"));
}

}  // namespace paceline
