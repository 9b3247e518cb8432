// Tests of corpus segments without Python, built under AddressSanitizer and UndefinedBehaviorSanitizer: files damaged in
// every way, checksums included, must be refused or be harmless.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <source_location>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "segment.hpp"
#include "segments.hpp"
#include "testing.hpp"

namespace paceline {
namespace {

using Bytes = std::vector<char>;

template <typename Error>
void expect_throws(const std::function<void()>& act, std::source_location where = std::source_location::current()) {
  try {
    act();
  } catch (const Error&) {
    return;
  }
  expect(false, "an error is thrown", where);
}

// Sequences over few tokens, so that everything repeats, with some runs long enough to reach kMaxSegmentMatch.
Tokens some_text(Random& random, Token vocabulary, std::size_t length) {
  Tokens text{kBorder};
  while (text.size() < length) {
    const Token kind = below(random, 12);
    if (kind == 0) {
      text.push_back(kBorder);
    } else if (kind == 1) {
      text.insert(text.end(), static_cast<std::size_t>(below(random, 100)), below(random, vocabulary));
    } else {
      text.push_back(below(random, vocabulary));
    }
  }
  text.push_back(kBorder);
  return text;
}

// Tokens before `place` that agree with the end of the context.
unsigned agreement(const Tokens& text, Position place, const Tokens& context) {
  unsigned length = 0;
  while (length < std::min<std::size_t>(context.size(), kMaxSegmentMatch) &&
         text[place - 1 - length] == context[context.size() - 1 - length]) {
    ++length;
  }
  return length;
}

// The longest match, its true counts and what follows them are those of a scan of the whole text.
void test_find() {
  const Folder folder;
  Random random(1);
  for (int round = 0; round < 60; ++round) {
    const Token vocabulary = 1 + below(random, 4);
    const Tokens text = some_text(random, vocabulary, static_cast<std::size_t>(2 + below(random, 400)));
    write_segment(folder.file("s"), text, sorted_places(text));
    const CorpusSegment segment(folder.file("s"));
    expect(segment.check().empty(), "nothing is broken");
    for (int query = 0; query < 40; ++query) {
      Tokens context;
      for (Token left = below(random, 90); left > 0; --left) {
        context.push_back(query % 2 == 0 || context.empty() ? below(random, vocabulary + 1) : context.back());
      }
      unsigned longest = 0;
      std::map<Token, std::uint32_t> counts;
      for (const Position place : sorted_places(text)) {
        const unsigned length = agreement(text, place, context);
        if (length > longest) counts.clear();
        longest = std::max(longest, length);
        if (length == longest && length > 0) ++counts[text[place]];
      }
      const SegmentInterval interval = segment.locate(context);
      expect(interval.match_length == longest, "the longest match is found");
      std::vector<SegmentPlace> found;
      segment.find(context, 16, found);
      for (const SegmentPlace& place : found) {
        if (place.match_length < longest || interval.size() > CorpusSegment::kMaxCounted) continue;
        expect(place.count == counts.at(segment.at(place.next)), "counts are true");
        expect(place.total == interval.size(), "the total is the interval's size");
        counts.erase(segment.at(place.next));
      }
      if (interval.size() <= CorpusSegment::kMaxCounted) expect(counts.empty(), "every next token is found");
      std::set<Token> tokens;
      for (const SegmentPlace& place : found) {
        expect(place.match_length <= agreement(text, place.next, context), "a place matches as far as it says");
        expect(tokens.insert(segment.at(place.next)).second, "a next token is given once");
      }
    }
  }
}

// Places that stand for others: of each match length in proportion to true counts, as many as they say, none twice.
void test_spread() {
  const Folder folder;
  Random random(8);
  for (int round = 0; round < 60; ++round) {
    const Token vocabulary = 1 + below(random, 6);
    const Tokens text = some_text(random, vocabulary, static_cast<std::size_t>(2 + below(random, 1500)));
    write_segment(folder.file("s"), text, sorted_places(text));
    const CorpusSegment segment(folder.file("s"));
    for (int query = 0; query < 40; ++query) {
      Tokens context(static_cast<std::size_t>(1 + below(random, 6)));
      for (Token& token : context) token = below(random, vocabulary);
      const auto most = static_cast<unsigned>(below(random, 30));
      std::vector<SegmentPlace> found;
      segment.spread(context, most, found);
      expect(found.size() <= most, "no more places are given than asked for");
      std::set<Position> positions;
      std::map<Token, unsigned> lengths;
      for (const SegmentPlace& place : found) {
        const Token token = segment.at(place.next);
        expect(token != kBorder && positions.insert(place.next).second, "a place has a token and is given once");
        expect(agreement(text, place.next, context) >= place.match_length, "a place matches as far as it says");
        expect(lengths.try_emplace(token, place.match_length).first->second == place.match_length,
               "a token is given for its longest match");
        expect(place.count <= place.total && place.num_alike <= place.count, "it stands for no fewer than are given");
        const auto alike = std::ranges::count_if(found, [&](const SegmentPlace& other) {
          return segment.at(other.next) == token;
        });
        expect(alike == place.num_alike, "as many are given for a token as they say");
        const double part = static_cast<double>(place.count) / place.total;
        expect(place.num_alike <= part * CorpusSegment::kPlacesPerMatch + 0.51, "in proportion to the counts");
      }
    }
  }
}

// After a drafted token stand exactly the places that are one further and have a token after them.
void test_extend() {
  const Folder folder;
  Random random(2);
  for (int round = 0; round < 100; ++round) {
    const Tokens text = some_text(random, 3, 300);
    const auto places = sorted_places(text);
    write_segment(folder.file("s"), text, places);
    const CorpusSegment segment(folder.file("s"));
    if (places.empty()) continue;
    const Position at = places[static_cast<std::size_t>(below(random, static_cast<Token>(places.size())))];
    const Tokens context(text.begin() + std::max<int>(0, static_cast<int>(at) - 5), text.begin() + at);
    SegmentInterval interval = segment.locate(context);
    while (!interval.empty()) {
      const Token token = below(random, 3);
      const SegmentInterval wider = segment.back_off(interval);
      expect(wider.empty() || (wider.match_length < interval.match_length && wider.size() > interval.size()),
             "backing off shortens the match and adds places");
      const SegmentInterval further = segment.extend(interval, token);
      Position num_places = 0;
      for (Position i = interval.first; i < interval.last; ++i) {
        num_places += text[places[i]] == token && text[places[i] + 1] != kBorder;
      }
      if (interval.match_length < kMaxSegmentMatch) {
        expect(further.size() == num_places, "extending counts what is one token further");
        expect(further.empty() || further.match_length == interval.match_length + 1, "the match grows by one");
      }
      if (further.match_length == kMaxSegmentMatch) break;
      interval = further;
    }
  }
}

Bytes contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void replace(const std::string& path, const Bytes& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

// Every flipped bit and every cut is noticed.
void test_damage_is_noticed() {
  const Folder folder;
  Random random(3);
  const Tokens text = some_text(random, 5, 60);
  write_segment(folder.file("s"), text, sorted_places(text));
  const Bytes whole = contents(folder.file("s"));
  const std::string path = folder.file("damaged");
  for (std::size_t at = 0; at < whole.size(); ++at) {
    Bytes damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << below(random, 8)));
    replace(path, damaged);
    expect_throws<SegmentError>([&] { CorpusSegment segment(path); });
    damaged.assign(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(at));
    replace(path, damaged);
    expect_throws<SegmentError>([&] { CorpusSegment segment(path); });
  }
  replace(path, Bytes(whole.size() + 64, 'x'));
  expect_throws<SegmentError>([&] { CorpusSegment segment(path); });
}

// Files whose checksums fit but whose entries lie are refused, or look-ups stay inside them: the sanitizers watch.
void test_lies_are_harmless() {
  const Folder folder;
  const std::string path = folder.file("lying");
  Random random(4);
  std::size_t num_opened = 0;
  for (int round = 0; round < 4000; ++round) {
    const Tokens text = some_text(random, 3, 80);
    const auto places = sorted_places(text);
    write_segment(path, text, places);
    Bytes bytes = contents(path);
    const auto size = static_cast<Token>(bytes.size());
    for (int lie = 0; lie < 1 + round % 6; ++lie) {
      // Mostly entries that stay in range: those that don't are refused at once.
      const auto at = static_cast<std::size_t>(128 + below(random, size - 128)) / 4 * 4;
      bytes[at] = static_cast<char>(below(random, 66));
    }
    reseal_segment(bytes);
    replace(path, bytes);
    try {
      const CorpusSegment segment(path);
      ++num_opened;
      (void)segment.check();
      for (int query = 0; query < 20; ++query) {
        Tokens context(static_cast<std::size_t>(below(random, 70)));
        for (Token& token : context) token = below(random, 3);
        std::vector<SegmentPlace> found;
        segment.find(context, 64, found);
        SegmentInterval interval = segment.locate(context);
        for (int i = 0; i < 100 && !interval.empty(); ++i) interval = segment.extend(interval, below(random, 3));
      }
    } catch (const SegmentError&) {
    }
  }
  expect(num_opened > 100, "enough lies pass the checks of entries");
}

// Wrong input is refused, and no file is left behind, whole or in part.
void test_wrong_input_is_refused() {
  const Folder folder;
  const std::string path = folder.file("s");
  const Tokens text{kBorder, 1, 2, 1, 3, kBorder};
  const auto write = [&](const Tokens& tokens, const std::vector<Position>& places) {
    expect_throws<std::invalid_argument>([&] { write_segment(path, tokens, places); });
  };
  write({}, {});
  write({1, 2, kBorder}, {1});
  write({kBorder, 1, 2}, {2});
  write({kBorder, -2, kBorder}, {});
  write(text, {2, 4});
  write(text, {2, 4, 4});
  write(text, {2, 4, 1});
  write(text, {2, 4, 99});
  write(text, {3, 2, 4});
  write_segment(path, text, std::vector<Position>{2, 4, 3});
  expect(folder.holds_only("s"), "no other file is left");
  expect_throws<std::system_error>([&] { write_segment(folder.file("none/s"), text, std::vector<Position>{2, 4, 3}); });
  expect_throws<std::system_error>([&] { CorpusSegment segment(folder.file("none")); });
}

// A segment without any place answers every question.
void test_empty() {
  const Folder folder;
  for (const Tokens& text : {Tokens{kBorder, kBorder}, Tokens{kBorder, 7, kBorder, 3, kBorder}}) {
    write_segment(folder.file("s"), text, {});
    const CorpusSegment segment(folder.file("s"));
    std::vector<SegmentPlace> found;
    segment.find(Tokens{7}, 4, found);
    expect(found.empty() && segment.back_off({}).empty() && segment.extend({}, 7).empty(), "there is nothing");
    expect(segment.check().empty(), "nothing is broken");
    expect(segment.is_border(99), "past the end is a border");
  }
}

// Readers need no lock, and a file may be unlinked or replaced while it is read.
void test_readers() {
  const Folder folder;
  Random random(5);
  const Tokens text = some_text(random, 4, 20'000);
  write_segment(folder.file("s"), text, sorted_places(text));
  const CorpusSegment segment(folder.file("s"));
  write_segment(folder.file("s"), Tokens{kBorder, kBorder}, {});
  std::filesystem::remove(folder.file("s"));
  const auto read = [&](unsigned seed) {
    Random own(seed);
    for (int i = 0; i < 2000; ++i) {
      const auto at = static_cast<std::size_t>(1 + below(own, static_cast<Token>(text.size()) - 1));
      std::vector<SegmentPlace> found;
      segment.find(std::span(text).first(at), 16, found);
      for (const SegmentPlace& place : found) expect(segment.at(place.next) >= 0, "a place has a token");
    }
  };
  std::thread other(read, 6);
  read(7);
  other.join();
}

}  // namespace
}  // namespace paceline

int main() {
  using namespace paceline;
  test_find();
  test_spread();
  test_extend();
  test_damage_is_noticed();
  test_lies_are_harmless();
  test_wrong_input_is_refused();
  test_empty();
  test_readers();
  std::puts("all segment tests passed");
  return 0;
}
