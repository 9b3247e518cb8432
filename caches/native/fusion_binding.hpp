#pragma once

#include <nanobind/nanobind.h>

namespace paceline {

void bind_fusion(nanobind::module_& module);

}  // namespace paceline
