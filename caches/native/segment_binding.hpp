#pragma once

#include <nanobind/nanobind.h>

namespace paceline {

// Adds CorpusSegment to the extension module.
void bind_segment(nanobind::module_& module);

}  // namespace paceline
