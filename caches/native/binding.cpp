#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "draft_index.hpp"
#include "fusion_binding.hpp"
#include "numpy_arrays.hpp"
#include "round_budget_binding.hpp"
#include "round_sums_binding.hpp"
#include "segment.hpp"
#include "shared_log.hpp"
#include "validation.hpp"
#include "segment_binding.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace paceline {
namespace {

// Calls of so few requests keep the GIL: what they take is less than what it takes to get it back from another thread.
// No lock of the index is held by a thread that waits for the GIL.
constexpr std::size_t kFewRequests = 4;
constexpr std::size_t kFewTokens = 1024;

std::uint64_t checked_key(const char* name, std::int64_t key) {
  check_range(name, key, 0, "give 0 (none) or a positive key");
  return static_cast<std::uint64_t>(key);
}

nb::tuple begin(DraftIndex& index, NumpyArray prompt_ids, NumpyArray read_scopes, ScopeId write_scope,
                std::int64_t session, std::int64_t key, bool share_prompt, double time,
                std::optional<NumpyArray> read_sources) {
  const auto prompt = view<Token>("prompt_ids", prompt_ids);
  const auto scopes = view<ScopeId>("read_scopes", read_scopes);
  const auto sources = read_sources ? view<std::uint8_t>("read_sources", *read_sources) : std::span<const std::uint8_t>();
  const SessionKey conversation = checked_key("session", session);
  const SequenceKey sequence = checked_key("key", key);
  DraftIndex::Opened opened;
  {
    const nb::gil_scoped_release released;
    opened = index.begin(prompt, scopes, write_scope, conversation, sequence, {share_prompt, time}, sources);
  }
  return nb::make_tuple(opened.handle, opened.num_reused);
}

void append_shared(DraftIndex& index, ScopeId scope_id, NumpyArray token_ids, std::int64_t key, double time,
                   std::int64_t num_prompt) {
  const auto tokens = view<Token>("token_ids", token_ids);
  const SequenceKey sequence = checked_key("key", key);
  const nb::gil_scoped_release released;
  index.append_shared(scope_id, tokens, sequence, time, num_prompt);
}

std::size_t delete_sequence(DraftIndex& index, ScopeId scope_id, std::int64_t key) {
  return index.delete_sequence(scope_id, checked_key("key", key));
}

void commit(DraftIndex& index, NumpyArray handles, NumpyArray token_ids, NumpyArray offsets) {
  const auto batch = view<Handle>("handles", handles);
  const auto tokens = view<Token>("token_ids", token_ids);
  const auto bounds = view<std::int64_t>("offsets", offsets);
  const bool is_short = batch.size() <= kFewRequests && tokens.size() <= kFewTokens;
  if (is_short && index.try_commit(batch, tokens, bounds)) return;
  const nb::gil_scoped_release released;
  index.commit(batch, tokens, bounds);
}

nb::tuple as_tuple(const DraftBatch& drafts) {
  return nb::make_tuple(to_numpy(drafts.offsets), to_numpy(drafts.token_ids),
                        to_numpy(drafts.parent), to_numpy(drafts.prob),
                        to_numpy(drafts.source));
}

nb::tuple propose(DraftIndex& index, NumpyArray handles, NumpyArray max_tokens, std::int64_t max_branches) {
  const auto batch = view<Handle>("handles", handles);
  const auto limits = view<std::int32_t>("max_tokens", max_tokens);
  std::optional<DraftBatch> tried;
  if (batch.size() <= kFewRequests) tried = index.try_propose(batch, limits, max_branches);
  if (!tried) {
    const nb::gil_scoped_release released;
    tried = index.propose(batch, limits, max_branches);
  }
  return as_tuple(*tried);
}

nb::tuple propose_behind(DraftIndex& index, NumpyArray handles, NumpyArray max_tokens, NumpyArray token_ids,
                         NumpyArray offsets, std::int64_t max_branches) {
  const auto batch = view<Handle>("handles", handles);
  const auto limits = view<std::int32_t>("max_tokens", max_tokens);
  const auto tokens = view<Token>("token_ids", token_ids);
  const auto bounds = view<std::int64_t>("offsets", offsets);
  DraftBatch drafts;
  {
    const nb::gil_scoped_release released;
    drafts = index.propose_behind(batch, limits, tokens, bounds, max_branches);
  }
  return as_tuple(drafts);
}

std::vector<float> initial_state() {
  const Calibration fresh;
  return {fresh.state().begin(), fresh.state().end()};
}

nb::tuple calibration_shape() {
  const Calibration::Shape shape = Calibration::shape();
  return nb::make_tuple(shape.num_weights, shape.num_length_weights, shape.num_lengths, shape.num_contexts,
                        shape.num_knots);
}

nb::object fitted_weights() {
  const std::vector<std::uint32_t> places = Calibration::fitted_weights();
  return to_numpy(std::vector<std::int64_t>(places.begin(), places.end()));
}

nb::object calibration(DraftIndex& index, NumpyArray read_scopes, ScopeId write_scope) {
  return to_numpy(index.calibration(view<ScopeId>("read_scopes", read_scopes), write_scope));
}

void set_calibration(DraftIndex& index, NumpyArray read_scopes, ScopeId write_scope, NumpyArray state) {
  index.set_calibration(view<ScopeId>("read_scopes", read_scopes), write_scope, view<float>("state", state));
}

nb::tuple finish(DraftIndex& index, Handle handle, double time) {
  DraftIndex::Finished finished;
  {
    const nb::gil_scoped_release released;
    finished = index.finish(handle, time);
  }
  return nb::make_tuple(to_numpy(finished.new_tokens), finished.num_prompt);
}

nb::bytes snapshot(const DraftIndex& index) {
  std::vector<std::byte> file;
  {
    const nb::gil_scoped_release released;
    file = index.snapshot();
  }
  return nb::bytes(file.data(), file.size());
}

void restore(DraftIndex& index, const nb::bytes& data) {
  const std::span file(static_cast<const std::byte*>(data.data()), data.size());
  const nb::gil_scoped_release released;
  index.restore(file);
}

constexpr std::pair<const char*, Source> kSourceNames[] = {{"context", Source::kContext},
                                                           {"workload", Source::kWorkload},
                                                           {"tenant", Source::kTenant},
                                                           {"corpus", Source::kCorpus}};

// Totals, then what each source that the index drafts from had in them.
void put_drafts(const DraftStats& drafts, nb::dict& result) {
  const auto put = [&result](const std::string& name, const SourceCounts& counts) {
    std::uint64_t total = 0;
    for (const std::uint64_t count : counts) total += count;
    result[name.c_str()] = total;
    for (const auto& [source, number] : kSourceNames) {
      result[(name + "_" + source).c_str()] = counts[static_cast<std::size_t>(number)];
    }
  };
  put("drafted", drafts.drafted);
  put("accepted", drafts.accepted);
}

nb::dict stats(const DraftIndex& index) {
  IndexStats counted;
  {
    const nb::gil_scoped_release released;
    counted = index.stats();
  }
  nb::dict result;
  result["requests"] = counted.requests;
  result["sessions"] = counted.sessions;
  result["scopes"] = counted.scopes;
  result["sequences"] = counted.sequences;
  result["shared_tokens"] = counted.shared_tokens;
  result["context_tokens"] = counted.context_tokens;
  result["segments"] = counted.segments;
  result["corpus_tokens"] = counted.corpus_tokens;
  result["bytes"] = counted.bytes;
  put_drafts(counted.drafts, result);
  return result;
}

nb::dict scope_stats(const DraftIndex& index, ScopeId scope_id) {
  ScopeStats counted;
  {
    const nb::gil_scoped_release released;
    counted = index.scope_stats(scope_id);
  }
  nb::dict result;
  result["sequences"] = counted.sequences;
  result["shared_tokens"] = counted.shared_tokens;
  result["segments"] = counted.segments;
  result["corpus_tokens"] = counted.corpus_tokens;
  result["bytes"] = counted.bytes;
  put_drafts(counted.drafts, result);
  return result;
}

void attach_corpora(DraftIndex& index, ScopeId scope_id, const std::vector<std::shared_ptr<CorpusSegment>>& segments) {
  if (std::find(segments.begin(), segments.end(), nullptr) != segments.end()) {
    throw std::invalid_argument("segments holds None; give CorpusSegment objects");
  }
  CorpusSegments attached(segments.begin(), segments.end());
  const nb::gil_scoped_release released;
  index.attach_corpora(scope_id, std::move(attached));
}

std::int64_t capacity_for_bytes(std::int64_t num_bytes) {
  const auto least = static_cast<std::int64_t>(TokenLog::most_bytes(kMinCapacity));
  check_range("num_bytes", num_bytes, least, "give at least " + std::to_string(least));
  const auto capacity = static_cast<std::int64_t>(SharedLog::capacity_for(static_cast<std::size_t>(num_bytes)));
  return std::min(capacity, kMaxCapacity);
}

void check_integrity(const DraftIndex& index) {
  std::string fault;
  {
    const nb::gil_scoped_release released;
    fault = index.check();
  }
  if (!fault.empty()) throw std::runtime_error("the draft index is broken: " + fault);
}

}  // namespace
}  // namespace paceline

NB_MODULE(_native, module) {
  using namespace paceline;
  const IndexSettings defaults;
  import_numpy();
  nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (const UnknownHandle& error) {
      PyErr_SetString(PyExc_KeyError, error.what());
    }
  });
  const auto no_gil = nb::call_guard<nb::gil_scoped_release>();
  // The contract of every method is in _native.pyi.
  module.def("initial_calibration", [] { return to_numpy(initial_state()); });
  module.def("fitted_weights", &fitted_weights);
  module.def("calibration_shape", &calibration_shape);
  nb::class_<DraftIndex>(module, "DraftIndex")
      .def(
          "__init__",
          [](DraftIndex* self, std::int64_t shared_capacity, std::int64_t max_sessions,
             std::int64_t max_session_tokens, std::int64_t max_candidates, double min_probability) {
            new (self) DraftIndex(
                {shared_capacity, max_sessions, max_session_tokens, max_candidates, min_probability});
          },
          nb::kw_only(), "shared_capacity"_a = defaults.shared_capacity,
          "max_sessions"_a = defaults.max_sessions, "max_session_tokens"_a = defaults.max_session_tokens,
          "max_candidates"_a = defaults.max_candidates, "min_probability"_a = defaults.min_probability)
      .def(
          "scope",
          [](DraftIndex& index, const std::string& name, std::int64_t capacity) {
            return index.scope(name, capacity);
          },
          "name"_a, nb::kw_only(), "capacity"_a = 0, no_gil)
      .def_static("capacity_for_bytes", &capacity_for_bytes, "num_bytes"_a)
      .def("drop_scope", &DraftIndex::drop_scope, "scope_id"_a, no_gil)
      .def("append_shared", &append_shared, "scope_id"_a, "token_ids"_a, nb::kw_only(), "key"_a = 0,
           "time"_a = 0.0, "num_prompt"_a = 0)
      .def("delete_sequence", &delete_sequence, "scope_id"_a, "key"_a, no_gil)
      .def("evict_before", &DraftIndex::evict_before, "scope_id"_a, "time"_a, no_gil)
      .def("evict_contexts_before", &DraftIndex::evict_contexts_before, "time"_a, no_gil)
      .def("attach_corpora", &attach_corpora, "scope_id"_a, "segments"_a)
      .def("begin", &begin, "prompt_ids"_a, nb::kw_only(), "read_scopes"_a, "write_scope"_a = -1, "session"_a = 0,
           "key"_a = 0, "share_prompt"_a = false, "time"_a = 0.0, "read_sources"_a = nb::none())
      .def("commit", &commit, "handles"_a, "token_ids"_a, "offsets"_a)
      .def("truncate", &DraftIndex::truncate, "handle"_a, "num_tokens"_a, no_gil)
      .def("num_tokens", &DraftIndex::num_tokens, "handle"_a, no_gil)
      .def("propose", &propose, "handles"_a, "max_tokens"_a, nb::kw_only(), "max_branches"_a = 1)
      .def("propose_behind", &propose_behind, "handles"_a, "max_tokens"_a, "token_ids"_a, "offsets"_a, nb::kw_only(),
           "max_branches"_a = 1)
      .def("finish", &finish, "handle"_a, nb::kw_only(), "time"_a = 0.0)
      .def("calibration", &calibration, nb::kw_only(), "read_scopes"_a, "write_scope"_a = -1)
      .def("set_calibration", &set_calibration, nb::kw_only(), "read_scopes"_a, "write_scope"_a = -1, "state"_a)
      .def("snapshot", &snapshot)
      .def("restore", &restore, "data"_a)
      .def("stats", &stats)
      .def("scope_stats", &scope_stats, "scope_id"_a)
      .def("check_integrity", &check_integrity);
  bind_segment(module);
  bind_fusion(module);
  bind_round_budget(module);
  bind_round_sums(module);
}
