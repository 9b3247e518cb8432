#pragma once

#include <nanobind/nanobind.h>

namespace paceline {

void bind_round_sums(nanobind::module_& module);

}  // namespace paceline
